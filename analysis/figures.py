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
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.lines import Line2D

from analysis.frame import Sweep
from analysis.published import Published
from analysis.statistics import whole_state
from mmprompt.config import PRIMARY_METRIC
from mmprompt.files import write_over
from mmprompt.intervals import LEVEL

WIDTH = 6.8  # inches: the text width of a page
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe and Ito: told apart by every eye
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#555555"
DIGIT = 0.057  # inches: width of a digit at the size of the tick labels
FEW = 3  # lines, of which single runs are shown too
LETTERS = 20.3  # of the text below the panels, per inch
LINE = 0.16  # inches: height of a line of a title
GAP = 0.2  # of x, between 0 and the smallest other value on a logarithmic axis
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


def draw(
    sweep: Sweep, cells: pd.DataFrame, published: Iterable[Published], curves: pd.DataFrame | None = None
) -> Figure:
    """Ours above; below, a block for the paper's figure that the sweep names, or its table if it names no figure.

    `curves`: learning curves, where the sweep asks for those and not for its cells.
    """
    parts = [part for part in published if part.rows["metric"].isin(PRIMARY_METRIC.values()).any()]
    papers = [part for part in parts if part.place.startswith("Figure")] or parts
    x = sweep.over or sweep.compare
    lines = set(_lines(sweep, cells, x))
    ours = 0.5 + LINE * (len(lines) > 1) + _height(1.8, len(sweep.shown), 2, [] if curves is not None else cells[x])
    heights = [ours, *(0.5 + _height(1.3, _tasks(part).nunique(), 3, part.rows["x"]) for part in papers)]
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
        blocks = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if curves is None:
            _draw_ours(blocks[0], sweep, cells)
        else:
            _draw_learning(blocks[0], sweep, curves)
        for block, part in zip(blocks[1:], papers, strict=True):
            _draw_papers(block, part, sweep.compare)
    return figure


def _height(each: float, panels: int, columns: int, x: Iterable[Any]) -> float:
    """Inches that rows of panels take, with room for the names of values that are turned because they do not fit."""
    values = list(x)
    columns = min(columns, panels)
    names = Scale.of(values).names if values else []
    room = DIGIT * max(len(line) for name in names for line in name.split("\n")) if names else 0.0
    crowded = bool(names) and Scale.of(values).is_crowded(columns)
    return -(-panels // columns) * (each + (room - DIGIT * 3 if crowded else 0.0))


def _tasks(part: Published) -> pd.Series:
    """Those that have a panel."""
    return part.rows.loc[part.rows["metric"].isin(PRIMARY_METRIC.values()), "task"]


def save(figure: Figure, stem: Path) -> None:
    """STEM.png and STEM.pdf."""
    png, pdf = io.BytesIO(), io.BytesIO()
    with matplotlib.style.context(["default", STYLE]):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    write_over(stem.with_name(f"{stem.name}.png"), png.getbuffer())
    write_over(stem.with_name(f"{stem.name}.pdf"), pdf.getbuffer())


def _draw_ours(block: SubFigure, sweep: Sweep, cells: pd.DataFrame) -> None:
    x = sweep.over or sweep.compare
    cells, runs = _with_series(cells, sweep, x), _with_series(sweep.scores, sweep, x)
    series = list(cells["series"].drop_duplicates())
    few = len(series) <= FEW
    marked = few and sweep.over is None and cells["baseline"].any()
    dots = "; dots: single runs" if few else "; lines are set a little apart"
    interval = f"mean and {LEVEL:.0%} t interval over seeds{dots}{'; hollow: baseline' if marked else ''}"
    about = f"{_about(sweep)}; {interval}."
    title(block, f"Measured here: sweep {sweep.manifest['sweep']}", about, lines=int(len(series) > 1))
    for (ax, task), split in _panels_of(block, sweep):
        shown = cells[(cells["task"] == task) & (cells["split"] == split)]
        scale = Scale.of(shown["x"])
        for number, name in enumerate(series):
            shift = 0.025 * (number - (len(series) - 1) / 2) * min(1.0, 2.5 / len(series))
            line = shown[shown["series"] == name]
            if few:
                those = runs[(runs["task"] == task) & (runs["split"] == split) & (runs["series"] == name)]
                _draw_runs(ax, those, scale, shift, number)
            _draw_means(ax, line if marked else line.assign(baseline=False), scale, shift, number)
        scale.apply(ax)
        widen(ax)
        _name(ax, task, f"{sweep.tasks[task]}, {split}", x)
        say(ax, _n(shown))
    if len(series) > 1:
        _legend(block, series)


def _draw_learning(block: SubFigure, sweep: Sweep, curves: pd.DataFrame) -> None:
    """The score on validation against epochs, or updates where runs do not say how many epochs those were."""
    x = "epoch" if len(curves) and curves["epoch"].notna().all() else "step"
    interval = f"score on validation while training (part of the split): mean and {LEVEL:.0%} t interval over seeds"
    curves = _with_series(curves, sweep, x)
    series = list(curves["series"].drop_duplicates())
    about = f"{_about(sweep)}; {interval}."
    title(block, f"Measured here: sweep {sweep.manifest['sweep']}", about, lines=1)
    for (ax, task), _ in _panels_of(block, sweep):
        shown = curves[curves["task"] == task]
        for number, name in enumerate(series):
            line = shown[shown["series"] == name]
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "lw": 0}
            ax.fill_between(line["x"], line["lower"], line["upper"], alpha=0.2, **look)
            look |= {"marker": MARKERS[number % len(MARKERS)], "ms": 2.5, "lw": 1.0}
            ax.plot(line["x"], line["value"], markevery=max(1, len(line) // 8), **look)
        widen(ax)
        ax.set_xlim(left=0)
        _name(ax, task, f"{sweep.tasks[task]}, {sweep.validation[task]}", x)
        low, high = shown["n"].min(), shown["n"].max()
        say(ax, "missing" if not len(shown) else f"n = {low}" if low == high else f"n = {low} to {high}")
    _legend(block, series)


def _about(sweep: Sweep) -> str:
    return ", ".join(f"{key} {value}" for key, value in sweep.manifest["header"].items())


def _panels_of(block: SubFigure, sweep: Sweep) -> list[tuple[tuple[Axes, str], str]]:
    """A panel for each task and split that is shown."""
    panels = _panels(block, len(sweep.shown), 2)
    return [((ax, task), split) for ax, (task, split) in zip(panels, sweep.shown, strict=True)]


def say(ax: Axes, text: str) -> None:
    ax.text(1, 1.03, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5, color=GREY)


def _legend(block: SubFigure, series: list[str]) -> None:
    looks = [(MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]) for i in range(len(series))]
    lines = [Line2D([], [], marker=marker, color=colour, ms=4, lw=0.9) for marker, colour in looks]
    top = 1 - (LINE + 0.02) / block.bbox.height * block.figure.dpi  # below the title
    block.legend(lines, series, loc="upper left", bbox_to_anchor=(0.004, top), ncols=len(lines))


def _draw_papers(block: SubFigure, part: Published, compare: str) -> None:
    scales = "Other data, another model; each panel has its own scale"
    title(block, f"The paper's {part.place}", f"{part.about}. {scales}.")
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
    lost = cells[cells["n"] == 0]
    for place, row in zip(scale.at(lost["x"], shift), lost.itertuples(), strict=True):
        at = ax.get_xaxis_transform()
        ax.text(
            place,
            0.03,
            whole_state(row) or "missing",
            transform=at,
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=6,
            color=GREY,
        )


def _draw_runs(ax: Axes, runs: pd.DataFrame, scale: Scale, shift: float, number: int) -> None:
    """One dot per run, a little to the left of its mean."""
    style: dict[str, Any] = {"marker": ".", "color": COLOURS[number % len(COLOURS)], "ms": 4.5, "mew": 0, "alpha": 0.4}
    ax.plot(scale.at(runs["x"], shift - 0.017), runs["value"], linestyle="", **style)


@dataclass(frozen=True)
class Scale:
    """Where the values of the compared axis lie, from 0 to 1. Numbers keep their distances; words are evenly spaced."""

    places: dict[Any, float]
    line: str  # values of a number are joined by a line; between words there is nothing
    apart: bool = False  # whether 0 stands apart, left of where a logarithmic axis begins

    @staticmethod
    def of(values: Iterable[Any]) -> Scale:
        present = list(dict.fromkeys(values))
        if len(present) == 1 or not all(isinstance(value, Real) for value in present):
            return Scale({value: (i + 0.5) / len(present) for i, value in enumerate(present)}, "")
        low, high = min(present), max(present)
        above = min(value for value in present if value > low)
        apart = low == 0 and high / above >= LOG_FROM
        first = above if apart else low
        stretch = math.log if first > 0 and high / first >= LOG_FROM else float
        begin = GAP if apart else 0.0
        span = (stretch(high) - stretch(first)) / (1 - begin)
        places = {value: begin + (stretch(value) - stretch(first)) / span for value in present if value >= first}
        return Scale({value: places.get(value, 0.0) for value in present}, "-", apart)

    def at(self, values: pd.Series, shift: float) -> list[float]:
        return [self.places[value] + shift for value in values]

    @property
    def names(self) -> list[str]:
        """Of the ticks: words below each other."""
        return [f"{value:g}" if isinstance(value, Real) else str(value).replace(" ", "\n") for value in self.places]

    def is_crowded(self, columns: int) -> bool:
        """Whether names do not fit side by side, as those of 100 and 120 on a third of a page."""
        width = (WIDTH / columns - 0.6) / (1 + 2 * MARGIN)  # inches, about, from place 0 to 1
        nearest = min((right - left for left, right in pairwise(sorted(self.places.values()))), default=1.0) * width
        return nearest < DIGIT * max(len(line) for name in self.names for line in name.split("\n"))

    def apply(self, ax: Axes) -> None:
        """A tick at each value and nowhere else."""
        spec = ax.get_subplotspec()
        assert spec is not None  # every panel is one of a grid
        rotation = 90 if self.is_crowded(spec.get_gridspec().ncols) else 0
        ax.set_xticks(list(self.places.values()), self.names, rotation=rotation)
        ax.set_xlim(-MARGIN, 1 + MARGIN)
        if self.apart:  # the axis is broken
            look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6, "color": GREY}
            box = {"pad": 0.1, "fc": "white", "lw": 0}
            ax.text(GAP / 2, 0, "//", transform=ax.get_xaxis_transform(), bbox=box, **look)


def _panels(block: SubFigure, count: int, columns: int) -> list[Axes]:
    columns = min(columns, count)
    panels = list(block.subplots(-(-count // columns), columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_visible(False)
    return panels[:count]


def widen(ax: Axes) -> None:
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


def title(block: FigureBase, text: str, about: str, lines: int = 0, width: float = WIDTH) -> None:
    """Above the panels, with room for so many lines of a legend; `about` below them. `width`: of the figure, inches."""
    block.suptitle(text + "\n" * lines, x=0.008, ha="left", fontsize=8, fontweight="bold")
    wrapped = textwrap.fill(about, int(LETTERS * width))
    block.supxlabel(wrapped, x=0.008, ha="left", fontsize=6.5, color=GREY)


def _with_series(rows: pd.DataFrame, sweep: Sweep, x: str) -> pd.DataFrame:
    """x, and the name of the line a row belongs to: its other labels."""
    return rows.assign(x=rows[x], series=_lines(sweep, rows, x))


def _lines(sweep: Sweep, rows: pd.DataFrame, x: str) -> list[str]:
    others = [name for name in sweep.roles if name != x]
    return [
        ", ".join(f"{name} {row[name]}" if name in sweep.extra_axes else str(row[name]) for name in others)
        for _, row in rows.iterrows()
    ]


def _n(cells: pd.DataFrame) -> str:
    """`n = 3`, or `n = 1 to 3 of 3` while values are missing."""
    low, high, planned = cells["n"].min(), cells["n"].max(), cells["planned"].max()
    if low == high == planned:
        return f"n = {planned}"
    return f"n = {low} of {planned}" if low == high else f"n = {low} to {high} of {planned}"
