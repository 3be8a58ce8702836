"""Reports of sweeps as lines for a person: a sentence and a table for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mmprompt.runs.store import Store
from sweeps.display.live_table import FEWEST, WIDE, aligned, fitted, short
from sweeps.display.report import ORDER, SweepStatus, together

NUMBERS = 5  # columns at the end
SHORTEST = 4  # characters of a run's id


def drawn_page(store: Store, reports: Sequence[SweepStatus], width: int, height: int) -> list[str]:
    """Below lines that stay, on a terminal of so many columns and rows: low, so that these are seen. Of several sweeps those
    have a table at which somebody is."""
    names = short_names(store, reports)
    busy = [one for one in reports if any(line.state == "running" for line in one.lines)] or reports
    rows = max(1, min(FEWEST, (height - len(reports) - 2) // max(1, len(busy)) - 2))
    tables = [[str(one), *(table(one, names, rows, width, False) if one in busy else [])] for one in reports]
    return fitted([*together(reports), *(line for lines in tables for line in lines)], width, height)


def rows_of(height: int | None, tables: int, more: int) -> int:
    """How many rows each of the tables has place for, beside so many `more` lines."""
    return WIDE if height is None else max(FEWEST, (height - more) // max(1, tables) - 3)


def table(report: SweepStatus, names: Mapping[str, str], rows: int, width: int, is_whole: bool) -> list[str]:
    """A head and a row for each run, those at work first; those that have no place are counted."""
    lines = sorted(report.lines, key=lambda line: line.rank)
    if len(lines) > rows:
        always = sum(line.rank < ORDER.index("queued") for line in lines) if is_whole else 0
        lines = lines[: max(rows, always)]
    axes = list(dict.fromkeys(axis for one in report.launched.differences.values() for axis in one))
    differences = report.launched.differences
    head = ["run", *short(axes), "state", "job", "node", "attempt", "step", report.metric, "elapsed", "left"]
    body = [[names[line.run], *(differences[line.run].get(axis, "") for axis in axes), *line.cells] for line in lines]
    used = [i for i in range(len(head)) if any(row[i] for row in body)]
    cells = [[row[i] for i in used] for row in [head, *body]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [at for at, i in enumerate(used) if i >= len(head) - NUMBERS]
    left = Counter(line.state for line in report.lines)
    left.subtract(line.state for line in lines)
    more = ", ".join(f"{left[name]} {name}" for name in ORDER if left[name])
    return [*aligned(cells, widths, width - 1, numbers), *([f"  and {more}"] if more else [])]


def short_names(store: Store, reports: Sequence[SweepStatus]) -> dict[str, str]:
    """What to call each run on the command line: as much of its id as no other run of the store has."""
    ids = store.runs() | {line.run for one in reports for line in one.lines}
    length = next(n for n in range(SHORTEST, 65) if len({run[:n] for run in ids}) == len(ids))
    return {run: run[:length] for run in ids}
