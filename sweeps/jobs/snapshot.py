"""A snapshot: the copy of our packages that a launch's jobs import, so that editing while they queue changes nothing.

STORE/code/HASH/ holds `mmprompt/` and `sweeps/`; HASH is of the content, so an unchanged tree is copied once.
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
    """What a job may need of our packages, relative to `root`, sorted."""
    found: list[Path] = []
    for package in PACKAGES:
        for folder, folders, names in os.walk(root / package):
            folders[:] = [name for name in folders if not name.startswith((".", "__"))]
            found += [Path(folder, name) for name in names if not name.startswith(".") and not name.endswith(".pyc")]
    return sorted(file.relative_to(root) for file in found if file.stat().st_size <= LARGEST)


def identity(root: Path) -> str:
    """The hash of the packages' content under `root`."""
    return digest(canonical({str(file): fingerprint(root / file) for file in files(root)}))


def take(root: Path, store: Store) -> Path:
    """The snapshot of the packages under `root`, made unless it is there. Raises StoreError if it cannot be made."""
    snapshot = store.code / identity(root)
    with contextlib.suppress(OSError):
        os.utime(snapshot)  # before it is looked at: `clean` puts back what it has just put aside
    if snapshot.is_dir() and identity(snapshot) == snapshot.name:  # scratch file systems remove what is old
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
            if snapshot.is_dir() and identity(snapshot) != snapshot.name:
                snapshot.rename(draft / "incomplete")
            copy.rename(snapshot)
    except OSError as error:
        if snapshot.is_dir() and identity(snapshot) == snapshot.name:  # another launch made the same one first
            return snapshot
        raise StoreError(f"no copy of the packages can be made in {store.code}: {error.strerror}") from error
    return snapshot


def inside(file: Path, root: Path, snapshot: Path) -> Path:
    """The snapshot's copy of a file of our packages; a file that it does not hold stays itself."""
    copy = snapshot / file.relative_to(root) if file.is_relative_to(root) else file
    return copy if copy.is_file() else file
