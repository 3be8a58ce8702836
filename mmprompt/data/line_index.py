"""The index of a file of examples: where each column of each line begins and ends, how large each image is, and its hash.

n lines, k columns that are read. A file is scanned once by one process of a store, from its beginning to its end; the index is kept
in the store's cache, and the others wait for it. It takes 100 to 200 bytes for each line.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmprompt.data.encoded_image import HASH, UNREADABLE, hashes, size_of
from mmprompt.families.lines import DataError, Texts
from mmprompt.runs.files import StoreError, remove, write_over
from mmprompt.runs.turn import Tell, in_turn

LARGE = 1e9  # bytes; before a larger file is scanned, a line says so
BLOCK = 4 << 20  # bytes that are read at once, unless a line is longer

Check = Callable[[Texts, tuple[int, int]], object]  # texts of a line, width and height of its image; raises DataError
STORED = {"spans": "spans", "sizes": "sizes", "digests": "looks"}  # an index's arrays: field and name on disk


@dataclass(frozen=True)
class Index:
    spans: np.ndarray  # n k 2, offsets in the file at which each column begins and ends
    sizes: np.ndarray  # n 2, width and height in pixels
    digests: np.ndarray  # n 32, sha256 of the image's base64 text

    def __len__(self) -> int:
        return len(self.spans)


def indexed(file: Path, columns: Mapping[str, int], check: Check, index_file: Path | None) -> Index:
    """The index of a file: read from `index_file` if that exists, otherwise made by scanning the file, and written there.

    If another process of the store is scanning the file, its index is waited for. Raises DataError for the first line that is not
    valid.
    """
    if index_file is None:
        return scan(file, columns, check)
    make = partial(scanned_and_written, file, columns, check, index_file)
    return in_turn(index_file, f"{file} is scanned", partial(read_index, index_file), make)


def scanned_and_written(file: Path, columns: Mapping[str, int], check: Check, index_file: Path, tell: Tell) -> Index:
    index = scan(file, columns, check, tell)
    content = io.BytesIO()
    np.savez(content, **{STORED[name]: array for name, array in vars(index).items()})
    try:
        write_over(index_file, with_hash(content.getbuffer()))
    except StoreError as error:
        print(f"{error}; each process will scan {file} again", flush=True)
    return index


def scan(file: Path, columns: Mapping[str, int], check: Check, tell: Tell = lambda share: None) -> Index:
    """Reads the whole file, checks each line and makes the file's index. Raises DataError for the first line that is not valid.

    What takes most of the time is sha256 of the images. Several threads hash the images of a block where it was read to.
    """
    scanned, total = Scanned(file, columns, check), file.stat().st_size
    if total > LARGE:
        print(f"{file}: {total / 1e9:.3g} GB are scanned, once", flush=True)
    with file.open("rb", buffering=0) as stream:
        for block, end, offset in blocks(stream):
            scanned.add(block, end, offset)
            tell((offset + end) / total)
    return scanned.index()


class Scanned:
    """What has been read of a file so far."""

    def __init__(self, file: Path, columns: Mapping[str, int], check: Check) -> None:
        self.file, self.columns, self.check = file, columns, check
        self.image, self.least = columns["image"], max(columns.values()) + 1
        self.spans, self.sizes, self.digests = array("q"), array("q"), bytearray()  # as in an index
        self.known_sizes: dict[bytes, tuple[int, int]] = {}  # by digest, because many lines have the same image
        self.count = 0  # of the columns of each line

    def add(self, block: bytearray, end: int, offset: int) -> None:
        """Adds the lines of a block. Raises DataError for the first that is not valid."""
        lines, view, number = list(split(block, end)), memoryview(block), len(self.sizes) // 2
        bounds = (starts[self.image : self.image + 2] for starts in lines)
        images = [view[pair[0] : pair[1] - 1] if len(pair) == 2 else view[:0] for pair in bounds]
        for starts, image, digest in zip(lines, images, hashes(images), strict=True):
            number += 1
            self.count = self.count or len(starts) - 1
            if len(starts) - 1 < self.least or len(starts) - 1 != self.count:
                raise DataError(f"{self.file}, line {number} has {self.wrong_count(len(starts) - 1)}")
            try:
                if digest not in self.known_sizes:
                    self.known_sizes[digest] = size_of(bytes(image))
                size, texts = self.known_sizes[digest], {}
                for name, column in self.columns.items():
                    begin, stop = starts[column], starts[column + 1] - 1
                    self.spans.append(offset + begin)
                    self.spans.append(offset + stop)
                    if column != self.image:
                        texts[name] = block[begin:stop].decode()
                self.check(texts, size)
            except DataError as error:
                raise DataError(f"{self.file}, line {number}: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{self.file}, line {number} is not UTF-8: {error}") from None
            except UNREADABLE as error:
                raise DataError(f"{self.file}, line {number}: its image cannot be read: {error}") from None
            self.sizes.extend(size)
            self.digests += digest

    def wrong_count(self, count: int) -> str:
        """What is wrong with a line of so many columns, for messages."""
        if count >= self.least:
            return f"{count} columns; the lines before it have {self.count}"
        name, column = next((name, column) for name, column in self.columns.items() if column >= count)
        return f"{count} columns, so there is no column {column} (counted from 0; task.data.columns.{name})"

    def index(self) -> Index:
        """The index of all that was added. Raises DataError if there is none."""
        if not self.digests:
            raise DataError(f"{self.file} is empty; wanted: a line for each example")
        spans, sizes = np.frombuffer(self.spans, np.int64), np.frombuffer(self.sizes, np.int64)
        digests = np.frombuffer(self.digests, np.uint8)
        return Index(spans.reshape(-1, len(self.columns), 2), sizes.reshape(-1, 2), digests.reshape(-1, HASH))


def blocks(stream: io.FileIO) -> Iterator[tuple[bytearray, int, int]]:
    """Reads a file in blocks of whole lines: a buffer, how much of it is filled, and its offset in the file.

    The buffer is used again for the next block.
    """
    block, kept, offset = bytearray(BLOCK), 0, 0
    while read := stream.readinto(memoryview(block)[kept:]):
        end = block.rfind(b"\n", kept, kept + read) + 1
        kept += read
        if end:
            yield block, end, offset
            block[: kept - end] = block[end:kept]
            kept, offset = kept - end, offset + end
        elif kept == len(block):
            block = block + bytes(len(block))
    if kept:  # the last line has no end
        yield block, kept, offset


def split(block: bytearray, end: int) -> Iterator[list[int]]:
    """For each line, where its columns begin, and where one more would."""
    begin = 0
    while begin < end:
        newline = block.find(b"\n", begin, end)
        stop = after = end if newline < 0 else newline + 1
        while stop > begin and block[stop - 1] in b"\r\n":
            stop -= 1
        starts, tab = [begin], block.find(b"\t", begin, stop)
        while tab >= 0:
            starts.append(tab + 1)
            tab = block.find(b"\t", tab + 1, stop)
        yield [*starts, stop + 1]
        begin = after


def with_hash(content: bytes | memoryview) -> bytes:
    """The content with its sha256 before it."""
    return hashlib.sha256(content).digest() + content


def read_index(index_file: Path) -> Index | None:
    """Reads a stored index. Returns None if there is none. One that is damaged is removed; the caller then makes it again."""
    try:
        data = index_file.read_bytes()
    except OSError:
        return None
    content = memoryview(data)[HASH:]
    if with_hash(content) != data:
        print(f"{index_file} is damaged; it is made again", flush=True)
        remove(index_file)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return Index(**{name: arrays[stored] for name, stored in STORED.items()})
