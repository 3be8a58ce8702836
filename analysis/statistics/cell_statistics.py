"""The statistics of a sweep's cells: means with intervals, and differences from the baseline.

The interval of a mean covers both sources of error, seeds and the finite test set: its half-width is sqrt(hs^2 + he^2), where hs
is the half-width of the t interval over seeds and he that over examples. Differences have simultaneous intervals: all differences
of a table form one family, and at most 5 of 100 tables have an error anywhere (`analysis.statistics.inference`,
docs/statistics.md). Intervals are cut at the ends of the metric's range. That costs no coverage, as the true value lies in the
range too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import pandas as pd

from analysis.records.frame import WRONG, Sweep
from analysis.records.remarks import cell_notes
from analysis.statistics import inference
from analysis.statistics.comparisons import compare
from analysis.statistics.costs import SHOWN
from analysis.statistics.families import Comparison
from analysis.statistics.samples import KEPT, Group, groups, metric_range
from mmprompt.families.registry import ALL
from mmprompt.studies.intervals import LEVEL, Interval, t_interval
from mmprompt.studies.power import two_sided

COUNTED = ("failed", "diverged", *WRONG)  # states that explain why a value is missing
WHILE_TRAINING = "val/while_training"  # key of the validation score in a run's history
COMPARED = (  # the fields of a `Comparison` that become columns
    *("lower", "upper", "half_seeds", "half_examples", "single_lower", "single_upper", "p", "p_corrected"),
    *("method", "verdict"),
)


def cells(sweep: Sweep) -> pd.DataFrame:
    """Returns a row per table cell and split, in the manifest's order. Columns:

    - the row labels (`Sweep.roles`), task, split, metric; cell (its name for `analysis trace`);
    - value, lower, upper: the mean and its interval; half_seeds, half_examples: the two half-widths, before the interval is cut
      at the ends of the metric's range; n, planned (n when the sweep is finished), seeds, examples (number of test examples, NaN
      if unknown);
    - runs (ids behind the value); failed, diverged, conflict, unreadable (numbers of the other runs); baseline; chosen (whether
      the row was chosen on validation), among (the number of rows it was chosen from);
    - difference from the baseline, difference_lower, difference_upper (simultaneous), difference_n, and the other fields of the
      `Comparison`, each with the prefix `difference_`;
    - if the sweep asks for it, the same for the share that is kept, in percent: `kept`, and `kept_difference`;
    - note: conflicts and remarks on this cell.
    """
    all_groups, notes = groups(sweep), cell_notes(sweep, sweep.scores)
    labels = [*sweep.roles, "task", "split"]
    quantities = {"": "value"} | ({"kept_": KEPT} if sweep.manifest["kept_from"] is not None else {})
    compared = {prefix: compare(sweep, all_groups, column) for prefix, column in quantities.items()}
    rows = []
    for number, group in enumerate(all_groups):
        row = group.label | {"metric": group.metric, "cell": group.words}
        row |= mean_columns(group, "value") | _run_columns(group)
        for prefix, column in quantities.items():
            if column == KEPT:
                row |= _prefixed(mean_columns(group, KEPT), KEPT)
            row |= _prefixed(_difference_columns(group, compared[prefix].get(number), column), f"{prefix}difference")
        rows.append(row | {"note": notes.get(tuple(group.label.values()), "")})
    frame = pd.DataFrame(rows)
    frame["among"] = _chosen_among(sweep, frame)
    frame["chosen"] = frame["among"] > 0
    frame = pd.concat([frame, *_further_metrics(all_groups, frame)], ignore_index=True)
    return _sorted(frame, {"task": list(sweep.tasks), "split": sweep.splits}, labels[:-2])


def _further_metrics(all_groups: Sequence[Group], frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yields the rows of further metrics (BLEU-4 of captions, ...) that runs have: their means, without comparisons.

    Such a metric belongs to a whole set of answers, so the error from the examples is unknown.
    """
    shared_columns = [column for column in frame if not str(column).startswith(("difference", "kept"))]
    columns_of_cells = frame[shared_columns].to_dict("records")
    for family, name in [(one.name, metric.name) for one in ALL for metric in one.further]:
        rows = []
        for number, group in enumerate(all_groups):
            if group.family != family:
                continue
            column = f"{group.label['split']}/{name}"
            interval = t_interval([] if group.is_in_doubt else group.rows.get(column, []))
            if interval.n or group.is_in_doubt:
                interval_of_metric = interval._asdict() | {
                    "metric": name,
                    "half_seeds": interval.half,
                    "half_examples": math.nan,
                }
                rows.append(
                    columns_of_cells[number] | interval_of_metric | {"examples": math.nan, "among": 0, "chosen": False}
                )
        if any(row["n"] for row in rows):
            yield pd.DataFrame(rows)


def mean_columns(group: Group, column: str) -> dict[str, Any]:
    """Returns value, lower, upper, n, half_seeds, half_examples and examples of one cell. One seed has no interval."""
    sample = group.sample(column)
    low, high = metric_range(group.metric) if column == "value" else (0.0, math.inf)
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


def _run_columns(group: Group) -> dict[str, Any]:
    """The columns that describe a cell's runs."""
    rows = group.rows
    has_value = rows["value"].notna()
    missing_states = rows.loc[~has_value, "state"]
    return {
        "planned": len(rows),
        "seeds": " ".join(str(seed) for seed in group.seeds),
        "runs": " ".join(rows.loc[has_value, "run"]),
        **{state: int((missing_states == state).sum()) for state in COUNTED},
        "baseline": group.is_baseline,
    }


def _difference_columns(group: Group, compared: tuple[Comparison, int] | None, column: str) -> dict[str, Any]:
    """The columns of a difference, whose bounds are cut at the largest possible difference of two values of the metric."""
    if compared is None:
        return {"value": math.nan, "n": 0} | {key: "" if key in ("method", "verdict") else math.nan for key in COMPARED}
    comparison, n = compared
    low, high = metric_range(group.metric) if column == "value" else (0.0, math.inf)
    most = high - low
    row = {"value": comparison.value, "n": n} | {key: getattr(comparison, key) for key in COMPARED}
    ends = {key: row[key] for key in ("lower", "upper", "single_lower", "single_upper") if not math.isnan(row[key])}
    return row | {key: max(-most, min(most, end)) for key, end in ends.items()}


def _prefixed(columns: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The columns with a prefix; `value` becomes the prefix itself: `difference`, `difference_lower`, ..."""
    return {name if key == "value" else f"{name}_{key}": value for key, value in columns.items()}


def facts(sweep: Sweep) -> pd.DataFrame:
    """Returns the facts that runs recorded, in the columns of `cells`: the fact is the metric, and the split is empty.

    Each run counts once. Facts that depend on other work of the machine are left out (`analysis.statistics.costs`), as an
    interval over them would mean nothing.
    """
    labels = [name for name in sweep.roles if name != sweep.over]
    named = sweep.named.drop_duplicates([*labels, "task", "run"])
    rows = []
    shown_facts = [fact for fact in sweep.manifest["facts"] if fact not in SHOWN]
    for fact in shown_facts:
        for label, group in named.groupby([*labels, "task"], sort=False):
            row = dict(zip([*labels, "task"], label, strict=True)) | {"split": "", "metric": fact}
            row |= t_interval(group[fact].astype("float64"))._asdict() | {"planned": len(group)}
            row |= {
                "runs": " ".join(group.loc[group[fact].notna(), "run"]),
                **{state: int((group["state"] == state).sum()) for state in COUNTED},
            }
            rows.append(row | {"done": int(group["attempt"].notna().sum()), "baseline": bool(group["baseline"].all())})
    other_columns = ["split", "metric", *Interval._fields, "planned", "runs", *COUNTED, "done", "baseline"]
    frame = pd.DataFrame(rows, columns=[*labels, "task", *other_columns])
    return _sorted(frame, {"task": list(sweep.tasks), "metric": shown_facts}, labels)


def edges(sweep: Sweep, cells: pd.DataFrame) -> list[str]:
    """Returns a sentence for each best value at an end of its axis, in sweeps that choose a number for each of their rows."""
    if not sweep.manifest["each"] or not all(isinstance(value, Real) for value in cells[sweep.compare]):
        return []
    sentences = []
    other_labels = [name for name in sweep.roles if name != sweep.compare]
    for label, rows in cells.groupby([*other_labels, "task"], sort=False):
        tried, best = rows[sweep.compare], rows.loc[rows["chosen"], sweep.compare]
        if len(best) and best.iloc[0] in (tried.min(), tried.max()):
            row_name = f"{' '.join(map(str, label[:-1]))} on {label[-1]}"
            sentences.append(
                f"{row_name}: the best {sweep.compare}, {best.iloc[0]}, is at the edge of its grid; extend it"
            )
    return sentences


def learning_curves(sweep: Sweep, curves: pd.DataFrame) -> pd.DataFrame:
    """Returns the validation score during training over seeds: a row per row label, task and step with a validation.

    A run that ended earlier than others of its row, because its patience did, has from then on the score of the weights it kept,
    its best: otherwise a row would be the mean of those that still train. Columns: the row labels, task, step, epoch (NaN if a run
    did not record it), value, lower, upper, n.
    """
    labels = [name for name in sweep.roles if name != sweep.over]
    runs = sweep.named.drop_duplicates("run").set_index("run")
    rows = curves[curves[WHILE_TRAINING].notna()] if WHILE_TRAINING in curves else curves.head(0)
    rows = rows[["run", "task", "step"]].assign(
        score=rows.get(WHILE_TRAINING), **{name: rows["run"].map(runs[name]) for name in labels}
    )
    last = rows.groupby("run")["step"].max()
    rows = pd.concat([rows, *_after_their_ends(rows, [*labels, "task"], last)])
    rows = rows.assign(epoch=rows["step"] / rows["run"].map(last) * rows["run"].map(runs["epochs"].astype("float64")))
    curve_rows = [
        dict(zip([*labels, "task", "step"], label, strict=True))
        | {"epoch": group["epoch"].mean()}
        | t_interval(group["score"])._asdict()
        for label, group in rows.groupby([*labels, "task", "step"], sort=False)
    ]
    frame = pd.DataFrame(curve_rows, columns=[*labels, "task", "step", "epoch", *Interval._fields])
    return _sorted(frame, {"task": list(sweep.tasks)}, labels)


def _after_their_ends(rows: pd.DataFrame, row_labels: list[str], last: pd.Series) -> Iterator[pd.DataFrame]:
    """Yields, for each run that ended before others of its row, rows with its best score at their later steps.

    `rows`: with columns run, step, score and the labels; `last`: the last step of each run.
    """
    for _, group in rows.groupby(row_labels, sort=False):
        steps = group["step"].drop_duplicates()
        for run, own in group.groupby("run", sort=False):
            later = steps[steps > last[run]]
            if len(later):
                yield pd.DataFrame([own.iloc[-1]] * len(later)).assign(step=later.to_numpy(), score=own["score"].max())


def interval_columns(interval: Interval, name: str) -> dict[str, float]:
    """The fields of an interval as columns with a prefix: `NAME`, `NAME_lower`, ..."""
    return {name: interval.value} | {
        f"{name}_{key}": value for key, value in interval._asdict().items() if key != "value"
    }


def whole_state(row: Any) -> str | None:
    """The state that a row shows in place of a value; None if there is none.

    It is conflict or unreadable if any of its runs is, and failed or diverged if all of them are.
    """
    wrong = next((state for state in WRONG if getattr(row, state)), None)
    return wrong or next((state for state in ("failed", "diverged") if getattr(row, state) == row.planned), None)


def _chosen_among(sweep: Sweep, frame: pd.DataFrame) -> list[int]:
    """For each row, of any split, the number of rows among which it was chosen; 0 if it was not chosen.

    The row with the highest mean on validation is chosen, one for each combination of the sweep's other labels. Nothing is chosen
    from a single row, or while any row lacks a value. A row with a diverged run lacks none, but cannot be chosen.
    """
    keys = [*sweep.roles, "task"]
    other_labels = [name for name in keys if name not in (sweep.compare, *sweep.extra_axes)]
    chosen: dict[tuple[object, ...], int] = {}
    for _, rows in frame[frame["split"] == frame["task"].map(sweep.validation)].groupby(other_labels):
        if len(rows) > 1 and (rows["n"] + rows["diverged"] == rows["planned"]).all():
            complete = rows[rows["n"] == rows["planned"]]
            best = complete[complete["value"] == complete["value"].max()]
            chosen |= {key: len(rows) for key in best[keys].itertuples(index=False, name=None)}
    return [chosen.get(key, 0) for key in frame[keys].itertuples(index=False, name=None)]


def _sorted(frame: pd.DataFrame, order: Mapping[str, Sequence[Any]], labels: Sequence[str]) -> pd.DataFrame:
    """The rows sorted by their labels, values in the order of first appearance, and then by the columns and values of `order`."""
    order_of = {name: list(frame[name].drop_duplicates()) for name in labels} | dict(order)
    places = pd.DataFrame({name: frame[name].map(values.index) for name, values in order_of.items()}, index=frame.index)
    return frame.iloc[places.reset_index(drop=True).sort_values(list(order_of), kind="stable").index].reset_index(
        drop=True
    )
