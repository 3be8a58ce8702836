"""A live table: below permanent lines a terminal shows a table that is redrawn in place; a log gets a status line now and then."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Sequence

from rich.cells import cell_len, set_cell_size

LOG_INTERVAL = 60.0  # seconds between two status lines in a log; it doubles after each line until a run finishes
MAX_LOG_INTERVAL = 960.0  # seconds
# Rows that a table has even on a low terminal. A table below permanent lines has no more, so that they stay in sight.
MIN_ROWS = 8
UNLIMITED = 10_000  # columns or lines: more than any terminal has
GAP = 2  # columns between two cells
UP, CLEAR_LINE, CLEAR_BELOW = "\x1b[A", "\x1b[K", "\x1b[J"  # clear to the end of the line; to the end of the terminal
MIN_CELL_WIDTH = 4  # columns that every cell keeps on a terminal that is too narrow for the table


def confirm(question: str) -> bool:
    """Asks a yes-or-no question once, on a terminal. Returns True without asking if there is no terminal, or with YES=1."""
    if os.environ.get("YES") == "1" or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


class LiveTable:
    """Prints permanent lines, and a table below them that is redrawn in place.

    On a terminal that can move its cursor the new table overwrites the old one in a single write, so that nothing flickers.
    """

    def __init__(self) -> None:
        self._can_redraw = sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown")
        self._drawn: list[str] = []  # the lines of the table that the terminal shows
        self._last_logged, self._log_interval = time.monotonic(), LOG_INTERVAL

    def __enter__(self) -> LiveTable:
        return self

    def __exit__(self, *error: object) -> None:
        self._write([], [])

    def print_line(self, text: str) -> None:
        """Prints a permanent line above the table."""
        self._write(text.splitlines(), self._drawn)
        self._log_interval = LOG_INTERVAL

    def show(self, draw: Callable[[int, int], Sequence[str]], sentence: str) -> None:
        """Redraws the table on a terminal; in a log prints `sentence`, now and then.

        `draw` returns the table's lines for a terminal of this many columns and rows.
        """
        if self._can_redraw:
            table = list(draw(*shutil.get_terminal_size()))
            if table != self._drawn:
                self._write([], table)
        elif time.monotonic() - self._last_logged >= self._log_interval:
            self._write([sentence], [])
            self._last_logged, self._log_interval = time.monotonic(), min(2 * self._log_interval, MAX_LOG_INTERVAL)

    def _write(self, permanent: Sequence[str], table: Sequence[str]) -> None:
        """Replaces the table on the terminal by permanent lines and the new table below them."""
        up = f"\r{UP * (len(self._drawn) - 1)}" if self._drawn else ""
        erase = CLEAR_LINE if self._can_redraw else ""
        text = up + "".join(f"{line}{erase}\n" for line in permanent) + f"{erase}\n".join(table)
        print(text + (CLEAR_BELOW if self._can_redraw else ""), end="", flush=True)
        self._drawn = list(table)


def align_columns(
    cells: Sequence[Sequence[str]], widths: Sequence[int], width: int, right: Collection[int] = ()
) -> list[str]:
    """Rows of cells as lines of at most `width` columns; a wider table gets its widest columns cut.

    `widths`: the width of each column; `right`: the indices of the columns that are aligned to the right (numbers).
    """
    widths = list(widths)
    while sum(widths) + GAP * len(widths) > width and max(widths) > MIN_CELL_WIDTH:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in cells:
        fitting = [_fit_cell(cell, width, i in right) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append("".join(f"{' ' * GAP}{cell}" for cell in fitting).rstrip())
    return lines


def fit_to_terminal(lines: Sequence[str], width: int, height: int | None) -> list[str]:
    """The lines that fit a terminal, each cut to its width; one row is kept free for the cursor. `height` None: no limit."""
    return [truncate(line, width - 1) for line in lines[: max(1, (height or UNLIMITED) - 1)]]


def truncate(line: str, width: int) -> str:
    """The line, cut to at most `width` columns."""
    return set_cell_size(line, min(cell_len(line), width))


def _fit_cell(cell: str, width: int, is_right: bool) -> str:
    if cell_len(cell) > width:
        return f"{set_cell_size(cell, width - 1)}~"
    return " " * (width - cell_len(cell)) + cell if is_right else set_cell_size(cell, width)


def shorten_keys(keys: Sequence[str]) -> list[str]:
    """The shortest ends of dotted keys that still tell them apart: `length` for `prompt.length`."""
    parts = {key: key.split(".") for key in keys}

    def end(key: str, length: int) -> str:
        return ".".join(parts[key][-length:])

    def shortest(key: str) -> str:
        others = [other for other in keys if other != key]
        lengths = range(1, len(parts[key]) + 1)
        return next((end(key, n) for n in lengths if all(end(key, n) != end(other, n) for other in others)), key)

    return [shortest(key) for key in keys]
