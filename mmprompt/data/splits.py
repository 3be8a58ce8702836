"""The splits of a task: scenes of the small world, or lines of files. Training and evaluation treat both alike.

n examples in a split, S x S pixels in each image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import PIL
import torch
from torch import Tensor

from mmprompt.data.decoded_images import DecodedImages
from mmprompt.data.encoded_image import workers
from mmprompt.data.line_index import indexed
from mmprompt.data.task_files import TaskFiles
from mmprompt.data.tasks import Item, Sample, encode
from mmprompt.data.tokenizer import Vocabulary
from mmprompt.data.tsv import Table
from mmprompt.families.lines import DataError, Example, Texts
from mmprompt.families.registry import FAMILIES
from mmprompt.runs.cache import Cache, distinct
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.settings.task import Digits, Files, Task
from mmprompt.world import small_world

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
    ids: Sequence[str] | None = None  # n, as files have them; None where no challenge asks for them
    is_scored: bool = True  # the right answers are here

    def __len__(self) -> int:
        return len(self.samples)

    def keep_images(self) -> None:
        """From now on each image is decoded once, and kept in the store's cache if it fits: it will be needed again and again."""
        if isinstance(self.images, FileImages):
            self.images.keep()


def small_world_split(task: Task, data: Digits, vocabulary: Vocabulary, split: str) -> Split:
    """A split of the small world. All of it is in memory."""
    scenes, items = small_world.split_of(data, task.family, split)
    samples = [encode(item, task.template, task.prompt_type, vocabulary) for item in items]
    return Split(split, torch.from_numpy(scenes.images), items, samples, vocabulary, partial(hashes, scenes.images))


def hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in images]


def file_split(
    task: Task,
    data: Files,
    files: TaskFiles,
    vocabulary: Vocabulary,
    closed: frozenset[str],
    split: str,
    unscored: Sequence[str] = (),
) -> Split:
    """A split whose examples are lines of files. Every line is checked once, now, and read again whenever it is used.

    `closed`: the closed set of answers, empty where text is generated. `unscored`: the files of a split without right answers,
    which is none of the task's; whatever stands in the column of right answers is not read. Raises DataError if a line of a file
    is not valid.
    """
    trained = split == "train"
    read_line = FAMILIES[task.family].read
    columns = columns_of(task, data, trained, bool(unscored))

    def read(texts: Texts, size: tuple[int, int]) -> Example:
        example = read_line(texts, size, task.image_size, data, trained)
        if trained and closed and example.answer not in closed:
            raise DataError(f"the answer {example.answer!r} came, which is none of the {len(closed)} in task.answers")
        return example

    tables = []
    for name in unscored or data.files[split]:
        file, index_file = files.paths[name], None
        if files.cache is not None:
            facts = [
                INDEX_VERSION,
                fingerprint(file, files.kept_in),
                columns,
                task.family,
                trained,
                sorted(closed),
            ]
            index_file = files.cache.folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.lines"
        tables.append(Table(file, columns, indexed(file, columns, read, index_file)))
    lines = Lines(tables)

    def item(index: int) -> Example:
        table, line = lines.locate(index)
        return read(table.texts(line), table.size(line))

    def sample(index: int) -> Sample:
        return encode(item(index), task.template, task.prompt_type, vocabulary)

    def example_id(index: int) -> str:
        table, line = lines.locate(index)
        return table.column(line, "id").decode()

    count = len(lines)
    images = FileImages(lines, task.image_size, f"images of {task.name}/{split}", files.cache)
    items, samples = OnDemand(count, item), OnDemand(count, sample)
    ids = OnDemand(count, example_id) if "id" in columns else None
    return Split(split, images, items, samples, vocabulary, lines.digests, ids, not unscored)


def columns_of(task: Task, data: Files, trained: bool, unscored: bool) -> dict[str, int]:
    """The columns that are read of a split's files, by name: of examples that a challenge may ask for also `id`, of an unscored
    split all but the right answers."""
    family = FAMILIES[task.family]
    columns = dict(data.columns)
    if family.challenge is not None and not trained:
        columns.setdefault("id", family.challenge.id_column)
    if unscored:
        del columns[family.truth]
    return columns


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
    """Images of lines, by the lines' numbers: read, decoded and resized each time they are used, unless they are kept."""

    def __init__(self, lines: Lines, side: int, name: str, cache: Cache | None) -> None:
        """`name`: for messages. `cache`: where images are kept; None: nowhere."""
        self.lines, self.side, self.name, self.cache = lines, side, name, cache
        self.kept: DecodedImages | None = None
        self.number_of = np.empty(
            0, np.int64
        )  # n, by line: the number of its image among the different ones, if they are kept

    def keep(self) -> None:
        """Keeps the images that are decoded from now on in the cache, each different one once."""
        if self.cache is not None and self.kept is None:
            digests = self.lines.digests()
            first, self.number_of = distinct(digests)
            kept = DecodedImages(self.name, [digests[line] for line in first], self.side, self.cache)
            kept.open()
            self.kept = kept

    def __getitem__(self, index: Tensor) -> Tensor:  # B side side 3
        images = torch.empty(len(index), self.side, self.side, 3, dtype=torch.uint8)
        for _ in workers().map(self.load, index.tolist(), images.numpy()):  # Pillow lets go of Python's global lock
            pass
        return images

    def load(self, index: int, image: np.ndarray) -> None:
        """Puts the image of a line into `image`, side side 3 uint8. Raises DataError if it cannot be read."""
        number = -1 if self.kept is None else int(self.number_of[index])
        if self.kept is None or not self.kept.read(number, image):
            table, line = self.lines.locate(index)
            image[:] = table.pixels(line, self.side)
            if self.kept is not None:
                self.kept.write(number, image)


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
