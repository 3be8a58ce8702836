"""A task's examples.

n examples of a split, S x S raw pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mmprompt import world
from mmprompt.config import Model, Task
from mmprompt.tasks import Sample, encode
from mmprompt.tokens import Tokenizer

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    images: Tensor  # n S S 3 uint8
    items: list[world.Item]
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)


def load(task: Task, model: Model, split: str) -> Split:
    """A split of a task. The three splits share neither scenes nor handwriting."""
    return _load(task.model_dump_json(), model.vocab_size, model.num_bins, split)


@lru_cache(maxsize=len(SPLITS))  # the runs of a job mostly share their task
def _load(task_json: str, vocab_size: int, num_bins: int, split: str) -> Split:
    task = Task.model_validate_json(task_json)
    rng = np.random.default_rng((task.data.seed, SPLITS.index(split)))
    maker = world.DOWNSTREAM[task.family]
    scenes, items = world.sample_items(rng, getattr(task.data, split), split, maker, task.data.pixels)
    tokenizer = Tokenizer(vocab_size, num_bins)
    samples = [encode(item, task.template, task.prompt_type, tokenizer) for item in items]
    return Split(torch.from_numpy(scenes.images), items, samples)
