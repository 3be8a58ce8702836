"""The screen: lines that stay, and below them a table that changes. In a log nothing moves: one line now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence

from rich.cells import cell_len, set_cell_size

QUIET = 60.0  # seconds between two lines in a log that say how things stand; twice as long after each, while nothing finishes
QUIETEST = 960.0  # seconds; at most
FEWEST = 8  # rows of a table, however low the terminal; and no more, where lines that stay shall be seen above it
WIDE = 10_000  # columns or lines, where nobody's terminal ends
GAP = 2  # columns between two cells
UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[A", "\x1b[K", "\x1b[J"  # to the end of the line; of the screen
NARROW = 4  # columns that a cell keeps when the terminal is too narrow for all


def confirmed(question: str) -> bool:
    """Asks once, on a terminal. Where nobody can answer, and with YES=1, it is agreed."""
    if os.environ.get("YES") == "1" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


class LiveTable:
    """On a terminal that can move its cursor, each picture is written over the last one, in one piece: nothing flickers."""

    def __init__(self) -> None:
        self._moves = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")
        self._drawn: list[str] = []  # the lines of the table as it stands there
        self._spoken, self._quiet = time.monotonic(), QUIET

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *error: object) -> None:
        self._write([], [])

    def line(self, text: str) -> None:
        """A line that stays."""
        self._write(text.splitlines(), self._drawn)
        self._quiet = QUIET

    def show(self, lines: Callable[[int, int], Sequence[str]], sentence: str) -> None:
        """The lines that fit a terminal of so many columns and rows; in a log the sentence, now and then."""
        if self._moves:
            drawn = list(lines(*shutil.get_terminal_size()))
            if drawn != self._drawn:
                self._write([], drawn)
        elif time.monotonic() - self._spoken >= self._quiet:
            self._write([sentence], [])
            self._spoken, self._quiet = time.monotonic(), min(2 * self._quiet, QUIETEST)

    def _write(self, stay: Sequence[str], table: Sequence[str]) -> None:
        """Lines that stay, and the table below them, in place of the table that is there."""
        up = f"\r{UP * (len(self._drawn) - 1)}" if self._drawn else ""
        erase = CLEAR_LINE if self._moves else ""
        text = up + "".join(f"{line}{erase}\n" for line in stay) + f"{erase}\n".join(table)
        print(text + (CLEAR_BELOW if self._moves else ""), end="", flush=True)
        self._drawn = list(table)


def aligned(
    cells: Sequence[Sequence[str]], widths: Sequence[int], width: int, right: Collection[int] = ()
) -> list[str]:
    """The cells as lines of at most `width`, the columns of numbers to the `right`. The widest are cut if need be."""
    widths = list(widths)
    while sum(widths) + GAP * len(widths) > width and max(widths) > NARROW:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in cells:
        fitted = [_fitted(cell, width, i in right) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("".join(f"{' ' * GAP}{cell}" for cell in fitted).rstrip())
    return lines


def fitted(lines: Sequence[str], width: int, height: int | None) -> list[str]:
    """Those that a terminal has place for, and a line below them for the cursor."""
    return [cut(line, width - 1) for line in lines[: max(1, (height or WIDE) - 1)]]


def cut(line: str, width: int) -> str:
    """A line that fits."""
    return set_cell_size(line, min(cell_len(line), width))


def _fitted(cell: str, width: int, is_right: bool) -> str:
    if cell_len(cell) > width:
        return f"{set_cell_size(cell, width - 1)}~"
    return " " * (width - cell_len(cell)) + cell if is_right else set_cell_size(cell, width)


def short(keys: Sequence[str]) -> list[str]:
    """The ends of dotted keys, as long as they have to be to differ: `prompt.length` as `length`."""
    parts = {key: key.split(".") for key in keys}

    def end(key: str, length: int) -> str:
        return ".".join(parts[key][-length:])

    def shortest(key: str) -> str:
        others = [other for other in keys if other != key]
        lengths = range(1, len(parts[key]) + 1)
        return next((end(key, n) for n in lengths if all(end(key, n) != end(other, n) for other in others)), key)

    return [shortest(key) for key in keys]
