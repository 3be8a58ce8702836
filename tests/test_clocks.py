"""Clocks that are wrong or jump change no duration, no age, no state and no cause."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from clocks import wrong
from patience import ended, printed_by, until
from test_job import LATER
from tiny import frozen_run

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import server_time
from mmprompt.runs.processes import is_running, process_here, this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.states.causes import failures
from sweeps.states.state import Queue, states

HOUR, DAY = 3600.0, 86_400.0
ROUNDED = 0.02  # seconds that are lost where hours are rounded to five places


def said_by(script: str, *arguments: str | Path, clock: dict[str, str], **environment: str) -> str:
    """What this Python prints in a process with another clock."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **clock, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The time of the file server


def test_the_time_of_a_folders_file_server_is_found_without_leaving_a_file_there(tmp_path: Path) -> None:
    assert abs(server_time(tmp_path) - time.time()) < 1
    assert list(tmp_path.iterdir()) == []


def test_without_nameless_files_the_servers_time_is_read_from_a_file_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what a kernel without such files makes of the flag
    assert abs(server_time(tmp_path) - time.time()) < 1
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.stat().st_mtime > 0 and time.time() - tmp_path.stat().st_mtime < 60  # a file was there


def test_if_no_file_can_be_made_the_local_clock_is_used(tmp_path: Path) -> None:
    assert abs(server_time(tmp_path / "nowhere") - time.time()) < 1


@pytest.mark.parametrize("nameless", [True, False])
def test_a_wrong_local_clock_does_not_change_the_servers_time(tmp_path: Path, nameless: bool) -> None:
    script = "import os, sys, time; from pathlib import Path; from mmprompt.runs.files import server_time\n"
    script += "" if nameless else "os.O_TMPFILE = os.O_DIRECTORY\n"
    script += "print(server_time(Path(sys.argv[1])) - time.time())"
    assert float(said_by(script, tmp_path, clock=wrong("-3600"))) == pytest.approx(HOUR, abs=5)


# Ages


CACHE = """
import sys
from pathlib import Path
from mmprompt.runs.cache import Cache
Cache(Path(sys.argv[1]), 1).prepare()
"""
STAGING = """
import sys
from pathlib import Path
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.data.staging import staged
print(staged(Path(sys.argv[1]), fingerprint(Path(sys.argv[1]))))
"""
SUBMITTING = """
import sys
from pathlib import Path
from sweeps.jobs.batch import Batch
from sweeps.jobs.slurm import is_submitting
print(is_submitting(Batch(Path(sys.argv[1]))))
"""


def half_written(file: Path, age: float = 0.0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("half")
    os.utime(file, (time.time() - age, time.time() - age))
    return file


@pytest.mark.parametrize(("clock", "age"), [("+3d", 0.0), ("-3d", 2 * DAY)])
def test_the_age_of_a_half_written_cache_file_does_not_depend_on_the_local_clock(
    tmp_path: Path, clock: str, age: float
) -> None:
    draft = half_written(tmp_path / "cache/.a.rows.0000", age)
    said_by(CACHE, tmp_path / "cache", clock=wrong(clock))
    assert draft.exists() is (age == 0)


@pytest.mark.parametrize(("clock", "age"), [("+3d", 0.0), ("-3d", 2 * HOUR)])
def test_the_age_of_a_half_made_copy_on_a_nodes_disk_does_not_depend_on_the_local_clock(
    tmp_path: Path, clock: str, age: float
) -> None:
    (tmp_path / "file").write_text("content")
    copy = Path(said_by(STAGING, tmp_path / "file", clock={}, TMPDIR=str(tmp_path)))
    copy.unlink()
    draft = half_written(copy.with_name(".file.0000"), age)
    assert said_by(STAGING, tmp_path / "file", clock=wrong(clock), TMPDIR=str(tmp_path)) == str(copy)
    assert draft.exists() is (age == 0)


@pytest.mark.parametrize(("clock", "age"), [("+3d", 0.0), ("-3d", 2 * DAY)])
def test_clean_deletes_half_written_files_by_an_age_that_does_not_depend_on_the_local_clock(
    tmp_path: Path, clock: str, age: float
) -> None:
    draft = half_written(tmp_path / "run/0123456789abcdef/.result.json.0000", age)
    script = "import sys; from sweeps.__main__ import main; sys.exit(main(sys.argv[1:]))"
    said_by(script, "clean", "--runs", tmp_path, clock=wrong(clock), YES="1")
    assert draft.exists() is (age == 0)


@pytest.mark.parametrize(("clock", "age"), [("+3d", 0.0), ("-3d", HOUR)])
def test_a_launch_on_another_host_counts_as_submitting_for_ten_minutes_of_the_file_servers_clock(
    tmp_path: Path, clock: str, age: float
) -> None:
    (tmp_path / "jobs/1").mkdir(parents=True)
    file = tmp_path / "jobs/1/batch.json"
    frozen = {
        "job": {"scheduler": "slurm"},
        "job_name": "mmprompt-1-abc",
        "user": "anna",
        "slurm_cluster": None,
        "jobs": [],
    }
    frozen |= {"overrides": [], "cluster": {"mem_gb": 2.0, "time_min": 60}}
    file.write_text(json.dumps(frozen | {"launcher": {"host": "elsewhere", "pid": 1, "started": 0.0}}))
    os.utime(file, (time.time() - age, time.time() - age))
    assert said_by(SUBMITTING, file.parent, clock=wrong(clock)) == str(age == 0)


# Whether a process runs


def test_a_process_counts_as_running_even_if_the_clock_was_set_after_it_started() -> None:
    """Its start as a time of day is computed from the time of boot, and that moves when the clock is set."""
    here = this_process()
    assert is_running(here | {"started": here["started"] - HOUR}) is True
    assert is_running(here | {"started": here["started"] + HOUR}) is True


def test_a_process_from_before_a_reboot_has_ended_and_so_has_one_whose_pid_another_process_has_now() -> None:
    here = this_process()
    assert is_running(here | {"boot": "00000000-0000-0000-0000-000000000000"}) is False
    assert is_running(here | {"ticks": here["ticks"] + 1}) is False  # though it started in the same second
    with subprocess.Popen(["sleep", "600"]) as younger:
        assert is_running(process_here(younger.pid)) is True
        assert is_running(process_here(younger.pid) | {"pid": os.getpid()}) is False
        younger.kill()


def test_a_process_recorded_without_boot_id_and_ticks_is_recognised_by_its_start() -> None:
    old = {key: value for key, value in this_process().items() if key not in ("boot", "ticks")}
    assert is_running(old) is True and is_running(old | {"started": old["started"] - HOUR}) is False


def test_a_zombie_process_counts_as_ended() -> None:
    child = subprocess.Popen(["true"])
    facts = process_here(child.pid)
    until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "it has ended")
    assert is_running(facts) is False
    child.wait()
    assert is_running(facts) is False


# A run, killed once, then done


LONG = ("optim.steps=200", "optim.validate_every=100")


class Process:
    """A process that executes runs of a store, with a clock of its own."""

    def __init__(self, store: Path, *runs: RunFolder, clock: dict[str, str]) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LATER, str(store), *(run.id for run in runs)],
            env={**os.environ, **clock},
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def until_checkpoint(self, run: RunFolder, number: int) -> None:
        what = f"attempt {number} leaves a checkpoint"
        until(
            lambda: len(run.attempts()) == number and run.attempts()[-1].checkpoint_steps,
            what,
            self.process,
            often=True,
        )

    def took(self) -> float:
        return time.monotonic() - self.began


def seen(store: Path, *runs: RunFolder) -> list[tuple[str, str | None]]:
    """The state and the cause of each run."""
    ids = [run.id for run in runs]
    found = states(Store(store), ids, Queue({}))
    causes = failures(Store(store), ids, found)
    return [(found[run].name, causes[run].cause if run in causes else None) for run in ids]


@pytest.mark.long
@pytest.mark.parametrize("clock", ["-3600", "+3600", "jumps"])
def test_a_clock_that_is_off_or_jumps_changes_neither_states_nor_causes_nor_hours(tmp_path: Path, clock: str) -> None:
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    environment = wrong(offset if clock == "jumps" else clock)
    killed, bad = frozen_run(tmp_path, *LONG), frozen_run(tmp_path, "prompt.init_std=1e30")
    first = Process(tmp_path, killed, clock=environment)
    first.until_checkpoint(killed, 1)
    if clock == "jumps":
        offset.write_text("-3600\n")
    assert seen(tmp_path, killed) == [("running", None)]
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    took = first.took()
    assert seen(tmp_path, killed) == [("to do", "killed")]
    second = Process(tmp_path, killed, bad, clock=environment)
    second.until_checkpoint(killed, 2)
    if clock == "jumps":
        offset.write_text("+7200\n")
    printed = printed_by(second.process)
    took += second.took()
    assert ended(second.process) == 0, printed
    assert seen(tmp_path, killed, bad) == [("done", None), ("diverged", "diverged")]
    result = killed.result() or {}
    assert result["attempt"] == 2 and result["resumed_from"]["attempt"] == 1
    hours, spent = result["device_hours"], result["device_hours_spent"]
    assert 0 < result["seconds"] <= HOUR * hours + ROUNDED and HOUR * hours <= took + ROUNDED
    assert 0 < HOUR * spent <= took + ROUNDED
