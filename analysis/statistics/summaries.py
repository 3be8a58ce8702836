"""Summaries over the cells of a table: the trend along a numeric axis, the average over tasks, the detectable difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.frame import Sweep
from analysis.statistics import families, inference
from analysis.statistics.comparisons import blocks, family_sizes
from analysis.statistics.families import Comparison
from analysis.statistics.inference import Estimate, Sample
from analysis.statistics.samples import KEPT, Group, Row, groups, metric_range
from analysis.statistics.samples import rows as rows_of
from analysis.statistics.trends import Trend, trend
from mmprompt.studies import power
from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.power import share_of

FIVE = 5  # number of seeds for which the detectable difference is computed besides the actual number
POWER = 0.8
FEWEST = 3  # number of values from which an axis has a trend
ENDS = ("", "_lower", "_upper", "_p")


def trends(sweep: Sweep) -> pd.DataFrame:
    """Returns the trend of the score along the compared axis, if its values are numbers above 0.

    There is a row per other label, task and split. Columns: the labels, task, split, metric, axis, n (runs); slope (points per
    doubling), slope_lower, slope_upper, slope_p; curvature (points per doubling squared; negative if the slope falls) with
    curvature_lower, curvature_upper, curvature_p; turning_point (the value of the axis at which the parabola turns; NaN unless
    the curvature is significant and it turns within the range); lack_of_fit_p (of the straight line).
    """
    labels = [*(name for name in sweep.roles if name != sweep.compare), "task", "split"]
    cells_of_label: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups(sweep):
        cells_of_label.setdefault(tuple(group.label[name] for name in labels), []).append(group)
    rows = []
    for label, cells in cells_of_label.items():
        found_trend = trend_of([group.label[sweep.compare] for group in cells], [group.sample() for group in cells])
        if found_trend is None:
            continue
        row = dict(zip(labels, label, strict=True)) | {"metric": cells[0].metric, "axis": sweep.compare}
        row |= {"n": sum(len(group.seeds) for group in cells)}
        for name, estimate in (("slope", found_trend.slope), ("curvature", found_trend.curvature)):
            ends = estimate.alone()
            row |= {
                name: estimate.value,
                f"{name}_lower": ends.lower,
                f"{name}_upper": ends.upper,
                f"{name}_p": estimate.p,
            }
        rows.append(row | {"turning_point": found_trend.turning_point, "lack_of_fit_p": found_trend.lack_of_fit_p})
    columns = [f"{name}{end}" for name in ("slope", "curvature") for end in ENDS]
    return pd.DataFrame(rows, columns=[*labels, "metric", "axis", "n", *columns, "turning_point", "lack_of_fit_p"])


def trend_of(x: Sequence[Any], samples: Sequence[Sample]) -> Trend | None:
    """Returns the trend over the values that have runs; None if values are not positive numbers, too few, or of one seed each."""
    with_runs = [(value, sample) for value, sample in zip(x, samples, strict=True) if sample.n]
    are_positive_numbers = all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0 for value in x
    )
    if not are_positive_numbers or len(with_runs) < FEWEST or all(sample.n < 2 for _, sample in with_runs):
        return None
    return trend([float(value) for value, _ in with_runs], [sample for _, sample in with_runs])


def averages(sweep: Sweep) -> pd.DataFrame:
    """Returns the average over tasks of each row that has all of them.

    It averages scores if every metric is in percent, otherwise scores in percent of the baseline's. Several splits of a task are
    averaged first. (The paper does not say how its Table 6 averages.)

    Columns: the row labels, rule, tasks, n (the smallest of a task), value, lower, upper; difference from the baseline with
    difference_lower, difference_upper, difference_p, difference_p_corrected and difference_verdict (Holm); better (how often a
    run of this row beats a run of the baseline on the same task, ties counted half, mean over tasks); baseline. Empty for a single
    task, for rows along a further axis (`over`), and if metrics differ and there is no baseline.
    """
    labels, tasks, in_percent = list(sweep.roles), list(sweep.tasks), is_in_percent(sweep)
    columns = [*labels, "rule", "tasks", "n", *OF_AVERAGE]
    complete_rows = (
        [row for row in rows_of(sweep) if all(task in row.samples for task in tasks)] if sweep.over is None else []
    )
    baseline = next((row for row in complete_rows if row.is_baseline), None)
    if len(tasks) < 2 or not complete_rows or (baseline is None and not in_percent):
        return pd.DataFrame(columns=columns)
    compared = _compared(sweep, complete_rows, baseline)
    rule = "mean over tasks" if in_percent else "mean over tasks of the score in percent of the baseline's"
    table_rows = []
    for row, comparison in zip(complete_rows, compared, strict=True):
        score = average_score(tasks, row, baseline, complete_rows, in_percent)
        ends = score.alone()
        columns_of_row = row.label | {
            "rule": rule,
            "tasks": len(tasks),
            "n": min(row.samples[task].n for task in tasks),
        }
        columns_of_row |= {"value": score.value, "lower": ends.lower, "upper": ends.upper, "baseline": row.is_baseline}
        if comparison is not None and baseline is not None:
            columns_of_row |= {"difference": comparison.value, "difference_verdict": comparison.verdict}
            columns_of_row |= {
                f"difference_{key}": getattr(comparison, key) for key in ("lower", "upper", "p", "p_corrected")
            }
            wins = [inference.share_of_wins(row.samples[task].scores, baseline.samples[task].scores) for task in tasks]
            columns_of_row |= {"better": float(np.mean(wins))}
        table_rows.append(columns_of_row)
    return pd.DataFrame([{"difference_verdict": ""} | row for row in table_rows], columns=columns)


OF_AVERAGE = (
    *("value", "lower", "upper", "difference", "difference_lower", "difference_upper", "difference_p"),
    *("difference_p_corrected", "difference_verdict", "better", "baseline"),
)


def is_in_percent(sweep: Sweep) -> bool:
    """Whether the metrics of all tasks are in percent, so that their mean is too."""
    return all(metric_range(metric)[1] == 100 for metric in sweep.tasks.values())


def _compared(sweep: Sweep, all_rows: Sequence[Row], baseline: Row | None) -> list[Comparison | None]:
    """Each row's average minus the baseline's, as a separate family; None for the baseline itself, or without one."""
    others = [row for row in all_rows if not row.is_baseline] if baseline is not None else []
    if baseline is None or not others:
        return [None] * len(all_rows)
    estimates = [average_difference(list(sweep.tasks), row, baseline, all_rows, is_in_percent(sweep)) for row in others]
    comparisons = iter(
        families.contrasts(estimates, 1 - LEVEL, [sweep.manifest["margin"].get("percent")] * len(others))
    )
    return [None if row.is_baseline else next(comparisons) for row in all_rows]


def average_score(
    tasks: Sequence[str], row: Row, baseline: Row | None, among: Sequence[Row], in_percent: bool
) -> Estimate:
    """Estimates a row's average over tasks. `among`: the rows of the table, whose variances are pooled where they agree."""
    if in_percent:
        return inference.average([inference.mean(row.samples[task]) for task in tasks])
    assert baseline is not None  # without a baseline there is no average of different metrics
    if row.is_baseline:
        return Estimate(100.0, math.nan, 0, math.nan)  # percent of itself
    return inference.average([_relative(task, row, baseline, among) for task in tasks])


def average_difference(tasks: Sequence[str], row: Row, other: Row, among: Sequence[Row], in_percent: bool) -> Estimate:
    """Estimates one row's average minus another's; if metrics differ, in percent of the other's score."""
    if in_percent:
        return inference.average([difference(task, row, other, among) for task in tasks])
    shares = [_relative(task, row, other, among) for task in tasks]
    return inference.average([replace(one, value=one.value - 100) for one in shares])


def difference(task: str, row: Row, other: Row, among: Sequence[Row]) -> Estimate:
    """Estimates one row minus another on one task, with the variance of all rows, or with their own two if these are higher."""
    return inference.contrast(*_weighed(task, {id(row): 1.0, id(other): -1.0}, among))


def _relative(task: str, row: Row, baseline: Row, among: Sequence[Row]) -> Estimate:
    """Estimates a row's score in percent of the baseline's. Both answer the same examples, so each example counts by its influence
    on the ratio (delta method)."""
    means = [inference.contrast(*_weighed(task, {id(one): 1.0}, among)) for one in (row, baseline)]
    ratio = inference.relative(*means)
    ours, theirs = row.samples[task].examples, baseline.samples[task].examples
    if ours is None or theirs is None or len(ours) != len(theirs):
        return ratio
    moved = 100 * (ours - ratio.value / 100 * theirs) / means[1].value
    return replace(ratio, se_examples=float(moved.std(ddof=1)) / math.sqrt(len(moved)))


def _weighed(task: str, weights: dict[int, float], among: Sequence[Row]) -> tuple[list[float], list[Sample], bool]:
    """The weights, the samples, and whether their variance is pooled: not if a sample with a weight varies more than the rest."""
    with_task = [row for row in among if task in row.samples]
    samples, all_weights = [row.samples[task] for row in with_task], [weights.get(id(row), 0.0) for row in with_task]
    found_variances = inference.variances(samples)
    if any(weight and noisy for weight, noisy in zip(all_weights, found_variances.noisy, strict=True)):
        return all_weights, samples, False
    used = [at for at, pooled in enumerate(found_variances.pooled) if pooled or all_weights[at]]
    return [all_weights[at] for at in used], [samples[at] for at in used], True


def detectable(sweep: Sweep) -> pd.DataFrame:
    """Returns the smallest differences from the baseline that the table can detect with power 0.8.

    There is a row per task and split that it shows, with the median over the columns of the table. Columns: task, split, metric, n
    (the smallest), difference (points of the metric, or of the share kept), with_5_seeds (the same with 5 seeds).
    """
    column = KEPT if sweep.manifest["kept_from"] is not None else "value"
    all_groups = groups(sweep)
    counts = family_sizes(sweep, all_groups, column)
    columns: dict[tuple[str, str], list[tuple[int, float, float]]] = {}
    for label, numbers in blocks(sweep, all_groups, column).items():
        samples = [all_groups[number].sample(column) for number in numbers]
        n = min(sample.n for sample in samples)
        variance, df = inference.pooled_variance(samples)
        first = all_groups[numbers[0]].label
        if (first["task"], first["split"]) not in sweep.shown or n < 2 or not df:
            continue
        errors = [inference.contrast([1, -1], [row, samples[0]], pooled=False).se_examples for row in samples[1:]]
        of_examples = 0.0 if math.isnan(median(errors)) else median(errors)
        differences = [
            _detectable(seeds, len(samples) - 1, share_of(counts[label]), math.sqrt(variance), of_examples)
            for seeds in (n, FIVE)
        ]
        columns.setdefault((first["task"], first["split"]), []).append((n, differences[0], differences[1]))
    rows = [
        {"task": task, "split": split, "metric": sweep.tasks[task], "n": min(n for n, _, _ in values)}
        | {"difference": median(now for _, now, _ in values), "with_5_seeds": median(five for _, _, five in values)}
        for (task, split), values in columns.items()
    ]
    return pd.DataFrame(rows, columns=["task", "split", "metric", "n", "difference", "with_5_seeds"])


def _detectable(n: int, rows: int, alpha: float, sd: float, of_examples: float) -> float:
    """The detectable difference in points, for n seeds.

    `sd`: standard deviation over seeds. `of_examples`: standard error that the test set adds to a difference.
    """
    critical = power.dunnett(math.inf, n, [n] * rows, alpha)
    reached = power.two_sided(math.inf, 2 * (1 - POWER))  # by so much a difference must exceed the critical value
    return math.hypot(sd * power.detectable(n, rows, alpha, POWER), of_examples * (critical + reached))
