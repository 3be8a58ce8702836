"""How files are written into a store that several processes, hosts and Unix users share: whole, or not at all.

What begins with a dot is not finished. What is made has the group and the permissions of the folder it lies in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path


class StoreError(RuntimeError):
    """The store cannot be read or written as needed. The message names the path and the reason."""


def write_once(path: Path, content: str | bytes | memoryview) -> bool:
    """Put a complete file in place unless one is there. True if it was ours. Raises StoreError if it cannot be written."""
    return _write(path, content.encode() if isinstance(content, str) else content, os.link)


def write_over(path: Path, content: str | bytes | memoryview) -> None:
    """Replace a file in one step. Readers see the old one or the new one. Raises StoreError if it cannot be written."""
    _write(path, content.encode() if isinstance(content, str) else content, os.replace)


def _write(path: Path, content: bytes | memoryview, put: Callable[[Path, Path], None]) -> bool:
    """Writes aside, to the disk, and puts it in place. False if `put` finds a file there."""
    try:
        make_folder(path.parent)
        draft = draft_of(path)
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                share(draft)
                os.fsync(file.fileno())
            put(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    return True


def draft_of(path: Path) -> Path:
    """A name of its own beside `path`, for what shall be renamed to it once it is complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """An empty folder to prepare `folder` in and to rename to it, which fails if that is there and holds anything.

    Raises OSError if it cannot be made.
    """
    draft = draft_of(folder)
    make_folder(draft)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes it, and those above it, where they are missing. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            share(folder)


def share(made: Path) -> None:
    """Gives what we have made the group and the permissions of the folder it lies in, whatever the umask is.

    Not in a folder that everyone may write to, such as /tmp: what is made there is for the one who made it, by his umask.
    """
    here, folder = made.stat(), made.parent.stat()
    if folder.st_mode & stat.S_IWOTH:
        return
    mode = folder.st_mode & (0o2777 if stat.S_ISDIR(here.st_mode) else 0o666)
    with contextlib.suppress(PermissionError):  # not a member of the group; a disk without owners
        if here.st_gid != folder.st_gid:
            os.chown(made, -1, folder.st_gid)
        if stat.S_IMODE(here.st_mode) != mode:
            made.chmod(mode)


def follow_mode(store: Path) -> None:
    """Sets this process's umask to what the store's permissions say: W&B, submitit and SLURM go by it in what they write.

    Of a store that is not there yet, to those of the folder it will lie in. Raises StoreError if we may not look into it.
    """
    store = store.absolute()
    try:
        folder = next(folder for folder in (store, *store.parents) if folder.is_dir())
        mode = folder.stat().st_mode
        if folder == store:
            os.scandir(store).close()
    except OSError as error:
        raise StoreError(f"the store {store} cannot be read: {error.strerror}") from error
    if not mode & stat.S_IWOTH:
        os.umask(~mode & 0o077)


def remove(file: Path) -> None:
    """A file that nobody needs; one that cannot be removed stays."""
    with contextlib.suppress(OSError):
        file.unlink()
