"""Tests of `make chaos` itself: it restores files that it damaged, and finds what is wrong. A long test runs a small chaos."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from groups import LONG

sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))
from calls import Calls, raised
from checks import EARNED, drafts
from cluster import Cluster
from damage import WAYS, NotPossibleError, damaged
from repairs import Repairs
from subject import OBEDIENT, Subject, python_on_nodes

CHAOS = Path(__file__).parents[1] / "chaos/run.py"
QUIET = [
    "json",
    "error.txt",
    "checkpoint",
    "manifest",
    "evaluation",
    "trial",
    "decision",
    "removed",
    "strangers",
    "permissions",
]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {one.parent.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in folder.glob("*/result.json")}


@pytest.mark.parametrize("way", WAYS)
def test_a_damaged_file_is_restored_with_its_content_and_times(tmp_path: Path, way: str) -> None:
    for run in "ab":
        (tmp_path / run).mkdir()
        (tmp_path / run / "result.json").write_text(f'{{"run": "{run}"}}')
    before = files(tmp_path)
    file, other = tmp_path / "a" / "result.json", tmp_path / "b" / "result.json"
    damage = damaged(file, way, tmp_path / "kept" / "1", [other])
    assert damage.is_there and (not file.is_file() or files(tmp_path)["a"] != before["a"])
    assert damage.restore() and files(tmp_path) == before
    assert not damage.restore()


@pytest.mark.parametrize("way", WAYS)
def test_what_another_process_has_put_in_the_place_of_a_damaged_file_stays(tmp_path: Path, way: str) -> None:
    (tmp_path / "b").mkdir()
    file, other = tmp_path / "result.json", tmp_path / "b" / "result.json"
    file.write_text("1"), other.write_text("2")
    damage = damaged(file, way, tmp_path / "kept" / "1", [other])
    file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
    file.write_text("3")
    assert not damage.restore() and file.read_text() == "3"


def test_a_missing_file_cannot_be_damaged(tmp_path: Path) -> None:
    for way in WAYS:
        with pytest.raises(NotPossibleError):
            damaged(tmp_path / "result.json", way, tmp_path / "kept", [])


def test_the_last_line_of_every_traceback_in_a_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    head = "Traceback (most recent call last):\n"
    first, second = (
        f'{head}  File "x", line 1\n    f()\nsrun: error: gn1\nOSError: full\n',
        f"  | {head}  |   File\n  | KeyError: 'a'\n",
    )
    third = f'{head}  File "x", line 2\n    slurmstepd-gn4: error: *** JOB 41 CANCELLED\nawait f()\nValueError: b\n'
    log.write_text(f"== job 1\n{first}\n{third}\nDuring handling of it:\n\n{second}{head}  File")
    assert raised(log) == ["OSError: full", "ValueError: b", "KeyError: 'a'", "cut off"]
    assert raised(tmp_path / "none") == []


def test_no_fault_of_the_disk_explains_a_traceback_of_a_damaged_file() -> None:
    earned = re.compile("|".join(EARNED.values()))
    assert earned.search("mmprompt.runs.files.StoreError: /x/y cannot be written: No space left on device")
    assert not earned.search("json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)")
    assert not earned.search("IsADirectoryError: [Errno 21] Is a directory: '/x'")


def test_a_command_that_prints_a_traceback_or_ends_with_another_code_is_wrong(tmp_path: Path) -> None:
    calls = Calls(Subject(tmp_path, Cluster(tmp_path / "cluster"), [], ()), tmp_path / "said")
    calls.start(["this"])  # a module of the standard library that prints a poem
    calls.end(60)
    assert calls.wrong == []
    calls.start(["runpy", "no_such_module_at_all"])
    calls.start(["timeit", "1/0"])
    calls.end(60)
    assert len(calls.wrong) == 1 and "printed a traceback, ZeroDivisionError" in calls.wrong[0], calls.wrong


def test_a_repair_that_fails_is_tried_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repairs.AGAIN", 0.0)
    said: list[str] = []
    repairs, tries = Repairs(said.append), iter([OSError(30, "Read-only file system"), None])

    def give() -> None:
        if error := next(tries):
            raise error

    repairs.add(0, "it is back", give)
    repairs.carry_out()
    assert repairs.expects("back") and "not yet: it is back (Read-only file system)" in said
    repairs.carry_out()
    assert not repairs.open and said[-1] == "it is back"


def test_drafts_are_found_in_every_folder_without_their_contents(tmp_path: Path) -> None:
    (tmp_path / "jobs/.7.abc").mkdir(parents=True)
    (tmp_path / "jobs/.7.abc/.batch.json.1").touch()
    (tmp_path / "jobs/.x").touch()
    assert drafts(tmp_path) == [tmp_path / "jobs/.7.abc", tmp_path / "jobs/.x"]


def test_the_clock_of_a_job_is_right_or_an_hour_off_depending_on_its_number_and_it_can_still_sleep(
    tmp_path: Path,
) -> None:
    python = python_on_nodes(tmp_path, seed=0)
    code = "import time; a = time.monotonic(), time.time(); time.sleep(0.1); b = time.monotonic(), time.time(); "
    code += "print(round(time.time()), b[0] - a[0] < 10 and b[1] - a[1] < 10)"
    offsets = set()
    for job in range(3):
        env = {**os.environ, "SLURM_JOB_ID": str(job), "SLURMD_NODENAME": "gn1"}
        done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        moment, slept = done.stdout.split()
        now = int(subprocess.run(["date", "+%s"], capture_output=True, text=True).stdout)
        assert slept == "True"
        offsets.add(round((int(moment) - now) / 3600))
    assert offsets in ({-1, 0, 1}, {0}), offsets  # without faketime all clocks are right


@pytest.mark.skipif(not OBEDIENT, reason="only root ignores permissions")
def test_permissions_hold_for_commands_that_the_harness_starts_as_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o000)
    code = f"import os; os.listdir({str(tmp_path)!r})"
    done = subprocess.run([*OBEDIENT, sys.executable, "-c", code], capture_output=True, text=True)
    assert "PermissionError" in done.stderr


@pytest.mark.skipif(not LONG, reason="several minutes; MMPROMPT_LONG=1 runs it")
def test_a_small_chaos_with_damaged_files_gives_the_tables_of_an_undisturbed_store(slurm: Path) -> None:
    command = [sys.executable, CHAOS, "--cluster", slurm, "--no-disk", "--runs", "3", "--steps", "120"]
    command += ["--faults", "18", "--seed", "3", "--only", *QUIET]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
