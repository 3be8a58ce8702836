"""A file's fingerprint: the part of an id that stands for the file's content, since a path cannot.

sha256 over the size and the content; of files over 256 MiB, over 64 evenly spaced MiB of it.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

MIB = 1 << 20
WHOLE_BELOW = 256 * MIB
SAMPLES = 64


def fingerprint(file: Path) -> str:
    """64 hex digits. Raises OSError if the file cannot be read."""
    status = os.stat(file)
    return _fingerprint(os.fspath(file), status.st_size, status.st_mtime_ns, status.st_ino)


def fingerprints(files: Iterable[Path]) -> str:
    """The fingerprint of several files, in this order."""
    return hashlib.sha256("".join(fingerprint(file) for file in files).encode()).hexdigest()


@cache
def _fingerprint(path: str, size: int, mtime_ns: int, inode: int) -> str:
    total = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= WHOLE_BELOW:
            while block := file.read(MIB):
                total.update(block)
        else:
            for sample in range(SAMPLES):
                file.seek((size - MIB) * sample // (SAMPLES - 1))
                total.update(file.read(MIB))
    return total.hexdigest()
