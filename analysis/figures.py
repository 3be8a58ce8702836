"""The figure of a sweep, in the manner of the paper's Figure 2: a panel per task; the paper's own values apart.

Nothing is computed here but where ink goes: points and whiskers are the cells of `analysis.statistics`, dots are runs.
The same values give the same bytes: matplotlib's own style and font whatever the user's are, and no dates.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import matplotlib.style
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D

from analysis.frame import Sweep
from analysis.published import Published
from analysis.statistics import LEVEL
from mmprompt.config import PRIMARY_METRIC
from mmprompt.run import write_over

SPLIT = "test"
WIDTH = 6.8  # inches: the text width of a page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito: told apart by every eye
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#555555"
DIGIT = 0.057  # inches: width of a digit at the size of the tick labels
MARGIN = 0.06  # of x, on either side
MIN_RANGE = 2.0  # of y, in points of the metric
LOG_FROM = 8  # ratio of the largest to the smallest value from which the axis of a number is logarithmic
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 7.5,
    "font.size": 7,
    "grid.color": "#e8e8e8",
    "grid.linewidth": 0.6,
    "legend.borderpad": 0,
    "legend.columnspacing": 0.7,
    "legend.fontsize": 6,
    "legend.frameon": False,
    "legend.handlelength": 0.9,
    "legend.handletextpad": 0.3,
    "pdf.fonttype": 42,
    "xtick.labelsize": 6.5,
    "xtick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 6.5,
    "ytick.major.size": 2.5,
    "ytick.major.width": 0.6,
}


def draw(sweep: Sweep, cells: pd.DataFrame, published: Iterable[Published]) -> Figure:
    """Ours above; below, a block for the paper's figure that the sweep names, or its table if it names no figure."""
    parts = list(published)
    papers = [part for part in parts if part.place.startswith("Figure")] or parts
    heights = [0.5 + 1.8 * -(-len(sweep.tasks) // 2), *(0.5 + 2 * 1.3 for _ in papers)]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        blocks = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_ours(blocks[0], sweep, cells[cells["split"] == SPLIT])
        for block, part in zip(blocks[1:], papers, strict=True):
            _draw_papers(block, part, sweep.compare)
    return figure


def save(figure: Figure, stem: Path) -> None:
    """STEM.png and STEM.pdf."""
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    write_over(stem.with_name(f"{stem.name}.png"), png.getbuffer())
    write_over(stem.with_name(f"{stem.name}.pdf"), pdf.getbuffer())


def _draw_ours(block: SubFigure, sweep: Sweep, cells: pd.DataFrame) -> None:
    about = ", ".join(f"{key} {value}" for key, value in sweep.manifest["header"].items())
    hollow = "; hollow: baseline" if cells["baseline"].any() else ""
    interval = f"mean and {LEVEL:.0%} t interval over seeds; dots: single runs{hollow}"
    _title(block, f"Measured here: sweep {sweep.manifest['sweep']}", f"{about}; {interval}.")
    cells = _with_series(cells, sweep)
    runs = _with_series(sweep.scores[sweep.scores["split"] == SPLIT], sweep)
    series = list(cells["series"].drop_duplicates())
    for ax, (task, metric) in zip(_panels(block, len(sweep.tasks), 2), sweep.tasks.items(), strict=True):
        shown = cells[cells["task"] == task]
        scale = Scale.of(shown["x"])
        for number, name in enumerate(series):
            shift = 0.025 * (number - (len(series) - 1) / 2)
            _draw_runs(ax, runs[(runs["task"] == task) & (runs["series"] == name)], scale, shift, number)
            _draw_means(ax, shown[shown["series"] == name], scale, shift, number)
        scale.apply(ax)
        _widen(ax)
        _name(ax, task, f"{metric}, {SPLIT}", sweep.compare)
        ax.text(1, 1.03, _n(shown), transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5, color=GREY)
    if sweep.extra_axes:
        looks = [(MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]) for i in range(len(series))]
        lines = [Line2D([], [], marker=marker, color=colour, ms=4, lw=0.9) for marker, colour in looks]
        block.legend(lines, series, loc="outside upper right", ncols=len(lines))


def _draw_papers(block: SubFigure, part: Published, compare: str) -> None:
    scales = "Other data, another model; each panel has its own scale"
    _title(block, f"The paper's {part.place}", f"{part.about}. {scales}.")
    rows = part.rows[part.rows["metric"].isin(PRIMARY_METRIC.values())]
    tasks = list(rows["task"].drop_duplicates())
    for ax, task in zip(_panels(block, len(tasks), 3), tasks, strict=True):
        shown = rows[rows["task"] == task]
        scale = Scale.of(shown["x"])
        for number, (split, line) in enumerate(shown.groupby("split", sort=False)):
            style: dict[str, Any] = {"marker": MARKERS[number], "color": COLOURS[number], "ms": 2.8, "lw": 0.9}
            ax.plot(scale.at(line["x"], 0.0), line["value"], linestyle=scale.line, label=split, **style)
        scale.apply(ax)
        _name(ax, task, shown["metric"].iloc[0], compare)
        ax.legend(loc="lower right", bbox_to_anchor=(1.03, 1.0), ncols=3)


def _draw_means(ax: Axes, cells: pd.DataFrame, scale: Scale, shift: float, number: int) -> None:
    """Means with whiskers, the baseline's marker hollow; where no run has a value it says so."""
    colour = COLOURS[number % len(COLOURS)]
    x = scale.at(cells["x"], shift)
    ax.vlines(x, cells["lower"], cells["upper"], color=colour, lw=1.1)
    ax.plot(x, cells["value"], linestyle=scale.line, color=colour, lw=0.7, alpha=0.5)
    for face, rows in ((colour, cells[~cells["baseline"]]), ("white", cells[cells["baseline"]])):
        style: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": colour,
            "mfc": face,
            "ms": 4,
            "mew": 1.1,
        }
        ax.plot(scale.at(rows["x"], shift), rows["value"], linestyle="", **style)
    for place in scale.at(cells.loc[cells["n"] == 0, "x"], shift):
        at = ax.get_xaxis_transform()
        ax.text(place, 0.03, "missing", transform=at, rotation=90, ha="center", va="bottom", fontsize=6, color=GREY)


def _draw_runs(ax: Axes, runs: pd.DataFrame, scale: Scale, shift: float, number: int) -> None:
    """One dot per run, a little to the left of its mean."""
    style: dict[str, Any] = {"marker": ".", "color": COLOURS[number % len(COLOURS)], "ms": 4.5, "mew": 0, "alpha": 0.4}
    ax.plot(scale.at(runs["x"], shift - 0.017), runs["value"], linestyle="", **style)


@dataclass(frozen=True)
class Scale:
    """Where the values of the compared axis lie, from 0 to 1. Numbers keep their distances; words are evenly spaced."""

    places: dict[Any, float]
    line: str  # values of a number are joined by a line; between words there is nothing

    @staticmethod
    def of(values: Iterable[Any]) -> Scale:
        present = list(dict.fromkeys(values))
        if len(present) == 1 or not all(isinstance(value, Real) for value in present):
            return Scale({value: (i + 0.5) / len(present) for i, value in enumerate(present)}, "")
        low, high = min(present), max(present)
        stretch = math.log if low > 0 and high / low >= LOG_FROM else float
        span = stretch(high) - stretch(low)
        return Scale({value: (stretch(value) - stretch(low)) / span for value in present}, "-")

    def at(self, values: pd.Series, shift: float) -> list[float]:
        return [self.places[value] + shift for value in values]

    def apply(self, ax: Axes) -> None:
        """A tick at each value and nowhere else."""
        names = [f"{value:g}" if isinstance(value, Real) else str(value) for value in self.places]
        places = sorted(self.places.values())
        spec = ax.get_subplotspec()
        assert spec is not None  # every panel is one of a grid
        width = (WIDTH / spec.get_gridspec().ncols - 0.6) / (1 + 2 * MARGIN)  # inches, about, from place 0 to 1
        nearest = min((right - left for left, right in pairwise(places)), default=1.0) * width
        crowded = nearest < DIGIT * max(map(len, names))  # as 100 and 120 are on a third of a page
        ax.set_xticks(list(self.places.values()), names, rotation=90 if crowded else 0)
        ax.set_xlim(-MARGIN, 1 + MARGIN)


def _panels(block: SubFigure, count: int, columns: int) -> list[Axes]:
    columns = min(columns, count)
    panels = list(block.subplots(-(-count // columns), columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return panels[:count]


def _widen(ax: Axes) -> None:
    """Small differences stay small: a panel shows a range of two points at least."""
    low, high = ax.get_ylim()
    missing = max(0.0, MIN_RANGE - (high - low)) / 2
    ax.set_ylim(low - missing, high + missing)


def _name(ax: Axes, title: str, metric: str, compare: str) -> None:
    ax.set_title(title)
    ax.set_ylabel(metric)
    spec = ax.get_subplotspec()
    if spec is not None and spec.is_last_row():
        ax.set_xlabel(compare.replace(".", " "))


def _title(block: SubFigure, title: str, about: str) -> None:
    block.suptitle(title, x=0.008, ha="left", fontsize=8, fontweight="bold")
    block.supxlabel(textwrap.fill(about, 145), x=0.008, ha="left", fontsize=6.5, color=GREY)


def _with_series(rows: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """x, and the name of the line a row belongs to: its values of the extra axes."""
    names = [", ".join(f"{axis} {row[axis]}" for axis in sweep.extra_axes) for _, row in rows.iterrows()]
    return rows.assign(x=rows[sweep.compare], series=names)


def _n(cells: pd.DataFrame) -> str:
    """`n = 3`, or `n = 1 to 3 of 3` while values are missing."""
    low, high, planned = cells["n"].min(), cells["n"].max(), cells["planned"].max()
    if low == high == planned:
        return f"n = {planned}"
    return f"n = {low} of {planned}" if low == high else f"n = {low} to {high} of {planned}"
