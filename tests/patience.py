"""How tests wait: for an event, not for a number of seconds.

How long something takes depends on the machine and its load. A wait ends when the event has happened. It fails when the process
that should cause the event has ended or has used no CPU for very long, and in any case after LAST_RESORT.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import psutil

LAST_RESORT = 1200.0  # seconds after which every wait fails
STUCK = 300.0  # a process that, with its children, uses no CPU for so many seconds hangs
LOOK = 5.0  # seconds between two measurements of the CPU time


def until(
    condition: Callable[[], Any],
    what: str,
    of: subprocess.Popen[Any] | None = None,
    is_over: Callable[[], bool] = lambda: False,
    often: bool = False,
) -> Any:
    """Waits for a true value of the condition, which the process `of` should bring about, and returns it.

    Fails with the sentence that `what` did not happen. `often`: for a condition that may soon be false again, and that costs
    little to check.
    """
    deadline, pause, work = time.monotonic() + LAST_RESORT, 0.02, Work(of) if of else None
    while True:
        # Before the condition is checked, so that the last thing that the process did is seen.
        has_ended = of is not None and of.poll() is not None
        if value := condition():
            return value
        assert not has_ended, f"it did not happen that {what}, and its process has ended with {of and of.returncode}"
        assert not (work and work.is_stuck()), f"it did not happen that {what}, and its process does nothing any more"
        assert not is_over(), f"the tests are over, and it did not happen that {what}"
        assert time.monotonic() < deadline, f"in {LAST_RESORT:g} s it did not happen that {what}"
        time.sleep(pause)
        pause = pause if often else min(1.2 * pause, 0.3)  # checking costs time as well


def printed_by(process: subprocess.Popen[Any]) -> Any:
    """What a process prints until it ends. If it hangs it is killed, and the test fails and shows what was printed."""
    deadline, work = time.monotonic() + LAST_RESORT, Work(process)
    while True:
        try:
            return process.communicate(timeout=LOOK)[0]
        except subprocess.TimeoutExpired:
            if work.is_stuck() or time.monotonic() > deadline:
                process.kill()
                printed, _ = process.communicate()
                raise AssertionError(f"{process.args} does not end, and has printed\n{printed}") from None


def ended(process: subprocess.Popen[Any]) -> int:
    """Waits for the exit code of a process whose output is not read here. If it hangs it is killed, and the test fails."""
    try:
        until(lambda: process.poll() is not None, f"{process.args} ends", process)
    except AssertionError:
        process.kill()
        process.wait()
        raise
    return process.returncode


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kills processes, of which some may just have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def children_that_execute(module: str, process: psutil.Process) -> list[psutil.Process]:
    """The children of a process that execute this module. Others may end while they are looked at."""
    found = []
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if module in child.cmdline():
                found.append(child)
    return found


def called(function: Callable[[], Any]) -> Any:
    """What the function returns or raises. Fails if it never ends; its thread then goes on."""
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
    """Watches whether a process and its children still use the CPU."""

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
