"""Processes with a wrong clock, for tests: libfaketime answers their questions for the time instead of the kernel.

Only the time of day is wrong, as on a machine whose clock was never set; the monotonic clock and the dates of files are the
kernel's. Such a process cannot sleep, because libfaketime 0.9.10 uses the wrong one of the two clocks for that. A process that
has to sleep (W&B does) gets a monotonic clock with the same constant offset, which changes no duration.

The program `faketime` is not used: it names shared memory after its process id and leaves it behind when it is killed; when
another process gets that id, it exits with 1. The library alone works without shared memory.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

# where distributions install it
LIBRARIES = (
    "lib/*/faketime/libfaketimeMT.so.1",
    "lib*/faketime/libfaketimeMT.so.1",
    "local/lib/faketime/libfaketimeMT.so.1",
)


def library() -> Path | None:
    """The path of libfaketime, if it is installed."""
    return next((file for place in LIBRARIES for file in Path("/usr").glob(place)), None)


def wrong(offset: str | Path, sleeps: bool = False) -> dict[str, str]:
    """The environment of a process whose clock is off by `offset`, such as "-3600" or "+2d"; a file may hold and change it."""
    preloaded = library()
    if preloaded is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    always = {"LD_PRELOAD": str(preloaded), "NO_FAKE_STAT": "1"}
    always |= {} if sleeps else {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    if isinstance(offset, Path):
        return always | {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    return always | {"FAKETIME": offset}


def python_with_wrong_clock(folder: Path, offset: str) -> Path:
    """A program that runs this Python with such a clock; it can sleep."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / f"python{offset}"
    settings = [f"{key}={shlex.quote(value)}" for key, value in wrong(offset, sleeps=True).items()]
    program.write_text(f'#!/bin/sh\nexport {" ".join(settings)}\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    return program
