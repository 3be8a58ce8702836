"""How tests wait: for the thing itself, not for a number of seconds.

How long something takes is the affair of the machine and of who else is at work on it. A wait ends when what it waits for has
come, and fails when the process that would bring it has ended, or has used no CPU for very long, or, at last, after LAST_RESORT.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import psutil

LAST_RESORT = 1200.0  # seconds, after which a wait is given up
STUCK = 300.0  # seconds without any CPU time of a process and its children, which says that it hangs
LOOK = 5.0  # seconds between two looks at that


def until(
    condition: Callable[[], Any],
    what: str,
    of: subprocess.Popen[Any] | None = None,
    is_over: Callable[[], bool] = lambda: False,
    often: bool = False,
) -> Any:
    """The first true value of the condition, which the process `of` brings about. Fails, and says what did not happen.

    `often`: for what does not stay, and costs little to ask.
    """
    deadline, pause, work = time.monotonic() + LAST_RESORT, 0.02, Work(of) if of else None
    while True:
        has_ended = of is not None and of.poll() is not None  # before the look: what it did last is there
        if value := condition():
            return value
        assert not has_ended, f"it did not happen that {what}, and its process has ended with {of and of.returncode}"
        assert not (work and work.is_stuck()), f"it did not happen that {what}, and its process does nothing any more"
        assert not is_over(), f"the tests are over, and it did not happen that {what}"
        assert time.monotonic() < deadline, f"in {LAST_RESORT:g} s it did not happen that {what}"
        time.sleep(pause)
        pause = pause if often else min(1.2 * pause, 0.3)  # to ask costs time as well


def printed_by(process: subprocess.Popen[Any]) -> Any:
    """What a process prints until it ends. One that hangs is killed, and the test fails with what it has printed."""
    deadline, work = time.monotonic() + LAST_RESORT, Work(process)
    while True:
        try:
            return process.communicate(timeout=LOOK)[0]
        except subprocess.TimeoutExpired:
            if work.is_stuck() or time.monotonic() > deadline:
                process.kill()
                printed, _ = process.communicate()
                raise AssertionError(f"{process.args} goes on and on, and has printed\n{printed}") from None


def ended(process: subprocess.Popen[Any]) -> int:
    """Its exit code, once it has one; of a process whose output goes elsewhere. One that hangs is killed."""
    try:
        until(lambda: process.poll() is not None, f"{process.args} ends", process)
    except AssertionError:
        process.kill()
        process.wait()
        raise
    return process.returncode


def called(function: Callable[[], Any]) -> Any:
    """What it returns or raises. Fails if it waits for ever; its thread is left alone then."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LAST_RESORT)
    assert not thread.is_alive(), f"{function} does not end"
    return future.result()


class Work:
    """Whether a process and its children still do something."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._pid = process.pid
        self._used, self._since = -1.0, time.monotonic()
        self._looked = 0.0

    def is_stuck(self) -> bool:
        if time.monotonic() - self._looked < LOOK:
            return False
        self._looked = time.monotonic()
        used = self._cpu()
        if used != self._used:
            self._used, self._since = used, time.monotonic()
        return time.monotonic() - self._since > STUCK

    def _cpu(self) -> float:
        used = 0.0
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self._pid)
            for one in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    used += times.user + times.system
        return used
