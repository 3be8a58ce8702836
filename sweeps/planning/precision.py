"""The precision of a planned sweep: the smallest difference from the baseline that its table can detect with its seeds.

`plan` prints it before a launch, when the number of seeds can still be changed. It is the difference that is detected with power
0.8 by Dunnett's comparison of all rows with the baseline, over all columns of the table together (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.studies.power import detectable, share_of
from sweeps.grid.manifest import ExpandedSweep
from sweeps.states.state import State

MORE = 5  # the plan also shows the precision with this many seeds


def precision(expanded: ExpandedSweep, states: Mapping[str, State]) -> Iterator[str]:
    """Yields lines for `plan`; none if the sweep has no baseline or no task has two rows."""
    rows = _rows(expanded)
    tasks = {task for task, _ in rows}
    rows_per_task = max((sum(of == task for of, _ in rows) for task in tasks), default=0)
    seeds = min(map(len, rows.values()), default=0)
    if expanded.sweep.baseline is None or rows_per_task < 2:
        return
    over_values = [
        value for value in expanded.axes.get(expanded.sweep.over or "", []) if value != expanded.sweep.kept_from
    ]
    columns = len(tasks) * max(1, len(over_values)) if expanded.sweep.family == "table" else max(1, len(over_values))
    alpha = share_of(columns)
    now, more = (detectable(n, rows_per_task - 1, alpha) for n in (seeds, MORE))
    if seeds < 2:
        yield f"1 seed tells no two rows apart; with {MORE} a difference must be {more:.1f} standard deviations over seeds"
        return
    with_more = f"; with {MORE}, {more:.1f}" if seeds < MORE else ""
    yield (
        f"to be significant with power 0.8, a difference must be {now:.1f} standard deviations over seeds, with {seeds} seeds"
        + with_more
    )
    spread = _spread(expanded, rows, states)
    if spread:
        differences = ", ".join(f"{now * sd:.1f} points on {task}" for task, sd in spread.items())
        yield f"that is {differences}, by the runs that are done"


def _rows(expanded: ExpandedSweep) -> dict[tuple[str, Hashable], dict[int, str]]:
    """Returns the run of each seed, by task and row."""
    not_of_row = ("seed", "task", expanded.sweep.over)
    rows: defaultdict[tuple[str, Hashable], dict[int, str]] = defaultdict(dict)
    for run, point in expanded.points:
        row = tuple(str(point.values.get(axis)) for axis in expanded.axes if axis not in not_of_row)
        rows[point.values["task"], row][point.values["seed"]] = run
    return rows


def _spread(
    expanded: ExpandedSweep, rows: Mapping[tuple[str, Hashable], Mapping[int, str]], states: Mapping[str, State]
) -> dict[str, float]:
    """Returns the standard deviation over seeds by task, pooled over the rows with at least two finished seeds."""
    squares: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for (task, _), runs in rows.items():
        results = [result for run in runs.values() if (result := states[run].result) is not None]
        config = expanded.configs[next(iter(runs.values()))]
        split = next((split for split in config.task.splits if split != config.task.validation), config.task.validation)
        key = f"{split}/{PRIMARY_METRIC[config.task.family]}"
        values = [result["metrics"][key] for result in results if key in result["metrics"]]
        if len(values) > 1:
            mean = sum(values) / len(values)
            squares[task].append((sum((value - mean) ** 2 for value in values), len(values) - 1))
    return {task: math.sqrt(sum(s for s, _ in parts) / sum(df for _, df in parts)) for task, parts in squares.items()}
