"""A damaged, missing or foreign file affects only its own run, batch or sweep: verbs name it, say what to do, and go on with
the rest. Stores that are mangled at random: `tests/mangled.py`."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mangled
import mangled_store
import pytest
from groups import LONG
from launcher import Launcher
from patience import printed_by, until
from tiny import frozen_run

from analysis.records.manifest import read_manifest
from mmprompt.runs import files
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import GoneError, StoreError
from mmprompt.runs.processes import this_process
from mmprompt.runs.records import DamagedError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.__main__ import main
from sweeps.grid.launched import read
from sweeps.jobs.batch import batches

FACTS = this_process() | {"batch": "1", "scheduler": "local", "job": "7"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with mangled.unattended():
        yield mangled_store.made(tmp_path_factory.mktemp("base") / "runs")


@pytest.fixture
def store(base: Store, tmp_path: Path) -> Store:
    mangled_store.copied(base.root, tmp_path / "runs")
    return Store(tmp_path / "runs")


def cut(file: Path) -> None:
    mangled_store.put(file, file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    mangled_store.put(file, b"")


def of_another_shape(file: Path) -> None:
    mangled_store.put(file, b"{}")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def gone(file: Path) -> None:
    file.unlink()


def of_another_run(file: Path) -> None:
    """Its content is whole, but somebody has copied it from another run's folder."""
    others = (other for other in file.parents[1].glob("*/result.json") if other.parent != file.parent)
    mangled_store.put(file, next(others).read_bytes())


DAMAGED = re.compile(r"^damaged: |\d damaged", re.MULTILINE)
DAMAGES = (cut, emptied, of_another_shape, a_folder, gone)


def done(store: Store) -> RunFolder:
    return next(
        store.run(run)
        for run in sorted(store.runs())
        if store.run(run).result_file.exists() and is_of_length(store, run)
    )


def is_of_length(store: Store, run: str) -> bool:
    return run in store.manifest("length").read_text()


def failed(store: Store) -> RunFolder:
    """A run that has two attempts and no result."""
    return next(
        store.run(run)
        for run in sorted(store.runs())
        if is_of_length(store, run) and (store.run(run).path / "attempts/2/error.txt").exists()
    )


FILES: dict[str, Callable[[Store], Path]] = {
    "result": lambda store: done(store).result_file,
    "settings": lambda store: failed(store).config_file,
    "job of an attempt": lambda store: Attempt(failed(store), 2).job_file,
    "batch": lambda store: store.jobs / "1/batch.json",
    "end of a submission": lambda store: store.jobs / "1/submitted.json",
    "array": lambda store: store.jobs / "1/0/submitted.json",
    "manifest": lambda store: store.manifest("robustness"),
    "trial of a search": lambda store: store.searches / "learning_rate/trials/0.json",
}
NOT_NEEDED = {
    ("result", gone),
    ("end of a submission", gone),
    ("array", gone),
    ("manifest", gone),
    ("trial of a search", gone),
}  # without the file the store is the same as if it had never been written


@pytest.mark.parametrize(
    ("what", "how"),
    [*itertools.product(FILES, DAMAGES), ("result", of_another_run)],
    ids=lambda case: getattr(case, "__name__", case),
)
def test_status_names_a_damaged_file_with_what_to_do_and_shows_all_others(
    store: Store, capsys: pytest.CaptureFixture[str], what: str, how: Callable[[Path], None]
) -> None:
    file = FILES[what](store)
    how(file)
    code = main(["status", "--runs", str(store.root)])
    output = capsys.readouterr().out
    assert "length: 8 runs: " in output and code == 1
    if (what, how) in NOT_NEEDED:
        assert not DAMAGED.search(output)
        return
    [line] = [line for line in output.splitlines() if line.startswith("damaged: ")]
    assert str(file) in line and any(
        word in line for word in ("restore it", "remove it", "the next launch writes it again")
    )
    if what in ("result", "settings", "job of an attempt"):
        place = file.relative_to(store.root)
        assert "1 damaged" in output and any(
            f"damaged: {place}" in row for row in output.splitlines() if row.startswith("  ")
        )


def test_status_shows_a_sweep_that_is_named_together_with_a_damaged_search(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(FILES["trial of a search"](store))
    assert main(["status", "length", "learning_rate", "--runs", str(store.root)]) == 1
    output = capsys.readouterr().out
    assert re.search(r"^damaged: .*trials/0.json", output, re.MULTILINE) and "length: 8 runs: " in output


@pytest.mark.parametrize("what", FILES)
def test_following_the_advice_of_status_leaves_nothing_damaged(
    store: Store, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    file = FILES[what](store)
    cut(file)
    if what in ("result", "job of an attempt"):
        shutil.rmtree(file.parent)
        mangled.launch_plan(store.root)  # what a launch does before it submits
    elif what == "settings":
        mangled.launch_plan(store.root)  # it writes the settings again
    elif what == "batch":
        for entry in list(file.parent.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    else:
        file.unlink()
    before = capsys.readouterr().out
    main(["status", "length", "--runs", str(store.root)])
    output = capsys.readouterr().out
    assert not DAMAGED.search(output), before + output


def test_the_number_of_a_damaged_batch_is_not_used_again(store: Store) -> None:
    cut(store.jobs / "2/batch.json")
    (store.jobs / "7").mkdir()  # a number is taken even if its folder is empty
    there = batches(store)
    assert [batch.id for batch in there] == ["1"] and there.next == 8
    assert [damage.file.parent.name for damage in there.damaged] == ["2"]


def test_foreign_files_in_the_store_are_left_alone_and_change_no_output(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--runs", str(store.root)]
    main(["status", *where])
    before = capsys.readouterr().out
    for name in (
        "run/README.txt",
        "run/old runs/x",
        "jobs/²",
        "jobs/notes/x",
        "jobs/README",
        "sweeps/notes.txt",
        "costs/x",
    ):
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).write_text("mine")
    main(["status", *where])
    assert capsys.readouterr().out == before
    assert main(["clean", "--days", "1", *where]) == 0
    assert all((store.root / name).read_text() == "mine" for name in ("run/README.txt", "jobs/²", "run/old runs/x"))


def test_a_record_written_by_a_newer_version_is_reported_as_such(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [store.run(run) for run in read(store, "length").runs]
    file = next(run.result_file for run in runs if run.result_file.exists())
    content = json.loads(file.read_text()) | {"version": 2}
    file.unlink()  # it is a hard link to a file that other tests read
    file.write_text(json.dumps(content))
    main(["status", "length", "--runs", str(store.root)])
    said = capsys.readouterr().out
    assert (
        f"{file} was written by a newer mmprompt (version 2 of its records; this one reads up to 1); use that one"
        in said
    )


# A run's folder is removed


def claimed(folder: Path) -> Attempt:
    attempt = Store(folder).run("run").claim(1, FACTS)
    assert attempt is not None
    return attempt


@pytest.mark.parametrize(
    "removed", [lambda attempt: attempt.path, lambda attempt: attempt.run.path], ids=["attempt", "run"]
)
@pytest.mark.parametrize(
    "write",
    [
        lambda attempt: attempt.report({"step": 1}),
        lambda attempt: attempt.fail(from_text("x")),
        lambda attempt: attempt.put(attempt.checkpoint_file(3), b"x"),
        lambda attempt: attempt.put(attempt.evaluation_file("e"), b"x", once=True),
        lambda attempt: attempt.run.publish(attempt, {"attempt": 1, "metrics": {}}),
    ],
    ids=["progress", "error", "checkpoint", "evaluation", "result"],
)
def test_writing_into_a_removed_attempt_fails_and_does_not_create_it_again(
    tmp_path: Path, removed: Callable[[Attempt], Path], write: Callable[[Attempt], object]
) -> None:
    attempt = claimed(tmp_path)
    shutil.rmtree(removed(attempt))
    with pytest.raises(GoneError, match=r"attempts/1 was removed"):
        write(attempt)
    assert not attempt.path.exists()


def test_a_removed_attempt_writes_nothing_into_one_that_another_process_claimed_in_its_place(tmp_path: Path) -> None:
    mine = claimed(tmp_path)
    shutil.rmtree(mine.run.path)
    theirs = mine.run.claim(1, FACTS | {"started": 1.0})
    assert theirs is not None
    with pytest.raises(GoneError, match="another process is at it now"):
        mine.report({"step": 1})
    theirs.report({"step": 2, "steps": 3, "validation": [], "seconds": 0.0})
    assert theirs.progress and theirs.progress["step"] == 2


def test_what_is_written_into_an_attempt_while_it_is_being_removed_is_removed_too(tmp_path: Path) -> None:
    attempt = claimed(tmp_path)
    attempt.report({"step": 1, "steps": 3, "validation": [], "seconds": 0.0})
    attempt.job_file.unlink()  # so far `rm -rf` has come
    with pytest.raises(GoneError):
        attempt.report({"step": 2})
    attempt.leave()
    assert not attempt.run.path.exists()


def test_an_attempt_that_is_removed_while_somebody_looks_into_it_has_no_checkpoints_and_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = claimed(tmp_path)
    is_dir = Path.is_dir

    def removed(path: Path) -> bool:
        """Says that the folder is there, and then it is removed."""
        there = is_dir(path)
        if path == attempt.path:
            shutil.rmtree(path, ignore_errors=True)
        return there

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", removed)
        assert attempt.checkpoint_steps == []
    (attempt.path / "wandb" / "offline-run-1-a").mkdir(parents=True)
    scandir = os.scandir

    def listed(path: Path) -> Any:
        """Lists the folder of the records, and then one of them is removed."""
        found = scandir(path)
        if path == attempt.path / "wandb":
            shutil.rmtree(attempt.path / "wandb" / "offline-run-1-a", ignore_errors=True)
        return found

    monkeypatch.setattr(os, "scandir", listed)
    assert attempt.wandb is None


@pytest.mark.long
def test_a_run_that_is_removed_while_it_trains_ends_and_is_trained_again_by_the_next_launch(
    launcher: Launcher,
) -> None:
    settings = (
        "seed=1,2",
        "optim.steps=100",
        "cluster.checkpoint_every=2",
        "cluster.max_parallel=1",
        "tracking=offline",
    )
    process = launcher.start("launch", *settings)
    worker = launcher.worker()

    def at_work() -> Attempt | None:
        runs = [launcher.store.run(run) for run in launcher.store.runs()]
        there = [one for run in runs for one in run.attempts() if one.progress and run.result() is None]
        return there[0] if there else None

    attempt: Attempt = until(at_work, "an attempt reports", process, often=True)
    worker.suspend()
    assert not attempt.run.result_file.exists()
    shutil.rmtree(attempt.run.path)
    worker.resume()
    output = printed_by(process)
    assert process.returncode == 1 and "Traceback" not in output and "1 run not done" in output, output
    assert not attempt.run.path.exists()
    assert sum(launcher.store.run(run).result() is not None for run in launcher.store.runs()) == 1
    code, output = launcher.run("launch", *settings)
    assert code == 0 and "all 2 runs are done" in output, output


def test_what_wandb_writes_after_its_attempt_was_removed_counts_as_no_attempt(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    for number in (1, 2):
        assert folder.claim(number, FACTS) is not None
    shutil.rmtree(folder.path / "attempts" / "2")
    record = folder.path / "attempts" / "2" / "wandb" / "offline-run-1" / "run-1.wandb"
    record.parent.mkdir(parents=True)
    record.touch()
    assert [attempt.number for attempt in folder.attempts()] == [1] and folder.next_number == 3
    (folder.path / "attempts" / "2" / "checkpoint.2.pt").touch()  # of an attempt that lost its job.json alone
    assert [attempt.number for attempt in folder.attempts()] == [1, 2]
    with pytest.raises(DamagedError, match=r"attempts/2/job.json is not there; restore it, or remove "):
        _ = folder.attempts()[1].job


def test_a_manifest_replaces_an_empty_folder_but_no_folder_with_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.manifest("length").mkdir(parents=True)
    assert store.put_manifest("length", "{}").read_text() == "{}"
    kept = store.manifest("depth") / "somebody's"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(StoreError, match=r"depth.json is a folder where a manifest belongs.*move it away"):
        store.put_manifest("depth", "{}")
    assert kept.exists()


@pytest.mark.parametrize("seed", ["11", None, 1.5, True])
def test_a_manifest_with_a_seed_that_is_no_integer_is_damaged(store: Store, seed: object) -> None:
    manifest = json.loads(store.manifest("length").read_text())
    manifest["points"][0]["values"]["seed"] = seed
    mangled_store.put(store.manifest("length"), json.dumps(manifest).encode())
    with pytest.raises(DamagedError, match=r"length.json .*the seed of run \w+ is no integer; remove it, and launch"):
        read_manifest(store, "length")


@pytest.mark.long
def test_settings_that_were_edited_are_written_again_by_the_next_launch(launcher: Launcher) -> None:
    code, output = launcher.run("launch", "seed=1", "optim.steps=4", "cluster.time_min=1", "--limit", "1")
    assert code == 0, output
    [run] = launcher.store.runs()
    folder = launcher.store.run(run)
    folder.result_file.unlink()
    folder.config_file.write_text(folder.config_file.read_text().replace('"seed":1', '"seed":7'))
    code, output = launcher.run("launch", "seed=1", "optim.steps=4")
    assert code == 0 and "config.json was changed after launch" in output and "it is written again" in output, output
    assert folder.settings()["seed"] == 1 and folder.result() is not None


# How files are put in place


class Forgetful(type(Path())):  # type: ignore[misc]
    """A path on a file server whose reply to a rename is lost: when the client repeats the rename, the source is gone."""

    def rename(self, target: Path) -> Path:  # type: ignore[override]
        super().rename(target)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))


def test_a_rename_whose_reply_was_lost_is_recognised_as_done(tmp_path: Path) -> None:
    draft, folder = Forgetful(tmp_path / ".draft"), tmp_path / "1"
    draft.mkdir()
    (draft / "job.json").write_text("{}")
    assert files.put_folder(draft, folder, "job.json")
    other = Forgetful(tmp_path / ".other")
    other.mkdir()
    (other / "job.json").write_text("{}")
    assert not files.put_folder(Path(other), folder, "job.json")  # the folder there is the first draft


def test_a_published_result_is_flushed_to_the_disk_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the file is flushed, then the folder that holds its name; a progress report is not flushed."""
    attempt, synced = claimed(tmp_path), list[str]()
    fsync = os.fsync

    def seen(opened: int) -> None:
        synced.append("folder" if stat.S_ISDIR(os.fstat(opened).st_mode) else "file")
        fsync(opened)

    monkeypatch.setattr(os, "fsync", seen)
    attempt.report({"step": 1})
    assert synced == []
    attempt.run.publish(attempt, {"attempt": 1, "metrics": {}})
    assert synced == ["file", "folder"]
    synced.clear()
    assert attempt.run.claim(2, FACTS)
    assert synced[-1] == "folder"


def test_no_verb_ends_in_a_traceback_on_a_few_randomly_mangled_stores(base: Store, tmp_path: Path) -> None:
    mangled.fuzz(base, tmp_path, 40 if LONG else 10, itertools.count(1))


def a_word_as_metrics(store: Store) -> None:
    for file in sorted(done(store).published.evaluations.glob("*.json")):
        mangled_store.put(file, json.dumps(json.loads(file.read_text()) | {"metrics": "acc"}).encode())


def nan_in_a_batch(store: Store) -> None:
    file = store.jobs / "1/batch.json"
    content = json.loads(file.read_text())
    content["jobs"][0][0]["evaluations"] = [{"split": float("nan")}]
    mangled_store.put(file, json.dumps(content).encode())


def settings_of_many_brackets(store: Store) -> None:
    mangled_store.put(done(store).config_file, b"[" * 3000)


def run_ids_with_a_null_byte(store: Store) -> None:
    for name in ("confirmed.json", "trials/0.json"):
        file = store.searches / "learning_rate" / name
        text = re.sub(r'("runs": ?{\s*"\d+": ?)"[0-9a-f]+"', r'\1"a\\u0000"', file.read_text(), count=1)
        assert "u0000" in text
        mangled_store.put(file, text.encode())


def a_trial_on_other_seeds(store: Store) -> None:
    file = store.searches / "learning_rate/trials/0.json"
    content = json.loads(file.read_text())
    mangled_store.put(file, json.dumps(content | {"runs": {"7": content["runs"]["1"]}}).encode())


def a_result_without_a_commit(store: Store) -> None:
    file = done(store).result_file
    mangled_store.put(file, json.dumps(json.loads(file.read_text()) | {"commit": None}).encode())


def a_result_that_only_wandb_has(store: Store) -> None:
    done(store).result_file.unlink()


FUZZED = (
    a_word_as_metrics,
    nan_in_a_batch,
    settings_of_many_brackets,
    run_ids_with_a_null_byte,
    a_trial_on_other_seeds,
    a_result_without_a_commit,
    a_result_that_only_wandb_has,
)


@pytest.mark.parametrize("how", FUZZED, ids=lambda how: how.__name__)
def test_no_verb_ends_in_a_traceback_on_damage_that_the_fuzzer_found_earlier(
    store: Store, how: Callable[[Store], None]
) -> None:
    how(store)
    mangled.check(store.root, 1, [how.__name__])
