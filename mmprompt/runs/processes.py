"""Processes as records, so that another process can later find out whether they still run."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

CLOCK = 2.0  # seconds by which the start time of a process may appear to change


def who() -> str:
    """The name of the user who runs this process; the uid if the user has no name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> dict[str, Any]:
    """This process as a record for `is_running`."""
    return process_here(os.getpid())


def process_here(pid: int) -> dict[str, Any]:
    """Any process on this machine as a record for `is_running`. Raises psutil.NoSuchProcess.

    The start as a time of day moves when the clock is set. The boot id and the clock ticks do not, but /proc may not show them.
    """
    known = {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}
    boot, ticks = boot_id(), start_ticks(pid)
    return known if boot is None or ticks is None else known | {"boot": boot, "ticks": ticks}


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Whether a process still runs, by its host, pid and start.

    None: this cannot be found out here, because the process is on another host, or because /proc hides it as another user's
    (hidepid).
    """
    if process["host"] != socket.gethostname():
        return None
    boot = boot_id()
    if boot is not None and process.get("boot", boot) != boot:
        return False
    try:
        found = psutil.Process(process["pid"])
        return found.status() != psutil.STATUS_ZOMBIE and is_same(found, process)  # else the pid was reused
    except psutil.NoSuchProcess:
        return None if is_hidden(process["pid"]) else False
    except psutil.AccessDenied:
        return None


def is_same(found: psutil.Process, process: Mapping[str, Any]) -> bool:
    """Whether a process has the recorded start, in clock ticks; old records have only the time of day."""
    ticks = start_ticks(found.pid)
    if ticks is not None and "ticks" in process:
        return bool(ticks == process["ticks"])
    return bool(abs(found.create_time() - process["started"]) < CLOCK)


@cache
def boot_id() -> str | None:
    """The kernel's id of the current boot; None if the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks after boot; None if /proc does not show it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])  # the name, in parentheses, may contain any character


def at_work(jobs: Path, but: Path | None = None) -> int:
    """Counts the jobs of the batches in the folder `jobs` that this machine executes, without those of batch `but`.

    A job's processes have the folder of its batch on their command line. A child is not counted besides its parent.
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
