"""The screen: lines that stay, and below them a few that change. In a log nothing moves: one line now and then."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text

QUIET = 60.0  # seconds between two lines in a log while nothing finishes
ROWS = 8  # of running runs, on a terminal


class Screen:
    def __init__(self) -> None:
        self.console = console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._spoken = time.monotonic()

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text)
        self._spoken = time.monotonic()

    def now(self, summary: str, rows: Sequence[str]) -> None:
        """How things stand at this moment."""
        if self._live is not None:
            more = [f"  and {len(rows) - ROWS} more"] if len(rows) > ROWS else []
            text = "\n".join([summary, *(f"  {row}" for row in rows[:ROWS]), *more])
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif time.monotonic() - self._spoken >= QUIET:
            self.line("; ".join([summary, *rows[:1]]))
