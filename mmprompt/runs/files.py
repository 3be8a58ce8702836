"""Writes files into a store that several processes, hosts and Unix users share: each file completely or not at all.

Files and folders whose names begin with a dot are unfinished. New ones get the group and the permissions of the folder they lie
in. Part of the light half of the package: no torch, no Hydra.
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

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # errors where hard links are impossible
LOOKS = 9  # how often a folder is listed from which something is removed each time


class StoreError(RuntimeError):
    """The store cannot be read or written as needed. The message names the path and the reason."""


class GoneError(StoreError):
    """A file cannot be written because its folder does not exist any more."""


CHANGING = "if another process is changing these files, try again"
Content = str | bytes | memoryview


def write_once(path: Path, content: Content, make: bool = True) -> bool:
    """Writes a file, completely, unless it exists. Returns whether this call wrote it.

    `make`: make its folder too if that is missing. Raises StoreError if it cannot be written, GoneError if there is no folder.
    """
    return _write(path, content, _link, make)


def write_over(path: Path, content: Content, make: bool = True, durable: bool = True) -> None:
    """Replaces a file in one step. Readers see the old or the new content, with `durable` also after a crash of the machine.

    `make` and the errors are those of `write_once`.
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
    """As os.link, but reliable on a file server. If the server's reply is lost, the client repeats the request and gets the error
    that the file exists. The number of links of the draft then shows whether the first request succeeded."""
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
        with contextlib.suppress(OSError):  # not every file system can do this
            os.fsync(opened)
    finally:
        os.close(opened)


def draft_of(path: Path) -> Path:
    """A unique temporary name beside `path`, to be renamed to `path` when complete."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


@contextlib.contextmanager
def drafted(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder, to be renamed to `folder` when complete. That fails if `folder` exists and is not empty.

    The temporary folder is removed afterwards if it still exists. Raises OSError if it cannot be made.
    """
    draft = draft_of(folder)
    make_folder(draft)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def put_folder(draft: Path, folder: Path, proof: str) -> bool:
    """Renames a prepared folder into place. Returns False if a folder that is not empty exists there. Raises OSError.

    If a file server's reply is lost, the client repeats the request and gets the error that there is no draft. Whether the first
    request succeeded is seen by `proof`, a file in the draft, which was then renamed with it.
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

    In a folder that every user may write to, such as /tmp, they are left as the user's umask makes them.
    """
    here, folder = made.stat(), made.parent.stat()
    if folder.st_mode & stat.S_IWOTH:
        return
    mode = folder.st_mode & (0o2777 if stat.S_ISDIR(here.st_mode) else 0o666)
    with contextlib.suppress(PermissionError):  # the user is not in the group, or the disk has no owners
        if here.st_gid != folder.st_gid:
            os.chown(made, -1, folder.st_gid)
        if stat.S_IMODE(here.st_mode) != mode:
            made.chmod(mode)


def follow_mode(store: Path) -> None:
    """Sets this process's umask by the store's permissions, because W&B, submitit and SLURM create files by the umask.

    If the store does not exist yet, the permissions of the folder that it will lie in count. Raises StoreError if the store is a
    file, or a folder that this user may not read.
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
    """The message for a file that has been removed, or whose permissions have changed, since it was found."""
    return f"{error.filename}: {error.strerror}; {CHANGING}"


def server_time(folder: Path) -> float:
    """The present time on the clock that dates the files in this folder, which may be another machine's. It is used for file ages.

    If no file can be made in the folder, it is the time on this machine's clock.
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


def matching(folder: Path, pattern: str) -> list[Path]:
    """What matches a pattern in a folder, sorted; nothing if the folder is not there.

    Other processes may remove it at any moment: `Path.glob` looks whether a folder is there, and then lists it.
    """
    for _ in range(LOOKS):
        with contextlib.suppress(FileNotFoundError):  # removed between the two; the next time it is not found
            return sorted(folder.glob(pattern))
    return []


def remove(file: Path) -> None:
    """Removes a file that is not needed. If it cannot be removed, it stays."""
    with contextlib.suppress(OSError):
        file.unlink()


def remove_abandoned(folder: Path, seconds: float) -> None:
    """Removes unfinished files older than `seconds`, which killed processes have left.

    Other processes may finish or remove theirs meanwhile.
    """
    now = server_time(folder)
    for file in matching(folder, ".*"):
        with contextlib.suppress(OSError):
            if now - file.stat().st_mtime > seconds:
                file.unlink()


def is_number(name: str) -> bool:
    """Whether a name is a number, as batches and attempts have. (`str.isdigit` would accept `²`.)"""
    return name.isascii() and name.isdecimal() and len(name) < 10
