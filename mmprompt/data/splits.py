"""The splits of a task: scenes of the small world, or lines of files. Training and evaluation treat both alike.

n examples in a split, S x S pixels in each image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import PIL
import torch
from torch import Tensor

from mmprompt.data.task_files import TaskFiles
from mmprompt.data.tasks import Item, Sample, encode
from mmprompt.data.tokenizer import Vocabulary
from mmprompt.data.tsv import Table, indexed
from mmprompt.families.lines import DataError, Example, Texts
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.settings.task import Digits, Files, Task
from mmprompt.world import small_world

DECODERS = 8  # maximal number of threads that decode images
INDEX_VERSION = 1  # raise it when the checks of a file's lines change: stored indices are then made again

T = TypeVar("T")


class Images(Protocol):
    def __getitem__(self, index: Any) -> Tensor: ...  # B S S 3 uint8, for a tensor of B indices


@dataclass(frozen=True, eq=False)  # a split equals only itself
class Split:
    name: str
    images: Images
    items: Sequence[Item]
    samples: Sequence[Sample]  # n, encoded from the items
    vocabulary: Vocabulary  # which encoded the samples
    digests: Callable[[], list[bytes]]  # one per image; images with different pixels have different digests

    def __len__(self) -> int:
        return len(self.samples)


def small_world_split(task: Task, data: Digits, vocabulary: Vocabulary, split: str) -> Split:
    """A split of the small world. All of it is in memory."""
    scenes, items = small_world.split_of(data, task.family, split)
    samples = [encode(item, task.template, task.prompt_type, vocabulary) for item in items]
    return Split(split, torch.from_numpy(scenes.images), items, samples, vocabulary, partial(hashes, scenes.images))


def hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in images]


def file_split(
    task: Task, data: Files, files: TaskFiles, vocabulary: Vocabulary, closed: frozenset[str], split: str
) -> Split:
    """A split whose examples are lines of files. Every line is checked once, now, and read again whenever it is used.

    `closed`: the closed set of answers, empty where text is generated. Raises DataError if a line of a file is not valid.
    """
    trained = split == "train"
    read_line = FAMILIES[task.family].read

    def read(texts: Texts, size: tuple[int, int]) -> Example:
        example = read_line(texts, size, task.image_size, data, trained)
        if trained and closed and example.answer not in closed:
            raise DataError(f"the answer {example.answer!r} came, which is none of the {len(closed)} in task.answers")
        return example

    tables = []
    for name in data.files[split]:
        file, index_file = files.paths[name], None
        if files.cache is not None:
            facts = [
                INDEX_VERSION,
                fingerprint(file, files.kept_in),
                data.columns,
                task.family,
                trained,
                sorted(closed),
            ]
            index_file = files.cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.lines"
        tables.append(Table(file, data.columns, indexed(file, data.columns, read, index_file)))
    lines = Lines(tables)

    def item(index: int) -> Example:
        table, line = lines.locate(index)
        return read(table.texts(line), table.size(line))

    def sample(index: int) -> Sample:
        return encode(item(index), task.template, task.prompt_type, vocabulary)

    count = len(lines)
    images, items, samples = FileImages(lines, task.image_size), OnDemand(count, item), OnDemand(count, sample)
    return Split(split, images, items, samples, vocabulary, lines.digests)


class Lines:
    """The lines of several files, numbered through as if they were one file."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables, self.ends = tables, np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def locate(self, index: int) -> tuple[Table, int]:
        """The file that the line with this number is in, and the line's number in that file, from 0."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.tables[which], index - int(self.ends[which]) + len(self.tables[which])

    def digests(self) -> list[bytes]:
        """A digest of each image. Its pixels depend on its bytes and on the version of Pillow, which decodes and resizes them."""
        pillow = f"Pillow {PIL.__version__} ".encode()
        return [pillow + digest.tobytes() for table in self.tables for digest in table.index.digests]


class FileImages:
    """Images of lines, by the lines' numbers: read, decoded and resized each time they are used."""

    def __init__(self, lines: Lines, side: int) -> None:
        self.lines, self.side = lines, side

    def __getitem__(self, index: Tensor) -> Tensor:  # B side side 3
        threads = min(DECODERS, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(threads) as pool:  # Pillow releases Python's global lock while it decodes
            return torch.from_numpy(np.stack(list(pool.map(self.pixels, index.tolist()))))

    def pixels(self, index: int) -> np.ndarray:
        table, line = self.lines.locate(index)
        return table.pixels(line, self.side)


class OnDemand(Sequence[T]):
    """A sequence that makes an element each time it is read."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        chosen = range(self.length)[index]
        return self.make(chosen) if isinstance(chosen, int) else [self.make(i) for i in chosen]
