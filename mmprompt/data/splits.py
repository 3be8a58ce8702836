"""A task's examples: scenes of the small world, or lines of files. Whoever trains and evaluates need not know which.

n examples of a split, S x S pixels of their images.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import PIL
import torch
from torch import Tensor

from mmprompt.data.bpe import BPE
from mmprompt.data.ofa_lines import READERS, Example
from mmprompt.data.staging import staged
from mmprompt.data.tasks import Item, Sample, encode
from mmprompt.data.tokenizer import Tokenizer, Vocabulary
from mmprompt.data.tsv import DataError, Table, Texts, indexed
from mmprompt.runs.config import Digits, Files, Model, Task
from mmprompt.runs.fingerprint import fingerprint, fingerprints
from mmprompt.world import small_world

KEPT = 6  # splits, of the tasks that a job is at
DECODERS = 8  # threads, at most
INDEX_VERSION = 1  # raise when lines of files begin to be checked otherwise

T = TypeVar("T")


class Images(Protocol):
    def __getitem__(self, index: Any) -> Tensor: ...  # B S S 3 uint8, of a tensor of B numbers


@dataclass(frozen=True)
class Split:
    images: Images
    items: Sequence[Item]
    samples: Sequence[Sample]
    digests: Callable[[], list[bytes]]  # of each image, what no image with other pixels has

    def __len__(self) -> int:
        return len(self.samples)


# ------------------------------------------------------------------------------------------------------- where files are


@dataclass(frozen=True)
class Located:
    """A task's files in this process, by name; what was staged lies on the node's own disk."""

    files: dict[str, Path]
    cache: Path | None  # for what is found out about them


_located: dict[str, Located] = {}  # by the fingerprint of all of a task's files


def locate(task: Task, folder: str | None, stage: bool, cache: Path | None) -> None:
    """Says where a task's files lie, before any of its splits is loaded. Raises RuntimeError if they are others than at launch."""
    if not task.files:
        return
    if folder is None:
        raise RuntimeError(f"task={task.name} reads files, and this job was not told their folder, paths.data")
    files = {name: Path(folder) / name for name in task.files}
    if gone := [file for file in files.values() if not file.is_file()]:
        raise RuntimeError(f"{gone[0]} is not there, which task={task.name} reads")
    checksum = fingerprints(files[name] for name in task.files)
    if checksum != task.data.fingerprint:
        raise RuntimeError(
            f"files of task={task.name} in {folder} have changed since launch: their checksum is {checksum}, the run was "
            f"launched with {task.data.fingerprint}"
        )
    if stage:
        files = {name: staged(file, fingerprint(file)) for name, file in files.items()}
    _located[task.data.fingerprint] = Located(files, cache)


def found(task: Task) -> Located:
    if task.data.fingerprint not in _located:
        raise RuntimeError(f"nobody has said where the files of task={task.name} lie")
    return _located[task.data.fingerprint]


# --------------------------------------------------------------------------------------------------------- vocabulary, answers


def tokenizer(task: Task, model: Model) -> Vocabulary:
    """The small world's words, or OFA's vocabulary from the task's files."""
    if isinstance(task.data, Digits):
        return Tokenizer(model.vocab_size, model.num_bins)
    data, files = task.data, found(task).files
    return _bpe(files[data.encoder], files[data.merges], files[data.dictionary], model.vocab_size, model.num_bins)


@lru_cache(maxsize=2)
def _bpe(encoder: Path, merges: Path, dictionary: Path, vocab_size: int, num_bins: int) -> BPE:
    return BPE(encoder, merges, dictionary, vocab_size, num_bins)


def answers(task: Task) -> list[str]:
    """The closed set; empty where text is generated."""
    if isinstance(task.answers, str):
        return read_answers(found(task).files[task.answers])
    return task.answers or []


class NoClasses(pickle.Unpickler):
    """Numbers, texts, lists and tables: what a stranger's pickle may hold. Anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


@lru_cache(maxsize=2)
def read_answers(file: Path) -> list[str]:
    """One on each line; or, of a .pkl, OFA's table from answers to numbers. Raises DataError."""
    if file.suffix != ".pkl":
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        try:
            table = NoClasses(io.BytesIO(file.read_bytes())).load()
            found = sorted(table, key=table.__getitem__)
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not a pickled table from answers to numbers: {error}") from None
    if not found or not all(isinstance(answer, str) for answer in found) or len(set(found)) < len(found):
        raise DataError(f"{file} has {len(found)} answers; wanted: texts, no two the same, one at least")
    return found


# -------------------------------------------------------------------------------------------------------------- their splits


def load(task: Task, model: Model, split: str) -> Split:
    """A split of a task. Raises DataError if a file is not as it should be."""
    return _load(task.model_dump_json(), model.model_dump_json(), split)


@lru_cache(maxsize=KEPT)  # the runs of a job mostly share their task
def _load(task_json: str, model_json: str, split: str) -> Split:
    task = Task.model_validate_json(task_json)
    words = tokenizer(task, Model.model_validate_json(model_json))
    if isinstance(task.data, Digits):
        return scenes(task, task.data, words, split)
    return lines(task, task.data, words, split)


def scenes(task: Task, data: Digits, words: Vocabulary, split: str) -> Split:
    made, items = small_world.split_of(data, task.family, split)
    samples = [encode(item, task.template, task.prompt_type, words) for item in items]
    return Split(torch.from_numpy(made.images), items, samples, partial(hashes, made.images))


def hashes(images: np.ndarray) -> list[bytes]:
    return [hashlib.sha256(image).digest() for image in images]


def lines(task: Task, data: Files, words: Vocabulary, split: str) -> Split:
    """Each line has been looked at once; it is read again when it is wanted."""
    here, trained, closed = found(task), split == "train", frozenset(answers(task))

    def read(texts: Texts, size: tuple[int, int]) -> Example:
        example = READERS[task.family](texts, size, task, data, trained)
        if trained and closed and example.answer not in closed:
            raise DataError(f"the answer {example.answer!r} came, which is none of the {len(closed)} in task.answers")
        return example

    tables = []
    for name in data.files[split]:
        file, kept = here.files[name], None
        if here.cache is not None:
            facts = [INDEX_VERSION, fingerprint(file), data.columns, task.family, trained, sorted(closed)]
            kept = here.cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.lines"
        tables.append(Table(file, data.columns, indexed(file, data.columns, read, kept)))
    all_lines = Lines(tables)

    def item(index: int) -> Example:
        table, line = all_lines.at(index)
        return read(table.texts(line), table.size(line))

    def sample(index: int) -> Sample:
        return encode(item(index), task.template, task.prompt_type, words)

    count = len(all_lines)
    return Split(
        Photographs(all_lines, task.image_size), OnDemand(count, item), OnDemand(count, sample), all_lines.digests
    )


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
