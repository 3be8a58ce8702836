"""Clocks that are wrong, for processes that tests start: by libfaketime, which answers in the kernel's place.

Of them only the time of day is wrong, as on a machine whose clock nobody has set: the monotonic clock and the dates of files are
the kernel's. Such a process cannot sleep, because libfaketime 0.9.10 takes the wrong one of the two clocks for that: one that has
to (W&B does) gets a monotonic clock that is as much off, all the time, which changes no duration.

The program `faketime` is not called: it names shared memory by its process id, leaves it there when it is killed, and ends with 1
once a new process has that id again. The library alone then goes on without shared memory.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

# where distributions put it
LIBRARIES = (
    "lib/*/faketime/libfaketimeMT.so.1",
    "lib*/faketime/libfaketimeMT.so.1",
    "local/lib/faketime/libfaketimeMT.so.1",
)


def library() -> Path | None:
    """The library that stands between a program and its clock, if it is installed."""
    return next((file for place in LIBRARIES for file in Path("/usr").glob(place)), None)


def wrong(offset: str | Path, sleeps: bool = False) -> dict[str, str]:
    """The environment of a process whose clock is so much off: "-3600", "+2d"; of a file, as much as that says at each moment."""
    preloaded = library()
    if preloaded is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    always = {"LD_PRELOAD": str(preloaded), "NO_FAKE_STAT": "1"}
    always |= {} if sleeps else {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    if isinstance(offset, Path):
        return always | {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    return always | {"FAKETIME": offset}


def python_with_wrong_clock(folder: Path, offset: str) -> Path:
    """A program that is this Python with such a clock; it can sleep."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"python{offset}"
    settings = [f"{key}={shlex.quote(value)}" for key, value in wrong(offset, sleeps=True).items()]
    program.write_text(f'#!/bin/sh\nexport {" ".join(settings)}\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    return program
