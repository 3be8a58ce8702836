"""A cache on disk for rows that take long to compute, shared by all processes of a store: STORE/cache.

n examples, m different ones among them, m rows of one shape and precision. A shard is a file of rows, each followed by its
crc32. A shard's name is a hash of everything that decides its bits, so that no file ever becomes stale, and any file may be deleted
at any time.

There are no locks. A shard is written under a temporary name and renamed into place; processes that fill the cache at the same
time each choose at random among the missing shards. If two make the same shard, the files are equal. A shard that cannot be read
is made again; rows of a shard that cannot be written are computed whenever they are needed. Either is reported in one line.

Shards are read, not memory-mapped. The kernel shares the pages among processes either way, but if a mapped file shrinks, or
another host deletes it, every process that reads it is killed.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Callable, Sequence
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmprompt.runs.cache import Cache, distinct

SHARD_BYTES = 64e6  # maximal size of a file, give or take a batch
SHARDS = 8  # of a small split, so that several processes can share the work
OPEN_FILES = 200  # at most; the usual limit of a process is 1,024
CHECKSUM_BYTES = 4

Make = Callable[[np.ndarray], Tensor]  # from indices of examples to their rows


class Cached:
    """The rows that `make` computes. Those that are in the cache are read instead of computed."""

    def __init__(
        self,
        make: Make,
        batch: int,
        name: str,
        shape: Sequence[int],
        facts: str,
        examples: Sequence[bytes],
        cache: Cache,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`batch`: how many rows are best made together. `examples`: for each example, what its row is computed from; equal ones
        share a row. `facts`: everything else that decides the rows' bits."""
        self.make, self.name, self.shape, self.cache, self.dtype = make, name, tuple(shape), cache, dtype
        self.first, self.row_of = distinct(examples)  # m, the first example of each row; n, the row of each example
        self.count, self.row_bytes = len(self.first), dtype.itemsize * int(np.prod(shape))
        shard = min(self.count / SHARDS, SHARD_BYTES / self.row_bytes)
        self.per_shard = math.ceil(shard / batch) * batch
        self.files: list[Path] = []
        for first in range(0, self.count, self.per_shard):
            key = hashlib.sha256(f"{facts} {self.shape}\n".encode())
            key.update(b"".join(examples[example] for example in self.first[first : first + self.per_shard]))
            self.files.append(cache.folder / f"{key.hexdigest()[:32]}.rows")
        self.handles: dict[int, FileIO] = {}
        self.given_up: set[int] = set()  # damaged shards that could not be written again

    def __call__(self, index: np.ndarray) -> Tensor:
        """The rows of these examples, B and the shape of a row, in memory that torch has aligned."""
        rows = torch.empty(len(index), *self.shape, dtype=self.dtype)
        buffers = rows.view(len(index), -1).view(torch.uint8).numpy()
        missing = [i for i, row in enumerate(self.row_of[index]) if not self.read(int(row), buffers[i].data)]
        if missing:
            rows[missing] = self.make(index[missing]).to("cpu", self.dtype)
        return rows

    def read(self, row: int, buffer: memoryview) -> bool:
        """Reads a row from its shard into `buffer`. Returns False if that failed; a damaged shard is then made again."""
        shard, row_in_shard = divmod(row, self.per_shard)
        checksum = bytearray(CHECKSUM_BYTES)
        try:
            if shard not in self.handles:
                if len(self.handles) == OPEN_FILES:
                    self.handles.clear()
                self.handles[shard] = FileIO(self.files[shard])
            offset = row_in_shard * (self.row_bytes + CHECKSUM_BYTES)
            length = os.preadv(self.handles[shard].fileno(), [buffer, checksum], offset)
        except OSError:
            self.handles.pop(shard, None)
            return False
        is_complete = length == self.row_bytes + CHECKSUM_BYTES
        sound = is_complete and zlib.crc32(buffer).to_bytes(CHECKSUM_BYTES, "little") == checksum
        if not sound and shard not in self.given_up:
            print(f"{self.files[shard]} ({self.name}) is damaged; it is made again", flush=True)
            del self.handles[shard]
            try:
                self.write(shard)
            except OSError as error:
                self.given_up.add(shard)
                self.report(error)
        return sound

    def rows_of(self, shard: int) -> np.ndarray:
        """The indices of a shard's rows."""
        first = shard * self.per_shard
        return np.arange(first, min(first + self.per_shard, self.count))

    def write(self, shard: int) -> None:
        """Computes and writes a shard. Raises OSError if it cannot be written."""
        chunks: list[bytes] = []
        rows = self.make(self.first[self.rows_of(shard)]).to("cpu", self.dtype).flatten(1)
        for row in rows.contiguous().view(torch.uint8).numpy():
            chunks += [row.tobytes(), zlib.crc32(row.tobytes()).to_bytes(CHECKSUM_BYTES, "little")]
        self.cache.write(self.files[shard], chunks)

    def report(self, error: OSError) -> None:
        """Prints that the cache cannot be written, and what this means."""
        print(f"{self.cache.folder} cannot be written ({error.strerror}); {self.consequence}", flush=True)

    @property
    def consequence(self) -> str:
        """What it means that shards are not written, for messages."""
        return f"{self.name} that are not in it are computed each time they are needed"

    def missing(self) -> list[int]:
        """The shards that do not exist."""
        return [shard for shard, file in enumerate(self.files) if not file.exists()]

    def fill(self) -> None:
        """Computes all missing shards, as long as they fit. First prints how much space they need."""
        random, printed = np.random.default_rng(), False
        try:
            self.cache.prepare()
            while missing := self.missing():
                row_count = sum(len(self.rows_of(shard)) for shard in missing)
                need = row_count * (self.row_bytes + CHECKSUM_BYTES)
                fits, line = self.cache.room(self.name, need, self.consequence)
                if not fits:
                    print(line, flush=True)
                    return
                if not printed:
                    print(line, flush=True)
                    printed = True
                self.write(int(random.choice(missing)))
        except OSError as error:
            self.report(error)
