"""The data that the page's script needs of a sweep: learning curves, scores against costs, and the runs behind each cell."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import matplotlib.colors
import pandas as pd

from analysis import names
from analysis.figures import style
from analysis.records.frame import Sweep
from analysis.reports.report import SweepReport
from analysis.statistics.cell_statistics import WHILE_TRAINING
from analysis.statistics.samples import groups, plain

STEPS = 200  # most steps of a curve; a longer one is thinned at regular distances, and the page says so


def cell_data(sweep: Sweep) -> dict[str, list[list[Any]]]:
    """Returns run, seed and value (null if there is none) of each run of a cell, by the cell's name for `analysis trace`."""
    runs_of_cell = {}
    for group in groups(sweep):
        rows = group.rows
        seeds = rows["seed"] if "seed" in rows else pd.Series(None, index=rows.index, dtype=object)
        runs_of_cell[group.words] = [
            [run, plain(seed), None if pd.isna(value) else float(value)]
            for run, seed, value in zip(rows["run"], seeds, rows["value"], strict=True)
        ]
    return runs_of_cell


def curve_data(report: SweepReport) -> dict[str, Any] | None:
    """Returns the validation scores of each run during training; None if no run has any, or if the sweep trains nothing."""
    if report.sweep.over is not None:
        return None
    rows, _ = report.steps
    if WHILE_TRAINING not in rows:
        return None
    rows = rows[rows[WHILE_TRAINING].notna()]
    sweep = report.sweep
    labels = [name for name in sweep.roles if name != sweep.over]
    row_of_run = sweep.named.drop_duplicates("run").set_index("run")
    colours = colours_of(sweep)
    lines = []
    for run, curve in rows.groupby("run", sort=False):
        row, last = row_of_run.loc[run], curve["step"].max()
        thin = -(-len(curve) // STEPS)
        curve = curve.iloc[(len(curve) - 1) % thin :: thin]  # keeps the last step
        key = " ".join(str(row[name]) for name in labels)
        lines.append(
            {
                "run": run,
                "task": str(row["task"]),
                "label": ", ".join(names.value(name, plain(row[name])) for name in labels),
                "colour": colours[key],
                "seed": plain(row.get("seed")),
                "steps": [int(step) for step in curve["step"]],
                "scores": [round(float(value), 3) for value in curve[WHILE_TRAINING]],
                "epochs": _per_step(row["epochs"], last),
                "hours": _per_step(row["device_hours"], last),
                "thinned": thin > 1,
            }
        )
    return {"tasks": {task: names.task(task) for task in sweep.tasks}, "lines": lines} if lines else None


def colours_of(sweep: Sweep) -> dict[str, str]:
    """The colour of each row: a method's own, as in the figures; for numbers, a scale from dark to bright."""
    labels = [name for name in sweep.roles if name != sweep.over]
    rows = sweep.named.drop_duplicates(labels).sort_values(labels, kind="stable")
    keys = [" ".join(str(value) for value in row) for row in rows[labels].itertuples(index=False, name=None)]
    if not pd.api.types.is_numeric_dtype(sweep.frame[sweep.compare]) or len(labels) > 1:
        return {key: look.colour for key, look in style.looks(keys).items()}
    scale = matplotlib.colormaps["viridis"]
    return {key: matplotlib.colors.to_hex(scale(at / max(1, len(keys) - 1) * 0.9)) for at, key in enumerate(keys)}


def _per_step(whole: Any, steps: int) -> float | None:
    return None if pd.isna(whole) or not steps else float(whole) / steps


def cost_data(report: SweepReport) -> list[dict[str, Any]]:
    """Returns the score of each row and task with its costs: the recorded facts of runs, and the measured quantities."""
    sweep = report.sweep
    if sweep.over is not None:
        return []
    labels = list(sweep.roles)
    colours = colours_of(sweep)
    shown = report.primary[
        [pair in sweep.shown for pair in zip(report.primary["task"], report.primary["split"], strict=True)]
    ]
    recorded = sweep.named.groupby([*labels, "task"], sort=False)[["trainable_parameters", "seconds"]].mean()
    measured = report.costs.frame
    points = []
    for row in shown.to_dict("records"):
        if not row["n"]:
            continue
        place = tuple(row[name] for name in [*labels, "task"])
        takes = {key: float(value) for key, value in recorded.loc[place].items() if not pd.isna(value)}
        measured_rows = (
            measured[(measured[[*labels, "task"]] == list(place)).all(axis=1)] if len(measured) else measured
        )
        takes |= dict(zip(measured_rows["quantity"], measured_rows["median"].astype(float), strict=True))
        key = " ".join(str(row[name]) for name in labels)
        points.append(
            {
                "task": names.task(row["task"]),
                "label": ", ".join(names.value(name, plain(row[name])) for name in labels),
                "colour": colours[key],
                "metric": names.metric(row["metric"]),
                "score": [float(row[key]) if not math.isnan(row[key]) else None for key in ("value", "lower", "upper")],
                "takes": takes,
            }
        )
    return points
