"""Mean, t interval and n over seeds, per table cell.

With three to five seeds a percentile bootstrap that says 95 % covers 75 to 83 %; the t interval covers what it says.
One value has no interval, and none is made up for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.frame import SPLITS, Sweep, axis_value

LEVEL = 0.95


class Interval(NamedTuple):
    value: float  # the mean; NaN when n is 0
    lower: float  # NaN when n is below 2, as is the upper end
    upper: float
    n: int


def t_interval(values: Iterable[float]) -> Interval:
    """Mean and two-sided t interval of the mean. NaN among the values stands for one that is not there."""
    x = np.asarray([value for value in values if not math.isnan(value)])  # n
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    quantile = float(stdtrit(len(x) - 1, (1 + LEVEL) / 2))
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x))


def cells(sweep: Sweep) -> pd.DataFrame:
    """A row per table cell and split, in the manifest's order.

    Columns: the row labels (compared axis, extra axes), task, split, metric, value, lower, upper, n, planned (n of the
    whole sweep), runs (ids behind the value), baseline, chosen.
    """
    labels = [sweep.compare, *sweep.extra_axes]
    keys = [*labels, "task", "split", "metric"]
    rows = []
    for label, group in sweep.scores.groupby(keys, sort=False):
        behind = group[group["value"].notna()]
        about = {"planned": len(group), "runs": " ".join(behind["run"])}
        rows.append(dict(zip(keys, label, strict=True)) | t_interval(behind["value"])._asdict() | about)
    frame = pd.DataFrame(rows)
    frame["baseline"] = _baseline(sweep, frame, labels)
    frame["chosen"] = _chosen(frame, [*labels, "task"])
    return _ordered(sweep, frame, labels)


def _baseline(sweep: Sweep, frame: pd.DataFrame, labels: Sequence[str]) -> list[bool]:
    """Which rows are the point that the sweep is measured against."""
    baseline = sweep.manifest["baseline"] or {}
    wanted = {label: axis_value(baseline, label) for label in labels if label in baseline}
    return [bool(wanted) and all(row[label] == value for label, value in wanted.items()) for _, row in frame.iterrows()]


def _chosen(frame: pd.DataFrame, keys: Sequence[str]) -> list[bool]:
    """Which rows, of either split, have the highest mean of their task on validation, which is where choices are made.

    Nothing is chosen between rows of which some miss a value, nor from one row.
    """
    chosen: set[tuple[object, ...]] = set()
    for _, rows in frame[frame["split"] == "val"].groupby("task"):
        if len(rows) > 1 and (rows["n"] == rows["planned"]).all():
            best = rows[rows["value"] == rows["value"].max()]
            chosen |= set(best[list(keys)].itertuples(index=False, name=None))
    return [key in chosen for key in frame[list(keys)].itertuples(index=False, name=None)]


def _ordered(sweep: Sweep, frame: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    order = {axis: [axis_value({axis: value}, axis) for value in sweep.manifest["axes"][axis]] for axis in labels}
    order |= {"task": list(sweep.tasks), "split": list(SPLITS)}

    def place(column: pd.Series) -> list[int]:
        known = order[str(column.name)]
        return [known.index(value) if value in known else len(known) for value in column]

    places = pd.DataFrame({key: place(frame[key]) for key in order})
    return frame.iloc[places.sort_values(list(order), kind="stable").index].reset_index(drop=True)
