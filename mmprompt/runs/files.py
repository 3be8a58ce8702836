"""How files are written into a store that several processes, hosts and Unix users share: whole, or not at all.

What begins with a dot is not finished. What is made has the group and the permissions of the folder it lies in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # what link(2) says where there are none


class StoreError(RuntimeError):
    """The store cannot be read or written as needed. The message names the path and the reason."""


class GoneError(StoreError):
    """The folder of a file that should be written does not exist any more."""


CHANGING = "if somebody is changing these files, try again"
Content = str | bytes | memoryview


def write_once(path: Path, content: Content, make: bool = True) -> bool:
    """Writes a complete file unless it exists. Returns whether this call wrote it.

    `make`: its folder too, if that is missing. Raises StoreError if it cannot be written, GoneError if there is no folder.
    """
    return _write(path, content, _link, make)


def write_over(path: Path, content: Content, make: bool = True, durable: bool = True) -> None:
    """Replaces a file in one step. Readers see the old or the new content, and if `durable` also after a crash of the machine.

    `make`, and what is raised: as `write_once`.
    """
    _write(path, content, os.replace, make, durable)


def _write(path: Path, content: Content, put: Callable[[Path, Path], None], make: bool, durable: bool = True) -> bool:
    """Writes a temporary file to the disk and calls `put` to move it into place. Returns False if `put` finds a file there."""
    draft = draft_of(path)
    try:
        if make:
            make_folder(path.parent)
        try:
            with draft.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                share(draft)
                if durable:
                    os.fsync(file.fileno())
            put(draft, path)
        finally:
            draft.unlink(missing_ok=True)
        if durable:
            sync_folder(path.parent)
    except FileExistsError:
        return False
    except FileNotFoundError as error:
        raise GoneError(f"{path} cannot be written: {path.parent} is not there any more") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    return True


def _link(draft: Path, path: Path) -> None:
    """As os.link. When a file server's answer gets lost, the client repeats the request and is told that the file exists; then
    the inode shows whether it is ours."""
    try:
        os.link(draft, path)
    except FileExistsError:
        if draft.stat().st_nlink == 1:
            raise
    except OSError as error:
        if error.errno in NO_LINKS:
            why = f"{error.strerror}: link(2) is not possible on this file system, and the store needs it"
            raise OSError(error.errno, why) from error
        raise


def sync_folder(folder: Path) -> None:
    """Writes a folder's list of names to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system does that
            os.fsync(opened)
    finally:
        os.close(opened)


def draft_of(path: Path) -> Path:
    """A unique temporary name beside `path`, to be renamed to `path` when complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder, to be renamed to `folder` when complete; that fails if `folder` exists and is not empty.

    Raises OSError if it cannot be made.
    """
    draft = draft_of(folder)
    make_folder(draft)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put_folder(draft: Path, folder: Path, proof: str) -> bool:
    """Renames a prepared folder into place. Returns False if a folder that is not empty exists there. Raises OSError.

    A file server whose answer was lost is asked again, and says that there is no draft: then `proof`, a file of it, is found to
    have been renamed with it.
    """
    mine = (draft / proof).stat()
    try:
        draft.rename(folder)
    except OSError as error:
        if not _is(folder / proof, mine):
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return False
            raise
    sync_folder(folder.parent)
    return True


def _is(file: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(file.stat(), known)
    except OSError:
        return False


def make_folder(folder: Path) -> None:
    """Makes a folder and its missing parents. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            share(folder)
            sync_folder(folder.parent)


def share(made: Path) -> None:
    """Gives a new file or folder the group and the permissions of the folder it lies in, whatever the umask is.

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
    """Sets this process's umask by the store's permissions, because W&B, submitit and SLURM create files by the umask.

    Of a store that is not there yet, to those of the folder it will lie in. Raises StoreError for a file, and for a folder that
    we may not look into.
    """
    store = store.absolute()
    try:
        folder = next(folder for folder in (store, *store.parents) if folder.is_dir())
        mode = folder.stat().st_mode
        if folder != store and store.exists():
            raise StoreError(f"the store {store} is no folder")
        if folder == store:
            os.scandir(store).close()
    except OSError as error:
        raise StoreError(f"the store {store} cannot be read: {error.strerror}") from error
    if not mode & stat.S_IWOTH:
        os.umask(~mode & 0o077)


def vanished(error: OSError) -> str:
    """The message for a file that could be used a moment ago, and was removed or lost its permissions since."""
    return f"{error.filename}: {error.strerror}; {CHANGING}"


def server_time(folder: Path) -> float:
    """Now, by the clock that dates the files in this folder, which may be another machine's. File ages are computed with it.

    Our own clock's where nothing can be made in the folder.
    """
    with contextlib.suppress(OSError):  # a file without a name, which the system removes when it is closed
        made = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            return os.fstat(made).st_mtime
        finally:
            os.close(made)
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(prefix=".", dir=folder) as file:
        return os.stat(file.name).st_mtime
    return time.time()


def remove(file: Path) -> None:
    """Removes a file that is not needed. If it cannot be removed, it stays."""
    with contextlib.suppress(OSError):
        file.unlink()


def is_number(name: str) -> bool:
    """Whether `int` can read it as a count. (`str.isdigit` accepts `²`.)"""
    return name.isascii() and name.isdecimal() and len(name) < 10
