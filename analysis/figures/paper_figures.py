"""The figure of the paper's own values, separate from ours as they come from other data, another model and one seed.

Compared words have the same looks as in our figures, with a row for each split of a task. A compared number is an axis, with a
line for each split. Markers that would coincide are shifted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import names
from analysis.figures.panel_grid import AROUND, columns_of, grid_of
from analysis.figures.panels import SCORE, Quantity, face, label, number_axis, value_axis
from analysis.figures.scales import Scale, are_numbers, limits
from analysis.figures.shown_figure import finished
from analysis.figures.style import LINES, MARKER, WIDTHS, Look, applied, looks
from analysis.paper_values import Published
from mmprompt.families.registry import PRIMARY_METRIC

PANEL = 1.45  # inches: the least width of a panel
LEAST = 5.0  # points: the least span of an axis; the paper has one seed, so smaller differences are noise
EACH = 0.075  # inches between the values of a row
NAME = 0.1  # inches between the names of lines
SIZES = ("base", "large")  # sizes of OFA, which precede the compared value where a table has both


def choose_part(published: Iterable[Published]) -> Published | None:
    """Chooses the part of the paper that is drawn: its figure, otherwise its table; None if neither has scores."""
    parts = [part for part in published if part.rows["metric"].isin(PRIMARY_METRIC.values()).any()]
    return next((part for part in parts if part.place.startswith("Figure")), parts[0] if parts else None)


def draw(part: Published, axis: str, *, width: str = "text") -> Figure:
    """Returns the figure of a part of the paper.

    `axis`: our axis that the part compares. `width`: one of `analysis.figures.style.WIDTHS`.
    """
    rows = part.rows[part.rows["metric"].isin(PRIMARY_METRIC.values())]
    with applied():
        return finished((_lines if are_numbers(rows["x"]) else _rows)(rows, axis, WIDTHS[width]))


def caption(part: Published) -> str:
    """Returns the caption of the figure."""
    return (
        f"{part.place} of the paper (arXiv 2208.02532): {part.about}. Other data and another model than in our figure; "
        f"no spread over seeds was published. An axis spans {LEAST:g} points at least.\n"
    )


def _rows(rows: pd.DataFrame, axis: str, width: float) -> Figure:
    """The figure of compared words, with a row per split."""
    keys = list(rows["x"].astype(str).drop_duplicates())
    look_of, name_of = _looks(keys), {key: _name(axis, key) for key in keys}
    tasks = list(rows["task"].drop_duplicates())
    columns = columns_of(len(tasks), width / PANEL)
    pitch = 0.08 + EACH * len(keys)
    most = max(rows.groupby("task")["split"].nunique())
    entries = [Line2D([], [], label=name_of[key], **face(look, _is_base(key))) for key, look in look_of.items()]
    figure, grid = grid_of(len(tasks), columns, [pitch * most], width, entries, [AROUND])
    for task, (ax,) in zip(tasks, grid, strict=True):
        rows_of_task = rows[rows["task"] == task]
        splits = list(rows_of_task["split"].drop_duplicates())
        for number, key in enumerate(keys):
            marked = rows_of_task[rows_of_task["x"].astype(str) == key]
            shift = (number - (len(keys) - 1) / 2) * EACH / (pitch * most / len(splits))
            places = [splits.index(split) + shift for split in marked["split"]]
            ax.plot(marked["value"], places, gid="mean", **face(look_of[key], _is_base(key)))
        ax.set_yticks(range(len(splits)), [names.split(split) for split in splits])
        ax.set_ylim(len(splits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        for between in range(1, len(splits)):
            ax.axhline(between - 0.5, color="#e6e6e6", lw=0.5, zorder=0)
        ax.grid(visible=True, axis="x")
        metric = rows_of_task["metric"].iloc[0]
        value_axis(
            ax,
            "x",
            Quantity(*SCORE, metric),
            limits(rows_of_task["value"], metric, least=LEAST),
            width / columns - 0.45,
        )
        ax.set_title(names.task(task))
        ax.set_xlabel(names.metric(metric))
    return figure


def _lines(rows: pd.DataFrame, axis: str, width: float) -> Figure:
    """The figure over a compared number, with a line per split and its name at its end.

    All values are of prompts, so the lines have the same colour and marker.
    """
    look = looks(["prompt"])["prompt"]
    tasks = list(rows["task"].drop_duplicates())
    columns = columns_of(len(tasks), width / PANEL)
    height = 1.0
    figure, grid = grid_of(len(tasks), columns, [height], width, [], [AROUND])
    for task, (ax,) in zip(tasks, grid, strict=True):
        rows_of_task = rows[rows["task"] == task]
        metric, scale = rows_of_task["metric"].iloc[0], Scale.of(rows_of_task["x"])
        bounds = limits(rows_of_task["value"], metric, least=LEAST)
        ends = {}
        splits = list(rows_of_task["split"].drop_duplicates())
        for number, split in enumerate(splits):
            line = rows_of_task[rows_of_task["split"] == split]
            style = face(look, False) | {"ls": LINES[number], "lw": 0.9, "ms": MARKER * 0.8}
            shift = 0.012 * (number - (len(splits) - 1) / 2)
            ax.plot(scale.at(line["x"], shift), line["value"], gid="line", **style)
            ends[names.split(split)] = float(line["value"].iloc[-1])
        value_axis(ax, "y", Quantity(*SCORE, metric), bounds, height)
        inches = width / columns - 0.75
        ticks = scale.named({x: names.value(axis, x) for x in scale.places}, inches)
        number_axis(ax, scale, ticks, (0.0, 0.0), True)
        if len(ends) > 1:
            _name_ends(ax, ends, (bounds[1] - bounds[0]) * NAME / height, look)
        ax.set_title(names.task(task))
        label(ax, names.metric(metric))
        ax.set_xlabel(names.axis(axis))
    return figure


def _name_ends(ax: Axes, ends: dict[str, float], apart: float, look: Look) -> None:
    """Writes the name of each line beside its end. `apart`: the least distance of two names, in units of the axis."""
    order = sorted(ends, key=ends.__getitem__)
    places = np.array([ends[name] for name in order])
    for _ in range(20):
        for low, high in pairwise(range(len(places))):
            overlap = max(0.0, apart - (places[high] - places[low])) / 2
            places[low], places[high] = places[low] - overlap, places[high] + overlap
    style: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 6.5, "color": look.colour}
    for name, place in zip(order, places, strict=True):
        ax.text(1.02, place, name, transform=ax.get_yaxis_transform(), **style)


def _looks(keys: Sequence[str]) -> dict[str, Look]:
    """The look of each key: that of its method, the same for every size of the model."""
    look_of_method = looks(_without_size(key) for key in keys)
    return {key: replace(look_of_method[_without_size(key)]) for key in keys}


def _without_size(key: str) -> str:
    first, _, rest = key.partition(" ")
    return rest if first in SIZES and rest else key


def _is_base(key: str) -> bool:
    """Whether a key names the smaller model, whose markers are hollow."""
    return key != _without_size(key) and key.startswith("base")


def _name(axis: str, key: str) -> str:
    rest = _without_size(key)
    return names.value(axis, rest) + (f", {key.split(' ')[0]}" if rest != key else "")
