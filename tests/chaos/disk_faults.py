"""Faults of the disk that a store lies on: for some seconds it is full, cannot be written, or the store cannot be read.

For these the store lies on a disk of its own in memory, which only root can mount. There is one of these faults at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from damage import NotPossibleError
from fault_context import FaultContext

SIZE = "size=1g,nr_inodes=20k,mode=0755"
SPARE = 64 << 10  # bytes that stay free on a full disk


class Disk:
    """A disk in memory, mounted at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def is_mounted(self) -> bool:
        return os.path.ismount(self.folder)

    def mount(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", SIZE, "mmprompt-chaos", self.folder], check=True)

    def unmount(self) -> None:
        for folder in (self.folder / "runs", self.folder):
            while os.path.ismount(folder):
                subprocess.run(["umount", "--lazy", folder], check=True)


class DiskFaults:
    def __init__(self, context: FaultContext, disk: Disk | None) -> None:
        self.context, self.disk, self.store = context, disk, context.subject.store.root
        self.filler = self.store.parent / "filler"
        self.kinds: dict[str, Callable[[], str | None]] = {"permissions are taken": self.forbid}
        if disk:
            self.kinds |= {
                "the disk is full": self.fill,
                "no inodes are left": self.fill_inodes,
                "the disk is read-only": self.read_only,
            }

    def fill(self) -> str | None:
        return self.hurt(self._fill, self.free, "the disk has room again")

    def _fill(self) -> None:
        self.filler.mkdir(exist_ok=True)
        space = os.statvfs(self.store)
        with (self.filler / "file").open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(1, space.f_bfree * space.f_frsize - SPARE))

    def fill_inodes(self) -> str | None:
        return self.hurt(self._fill_inodes, self.free, "there are inodes again")

    def _fill_inodes(self) -> None:
        self.filler.mkdir(exist_ok=True)
        with contextlib.suppress(OSError):
            for number in range(os.statvfs(self.store).f_ffree):
                (self.filler / str(number)).touch()

    def free(self) -> None:
        shutil.rmtree(self.filler, ignore_errors=True)

    def read_only(self) -> str | None:
        """From now on no file can be opened for writing. The kernel refuses this while files on the disk are open for writing."""
        return self.hurt(self._read_only, self.writable, "the disk can be written again")

    def _read_only(self) -> None:
        subprocess.run(["mount", "--bind", self.store, self.store], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", self.store], check=True, stderr=subprocess.DEVNULL)
        except subprocess.CalledProcessError:  # a process has just opened a file there for writing
            self.writable()
            raise NotPossibleError from None

    def writable(self) -> None:
        subprocess.run(["umount", "--lazy", self.store], check=True)

    def forbid(self) -> str | None:
        mode = self.store.stat().st_mode & 0o7777
        wanted = self.context.chance.choice([0o000, 0o500])
        restored = lambda: self.store.chmod(mode)  # noqa: E731
        return self.hurt(
            lambda: self.store.chmod(wanted), restored, "the store's permissions are back", f"{wanted:03o}"
        )

    def hurt(self, how: Callable[[], None], back: Callable[[], None], what: str, detail: str = "") -> str | None:
        """Causes the fault, and plans its end; does nothing if another fault of the disk still lasts."""
        if self.context.repairs.expects("disk: "):
            return None
        try:
            how()
        except NotPossibleError:
            return None
        seconds = self.context.chance.uniform(2, 8)
        self.context.repairs.add(seconds, f"disk: {what}", back)
        return f"for {seconds:.0f} s {detail}".rstrip()
