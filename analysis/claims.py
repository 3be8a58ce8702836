"""What a sweep declares to show, and whether its runs show it.

A claim is a contrast that the sweep's file declares, with the direction in which it is expected to go. All of a sweep's
claims, on all their tasks, are one family (Holm), apart from the comparisons of its table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis import families
from analysis.comparisons import margin_of
from analysis.families import Comparison
from analysis.frame import Sweep
from analysis.inference import Estimate
from analysis.manifest import axis_value
from analysis.samples import KEPT, Row, rows
from analysis.summaries import average_difference, difference, is_in_percent, trend_of
from mmprompt.studies.intervals import LEVEL

AVERAGE = "average over tasks"
VERDICTS = ("holds", "reversed", "differs", "equivalent", "not known")
ENDS = ("lower", "upper", "single_lower", "single_upper")
COLUMNS = ["claim", "paper", "expect", "of", "task", "quantity", "n", "value", *ENDS, "p", "p_corrected", "margin"]
COLUMNS += ["among", "verdict"]


@dataclass(frozen=True)
class Asked:
    """A contrast of rows on one task, or on their average."""

    task: str
    quantity: str  # the metric, kept, or a fact
    estimate: Estimate
    n: int  # runs of the smaller row; of a trend, of all rows
    margin: float | None  # differences that do not matter


def claims(sweep: Sweep) -> pd.DataFrame:
    """A row per claim and task. Columns:

    claim (the sentence), paper (where it says so), expect (higher, lower, equivalent), of (labels that tell rows of several
    apart), task, quantity (metric, kept or a fact), n (runs of the smaller row), value of the contrast, lower and upper (at
    the level of its step of Holm's procedure), single_lower and single_upper (95 %, by itself), p, p_corrected, margin, among
    (how many were asked together), verdict.
    """
    asked = [(claim, *one) for claim in sweep.manifest["claims"] for one in _asked(sweep, claim)]
    made = families.contrasts([one.estimate for _, _, one in asked], 1 - LEVEL, [one.margin for _, _, one in asked])
    found = [
        {key: claim[key] for key in ("claim", "expect")}
        | {"paper": claim["paper"] or "", "of": of, "among": len(asked)}
        | columns(one, seen)
        | {"verdict": verdict(claim["expect"], seen)}
        for (claim, of, one), seen in zip(asked, made, strict=True)
    ]
    return pd.DataFrame(found, columns=COLUMNS)


def columns(asked: Asked, seen: Comparison) -> dict[str, Any]:
    """What was asked and what came of it."""
    about = {key: getattr(asked, key) for key in ("task", "quantity", "n", "margin")}
    return about | {key: getattr(seen, key) for key in ("value", *ENDS, "p", "p_corrected", "verdict")}


def verdict(expect: str, seen: Comparison, level: float = LEVEL) -> str:
    """holds, reversed, equivalent, differs or not known.

    Where a difference was expected it holds if it is told apart from 0 on that side, is reversed if on the other, and is
    equivalent if it is shown to be smaller than the margin. Where equivalence was expected that is what holds, and a
    difference that is told apart, and not shown to be smaller than the margin, differs. Otherwise the verdict is not known.
    """
    is_equivalent = seen.p_equivalent < 1 - level  # not where it is NaN
    if expect == "equivalent":
        return "holds" if is_equivalent else "differs" if seen.verdict in ("higher", "lower") else "not known"
    if seen.verdict in ("higher", "lower"):
        return "holds" if seen.verdict == expect else "reversed"
    return "equivalent" if is_equivalent else "not known"


def _asked(sweep: Sweep, claim: Mapping[str, Any]) -> Iterator[tuple[str, Asked]]:
    """With the labels that tell its rows from others of the kind."""
    there = rows(sweep, claim["quantity"])
    if claim["trend"] is not None:
        yield from _trends(sweep, claim, there)
        return
    for of, row, other in _pairs(sweep, claim, there):
        yield from ((of, one) for one in asked_of(sweep, there, row, other, claim["quantity"], claim["tasks"]))


def asked_of(sweep: Sweep, there: Sequence[Row], row: Row, other: Row, quantity: str, tasks: str) -> Iterator[Asked]:
    """One row less another: on each task that both have, or their average over all tasks. `there`: all rows of the sweep."""
    both = [task for task in sweep.tasks if task in row.samples and task in other.samples]
    if tasks == "each":
        for task in both:
            n = min(row.samples[task].n, other.samples[task].n)
            name, margin = _quantity(sweep, quantity, task)
            yield Asked(task, name, difference(task, row, other, there), n, margin)
    elif len(both) == len(sweep.tasks):
        in_percent = quantity == KEPT or (quantity == "score" and is_in_percent(sweep))
        name = "mean" if in_percent else "percent of the other's"
        n = min(one.samples[task].n for one in (row, other) for task in both)
        estimate = average_difference(both, row, other, there, in_percent)
        yield Asked(AVERAGE, name, estimate, n, sweep.manifest["margin"].get("percent"))


def _quantity(sweep: Sweep, quantity: str, task: str) -> tuple[str, float | None]:
    """What is compared on a task, by name, and how much of it does not matter."""
    if quantity == "score":
        return sweep.tasks[task], margin_of(sweep, sweep.tasks[task], "value")
    return quantity, sweep.manifest["margin"].get(quantity)


def _pairs(sweep: Sweep, claim: Mapping[str, Any], there: list[Row]) -> Iterator[tuple[str, Row, Row]]:
    """The two rows of a claim; of a sweep with further axes, those of each of their values."""
    apart = [name for name in sweep.roles if name not in (sweep.compare, sweep.over)]
    for row in there:
        for other in there:
            alike = all(row.label[name] == other.label[name] for name in apart)
            if alike and _is(row, claim["row"]) and _is(other, claim["than"]):
                yield " ".join(str(row.label[name]) for name in apart), row, other


def _is(row: Row, wanted: Mapping[str, Any]) -> bool:
    return all(row.values[axis] == axis_value(wanted, axis) for axis in wanted)


def _trends(sweep: Sweep, claim: Mapping[str, Any], there: list[Row]) -> Iterator[tuple[str, Asked]]:
    """A claim on the slope per doubling, or on the curvature, of each task."""
    apart = [name for name in sweep.roles if name not in (sweep.compare, sweep.over)]
    lines: dict[tuple[Any, ...], list[Row]] = {}
    for row in there:
        lines.setdefault(tuple(row.label[name] for name in apart), []).append(row)
    for label, line in lines.items():
        for task in sweep.tasks:
            those = [row for row in line if task in row.samples]
            found = trend_of([row.label[sweep.compare] for row in those], [row.samples[task] for row in those])
            if found is not None:
                name, _ = _quantity(sweep, claim["quantity"], task)
                n = sum(row.samples[task].n for row in those)
                estimate = getattr(found, claim["trend"])
                yield " ".join(map(str, label)), Asked(task, f"{name} per doubling", estimate, n, None)


def counted(found: pd.DataFrame) -> str:
    """`holds on 2 of 4 tasks, not known on 2`: of one claim."""
    counts = [(word, int((found["verdict"] == word).sum())) for word in VERDICTS]
    there = [(word, count) for word, count in counts if count]
    if len(found) == 1:
        return there[0][0]
    first, *rest = [f"{word} on {count}" for word, count in there]
    return ", ".join([f"{first} of {len(found)} tasks", *rest])
