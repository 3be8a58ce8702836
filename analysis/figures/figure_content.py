"""The content of a sweep's figure: its panels with their values, and the name and look of each row or line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis import names
from analysis.figures.scales import are_numbers, limits
from analysis.figures.style import LINES, Look, looks
from analysis.records.frame import Sweep
from analysis.records.references import NO_REFERENCES, References

FAR = (
    1.0  # in ranges of the measured values: a reference line that is further off is not drawn, and the caption says so
)
AVERAGE = "average"


@dataclass(frozen=True)
class Panel:
    """The values of one task and split that a panel shows."""

    task: str
    split: str
    title: str
    metric: str
    cells: pd.DataFrame  # with the columns `x` and `key`
    runs: pd.DataFrame
    references: Mapping[str, float]  # keys: names in `REFERENCES`


def is_over_numbers(sweep: Sweep, cells: pd.DataFrame) -> bool:
    """Whether values are drawn over an axis of numbers; otherwise each has a row."""
    x = cells[sweep.over or sweep.compare]
    return are_numbers(x) and x.nunique() > 1


@dataclass(frozen=True)
class Keys:
    """The rows or lines of a figure by key: each has a name and a look, the same in every panel."""

    labels: Sequence[str]  # the columns whose values, joined, are the key
    names: Mapping[str, str]
    looks: Mapping[str, Look]

    @staticmethod
    def of(sweep: Sweep, rows: pd.DataFrame, x: str | None) -> Keys:
        """The keys of these rows. `x`: the label that is the x axis, and so no part of the key.

        A method has its own colour and marker; further labels differ in the style of the line.
        """
        labels = [label for label in sweep.roles if label != x]
        method = next((label for label in labels if "method" in sweep.roles[label]), None)
        alone = str(sweep.manifest["header"].get("method", ""))
        name_of, style_of, variant_of = {}, {}, {}
        for row in rows[labels].drop_duplicates().to_dict("records") if labels else [{}]:
            key = _key(row, labels)
            name_of[key] = ", ".join(_name_of(sweep, label, row[label]) for label in labels)
            style_of[key] = str(row[method]) if method is not None else key or alone
            variant_of[key] = _key(row, [label for label in labels if label != method]) if method is not None else ""
        look_of, variant_list = looks(style_of.values()), list(dict.fromkeys(variant_of.values()))
        own_looks = {
            key: replace(look_of[style_of[key]], line=LINES[variant_list.index(variant_of[key]) % len(LINES)])
            for key in name_of
        }
        return Keys(labels, name_of, own_looks)

    def on(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows with a column `key`."""
        keys = [_key(row, self.labels) for row in rows[list(self.labels)].to_dict("records")]
        return rows.assign(key=pd.Series(keys, rows.index, dtype=object))


def _key(row: Mapping[Any, Any], labels: Sequence[str]) -> str:
    return " ".join(str(row[label]) for label in labels)


def _name_of(sweep: Sweep, label: str, value: Any) -> str:
    name = names.value(label, value)
    return f"{names.axis(label).lower()} {name}" if label in sweep.extra_axes else name


def keys_of(sweep: Sweep, cells: pd.DataFrame, curves: pd.DataFrame | None = None) -> Keys:
    """The keys of a figure of cells, or of learning curves, which has a line for each row of the sweep, done or not."""
    if curves is not None:
        return Keys.of(sweep, sweep.named, sweep.over)
    return Keys.of(sweep, cells, (sweep.over or sweep.compare) if is_over_numbers(sweep, cells) else None)


def panels_of(
    sweep: Sweep,
    cells: pd.DataFrame,
    keys: Keys,
    averages: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
) -> list[Panel]:
    """The panels: one for each task and split that is shown, and one for the average if it is given."""
    x, runs = sweep.over or sweep.compare, sweep.scores
    cells, runs = keys.on(cells.assign(x=cells[x])), keys.on(runs.assign(x=runs[x]))
    runs = runs[runs["value"].notna()]
    tasks = [task for task, _ in sweep.shown]
    panels = []
    for task, split in sweep.shown:
        cells_of_panel, runs_of_panel = (
            each[(each["task"] == task) & (each["split"] == split)] for each in (cells, runs)
        )
        title = names.task(task) + (f", {names.split(split, task)}" if tasks.count(task) > 1 else "")
        compared = {**_baseline_value(cells_of_panel), **references.get((task, split), {})}
        panels.append(Panel(task, split, title, sweep.tasks[task], cells_of_panel, runs_of_panel, compared))
    if averages is not None and len(averages):
        cells_of_panel = keys.on(averages.assign(x=averages[x], failed=0, diverged=0, planned=averages["n"]))
        panels.append(
            Panel(
                AVERAGE, "", names.task(AVERAGE), AVERAGE, cells_of_panel, runs.head(0), _baseline_value(cells_of_panel)
            )
        )
    return panels


def _baseline_value(cells: pd.DataFrame) -> dict[str, float]:
    """The baseline's value as a reference, if there is exactly one."""
    baseline = cells.loc[cells["baseline"], "value"]
    return {"baseline": float(baseline.iloc[0])} if len(baseline) == 1 and baseline.notna().all() else {}


def near(panel: Panel) -> dict[str, float]:
    """The references that are near enough to be drawn: at most FAR ranges of the measured values away from them."""
    ends = panel.cells[["value", "lower", "upper"]].to_numpy(float)
    values = ends[pd.notna(ends)]
    if not len(values):
        return {}
    low, high = limits(values, panel.metric)
    reach = FAR * (high - low)
    return {key: value for key, value in panel.references.items() if low - reach <= value <= high + reach}
