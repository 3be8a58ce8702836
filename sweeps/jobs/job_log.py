"""The log of a job: the line that each of its executions begins with, the times in it, and its end.

SLURM may start a job several times, and all of them write into one log. A job writes a first line each time it starts; all that
follows, up to the next one, is of that execution.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

BEGINS = "== "  # how a first line begins: `== job 300_4 on node7, 2026-11-28T12:44:08+0100`
OUT_OF_TIME = 75  # exit code of a job whose time limit leaves no time for a run
END = 64 * 1024  # bytes that are read of a log
STAMP = re.compile(r"CANCELLED AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")  # SLURM's own


def first_line(job: str) -> str:
    return f"{BEGINS}job {job} on {socket.gethostname()}, {now_here()}"


def now_here() -> str:
    """The time in this machine's own time zone, as slurmstepd writes it into the same log, with its offset from UTC.

    TZ may name another zone: jobs inherit it from the shell that submitted them.
    """
    zone: tzinfo = UTC
    with contextlib.suppress(OSError, ValueError), open("/etc/localtime", "rb") as file:  # without it it is UTC
        zone = ZoneInfo.from_file(file)
    return datetime.now(zone).strftime("%Y-%m-%dT%H:%M:%S%z")


def written(line: str) -> float:
    """When a job wrote this first line, in seconds since 1970."""
    return moment(line.rpartition(", ")[2])


def zone_of(lines: Sequence[str]) -> tzinfo | None:
    """The time zone of the node, by the newest first line. None in logs from before jobs wrote one: it may be ours."""
    for line in reversed(lines):
        if line.startswith(BEGINS):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(line.rpartition(", ")[2]).tzinfo
    return None


def stamped(lines: Sequence[str], zone: tzinfo | None) -> dict[int, float]:
    """The lines in which SLURM says when it ended something, by number; in the clock and time zone of a node."""
    stamps = {i: STAMP.search(line) for i, line in enumerate(lines)}
    return {i: moment(stamp[1], zone) for i, stamp in stamps.items() if stamp}


def moment(text: str, zone: tzinfo | None = None) -> float:
    """Seconds since 1970, of a time as SLURM writes it, in our time zone or in `zone`; 0 where it says Unknown or None."""
    with contextlib.suppress(ValueError):
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo or zone is None else time.replace(tzinfo=zone)).timestamp()
    return 0.0


def tail(file: Path, size: int = END) -> str:
    """The end of a file; empty if the file is not there or may not be read."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - size))
        return opened.read().decode(errors="replace")
    return ""
