"""What a run takes: memory, time, compute, epochs. Each run records these.

The time per answer is measured apart (`execution.measurement`): it means something only beside that of others on the same
machine at the same time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path

import torch

NEAR_BEST = 0.99  # share of the best validation score
EXAMPLES = 100


def forget_peak(device: torch.device) -> None:
    """Resets the peak, so that memory used by earlier runs of this process does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # then it counts
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """The peak in MB: of torch's allocations on a GPU, or of this process's resident memory without one."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6, 1)


def seconds_per_100(answer: Callable[[int], Sized], device: torch.device) -> float:
    """Seconds in which `answer(100)` answers 100 examples, from their pixels on (paper, Figure 4).

    Of a split that has fewer it answers those, and 100 of them take as much longer.
    """
    finish(device)
    began = time.perf_counter()
    answered = len(answer(EXAMPLES))
    finish(device)
    return (time.perf_counter() - began) * EXAMPLES / answered


def finish(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def epochs(updates: int, batch_size: int, examples: int) -> float:
    """How many epochs `steps` updates are on a training split of `examples` examples."""
    return round(updates * batch_size / examples, 3)


def near_best(validation: Sequence[tuple[int, float]]) -> int:
    """The first update whose validation score is 99 % of the best; of scores that never rise above 0, the first of all."""
    best = max((score for _, score in validation), default=0.0)
    return next((update for update, score in validation if score >= NEAR_BEST * best), 0)


def device_hours(seconds: float, devices: int) -> float:
    """GPU-hours, or core-hours of a run without GPUs."""
    return round(seconds * devices / 3600, 5)
