"""Counts, durations and sizes in words, for messages and tables."""

from __future__ import annotations

from collections.abc import Sized


def plural(number: int, noun: str) -> str:
    """A number with its noun: `1 trial`, `3 trials`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"


def count(runs: Sized) -> str:
    """How many runs there are: `1 run`, `3 runs`."""
    return plural(len(runs), "run")


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def remaining(seconds: float) -> str:
    """The duration of something that has not ended yet; at least `1 s`, never `0 s`."""
    return duration(max(1.0, seconds))


def volume(bytes: float) -> str:
    """A number of bytes in the unit that suits it: `512 bytes`, `1.4 kB`, `20 GB`."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while bytes >= 999.5 and unit != "TB":
        bytes, unit = bytes / 1000, next(units)
    return f"{bytes:.0f} {unit}" if bytes >= 10 or unit == "bytes" else f"{bytes:.1f} {unit}"
