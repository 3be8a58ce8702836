"""Numbers as words for people."""

from __future__ import annotations

from collections.abc import Sized


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def count(runs: Sized) -> str:
    return plural(len(runs), "run")


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_to_come(seconds: float) -> str:
    """Never 0: what is still to come has not ended."""
    return duration(max(1.0, seconds))


def volume(bytes: float) -> str:
    """A number of bytes."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while bytes >= 999.5 and unit != "TB":
        bytes, unit = bytes / 1000, next(units)
    return f"{bytes:.0f} {unit}" if bytes >= 10 or unit == "bytes" else f"{bytes:.1f} {unit}"
