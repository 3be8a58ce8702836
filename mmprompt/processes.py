"""Who is at work: processes as they are written down, so that others can tell later whether they still live."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

CLOCK = 2.0  # seconds by which a process's start may seem to move, when the clock is set


def who() -> str:
    """The user whose process this is; by number where nobody knows a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> dict[str, Any]:
    """What `lives` needs to know of the process that calls this."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def lives(process: Mapping[str, Any]) -> bool | None:
    """Is a process still there, by its host, pid and start?

    None: nobody here can tell. It is another host's, or another user's where /proc hides those (hidepid).
    """
    if process["host"] != socket.gethostname():
        return None
    try:
        found = psutil.Process(process["pid"])
        alive = found.status() != psutil.STATUS_ZOMBIE
        return alive and abs(found.create_time() - process["started"]) < CLOCK  # else the pid is a stranger's by now
    except psutil.NoSuchProcess:
        return None if is_hidden(process["pid"]) else False
    except psutil.AccessDenied:
        return None


def at_work(jobs: Path, but: Path | None = None) -> int:
    """How many jobs of the batches in the folder `jobs` are executed on this machine; of batch `but` none counts.

    A job's processes have the folder of its batch on their command line; of a parent and its child one counts.
    """
    found = {}
    for process in psutil.process_iter(["ppid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "-m" in words and Path(words[0]).name.startswith("python"):
            folders = [Path(word) for word in words if word.startswith(f"{jobs}/")]
            if folders and but not in folders:
                found[process.pid] = process.info["ppid"]
    return sum(parent not in found for parent in found.values())


def is_hidden(pid: int) -> bool:
    """Whether it is another user's process that /proc does not show."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
