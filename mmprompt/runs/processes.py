"""Who is at work: processes as they are written down, so that others can tell later whether they still live."""

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
    """The user whose process this is; by number where nobody knows a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> dict[str, Any]:
    """What `lives` needs to know of the process that calls this."""
    return process_here(os.getpid())


def process_here(pid: int) -> dict[str, Any]:
    """The same of any process on this machine. Raises psutil.NoSuchProcess.

    Its start as a time of day moves whenever the clock is set; boot and ticks do not, and /proc may not show them.
    """
    known = {"host": socket.gethostname(), "pid": pid, "started": psutil.Process(pid).create_time()}
    boot, ticks = boot_id(), start_ticks(pid)
    return known if boot is None or ticks is None else known | {"boot": boot, "ticks": ticks}


def is_running(process: Mapping[str, Any]) -> bool | None:
    """Is a process still there, by its host, pid and start?

    None: nobody here can tell. It is another host's, or another user's where /proc hides those (hidepid).
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
    """Has this process the start that was written down? By its ticks; those of long ago were not written down."""
    ticks = start_ticks(found.pid)
    if ticks is not None and "ticks" in process:
        return bool(ticks == process["ticks"])
    return bool(abs(found.create_time() - process["started"]) < CLOCK)


@cache
def boot_id() -> str | None:
    """What the kernel calls the time since it was started; None where it does not say."""
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
