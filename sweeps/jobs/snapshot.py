"""Makes snapshots: copies of our packages that a launch's jobs import, so that edits while they wait in the queue change nothing.

STORE/code/HASH/ contains `mmprompt/` and `sweeps/`. HASH is the hash of their content, so an unchanged tree is copied once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from mmprompt.runs.files import StoreError, drafted, make_folder, share
from mmprompt.runs.fingerprint import fingerprint
from mmprompt.runs.identity import canonical, digest
from mmprompt.runs.store import Store

PACKAGES = ("mmprompt", "sweeps")
LARGEST = 64 << 20  # bytes; a larger file is a published checkpoint, whose checksum is in the run's id


def files(root: Path) -> list[Path]:
    """Returns the files of our packages that a job may need, relative to `root`, sorted."""
    needed: list[Path] = []
    for package in PACKAGES:
        for folder, folders, names in os.walk(root / package):
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            needed += [Path(folder, name) for name in names if not name.startswith(".") and not name.endswith(".pyc")]
    return sorted(file.relative_to(root) for file in needed if file.stat().st_size <= LARGEST)


def identity(root: Path) -> str:
    """Returns the hash of the packages' content under `root`."""
    return digest(canonical({str(file): fingerprint(root / file) for file in files(root)}))


def take(root: Path, store: Store) -> Path:
    """Returns the snapshot of the packages under `root`, and makes it if it does not exist yet.

    Raises StoreError if it cannot be made.
    """
    snapshot = store.code / identity(root)
    with contextlib.suppress(OSError):
        os.utime(snapshot)  # before reading it: a `clean` that has just moved it away moves it back
    if _is_whole(snapshot):  # scratch file systems remove old files
        return snapshot
    try:
        with drafted(snapshot) as draft:
            copy = draft / "copy"
            for file in files(root):
                make_folder((copy / file).parent)
                shutil.copyfile(root / file, copy / file)
                share(copy / file)
            if identity(copy) != snapshot.name:
                raise StoreError(f"files under {root} were edited while they were copied; launch again")
            if snapshot.is_dir() and not _is_whole(snapshot):
                with contextlib.suppress(FileNotFoundError):
                    snapshot.rename(draft / "incomplete")
            copy.rename(snapshot)
    except OSError as error:
        if _is_whole(snapshot):  # another launch made the same one first
            return snapshot
        raise StoreError(f"no copy of the packages can be made in {store.code}: {error.strerror}") from error
    return snapshot


def _is_whole(snapshot: Path) -> bool:
    """Whether the copy is there, with the content that its name says. Not if `clean` or another launch moves it away while this one
    reads it: what is there afterwards is found when a new copy is put in its place."""
    try:
        return snapshot.is_dir() and identity(snapshot) == snapshot.name
    except FileNotFoundError:
        return False


def inside(file: Path, root: Path, snapshot: Path) -> Path:
    """Returns the snapshot's copy of a file of our packages, or the file itself if the snapshot does not contain it."""
    copy = snapshot / file.relative_to(root) if file.is_relative_to(root) else file
    return copy if copy.is_file() else file
