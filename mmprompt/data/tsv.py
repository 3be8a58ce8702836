"""OFA's files of examples: tab-separated lines; one column is an image, a JPEG or PNG in base64, url-safe or not (facts 5.1).

n lines, k columns that are read. A file is scanned once, line by line, to make its index: where each column of each line begins
and ends, how large each image is, and the image's hash. After that single lines are read when they are used, so that of a file
of 100 GB only the index is in memory, 100 to 200 bytes for each line.
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
from PIL import Image, ImageFile, UnidentifiedImageError

from mmprompt.families.lines import DataError, Texts
from mmprompt.runs.files import StoreError, write_over

HASH = hashlib.sha256().digest_size
# A JPEG that ends too early is read as far as it goes, the rest is grey, as in the published code: the scan sees only its header,
# and a run of days must not end at an image that finetuning as published takes.
ImageFile.LOAD_TRUNCATED_IMAGES = True
LARGE = 1e9  # bytes; before a larger file is scanned, a line says so

Check = Callable[[Texts, tuple[int, int]], object]  # texts of a line, width and height of its image; raises DataError


STORED = {"spans": "spans", "sizes": "sizes", "digests": "looks"}  # an index's arrays: field and name on disk


@dataclass(frozen=True)
class Index:
    spans: np.ndarray  # n k 2, offsets in the file at which each column begins and ends
    sizes: np.ndarray  # n 2, width and height in pixels
    digests: np.ndarray  # n 32, sha256 of the image's base64 text

    def __len__(self) -> int:
        return len(self.spans)


class Table:
    """A file of examples, read line by line with the help of its index. Lines are numbered from 0."""

    def __init__(self, file: Path, columns: Mapping[str, int], index: Index) -> None:
        self.file, self.names, self.index = file, list(columns), index

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def stream(self) -> io.FileIO:
        return io.FileIO(self.file)

    def column(self, line: int, name: str) -> bytes:
        """The bytes of a column. Raises DataError if the file has become shorter; messages number lines from 1."""
        begin, end = self.index.spans[line, self.names.index(name)].tolist()
        content = os.pread(self.stream.fileno(), end - begin, begin)
        if len(content) != end - begin:
            raise DataError(f"{self.file}, line {line + 1}: the file ends in its column {name}; it was longer before")
        return content

    def texts(self, line: int) -> dict[str, str]:
        """The texts of a line: every column but the image."""
        return {name: self.column(line, name).decode() for name in self.names if name != "image"}

    def size(self, line: int) -> tuple[int, int]:
        """Width and height of a line's image, in pixels."""
        width, height = self.index.sizes[line].tolist()
        return width, height

    def pixels(self, line: int, side: int) -> np.ndarray:
        """The image of a line, side side 3 uint8: resized bicubically, without keeping the aspect ratio (facts 5.5).

        Raises DataError if the image cannot be read.
        """
        try:
            image = opened(self.column(line, "image")).convert("RGB")
            return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        except (DataError, *UNREADABLE) as error:
            raise DataError(f"{self.file}, line {line + 1}: its image cannot be read: {error}") from None


UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for broken images


def opened(text: bytes) -> Image.Image:
    """Opens an image given in base64; its pixels are not decoded yet. Raises one of UNREADABLE."""
    try:
        content = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"{text[:20].decode(errors='replace')}... is not base64 ({error})") from None
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError(f"{content[:8]!r}... begins no image that Pillow knows") from None


def scan(file: Path, columns: Mapping[str, int], check: Check) -> Index:
    """Reads the whole file, checks each line and makes the file's index. Raises DataError for the first line that is not valid."""
    spans, sizes, digests = array("q"), array("q"), bytearray()
    known_sizes: dict[bytes, tuple[int, int]] = {}  # by digest of an image, because many lines have the same image
    begin, first_count = 0, 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            where = f"{file}, line {number}"
            if len(fields) <= max(columns.values()):
                name = next(name for name, column in columns.items() if column >= len(fields))
                raise DataError(
                    f"{where} has {len(fields)} columns, so there is no column {columns[name]} "
                    f"(counted from 0; task.data.columns.{name})"
                )
            first_count = first_count or len(fields)
            if len(fields) != first_count:
                raise DataError(f"{where} has {len(fields)} columns; the lines before it have {first_count}")
            starts = list(accumulate((len(field) + 1 for field in fields), initial=begin))
            for column in columns.values():
                spans.extend((starts[column], starts[column] + len(fields[column])))
            begin += len(line)
            digest = hashlib.sha256(fields[columns["image"]]).digest()
            try:
                if digest not in known_sizes:
                    known_sizes[digest] = opened(fields[columns["image"]]).size
                texts = {name: fields[column].decode() for name, column in columns.items() if name != "image"}
                check(texts, known_sizes[digest])
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8: {error}") from None
            except UNREADABLE as error:
                raise DataError(f"{where}: its image cannot be read: {error}") from None
            sizes.extend(known_sizes[digest])
            digests += digest
    if not digests:
        raise DataError(f"{file} is empty; wanted: a line for each example")
    arrays = np.frombuffer(spans, np.int64), np.frombuffer(sizes, np.int64), np.frombuffer(digests, np.uint8)
    return Index(arrays[0].reshape(-1, len(columns), 2), arrays[1].reshape(-1, 2), arrays[2].reshape(-1, HASH))


def indexed(file: Path, columns: Mapping[str, int], check: Check, index_file: Path | None) -> Index:
    """The index of a file: read from `index_file` if that exists, otherwise made by scanning the file, and written there.

    Raises DataError for the first line that is not valid.
    """
    if index_file is not None and (index := read_index(index_file)) is not None:
        return index
    if file.stat().st_size > LARGE:
        print(f"{file}: {file.stat().st_size / 1e9:.3g} GB are scanned, once", flush=True)
    index = scan(file, columns, check)
    if index_file is not None:
        content = io.BytesIO()
        np.savez(content, **{STORED[name]: array for name, array in vars(index).items()})
        try:
            write_over(index_file, with_hash(content.getbuffer()))
        except StoreError as error:
            print(f"{error}; each process will scan {file} again", flush=True)
    return index


def with_hash(content: bytes | memoryview) -> bytes:
    """The content with its sha256 before it."""
    return hashlib.sha256(content).digest() + content


def read_index(index_file: Path) -> Index | None:
    """Reads a stored index. Returns None if there is none, or if it is damaged; the caller then makes it again."""
    try:
        data = index_file.read_bytes()
    except OSError:
        return None
    content = memoryview(data)[HASH:]
    if with_hash(content) != data:
        print(f"{index_file} is damaged; it is made again", flush=True)
        return None
    with np.load(io.BytesIO(content)) as arrays:
        return Index(**{name: arrays[stored] for name, stored in STORED.items()})
