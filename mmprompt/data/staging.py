"""Staging: copies the files that runs read to the node's own disk, where all jobs of one user on that node find them.

    $TMPDIR/mmprompt-UID/CHECKSUM/NAME        /tmp where TMPDIR is not set

There are no locks: a copy is written under a temporary name and renamed into place, and at worst it is made twice. A copy is
used only if it has the requested fingerprint and its folder belongs to this user alone. A file that cannot be staged is read
from where it is.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from mmprompt.runs.files import draft_of, remove_abandoned
from mmprompt.runs.fingerprint import fingerprint

ABANDONED = 3600.0  # seconds after which an unfinished copy is taken to be left by a killed process, and is removed


def staged(file: Path, checksum: str) -> Path:
    """Returns a copy on this node's disk of `file`, whose fingerprint is `checksum`. The copy is made if need be.

    If no copy can be made, prints a line that says why and returns `file` itself.
    """
    folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"mmprompt-{os.getuid()}"
    copy = folder / checksum / file.name
    try:
        _keep_private(folder)
        if not _is_whole(copy, checksum, folder / "fingerprints"):
            copy.parent.mkdir(exist_ok=True)
            _copy(file, copy, checksum)
    except OSError as error:
        print(f"data.stage=true, but {folder} takes no copy ({error.strerror}): {file} is read where it is", flush=True)
        return file
    return copy


def _keep_private(folder: Path) -> None:
    """Makes the folder if it is not there. Raises OSError if another user made it or has access to it: any user may make a
    folder in /tmp."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise PermissionError(errno.EPERM, "it is not a folder of this user alone") from None


def _is_whole(copy: Path, checksum: str, kept_in: Path) -> bool:
    """Whether the copy is there and has the checksum. Not if another job puts its own there while this one reads."""
    try:
        return fingerprint(copy, kept_in) == checksum
    except OSError:
        return False


def _copy(file: Path, copy: Path, checksum: str) -> None:
    """Copies `file` to `copy`. The copy appears only when it is complete and has the checksum.

    Raises OSError if the disk has no room or cannot be written, or if the file has another checksum.
    """
    remove_abandoned(copy.parent, ABANDONED)
    need, free = file.stat().st_size, shutil.disk_usage(copy.parent).free
    if need > free:
        raise OSError(errno.ENOSPC, f"{need / 1e9:.3g} GB are needed and {free / 1e9:.3g} GB free")
    draft = draft_of(copy)
    try:
        shutil.copyfile(file, draft)
        if fingerprint(draft) != checksum:
            raise OSError(errno.EIO, "the file has changed since launch")
        draft.rename(copy)
    finally:
        draft.unlink(missing_ok=True)
