"""OFA's files of examples: tab-separated lines; one column is an image (facts 5.1).

Single lines are read when they are used, so that of a file of 100 GB only its index (`mmprompt.data.line_index`) is in memory.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from mmprompt.data import encoded_image
from mmprompt.data.encoded_image import UNREADABLE
from mmprompt.data.line_index import Index
from mmprompt.families.lines import DataError


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
            return encoded_image.pixels(self.column(line, "image"), side)
        except (DataError, *UNREADABLE) as error:
            raise DataError(f"{self.file}, line {line + 1}: its image cannot be read: {error}") from None
