"""Reads and writes the log of a job: the line that begins each execution, the times in the log, and its last lines.

SLURM may start a job several times, and all these executions write into one log. Each writes a first line when it starts; the
lines up to the next first line belong to that execution.
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

BEGINS = "== "  # the beginning of a first line: `== job 300_4 on node7, 2026-11-28T12:44:08+0100`
OUT_OF_TIME = 75  # exit code of a job whose time limit leaves no time for a run
END = 64 * 1024  # bytes that are read from the end of a log
STAMP = re.compile(r"CANCELLED AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")  # written by SLURM


def first_line(job: str) -> str:
    """Returns the line that an execution of this job, on this host, begins its log with."""
    return f"{BEGINS}job {job} on {socket.gethostname()}, {local_time()}"


def local_time() -> str:
    """Returns the time in this machine's own time zone, as slurmstepd writes it into the same log, with its offset from UTC.

    The variable TZ is not used: it may name another zone, since jobs inherit it from the shell that submitted them.
    """
    zone: tzinfo = UTC
    with contextlib.suppress(OSError, ValueError), open("/etc/localtime", "rb") as file:  # without this file it is UTC
        zone = ZoneInfo.from_file(file)
    return datetime.now(zone).strftime("%Y-%m-%dT%H:%M:%S%z")


def started_at(line: str) -> float:
    """Returns when an execution wrote this first line, in seconds since 1970."""
    return timestamp(line.rpartition(", ")[2])


def zone_of(lines: Sequence[str]) -> tzinfo | None:
    """Returns the node's time zone from the newest first line; None for old logs without a zone, which may be in ours."""
    for line in reversed(lines):
        if line.startswith(BEGINS):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(line.rpartition(", ")[2]).tzinfo
    return None


def end_stamps(lines: Sequence[str], zone: tzinfo | None) -> dict[int, float]:
    """Returns the times at which SLURM ended something, by line number, in seconds since 1970 by the clock of the node.

    `zone`: the node's time zone.
    """
    stamps = {i: STAMP.search(line) for i, line in enumerate(lines)}
    return {i: timestamp(stamp[1], zone) for i, stamp in stamps.items() if stamp}


def timestamp(text: str, zone: tzinfo | None = None) -> float:
    """Returns a time that SLURM wrote as seconds since 1970; 0 for Unknown and None. `zone`: its time zone, by default ours."""
    with contextlib.suppress(ValueError):
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo or zone is None else time.replace(tzinfo=zone)).timestamp()
    return 0.0


def tail(file: Path, size: int = END) -> str:
    """Returns the last `size` bytes of a file as text; "" if the file does not exist or may not be read."""
    return end_of(file, size)[0]


def end_of(file: Path, size: int = END) -> tuple[str, int]:
    """Returns the same, and how many bytes of the file it ends behind."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - size))
        return opened.read().decode(errors="replace"), opened.tell()
    return "", 0
