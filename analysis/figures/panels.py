"""The drawing of single panels: rows with a mean and its interval, lines over a number, learning curves.

Only positions are computed here. The frames are those of `analysis.statistics.cell_statistics.cells` with the additional
columns `key` (the row or line that a value belongs to) and, for lines, `x`. A quantity is three columns: its value, its lower
and its upper end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from analysis.figures.scales import LOG_FROM, MARGIN, Scale, limits, metric_range, ticks
from analysis.figures.style import DOT, GREY, LINE_GREY, MARKER, WHISKER, Look
from analysis.statistics.cell_statistics import whole_state

MARKS = {"equivalent": "=", "not known": "~"}  # as in the tables; a significant difference has no mark
MEAN_AT, RUNS_AT = (
    -0.14,
    0.16,
)  # in row heights, downward from the row's middle: position of the mean, and of the first run
RUNS_SPREAD = 0.2  # in row heights: distance from the first to the last run of a cell
ASIDE, APART = 0.045, 0.009  # inches, in panels of lines: from a mean to its first run, and from one run to the next
REFERENCES: dict[str, dict[str, Any]] = {
    "baseline": {"ls": (0, (4, 2)), "label": "Mean of the baseline"},
    "zero_shot": {"ls": (0, (5, 1.5, 1, 1.5)), "label": "Backbone without tuning"},
    "chance": {"ls": (0, (1, 1.5)), "label": "Chance"},
}
RULE: dict[str, Any] = {"color": LINE_GREY, "lw": 0.7, "zorder": 1}


@dataclass(frozen=True)
class Quantity:
    """The quantity on a panel's axis of values."""

    value: str  # the column of its value
    ends: str  # the columns of its ends are ENDS_lower and ENDS_upper; "" for lower and upper
    metric: str  # the metric that gives its range and unit
    is_difference: bool = False

    def ends_of(self, rows: pd.DataFrame) -> np.ndarray:
        """The lower and upper ends of each row, within the metric's range. Shape: (rows, 2)."""
        prefix = f"{self.ends}_" if self.ends else ""
        both = rows[[f"{prefix}lower", f"{prefix}upper"]].to_numpy(float)
        return both if self.is_difference else np.clip(both, *metric_range(self.metric))

    def limits(self, rows: pd.DataFrame, more: Iterable[float] = ()) -> tuple[float, float]:
        """The limits of its axis. `more`: values that are shown besides means and intervals."""
        shown = [*rows[self.value], *self.ends_of(rows).flat, *more]
        return limits(shown, self.metric, self.is_difference)


SCORE = "value", ""
DIFFERENCE = "difference", "difference"
KEPT = "kept", "kept"
KEPT_DIFFERENCE = "kept_difference", "kept_difference"


def face(look: Look, is_baseline: bool) -> dict[str, Any]:
    """The style of a marker; the baseline's is hollow."""
    size = MARKER * {"s": 0.9, "D": 0.85, "d": 1.1, "P": 1.15, "X": 1.15, "^": 1.05, "v": 1.05}.get(look.marker, 1.0)
    style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "ms": size, "mew": 0.8, "lw": 0}
    return style | {"mfc": "white" if is_baseline else look.colour}


# Rows


def rows(ax: Axes, cells: pd.DataFrame, keys: Sequence[str], looks: Mapping[str, Look], quantity: Quantity) -> None:
    """Draws a row for each key, downward: mean and interval."""
    cell: Any
    for (low, high), cell in zip(quantity.ends_of(cells), cells.itertuples(), strict=True):
        at, look = keys.index(cell.key) + (0.0 if quantity.is_difference else MEAN_AT), looks[cell.key]
        value = getattr(cell, quantity.value)
        if math.isnan(value):
            word = "" if quantity.is_difference else _state(cell)
            ax.text(0.5, at - MEAN_AT * (not quantity.is_difference), word, **_words(ax.get_yaxis_transform()))
            continue
        ax.plot([low, high], [at, at], color=look.colour, lw=WHISKER, solid_capstyle="butt", gid="interval")
        ax.plot([value], [at], gid="mean", **face(look, cell.baseline))
    ax.set_ylim(len(keys) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(len(keys)), [""] * len(keys))
    ax.grid(visible=True, axis="x")


def runs_of_rows(ax: Axes, runs: pd.DataFrame, keys: Sequence[str], looks: Mapping[str, Look]) -> None:
    """Draws a dot per run below its mean, each a little lower than the one before, so that none hides another."""
    for key, group in runs.groupby("key", sort=False):
        step = RUNS_SPREAD / max(1, len(group) - 1)
        places = keys.index(str(key)) + RUNS_AT + step * np.arange(len(group))
        ax.plot(group["value"], places, gid="runs", **_dots(looks[str(key)]))


def marks_of_rows(ax: Axes, cells: pd.DataFrame, keys: Sequence[str]) -> None:
    """Marks the differences that are not significant, to the right of their rows."""
    for cell in cells[~cells["baseline"]].itertuples():
        if mark := _mark(cell):
            ax.annotate(
                mark,
                (1.0, keys.index(cell.key)),
                (1, 0),
                xycoords=ax.get_yaxis_transform(),
                textcoords="offset points",
                ha="left",
                va="center",
                fontsize=7,
                color=GREY,
            )


def value_axis(ax: Axes, which: str, quantity: Quantity, bounds: tuple[float, float], inches: float) -> None:
    """Sets limits and ticks of the axis of values. `which`: x or y. `inches`: the length of the axis."""
    set_limits, axis = (ax.set_xlim, ax.xaxis) if which == "x" else (ax.set_ylim, ax.yaxis)
    set_limits(*bounds)
    places = ticks(*bounds, inches, quantity.metric, quantity.is_difference, across=which == "x")
    axis.set_ticks(places, [_number(place) for place in places])


def reference_lines(ax: Axes, which: str, references: Mapping[str, float]) -> None:
    """Draws lines across a panel at these values of its axis of values."""
    draw = ax.axvline if which == "x" else ax.axhline
    for name, value in references.items():
        draw(value, ls=REFERENCES[name]["ls"], gid=name, **RULE)


def zero(ax: Axes, which: str, margin: float | None) -> None:
    """Draws the line of no difference and, if there is a margin, the band within which a difference counts as none."""
    line, span = (ax.axvline, ax.axvspan) if which == "x" else (ax.axhline, ax.axhspan)
    line(0.0, color="#444444", lw=0.6, zorder=1, gid="zero")
    if margin is not None:
        span(-margin, margin, color="#efefef", lw=0, zorder=0, gid="margin")


# Lines


def lines(
    ax: Axes,
    cells: pd.DataFrame,
    keys: Sequence[str],
    looks: Mapping[str, Look],
    quantity: Quantity,
    scale: Scale,
    dodge: float,
) -> None:
    """Draws means with whiskers, a line for each key. `dodge`: the shift between keys, as a share of the axis."""
    for key in keys:
        line = cells[cells["key"] == key]
        look, shift = looks[key], _shift(keys, key, dodge)
        x = np.array(scale.at(line["x"], shift))
        ends = quantity.ends_of(line)
        ax.vlines(x, ends[:, 0], ends[:, 1], color=look.colour, lw=WHISKER * (0.8 if len(keys) > 3 else 1.0))
        line_style = look.line if scale.line and not quantity.is_difference else ""
        has_value = line[quantity.value].notna().to_numpy()
        ax.plot(x, line[quantity.value], ls=line_style, color=look.colour, lw=0.8, gid="line")
        for is_baseline in (False, True):
            marked = (line["baseline"] == is_baseline).to_numpy() & has_value
            if marked.any():
                style = face(look, is_baseline)
                ax.plot(x[marked], line.loc[marked, quantity.value], gid="mean", **(style | _small(keys, style)))
        if not quantity.is_difference:
            _mark_missing(ax, line[~has_value], x[~has_value], look, len(keys))


def runs_of_lines(
    ax: Axes,
    runs: pd.DataFrame,
    keys: Sequence[str],
    looks: Mapping[str, Look],
    scale: Scale,
    dodge: float,
    inches: float,
) -> None:
    """Draws a dot per run to the left of its mean, each a little further away than the one before."""
    for (key, x), group in runs.groupby(["key", "x"], sort=False):
        places = scale.places[x] + _shift(keys, str(key), dodge) - (ASIDE + APART * np.arange(len(group))) / inches
        ax.plot(places, group["value"], gid="runs", **_dots(looks[str(key)]))


def marks_of_lines(ax: Axes, cells: pd.DataFrame, scale: Scale) -> None:
    """Marks the differences of one line that are not significant, above the panel."""
    for cell in cells[~cells["baseline"]].itertuples():
        if mark := _mark(cell):
            at = (scale.places[cell.x], 1.0)
            ax.text(*at, mark, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7, color=GREY)


def trend(ax: Axes, cells: pd.DataFrame, slope: float, scale: Scale) -> None:
    """Draws a straight line of this slope per doubling through the middle of the means."""
    with_value = cells[cells["value"].notna()]
    doublings = np.log2(with_value["x"].to_numpy(float))
    fitted = with_value["value"].mean() + slope * (doublings - doublings.mean())
    ax.plot(scale.at(with_value["x"]), fitted, ls=(0, (2, 1.5)), gid="trend", **RULE)


def number_axis(ax: Axes, scale: Scale, names: Mapping[Any, str], beside: tuple[float, float], is_last: bool) -> None:
    """Sets a tick at each value of the compared axis and nowhere else, with names only below the last of several panels.

    `beside`: how far marks reach to the left and right of a value, as shares of the axis.
    """
    ax.set_xticks([scale.places[value] for value in names], list(names.values()) if is_last else [""] * len(names))
    ax.set_xlim(-MARGIN - beside[0], 1 + MARGIN + beside[1])
    ax.grid(visible=True, axis="y")
    if scale.apart:  # the axis is broken
        (zero, first) = sorted(scale.places.values())[:2]
        look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6, "color": GREY}
        box = {"pad": 0.1, "fc": "white", "lw": 0}
        ax.text((zero + first) / 2, 0, "//", transform=ax.get_xaxis_transform(), bbox=box, **look)


def logarithmic(ax: Axes, cells: pd.DataFrame, quantity: Quantity, more: Iterable[float]) -> bool:
    """Makes the axis of values logarithmic if its values span a wide range and no interval ends near 0.

    Returns whether it is logarithmic now.
    """
    if metric_range(quantity.metric)[1] <= 100.0:  # percent
        return False
    values, ends = cells[quantity.value].to_numpy(float), quantity.ends_of(cells)
    values, low, high = (each[np.isfinite(each)] for each in (values, ends[:, 0], ends[:, 1]))
    if not len(values) or values.min() <= 0 or values.max() / values.min() < LOG_FROM:
        return False
    least, most = min([values.min(), *low, *more]), max([values.max(), *high, *more])
    if least < values.min() / 3:
        return False
    ax.set_yscale("log")
    margin = (most / least) ** (1.4 * MARGIN)
    top = min(most * margin, (1 + 1.4 * MARGIN) * metric_range(quantity.metric)[1])
    ax.set_ylim(least / margin, top)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    places = [each * 10.0**power for power in powers for each in (1, 2, 5)]
    places = [place for place in places if least / margin <= place <= top]
    ax.set_yticks(places, [_number(place) for place in places])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    return True


# Learning curves


def curve(ax: Axes, line: pd.DataFrame, x: str, metric: str, look: Look, number: int) -> None:
    """Draws mean and band over seeds of one line. `number`: its place among the lines, which shifts its markers from theirs."""
    low, high = metric_range(metric)
    ax.fill_between(
        line[x], line["lower"].clip(low, high), line["upper"].clip(low, high), color=look.colour, alpha=0.16, lw=0
    )
    every = max(1, len(line) // 6)
    style = face(look, False) | {"ls": look.line, "lw": 0.9, "ms": MARKER * 0.8}
    ax.plot(line[x], line["value"], markevery=((2 * number) % every, every), gid="line", **style)


def reached(ax: Axes, line: pd.DataFrame, x: str, share: float, look: Look) -> None:
    """Draws a line at this share of the curve's best score, and one down to the axis from where the curve first reaches it."""
    threshold = share * line["value"].max()
    first = line[line["value"] >= threshold].iloc[0]
    ax.axhline(threshold, color=look.colour, lw=0.6, ls=(0, (1, 1.5)), zorder=1)
    ax.plot([first[x]] * 2, [ax.get_ylim()[0], first["value"]], color=look.colour, lw=0.6, ls=(0, (1, 1.5)), zorder=1)
    ax.plot([first[x]], [first["value"]], gid="reached", **(face(look, True) | {"ms": MARKER * 1.4, "zorder": 4}))


# Shared by all panels


def label(ax: Axes, text: str) -> None:
    """Labels the vertical axis of values; the lines of the label are as close as in print."""
    ax.set_ylabel(text, linespacing=0.95)


def above(ax: Axes, text: str) -> None:
    """Writes a small text at the right end of a panel's title line."""
    ax.set_title(text, loc="right", fontsize=6.5, color=GREY)


def _mark(cell: Any) -> str:
    """The mark of a difference that is not significant; a difference without an interval is not known."""
    if math.isnan(cell.difference) or cell.difference_verdict in ("higher", "lower"):
        return ""
    return MARKS.get(cell.difference_verdict, MARKS["not known"])


def _shift(keys: Sequence[str], key: str, dodge: float) -> float:
    return dodge * (keys.index(key) - (len(keys) - 1) / 2)


def _small(keys: Sequence[str], style: Mapping[str, Any]) -> dict[str, Any]:
    """The style of smaller markers, for panels with many lines."""
    return {"ms": 0.72 * style["ms"], "mew": 0.6} if len(keys) > 3 else {}


def _dots(look: Look) -> dict[str, Any]:
    return {"marker": "o", "color": look.colour, "ms": DOT, "mew": 0, "lw": 0, "alpha": 0.75, "zorder": 3}


def _words(transform: Any) -> dict[str, Any]:
    box = {"pad": 0.4, "fc": "white", "lw": 0}
    return {"transform": transform, "ha": "center", "va": "center", "fontsize": 6.5, "color": GREY, "bbox": box}


def _state(cell: Any) -> str:
    """The words that explain why a value is absent. An average over tasks has no runs of its own, and so no state; in percent of a
    baseline whose score is 0 it is not defined."""
    if not hasattr(cell, "conflict"):
        return "not defined" if cell.n else "missing"
    return whole_state(cell) or "missing"


def _mark_missing(ax: Axes, cells: pd.DataFrame, x: np.ndarray, look: Look, lines: int) -> None:
    """Writes why values are absent; if there are many lines, draws a cross on the axis for runs that diverged or failed."""
    for place, cell in zip(x, cells.itertuples(), strict=True):
        word = _state(cell)
        if lines <= 3:
            ax.text(place, 0.04, word, rotation=90, **(_words(ax.get_xaxis_transform()) | {"va": "bottom"}))
        elif word != "missing":
            style: dict[str, Any] = {"marker": "x", "color": look.colour, "ms": 2.8, "mew": 0.9}
            ax.plot([place], [0.03], transform=ax.get_xaxis_transform(), lw=0, gid="lost", **style)


def _number(value: float) -> str:
    """The number with a minus sign instead of a hyphen."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
