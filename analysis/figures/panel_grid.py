"""The layout of a figure of several panels: how many stand side by side, their sizes, and the legend above them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.shown_figure import Shown

LETTER = 0.047  # inches: approximate width of a letter
AROUND = 0.49  # inches: space for text above and below a panel together
LEGEND_LINE = 0.14  # inches: height of a line of the legend


def columns_of(count: int, fitting: float) -> int:
    """The number of columns for so many panels: at most `fitting`, and such that rows are as even as possible."""
    most = max(1, min(count, int(fitting + 0.05)))
    return -(-count // -(-count // most))


def grid_of(
    count: int,
    columns: int,
    heights: Sequence[float],
    width: float,
    entries: Sequence[Line2D],
    around: Sequence[float],
) -> tuple[Figure, list[list[Axes]]]:
    """Makes an empty figure. Returns it, and for each panel its axes from top to bottom.

    `heights`: inches, of the axes of a panel. `around`: inches for the text above and below each of them. `width`: inches.
    `entries`: the entries of the legend above all panels.
    """
    blocks = -(-count // columns)
    packed = list(packed_in_lines(entries, width))
    high = blocks * (sum(heights) + sum(around)) + LEGEND_LINE * len(packed)
    figure = Shown(figsize=(width, high), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0.03, hspace=0.02)  # type: ignore[call-arg]
    grid = figure.add_gridspec(blocks * len(heights), columns, height_ratios=[*heights] * blocks)
    axes = [
        [
            figure.add_subplot(grid[len(heights) * (at // columns) + level, at % columns])
            for level in range(len(heights))
        ]
        for at in range(count)
    ]
    if packed:
        figure.legend(handles=by_columns(packed), loc="outside upper left", ncols=len(packed[0]))
    return figure, axes


def packed_in_lines(entries: Sequence[Line2D], width: float) -> Iterator[list[Line2D]]:
    """Yields the entries of a legend in lines that fit the width, as even as possible."""
    if not entries:
        return
    each = max(0.42 + LETTER * len(str(entry.get_label())) for entry in entries)
    columns = columns_of(len(entries), width / each)
    for first in range(0, len(entries), columns):
        yield list(entries[first : first + columns])


def by_columns(packed: Sequence[Sequence[Line2D]]) -> list[Line2D]:
    """The entries in the order in which Matplotlib fills a legend, column by column."""
    return [line[at] for at in range(len(packed[0])) for line in packed if at < len(line)]
