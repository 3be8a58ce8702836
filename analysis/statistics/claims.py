"""The claims of a sweep, and whether its runs show them.

A claim is a contrast that the sweep's file declares, with the expected direction. All claims of a sweep, on all their tasks,
form one family (Holm), separate from the comparisons in its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.records.frame import Sweep
from analysis.records.manifest import axis_value
from analysis.statistics import families
from analysis.statistics.comparisons import margin_of
from analysis.statistics.families import Comparison
from analysis.statistics.inference import Estimate
from analysis.statistics.samples import KEPT, Row, rows
from analysis.statistics.summaries import average_difference, difference, is_in_percent, trend_of
from mmprompt.studies.intervals import LEVEL

AVERAGE = "average over tasks"
VERDICTS = ("holds", "reversed", "differs", "equivalent", "not known")
ENDS = ("lower", "upper", "single_lower", "single_upper")
COLUMNS = ["claim", "paper", "expect", "of", "task", "quantity", "n", "value", *ENDS, "p", "p_corrected", "margin"]
COLUMNS += ["among", "verdict"]


@dataclass(frozen=True)
class Contrast:
    """A contrast of rows on one task, or on their average."""

    task: str
    quantity: str  # the metric, kept, or a fact
    estimate: Estimate
    n: int  # runs of the smaller row; for a trend, of all rows
    margin: float | None  # a smaller difference does not matter


def claims(sweep: Sweep) -> pd.DataFrame:
    """Returns a row per claim and task.

    Columns: claim (the sentence), paper (the place in the paper), expect (higher, lower, equivalent), of (the labels that
    distinguish this contrast from the claim's other ones), task, quantity (metric, kept or a fact), n (runs of the smaller row),
    value of the contrast, lower and upper (at the level of its step in Holm's procedure), single_lower and single_upper (95 %,
    uncorrected), p, p_corrected, margin, among (the size of the family), verdict.
    """
    family = [(claim, *labelled) for claim in sweep.manifest["claims"] for labelled in _contrasts(sweep, claim)]
    comparisons = families.contrasts(
        [contrast.estimate for _, _, contrast in family], 1 - LEVEL, [contrast.margin for _, _, contrast in family]
    )
    table_rows = [
        {key: claim[key] for key in ("claim", "expect")}
        | {"paper": claim["paper"] or "", "of": of, "among": len(family)}
        | contrast_columns(contrast, comparison)
        | {"verdict": verdict(claim["expect"], comparison)}
        for (claim, of, contrast), comparison in zip(family, comparisons, strict=True)
    ]
    return pd.DataFrame(table_rows, columns=COLUMNS)


def contrast_columns(contrast: Contrast, comparison: Comparison) -> dict[str, Any]:
    """The columns that describe a contrast, and those that give its result."""
    about = {key: getattr(contrast, key) for key in ("task", "quantity", "n", "margin")}
    return about | {key: getattr(comparison, key) for key in ("value", *ENDS, "p", "p_corrected", "verdict")}


def verdict(expect: str, comparison: Comparison, level: float = LEVEL) -> str:
    """Returns holds, reversed, equivalent, differs or not known.

    A claim of a difference holds if the difference is significant in the expected direction. It is reversed if the difference is
    significant in the other direction, and equivalent if the difference is shown to be smaller than the margin. A claim of
    equivalence holds if the difference is shown to be smaller than the margin. If it is not, and the difference is significant,
    the verdict is differs. In all other cases the verdict is not known.
    """
    is_equivalent = comparison.p_equivalent < 1 - level  # False where p is NaN
    if expect == "equivalent":
        return "holds" if is_equivalent else "differs" if comparison.verdict in ("higher", "lower") else "not known"
    if comparison.verdict in ("higher", "lower"):
        return "holds" if comparison.verdict == expect else "reversed"
    return "equivalent" if is_equivalent else "not known"


def _contrasts(sweep: Sweep, claim: Mapping[str, Any]) -> Iterator[tuple[str, Contrast]]:
    """Yields each contrast of a claim, after the labels that distinguish it from the claim's other contrasts."""
    all_rows = rows(sweep, claim["quantity"])
    if claim["trend"] is not None:
        yield from _trends(sweep, claim, all_rows)
        return
    for of, row, other in _pairs(sweep, claim, all_rows):
        yield from ((of, one) for one in row_contrasts(sweep, all_rows, row, other, claim["quantity"], claim["tasks"]))


def row_contrasts(
    sweep: Sweep, all_rows: Sequence[Row], row: Row, other: Row, quantity: str, tasks: str
) -> Iterator[Contrast]:
    """Yields one row minus another: on each task that both have, or on average over all tasks.

    `all_rows`: all rows of the sweep, whose variances may be pooled. `tasks`: "each", or anything else for the average.
    """
    both = [task for task in sweep.tasks if task in row.samples and task in other.samples]
    if tasks == "each":
        for task in both:
            n = min(row.samples[task].n, other.samples[task].n)
            name, margin = _quantity(sweep, quantity, task)
            yield Contrast(task, name, difference(task, row, other, all_rows), n, margin)
    elif len(both) == len(sweep.tasks):
        in_percent = quantity == KEPT or (quantity == "score" and is_in_percent(sweep))
        name = "mean" if in_percent else "percent of the other's"
        n = min(one.samples[task].n for one in (row, other) for task in both)
        estimate = average_difference(both, row, other, all_rows, in_percent)
        yield Contrast(AVERAGE, name, estimate, n, sweep.manifest["margin"].get("percent"))


def _quantity(sweep: Sweep, quantity: str, task: str) -> tuple[str, float | None]:
    """The name of the quantity that is compared on a task, and the margin below which its differences do not matter."""
    if quantity == "score":
        return sweep.tasks[task], margin_of(sweep, sweep.tasks[task], "value")
    return quantity, sweep.manifest["margin"].get(quantity)


def _pairs(sweep: Sweep, claim: Mapping[str, Any], all_rows: list[Row]) -> Iterator[tuple[str, Row, Row]]:
    """Yields the two rows of a claim after their common label; a sweep with further axes has a pair for each of their values."""
    other_labels = [name for name in sweep.roles if name not in (sweep.compare, sweep.over)]
    for row in all_rows:
        for other in all_rows:
            alike = all(row.label[name] == other.label[name] for name in other_labels)
            if alike and _has_values(row, claim["row"]) and _has_values(other, claim["than"]):
                yield " ".join(str(row.label[name]) for name in other_labels), row, other


def _has_values(row: Row, values: Mapping[str, Any]) -> bool:
    return all(row.values[axis] == axis_value(values, axis) for axis in values)


def _trends(sweep: Sweep, claim: Mapping[str, Any], all_rows: list[Row]) -> Iterator[tuple[str, Contrast]]:
    """Yields the contrasts of a claim about a trend: the slope per doubling, or the curvature, on each task."""
    other_labels = [name for name in sweep.roles if name not in (sweep.compare, sweep.over)]
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in all_rows:
        lines.setdefault(tuple(row.label[name] for name in other_labels), []).append(row)
    for label, line in lines.items():
        for task in sweep.tasks:
            rows_of_task = [row for row in line if task in row.samples]
            fitted = trend_of(
                [row.label[sweep.compare] for row in rows_of_task], [row.samples[task] for row in rows_of_task]
            )
            if fitted is not None:
                name, _ = _quantity(sweep, claim["quantity"], task)
                n = sum(row.samples[task].n for row in rows_of_task)
                estimate = getattr(fitted, claim["trend"])
                yield " ".join(map(str, label)), Contrast(task, f"{name} per doubling", estimate, n, None)


def verdict_counts(claim_rows: pd.DataFrame) -> str:
    """Counts the verdicts of one claim: `holds on 2 of 4 tasks, not known on 2`."""
    counts = [(word, int((claim_rows["verdict"] == word).sum())) for word in VERDICTS]
    nonzero = [(word, count) for word, count in counts if count]
    if len(claim_rows) == 1:
        return nonzero[0][0]
    first, *rest = [f"{word} on {count}" for word, count in nonzero]
    return ", ".join([f"{first} of {len(claim_rows)} tasks", *rest])
