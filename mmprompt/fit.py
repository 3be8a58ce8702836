"""Finds the largest micro-batch that fits: `mmprompt fit model=ofa_large task=refcoco cluster.gpus=1 paths...`, before a sweep.

It makes updates with micro-batches of 1, 2, 4 examples and so on, of those whose texts are longest, until the memory of the device
does not suffice, and estimates the time of the whole run. It writes nothing. `optim.micro_batch` is part of a run's id.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from mmprompt.command_line import check_overrides, run_program
from mmprompt.data.splits import Split
from mmprompt.data.task_data import TaskData
from mmprompt.data.task_files import locate
from mmprompt.evaluation.answers import answers
from mmprompt.execution.resources import finish, forget_peak, peak_memory_mb
from mmprompt.execution.run_context import NoGPUError, backbone_of, device_for
from mmprompt.methods.tuned_model import Tuned
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import JobSettings, store_folder
from mmprompt.runs.failures import MEMORY
from mmprompt.runs.identity import freeze
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import SpeedName
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.frozen_features import live_features
from mmprompt.training.loader import Loader
from mmprompt.training.speed import Speed
from mmprompt.training.update import optimiser_of, update

LOOKED_AT = 512  # examples, among which those with the longest texts are chosen
UPDATES = 2  # timed for each size, after one that is not


@dataclass(frozen=True)
class Fit:
    """What updates with micro-batches of one size took."""

    micro_batch: int
    seconds: float  # per example
    peak_mb: float


def fit(values: dict[str, Any]) -> None:
    """Prints what each size of the micro-batch takes, and the time of the run with the fastest. Raises ConfigError."""
    config, deployment = freeze(values)
    settings, store = JobSettings.of(deployment), Store(store_folder(deployment.paths.runs))
    try:
        device = device_for(min(1, settings.gpus))
    except NoGPUError as error:
        raise ConfigError(str(error)) from None
    files = locate(config.task, settings.data, False, None, store.fingerprints if store.root.is_dir() else None)
    data = TaskData(config.task, config.model, files)
    torch.set_num_threads(config.threads)
    backbone = backbone_of(config, Path(settings.backbone))
    generator = torch.Generator().manual_seed(config.seed)
    tuned = Tuned(config, backbone, generator, data.answer_ids).to(device)
    tuned.backbone.encoder.recompute = settings.recompute
    table, tried = Table("micro-batch", "ms per example", "peak memory in GB", box=None), []
    for one in sizes(config, tuned, data.split("train"), device, settings.speed):
        table.add_row(str(one.micro_batch), f"{1e3 * one.seconds:.2f}", f"{one.peak_mb / 1e3:.2f}")
        tried.append(one)
    Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True).print(table)
    if not tried:
        raise ConfigError(f"not even one example of model={config.model.name} fits into {memory_gb(device):.1f} GB")
    best = min(tried, key=lambda one: one.seconds)
    optim, gpus = config.optim, max(1, settings.gpus)
    training = optim.steps * optim.batch_size * best.seconds / gpus
    asked = min(optim.validate_examples, len(data.split(config.task.validation)))
    times = -(-optim.steps // optim.validate_every)
    each = seconds_per_answer(config, tuned, data.split(config.task.validation), device, best.micro_batch)
    validating = times * asked * each / gpus
    print(f"fastest: optim.micro_batch={best.micro_batch}, of optim.batch_size={optim.batch_size}")
    print(
        f"with it the run takes about {hours(training + validating)} on {gpus} {device.type}, without cached features:"
    )
    print(
        f"  {optim.steps:,} updates {hours(training)}, {times:,} validations of {asked:,} examples {hours(validating)}"
    )


def hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def sizes(config: RunConfig, tuned: Tuned, split: Split, device: torch.device, speed: SpeedName) -> Iterator[Fit]:
    """Tries micro-batches of 1, 2, 4 ... examples, up to the whole batch, as long as they fit."""
    longest, size, peak = longest_first(split, config.optim.batch_size), 1, 0.0
    while size <= config.optim.batch_size:
        # Without a GPU nothing says "out of memory" but the kernel, which kills. Twice the examples take at most twice the memory.
        if device.type == "cpu" and 2 * peak > 1e3 * memory_gb(device):
            return
        try:
            tried = measure(config, tuned, first(longest, size), device, size, speed)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if MEMORY.search(str(error)):
                return
            raise
        yield tried
        size, peak = 2 * size, tried.peak_mb


def measure(config: RunConfig, tuned: Tuned, split: Split, device: torch.device, size: int, asked: SpeedName) -> Fit:
    """Makes updates of one micro-batch of this size. The weights are those of the beginning again afterwards."""
    changed = {"batch_size": size, "micro_batch": size, "steps": UPDATES + 1, "lr": 1e-9}
    config = config.model_copy(update={"optim": config.optim.model_copy(update=changed)})
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    forget_peak(device)
    before, optimiser = tuned.tuned_state(), optimiser_of(tuned, config.optim)
    tuned.train()
    try:
        view = live_features(config, tuned, split, device)
        with Speed(asked, device) as speed, Loader(config, split, view, device, speed=speed) as loader:
            update(tuned, optimiser, config, loader, 0)
            finish(device)
            began = time.perf_counter()
            for step in range(1, UPDATES + 1):
                update(tuned, optimiser, config, loader, step)
            finish(device)
        return Fit(size, (time.perf_counter() - began) / UPDATES / size, peak_memory_mb(device))
    finally:
        optimiser.zero_grad()
        tuned.eval()
        tuned.load_tuned_state(before)


def seconds_per_answer(config: RunConfig, tuned: Tuned, split: Split, device: torch.device, size: int) -> float:
    """Seconds in which an example is answered, from its pixels on, in batches of this size or more."""
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"micro_batch": size})})
    view, count = live_features(config, tuned, split, device), min(len(split), 2 * size)
    answers(config, tuned, split, view, 1)
    finish(device)
    began = time.perf_counter()
    answers(config, tuned, split, view, count)
    finish(device)
    return (time.perf_counter() - began) / count


def longest_first(split: Split, most: int) -> Split:
    """The examples with the longest texts among the split's first ones, at most `most`, the longest in front."""
    samples = [split.samples[index] for index in range(min(LOOKED_AT, len(split)))]
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].source) - len(samples[i].answer))[:most]
    images = split.images[torch.tensor(order)]
    return replace(split, samples=[samples[i] for i in order], items=[split.items[i] for i in order], images=images)


def first(split: Split, count: int) -> Split:
    """The first examples of a split that is in memory."""
    images = split.images[torch.arange(min(count, len(split)))]
    return replace(split, samples=split.samples[:count], items=split.items[:count], images=images)


def memory_gb(device: torch.device) -> float:
    """The memory that this process can have in all, in GB."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    return (psutil.virtual_memory().available + psutil.Process().memory_info().rss) / 1e9


if __name__ == "__main__":
    check_overrides()
    run_program(fit, "config")
