"""Tests wait for a condition, and only as long as a process is still working towards it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import patience
import pytest
from patience import called, ended, printed_by, until


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STUCK", 0.5)
    monkeypatch.setattr(patience, "LOOK", 0.1)


def test_a_file_that_a_process_writes_just_before_it_ends_is_found(tmp_path: Path) -> None:
    process = python(f"open({str(tmp_path / 'file')!r}, 'w')")
    assert until(lambda: list(tmp_path.iterdir()), "a file is there", process) == [tmp_path / "file"]
    assert ended(process) == 0


def test_waiting_fails_as_soon_as_the_process_has_ended() -> None:
    with pytest.raises(AssertionError, match="did not happen that pigs fly, and its process has ended with 3"):
        until(lambda: False, "pigs fly", python("raise SystemExit(3)"))


@pytest.mark.usefixtures("hasty")
def test_a_process_that_does_nothing_any_more_is_not_waited_for_and_is_killed_with_what_it_has_printed() -> None:
    code = "print('so far', flush=True); import time; time.sleep(1000)"
    with pytest.raises(AssertionError, match="does not end, and has printed\nso far"):
        printed_by(python(code))
    process = python(code)
    with pytest.raises(AssertionError, match="does nothing any more"):
        ended(process)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.usefixtures("hasty")
def test_a_process_that_works_is_waited_for() -> None:
    busy = "import time\nwhile time.process_time() < 1.5: pass\nprint('done')"
    assert printed_by(python(busy)) == "done\n"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    assert printed_by(python(child)) == "done\n"


def test_a_call_returns_or_raises_what_it_does_unless_it_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        called(lambda: 1 / 0)
    monkeypatch.setattr(patience, "LAST_RESORT", 0.2)
    with pytest.raises(AssertionError, match="does not end"):
        called(lambda: time.sleep(5))


def test_processes_that_tests_start_can_be_ended_by_ctrl_c() -> None:
    process = python("print('ready', flush=True); import time; time.sleep(1000)")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert ended(process) == -signal.SIGINT
