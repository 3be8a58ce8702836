"""What a sweep's seeds can show: the smallest difference from its baseline that its table would tell apart.

Said before a launch, when a seed more or less is still a choice. With power 0.8, by Dunnett's comparison of all rows with
the baseline, over all columns of the table together (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.studies.power import detectable, share_of
from sweeps.grid.manifest import ExpandedSweep
from sweeps.states.state import State

MORE = 5  # seeds, to which a plan compares


def precision(one: ExpandedSweep, states: Mapping[str, State]) -> Iterator[str]:
    """Lines for `plan`; none without a baseline, or where each row has one value alone."""
    rows = _rows(one)
    tasks = {task for task, _ in rows}
    per_task = max((sum(of == task for of, _ in rows) for task in tasks), default=0)
    seeds = min(map(len, rows.values()), default=0)
    if one.sweep.baseline is None or per_task < 2:
        return
    along = [value for value in one.axes.get(one.sweep.over or "", []) if value != one.sweep.kept_from]
    columns = len(tasks) * max(1, len(along)) if one.sweep.family == "table" else max(1, len(along))
    alpha = share_of(columns)
    now, more = (detectable(n, per_task - 1, alpha) for n in (seeds, MORE))
    if seeds < 2:
        yield f"1 seed tells no two rows apart; with {MORE} a difference must be {more:.1f} standard deviations over seeds"
        return
    with_more = f"; with {MORE}, {more:.1f}" if seeds < MORE else ""
    yield (
        f"to be told apart with power 0.8 a difference must be {now:.1f} standard deviations over seeds, with {seeds} seeds"
        + with_more
    )
    spread = _spread(one, rows, states)
    if spread:
        said = ", ".join(f"{now * sd:.1f} points on {task}" for task, sd in spread.items())
        yield f"that is {said}, by the runs that are done"


def _rows(one: ExpandedSweep) -> dict[tuple[str, Hashable], dict[int, str]]:
    """By task and row: the run of each seed."""
    apart = ("seed", "task", one.sweep.over)
    found: defaultdict[tuple[str, Hashable], dict[int, str]] = defaultdict(dict)
    for run, point in one.points:
        row = tuple(str(point.values.get(axis)) for axis in one.axes if axis not in apart)
        found[point.values["task"], row][point.values["seed"]] = run
    return found


def _spread(
    one: ExpandedSweep, rows: Mapping[tuple[str, Hashable], Mapping[int, str]], states: Mapping[str, State]
) -> dict[str, float]:
    """By task: the standard deviation over seeds, pooled over rows of which two seeds are done."""
    squares: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for (task, _), runs in rows.items():
        results = [result for run in runs.values() if (result := states[run].result) is not None]
        config = one.configs[next(iter(runs.values()))]
        split = next((split for split in config.task.splits if split != config.task.validation), config.task.validation)
        key = f"{split}/{PRIMARY_METRIC[config.task.family]}"
        values = [result["metrics"][key] for result in results if key in result["metrics"]]
        if len(values) > 1:
            mean = sum(values) / len(values)
            squares[task].append((sum((value - mean) ** 2 for value in values), len(values) - 1))
    return {task: math.sqrt(sum(s for s, _ in parts) / sum(df for _, df in parts)) for task, parts in squares.items()}
