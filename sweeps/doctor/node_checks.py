"""The probe: runs the checks of a node, here and in `training_checks`, and prints each finding as a line of JSON.

It imports only the standard library until it has checked that other packages are there, so that an interpreter without our
packages, or an old one (3.7), can still report that. An exception in a check is a finding, because a node can be broken in ways
that no check expects.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sweeps.doctor import training_checks
from sweeps.doctor.findings import Finding, bad, first_line, good, mine, note

MARK = "doctor: "  # begins the probe's lines, which share the job's log with the output of the setup lines
PYTHON = (3, 11)
# Seconds by which two clocks may differ: beyond the first a note, beyond the second a failure.
CLOCK_NOTE, CLOCK_FAIL = (
    2.0,
    60.0,
)
ENOUGH = 1e9  # bytes free on a node's own disk; fewer get a note
TIGHT = 0.8  # share of the requested memory; use beyond it gets a note


def main(request: Mapping[str, Any]) -> None:
    """Makes all checks in order. A check that needs a failed one is skipped, with a note.

    `request`: see `sweeps.doctor.probe_job.ProbeJob.request`.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # says that the time limit is near, which it always is for the probe
    failed: list[str] = []
    for name, (check, *needed) in CHECKS.items():
        failed_needs = [need for need in failed if need in needed]
        if failed_needs:
            send(asdict(note(name, f"not checked, because {failed_needs[0]} failed")))
            failed.append(name)
            continue
        send({"begin": name})
        try:
            findings = list(check(request))
        except Exception as error:
            findings = [bad(name, f"{type(error).__name__}: {first_line(error)}")]
        for finding in findings:
            send(asdict(finding))
        if any(finding.grade == "FAIL" for finding in findings):
            failed.append(name)
    send({"end": True})


def send(values: Mapping[str, Any]) -> None:
    """Prints a message to the doctor as a line of JSON."""
    print(MARK + json.dumps(values), flush=True)


def python(request: Mapping[str, Any]) -> Iterator[Finding]:
    where = f"{sys.executable} on {os.environ.get('SLURMD_NODENAME', socket.gethostname())}"
    if sys.version_info[:2] < PYTHON:
        wanted = ".".join(map(str, PYTHON))
        found = f"{where} is Python {platform.python_version()}, and {wanted} is needed"
        yield bad("python", found, mine(f"python: {request['python']}"))
    else:
        yield good("python", f"{platform.python_version()}, {where}")


def store(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks that a file written on the login node can be read here, and writes a file for the login node to read."""
    folder = Path(request["folder"])
    try:
        same = (folder / "login").read_text() == request["nonce"]
        if same:
            write(folder / "node", request["nonce"][::-1])
    except OSError as error:
        found = (
            f"what the login node has written to {folder} cannot be read, or added to, where jobs run: {error.strerror}"
        )
        yield bad("store", found, *advice_on_store(request))
        return
    if not same:
        yield bad(
            "store", f"{folder} is another folder where jobs run than on the login node", *advice_on_store(request)
        )
    elif request["slurm"] and socket.gethostname() == request["host"]:
        yield note(
            "store", f"{request['store']} is seen, but on the login node itself: that says nothing of other nodes"
        )
    else:
        yield good(
            "store", f"{request['store']} is read and written" + (" at the same path" if request["slurm"] else "")
        )


def advice_on_store(request: Mapping[str, Any]) -> list[str]:
    """Advice: how to make jobs see the store."""
    bound = f"or let cluster.python bind it, as in `apptainer exec --bind {request['store']} IMAGE python`"
    shared = "export MMPROMPT_RUNS=a folder that login and compute nodes share"
    return [shared, *([bound] if request["cluster"]["python"] else [])]


def write(file: Path, text: str) -> None:
    """Writes a file, and waits until it is on disk."""
    with file.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def files(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks the file operations by which runs are claimed and published without locks: none may replace what is there."""
    broken: list[str] = []
    with tempfile.TemporaryDirectory(dir=request["folder"], prefix=f"{socket.gethostname()}.") as name:
        folder = Path(name)
        for part in ("a", "b"):
            (folder / part).mkdir()
            write(folder / part / "file", part)
        with expect_refusal(broken, "mkdir", "makes what is there"):
            (folder / "a").mkdir()
        with expect_refusal(broken, "rename", "replaces a folder that holds something"):
            (folder / "a").rename(folder / "b")
        write(folder / "d", "d")
        try:
            os.link(folder / "d", folder / "e")
            with expect_refusal(broken, "link(2)", "replaces a file"):
                os.link(folder / "d", folder / "e")
        except OSError as error:
            broken.append(f"link(2) is not possible ({error.strerror})")
        os.replace(folder / "d", folder / "b" / "file")
        if (folder / "b" / "file").read_text() != "d":
            broken.append("rename does not replace a file")
    if broken:
        found = f"the file system of {request['store']} cannot hold a store: {'; '.join(broken)}"
        yield bad("files", found, "export MMPROMPT_RUNS=a folder on another file system")
    else:
        yield good("files", "mkdir, rename and link(2) replace nothing that is there")


@contextlib.contextmanager
def expect_refusal(broken: list[str], call: str, otherwise: str) -> Iterator[None]:
    """Adds a sentence to `broken` unless the call in the block is refused because something is there already.

    `otherwise`: what a call does that is not refused.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            broken.append(f"{call} fails ({error.strerror})")
    else:
        broken.append(f"{call} {otherwise}")


def offset(folder: Path) -> float:
    """The seconds by which this machine's clock is ahead of the clock that dates the files of this folder."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        before = time.time()
        file.write(b"now")
        file.flush()
        os.fsync(file.fileno())
        return (before + time.time()) / 2 - os.stat(file.name).st_mtime


def clock(request: Mapping[str, Any]) -> Iterator[Finding]:
    if not request["slurm"]:
        return
    ahead = offset(Path(request["folder"])) - request["offset"]
    text = f"the node's is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the login node's"
    if abs(ahead) > CLOCK_FAIL:
        yield bad(
            "clock", f"{text}: times and ages will be wrong", "ask the cluster's people for `chronyc tracking` there"
        )
    else:
        yield (note if abs(ahead) > CLOCK_NOTE else good)("clock", text)


def cores(request: Mapping[str, Any]) -> Iterator[Finding]:
    usable, existing, requested = len(os.sched_getaffinity(0)), os.cpu_count() or 1, request["cluster"]["cpus"]
    threads = request["config"]["threads"]
    found = f"cluster.cpus={requested}; {usable} of this machine's {existing} may be used"
    if usable < min(requested, existing):
        yield bad("cores", found, mine(f"cpus: {usable}"))
    elif threads > requested:
        yield note("cores", f"{found}, and threads={threads}", mine(f"cpus: {threads}"))
    else:
        yield (note if usable < requested else good)("cores", found)


def scratch(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks the folder for files that only this node needs: those of W&B and of `data.stage`."""
    folder, setup = Path(os.environ.get("TMPDIR") or "/tmp"), request["cluster"]["setup"]
    if not os.access(folder, os.W_OK | os.X_OK):
        line = (
            mine(f"setup: {json.dumps([*setup, 'export TMPDIR=/tmp'])}") if request["slurm"] else "export TMPDIR=/tmp"
        )
        yield bad("scratch", f"TMPDIR={folder} is not a folder that one may write to", line)
        return
    free = shutil.disk_usage(folder).free
    size = sum(file.stat().st_size for file in files_read(request) if file.exists()) if request["stage"] else 0
    found = f"{free / 1e9:.1f} GB are free in {folder}"
    if size > free:
        yield bad("scratch", f"{found}, and data.stage=true copies {size / 1e9:.1f} GB there", "data.stage=false")
    else:
        yield (note if free < ENOUGH else good)("scratch", found)


def files_read(request: Mapping[str, Any]) -> list[Path]:
    """The files that a run reads."""
    from mmprompt.runs.config import RunConfig
    from mmprompt.settings.parsing import parse

    return [
        Path(request["backbone"]),
        *(Path(request["data"]) / name for name in parse(RunConfig, request["config"]).task.files),
    ]


def memory(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks how much of the job's memory the other checks have used; so it comes last."""
    used, requested = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, request["cluster"]["mem_gb"] * 2**30
    limit = memory_limit()
    found = f"the probe took {used / 2**30:.1f} GB of cluster.mem_gb={request['cluster']['mem_gb']:g}"
    found += "; no cgroup holds it to that" if limit is None else f"; its cgroup may use {limit / 2**30:.1f}"
    if used > TIGHT * min(requested, limit or requested):
        yield note("memory", found, mine(f"mem_gb: {2 * request['cluster']['mem_gb']:g}"))
    else:
        yield good("memory", found)


def memory_limit() -> int | None:
    """The bytes that this process may use, by the tightest limit of its cgroup and the cgroups above; None if none is known."""
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = Path("/sys/fs/cgroup", controllers)
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text()))
            if folder == top:
                break
    return min((limit for limit in limits if limit < 2**60), default=None)


# Each check by its name, with the checks that must have passed before it is made.
CHECKS: dict[str, tuple[Any, ...]] = {
    "python": (python,),
    "store": (store,),
    "files": (files, "store"),
    "clock": (clock, "store"),
    "cores": (cores,),
    "scratch": (scratch,),
    "packages": (training_checks.packages, "python"),
    "code": (training_checks.code, "packages", "store"),
    "torch": (training_checks.torch, "packages"),
    "gpu": (training_checks.gpu, "torch"),
    "wandb": (training_checks.wandb, "packages"),
    "data": (training_checks.data, "torch"),
    "backbone": (training_checks.backbone, "torch", "store"),
    "memory": (memory,),
}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
