"""The probe: checks that the doctor runs where jobs run; it prints each finding as a line of JSON.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MARK = "doctor: "  # begins the probe's lines, which share the job's log with the output of the setup lines
MINE = "conf/cluster/mine.yaml"
PYTHON = (3, 11)
PACKAGES = (  # by their names for pip
    *("torch", "numpy", "safetensors", "scikit-learn", "pillow", "tokenizers", "pydantic", "psutil", "wandb"),
)
# Seconds by which two clocks may differ: beyond the first a note, beyond the second a failure.
CLOCK_NOTE, CLOCK_FAIL = (
    2.0,
    60.0,
)
ENOUGH = 1e9  # bytes free on a node's own disk; fewer get a note
WHEELS = {11: "cu118", 12: "cu126"}  # by the driver's CUDA version: builds of torch that run with it
SLOW = 30.0  # seconds to load torch; more get a note
TIGHT = 0.8  # share of the requested memory; use beyond it gets a note


@dataclass(frozen=True)
class Finding:
    """The outcome of a check."""

    grade: str  # PASS, FAIL, NOTE
    name: str  # of the check
    found: str  # one sentence
    advice: tuple[str, ...] = ()  # lines to type as they are


def good(name: str, found: str) -> Finding:
    return Finding("PASS", name, found)


def bad(name: str, found: str, *advice: str) -> Finding:
    return Finding("FAIL", name, found, advice)


def note(name: str, found: str, *advice: str) -> Finding:
    return Finding("NOTE", name, found, advice)


def mine(line: str) -> str:
    """Advice: a line for the user's own cluster settings."""
    return f"{MINE}:  {line}"


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


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


# The node


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


# What runs need on the node


def packages(request: Mapping[str, Any]) -> Iterator[Finding]:
    here, on_login = versions(), request["packages"]
    missing = [name for name, version in here.items() if version is None]
    other = [
        f"{name} {version}, not {on_login[name]}"
        for name, version in here.items()
        if on_login[name] not in (None, version)
    ]
    if missing:
        # The interpreter that launches has the packages; but a node may not have that interpreter.
        lines = [mine(f"python: {request['python']}")] if request["cluster"]["python"] else []
        install = f"{sys.executable} -m pip install --constraint constraints.txt ."
        yield bad("packages", f"{sys.executable} has no {', '.join(missing)}", *lines, f"or, in the clone:  {install}")
    elif other:
        yield note("packages", f"not those of the login node: {'; '.join(other)}")
    else:
        yield good("packages", ", ".join(f"{name} {version}" for name, version in here.items()))


def versions() -> dict[str, str | None]:
    """The installed version of each of PACKAGES; None for a package that is not installed."""
    from importlib import metadata

    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def code(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks that jobs import the snapshot that a launch makes of our packages."""
    import mmprompt

    origin = Path(mmprompt.__file__).resolve().parent.parent
    if origin == Path(request["code"]).resolve():
        yield good("code", "jobs import the copy of the packages that a launch puts into the store")
        return
    at_fault = (
        f"it starts in {Path.cwd()}" if Path.cwd().resolve() == origin else "PYTHONPATH or its packages name that"
    )
    found = f"{sys.executable} would import mmprompt from {origin}, not from the copy that a launch makes: {at_fault}"
    yield bad("code", found, mine("python: ...  (one that changes neither folder nor PYTHONPATH)"))


def torch(request: Mapping[str, Any]) -> Iterator[Finding]:
    began = time.monotonic()
    import torch

    took = time.monotonic() - began
    found = f"{torch.__version__} loads in {took:.1f} s"
    yield note("torch", f"{found}: the file system that holds it is slow") if took > SLOW else good("torch", found)


def gpu(request: Mapping[str, Any]) -> Iterator[Finding]:
    import torch

    wanted, visible = request["cluster"]["gpus"], os.environ.get("CUDA_VISIBLE_DEVICES")
    if not wanted:
        yield good("gpu", "none is asked for (cluster.gpus=0)")
    elif os.environ.get("MMPROMPT_FAKE_GPUS") == "1":
        fake = "MMPROMPT_FAKE_GPUS=1: runs compute on the CPU, and their records say so"
        yield note("gpu", f"CUDA_VISIBLE_DEVICES={visible}; torch sees {torch.cuda.device_count()}; {fake}")
    elif torch.version.cuda is None:
        install = f"{sys.executable} -m pip install --force-reinstall torch  (a build for CUDA)"
        yield bad("gpu", f"cluster.gpus={wanted}, and torch {torch.__version__} is built without CUDA", install)
    else:
        yield from real_gpu(request, wanted, visible)


def real_gpu(request: Mapping[str, Any], wanted: int, visible: str | None) -> Iterator[Finding]:
    import torch

    driver, devices = driver_cuda(), torch.cuda.device_count()
    built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda}"
    if driver is None:
        found = f"no NVIDIA driver answers here, and {built}"
        yield bad("driver", found, mine("partition: one whose nodes have GPUs"), "sinfo -o '%P %G'  (which have)")
        return
    found = f"the driver is for CUDA up to {driver[0]}.{driver[1]}; {built}"
    if driver[0] < int(str(torch.version.cuda).split(".")[0]):
        wheels = [index for major, index in WHEELS.items() if major <= driver[0]][-1:]
        install = f"{sys.executable} -m pip install torch --index-url https://download.pytorch.org/whl/"
        yield bad("driver", found, *(install + index for index in wheels), "or ask for a newer driver")
        return
    yield good("driver", found)
    if devices < wanted:
        found = f"cluster.gpus={wanted}, and torch sees {devices} (CUDA_VISIBLE_DEVICES={visible})"
        yield bad("gpu", found, mine(f"gres: gpu:{wanted}"))
        return
    ones = torch.ones(64, 64, device="cuda")
    assert float((ones @ ones).sum()) == 64**3  # raises if this torch has no kernels for the GPU
    total = torch.cuda.get_device_properties(0).total_memory / 2**30
    yield good("gpu", f"{devices} x {torch.cuda.get_device_name(0)}, {total:.0f} GB; computes")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        yield good("bf16", "is supported")
    elif request["config"]["precision"] == "bfloat16":
        yield bad("bf16", "precision=bfloat16, and this GPU only emulates it", "precision=float32")
    else:
        yield note("bf16", "this GPU only emulates it: leave precision at float32")


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA version that the driver supports, as (major, minor); None if there is no driver."""
    import ctypes

    number = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) != 0:
            return None
    except OSError:
        return None
    return number.value // 1000, number.value % 1000 // 10


def wandb(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks that the W&B client can write an offline record, in a temporary folder; with tracking=online also the network."""
    from mmprompt.runs.wandb_writer import RecordWriter, TrackingError
    from mmprompt.settings.deployment import Tracking

    tracking, setup, began = request["tracking"], request["cluster"]["setup"], time.monotonic()
    if tracking["mode"] == "disabled":
        yield note("wandb", "tracking=disabled: no record is kept")
        return
    try:
        with tempfile.TemporaryDirectory(prefix="mmprompt-doctor-", ignore_cleanup_errors=True) as folder:
            offline = Tracking(**(tracking | {"mode": "offline"}))
            record = RecordWriter(Path(folder), "doctor", "doctor", "doctor", config={}, tracking=offline)
            record.log(1, {"probe": 1.0})
            record.finish({}, exit_code=0)
    except TrackingError as error:
        found = f"its client does not work here: {first_line(error)}; the job's log has its own words"
        lines = [mine(f"setup: {json.dumps(setup)}  (without the line that disturbs it)")] if setup else []
        yield bad("wandb", found, *lines, "tracking=disabled  (until it does; no records then)")
        return
    yield good("wandb", f"an offline record was written and closed in {time.monotonic() - began:.1f} s")
    if tracking["mode"] == "online":
        yield connection(wandb_host())


def wandb_host() -> str:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"


def connection(host: str) -> Finding:
    """Whether this node can connect to the W&B server."""
    port = urlsplit(os.environ.get("WANDB_BASE_URL", "")).port or 443
    try:
        with socket.create_connection((host, port), timeout=5):
            return good("network", f"jobs reach {host}")
    except OSError as error:
        found = f"jobs do not reach {host} ({error.strerror or error}): their records stay offline"
        return note("network", found, "make sync  (on the login node: it sends them)")


def data(request: Mapping[str, Any]) -> Iterator[Finding]:
    from mmprompt.data.task_data import TaskData
    from mmprompt.data.task_files import locate
    from mmprompt.runs.config import RunConfig
    from mmprompt.settings.parsing import parse

    config, began = parse(RunConfig, request["config"]), time.monotonic()
    files = locate(config.task, request["data"], stage=False, cache=None)
    split = TaskData(config.task, config.model, files).split(config.task.validation)
    yield good("data", f"task={config.task.name}: {len(split)} validation examples in {time.monotonic() - began:.1f} s")


def backbone(request: Mapping[str, Any]) -> Iterator[Finding]:
    """Checks that the file of pretrained weights is the same here as on the login node, and loads it as a run does."""
    from mmprompt.execution.run_context import backbone_of
    from mmprompt.runs.config import RunConfig
    from mmprompt.runs.fingerprint import fingerprint
    from mmprompt.settings.parsing import parse

    if request["checksum"] is None:  # the doctor has reported that on the login node
        return
    file, began = Path(request["backbone"]), time.monotonic()
    advice = "paths.backbone=a file that login and compute nodes see"
    try:
        checksum = fingerprint(file)
    except OSError as error:
        yield bad("backbone", f"{file} cannot be read where jobs run: {error.strerror}", advice)
        return
    if checksum != request["checksum"]:
        yield bad("backbone", f"{file} is another file where jobs run than on the login node", advice)
        return
    size, model = os.stat(file).st_size, request["config"]["model"]["name"]
    try:
        backbone_of(parse(RunConfig, request["config"]), file)
    except Exception as error:
        again = f"paths.backbone=...  (a whole copy of it: this one has {size:,} bytes)"
        yield bad("backbone", f"{file} is no checkpoint of model={model}: {first_line(error)}", again)
        return
    took = time.monotonic() - began
    yield good("backbone", f"{file.name}, {size / 1e6:.1f} MB, loads in {took:.1f} s as model={model}")


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
    "packages": (packages, "python"),
    "code": (code, "packages", "store"),
    "torch": (torch, "packages"),
    "gpu": (gpu, "torch"),
    "wandb": (wandb, "packages"),
    "data": (data, "torch"),
    "backbone": (backbone, "torch", "store"),
    "memory": (memory,),
}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
