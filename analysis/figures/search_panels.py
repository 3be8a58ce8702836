"""The panels of a search's figure: its history, a slice per searched key, the confirmation on fresh seeds, the front.

Only positions are computed here; the values come from `analysis.statistics.search_results`. The number of ticks follows from a
panel's width.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis import names as called
from analysis.figures.scales import DIGIT, ticks
from analysis.figures.style import GREY, OTHERS, Look, looks
from analysis.records.manifest import axis_value
from analysis.records.search_reading import WARM, Searched
from mmprompt.studies.schemas import SCORE, Parameter

HEIGHT = 1.4  # inches: height of a panel with its title and labels
TITLE_LETTER = 0.055  # inches: width of a letter of a panel's title
POWERS_OF_TEN = 50.0  # ratio of the ends of a logarithmic range from which its ticks are powers of ten
LOG_COUNT = 10.0  # ratio of the largest to the smallest value of an objective from which its axis is logarithmic
GOLDEN = 0.618  # spreads the points of a choice around its position, evenly and reproducibly
SIGNS: dict[str, dict[str, Any]] = {
    "done": {"marker": "o", "ms": 3.2, "mew": 0.8},
    "stopped": {"marker": "o", "ms": 3.2, "mew": 0.8, "mfc": "white"},
    "diverged": {"marker": "x", "ms": 3.5, "mew": 1.0},
    WARM: {"marker": "D", "ms": 2.6, "mew": 0.8},
}
DEFAULT, BEST = "default", "best"
ENDS: dict[str, dict[str, Any]] = {
    DEFAULT: {
        "marker": "v",
        "ms": 6.0,
        "mew": 0.8,
        "mfc": "none",
    },  # surrounds the other mark if both have the same value
    BEST: {"marker": "v", "ms": 3.2, "mew": 0.8},
}
AT_BOTTOM, AT_TOP = (
    0.05,
    0.95,
)  # in panel heights: position of diverged trials; position of the marks of default and best
APART = 0.06  # in panel heights: distance between the marks of two groups
LEAST = 2.0  # points: least span of the axis of scores
MARGIN = 0.04  # share of a range that is left free on either side


@dataclass(frozen=True)
class Drawing:
    """The data that all panels share."""

    searched: Searched
    trials: pd.DataFrame
    room: float  # inches: approximate length of a panel's horizontal axis

    @property
    def objective(self) -> str:
        return next(iter(self.searched.definition.objective))

    @property
    def metric(self) -> str:
        """The first task's metric, which gives the range of scores."""
        tasks = list(self.searched.definition.tasks.values())
        return str(tasks[0]["metric"])

    @property
    def score(self) -> str:
        """The label of the y axis."""
        return self.name_of(self.objective)

    def name_of(self, objective: str) -> str:
        """The name of an objective: of the metrics for the score, otherwise of a fact."""
        if objective != SCORE:
            return called.fact(objective)
        tasks = self.searched.definition.tasks.values()
        return " / ".join(dict.fromkeys(called.metric(about["metric"]) for about in tasks))

    def settle(self, ax: Axes) -> None:
        """Sets the limits and ticks of an axis of scores (see the function `settle`); leaves other axes as they are."""
        if self.objective == SCORE:
            settle(ax, self.metric)

    def groups(self) -> Iterable[tuple[int, str, pd.DataFrame]]:
        """Yields number, colour and trials of each group."""
        for group, label in enumerate(self.searched.labels):
            yield group, looks_of(self.searched)[group].colour, self.trials[self.trials["group"] == label]


def looks_of(searched: Searched) -> list[Look]:
    """The look of each group: its method's if groups are methods; the prompt's if there is only one group."""
    look_of = looks(searched.names) if len(searched.names) > 1 else {searched.names[0]: looks(["prompt"])["prompt"]}
    return [look_of[name] for name in searched.names]


def settle(ax: Axes, metric: str) -> None:
    """Widens an axis of scores so that small differences look small, and sets no tick outside of the metric's range."""
    low, high = ax.get_ylim()
    missing_span = max(0.0, LEAST - (high - low)) / 2
    ax.set_ylim(low - missing_span, high + missing_span)
    ax.set_yticks(ticks(low - missing_span, high + missing_span, HEIGHT - 0.5, metric, across=False))


def draw_history(drawing: Drawing, ax: Axes) -> None:
    """Draws the score of each trial by its number, and the best so far."""
    for _, colour, rows in drawing.groups():
        _points(ax, rows, rows["index"], drawing.objective, colour)
        scored = rows[rows["best"].notna()]
        ax.plot(scored["index"], scored["best"], drawstyle="steps-post", color=colour, lw=0.9)
    ax.xaxis.set_major_locator(MaxNLocator(_fitting(drawing.room, 3), integer=True))
    has_groups = len(drawing.searched.labels) > 1
    _frame(ax, drawing, "History", drawing.score, "Trial of its group" if has_groups else "Trial")
    _room(ax, drawing.trials)
    low = drawing.trials["index"].min()
    if low < 0:  # warm trials have no number
        ax.set_xticks([tick for tick in ax.get_xticks() if tick >= 0 and tick <= drawing.trials["index"].max()])
    drawing.settle(ax)


def draw_slice(drawing: Drawing, parameter: Parameter, ax: Axes) -> None:
    """Draws the score against a key's value; at the top it marks the values of the default and the best."""
    axis = Axis.of(parameter, drawing.trials[parameter.key].dropna())
    for group, colour, rows in drawing.groups():
        applicable = rows[rows[parameter.key].notna()]
        spread = [_jitter(at) for at in applicable["index"]] if parameter.kind == "choice" else [0.0] * len(applicable)
        x = pd.Series(
            [axis.at(value) + shift for value, shift in zip(applicable[parameter.key], spread, strict=True)],
            applicable.index,
            dtype=float,
        )
        _points(ax, applicable, x, drawing.objective, colour)
        for end, settings in ends_of(drawing.searched, group):
            if parameter.key in settings:
                at = axis.at(settings[parameter.key])
                top = AT_TOP - APART * group
                ax.plot([at], [top], transform=ax.get_xaxis_transform(), color=colour, lw=0, **ENDS[end])
    _frame(ax, drawing, called.axis(parameter.key), drawing.score, "")
    _room(ax, drawing.trials[drawing.trials[parameter.key].notna()], 0.08 + APART * len(drawing.searched.labels))
    drawing.settle(ax)
    if axis.names:
        _name_choices(ax, [called.value(parameter.key, name) for name in axis.names], drawing.room)
    else:
        ticks = axis.ticks(drawing.room)
        ax.set_xticks([axis.at(value) for value in ticks], [_short(value) for value in ticks])
        low, high = axis.at(parameter.low), axis.at(parameter.high)
        lowest, highest = ax.dataLim.intervalx  # a default may lie outside of the range
        margin = MARGIN * (high - low)
        ax.set_xlim(min(low, lowest) - margin, max(high, highest) + margin)


def draw_front(drawing: Drawing, front: pd.DataFrame, ax: Axes) -> None:
    """Draws the first objective against the second. With two objectives a stepped line joins the front."""
    (first, _), (second, to), *others = drawing.searched.definition.objective.items()
    line_style: dict[str, Any] = {
        "lw": 0.0 if others else 0.9,
        "drawstyle": "steps-post" if to == "minimize" else "steps-pre",
    }
    for group, colour, rows in drawing.groups():
        done = rows[rows["state"] == "done"]
        ax.plot(done[second], done[first], color=colour, lw=0, alpha=0.35, **(SIGNS["done"] | {"mew": 0}))
        front_rows = front[front["group"] == drawing.searched.labels[group]].sort_values(second)
        ax.plot(front_rows[second], front_rows[first], color=colour, **line_style, **SIGNS["done"])
    values = drawing.trials.loc[drawing.trials[second] > 0, second]
    if len(values) and values.max() / values.min() >= LOG_COUNT:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(_fitting(drawing.room, 6)))
    ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    ax.xaxis.set_minor_locator(NullLocator())
    _frame(ax, drawing, f"Front (n = {len(front)})", drawing.score, drawing.name_of(second))
    drawing.settle(ax)


def draw_candidates(drawing: Drawing, rows: pd.DataFrame, ax: Axes) -> None:
    """Draws the candidates of the only group side by side, a colour per split."""
    splits, look_of_split = list(rows["split"].drop_duplicates()), looks_of_splits(rows)
    for number, split in enumerate(splits):
        rows_of_split = rows[rows["split"] == split]
        shift = 0.24 * (number - (len(splits) - 1) / 2)
        _intervals(ax, rows_of_split, list(rows_of_split["rank"] + shift), **look_of_split[split])
    trials = rows.drop_duplicates("rank")
    names = [
        DEFAULT if row.baseline else WARM if row.trial == WARM else f"trial\n{row.trial}" for row in trials.itertuples()
    ]
    ax.set_xticks(list(trials["rank"]), names, linespacing=0.95)
    ax.set_xlim(-0.6, len(trials) - 0.4)
    _frame(ax, drawing, "Fresh seeds", called.metric(rows["metric"].iloc[0]), "")
    settle(ax, rows["metric"].iloc[0])


def draw_groups(drawing: Drawing, rows: pd.DataFrame, split: str, metric: str, ax: Axes) -> None:
    """Draws the default and the best of each group."""
    rows_of_split = rows[(rows["split"] == split) & (rows["metric"] == metric)]
    group_names: list[str] = []
    for group, colour, _ in drawing.groups():
        rows_of_group = rows_of_split[rows_of_split["group"] == drawing.searched.labels[group]]
        if not len(rows_of_group):
            continue
        for rank, shift in ((0, -0.17), (1, 0.17)):
            candidate = rows_of_group[rows_of_group["rank"] == rank]
            _intervals(ax, candidate, [len(group_names) + shift] * len(candidate), colour, "o", rank == 0)
        group_names.append(group_name(drawing.searched.names[group]))
    _name_choices(ax, group_names, drawing.room)
    _frame(ax, drawing, f"Fresh seeds, {called.split(split)}", called.metric(metric), "")
    settle(ax, metric)


# Points and axes


def _points(ax: Axes, rows: pd.DataFrame, x: pd.Series, objective: str, colour: str) -> None:
    """Draws done trials at the objective, stopped ones at the score of their last rung, diverged ones at the bottom."""
    is_warm = rows["origin"] == WARM
    places = {
        "done": (rows["state"] == "done") & ~is_warm,
        "stopped": rows["state"] == "stopped",
        WARM: is_warm,
    }
    for sign, is_sign in places.items():
        y = rows.loc[is_sign, "rung_score" if sign == "stopped" else objective]
        ax.plot(x[is_sign], y, color=colour, lw=0, **SIGNS[sign])
    diverged = x[rows["state"] == "diverged"]
    ax.plot(
        diverged,
        [AT_BOTTOM] * len(diverged),
        transform=ax.get_xaxis_transform(),
        color=colour,
        lw=0,
        **SIGNS["diverged"],
    )


def _intervals(
    ax: Axes, rows: pd.DataFrame, places: Sequence[float], colour: str, marker: str, is_hollow: bool = False
) -> None:
    """Draws means with their intervals, and to the left of each its single runs."""
    ax.vlines(places, rows["lower"], rows["upper"], color=colour, lw=1.1)
    face = "white" if is_hollow else colour
    ax.plot(places, rows["value"], color=colour, mfc=face, marker=marker, ms=3.5, mew=1.0, lw=0)
    for place, values in zip(places, rows["values"], strict=True):
        dots = [float(value) for value in values.split()]
        ax.plot([place - 0.08] * len(dots), dots, marker=".", color=colour, ms=4, mew=0, alpha=0.45, lw=0)


def looks_of_splits(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The look of each split. Validation is grey, as the choice is made on it."""
    validation = rows.groupby("split", sort=False)["validation"].all()
    others = iter([looks(["prompt"])["prompt"], *OTHERS])
    grey = {"colour": GREY, "marker": "s"}
    look_of_split = {}
    for split in validation.index:
        look = None if validation[split] else next(others)
        look_of_split[split] = grey if look is None else {"colour": look.colour, "marker": look.marker}
    return look_of_split


def _frame(ax: Axes, drawing: Drawing, name: str, y: str, x: str) -> None:
    """Sets the title, which is wrapped if it is too long, and the labels of a panel."""
    ax.set_title(
        textwrap.fill(name, max(12, int(drawing.room / TITLE_LETTER)), break_long_words=False), linespacing=0.95
    )
    ax.set_ylabel(y)
    ax.set_xlabel(x)
    ax.grid(visible=True, axis="y")


def _room(ax: Axes, rows: pd.DataFrame, at_top: float = 0.0) -> None:
    """Extends the vertical axis for the marks at the top, a share of the height, and for diverged trials at the bottom."""
    low, high = ax.get_ylim()
    at_bottom = AT_BOTTOM * 2 if (rows["state"] == "diverged").any() else 0.0
    ax.set_ylim(low - at_bottom * (high - low), high + at_top * (high - low))


# Positions of values


@dataclass(frozen=True)
class Axis:
    """The positions of a searched key's values.

    A number lies at its value, or at its logarithm if the range is logarithmic. Choices follow one after the other, and after
    them a value of the default that is no choice.
    """

    parameter: Parameter
    names: list[str]  # the choices; empty for numbers

    @staticmethod
    def of(parameter: Parameter, values: Iterable[Any]) -> Axis:
        all_values = [*(parameter.choices or []), *values] if parameter.kind == "choice" else []
        return Axis(parameter, list(dict.fromkeys(_as_text(value) for value in all_values)))

    def at(self, value: Any) -> float:
        if self.names:
            return float(self.names.index(_as_text(value)))
        return math.log10(float(value)) if self.parameter.log else float(value)

    def ticks(self, room: float) -> list[float]:
        """Round numbers in the range, as many as can be read side by side on an axis of `room` inches.

        For a logarithmic range they are powers of ten, or powers of two if it is narrow.
        """
        low, high = float(self.parameter.low or 0), float(self.parameter.high or 0)
        fitting = _fitting(room, len(_short(high)))
        even = MaxNLocator(fitting, integer=self.parameter.kind == "int").tick_values(low, high)
        evenly = [float(value) for value in even if low <= value <= high]
        if not self.parameter.log:
            return evenly
        base = 10.0 if high / low >= POWERS_OF_TEN else 2.0
        first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
        values = [base**power for power in range(first, last + 1)]
        if len(values) < 2:
            return evenly
        longest = max(len(_short(value)) for value in values)
        return values[:: -(-len(values) // _fitting(room, longest))]


def _as_text(value: Any) -> str:
    """A choice as frames contain it."""
    return str(axis_value({"": value}, ""))


def _jitter(index: int) -> float:
    """A reproducible shift between -0.25 and 0.25 for the point with this index."""
    return 0.5 * ((index * GOLDEN) % 1 - 0.5)


def _fitting(room: float, letters: int) -> int:
    """The number of tick labels of so many letters that can be read side by side on `room` inches; at least two."""
    return max(2, int(room / (DIGIT * (letters + 1.2))))


def _short(value: float) -> str:
    """A number in short: `61k`, `0.3`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _name_choices(ax: Axes, names: Sequence[str], room: float) -> None:
    """Sets a named tick at 0, 1, ...; the words of a name are stacked, or the names are rotated if they do not fit."""
    lines = [re.sub(r"(?<!,) ", "\n", name) for name in names]
    longest = max((len(line) for name in lines for line in name.split("\n")), default=0)
    crowded = DIGIT * (longest + 1) > room / max(1, len(names))
    ax.set_xticks(range(len(names)), names if crowded else lines, rotation=90 if crowded else 0, linespacing=0.95)
    ax.set_xlim(-0.6, len(names) - 0.4)


def ends_of(searched: Searched, group: int) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Yields the settings of the default and of the confirmed best; before the confirmation, those of the search's best."""
    default = next((one.trial.settings for one in searched.progress.of(group) if one.trial.origin == "default"), None)
    if default is not None:
        yield DEFAULT, default
    confirmed = searched.best(group)
    if confirmed is not None:
        yield BEST, confirmed.settings
    elif not searched.entries_of(group) and len(searched.definition.objective) == 1:
        yield from ((BEST, one.settings) for one in searched.progress.best(group)[:1])


def group_name(name: str) -> str:
    """The display name of a group: its method's, or the group's own if it joins several values."""
    return called.value("method", name) if " " not in name else name
