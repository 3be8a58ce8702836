"""The splits of a task: scenes of the small world, or lines of files. Training and evaluation do not depend on which.

n examples of a split, S x S pixels of their images.
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

DECODERS = 8  # threads, at most
INDEX_VERSION = 1  # raise when lines of files begin to be checked otherwise

T = TypeVar("T")


class Images(Protocol):
    def __getitem__(self, index: Any) -> Tensor: ...  # B S S 3 uint8, of a tensor of B numbers


@dataclass(frozen=True, eq=False)  # a split equals itself alone
class Split:
    name: str
    images: Images
    items: Sequence[Item]
    samples: Sequence[Sample]  # n, made of the items
    words: Vocabulary  # that samples are written in
    digests: Callable[[], list[bytes]]  # of each image, what no image with other pixels has

    def __len__(self) -> int:
        return len(self.samples)


def scenes(task: Task, data: Digits, words: Vocabulary, split: str) -> Split:
    """Of the small world, all of it in memory."""
    made, items = small_world.split_of(data, task.family, split)
    samples = [encode(item, task.template, task.prompt_type, words) for item in items]
    return Split(split, torch.from_numpy(made.images), items, samples, words, partial(hashes, made.images))


def hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in images]


def lines(task: Task, data: Files, files: TaskFiles, words: Vocabulary, closed: frozenset[str], split: str) -> Split:
    """Of files. Each line has been looked at once; it is read again when it is wanted. `closed`: the answers that there are,
    empty where text is generated. Raises DataError if a file is not as it should be."""
    trained = split == "train"
    read_line = FAMILIES[task.family].read

    def read(texts: Texts, size: tuple[int, int]) -> Example:
        example = read_line(texts, size, task.image_size, data, trained)
        if trained and closed and example.answer not in closed:
            raise DataError(f"the answer {example.answer!r} came, which is none of the {len(closed)} in task.answers")
        return example

    tables = []
    for name in data.files[split]:
        file, kept = files.paths[name], None
        if files.cache is not None:
            facts = [INDEX_VERSION, fingerprint(file), data.columns, task.family, trained, sorted(closed)]
            kept = files.cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.lines"
        tables.append(Table(file, data.columns, indexed(file, data.columns, read, kept)))
    all_lines = Lines(tables)

    def item(index: int) -> Example:
        table, line = all_lines.at(index)
        return read(table.texts(line), table.size(line))

    def sample(index: int) -> Sample:
        return encode(item(index), task.template, task.prompt_type, words)

    count = len(all_lines)
    images, items, samples = Photographs(all_lines, task.image_size), OnDemand(count, item), OnDemand(count, sample)
    return Split(split, images, items, samples, words, all_lines.digests)


class Lines:
    """Files one behind the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables, self.ends = tables, np.cumsum([len(table) for table in tables])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def at(self, index: int) -> tuple[Table, int]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.tables[which], index - int(self.ends[which]) + len(self.tables[which])

    def digests(self) -> list[bytes]:
        """The file's bytes say what is seen, and Pillow, which decodes and resizes them."""
        made_by = f"Pillow {PIL.__version__} ".encode()
        return [made_by + look.tobytes() for table in self.tables for look in table.index.digests]


class Photographs:
    """Images in the order of their lines, read, decoded and resized when they are wanted."""

    def __init__(self, all_lines: Lines, side: int) -> None:
        self.lines, self.side = all_lines, side

    def __getitem__(self, index: Tensor) -> Tensor:  # B side side 3
        with ThreadPoolExecutor(
            min(DECODERS, len(os.sched_getaffinity(0)))
        ) as pool:  # Pillow works outside Python's lock
            return torch.from_numpy(np.stack(list(pool.map(self.pixels, index.tolist()))))

    def pixels(self, index: int) -> np.ndarray:
        table, line = self.lines.at(index)
        return table.pixels(line, self.side)


class OnDemand(Sequence[T]):
    """A sequence whose elements are made each time they are asked for."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...

    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        places = range(self.length)[index]
        return self.make(places) if isinstance(places, int) else [self.make(place) for place in places]
