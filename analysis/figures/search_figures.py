"""The figure of a search: its history, a slice per searched key, the confirmation on fresh seeds, the front of two objectives.

The values come from `analysis.statistics.search_results`, and `analysis.figures.search_panels` draws them. The number of panels
side by side and the legend follow from the width. The caption explains the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import names as called
from analysis.figures.search_panels import (
    BEST,
    DEFAULT,
    ENDS,
    HEIGHT,
    SIGNS,
    Drawing,
    draw_candidates,
    draw_front,
    draw_groups,
    draw_history,
    draw_slice,
    ends_of,
    group_name,
    looks_of,
    looks_of_splits,
)
from analysis.figures.shown_figure import Shown, finished
from analysis.figures.style import GREY, WIDTHS, applied
from analysis.records.search_reading import WARM, Searched
from mmprompt.studies.intervals import LEVEL

PANEL = 1.3  # inches: least width of a panel
TURNED = 0.3  # inches: additional height for group names that are rotated
LETTER = 0.047  # inches: width of a letter of the legend
LEGEND_LINE = 0.14  # inches: height of a line of the legend
HANDLE = 0.33  # inches: width of a legend's symbol with the space around it
NAMES = {
    "done": "done",
    "stopped": "stopped, score at its last rung",
    "diverged": "diverged",
    WARM: "warm",
}

Panel = Callable[[Axes], None]


def draw(
    searched: Searched,
    trials: pd.DataFrame,
    confirmation: pd.DataFrame,
    front: pd.DataFrame | None,
    width: str = "text",
) -> Figure:
    """Returns the figure of a search from the frames that `analysis.statistics.search_results` makes. `width`: one of
    `analysis.figures.style.WIDTHS`."""
    inches = WIDTHS[width]
    has_groups = len(searched.labels) > 1
    varied = [one for one in searched.definition.space if trials[one.key].notna().any()]
    count = (
        1
        + len(varied)
        + (front is not None)
        + (_confirmed_panels(confirmation, has_groups) if len(confirmation) else 0)
    )
    columns, rows = _grid(count, inches)
    drawing = Drawing(searched, trials, inches / columns - 0.5)
    panels: list[Panel] = [partial(draw_history, drawing)]
    panels += [partial(draw_slice, drawing, parameter) for parameter in varied]
    if front is not None:
        panels.append(partial(draw_front, drawing, front))
    panels += _confirmation(drawing, confirmation, has_groups) if len(confirmation) else []
    legend = list(_packed(_legend(searched, trials, confirmation), inches))
    with applied():
        turned = TURNED if has_groups else 0.0
        figure = Shown(
            figsize=(inches, rows * HEIGHT + turned + LEGEND_LINE * len(legend) + 0.05), layout="constrained"
        )
        engine = figure.get_layout_engine()
        assert engine is not None
        top_of_panels = 1 - (LEGEND_LINE * len(legend) + 0.03) / figure.get_figheight()
        engine.set(w_pad=0.02, h_pad=0.03, rect=(0, 0, 1, top_of_panels))  # type: ignore[call-arg]
        grid = figure.add_gridspec(rows, columns)
        for at, panel in enumerate(panels):
            row, column = divmod(at, columns)
            end = columns if at == count - 1 else column + 1  # the last panel fills the rest of its row
            panel(figure.add_subplot(grid[row, column:end]))
        for at, line in enumerate(legend):
            top = 1 - (LEGEND_LINE * at + 0.02) / figure.get_figheight()
            figure.legend(handles=line, loc="upper left", bbox_to_anchor=(0.0, top), ncols=len(line))
        return finished(figure)


def caption(searched: Searched) -> str:
    """Returns the caption of the figure, a sentence per line."""
    settings_shown = searched.definition.header | searched.definition.fixed
    unfinished = "" if searched.is_over else ", which is not over"
    sentences = [f"Search {searched.name}{unfinished}. Scores in the search are of validation, and optimistic."]
    if searched.entries:
        hollow = "; hollow: default" if len(searched.labels) > 1 else ""
        sentences.append(f"Fresh seeds: mean and {LEVEL:.0%} t interval; small dots: single runs{hollow}.")
    if len(searched.definition.objective) > 1:
        sentences.append("Pale: not on the front.")
    sentences.append("Crosses: trials that diverged, drawn at the lower end.")
    settings = ", ".join(
        f"{called.axis(key).lower()} {called.value(key, value)}" for key, value in settings_shown.items()
    )
    return "\n".join([*sentences, f"Settings: {settings}."]) + "\n"


def _grid(count: int, width: float) -> tuple[int, int]:
    """The numbers of columns and rows of panels, as even as possible."""
    rows = -(-count // max(1, int(width / PANEL)))
    return -(-count // rows), rows


def _confirmed_panels(rows: pd.DataFrame, several: bool) -> int:
    return len(_shown(rows)) if several else 1


def _shown(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The (split, metric) pairs of the confirmation that are shown: without validation, unless there is nothing else."""
    tests = rows[~rows["validation"]]
    pairs = (tests if len(tests) else rows)[["split", "metric"]].drop_duplicates()
    return list(pairs.itertuples(index=False, name=None))


def _confirmation(drawing: Drawing, rows: pd.DataFrame, several: bool) -> list[Panel]:
    if not several:
        return [partial(draw_candidates, drawing, rows)]
    return [partial(draw_groups, drawing, rows, *pair) for pair in _shown(rows)]


# Legend


def _legend(searched: Searched, trials: pd.DataFrame, confirmation: pd.DataFrame) -> list[Line2D]:
    """The entries of the legend: colours of groups, signs of states, splits."""
    has_groups = len(searched.labels) > 1
    lines = []
    if has_groups:
        for group, _ in enumerate(searched.labels):
            colour = looks_of(searched)[group].colour
            lines.append(Line2D([], [], color=colour, lw=2.0, label=group_name(searched.names[group])))
    colour = GREY if has_groups else looks_of(searched)[0].colour
    states = [state for state in ("done", "stopped", "diverged") if (trials["state"] == state).any()]
    states += [WARM] if (trials["origin"] == WARM).any() else []
    lines += [Line2D([], [], color=colour, lw=0, label=NAMES[state], **SIGNS[state]) for state in states]
    lines.append(Line2D([], [], color=colour, lw=0.9, label="best so far"))
    ends = {end for group, _ in enumerate(searched.labels) for end, _ in ends_of(searched, group)}
    names = {DEFAULT: DEFAULT, BEST: "best on fresh seeds" if searched.entries else "best of the search"}
    lines += [Line2D([], [], color=colour, lw=0, label=names[end], **ENDS[end]) for end in names if end in ends]
    if len(confirmation) and not has_groups:
        for split, look in looks_of_splits(confirmation).items():
            style: dict[str, Any] = {"color": look["colour"], "marker": look["marker"], "ms": 3.5, "lw": 0}
            lines.append(Line2D([], [], label=f"{called.split(split)}, fresh seeds", **style))
    return lines


def _packed(legend: Sequence[Line2D], width: float) -> Iterator[list[Line2D]]:
    """Yields the entries of a legend in lines that fit the width."""
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
