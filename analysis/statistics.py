"""What the runs of a sweep say, cell by cell: means with intervals, and differences from the baseline.

An interval of a mean covers both sources of error, seeds and the finite test set: its half is sqrt(hs^2 + he^2), where hs is
the half of the t interval over seeds and he the half over examples. Differences have simultaneous intervals: all that a
table shows are one family, which errs anywhere in 5 of 100 tables at most (`analysis.inference`, docs/statistics.md).
No interval leaves the range of its metric. That costs no coverage: the truth lies in the range too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import pandas as pd

from analysis import inference
from analysis.comparisons import compare
from analysis.costs import SHOWN
from analysis.families import Comparison
from analysis.frame import WRONG, Sweep
from analysis.remarks import cell_notes
from analysis.samples import KEPT, Group, groups, metric_range
from mmprompt.families.registry import ALL
from mmprompt.studies.intervals import LEVEL, Interval, t_interval
from mmprompt.studies.power import two_sided

COUNTED = ("failed", "diverged", *WRONG)  # states that say why a value is missing
WHILE_TRAINING = "val/while_training"  # the score in a run's history
COMPARED = (  # of a `Comparison`, as columns
    *("lower", "upper", "half_seeds", "half_examples", "single_lower", "single_upper", "p", "p_corrected"),
    *("method", "verdict"),
)


def cells(sweep: Sweep) -> pd.DataFrame:
    """A row per table cell and split, in the manifest's order. Columns:

    - the row labels (`Sweep.roles`), task, split, metric; cell: what `analysis trace` calls it;
    - value, lower, upper: the mean and its interval; half_seeds, half_examples: the halves that make it up, before it is cut
      to the metric's range; n, planned (n of the whole sweep), seeds, examples (of the test set; NaN where unknown);
    - runs (ids behind the value); failed, diverged, conflict, unreadable (of the rest, how many are); baseline; chosen, among
      (of how many);
    - difference from the baseline, difference_lower, difference_upper (simultaneous), difference_n, and what else a `Comparison`
      holds, each with the prefix `difference_`;
    - where the sweep asks for it, the same of the share that is kept, in percent: `kept`, and `kept_difference`;
    - note: what else a reader of this cell has to know.
    """
    found, notes = groups(sweep), cell_notes(sweep, sweep.scores)
    labels = [*sweep.roles, "task", "split"]
    quantities = {"": "value"} | ({"kept_": KEPT} if sweep.manifest["kept_from"] is not None else {})
    compared = {prefix: compare(sweep, found, what) for prefix, what in quantities.items()}
    rows = []
    for number, group in enumerate(found):
        row = group.label | {"metric": group.metric, "cell": group.words}
        row |= mean_columns(group, "value") | _about(group)
        for prefix, what in quantities.items():
            if what == KEPT:
                row |= _prefixed(mean_columns(group, KEPT), KEPT)
            row |= _prefixed(_difference_columns(group, compared[prefix].get(number), what), f"{prefix}difference")
        rows.append(row | {"note": notes.get(tuple(group.label.values()), "")})
    frame = pd.DataFrame(rows)
    frame["among"] = _chosen_among(sweep, frame)
    frame["chosen"] = frame["among"] > 0
    frame = pd.concat([frame, *_further(found, frame)], ignore_index=True)
    return _ordered(frame, {"task": list(sweep.tasks), "split": sweep.splits}, labels[:-2])


def _further(found: Sequence[Group], frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Rows of further metrics (BLEU-4 of captions, ...), where runs have them: their means, and nothing that is told apart.

    They are of a whole set of answers: what the examples add to their intervals is not known.
    """
    kept = [column for column in frame if not str(column).startswith(("difference", "kept"))]
    known = frame[kept].to_dict("records")
    for family, name in [(one.name, metric.name) for one in ALL for metric in one.further]:
        rows = []
        for number, group in enumerate(found):
            if group.family != family:
                continue
            column = f"{group.label['split']}/{name}"
            interval = t_interval([] if group.is_in_doubt else group.rows.get(column, []))
            if interval.n or group.is_in_doubt:
                about = interval._asdict() | {"metric": name, "half_seeds": interval.half, "half_examples": math.nan}
                rows.append(known[number] | about | {"examples": math.nan, "among": 0, "chosen": False})
        if any(row["n"] for row in rows):
            yield pd.DataFrame(rows)


def mean_columns(group: Group, what: str) -> dict[str, Any]:
    """value, lower, upper, n, half_seeds, half_examples and examples of one cell. One seed has no interval over seeds."""
    sample = group.sample(what)
    low, high = metric_range(group.metric) if what == "value" else (0.0, math.inf)
    estimate = inference.mean(sample)
    interval = estimate.alone()
    return {
        "value": estimate.value,
        "lower": max(low, interval.lower) if estimate.has_interval else math.nan,
        "upper": min(high, interval.upper) if estimate.has_interval else math.nan,
        "n": sample.n,
        "half_seeds": interval.half_seeds,
        "half_examples": two_sided(math.inf, 1 - LEVEL) * estimate.se_examples,
        "examples": math.nan if sample.examples is None else len(sample.examples),
    }


def _about(group: Group) -> dict[str, Any]:
    rows = group.rows
    there = rows["value"].notna()
    lost = rows.loc[~there, "state"]
    return {
        "planned": len(rows),
        "seeds": " ".join(str(seed) for seed in group.seeds),
        "runs": " ".join(rows.loc[there, "run"]),
        **{state: int((lost == state).sum()) for state in COUNTED},
        "baseline": group.is_baseline,
    }


def _difference_columns(group: Group, compared: tuple[Comparison, int] | None, what: str) -> dict[str, Any]:
    """Under the names of a difference; cut to what two values of the metric can differ by."""
    if compared is None:
        return {"value": math.nan, "n": 0} | {key: "" if key in ("method", "verdict") else math.nan for key in COMPARED}
    one, n = compared
    low, high = metric_range(group.metric) if what == "value" else (0.0, math.inf)
    most = high - low
    row = {"value": one.value, "n": n} | {key: getattr(one, key) for key in COMPARED}
    ends = {key: row[key] for key in ("lower", "upper", "single_lower", "single_upper") if not math.isnan(row[key])}
    return row | {key: max(-most, min(most, end)) for key, end in ends.items()}


def _prefixed(columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`difference`, `difference_lower`, ..."""
    return {name if key == "value" else f"{name}_{key}": value for key, value in columns.items()}


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
                **{state: int((group["state"] == state).sum()) for state in COUNTED},
            }
            rows.append(row | {"done": int(group["attempt"].notna().sum()), "baseline": bool(group["baseline"].all())})
    about = ["split", "metric", *Interval._fields, "planned", "runs", *COUNTED, "done", "baseline"]
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


def whole_state(row: Any) -> str | None:
    """What is said of a row in place of a value: that it holds a conflict or a damaged file; that all its runs failed or diverged.

    None if there is nothing of that.
    """
    wrong = next((state for state in WRONG if getattr(row, state)), None)
    return wrong or next((state for state in ("failed", "diverged") if getattr(row, state) == row.planned), None)


def _chosen_among(sweep: Sweep, frame: pd.DataFrame) -> list[int]:
    """Of the rows, of any split, that have the highest mean on validation, which is where choices are made: among how many.

    One is chosen for each value of the other labels that the sweep names; 0 for the rest. Nothing is chosen between rows of
    which some miss a value, nor from one row. A row of which a run diverged has its answer, and is none to choose.
    """
    keys = [*sweep.roles, "task"]
    apart = [name for name in keys if name not in (sweep.compare, *sweep.extra_axes)]
    chosen: dict[tuple[object, ...], int] = {}
    for _, rows in frame[frame["split"] == frame["task"].map(sweep.validation)].groupby(apart):
        if len(rows) > 1 and (rows["n"] + rows["diverged"] == rows["planned"]).all():
            whole = rows[rows["n"] == rows["planned"]]
            best = whole[whole["value"] == whole["value"].max()]
            chosen |= {key: len(rows) for key in best[keys].itertuples(index=False, name=None)}
    return [chosen.get(key, 0) for key in frame[keys].itertuples(index=False, name=None)]


def _ordered(frame: pd.DataFrame, order: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> pd.DataFrame:
    """By the labels, each value where it came first, and then as `order` says."""
    known = {name: list(frame[name].drop_duplicates()) for name in labels} | dict(order)
    places = pd.DataFrame({name: frame[name].map(values.index) for name, values in known.items()}, index=frame.index)
    return frame.iloc[places.reset_index(drop=True).sort_values(list(known), kind="stable").index].reset_index(
        drop=True
    )
