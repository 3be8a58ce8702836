import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from patience import until
from tiny import JOB, frozen_run, settings

from mmprompt.runs import run_folder
from mmprompt.runs.config import RunConfig
from mmprompt.runs.files import StoreError, write_once
from mmprompt.runs.identity import completed, digest, evaluation_id, frozen_text, read_config, run_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError, parse

COMMITTED = json.loads((Path(__file__).parent / "data" / "committed_runs.json").read_text())


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda committed: committed["id"])
def test_the_ids_of_committed_runs_never_change(committed: dict) -> None:  # type: ignore[type-arg]
    assert run_id(parse(RunConfig, completed(committed["config"]))) == committed["id"]


def test_there_are_ten_committed_runs_and_no_two_are_the_same() -> None:
    assert len({committed["id"] for committed in COMMITTED}) == 10


def test_every_scientific_setting_is_in_the_id_and_no_other_is() -> None:
    base = run_id(settings()[0])
    for change in ("seed=2", "threads=2", "prompt.length=5", "optim.lr=0.2", "task.data.seed=9", "backbone.mode=train"):
        assert run_id(settings(change)[0]) != base, change
    for change in ("cluster=local", "cluster.mem_gb=9", "tracking=disabled", "paths.runs=/elsewhere"):
        assert run_id(settings(change)[0]) == base, change


def test_settings_that_mean_the_same_have_the_same_id() -> None:
    for one, other in [
        (["prompt.decoder_length=4"], ["prompt.decoder_length=null"]),
        (["prompt.layers=[1,0]"], ["prompt.layers=[0,1,1]"]),
        (["optim.lr=1"], ["optim.lr=1.0"]),
    ]:
        assert run_id(settings(*one)[0]) == run_id(settings(*other)[0])


def test_the_folder_holds_exactly_what_was_hashed(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    assert digest(folder.config_file.read_text()) == folder.id
    assert read_config(folder.config_file) == settings()[0]


def test_a_changed_configuration_is_named(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    folder.config_file.write_text(folder.config_file.read_text() + " ")
    with pytest.raises(ConfigError, match=r"config\.json was changed after launch"):
        read_config(folder.config_file)


def test_a_key_added_later_leaves_old_ids_alone_while_it_stands_at_its_neutral_value() -> None:
    config = settings()[0]
    before = frozen_text(config, neutral={"prompt.dropout": 0.0})  # as if the key had been added today
    assert "dropout" not in json.loads(before)["prompt"]
    changed = settings("prompt.dropout=0.2")[0]
    assert json.loads(frozen_text(changed, neutral={"prompt.dropout": 0.0}))["prompt"]["dropout"] == 0.2


def test_an_evaluation_is_known_by_its_run_and_its_settings() -> None:
    ids = {evaluation_id(run, {"split": split}) for run in ("a", "b") for split in ("val", "test")}
    assert len(ids) == 4


def test_an_attempt_is_claimed_by_one_of_many(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    for number in range(1, 6):
        barrier, won = threading.Barrier(8), []

        def claim(barrier: threading.Barrier = barrier, won: list = won, number: int = number) -> None:  # type: ignore[type-arg]
            barrier.wait()
            won.append(folder.claim(number, JOB))

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 8 and sum(attempt is not None for attempt in won) == 1
    assert [path.name for path in (folder.path / "attempts").glob(".*")] == []


def test_a_process_cannot_claim_a_number_that_another_claimed_in_between(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    number = folder.next_number
    assert folder.claim(folder.next_number, JOB) is not None  # another, in between
    assert folder.claim(number, JOB) is None


def test_a_claim_is_made_again_if_a_process_that_has_just_published_takes_its_draft_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = frozen_run(tmp_path)
    first = folder.claim(1, JOB | this_process())
    assert first is not None
    put = run_folder.put_folder

    def after_the_other(draft: Path, place: Path, proof: str) -> bool:
        monkeypatch.setattr(run_folder, "put_folder", put)
        assert folder.publish(first, {"attempt": 1, "metrics": {}})
        return put(draft, place, proof)

    monkeypatch.setattr(run_folder, "put_folder", after_the_other)
    second = folder.claim(2, JOB | this_process())
    assert second is not None and second.job["pid"] == os.getpid()
    assert sorted(path.name for path in (folder.path / "attempts").iterdir()) == ["1", "2"]


def test_a_process_that_tidies_removes_a_draft_or_leaves_it_whole_to_one_that_puts_it_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = frozen_run(tmp_path)
    first = folder.claim(1, JOB | this_process())
    assert first is not None
    draft, place = folder.path / "attempts" / ".2.0badc0de", folder.path / "attempts" / "2"
    draft.mkdir()
    (draft / "job.json").write_text("{}")

    def remove(path: Path, ignore_errors: bool) -> None:
        """As `shutil.rmtree`, which opens a folder and then removes what is in it, wherever it has been moved meanwhile."""
        opened = os.open(path, os.O_RDONLY)
        with contextlib.suppress(FileNotFoundError):
            draft.rename(place)
        for name in os.listdir(opened):
            os.unlink(name, dir_fd=opened)
        os.close(opened)

    monkeypatch.setattr(run_folder.shutil, "rmtree", remove)
    assert folder.publish(first, {"attempt": 1, "metrics": {}})
    assert not place.exists() or (place / "job.json").exists()


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/sub/x\.json cannot be written: Not a directory"):
        write_once(tmp_path / "file" / "sub" / "x.json", "{}")


def test_an_attempt_lives_as_long_as_its_process_and_no_stranger_with_its_pid_keeps_it_alive(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    facts = {"host": socket.gethostname(), "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    folder = frozen_run(tmp_path)
    attempt = folder.claim(folder.next_number, JOB | facts)
    stranger = folder.claim(folder.next_number, JOB | facts | {"started": facts["started"] - 100})
    elsewhere = folder.claim(folder.next_number, JOB | facts | {"host": "another"})
    assert attempt and stranger and elsewhere
    assert attempt.is_running() is True and stranger.is_running() is False and elsewhere.is_running() is None
    process.kill()
    until(
        lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "it is dead, and nobody has waited for it"
    )
    assert attempt.is_running() is False
    process.wait()
    assert attempt.is_running() is False


def test_the_first_result_stays(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    one, two = (folder.claim(folder.next_number, JOB | this_process()) for _ in range(2))
    assert one is not None and two is not None
    for attempt in (one, two):
        attempt.weights_file.write_text(f"of attempt {attempt.number}")
        attempt.checkpoint_file(50).write_text("")
    assert folder.publish(two, {"attempt": 2, "metrics": {}})
    assert one.checkpoint_steps == [50] and two.checkpoint_steps == []  # the other is still at work
    assert not folder.publish(one, {"attempt": 1, "metrics": {}})
    assert (
        folder.result() == {"version": 1, "attempt": 2, "metrics": {}}
        and folder.weights_file.read_text() == "of attempt 2"
    )
    assert not one.weights_file.exists() and one.checkpoint_steps == []


def test_a_done_run_keeps_nothing_half_written_of_those_that_died(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    dead = folder.claim(1, JOB | this_process() | {"pid": 2**22})
    mine = folder.claim(2, JOB | this_process())
    assert dead is not None and mine is not None
    dead.evaluations.mkdir()
    (folder.path / "attempts" / ".claim.x").mkdir()
    left = [folder.path / ".result.json.x", dead.path / ".checkpoint.50.pt.x", dead.evaluations / ".a.json.x"]
    left += [dead.weights_file, dead.evaluation_file("a"), folder.path / "attempts" / ".claim.x" / "job.json"]
    for file in left:
        file.write_text("")
    assert folder.publish(mine, {"attempt": 2, "metrics": {}})
    found = sorted(str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file())
    assert found == ["attempts/1/job.json", "attempts/2/job.json", "config.json", "result.json"]


def test_a_file_written_once_is_complete_or_absent(tmp_path: Path) -> None:
    assert write_once(tmp_path / "a" / "b.json", "x" * 100_000)
    assert not write_once(tmp_path / "a" / "b.json", "y")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("prompt.length=-1", "prompt.length=-1"),
        ("prompt.depth=enc", "prompt.depth='enc' is not allowed; choose one of 'both', 'encoder' or 'decoder'"),
        ("optim.lr=fast", "optim.lr='fast' (str) is not allowed; wanted: number"),
        ("optim.micro_batch=3", "optim.micro_batch=3 must divide optim.batch_size=8"),
        ("optim.patience=1", "optim.patience=1 must be at least optim.validate_every=2"),
        ("prompt.layers=[7]", "prompt.layers=[7] names a layer that the encoder of model.name=micro does not have"),
        ("prompt.layers=[0,a]", "prompt.layers.1='a' (str) is not allowed; wanted: integer"),
        ("prompt.layers=[]", "prompt.layers=[] (list) is not allowed"),
        ("paths.backbone=nowhere.pt", "paths.backbone=nowhere.pt is not a file"),
    ],
)
def test_a_wrong_value_is_answered_with_its_key_and_what_is_allowed(change: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(change)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_store_is_one_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert all(
        path.is_relative_to(tmp_path) for path in (store.jobs, store.code, store.manifest("x"), store.run("y").path)
    )
