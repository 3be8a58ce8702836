"""A snapshot: the copy of our packages that a launch's jobs import, so that editing while they queue changes nothing.

STORE/code/HASH/ holds `mmprompt/` and `sweeps/`; HASH is of the content, so an unchanged tree is copied once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mmprompt.fingerprint import fingerprint
from mmprompt.run import Store, canonical, digest

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


def take(root: Path, store: Store) -> Path:
    """The snapshot of the packages under `root`, made unless it is there."""
    contents = {str(file): fingerprint(root / file) for file in files(root)}
    snapshot = store.code / digest(canonical(contents))
    if snapshot.is_dir():
        return snapshot
    store.code.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=store.code, prefix=".draft."))
    try:
        for file in contents:
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / file, draft / file)
        draft.chmod(0o775)
        draft.rename(snapshot)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not snapshot.is_dir():  # else another launch made the same one first
            raise
    return snapshot


def inside(file: Path, root: Path, snapshot: Path) -> Path:
    """The snapshot's copy of a file of our packages; a file that it does not hold stays itself."""
    copy = snapshot / file.relative_to(root) if file.is_relative_to(root) else file
    return copy if copy.is_file() else file
