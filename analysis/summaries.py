"""What the cells of a table say together: the trend along an axis of numbers, the average over tasks, and what n can show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from analysis import families, inference
from analysis.comparisons import blocks, sizes
from analysis.families import Comparison
from analysis.frame import Sweep
from analysis.inference import Estimate, Sample
from analysis.samples import KEPT, Group, Row, groups, metric_range
from analysis.samples import rows as rows_of
from analysis.trends import Trend, trend
from mmprompt.studies import power
from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.power import share_of

FIVE = 5  # seeds, to which a table compares what it has
POWER = 0.8
FEWEST = 3  # values of an axis that have a trend
ENDS = ("", "_lower", "_upper", "_p")


def trends(sweep: Sweep) -> pd.DataFrame:
    """How the score changes along the axis that is compared, where its values are numbers above 0: a row per other label,
    task and split.

    Columns: the labels, task, split, metric, axis, n (runs); slope (points per doubling), slope_lower, slope_upper, slope_p;
    curvature (points per doubling squared; below 0 the slope falls) and the same of it; turning_point (the value of the axis
    at which a parabola turns; NaN unless its curvature is told from 0 and it turns between the ends); lack_of_fit_p (of the
    straight line).
    """
    labels = [*(name for name in sweep.roles if name != sweep.compare), "task", "split"]
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups(sweep):
        found.setdefault(tuple(group.label[name] for name in labels), []).append(group)
    rows = []
    for label, those in found.items():
        found_trend = trend_of([group.label[sweep.compare] for group in those], [group.sample() for group in those])
        if found_trend is None:
            continue
        row = dict(zip(labels, label, strict=True)) | {"metric": those[0].metric, "axis": sweep.compare}
        row |= {"n": sum(len(group.seeds) for group in those)}
        for name, one in (("slope", found_trend.slope), ("curvature", found_trend.curvature)):
            ends = one.alone()
            row |= {name: one.value, f"{name}_lower": ends.lower, f"{name}_upper": ends.upper, f"{name}_p": one.p}
        rows.append(row | {"turning_point": found_trend.turning_point, "lack_of_fit_p": found_trend.lack_of_fit_p})
    columns = [f"{name}{end}" for name in ("slope", "curvature") for end in ENDS]
    return pd.DataFrame(rows, columns=[*labels, "metric", "axis", "n", *columns, "turning_point", "lack_of_fit_p"])


def trend_of(x: Sequence[Any], samples: Sequence[Sample]) -> Trend | None:
    """Of the values that have runs. None where they are no positive numbers, or too few, or of one seed each."""
    there = [(value, sample) for value, sample in zip(x, samples, strict=True) if sample.n]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in x)
    if not numbers or len(there) < FEWEST or all(sample.n < 2 for _, sample in there):
        return None
    return trend([float(value) for value, _ in there], [sample for _, sample in there])


def averages(sweep: Sweep) -> pd.DataFrame:
    """The average over tasks of each row that has them all: of scores where every metric is in percent, else of scores in
    percent of the baseline's. Several splits of a task are averaged first. (The paper does not say how its Table 6 averages.)

    Columns: the row labels, rule, tasks, n (the smallest of a task), value, lower, upper; difference from the baseline's with
    its difference_lower, difference_upper, difference_p, difference_p_corrected and difference_verdict (Holm); better (how
    often a run of this row beats one of the baseline's on the same task, ties counted half, mean over tasks); baseline.
    Empty for one task, for rows that are followed over an axis, and where metrics differ and there is no baseline.
    """
    labels, tasks, in_percent = list(sweep.roles), list(sweep.tasks), is_in_percent(sweep)
    columns = [*labels, "rule", "tasks", "n", *OF_AVERAGE]
    found = [row for row in rows_of(sweep) if all(task in row.samples for task in tasks)] if sweep.over is None else []
    baseline = next((row for row in found if row.is_baseline), None)
    if len(tasks) < 2 or not found or (baseline is None and not in_percent):
        return pd.DataFrame(columns=columns)
    compared = _compared(sweep, found, baseline)
    rule = "mean over tasks" if in_percent else "mean over tasks of the score in percent of the baseline's"
    made = []
    for row, one in zip(found, compared, strict=True):
        score = average_score(tasks, row, baseline, found, in_percent)
        ends = score.alone()
        about = row.label | {"rule": rule, "tasks": len(tasks), "n": min(row.samples[task].n for task in tasks)}
        about |= {"value": score.value, "lower": ends.lower, "upper": ends.upper, "baseline": row.is_baseline}
        if one is not None and baseline is not None:
            about |= {"difference": one.value, "difference_verdict": one.verdict}
            about |= {f"difference_{key}": getattr(one, key) for key in ("lower", "upper", "p", "p_corrected")}
            wins = [inference.better(row.samples[task].scores, baseline.samples[task].scores) for task in tasks]
            about |= {"better": float(np.mean(wins))}
        made.append(about)
    return pd.DataFrame([{"difference_verdict": ""} | row for row in made], columns=columns)


OF_AVERAGE = (
    *("value", "lower", "upper", "difference", "difference_lower", "difference_upper", "difference_p"),
    *("difference_p_corrected", "difference_verdict", "better", "baseline"),
)


def is_in_percent(sweep: Sweep) -> bool:
    """Whether the metrics of all tasks are, so that their mean is one."""
    return all(metric_range(metric)[1] == 100 for metric in sweep.tasks.values())


def _compared(sweep: Sweep, found: Sequence[Row], baseline: Row | None) -> list[Comparison | None]:
    """Each row's average less the baseline's, as a family of their own."""
    others = [row for row in found if not row.is_baseline] if baseline is not None else []
    if baseline is None or not others:
        return [None] * len(found)
    estimates = [average_difference(list(sweep.tasks), row, baseline, found, is_in_percent(sweep)) for row in others]
    made = iter(families.contrasts(estimates, 1 - LEVEL, [sweep.manifest["margin"].get("percent")] * len(others)))
    return [None if row.is_baseline else next(made) for row in found]


def average_score(
    tasks: Sequence[str], row: Row, baseline: Row | None, among: Sequence[Row], in_percent: bool
) -> Estimate:
    """`among`: the rows of the table, whose variance is pooled where they have one in common."""
    if in_percent:
        return inference.average([inference.mean(row.samples[task]) for task in tasks])
    assert baseline is not None  # or there is no average of metrics that differ
    if row.is_baseline:
        return Estimate(100.0, math.nan, 0, math.nan)  # of itself
    return inference.average([_relative(task, row, baseline, among) for task in tasks])


def average_difference(tasks: Sequence[str], row: Row, other: Row, among: Sequence[Row], in_percent: bool) -> Estimate:
    """One row's average less another's; where metrics differ, in percent of the other's score."""
    if in_percent:
        return inference.average([difference(task, row, other, among) for task in tasks])
    shares = [_relative(task, row, other, among) for task in tasks]
    return inference.average([replace(one, value=one.value - 100) for one in shares])


def difference(task: str, row: Row, other: Row, among: Sequence[Row]) -> Estimate:
    """One row less another on one task, with the variance of all rows, or with their own two where theirs are higher."""
    return inference.contrast(*_weighed(task, {id(row): 1.0, id(other): -1.0}, among))


def _relative(task: str, row: Row, baseline: Row, among: Sequence[Row]) -> Estimate:
    """In percent of the baseline's score. Both answer the same examples, so each counts as far as it moves the ratio."""
    means = [inference.contrast(*_weighed(task, {id(one): 1.0}, among)) for one in (row, baseline)]
    found = inference.relative(*means)
    ours, theirs = row.samples[task].examples, baseline.samples[task].examples
    if ours is None or theirs is None or len(ours) != len(theirs):
        return found
    moved = 100 * (ours - found.value / 100 * theirs) / means[1].value
    return replace(found, se_examples=float(moved.std(ddof=1)) / math.sqrt(len(moved)))


def _weighed(task: str, weights: dict[int, float], among: Sequence[Row]) -> tuple[list[float], list[Sample], bool]:
    """Weights, samples, and whether one variance is pooled: not where a sample with a weight varies more than the rest."""
    there = [row for row in among if task in row.samples]
    samples, of_each = [row.samples[task] for row in there], [weights.get(id(row), 0.0) for row in there]
    seen = inference.variances(samples)
    if any(weight and noisy for weight, noisy in zip(of_each, seen.noisy, strict=True)):
        return of_each, samples, False
    kept = [at for at, pooled in enumerate(seen.pooled) if pooled or of_each[at]]
    return [of_each[at] for at in kept], [samples[at] for at in kept], True


def detectable(sweep: Sweep) -> pd.DataFrame:
    """The smallest differences from the baseline that the table tells apart with power 0.8: a row per task and split that it
    shows, the median over its columns.

    Columns: task, split, metric, n (the smallest), difference (points of the metric, or of the share kept), with_5_seeds.
    """
    what = KEPT if sweep.manifest["kept_from"] is not None else "value"
    found = groups(sweep)
    counts = sizes(sweep, found, what)
    columns: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for label, numbers in blocks(sweep, found, what).items():
        samples = [found[number].sample(what) for number in numbers]
        n = min(sample.n for sample in samples)
        variance, df = inference.pooled_variance(samples)
        first = found[numbers[0]].label
        if (first["task"], first["split"]) not in sweep.shown or n < 2 or not df:
            continue
        errors = [inference.contrast([1, -1], [row, samples[0]], pooled=False).se_examples for row in samples[1:]]
        of_examples = 0.0 if math.isnan(median(errors)) else median(errors)
        both = [
            _detectable(seeds, len(samples) - 1, share_of(counts[label]), math.sqrt(variance), of_examples)
            for seeds in (n, FIVE)
        ]
        columns.setdefault((first["task"], first["split"]), []).append((n, both[0], both[1]))
    rows = [
        {"task": task, "split": split, "metric": sweep.tasks[task], "n": min(n for n, _, _ in ones)}
        | {"difference": median(now for _, now, _ in ones), "with_5_seeds": median(five for _, _, five in ones)}
        for (task, split), ones in columns.items()
    ]
    return pd.DataFrame(rows, columns=["task", "split", "metric", "n", "difference", "with_5_seeds"])


def _detectable(n: int, rows: int, alpha: float, sd: float, of_examples: float) -> float:
    """In points: what seeds of this standard deviation allow, and a test set with this standard error of a difference."""
    critical = power.dunnett(math.inf, n, [n] * rows, alpha)
    reached = power.two_sided(math.inf, 2 * (1 - POWER))  # what a difference must exceed the critical value by
    return math.hypot(sd * power.detectable(n, rows, alpha, POWER), of_examples * (critical + reached))
