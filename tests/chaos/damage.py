"""Damage to a file of the store, which can be undone."""

from __future__ import annotations

import re
import shutil
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

WAYS = ("cut in half", "emptied", "{}", "swapped", "a folder", "removed")


class NotPossibleError(Exception):
    """This damage cannot be done to this file now."""


@dataclass
class Damage:
    """A damaged file. `kept` is where the original lies, on the same file system, so that it comes back with its times."""

    file: Path
    way: str
    kept: Path
    other: Path | None = None  # the file that it was swapped with
    at: float = field(default_factory=time.time)
    marks: tuple[object, ...] = ()  # identify what lies there since then

    @property
    def is_there(self) -> bool:
        """Whether what lies there is still what the damage put there."""
        return self.marks == self.look() and self.file.parent.exists()

    def look(self) -> tuple[object, ...]:
        return tuple(mark(file) for file in (self.file, self.other) if file is not None)

    @property
    def left(self) -> Path | None:
        """Of two swapped files, the one that is still as the damage put it there, if the other is something else by now."""
        files = [file for file in (self.file, self.other) if file is not None]
        still = [file for file, put, now in zip(files, self.marks, self.look(), strict=True) if put == now]
        return still[0] if len(files) == 2 and len(still) == 1 else None

    def restore(self) -> bool:
        """Puts the original back, unless another process has put something else there."""
        if not self.is_there:
            return False
        if self.other is not None:
            swap(self.file, self.other, self.kept)
            return True
        if self.file.is_dir():
            shutil.rmtree(self.file)
        self.kept.rename(self.file)
        return True

    def __str__(self) -> str:
        other = f" with {short(self.other)}" if self.other else ""
        return f"{short(self.file)} {self.way}{other}"


def damaged(file: Path, way: str, kept: Path, others: Sequence[Path]) -> Damage:
    """Damages a file. `others` are the files that it may be swapped with. Raises NotPossibleError."""
    try:
        if way == "swapped":
            other = next((one for one in others if one != file and one.is_file()), None)
            if other is None or not file.is_file():
                raise NotPossibleError
            swap(file, other, kept)
            damage = Damage(file, way, kept, other)
        else:
            content = file.read_bytes()
            kept.parent.mkdir(exist_ok=True)
            file.rename(kept)
            damage = Damage(file, way, kept)
            put(damage, content)
    except OSError:
        raise NotPossibleError from None
    damage.marks = damage.look()
    return damage


def put(damage: Damage, content: bytes) -> None:
    """Writes the damaged version in the place of the file. If that fails, the original is put back."""
    file = damage.file
    try:
        match damage.way:
            case "cut in half":
                file.write_bytes(content[: len(content) // 2])
            case "emptied":
                file.write_bytes(b"")
            case "{}":
                file.write_bytes(b"{}")
            case "a folder":
                file.mkdir()
    except OSError:
        damage.kept.replace(file)
        raise


def swap(one: Path, other: Path, aside: Path) -> None:
    aside.parent.mkdir(exist_ok=True)
    one.rename(aside)
    try:
        other.rename(one)
    except OSError:
        aside.rename(one)
        raise
    aside.rename(other)


def mark(file: Path) -> object:
    """What distinguishes a file from another in its place; the inode alone would not do, because inodes are reused."""
    try:
        found = file.lstat()
    except OSError:
        return None
    return (found.st_ino,) if stat.S_ISDIR(found.st_mode) else (found.st_ino, found.st_mtime_ns)


def short(file: Path) -> str:
    """The path from the store on, with only the first characters of a run's id."""
    parts = [part[:6] if re.fullmatch("[0-9a-f]{16}", part) else part for part in file.parts]
    start = max((at for at, part in enumerate(parts) if part == "runs"), default=0)
    return str(Path(*parts[start + 1 :]))
