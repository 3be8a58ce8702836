"""The paper's own values as a figure of their own: other data, another model, one seed, so never beside ours in one panel.

Words that are compared are told apart as in our figures, a row for each split of a task; a number is an axis, a line for each
split. What lies on the same spot is set apart.
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
from analysis.figures import AROUND, columns_of, finished, grid_of
from analysis.panels import SCORE, Quantity, face, label, number_axis, value_axis
from analysis.paper_values import Published
from analysis.scales import Scale, are_numbers, limits
from analysis.style import LINES, MARKER, WIDTHS, Look, applied, looks
from mmprompt.families.registry import PRIMARY_METRIC

PANEL = 1.45  # inches: the least width of a panel
LEAST = 5.0  # what an axis spans at least, in points: what differs by less is noise in the paper, which has one seed
EACH = 0.075  # inches: from one value of a row to the next
NAME = 0.1  # inches: from the name of a line to the next
SIZES = ("base", "large")  # of OFA, before what is compared, where a table has both


def drawn(published: Iterable[Published]) -> Published | None:
    """Which of what the paper has is drawn: its figure, else its table; scores only."""
    parts = [part for part in published if part.rows["metric"].isin(PRIMARY_METRIC.values()).any()]
    return next((part for part in parts if part.place.startswith("Figure")), parts[0] if parts else None)


def draw(part: Published, axis: str, *, width: str = "text") -> Figure:
    """`axis`: ours that the part is about. `width`: one of `analysis.style.WIDTHS`."""
    rows = part.rows[part.rows["metric"].isin(PRIMARY_METRIC.values())]
    with applied():
        return finished((_lines if are_numbers(rows["x"]) else _rows)(rows, axis, WIDTHS[width]))


def caption(part: Published) -> str:
    """What a reader has to know."""
    return (
        f"{part.place} of the paper (arXiv 2208.02532): {part.about}. Other data and another model than in our figure; "
        f"no spread over seeds was published. An axis spans {LEAST:g} points at least.\n"
    )


def _rows(rows: pd.DataFrame, axis: str, width: float) -> Figure:
    """A row per split."""
    keys = list(rows["x"].astype(str).drop_duplicates())
    known, called = _looks(keys), {key: _name(axis, key) for key in keys}
    tasks = list(rows["task"].drop_duplicates())
    columns = columns_of(len(tasks), width / PANEL)
    pitch = 0.08 + EACH * len(keys)
    most = max(rows.groupby("task")["split"].nunique())
    entries = [Line2D([], [], label=called[key], **face(look, _is_base(key))) for key, look in known.items()]
    figure, grid = grid_of(len(tasks), columns, [pitch * most], width, entries, [AROUND])
    for task, (ax,) in zip(tasks, grid, strict=True):
        own = rows[rows["task"] == task]
        splits = list(own["split"].drop_duplicates())
        for number, key in enumerate(keys):
            those = own[own["x"].astype(str) == key]
            shift = (number - (len(keys) - 1) / 2) * EACH / (pitch * most / len(splits))
            places = [splits.index(split) + shift for split in those["split"]]
            ax.plot(those["value"], places, gid="mean", **face(known[key], _is_base(key)))
        ax.set_yticks(range(len(splits)), [names.split(split) for split in splits])
        ax.set_ylim(len(splits) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        for between in range(1, len(splits)):
            ax.axhline(between - 0.5, color="#e6e6e6", lw=0.5, zorder=0)
        ax.grid(visible=True, axis="x")
        metric = own["metric"].iloc[0]
        value_axis(ax, "x", Quantity(*SCORE, metric), limits(own["value"], metric, least=LEAST), width / columns - 0.45)
        ax.set_title(names.task(task))
        ax.set_xlabel(names.metric(metric))
    return figure


def _lines(rows: pd.DataFrame, axis: str, width: float) -> Figure:
    """A line per split, with its name where it ends. All of them are prompts, so their colour and marker are one."""
    look = looks(["prompt"])["prompt"]
    tasks = list(rows["task"].drop_duplicates())
    columns = columns_of(len(tasks), width / PANEL)
    height = 1.0
    figure, grid = grid_of(len(tasks), columns, [height], width, [], [AROUND])
    for task, (ax,) in zip(tasks, grid, strict=True):
        own = rows[rows["task"] == task]
        metric, scale = own["metric"].iloc[0], Scale.of(own["x"])
        bounds = limits(own["value"], metric, least=LEAST)
        ends = {}
        splits = list(own["split"].drop_duplicates())
        for number, split in enumerate(splits):
            line = own[own["split"] == split]
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
    """Each name beside the end of its line, so far from the next that both can be read."""
    order = sorted(ends, key=ends.__getitem__)
    places = np.array([ends[name] for name in order])
    for _ in range(20):
        for low, high in pairwise(range(len(places))):
            lack = max(0.0, apart - (places[high] - places[low])) / 2
            places[low], places[high] = places[low] - lack, places[high] + lack
    style: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 6.5, "color": look.colour}
    for name, place in zip(order, places, strict=True):
        ax.text(1.02, place, name, transform=ax.get_yaxis_transform(), **style)


def _looks(keys: Sequence[str]) -> dict[str, Look]:
    """Of a method for every size of the model."""
    known = looks(_without_size(key) for key in keys)
    return {key: replace(known[_without_size(key)]) for key in keys}


def _without_size(key: str) -> str:
    first, _, rest = key.partition(" ")
    return rest if first in SIZES and rest else key


def _is_base(key: str) -> bool:
    """The smaller model's markers are hollow."""
    return key != _without_size(key) and key.startswith("base")


def _name(axis: str, key: str) -> str:
    rest = _without_size(key)
    return names.value(axis, rest) + (f", {key.split(' ')[0]}" if rest != key else "")
