"""Processes as records, so that another process can tell later whether they still run."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

CLOCK = 2.0  # seconds by which a process's start, as a time of day, may seem to move


def who() -> str:
    """The name of the user who runs this process; the number if it has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> dict[str, Any]:
    """This process as a record for `is_running`."""
    return process_here(os.getpid())


def process_here(pid: int) -> dict[str, Any]:
    """Any process on this machine as a record for `is_running`. Raises psutil.NoSuchProcess.

    Its start as a time of day moves whenever the clock is set; boot and ticks do not, and /proc may not show them.
    """
    known = {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}
    boot, ticks = boot_id(), start_ticks(pid)
    return known if boot is None or ticks is None else known | {"boot": boot, "ticks": ticks}


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Whether a process still runs, by its host, pid and start.

    None: that cannot be known here. The process is on another host, or /proc hides it because it is another user's (hidepid).
    """
    if process["host"] != socket.gethostname():
        return None
    boot = boot_id()
    if boot is not None and process.get("boot", boot) != boot:
        return False
    try:
        found = psutil.Process(process["pid"])
        return found.status() != psutil.STATUS_ZOMBIE and is_same(found, process)  # else the pid is a stranger's by now
    except psutil.NoSuchProcess:
        return None if is_hidden(process["pid"]) else False
    except psutil.AccessDenied:
        return None


def is_same(found: psutil.Process, process: Mapping[str, Any]) -> bool:
    """Whether this process has the recorded start, by its clock ticks; old records have only the time."""
    ticks = start_ticks(found.pid)
    if ticks is not None and "ticks" in process:
        return bool(ticks == process["ticks"])
    return bool(abs(found.create_time() - process["started"]) < CLOCK)


@cache
def boot_id() -> str | None:
    """The kernel's id of the time since boot; None where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None where /proc does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # its name, in parentheses, may hold anything


def at_work(jobs: Path, but: Path | None = None) -> int:
    """Counts the jobs that this machine executes of batches in the folder `jobs`, without those of batch `but`.

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
    """Whether /proc may hide this process because it is another user's."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False
