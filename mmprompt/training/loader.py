"""The micro-batches of each update: which examples they have, and their reading ahead of the update that needs them.

A micro-batch is read by its number alone, so what is read ahead changes nothing: neither the order of the examples, nor a resume.

B micro-batch, n examples of a split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmprompt.data.ranks import ALONE, Ranks
from mmprompt.data.splits import Split
from mmprompt.data.tasks import Batch, Sample, collate, exact
from mmprompt.methods.tuned_model import TwoSteps, View
from mmprompt.models.ofa import Encoded, stepped
from mmprompt.runs.config import RunConfig
from mmprompt.training.speed import EAGER, Speed

AHEAD = 2  # so many updates are read ahead, and at most so many are in memory


@lru_cache(
    maxsize=2
)  # an update may reach into the next epoch; of 1.3 million examples each takes a tenth of a second to make
def epoch_order(seed: int, examples: int, epoch: int) -> np.ndarray:
    """The indices of all examples, in the order of an epoch. Read only."""
    order = np.random.default_rng((seed, epoch)).permutation(examples)
    order.setflags(write=False)
    return order


def data_order(seed: int, examples: int, first: int, count: int) -> np.ndarray:
    """Indices of the `count` examples that follow the first `first` ones in a stream of data. The stream is shuffled anew in each
    epoch.

    The result depends only on the arguments, so that a number is enough to say where in the data a run is.
    """
    chunks: list[np.ndarray] = []
    while count > 0:
        epoch, offset = divmod(first, examples)
        shuffled = epoch_order(seed, examples, epoch)[offset : offset + count]
        chunks.append(shuffled)
        first, count = first + len(shuffled), count - len(shuffled)
    return np.concatenate(chunks)


@dataclass(frozen=True)
class MicroBatch:
    """What can be read of a micro-batch without the device."""

    samples: list[Sample]  # B
    text: Batch
    read: Any  # what the first step of the view gives; else the indices of the examples, for the whole view


class Loader:
    """A process's micro-batches of a run's updates. A context: at its end nothing is read ahead any more."""

    def __init__(
        self,
        config: RunConfig,
        split: Split,
        view: View,
        device: torch.device,
        ranks: Ranks = ALONE,
        speed: Speed = EAGER,
    ) -> None:
        self.config, self.split, self.view, self.device = config, split, view, device
        self.ranks, self.speed = ranks, speed
        # What lies in memory is read in no time, and a CPU has nothing to do it beside.
        slow = device.type != "cpu" or not isinstance(split.images, Tensor)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader") if slow else None
        self._ahead: dict[int, Future[list[MicroBatch]]] = {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *of: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def read(self, step: int) -> list[MicroBatch]:
        """Reads this process's micro-batches of the update after `step` updates."""
        optim = self.config.optim
        index = data_order(self.config.seed, len(self.split), step * optim.batch_size, optim.batch_size)
        return [self._micro_batch(part) for part in self.ranks.share(np.split(index, optim.parts))]

    def _micro_batch(self, index: np.ndarray) -> MicroBatch:
        samples = [self.split.samples[i] for i in index]
        text = collate(samples, self.width if self.speed.is_compiled else exact)
        read = self.view.read(index) if isinstance(self.view, TwoSteps) else index
        if self.device.type == "cuda":  # from pinned memory the GPU copies while it computes
            text, read = text.pinned(), read.pin_memory() if isinstance(read, Tensor) else read
        return MicroBatch(samples, text, read)

    def width(self, length: int) -> int:
        """The width of a batch for compiled layers: a multiple of STEP, if the model has so many positions."""
        return max(length, min(stepped(length), self.config.model.max_positions + 2))

    def read_again(self, step: int) -> list[MicroBatch]:
        """As `read`, after the speed has changed: nothing stays of what was read ahead."""
        self._ahead.clear()
        return self.read(step)

    def __call__(self, step: int) -> list[MicroBatch]:
        """The micro-batches of the update after `step` updates. Begins to read those of the updates after it."""
        if self._thread is None:
            return self.read(step)
        last = min(step + AHEAD, self.config.optim.steps - 1)
        self._ahead = {
            number: self._ahead.get(number) or self._thread.submit(self.read, number)
            for number in range(step, max(step, last) + 1)
        }
        return self._ahead.pop(step).result()

    def on_device(self, parts: Sequence[MicroBatch]) -> Iterator[tuple[Batch, Tensor | Encoded]]:
        """Text and input of each micro-batch, on the device."""
        for part in parts:
            inputs = self.view.compute(part.read) if isinstance(self.view, TwoSteps) else self.view(part.read)
            if self.speed.is_compiled and isinstance(inputs, Encoded):
                inputs = widened(inputs)
            yield part.text.to(self.device), inputs


def widened(encoded: Encoded) -> Encoded:
    """The same with padding up to a multiple of STEP positions."""
    more = stepped(encoded.states.shape[1]) - encoded.states.shape[1]
    if more == 0:
        return encoded
    padding = encoded.padding
    padding = encoded.states.new_zeros(encoded.states.shape[:2], dtype=torch.bool) if padding is None else padding
    states, positions = (F.pad(part, (0, 0, 0, more)) for part in (encoded.states, encoded.positions))
    return Encoded(states, F.pad(padding, (0, more), value=True), positions)
