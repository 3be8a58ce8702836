"""A cache of rows that take long to compute, shared by all processes of a store: STORE/cache.

n rows of one shape, float32. A shard is a file of rows, each with its crc32 behind it. Its name is a hash of all that decides
its bits, so nothing in the folder ever has to be declared stale, and anyone may delete any of it at any time.

There are no locks. A shard is written aside and renamed into place; processes that fill at once each choose at random among
what is missing. A shard made twice is the same shard. What cannot be read is made again, what cannot be written is
made whenever it is needed, and both are said in one line.

Shards are read, not mapped: the kernel shares the pages among processes either way, but under a mapping a file that shrinks,
or that another host deletes, kills every process that reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmprompt.runs.files import draft_of, make_folder, server_time, share

SHARD_BYTES = 64e6  # a file is no larger, give or take a batch
SHARDS = 8  # of a split if it is small: several processes can share the work
OPEN = 200  # files at once; 1,024 is what a process usually may
ABANDONED = 86_400.0  # seconds after which a file that was being written belongs to nobody
CHECK = 4  # bytes

Make = Callable[[np.ndarray], Tensor]  # indices of rows -> these rows


@dataclass(frozen=True)
class Cache:
    """A folder and its maximal size."""

    folder: Path
    max_gb: float

    @property
    def used(self) -> int:
        """Bytes in use."""
        total = 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def prepare(self) -> None:
        """Makes the folder, and removes unfinished files of killed processes."""
        make_folder(self.folder)
        now = server_time(self.folder)
        for file in self.folder.glob(".*"):
            with contextlib.suppress(OSError):
                if now - file.stat().st_mtime > ABANDONED:
                    file.unlink()

    def write(self, file: Path, chunks: Sequence[bytes]) -> None:
        """Writes a complete file, or none. Raises OSError."""
        draft = draft_of(file)
        try:
            with draft.open("xb") as handle:
                handle.writelines(chunks)
                handle.flush()
                share(draft)
                os.fsync(handle.fileno())
            draft.rename(file)
        finally:
            draft.unlink(missing_ok=True)


class Cached:
    """Rows that `make` computes, read from the cache if they are there."""

    def __init__(
        self,
        make: Make,
        batch: int,
        name: str,
        shape: Sequence[int],
        facts: str,
        examples: Sequence[bytes],
        cache: Cache,
    ) -> None:
        """`batch`: rows that are best made at once. `facts`: all that decides the rows' bits besides `examples`, what each is
        made of."""
        self.make, self.name, self.shape, self.cache = make, name, tuple(shape), cache
        self.count, self.row_bytes = len(examples), 4 * int(np.prod(shape))
        shard = min(self.count / SHARDS, SHARD_BYTES / self.row_bytes)
        self.per_shard = math.ceil(shard / batch) * batch
        self.files: list[Path] = []
        for first in range(0, self.count, self.per_shard):
            key = hashlib.sha256(f"{facts} {self.shape}\n".encode())
            key.update(b"".join(examples[first : first + self.per_shard]))
            self.files.append(cache.folder / f"{key.hexdigest()[:32]}.rows")
        self.handles: dict[int, FileIO] = {}
        self.given_up: set[int] = set()  # damaged, and could not be written anew

    def __call__(self, index: np.ndarray) -> Tensor:
        """Rows B *shape, at the alignment that torch gives its tensors."""
        rows = torch.empty(len(index), *self.shape)
        buffers = rows.view(len(index), -1).numpy().view(np.uint8)
        absent = [place for place, row in enumerate(index) if not self.read(int(row), buffers[place].data)]
        if absent:
            rows[absent] = self.make(index[absent]).cpu()
        return rows

    def read(self, row: int, into: memoryview) -> bool:
        """Reads a shard; returns whether it was there. A damaged shard is computed again."""
        shard, place = divmod(row, self.per_shard)
        check = bytearray(CHECK)
        try:
            if shard not in self.handles:
                if len(self.handles) == OPEN:
                    self.handles.clear()
                self.handles[shard] = FileIO(self.files[shard])
            got = os.preadv(self.handles[shard].fileno(), [into, check], place * (self.row_bytes + CHECK))
        except OSError:
            self.handles.pop(shard, None)
            return False
        sound = got == self.row_bytes + CHECK and zlib.crc32(into).to_bytes(CHECK, "little") == check
        if not sound and shard not in self.given_up:
            print(f"{self.files[shard]} ({self.name}) is damaged; it is made again", flush=True)
            del self.handles[shard]
            try:
                self.write(shard)
            except OSError as error:
                self.given_up.add(shard)
                self.say(error)
        return sound

    def rows_of(self, shard: int) -> np.ndarray:
        first = shard * self.per_shard
        return np.arange(first, min(first + self.per_shard, self.count))

    def write(self, shard: int) -> None:
        """Computes and writes a shard. Raises OSError if it cannot be written."""
        chunks: list[bytes] = []
        for row in self.make(self.rows_of(shard)).cpu().numpy():
            chunks += [row.tobytes(), zlib.crc32(row.tobytes()).to_bytes(CHECK, "little")]
        self.cache.write(self.files[shard], chunks)

    def say(self, error: OSError) -> None:
        print(f"{self.cache.folder} cannot be written ({error.strerror}); {self.otherwise}", flush=True)

    @property
    def otherwise(self) -> str:
        return f"{self.name} that are not in it are computed each time they are needed"

    def missing(self) -> list[int]:
        """The shards that do not exist."""
        return [shard for shard, file in enumerate(self.files) if not file.exists()]

    def fill(self) -> None:
        """Computes all missing shards as long as they fit, and first prints what they need."""
        random, said = np.random.default_rng(), False
        try:
            self.cache.prepare()
            while missing := self.missing():
                need = sum(len(self.rows_of(shard)) for shard in missing) * (self.row_bytes + CHECK) / 1e9
                used, free = self.cache.used / 1e9, shutil.disk_usage(self.cache.folder).free / 1e9
                line = f"{self.name}: {need:.3g} GB, the cache has {used:.3g} of {self.cache.max_gb:g} GB"
                if used + need > self.cache.max_gb or need > free:
                    line += f" and its disk {free:.3g} GB free, so they are not kept: raise cache.max_gb, or make room"
                    print(f"{line} in {self.cache.folder}; {self.otherwise}", flush=True)
                    return
                if not said:
                    print(line, flush=True)
                    said = True
                self.write(int(random.choice(missing)))
        except OSError as error:
            self.say(error)
