"""The probe's checks of what training needs on a node: packages, our code, torch, a GPU, W&B, data and the backbone.

Until `packages` has passed, only the standard library is imported (see `sweeps.doctor.node_checks`).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeps.doctor.findings import Finding, bad, first_line, good, mine, note

PACKAGES = (  # by their names for pip
    *("torch", "numpy", "safetensors", "scikit-learn", "pillow", "tokenizers", "pydantic", "psutil", "wandb"),
)
WHEELS = {11: "cu118", 12: "cu126"}  # by the driver's CUDA version: builds of torch that run with it
SLOW = 30.0  # seconds to load torch; more get a note


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
        builds = [
            f"torch built for {index} in {sys.executable}; pytorch.org says how to install it" for index in wheels
        ]
        yield bad("driver", found, *builds, "or ask for a newer driver")
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
