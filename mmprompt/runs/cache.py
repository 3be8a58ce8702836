"""The cache of a store: a folder, STORE/cache, of what can be computed again, and its maximal size.

Any file in it may be deleted at any time. Part of the light half of the package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmprompt.runs.files import draft_of, make_folder, remove_abandoned, share

ABANDONED = 86_400.0  # seconds after which an unfinished file is taken to be left by a killed process, and is removed


@dataclass(frozen=True)
class Cache:
    """A folder and its maximal size."""

    folder: Path
    max_gb: float

    @property
    def used(self) -> int:
        """The size of all files in the folder, in bytes."""
        total = 0
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_size
        return total

    def prepare(self) -> None:
        """Makes the folder, and removes unfinished files of killed processes. Raises OSError."""
        make_folder(self.folder)
        remove_abandoned(self.folder, ABANDONED)

    def room(self, name: str, size: int, consequence: str) -> tuple[bool, str]:
        """Whether `size` more bytes fit into the folder and on its disk, and a line that says so. Raises OSError.

        `name`: what they are. `consequence`: what it means if they do not fit.
        """
        need, used, free = size / 1e9, self.used / 1e9, shutil.disk_usage(self.folder).free / 1e9
        line = f"{name}: {need:.3g} GB, the cache has {used:.3g} of {self.max_gb:g} GB"
        if used + need <= self.max_gb and need <= free:
            return True, line
        line += f" and its disk {free:.3g} GB free, so they are not kept: raise cache.max_gb, or make room"
        return False, f"{line} in {self.folder}; {consequence}"

    def write(self, file: Path, chunks: Sequence[bytes]) -> None:
        """Writes a file. It appears only when it is complete. Raises OSError."""
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


def distinct(examples: Iterable[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers what is different among examples, in the order in which it comes first.

    Returns for each different example the index of the first such, and for each example its number.
    """
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    number_of: list[int] = []
    for index, example in enumerate(examples):
        number = numbers.setdefault(example, len(numbers))
        if number == len(first):
            first.append(index)
        number_of.append(number)
    return np.array(first, np.int64), np.array(number_of, np.int64)
