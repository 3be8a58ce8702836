"""Staging: what runs read, copied to a node's own disk, where all jobs of one user on that node find it.

    $TMPDIR/mmprompt-UID/CHECKSUM/NAME        /tmp where TMPDIR is not set

There are no locks: a copy is made aside and renamed into place, and at worst it is made twice. It is used only if its
fingerprint is the one that was asked for and its folder nobody else's. What cannot be staged is read from where it is.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from mmprompt.runs.files import draft_of, remove, server_time
from mmprompt.runs.fingerprint import fingerprint

ABANDONED = 3600.0  # seconds after which a copy that was being made belongs to nobody


def staged(file: Path, checksum: str) -> Path:
    """The copy on this node's disk of the file that has this fingerprint. The file itself, and a line that says why, if there
    can be none."""
    folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"mmprompt-{os.getuid()}"
    copy = folder / checksum / file.name
    try:
        _keep_private(folder)
        if not copy.is_file() or fingerprint(copy) != checksum:
            copy.parent.mkdir(exist_ok=True)
            _copy(file, copy, checksum)
    except OSError as error:
        print(f"data.stage=true, but {folder} takes no copy ({error.strerror}): {file} is read where it is", flush=True)
        return file
    return copy


def _keep_private(folder: Path) -> None:
    """Makes it. Raises OSError if somebody else made it, or may write to it: anybody may make a folder in /tmp."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it is not a folder of this user alone") from None


def _copy(file: Path, copy: Path, checksum: str) -> None:
    """Complete and right, or not at all. Raises OSError."""
    now = server_time(copy.parent)
    for left in copy.parent.glob(".*"):
        if now - left.stat().st_mtime > ABANDONED:
            remove(left)
    need, free = file.stat().st_size, shutil.disk_usage(copy.parent).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{need / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free")
    draft = draft_of(copy)
    try:
        shutil.copyfile(file, draft)
        if fingerprint(draft) != checksum:
            raise OSError(errno.EIO, "the file is not the one that was there at launch")
        draft.rename(copy)
    finally:
        draft.unlink(missing_ok=True)
