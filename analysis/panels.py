"""The ink of single panels: rows with a mean and its interval each, lines over a number, learning curves.

Nothing is computed here but where ink goes. A frame of `analysis.statistics.cells` comes with the columns `key` (which row or
line a value belongs to) and, of lines, `x`; a quantity is three columns: its value, its lower and its upper end.
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

from analysis.scales import LOG_FROM, MARGIN, Scale, limits, metric_range, ticks
from analysis.statistics import whole_state
from analysis.style import DOT, GREY, LINE_GREY, MARKER, WHISKER, Look

MARKS = {"equivalent": "=", "not known": "~"}  # as in the tables; of what is told apart there is none
MEAN_AT, RUNS_AT = -0.14, 0.16  # of a row's height: where its mean lies, where its first run; rows go downward
RUNS_SPREAD = 0.2  # of a row's height, for all runs of a cell
ASIDE, APART = 0.045, 0.009  # inches, in panels of lines: from a mean to its first run, from one run to the next
REFERENCES: dict[str, dict[str, Any]] = {
    "baseline": {"ls": (0, (4, 2)), "label": "Mean of the baseline"},
    "zero_shot": {"ls": (0, (5, 1.5, 1, 1.5)), "label": "Backbone without tuning"},
    "chance": {"ls": (0, (1, 1.5)), "label": "Chance"},
}
RULE: dict[str, Any] = {"color": LINE_GREY, "lw": 0.7, "zorder": 1}


@dataclass(frozen=True)
class Quantity:
    """What a panel's axis of values shows."""

    value: str  # its column; `_lower` and `_upper` are appended to `ends`
    ends: str  # "" for lower and upper
    metric: str  # whose range and unit it has
    is_difference: bool = False

    def ends_of(self, rows: pd.DataFrame) -> np.ndarray:
        """Lower and upper of each row, within the metric's range. Shape: rows, 2."""
        prefix = f"{self.ends}_" if self.ends else ""
        both = rows[[f"{prefix}lower", f"{prefix}upper"]].to_numpy(float)
        return both if self.is_difference else np.clip(both, *metric_range(self.metric))

    def limits(self, rows: pd.DataFrame, more: Iterable[float] = ()) -> tuple[float, float]:
        """Of its axis. `more`: what is shown besides values and intervals."""
        shown = [*rows[self.value], *self.ends_of(rows).flat, *more]
        return limits(shown, self.metric, self.is_difference)


SCORE = "value", ""
DIFFERENCE = "difference", "difference"
KEPT = "kept", "kept"
KEPT_DIFFERENCE = "kept_difference", "kept_difference"


def face(look: Look, is_baseline: bool) -> dict[str, Any]:
    """A marker; the baseline's is hollow."""
    size = MARKER * {"s": 0.9, "D": 0.85, "d": 1.1, "P": 1.15, "X": 1.15, "^": 1.05, "v": 1.05}.get(look.marker, 1.0)
    style: dict[str, Any] = {"marker": look.marker, "color": look.colour, "ms": size, "mew": 0.8, "lw": 0}
    return style | {"mfc": "white" if is_baseline else look.colour}


# Rows


def rows(ax: Axes, cells: pd.DataFrame, keys: Sequence[str], looks: Mapping[str, Look], quantity: Quantity) -> None:
    """A row for each key, downward: mean and interval."""
    cell: Any
    for (low, high), cell in zip(quantity.ends_of(cells), cells.itertuples(), strict=True):
        at, look = keys.index(cell.key) + (0.0 if quantity.is_difference else MEAN_AT), looks[cell.key]
        value = getattr(cell, quantity.value)
        if math.isnan(value):
            said = "" if quantity.is_difference else _state(cell)
            ax.text(0.5, at - MEAN_AT * (not quantity.is_difference), said, **_words(ax.get_yaxis_transform()))
            continue
        ax.plot([low, high], [at, at], color=look.colour, lw=WHISKER, solid_capstyle="butt", gid="interval")
        ax.plot([value], [at], gid="mean", **face(look, cell.baseline))
    ax.set_ylim(len(keys) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0)
    ax.set_yticks(range(len(keys)), [""] * len(keys))
    ax.grid(visible=True, axis="x")


def runs_of_rows(ax: Axes, runs: pd.DataFrame, keys: Sequence[str], looks: Mapping[str, Look]) -> None:
    """A dot per run below its mean, each a little lower than the one before, so that none hides another."""
    for key, group in runs.groupby("key", sort=False):
        step = RUNS_SPREAD / max(1, len(group) - 1)
        places = keys.index(str(key)) + RUNS_AT + step * np.arange(len(group))
        ax.plot(group["value"], places, gid="runs", **_dots(looks[str(key)]))


def marks_of_rows(ax: Axes, cells: pd.DataFrame, keys: Sequence[str]) -> None:
    """Which differences are not told from nothing, right of their rows."""
    for cell in cells[~cells["baseline"]].itertuples():
        if said := _mark(cell):
            ax.annotate(
                said,
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
    """Limits and ticks of the axis of values, x or y, on which there are so many inches."""
    set_limits, axis = (ax.set_xlim, ax.xaxis) if which == "x" else (ax.set_ylim, ax.yaxis)
    set_limits(*bounds)
    places = ticks(*bounds, inches, quantity.metric, quantity.is_difference, across=which == "x")
    axis.set_ticks(places, [_number(place) for place in places])


def reference_lines(ax: Axes, which: str, found: Mapping[str, float]) -> None:
    """Lines across a panel at these values of its axis of values."""
    draw = ax.axvline if which == "x" else ax.axhline
    for name, value in found.items():
        draw(value, ls=REFERENCES[name]["ls"], gid=name, **RULE)


def zero(ax: Axes, which: str, margin: float | None) -> None:
    """No difference; and where there is a margin, the band within which a difference counts as none."""
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
    """Means with whiskers, a line for each key; keys are set apart by so much of the axis."""
    for key in keys:
        line = cells[cells["key"] == key]
        look, shift = looks[key], _shift(keys, key, dodge)
        x = np.array(scale.at(line["x"], shift))
        ends = quantity.ends_of(line)
        ax.vlines(x, ends[:, 0], ends[:, 1], color=look.colour, lw=WHISKER * (0.8 if len(keys) > 3 else 1.0))
        joined = look.line if scale.line and not quantity.is_difference else ""
        known = line[quantity.value].notna().to_numpy()
        ax.plot(x, line[quantity.value], ls=joined, color=look.colour, lw=0.8, gid="line")
        for is_baseline in (False, True):
            those = (line["baseline"] == is_baseline).to_numpy() & known
            if those.any():
                style = face(look, is_baseline)
                ax.plot(x[those], line.loc[those, quantity.value], gid="mean", **(style | _small(keys, style)))
        if not quantity.is_difference:
            _say_what_is_missing(ax, line[~known], x[~known], look, len(keys))


def runs_of_lines(
    ax: Axes,
    runs: pd.DataFrame,
    keys: Sequence[str],
    looks: Mapping[str, Look],
    scale: Scale,
    dodge: float,
    inches: float,
) -> None:
    """A dot per run, left of its mean, each a little further than the one before."""
    for (key, x), group in runs.groupby(["key", "x"], sort=False):
        places = scale.places[x] + _shift(keys, str(key), dodge) - (ASIDE + APART * np.arange(len(group))) / inches
        ax.plot(places, group["value"], gid="runs", **_dots(looks[str(key)]))


def marks_of_lines(ax: Axes, cells: pd.DataFrame, scale: Scale) -> None:
    """Which differences are not told from nothing, above the panel. Of one line."""
    for cell in cells[~cells["baseline"]].itertuples():
        if said := _mark(cell):
            at = (scale.places[cell.x], 1.0)
            ax.text(*at, said, transform=ax.get_xaxis_transform(), ha="center", va="bottom", fontsize=7, color=GREY)


def trend(ax: Axes, cells: pd.DataFrame, slope: float, scale: Scale) -> None:
    """A straight line of this slope per doubling, through the middle of the means."""
    known = cells[cells["value"].notna()]
    doublings = np.log2(known["x"].to_numpy(float))
    fitted = known["value"].mean() + slope * (doublings - doublings.mean())
    ax.plot(scale.at(known["x"]), fitted, ls=(0, (2, 1.5)), gid="trend", **RULE)


def number_axis(ax: Axes, scale: Scale, names: Mapping[Any, str], beside: tuple[float, float], is_last: bool) -> None:
    """A tick at each value of the compared axis and nowhere else; names below the last of several panels.

    `beside`: how far left and right of a value there is still something, of the axis.
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
    """Make the axis of values logarithmic where its values need that and no interval ends at 0; whether it is."""
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
    """Mean and band over seeds of one line; its marks are not where those of other lines are."""
    low, high = metric_range(metric)
    ax.fill_between(
        line[x], line["lower"].clip(low, high), line["upper"].clip(low, high), color=look.colour, alpha=0.16, lw=0
    )
    every = max(1, len(line) // 6)
    style = face(look, False) | {"ls": look.line, "lw": 0.9, "ms": MARKER * 0.8}
    ax.plot(line[x], line["value"], markevery=((2 * number) % every, every), gid="line", **style)


def reached(ax: Axes, line: pd.DataFrame, x: str, share: float, look: Look) -> None:
    """A line at this share of the curve's best, and from where the curve first reaches it one down to the axis."""
    wanted = share * line["value"].max()
    first = line[line["value"] >= wanted].iloc[0]
    ax.axhline(wanted, color=look.colour, lw=0.6, ls=(0, (1, 1.5)), zorder=1)
    ax.plot([first[x]] * 2, [ax.get_ylim()[0], first["value"]], color=look.colour, lw=0.6, ls=(0, (1, 1.5)), zorder=1)
    ax.plot([first[x]], [first["value"]], gid="reached", **(face(look, True) | {"ms": MARKER * 1.4, "zorder": 4}))


# What they share


def label(ax: Axes, text: str) -> None:
    """Of the axis of values, upward; its lines as close as those of print."""
    ax.set_ylabel(text, linespacing=0.95)


def above(ax: Axes, text: str) -> None:
    """Small, at the right end of the line of a panel's title."""
    ax.set_title(text, loc="right", fontsize=6.5, color=GREY)


def _mark(cell: Any) -> str:
    """Of a difference that stands there; without an interval it is not known."""
    if math.isnan(cell.difference) or cell.difference_verdict in ("higher", "lower"):
        return ""
    return MARKS.get(cell.difference_verdict, MARKS["not known"])


def _shift(keys: Sequence[str], key: str, dodge: float) -> float:
    return dodge * (keys.index(key) - (len(keys) - 1) / 2)


def _small(keys: Sequence[str], style: Mapping[str, Any]) -> dict[str, Any]:
    """Markers of many lines are smaller."""
    return {"ms": 0.72 * style["ms"], "mew": 0.6} if len(keys) > 3 else {}


def _dots(look: Look) -> dict[str, Any]:
    return {"marker": "o", "color": look.colour, "ms": DOT, "mew": 0, "lw": 0, "alpha": 0.75, "zorder": 3}


def _words(transform: Any) -> dict[str, Any]:
    box = {"pad": 0.4, "fc": "white", "lw": 0}
    return {"transform": transform, "ha": "center", "va": "center", "fontsize": 6.5, "color": GREY, "bbox": box}


def _state(cell: Any) -> str:
    """Why a value is not there."""
    return "conflict" if getattr(cell, "conflict", 0) else whole_state(cell) or "missing"


def _say_what_is_missing(ax: Axes, cells: pd.DataFrame, x: np.ndarray, look: Look, lines: int) -> None:
    """In words where there is room for them, else by a cross on the axis for runs that diverged or failed."""
    for place, cell in zip(x, cells.itertuples(), strict=True):
        said = _state(cell)
        if lines <= 3:
            ax.text(place, 0.04, said, rotation=90, **(_words(ax.get_xaxis_transform()) | {"va": "bottom"}))
        elif said != "missing":
            style: dict[str, Any] = {"marker": "x", "color": look.colour, "ms": 2.8, "mew": 0.9}
            ax.plot([place], [0.03], transform=ax.get_xaxis_transform(), lw=0, gid="lost", **style)


def _number(value: float) -> str:
    """With a minus sign, not a hyphen."""
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")
