"""The status of sweeps as lines of text: a sentence and a table for each sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from mmprompt.runs.store import Store
from sweeps.display.live_table import MIN_ROWS, UNLIMITED, align_columns, fit_to_terminal, shorten_keys
from sweeps.display.report import ORDER, SweepStatus, total_time_left

NUMBERS = 5  # columns at the right end of a table that hold numbers
SHORTEST = 4  # characters of a run's id that are always shown


def drawn_page(store: Store, reports: Sequence[SweepStatus], width: int, height: int) -> list[str]:
    """The lines to draw below permanent lines, on a terminal of `width` columns and `height` rows.

    Tables are kept low, so that the permanent lines stay in sight. Of several sweeps only those with a running run have a table.
    """
    names = short_names(store, reports)
    busy = [report for report in reports if any(line.state == "running" for line in report.lines)] or reports
    rows = max(1, min(MIN_ROWS, (height - len(reports) - 2) // max(1, len(busy)) - 2))
    tables = [
        [str(report), *(table(report, names, rows, width, False) if report in busy else [])] for report in reports
    ]
    return fit_to_terminal([*total_time_left(reports), *(line for lines in tables for line in lines)], width, height)


def rows_per_table(height: int | None, tables: int, other_lines: int) -> int:
    """How many rows each table can have on a terminal that also shows `other_lines`. `height` None: no limit."""
    return UNLIMITED if height is None else max(MIN_ROWS, (height - other_lines) // max(1, tables) - 3)


def table(report: SweepStatus, names: Mapping[str, str], rows: int, width: int, is_whole: bool) -> list[str]:
    """A head and a row for each run, running runs first. Runs beyond `rows` are counted in a last line.

    With `is_whole`, running, failed, damaged, lost and diverged runs have a row even beyond `rows`.
    """
    lines = sorted(report.lines, key=lambda line: line.rank)
    if len(lines) > rows:
        always = sum(line.rank < ORDER.index("queued") for line in lines) if is_whole else 0
        lines = lines[: max(rows, always)]
    differences = report.launched.differences
    axes = list(dict.fromkeys(axis for values in differences.values() for axis in values))
    head = ["run", *shorten_keys(axes), "state", "job", "node", "attempt", "step", report.metric, "elapsed", "left"]
    body = [[names[line.run], *(differences[line.run].get(axis, "") for axis in axes), *line.cells] for line in lines]
    used = [i for i in range(len(head)) if any(row[i] for row in body)]
    cells = [[row[i] for i in used] for row in [head, *body]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [at for at, i in enumerate(used) if i >= len(head) - NUMBERS]
    hidden = Counter(line.state for line in report.lines)
    hidden.subtract(line.state for line in lines)
    more = ", ".join(f"{hidden[name]} {name}" for name in ORDER if hidden[name])
    return [*align_columns(cells, widths, width - 1, numbers), *([f"  and {more}"] if more else [])]


def short_names(store: Store, reports: Sequence[SweepStatus]) -> dict[str, str]:
    """The beginning of each run's id by which it can be named on the command line: no two runs of the store share it."""
    ids = store.runs() | {line.run for report in reports for line in report.lines}
    length = next(n for n in range(SHORTEST, 65) if len({run[:n] for run in ids}) == len(ids))
    return {run: run[:length] for run in ids}
