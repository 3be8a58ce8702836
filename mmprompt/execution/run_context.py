"""A run in memory at the start of an attempt: its device, the pretrained backbone, and the tuned model."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mmprompt.data.ranks import ALONE, Ranks
from mmprompt.data.splits import Split
from mmprompt.data.staging import staged
from mmprompt.data.task_data import RecentTasks, TaskData
from mmprompt.data.task_files import locate
from mmprompt.execution.resources import forget_peak
from mmprompt.methods.tuned_model import Tuned, View
from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import load_backbone, read_state
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.cache import Cache
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.runs.identity import read_config
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_writer import RecordWriter
from mmprompt.settings.deployment import Tracking
from mmprompt.settings.model import Model
from mmprompt.training.frozen_features import Want, open_cache, processor, view
from mmprompt.training.speed import Speed

FAKE_GPUS = "MMPROMPT_FAKE_GPUS"
RECENT_TASKS = RecentTasks()  # of this process


class NoGPUError(RuntimeError):
    """A GPU was asked for and none is seen. The message says what is there."""


@dataclass(frozen=True)
class RunContext:
    """A run in memory at the start of an attempt."""

    attempt: Attempt
    began: float  # by the monotonic clock: no other tells how long something took
    config: RunConfig
    data: TaskData
    device: torch.device
    backbone: OFA  # as it came
    tuned: Tuned
    cache: Cache | None
    tracking: Tracking
    ranks: Ranks  # the processes that train it together
    speed: Speed

    @property
    def folder(self) -> RunFolder:
        return self.attempt.run

    @property
    def origin(self) -> dict[str, Any]:
        """Where numbers come from: attempt, commit, code, device. The W&B record has it too, so that it can be read without the
        store."""
        job = self.attempt.job
        made_with = {"commit": job.get("commit"), "dirty": job.get("dirty", False), "code": job.get("code")}
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"cpu: {processor()}"
        if self.device.type == "cpu" and os.environ.get(FAKE_GPUS) == "1" and os.environ.get("CUDA_VISIBLE_DEVICES"):
            name += " (in place of a fake GPU)"
        if self.ranks.size > 1:
            name = f"{self.ranks.size} x {name}"
        return {"attempt": self.attempt.number, **made_with, "device": name}

    def view(self, split: Split, want: Want = "encoded") -> View:
        return view(self.config, self.tuned, self.backbone, split, self.cache, want)

    def asked_split(self, settings: Mapping[str, Any]) -> Split:
        """The split of an evaluation with these settings: one of the task's, or an unscored one."""
        name, unscored = settings["split"], settings.get("unscored")
        if unscored is None:
            return self.data.split(name)
        return self.data.unscored_split(name, unscored["files"], unscored["fingerprint"])

    def record(self) -> RecordWriter:
        """Opens the W&B record of the attempt."""
        config = self.config
        return RecordWriter(
            folder=self.attempt.path,
            id=f"{self.folder.id}-{self.attempt.number}",
            name=describe(config) + (" evaluated" if self.attempt.evaluates else ""),
            group=f"{config.model.name}/{config.task.name}/{config.method}",
            config=config.model_dump(mode="json")
            | {"run_id": self.folder.id, "work": self.attempt.job.get("work", "train")}
            | self.origin
            | {"speed": self.speed.facts},
            tracking=self.tracking,
        )


def load_run(folder: RunFolder, attempt: Attempt, settings: JobSettings, ranks: Ranks = ALONE) -> RunContext:
    began = time.monotonic()
    config = read_config(folder.config_file)
    store = Store(folder.root)
    kept_in, max_gb = store.fingerprints, settings.cache.max_gb
    cache = Cache(store.cache, max_gb) if max_gb > 0 else None
    files = locate(config.task, settings.data, settings.stage, cache, kept_in)
    data = RECENT_TASKS.get(config.task, config.model, files)
    device = device_for(settings.gpus, ranks.rank)
    forget_peak(device)
    torch.set_num_threads(config.threads)
    backbone = backbone_of(config, Path(settings.backbone), settings.stage, kept_in)
    generator = torch.Generator().manual_seed(config.seed)
    tuned = Tuned(config, backbone, generator, data.answer_ids).to(device)
    tuned.backbone.encoder.recompute = settings.recompute
    features = open_cache(settings.cache, store.cache, device)
    speed = Speed("eager" if attempt.evaluates else settings.speed, device)
    return RunContext(attempt, began, config, data, device, backbone, tuned, features, settings.tracking, ranks, speed)


def backbone_of(config: RunConfig, file: Path, stage: bool = False, kept_in: Path | None = None) -> OFA:
    return pretrained(file, config.backbone.checksum, config.model.model_dump_json(), stage, kept_in)


@lru_cache(maxsize=1)
def pretrained(file: Path, checksum: str, model_json: str, stage: bool, kept_in: Path | None) -> OFA:
    """The pretrained backbone, read once per process; it is copied and never trained. Raises RuntimeError if the file changed.

    `kept_in`: the folder for the fingerprints of large files.
    """
    if stage:
        file = staged(file, checksum)
    found = fingerprint(file, kept_in)
    if found != checksum:
        raise RuntimeError(
            f"{file} has changed since launch: its checksum is {found}, the run was launched with {checksum}"
        )
    settings = Model.model_validate_json(model_json)
    with torch.random.fork_rng(devices=[]):  # what the checkpoint may lack begins the same in every process
        torch.manual_seed(0)
        model = OFA(settings)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_backbone(model, read_state(file), settings.allow)
    return model.eval().requires_grad_(False)


def device_for(gpus: int, rank: int = 0) -> torch.device:
    """The device of a process of a run with so many GPUs. It is never the CPU silently.

    Raises NoGPUError if torch sees fewer GPUs than the run needs. Those of the test cluster (tests/slurm) are fake, and said to be
    so: then it is the CPU, and the record says it.
    """
    if not gpus:
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen < gpus:
        if os.environ.get(FAKE_GPUS) == "1":
            return torch.device("cpu")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoGPUError(
            f"cluster.gpus={gpus} was asked for, and torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees "
            f"{seen}: {nvidia_driver()}, CUDA_VISIBLE_DEVICES {'is not set' if visible is None else f'is {visible!r}'}"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def nvidia_driver() -> str:
    """A sentence about NVIDIA's driver in the kernel."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "no NVIDIA driver is loaded"
    return f"NVIDIA's driver is {first.removeprefix('NVRM version:').strip()}"


def describe(config: RunConfig) -> str:
    """A short name of a run for people."""
    return " ".join(
        f"{config.task.name} {config.method} {config.method_settings.in_words()} seed={config.seed}".split()
    )
