"""`sync` uploads records to a W&B server, also if the server fails, records are damaged, or the command is interrupted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from patience import LAST_RESORT, called, printed_by, until
from synthetic_store import JOB, OFFLINE, claim, launch, manifest, run_all
from test_wandb_writer import files_in
from wandb_server import KEY, Upload, WandbServer

from analysis.records.histories import read_history
from mmprompt.runs import wandb_server
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import from_text
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_file import BLOCK
from mmprompt.runs.wandb_writer import RecordWriter
from sweeps.__main__ import main
from sweeps.verbs.sync import sync

LENGTHS = manifest("length", {"task": ["micro_vqa"], "prompt.length": [10, 64], "seed": [1]}, "prompt.length", {}, {})
DEPTHS = manifest("depth", {"task": ["micro_vqa"], "prompt.depth": ["both"], "seed": [1]}, "prompt.depth", {}, {})
RUNS = [point["run"] for about in (LENGTHS, DEPTHS) for point in about["points"]]
ROWS = 300
ASKED = 5  # the most requests to a server that cannot be used, before `sync` gives up


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        yield server
        assert server.unknown == []


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three done runs of two sweeps."""
    store = Store(tmp_path / "store")
    for number, about in enumerate((LENGTHS, DEPTHS)):
        launch(store, about)
        run_all(store, about["points"], OFFLINE, seed=number)
    return store


def upload(server: WandbServer, id: str) -> Upload:
    return server.runs[f"somebody/mmprompt/{id}"]


def another(store: Store, seed: int, exit_code: int) -> tuple[Attempt, Path]:
    """One more attempt, by this process, with its record."""
    attempt = claim(store, {"task": "micro_vqa", "seed": seed}, JOB | this_process() | {"scheduler": "local"})
    record = RecordWriter(attempt.path, f"{attempt.run.id}-1", "name", "group", {"seed": seed}, OFFLINE)
    for step in range(1, ROWS + 1):
        record.log(step, {"train/loss": 1 / step, "train/gradient": float(step)})
    record.finish({"test/accuracy": 50.0}, exit_code)
    assert record.file is not None
    return attempt, record.file


def test_every_record_arrives_once_and_only_its_mark_is_added_to_the_store(
    server: WandbServer, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in files_in(store.root)}
    assert sync([], store.root) == 0
    assert "3 sent" in capsys.readouterr().out
    assert {path.rsplit("/", 1)[1] for path in server.runs} == {f"{run}-1" for run in RUNS}
    assert all(len(run.rows) == 30 and run.state == "finished" for run in server.runs.values())
    new = {path: path.read_bytes() for path in files_in(store.root) if path not in before}
    assert sorted(path.name for path in new) == sorted(f"run-{run}-1.wandb.synced" for run in RUNS)
    assert set(new.values()) == {b""}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_only_the_runs_of_the_named_sweeps_are_sent(server: WandbServer, store: Store) -> None:
    assert sync(["depth"], store.root) == 0
    assert list(server.runs) == [f"somebody/mmprompt/{RUNS[2]}-1"]
    assert sync(["depth", "length"], store.root) == 0
    assert len(server.runs) == 3


def test_an_unknown_sweep_is_an_error_that_names_it(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["sync", "lenght", "--runs", str(store.root)]) == 2
    assert "no sweep lenght in" in capsys.readouterr().err


def test_every_record_arrives_when_they_are_sent_in_several_groups(
    server: WandbServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_server, "TOGETHER", 2)
    assert sync([], store.root) == 0
    assert all(len(run.rows) == 30 for run in server.runs.values()) and len(server.runs) == 3


def test_a_record_that_the_server_already_has_is_not_sent_again(
    server: WandbServer, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a run that was recorded online, or after a `sync` that was killed before it marked what it had sent."""
    sync([], store.root)
    for file in store.root.rglob("*.synced"):
        file.unlink()
    calls = server.calls.copy()
    assert sync([], store.root) == 0
    assert "3 are there already, 0 to send" in capsys.readouterr().out
    assert server.calls["UpsertBucket"] == calls["UpsertBucket"] and server.calls["Runs"] == calls["Runs"] + 1
    assert len(list(store.root.rglob("*.synced"))) == 3


@pytest.mark.parametrize("state", ["running", "crashed", "failed"])
def test_a_run_that_the_server_has_with_every_row_but_without_its_end_is_sent_again(
    state: str, server: WandbServer, store: Store
) -> None:
    sync([], store.root)
    run = upload(server, f"{RUNS[0]}-1")
    run.state = state
    for file in store.root.rglob("*.synced"):
        file.unlink()
    calls = server.calls["UpsertBucket"]
    assert sync([], store.root) == 0
    assert (run.state, len(run.rows)) == ("finished", 30)
    assert server.calls["UpsertBucket"] == calls + 2


NO_SERVER: dict[str, Callable[[WandbServer, pytest.MonkeyPatch], object]] = {
    "refused": lambda server, patch: server.refuse(),
    "500": lambda server, patch: server.fail(500),
    "403": lambda server, patch: server.fail(403),
    "slow": lambda server, patch: setattr(server, "delay", 6.0),
    "another's key": lambda server, patch: patch.setenv("WANDB_API_KEY", "local" + 40 * "1"),
    "no key": lambda server, patch: patch.delenv("WANDB_API_KEY"),
    "no address": lambda server, patch: patch.setenv("WANDB_BASE_URL", "no address"),
}


@pytest.mark.parametrize("fault", NO_SERVER)
def test_a_server_that_cannot_be_used_is_reported_in_one_sentence_with_exit_code_1(
    fault: str,
    server: WandbServer,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb_server, "TIMEOUT", 3)
    NO_SERVER[fault](server, monkeypatch)
    assert called(lambda: main(["sync", "--runs", str(store.root)])) == 1
    assert server.asked <= ASKED
    said = capsys.readouterr()
    assert "the W&B server cannot be used: " in said.out and "the same command goes on from here" in said.out
    assert KEY not in said.out + said.err
    assert not list(store.root.rglob("*.synced"))


@pytest.mark.parametrize(("fault", "answers"), [("401", 4), ("404", 6), ("500", 6), ("refused", 5)])
def test_after_a_server_failed_half_way_the_next_sync_sends_the_rest_and_no_row_twice(
    fault: str, answers: int, server: WandbServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the server refuses a record half way (401, 404), the client nevertheless reports and marks it as sent."""
    monkeypatch.setattr(wandb_server, "TIMEOUT", 3)
    monkeypatch.setattr(wandb_server, "STALLED", 2.0)
    server.after(answers, server.refuse if fault == "refused" else lambda: server.fail(int(fault)))
    assert called(lambda: sync([], store.root)) == 1
    whole = [run for run in server.runs.values() if run.state == "finished"]
    assert len(whole) < 3 and len(list(store.root.rglob("*.synced"))) <= len(whole)
    server.heal()
    assert sync([], store.root) == 0
    assert all(len(run.rows) == 30 and run.state == "finished" for run in server.runs.values())
    assert len(server.runs) == len(list(store.root.rglob("*.synced"))) == 3


def test_sync_gives_up_on_a_server_that_answers_but_takes_no_record(
    server: WandbServer, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_server, "STALLED", 1.0)
    monkeypatch.setattr(wandb_server, "GIVE_UP", 5.0)
    server.deaf = True
    assert sync([], store.root) == 1
    assert "answers, and took no record within 5 s" in capsys.readouterr().out
    assert server.calls["Viewer"] > 2  # it was asked whether it can be used, and it answered


@pytest.mark.long
def test_a_run_that_the_server_refuses_is_named_with_the_reason_and_the_others_arrive(
    server: WandbServer, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B refuses the id of a run that was deleted there, and the client alone would retry for ever."""
    monkeypatch.setattr(wandb_server, "GIVE_UP", 20.0)
    server.deleted.add(f"{RUNS[0]}-1")
    assert sync([], store.root) == 1
    said = capsys.readouterr().out
    assert "2 sent, 1 not:" in said and f"run-{RUNS[0]}-1.wandb\n    " in said and "was deleted" in said
    assert {f"{run}-1" for run in RUNS[1:]} == {run.id for run in server.runs.values()}


def is_at_work(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.long
def test_an_interrupted_sync_stops_the_client_and_the_next_sync_sends_the_rest(
    server: WandbServer, store: Store
) -> None:
    server.delay = 1.0
    command = [sys.executable, "-m", "sweeps", "sync", "--runs", str(store.root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: server.calls["UpsertBucket"], "it sends a record", process)
    clients = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    printed_by(process)
    assert process.returncode == 130
    server.heal()
    until(lambda: not any(map(is_at_work, clients)), "W&B's processes notice it, and end")
    until(lambda: not server.connections, "requests that were under way have been answered")
    calls = server.calls.copy()
    time.sleep(2)
    assert server.calls == calls  # no process is left that sends anything
    assert sync([], store.root) == 0
    assert all(len(run.rows) == 30 for run in server.runs.values()) and len(server.runs) == 3


def test_the_record_of_a_running_attempt_is_sent_only_after_the_attempt_has_ended(
    server: WandbServer, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its record may already look finished, and its own client may be about to send it."""
    attempt, _ = another(store, 7, exit_code=0)
    assert sync([], store.root) == 0
    assert "4 records: 3 to check, 1 of attempts at work" in capsys.readouterr().out
    assert len(server.runs) == 3
    attempt.fail(from_text("RuntimeError: it failed"))
    assert sync([], store.root) == 0
    assert len(server.runs) == 4


def test_failed_and_killed_attempts_arrive_as_failed_with_all_their_readable_rows(
    server: WandbServer, store: Store
) -> None:
    failed, _ = another(store, 7, exit_code=1)
    killed, file = another(store, 8, exit_code=0)
    for attempt in (failed, killed):
        attempt.fail(from_text("RuntimeError: it failed"))
    file.write_bytes(file.read_bytes()[: BLOCK + 1000])  # inside a chunk
    rows = len(read_history(file))
    assert 0 < rows < ROWS
    assert sync([], store.root) == 0
    assert [upload(server, f"{one.run.id}-1").state for one in (failed, killed)] == ["failed", "failed"]
    assert [len(upload(server, f"{one.run.id}-1").rows) for one in (failed, killed)] == [ROWS, rows]
    calls = server.calls.copy()
    assert sync([], store.root) == 0 and server.calls == calls


def test_every_readable_row_of_a_damaged_record_arrives_and_how_it_ended(server: WandbServer, store: Store) -> None:
    """The client alone would send only what comes before the damage, and call the run failed."""
    attempt, file = another(store, 7, exit_code=0)
    attempt.fail(from_text("another attempt was first"))
    data = bytearray(file.read_bytes())
    data[BLOCK // 2] ^= 1
    file.write_bytes(data)
    rows = read_history(file)
    assert sync([], store.root) == 0
    found = upload(server, f"{attempt.run.id}-1")
    assert [row["_step"] for row in found.rows] == list(rows["_step"])
    assert 0 < len(rows) < ROWS and max(rows["_step"]) == ROWS
    assert (found.state, found.summary["test/accuracy"]) == ("finished", 50)
    assert file.read_bytes() == data


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else", b":W&B\xe1\xbe\x00"])
def test_a_record_with_no_readable_content_does_not_stop_the_others_from_arriving(
    content: bytes, server: WandbServer, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt, file = another(store, 7, exit_code=1)
    attempt.fail(from_text("RuntimeError: it failed"))
    file.write_bytes(content)
    assert sync([], store.root) == 0
    assert "1 with nothing in it" in capsys.readouterr().out
    assert len(server.runs) == 3


@pytest.mark.skipif(shutil.which("script") is None, reason="no script(1), which makes a terminal")
def test_sync_does_not_ask_for_a_key_on_a_terminal(store: Store, tmp_path: Path) -> None:
    usual = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    command = f"{sys.executable} -m sweeps sync --runs {store.root}"
    terminal = ["script", "--quiet", "--return", "--command", command, "/dev/null"]
    done = subprocess.run(
        terminal, env=usual | {"HOME": str(tmp_path)}, cwd=ROOT, capture_output=True, timeout=LAST_RESORT
    )
    assert done.returncode == 1 and b"the W&B server cannot be used: " in done.stdout
    assert not (tmp_path / ".netrc").exists()


def test_if_there_is_nothing_to_send_no_server_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync", "--runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 records")


def test_a_mark_lies_beside_the_record_it_marks(server: WandbServer, store: Store) -> None:
    sync([], store.root)
    for run in RUNS:
        folder = store.run(run)
        file = folder.attempts()[0].wandb
        assert file is not None and (folder.path / f"{file}.synced").is_file()
