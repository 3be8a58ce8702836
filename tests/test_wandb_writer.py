"""The W&B record of an attempt, written by the real client."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest
from patience import LAST_RESORT, ended, printed_by
from synthetic_store import DISABLED, OFFLINE

from analysis.records.histories import history_frame
from mmprompt.runs import wandb_writer
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_client import CLIENT
from mmprompt.runs.wandb_record import WandbRecord, read_record, record_files
from mmprompt.runs.wandb_writer import RecordWriter, TrackingError

PROGRAM = """
    import os, sys, time
    from pathlib import Path
    from mmprompt.runs import signals, wandb_writer
    from mmprompt.settings.deployment import Tracking
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    def opened(mode):
        return wandb_writer.RecordWriter(folder, "r-1", "n", "g", {"seed": 1}, Tracking(mode=mode, project="p", entity=None))
"""


def attempt_folder(root: Path) -> Path:
    folder = root / "run" / "r" / "attempts" / "1"
    folder.mkdir(parents=True)
    return folder


def program(root: Path, body: str, **environment: str) -> subprocess.Popen[str]:
    """A separate process with an empty home that writes a record into root/attempts/1."""
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(body)
    usual = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = root / "home"
    home.mkdir()
    places = {"HOME": str(home), "TMPDIR": str(root), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root / "attempts" / "1")],
        env=usual | places | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.stderr.read()


def record_in(root: Path) -> WandbRecord:
    return read_record(record_files(root / "attempts" / "1")[-1], history=True)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


def test_whenever_finish_returns_the_exit_record_is_on_disk(tmp_path: Path) -> None:
    for number in range(12):
        folder = attempt_folder(tmp_path / str(number))
        record = RecordWriter(folder, f"r{number}-1", "name", "group", {"seed": number}, OFFLINE)
        for step in range(1, 21 * number):  # some records end in the middle of a block, some are longer than one
            record.log(step, {"train/loss": 1 / step, "train/lr": 0.1})
        record.finish({"test/accuracy": 50.0 + number}, 0)
        assert record.file is not None
        found = read_record(record.file, history=True)
        assert found.state == "finished"
        assert found.summary == {"test/accuracy": 50.0 + number}
        assert (found.id, found.name, found.group, found.config) == (f"r{number}-1", "name", "group", {"seed": number})
        assert len(history_frame(found)) == max(0, 21 * number - 1)
        assert found.damage == ()


def test_finish_waits_for_an_exit_record_that_comes_late_and_says_so_when_none_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B is late only rarely; so the test cuts the exit record off the file and puts it back 0.3 s later."""
    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {}, OFFLINE)
    for step in range(500):
        record.log(step, {"train/loss": 1.0})
    record.finish({}, 0)
    assert record.file is not None
    data = record.file.read_bytes()
    record.file.write_bytes(data[:-5])
    late = threading.Timer(0.3, record.file.write_bytes, [data])
    late.start()
    wandb_writer._wait_for_exit(record.file)
    assert record.file.read_bytes() == data  # the exit record is back
    late.join()
    record.file.write_bytes(data[:-5])
    monkeypatch.setattr(wandb_writer, "EXIT_DEADLINE", 0.1)
    with pytest.raises(TrackingError, match="holds no exit record"):
        wandb_writer._wait_for_exit(record.file)


def test_a_finished_record_is_one_file_and_is_found_relative_to_the_run(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path)
    record = RecordWriter(folder, "r-1", "name", "group", {}, OFFLINE)
    record.log(1, {"train/loss": 1.0})
    record.finish({}, 0)
    assert files_in(folder) == [record.file]
    found = Attempt(Store(tmp_path).run("r"), 1).wandb
    assert found is not None and found.startswith("attempts/1/wandb/offline-run-")
    assert tmp_path / "run" / "r" / found == record.file


def test_a_record_that_the_client_cannot_make_is_an_error_before_anything_is_trained(tmp_path: Path) -> None:
    RecordWriter(attempt_folder(tmp_path / "1"), "r-1", "name", "group", {}, OFFLINE).finish({}, 0)
    [core] = [child for child in psutil.Process().children(recursive=True) if child.name() == "wandb-core"]
    limits = resource.prlimit(core.pid, resource.RLIMIT_NOFILE)
    # It opens nothing more, also if it still closes what it had for the record before.
    resource.prlimit(core.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(TrackingError, match=r"W&B could not make its record .*\.wandb$"):
            RecordWriter(attempt_folder(tmp_path / "2"), "r-2", "name", "group", {}, OFFLINE)
    finally:
        CLIENT.end()


def test_a_record_that_is_removed_before_its_end_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {}, OFFLINE)
    assert record.file is not None
    record.file.unlink()
    with pytest.raises(TrackingError, match="was removed while W&B wrote it"):
        record.finish({}, 0)


def test_a_failed_run_is_recorded_as_failed(tmp_path: Path) -> None:
    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {}, OFFLINE)
    record.finish({}, 1)
    assert record.file is not None
    assert read_record(record.file, history=False).state == "failed"


@pytest.mark.parametrize("exit_code", [0, 1])
def test_logs_of_the_client_that_cannot_be_removed_fail_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {"seed": 1}, OFFLINE)
    record.log(1, {"train/loss": 1.0})
    monkeypatch.setattr(Path, "is_dir", refused)  # as in a folder whose permissions were taken away
    record.finish({}, exit_code)
    monkeypatch.undo()
    assert record.file is not None
    assert read_record(record.file, history=False).state == ("failed" if exit_code else "finished")


@pytest.mark.parametrize("setting", wandb_writer.INTERNAL)
def test_calls_with_one_step_make_one_row_and_the_last_row_does_not_become_the_summary(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when W&B drops one of its internal settings."""
    monkeypatch.delitem(wandb_writer.INTERNAL, setting)
    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {}, OFFLINE)
    for step in (25, 50):
        record.log(step, {"train/loss": 1.0})
        record.log(step, {"val/accuracy": 60.0 + step / 100})
    record.finish({"val/accuracy": 83.1}, 0)
    assert record.file is not None
    found = read_record(record.file, history=True)
    assert found.summary["val/accuracy"] == 83.1
    assert list(history_frame(found)["_step"]) == [25, 50]
    assert list(history_frame(found)["val/accuracy"]) == [60.25, 60.5]
    assert list(history_frame(found)["train/loss"]) == [1.0, 1.0]


def test_a_step_before_the_last_one_is_refused_instead_of_dropped(tmp_path: Path) -> None:
    record = RecordWriter(attempt_folder(tmp_path), "r-1", "name", "group", {}, OFFLINE)
    record.log(10, {"train/loss": 1.0})
    with pytest.raises(TrackingError, match="step 5 was logged after step 10"):
        record.log(5, {"train/loss": 1.0})
    record.finish({}, 0)


def test_disabled_tracking_writes_nothing(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path)
    record = RecordWriter(folder, "r-1", "name", "group", {}, DISABLED)
    record.log(1, {"train/loss": 1.0})
    record.finish({"test/accuracy": 50.0}, 0)
    assert list(folder.iterdir()) == []
    assert record_files(folder) == []


def test_sigterm_keeps_every_row_logged_before_it(tmp_path: Path) -> None:
    body = """
        signals.end_when_told()
        record = opened("offline")
        for step in range(20):
            record.log(step, {"train/loss": 1.0})
        print("ready", flush=True)
        time.sleep(1200)
    """
    process = program(tmp_path, body)
    wait_until_ready(process)
    process.terminate()
    assert ended(process) == 143
    found = record_in(tmp_path)
    assert len(history_frame(found)) == 20
    assert found.exit_code == 143


def test_sigterm_to_every_process_as_slurm_sends_it_still_ends_the_job_and_loses_a_second_at_most(
    tmp_path: Path,
) -> None:
    body = """
        signals.end_when_told()
        try:
            record = opened("offline")
            try:
                for step in range(20):
                    record.log(step, {"train/loss": 1.0})
                time.sleep(2)
                print("ready", flush=True)
                time.sleep(1200)
            except BaseException:
                record.finish({}, 1)
                raise
        except Exception:
            print("the job goes on with its next run")
    """
    process = program(tmp_path, body)
    wait_until_ready(process)
    step = psutil.Process(process.pid)
    for each in [*step.children(), step]:
        each.terminate()
    output = printed_by(process)
    assert (process.returncode, output) == (143, "")
    assert len(history_frame(record_in(tmp_path))) >= 19


def test_when_the_background_process_dies_the_run_fails_with_the_reason_and_the_next_record_is_complete(
    tmp_path: Path,
) -> None:
    record = RecordWriter(attempt_folder(tmp_path / "1"), "r-1", "name", "group", {}, OFFLINE)
    record.log(1, {"train/loss": 1.0})
    (background,) = [child for child in psutil.Process().children() if "wandb-core" in child.name()]
    background.kill()
    background.wait()
    with pytest.raises(TrackingError, match="background process is gone"):
        for step in range(2, 100):
            record.log(step, {"train/loss": 1.0})
    record.finish({}, 1)
    record = RecordWriter(attempt_folder(tmp_path / "2"), "r-2", "name", "group", {}, OFFLINE)
    record.log(1, {"train/loss": 1.0})
    record.finish({"test/accuracy": 50.0}, 0)
    assert record.file is not None
    assert read_record(record.file, history=False).state == "finished"


def test_kill_9_loses_no_more_than_the_last_seconds_rows(tmp_path: Path) -> None:
    body = """
        record = opened("offline")
        for step in range(20):
            record.log(step, {"train/loss": 1.0})
        time.sleep(2)
        print("ready", flush=True)
        time.sleep(1200)
    """
    process = program(tmp_path, body)
    wait_until_ready(process)
    process.kill()
    process.wait()
    found = record_in(tmp_path)
    assert len(history_frame(found)) >= 19  # the row of the current step is still open
    assert found.state == "no end"


def test_the_users_wandb_settings_change_no_offline_record_and_nothing_is_written_to_the_home_folder(
    tmp_path: Path,
) -> None:
    body = """
        settings = Path.home() / ".config" / "wandb" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text("[default]\\nmode = disabled\\nproject = theirs\\n")
        record = opened("offline")
        record.log(1, {"train/loss": 1.0})
        record.finish({"test/accuracy": 50.0}, 0)
        assert os.environ["WANDB_MODE"] == "disabled"
    """
    theirs = {
        "WANDB_MODE": "disabled",
        "WANDB_DIR": "/nonexistent",
        "WANDB_API_KEY": "x",
        "WANDB_RUN_ID": "theirs",
        "WANDB_SWEEP_ID": "theirs",
        "WANDB_SERVICE": "theirs",
    }
    process = program(tmp_path, body, **theirs)
    output, errors = process.communicate(timeout=LAST_RESORT)
    assert (process.returncode, output, errors) == (0, "", "")
    found = record_in(tmp_path)
    assert (found.id, found.state, found.summary) == ("r-1", "finished", {"test/accuracy": 50.0})
    assert [path.name for path in files_in(tmp_path / "home")] == ["settings"]
    assert {path.name for path in tmp_path.iterdir()} == {"attempts", "home"}  # the temporary folder is gone
