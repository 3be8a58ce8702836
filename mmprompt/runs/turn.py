"""A turn: one process of a store makes something that takes long, and the others wait for it instead of making it too.

    FOLDER/.NAME.turn        the note of the process that makes FOLDER/NAME

There are no locks of the kernel: not every file server has them. The process whose turn it is writes its note anew every few
seconds. The others wait until the note is gone. If its process is dead, or if the note stays as it is for PATIENCE, one of them
takes the next turn: a process that is killed or stopped, on any host, never blocks the others for good. At worst two processes
make the same thing. Part of the light half of the package.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mmprompt.runs.files import StoreError, remove, write_once, write_over
from mmprompt.runs.processes import is_running, this_process

AGAIN = 2.0  # seconds from one note to the next
PATIENCE = 150.0  # seconds without a new note; a file server's client may show an old one for 60 s
LOOK = 0.5  # seconds between two looks at another's note
QUIET = 30.0  # seconds between two lines about waiting

T = TypeVar("T")
Tell = Callable[[float], None]  # says which share of the work is done, 0 to 1; to be called often


def in_turn(result: Path, doing: str, find: Callable[[], T | None], make: Callable[[Tell], T]) -> T:
    """What `find` finds; if it finds nothing, what `make` makes, by one process at a time.

    `result`: the file that `make` writes and `find` reads; the note lies beside it. `doing`: what `make` does, for messages such as
    "a.tsv is scanned". If no note can be written, this process makes it without waiting. An error of `make` ends its turn, and the
    next process takes one.
    """
    note = Note(result.with_name(f".{result.name}.turn"), doing)
    while (found := find()) is None:
        try:
            if not note.begin():
                note.wait_for_another()
                continue
        except StoreError:
            return make(lambda share: None)
        try:
            found = find()  # another may have made it since
            return make(note.tell) if found is None else found
        finally:
            remove(note.file)
    return found


class Note:
    """The note of the process whose turn it is."""

    def __init__(self, file: Path, doing: str) -> None:
        self.file, self.doing, self.written = file, doing, 0.0

    def content(self, share: float) -> str:
        return json.dumps({"process": this_process(), "share": share, "at": time.monotonic_ns()})

    def begin(self) -> bool:
        """Begins this process's turn. Returns False if it is another's. Raises StoreError if no note can be written."""
        begun = write_once(self.file, self.content(0.0))
        self.written = time.monotonic()
        return begun

    def tell(self, share: float) -> None:
        """Writes the note anew, if the last one is old enough. `share`: of the work that is done, 0 to 1."""
        if time.monotonic() - self.written > AGAIN:
            self.written = time.monotonic()
            try:
                write_over(self.file, self.content(share), make=False, durable=False)
            except StoreError:
                return  # the others may take it for dead, and make the same

    def wait_for_another(self) -> None:
        """Waits until the other's turn is over, and says how far it is. If it does not go on, removes its note."""
        seen, since, said = b"", time.monotonic(), -QUIET
        while (now := self.read()) is not None:
            if now != seen:
                seen, since = now, time.monotonic()
            process, share = parsed(now)
            is_dead = process is not None and is_running(process) is False
            if is_dead or time.monotonic() - since > PATIENCE:
                why = "has ended" if is_dead else f"has said nothing for {PATIENCE:g} s"
                print(f"{self.doing} by process {named(process)}, which {why}; it is begun again", flush=True)
                if self.read() == now:
                    remove(self.file)
                return
            if time.monotonic() - said > QUIET:
                said = time.monotonic()
                print(f"{self.doing} by process {named(process)}, {share:.0%} so far; waiting for it", flush=True)
            time.sleep(LOOK)

    def read(self) -> bytes | None:
        """The note as it is now; None if there is none, or if it cannot be read."""
        try:
            return self.file.read_bytes()
        except OSError:
            return None


def parsed(content: bytes) -> tuple[dict[str, Any] | None, float]:
    """The process of a note, and its share of the work; None and 0 if the note is damaged."""
    try:
        note = json.loads(content)
        process = {"host": str, "pid": int, "started": float}
        return note["process"] | {key: kind(note["process"][key]) for key, kind in process.items()}, float(
            note["share"]
        )
    except (ValueError, LookupError, TypeError, RecursionError):
        return None, 0.0


def named(process: dict[str, Any] | None) -> str:
    return "unknown" if process is None else f"{process['pid']} on {process['host']}"
