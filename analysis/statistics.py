"""Mean, t interval and n over seeds, per table cell, and of the differences from the baseline, seed by seed.

Intervals are each for itself: nothing is corrected for their number.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import compress
from numbers import Real
from typing import Any

import pandas as pd

from analysis.costs import SHOWN
from analysis.frame import Sweep
from mmprompt.intervals import Interval, t_interval

WHILE_TRAINING = "val/while_training"  # the score in a run's history


def cells(sweep: Sweep) -> pd.DataFrame:
    """A row per table cell and split, in the manifest's order.

    Columns: the row labels (`Sweep.roles`), task, split, metric, value, lower, upper, n, planned (n of the whole sweep),
    runs (ids behind the value), failed and diverged (of the rest, how many did), baseline, chosen; difference from the
    baseline over the seeds that both have, with its interval and n; where the sweep asks for it, the same of the share that
    is kept, in percent.
    """
    labels = list(sweep.roles)
    keys = [*labels, "task", "split"]
    scores = sweep.scores
    scores = scores.assign(kept=_kept(sweep, scores))
    groups: dict[Any, pd.DataFrame] = dict(iter(scores.groupby(keys, sort=False)))
    shared = [name not in _named_by_baseline(sweep) for name in keys]  # by a row and the one it is measured against
    against: defaultdict[tuple[Any, ...], list[pd.DataFrame]] = defaultdict(list)
    for label, group in groups.items():
        if group["baseline"].all():
            against[tuple(compress(label, shared))].append(group)
    rows = []
    for label, group in groups.items():
        row = dict(zip(keys, label, strict=True)) | {"metric": group["metric"].iloc[0]}
        behind = group.loc[group["value"].notna(), "run"]
        row |= t_interval(group["value"])._asdict() | {"planned": len(group), "runs": " ".join(behind)}
        for state in ("failed", "diverged"):
            row[state] = int((group["value"].isna() & (group["state"] == state)).sum())
        row["baseline"] = bool(group["baseline"].all())
        baselines = [] if row["baseline"] else against[tuple(compress(label, shared))]
        row |= renamed(t_interval(_differences(group, baselines, "value")), "difference")
        if sweep.manifest["kept_from"] is not None:
            row |= renamed(t_interval(group["kept"]), "kept")
            row |= renamed(t_interval(_differences(group, baselines, "kept")), "kept_difference")
        rows.append(row)
    frame = pd.DataFrame(rows)
    frame["chosen"] = _chosen(sweep, frame)
    return _ordered(frame, {"task": list(sweep.tasks), "split": sweep.splits}, labels)


def facts(sweep: Sweep) -> pd.DataFrame:
    """What runs took, in the columns of `cells`: the fact is the metric, and no split has it. A run counts once.

    Not what depends on what else their machines did (`analysis.costs`): an interval over that would say nothing.
    """
    labels = [name for name in sweep.roles if name != sweep.over]
    named = sweep.named.drop_duplicates([*labels, "task", "run"])
    rows = []
    asked = [fact for fact in sweep.manifest["facts"] if fact not in SHOWN]
    for fact in asked:
        for label, group in named.groupby([*labels, "task"], sort=False):
            row = dict(zip([*labels, "task"], label, strict=True)) | {"split": "", "metric": fact}
            row |= t_interval(group[fact].astype("float64"))._asdict() | {"planned": len(group)}
            row |= {
                "runs": " ".join(group.loc[group[fact].notna(), "run"]),
                **{state: int((group["state"] == state).sum()) for state in ("failed", "diverged")},
            }
            rows.append(row | {"done": int(group["attempt"].notna().sum()), "baseline": bool(group["baseline"].all())})
    about = ["split", "metric", *Interval._fields, "planned", "runs", "failed", "diverged", "done", "baseline"]
    frame = pd.DataFrame(rows, columns=[*labels, "task", *about])
    return _ordered(frame, {"task": list(sweep.tasks), "metric": asked}, labels)


def edges(sweep: Sweep, cells: pd.DataFrame) -> list[str]:
    """What was chosen at an end of its axis, where a sweep looks for the best of a number for each of something."""
    if not sweep.manifest["each"] or not all(isinstance(value, Real) for value in cells[sweep.compare]):
        return []
    found = []
    apart = [name for name in sweep.roles if name != sweep.compare]
    for label, rows in cells.groupby([*apart, "task"], sort=False):
        tried, best = rows[sweep.compare], rows.loc[rows["chosen"], sweep.compare]
        if len(best) and best.iloc[0] in (tried.min(), tried.max()):
            what = f"{' '.join(map(str, label[:-1]))} on {label[-1]}"
            found.append(f"{what}: the best {sweep.compare}, {best.iloc[0]}, is at the edge of its grid; extend it")
    return found


def learning_curves(sweep: Sweep, curves: pd.DataFrame) -> pd.DataFrame:
    """The score on validation while training, over seeds: a row per row label, task and step that was validated.

    Columns: the row labels, task, step, epoch (NaN for runs that did not record it), value, lower, upper, n.
    """
    labels = [name for name in sweep.roles if name != sweep.over]
    runs = sweep.named.drop_duplicates("run").set_index("run")
    rows = curves[curves[WHILE_TRAINING].notna()] if WHILE_TRAINING in curves else curves.head(0)
    last = rows["run"].map(rows.groupby("run")["step"].max())
    rows = rows[["run", "task", "step"]].assign(
        epoch=rows["step"] / last * rows["run"].map(runs["epochs"].astype("float64")),
        score=rows.get(WHILE_TRAINING),
        **{name: rows["run"].map(runs[name]) for name in labels},
    )
    found = [
        dict(zip([*labels, "task", "step"], label, strict=True))
        | {"epoch": group["epoch"].mean()}
        | t_interval(group["score"])._asdict()
        for label, group in rows.groupby([*labels, "task", "step"], sort=False)
    ]
    frame = pd.DataFrame(found, columns=[*labels, "task", "step", "epoch", *Interval._fields])
    return _ordered(frame, {"task": list(sweep.tasks)}, labels)


def renamed(interval: Interval, name: str) -> dict[str, float]:
    return {name: interval.value} | {
        f"{name}_{key}": value for key, value in interval._asdict().items() if key != "value"
    }


def _named_by_baseline(sweep: Sweep) -> set[str]:
    baseline = sweep.manifest["baseline"] or {}
    return {name for name, axes in sweep.roles.items() if any(axis in baseline for axis in axes)}


def _differences(group: pd.DataFrame, baselines: Sequence[pd.DataFrame], column: str) -> list[float]:
    """Row less baseline, for each seed that both have; nothing where it is not clear which row is the baseline's."""
    if len(baselines) != 1 or "seed" not in group:
        return []
    ours, theirs = (rows.set_index("seed")[column] for rows in (group, baselines[0]))
    if ours.index.has_duplicates or theirs.index.has_duplicates:
        return []
    return list((ours - theirs).dropna())


def _kept(sweep: Sweep, scores: pd.DataFrame) -> pd.Series:
    """Percent of the score that the same run has at the value of `over` that the manifest names."""
    over, at = sweep.over, sweep.manifest["kept_from"]
    if over is None or at is None:
        return pd.Series(math.nan, index=scores.index)
    keys = [name for name in (*sweep.roles, "task", "split", "run") if name != over]
    whole = scores[scores[over] == at].drop_duplicates(keys).set_index(keys)["value"]
    of = pd.MultiIndex.from_frame(scores[keys]).map(whole.to_dict())
    return 100 * scores["value"] / pd.Series(of, index=scores.index, dtype="float64").replace(0.0, math.nan)


def whole_state(row: Any) -> str | None:
    """What all runs of a row came to that has no value: failed or diverged; None if not all did."""
    return next((state for state in ("failed", "diverged") if getattr(row, state) == row.planned), None)


def _chosen(sweep: Sweep, frame: pd.DataFrame) -> list[bool]:
    """Which rows, of any split, have the highest mean on validation, which is where choices are made, of those compared.

    One is chosen for each value of the other labels that the sweep names. Nothing is chosen between rows of which some miss
    a value, nor from one row. A row of which a run diverged has its answer, and is none to choose.
    """
    keys = [*sweep.roles, "task"]
    apart = [name for name in keys if name not in (sweep.compare, *sweep.extra_axes)]
    chosen: set[tuple[object, ...]] = set()
    for _, rows in frame[frame["split"] == frame["task"].map(sweep.validation)].groupby(apart):
        if len(rows) > 1 and (rows["n"] + rows["diverged"] == rows["planned"]).all():
            whole = rows[rows["n"] == rows["planned"]]
            best = whole[whole["value"] == whole["value"].max()]
            chosen |= set(best[keys].itertuples(index=False, name=None))
    return [key in chosen for key in frame[keys].itertuples(index=False, name=None)]


def _ordered(frame: pd.DataFrame, order: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> pd.DataFrame:
    """By the labels, each value where it came first, and then as `order` says."""
    known = {name: list(frame[name].drop_duplicates()) for name in labels} | dict(order)
    places = pd.DataFrame({name: frame[name].map(values.index) for name, values in known.items()}, index=frame.index)
    return frame.iloc[places.reset_index(drop=True).sort_values(list(known), kind="stable").index].reset_index(
        drop=True
    )
