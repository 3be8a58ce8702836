"""OFA's files of examples: tab separated lines; one column is an image, a JPEG or PNG in base64, url-safe or not (facts 5.1).

n lines, k columns that are read. A file is looked through once, line by line: its index says where each column of each line
begins and ends, how large each image is, and what it hashes to. From then on lines are read where they are wanted, so that of a
file of 100 GB nothing is in memory but its index, 100 to 200 bytes for each line.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from mmprompt.families.lines import DataError, Texts
from mmprompt.runs.files import StoreError, write_over

HASH = hashlib.sha256().digest_size
LARGE = 1e9  # bytes; of such a file it is said that it is looked through

Check = Callable[[Texts, tuple[int, int]], object]  # texts of a line, width and height of its image; raises DataError


STORED = {"spans": "spans", "sizes": "sizes", "digests": "looks"}  # an index's arrays by their names on disk


@dataclass(frozen=True)
class Index:
    spans: np.ndarray  # n k 2, first and last byte of each column, counted from the file's beginning
    sizes: np.ndarray  # n 2, width and height in pixels
    digests: np.ndarray  # n 32, sha256 of the image's text

    def __len__(self) -> int:
        return len(self.spans)


class Table:
    """A file, through its index."""

    def __init__(self, file: Path, columns: Mapping[str, int], index: Index) -> None:
        self.file, self.names, self.index = file, list(columns), index

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def stream(self) -> io.FileIO:
        return io.FileIO(self.file)

    def column(self, line: int, name: str) -> bytes:
        """Lines are counted from 0 here, and from 1 in what is said to people."""
        begin, end = self.index.spans[line, self.names.index(name)].tolist()
        got = os.pread(self.stream.fileno(), end - begin, begin)
        if len(got) != end - begin:
            raise DataError(f"{self.file}, line {line + 1}: the file ends in its column {name}; it was longer before")
        return got

    def texts(self, line: int) -> dict[str, str]:
        return {name: self.column(line, name).decode() for name in self.names if name != "image"}

    def size(self, line: int) -> tuple[int, int]:
        width, height = self.index.sizes[line].tolist()
        return width, height

    def pixels(self, line: int, side: int) -> np.ndarray:
        """side side 3 uint8: resized without regard to aspect, bicubic (facts 5.5)."""
        try:
            image = opened(self.column(line, "image")).convert("RGB")
            return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        except (DataError, *UNREADABLE) as error:
            raise DataError(f"{self.file}, line {line + 1}: its image cannot be read: {error}") from None


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken images


def opened(text: bytes) -> Image.Image:
    """The image behind its base64; its pixels are not decoded yet. Raises what is in UNREADABLE."""
    try:
        content = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:20].decode(errors='replace')}... is not base64 ({error})") from None
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"{content[:8]!r}... begins no image that Pillow knows") from None


def scan(file: Path, columns: Mapping[str, int], check: Check) -> Index:
    """Looks through the file. Raises DataError for the first line that is not as it should be."""
    spans, sizes, looks = array("q"), array("q"), bytearray()
    seen: dict[bytes, tuple[int, int]] = {}  # sizes of images: many lines have the same one
    begin, wanted = 0, 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            place = f"{file}, line {number}"
            if len(fields) <= max(columns.values()):
                name = next(name for name, column in columns.items() if column >= len(fields))
                raise DataError(
                    f"{place} has {len(fields)} columns, so there is no column {columns[name]} "
                    f"(counted from 0; task.data.columns.{name})"
                )
            wanted = wanted or len(fields)
            if len(fields) != wanted:
                raise DataError(f"{place} has {len(fields)} columns; the lines before it have {wanted}")
            starts = list(accumulate((len(field) + 1 for field in fields), initial=begin))
            for column in columns.values():
                spans.extend((starts[column], starts[column] + len(fields[column])))
            begin += len(line)
            look = hashlib.sha256(fields[columns["image"]]).digest()
            try:
                if look not in seen:
                    seen[look] = opened(fields[columns["image"]]).size
                check({name: fields[at].decode() for name, at in columns.items() if name != "image"}, seen[look])
            except DataError as error:
                raise DataError(f"{place}: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{place} is not UTF-8: {error}") from None
            except UNREADABLE as error:
                raise DataError(f"{place}: its image cannot be read: {error}") from None
            sizes.extend(seen[look])
            looks += look
    if not looks:
        raise DataError(f"{file} is empty; wanted: a line for each example")
    found = np.frombuffer(spans, np.int64), np.frombuffer(sizes, np.int64), np.frombuffer(looks, np.uint8)
    return Index(found[0].reshape(-1, len(columns), 2), found[1].reshape(-1, 2), found[2].reshape(-1, HASH))


def indexed(file: Path, columns: Mapping[str, int], check: Check, kept: Path | None) -> Index:
    """The index of a file, from `kept` if it lies there, and else made and put there."""
    if kept is not None and (index := read(kept)) is not None:
        return index
    if file.stat().st_size > LARGE:
        print(f"{file}: {file.stat().st_size / 1e9:.3g} GB are looked through once", flush=True)
    index = scan(file, columns, check)
    if kept is not None:
        content = io.BytesIO()
        np.savez(content, **{STORED[name]: array for name, array in vars(index).items()})
        try:
            write_over(kept, hashed(content.getbuffer()))
        except StoreError as error:
            print(f"{error}; {file} is looked through again by each process", flush=True)
    return index


def hashed(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).digest() + content


def read(kept: Path) -> Index | None:
    """None: it is not there, or damaged; then it is made again."""
    try:
        data = kept.read_bytes()
    except OSError:
        return None
    content = memoryview(data)[HASH:]
    if hashed(content) != data:
        print(f"{kept} is damaged; it is made again", flush=True)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return Index(**{name: arrays[stored] for name, stored in STORED.items()})
