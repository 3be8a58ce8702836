"""Clocks that are wrong, for processes that tests start: by libfaketime, which answers in the kernel's place.

Of them only the time of day is wrong, as on a machine whose clock nobody has set: the monotonic clock and the dates of files are
the kernel's. Such a process cannot sleep, because libfaketime 0.9.10 takes the wrong one of the two clocks for that: one that has
to (W&B does) gets a monotonic clock that is as much off, all the time, which changes no duration.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def wrong(offset: str | Path, sleeps: bool = False) -> dict[str, str]:
    """The environment of a process whose clock is so much off: "-3600", "+2d"; of a file, as much as that says at each moment."""
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed: apt-get install faketime")
    library = subprocess.run(["faketime", "-m", "-f", "+0", "printenv", "LD_PRELOAD"], capture_output=True, text=True)
    always = {"LD_PRELOAD": library.stdout.strip(), "NO_FAKE_STAT": "1"}
    always |= {} if sleeps else {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    if isinstance(offset, Path):
        return always | {"FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1"}
    return always | {"FAKETIME": offset}
