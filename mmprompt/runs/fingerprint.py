"""A file's fingerprint: the part of an id that stands for the file's content, since a path cannot.

sha256 over the size and every byte. That takes a second for each gigabyte or two, so the fingerprint of a large file is kept in a
folder of the store, with the file's path, size, date and inode, and computed again when one of these differs.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mmprompt.runs.files import StoreError, write_over

BLOCK = 4 << 20  # bytes
LARGE = 256 << 20  # bytes above which a fingerprint is kept
FOLDER = "fingerprints"  # of a store
QUIET = 5.0  # seconds of reading before a line says how far it is, and between two such lines


def fingerprint(file: Path, kept_in: Path | None = None) -> str:
    """64 hex digits. `kept_in`: the folder for the fingerprints of large files; None: they are computed each time.

    Raises OSError if the file cannot be read, or changes meanwhile.
    """
    return _fingerprint(os.path.abspath(file), *_state(os.stat(file)), kept_in)


def fingerprints(files: Iterable[Path], kept_in: Path | None = None) -> str:
    """The fingerprint of several files, in this order."""
    return hashlib.sha256("".join(fingerprint(file, kept_in) for file in files).encode()).hexdigest()


@cache
def _fingerprint(path: str, size: int, mtime_ns: int, inode: int, kept_in: Path | None) -> str:
    if size <= LARGE or kept_in is None:
        return _computed(path, size, mtime_ns, inode)
    facts = {"path": path, "size": size, "mtime_ns": mtime_ns, "inode": inode}
    record = kept_in / f"{hashlib.sha256(path.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    found = _kept(record, facts)
    if found is None:
        found = _computed(path, size, mtime_ns, inode)
        if kept_in.parent.is_dir():  # what only looks at a store makes none
            with contextlib.suppress(OSError, StoreError):  # one that cannot be written costs time, not the answer
                write_over(record, json.dumps({**facts, "fingerprint": found}))
    return found


def _kept(record: Path, facts: Mapping[str, Any]) -> str | None:
    """The kept fingerprint of a file in this state; None if there is none or it is damaged."""
    try:
        kept = json.loads(record.read_bytes())
        found = kept["fingerprint"] if {key: kept[key] for key in facts} == facts else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and len(found) == 64 else None


def _computed(path: str, *state: int) -> str:
    """Reads the whole file. Of one that takes long a line on stderr says how far it is."""
    size, block = state[0], bytearray(BLOCK)
    total, read, said = hashlib.sha256(str(size).encode()), 0, time.monotonic()
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            total.update(memoryview(block)[:count])
            read += count
            if time.monotonic() - said > QUIET:
                said = time.monotonic()
                print(f"{path}: {100 * read // max(size, 1)} % read for its fingerprint", file=sys.stderr, flush=True)
        if _state(os.fstat(file.fileno())) != state:
            raise OSError(f"{path} changes while it is read")
    return total.hexdigest()


def _state(status: os.stat_result) -> tuple[int, int, int]:
    """What differs once a file's content does."""
    return status.st_size, status.st_mtime_ns, status.st_ino
