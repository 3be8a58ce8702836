"""The figure of a search: its history, a slice per searched key, what fresh seeds confirm, the front of two objectives.

Nothing is computed here but where ink goes: values are those of `analysis.search`. The number of panels side by side, their
ticks and the legend follow from the width. What a reader has to know besides is in the caption.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis import names as called
from analysis.figures import Shown, finished
from analysis.manifest import axis_value
from analysis.scales import DIGIT, ticks
from analysis.search import WARM, Searched
from analysis.style import GREY, OTHERS, WIDTHS, Look, applied, looks
from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.study import SCORE, Parameter

PANEL = 1.3  # inches: the least width of a panel
HEIGHT = 1.4  # inches: of a panel, with what stands around it
TURNED = 0.3  # inches: for names of groups that stand upright
LETTER = 0.047  # inches: width of a letter of the legend
TITLE_LETTER = 0.055  # inches: width of a letter of a panel's title
LEGEND_LINE = 0.14  # inches: height of a line of the legend
HANDLE = 0.33  # inches: of a legend's symbol, with the room around it
POWERS_OF_TEN = 50.0  # ratio of the ends of a logarithmic range from which its ticks are powers of ten
LOG_COUNT = 10.0  # ratio of the largest to the smallest of an objective's values from which its axis is logarithmic
GOLDEN = 0.618  # choices stand at one place; this spreads their points about it, evenly and always alike
SIGNS: dict[str, dict[str, Any]] = {
    "done": {"marker": "o", "ms": 3.2, "mew": 0.8},
    "stopped": {"marker": "o", "ms": 3.2, "mew": 0.8, "mfc": "white"},
    "diverged": {"marker": "x", "ms": 3.5, "mew": 1.0},
    WARM: {"marker": "D", "ms": 2.6, "mew": 0.8},
}
NAMES = {
    "done": "done",
    "stopped": "stopped, score at its last rung",
    "diverged": "diverged",
    WARM: "warm",
}
DEFAULT, BEST = "default", "best"
ENDS: dict[str, dict[str, Any]] = {
    DEFAULT: {"marker": "v", "ms": 6.0, "mew": 0.8, "mfc": "none"},  # around the other where both have the same value
    BEST: {"marker": "v", "ms": 3.2, "mew": 0.8},
}
AT_BOTTOM, AT_TOP = 0.05, 0.95  # of a panel's height: where diverged trials are; where default and best are marked
APART = 0.06  # of a panel's height: between the marks of two groups
LEAST = 2.0  # of the axis of scores, in points
MARGIN = 0.04  # of a range, on either side

Panel = Callable[[Axes], None]


@dataclass(frozen=True)
class Drawing:
    """What all panels know."""

    searched: Searched
    trials: pd.DataFrame
    room: float  # inches from the left to the right end of a panel's axis, about

    @property
    def objective(self) -> str:
        return next(iter(self.searched.definition.objective))

    @property
    def metric(self) -> str:
        """Of the first task: whose range scores have."""
        tasks = list(self.searched.definition.tasks.values())
        return str(tasks[0]["metric"])

    @property
    def score(self) -> str:
        """What the y axis says."""
        return self.name_of(self.objective)

    def name_of(self, objective: str) -> str:
        """The metric, or what runs took."""
        if objective != SCORE:
            return called.fact(objective)
        tasks = self.searched.definition.tasks.values()
        return " / ".join(dict.fromkeys(called.metric(about["metric"]) for about in tasks))

    def settle(self, ax: Axes) -> None:
        """Of scores small differences look small, and there is no tick where none can be."""
        if self.objective == SCORE:
            settle(ax, self.metric)

    def groups(self) -> Iterable[tuple[int, str, pd.DataFrame]]:
        """Number, colour and trials of each."""
        for group, label in enumerate(self.searched.labels):
            yield group, looks_of(self.searched)[group].colour, self.trials[self.trials["group"] == label]


def looks_of(searched: Searched) -> list[Look]:
    """Of each group: its method's, where groups are methods; of the only one a prompt's."""
    known = looks(searched.names) if len(searched.names) > 1 else {searched.names[0]: looks(["prompt"])["prompt"]}
    return [known[name] for name in searched.names]


def settle(ax: Axes, metric: str) -> None:
    """Small differences look small, and there is no tick where no score can be."""
    low, high = ax.get_ylim()
    lack = max(0.0, LEAST - (high - low)) / 2
    ax.set_ylim(low - lack, high + lack)
    ax.set_yticks(ticks(low - lack, high + lack, HEIGHT - 0.5, metric, across=False))


def draw(
    searched: Searched,
    trials: pd.DataFrame,
    confirmation: pd.DataFrame,
    front: pd.DataFrame | None,
    width: str = "text",
) -> Figure:
    """Of the frames that `analysis.search` makes. `width`: one of `analysis.style.WIDTHS`."""
    inches = WIDTHS[width]
    several = len(searched.labels) > 1
    parameters = [one for one in searched.definition.space if trials[one.key].notna().any()]
    count = (
        1
        + len(parameters)
        + (front is not None)
        + (_confirmed_panels(confirmation, several) if len(confirmation) else 0)
    )
    columns, rows = _grid(count, inches)
    drawing = Drawing(searched, trials, inches / columns - 0.5)
    panels: list[Panel] = [partial(_history, drawing)]
    panels += [partial(_slice, drawing, parameter) for parameter in parameters]
    if front is not None:
        panels.append(partial(_front, drawing, front))
    panels += _confirmation(drawing, confirmation, several) if len(confirmation) else []
    legend = list(_packed(_legend(searched, trials, confirmation), inches))
    with applied():
        turned = TURNED if several else 0.0
        figure = Shown(
            figsize=(inches, rows * HEIGHT + turned + LEGEND_LINE * len(legend) + 0.05), layout="constrained"
        )
        engine = figure.get_layout_engine()
        assert engine is not None
        below = 1 - (LEGEND_LINE * len(legend) + 0.03) / figure.get_figheight()
        engine.set(w_pad=0.02, h_pad=0.03, rect=(0, 0, 1, below))  # type: ignore[call-arg]
        grid = figure.add_gridspec(rows, columns)
        for at, panel in enumerate(panels):
            row, column = divmod(at, columns)
            end = columns if at == count - 1 else column + 1  # the last one has what is left of its row
            panel(figure.add_subplot(grid[row, column:end]))
        for at, line in enumerate(legend):
            top = 1 - (LEGEND_LINE * at + 0.02) / figure.get_figheight()
            figure.legend(handles=line, loc="upper left", bbox_to_anchor=(0.0, top), ncols=len(line))
        return finished(figure)


def caption(searched: Searched) -> str:
    """What a reader of the figure has to know: a sentence per line."""
    about = searched.definition.header | searched.definition.fixed
    over = "" if searched.is_over else ", which is not over"
    said = [f"Search {searched.name}{over}. Scores in the search are of validation, and optimistic."]
    if searched.entries:
        hollow = "; hollow: default" if len(searched.labels) > 1 else ""
        said.append(f"Fresh seeds: mean and {LEVEL:.0%} t interval; small dots: single runs{hollow}.")
    if len(searched.definition.objective) > 1:
        said.append("Pale: not on the front.")
    said.append("Crosses: trials that diverged, drawn at the lower end.")
    settings = ", ".join(f"{called.axis(key).lower()} {called.value(key, value)}" for key, value in about.items())
    return "\n".join([*said, f"Settings: {settings}."]) + "\n"


def _grid(count: int, width: float) -> tuple[int, int]:
    """Columns and rows, as even as they come."""
    rows = -(-count // max(1, int(width / PANEL)))
    return -(-count // rows), rows


# Panels


def _history(drawing: Drawing, ax: Axes) -> None:
    """The score of each trial by its number, and the best so far."""
    for _, colour, rows in drawing.groups():
        _points(ax, rows, rows["index"], drawing.objective, colour)
        known = rows[rows["best"].notna()]
        ax.plot(known["index"], known["best"], drawstyle="steps-post", color=colour, lw=0.9)
    ax.xaxis.set_major_locator(MaxNLocator(_fitting(drawing.room, 3), integer=True))
    several = len(drawing.searched.labels) > 1
    _frame(ax, drawing, "History", drawing.score, "Trial of its group" if several else "Trial")
    _room(ax, drawing.trials)
    low = drawing.trials["index"].min()
    if low < 0:  # warm trials have no number
        ax.set_xticks([tick for tick in ax.get_xticks() if tick >= 0 and tick <= drawing.trials["index"].max()])
    drawing.settle(ax)


def _slice(drawing: Drawing, parameter: Parameter, ax: Axes) -> None:
    """A key's value against the score; at the top what the default and the best have."""
    axis = Axis.of(parameter, drawing.trials[parameter.key].dropna())
    for group, colour, rows in drawing.groups():
        known = rows[rows[parameter.key].notna()]
        spread = [_jitter(at) for at in known["index"]] if parameter.kind == "choice" else [0.0] * len(known)
        x = pd.Series(
            [axis.at(value) + by for value, by in zip(known[parameter.key], spread, strict=True)],
            known.index,
            dtype=float,
        )
        _points(ax, known, x, drawing.objective, colour)
        for end, settings in _ends(drawing.searched, group):
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
        left, right = ax.dataLim.intervalx  # a default may lie outside of the range
        margin = MARGIN * (high - low)
        ax.set_xlim(min(low, left) - margin, max(high, right) + margin)


def _front(drawing: Drawing, front: pd.DataFrame, ax: Axes) -> None:
    """The first objective against the second; the front joined by a line, of two objectives what can be had for so much."""
    (first, _), (second, to), *others = drawing.searched.definition.objective.items()
    joined: dict[str, Any] = {
        "lw": 0.0 if others else 0.9,
        "drawstyle": "steps-post" if to == "minimize" else "steps-pre",
    }
    for group, colour, rows in drawing.groups():
        done = rows[rows["state"] == "done"]
        ax.plot(done[second], done[first], color=colour, lw=0, alpha=0.35, **(SIGNS["done"] | {"mew": 0}))
        those = front[front["group"] == drawing.searched.labels[group]].sort_values(second)
        ax.plot(those[second], those[first], color=colour, **joined, **SIGNS["done"])
    values = drawing.trials.loc[drawing.trials[second] > 0, second]
    if len(values) and values.max() / values.min() >= LOG_COUNT:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(_fitting(drawing.room, 6)))
    ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    ax.xaxis.set_minor_locator(NullLocator())
    _frame(ax, drawing, f"Front (n = {len(front)})", drawing.score, drawing.name_of(second))
    drawing.settle(ax)


def _confirmed_panels(rows: pd.DataFrame, several: bool) -> int:
    return len(_shown(rows)) if several else 1


def _shown(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Split and metric of what is confirmed, validation left out where there is anything else."""
    tests = rows[~rows["validation"]]
    pairs = (tests if len(tests) else rows)[["split", "metric"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def _confirmation(drawing: Drawing, rows: pd.DataFrame, several: bool) -> list[Panel]:
    if not several:
        return [partial(_candidates, drawing, rows)]
    return [partial(_by_group, drawing, rows, *pair) for pair in _shown(rows)]


def _candidates(drawing: Drawing, rows: pd.DataFrame, ax: Axes) -> None:
    """The only group's candidates side by side, a colour per split."""
    splits, known = list(rows["split"].drop_duplicates()), _looks_of_splits(rows)
    for number, split in enumerate(splits):
        here = rows[rows["split"] == split]
        shift = 0.24 * (number - (len(splits) - 1) / 2)
        _intervals(ax, here, list(here["rank"] + shift), **known[split])
    trials = rows.drop_duplicates("rank")
    names = [
        DEFAULT if row.baseline else WARM if row.trial == WARM else f"trial\n{row.trial}" for row in trials.itertuples()
    ]
    ax.set_xticks(list(trials["rank"]), names, linespacing=0.95)
    ax.set_xlim(-0.6, len(trials) - 0.4)
    _frame(ax, drawing, "Fresh seeds", called.metric(rows["metric"].iloc[0]), "")
    settle(ax, rows["metric"].iloc[0])


def _by_group(drawing: Drawing, rows: pd.DataFrame, split: str, metric: str, ax: Axes) -> None:
    """Default and best of each group."""
    here = rows[(rows["split"] == split) & (rows["metric"] == metric)]
    shown: list[str] = []
    for group, colour, _ in drawing.groups():
        own = here[here["group"] == drawing.searched.labels[group]]
        if not len(own):
            continue
        for rank, shift in ((0, -0.17), (1, 0.17)):
            those = own[own["rank"] == rank]
            _intervals(ax, those, [len(shown) + shift] * len(those), colour, "o", rank == 0)
        shown.append(_group(drawing.searched.names[group]))
    _name_choices(ax, shown, drawing.room)
    _frame(ax, drawing, f"Fresh seeds, {called.split(split)}", called.metric(metric), "")
    settle(ax, metric)


# Ink


def _points(ax: Axes, rows: pd.DataFrame, x: pd.Series, objective: str, colour: str) -> None:
    """Done trials at the objective, stopped ones at their rung's score, diverged ones at the bottom."""
    is_warm = rows["origin"] == WARM
    places = {
        "done": (rows["state"] == "done") & ~is_warm,
        "stopped": rows["state"] == "stopped",
        WARM: is_warm,
    }
    for sign, those in places.items():
        y = rows.loc[those, "rung_score" if sign == "stopped" else objective]
        ax.plot(x[those], y, color=colour, lw=0, **SIGNS[sign])
    lost = x[rows["state"] == "diverged"]
    ax.plot(lost, [AT_BOTTOM] * len(lost), transform=ax.get_xaxis_transform(), color=colour, lw=0, **SIGNS["diverged"])


def _intervals(
    ax: Axes, rows: pd.DataFrame, places: Sequence[float], colour: str, marker: str, is_hollow: bool = False
) -> None:
    """A mean with its interval, and to the left of it the single runs."""
    ax.vlines(places, rows["lower"], rows["upper"], color=colour, lw=1.1)
    face = "white" if is_hollow else colour
    ax.plot(places, rows["value"], color=colour, mfc=face, marker=marker, ms=3.5, mew=1.0, lw=0)
    for place, values in zip(places, rows["values"], strict=True):
        dots = [float(value) for value in values.split()]
        ax.plot([place - 0.08] * len(dots), dots, marker=".", color=colour, ms=4, mew=0, alpha=0.45, lw=0)


def _looks_of_splits(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Validation is grey: it is where the choice is made."""
    validation = rows.groupby("split", sort=False)["validation"].all()
    others = iter([looks(["prompt"])["prompt"], *OTHERS])
    grey = {"colour": GREY, "marker": "s"}
    found = {}
    for split in validation.index:
        look = None if validation[split] else next(others)
        found[split] = grey if look is None else {"colour": look.colour, "marker": look.marker}
    return found


def _frame(ax: Axes, drawing: Drawing, name: str, y: str, x: str) -> None:
    """The title is broken where it does not fit."""
    ax.set_title(
        textwrap.fill(name, max(12, int(drawing.room / TITLE_LETTER)), break_long_words=False), linespacing=0.95
    )
    ax.set_ylabel(y)
    ax.set_xlabel(x)
    ax.grid(visible=True, axis="y")


def _room(ax: Axes, rows: pd.DataFrame, at_top: float = 0.0) -> None:
    """Shares of the height for what is marked at the top, and for diverged trials at the bottom."""
    low, high = ax.get_ylim()
    at_bottom = AT_BOTTOM * 2 if (rows["state"] == "diverged").any() else 0.0
    ax.set_ylim(low - at_bottom * (high - low), high + at_top * (high - low))


# Where values are


@dataclass(frozen=True)
class Axis:
    """Where the values of a searched key lie: a number where it is, its logarithm where the range is logarithmic; choices
    one after the other, and behind them values of the default's that are none."""

    parameter: Parameter
    names: list[str]  # of choices

    @staticmethod
    def of(parameter: Parameter, values: Iterable[Any]) -> Axis:
        known = [*(parameter.choices or []), *values] if parameter.kind == "choice" else []
        return Axis(parameter, list(dict.fromkeys(_as_text(value) for value in known)))

    def at(self, value: Any) -> float:
        if self.names:
            return float(self.names.index(_as_text(value)))
        return math.log10(float(value)) if self.parameter.log else float(value)

    def ticks(self, room: float) -> list[float]:
        """Round numbers in the range, of a logarithmic one its powers of ten, or of two for a range of few of those; as many as
        can be read side by side in so many inches."""
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
    """Choices as frames have them."""
    return str(axis_value({"": value}, ""))


def _jitter(index: int) -> float:
    return 0.5 * ((index * GOLDEN) % 1 - 0.5)


def _fitting(room: float, letters: int) -> int:
    """How many tick labels of so many letters can be read side by side; two at least."""
    return max(2, int(room / (DIGIT * (letters + 1.2))))


def _short(value: float) -> str:
    """`61k`, `0.3`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def _name_choices(ax: Axes, names: Sequence[str], room: float) -> None:
    """A tick at 0, 1, ..., names below each other where they have several words, upright where they do not fit."""
    lines = [re.sub(r"(?<!,) ", "\n", name) for name in names]
    longest = max((len(line) for name in lines for line in name.split("\n")), default=0)
    crowded = DIGIT * (longest + 1) > room / max(1, len(names))
    ax.set_xticks(range(len(names)), names if crowded else lines, rotation=90 if crowded else 0, linespacing=0.95)
    ax.set_xlim(-0.6, len(names) - 0.4)


def _ends(searched: Searched, group: int) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The settings of the default and of the best that fresh seeds confirm; while there are none, of the best of the search."""
    default = next((one.trial.settings for one in searched.picture.of(group) if one.trial.origin == "default"), None)
    if default is not None:
        yield DEFAULT, default
    confirmed = searched.best(group)
    if confirmed is not None:
        yield BEST, confirmed.settings
    elif not searched.of(group) and len(searched.definition.objective) == 1:
        yield from ((BEST, one.settings) for one in searched.picture.best(group)[:1])


# Legend


def _legend(searched: Searched, trials: pd.DataFrame, confirmation: pd.DataFrame) -> list[Line2D]:
    """What there is to be explained: groups by colour, signs by state, splits."""
    several = len(searched.labels) > 1
    lines = []
    if several:
        for group, _ in enumerate(searched.labels):
            colour = looks_of(searched)[group].colour
            lines.append(Line2D([], [], color=colour, lw=2.0, label=_group(searched.names[group])))
    colour = GREY if several else looks_of(searched)[0].colour
    states = [state for state in ("done", "stopped", "diverged") if (trials["state"] == state).any()]
    states += [WARM] if (trials["origin"] == WARM).any() else []
    lines += [Line2D([], [], color=colour, lw=0, label=NAMES[state], **SIGNS[state]) for state in states]
    lines.append(Line2D([], [], color=colour, lw=0.9, label="best so far"))
    ends = {end for group, _ in enumerate(searched.labels) for end, _ in _ends(searched, group)}
    names = {DEFAULT: DEFAULT, BEST: "best on fresh seeds" if searched.entries else "best of the search"}
    lines += [Line2D([], [], color=colour, lw=0, label=names[end], **ENDS[end]) for end in names if end in ends]
    if len(confirmation) and not several:
        for split, look in _looks_of_splits(confirmation).items():
            style: dict[str, Any] = {"color": look["colour"], "marker": look["marker"], "ms": 3.5, "lw": 0}
            lines.append(Line2D([], [], label=f"{called.split(split)}, fresh seeds", **style))
    return lines


def _group(name: str) -> str:
    """A method's as people write it."""
    return called.value("method", name) if " " not in name else name


def _packed(legend: Sequence[Line2D], width: float) -> Iterator[list[Line2D]]:
    """In lines, as many entries in each as fit."""
    line: list[Line2D] = []
    used = 0.0
    for entry in legend:
        needs = HANDLE + LETTER * len(str(entry.get_label()))
        if line and used + needs > width:
            yield line
            line, used = [], 0.0
        line.append(entry)
        used += needs
    if line:
        yield line
