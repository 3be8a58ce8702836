"""A file of the store that somebody has damaged, and what it was before."""

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
    """It cannot be done to this file now."""


@dataclass
class Damage:
    """`kept`: where the file lies meanwhile, on the same file system: it comes back as it was, its times included."""

    file: Path
    way: str
    kept: Path
    other: Path | None = None  # that it was swapped with
    at: float = field(default_factory=time.time)
    marks: tuple[object, ...] = ()  # what lies there since

    @property
    def is_there(self) -> bool:
        """Nobody has put anything else there since."""
        return self.marks == self.look() and self.file.parent.exists()

    def look(self) -> tuple[object, ...]:
        return tuple(mark(file) for file in (self.file, self.other) if file is not None)

    def restore(self) -> bool:
        """Back to what it was, unless it is something else by now."""
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
    """Damages a file. `others`: those that it may be swapped with. Raises NotPossibleError."""
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
    """What lies in the place of the file. Where that cannot be made, the file is back."""
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
    """What tells a file from another one in its place; an inode alone comes again."""
    try:
        found = file.lstat()
    except OSError:
        return None
    return (found.st_ino,) if stat.S_ISDIR(found.st_mode) else (found.st_ino, found.st_mtime_ns)


def short(file: Path) -> str:
    """With as much of a run's id as a person reads."""
    parts = [part[:6] if re.fullmatch("[0-9a-f]{16}", part) else part for part in file.parts]
    start = max((at for at, part in enumerate(parts) if part == "runs"), default=0)
    return str(Path(*parts[start + 1 :]))
