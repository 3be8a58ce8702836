"""Checks of a figure: sizes on paper, nothing cut off, nothing on top of another. Each returns the faults that it finds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 6.0  # points
RANGES = {"Acc@0.5 (%)": 100.0, "Accuracy (%)": 100.0, "VQA accuracy (%)": 100.0, "CIDEr × 100": 1000.0}  # noqa: RUF001
BEYOND = 0.08  # of a metric's range: how far an axis may reach past its end, for markers


Found = Sequence[tuple[Text, Bbox]]  # what can be read, and where it is, in pixels


def texts(figure: Figure) -> Iterator[tuple[Text, Bbox]]:
    """All that can be read. Draws the figure, which takes most of the time of all that is held of it."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().strip() and text.get_visible() and _is_shown(figure, text):
            yield text, text.get_window_extent(canvas.get_renderer())


def _is_shown(figure: Figure, text: Text) -> bool:
    """Not the label of a tick outside of its axis."""
    for ax in figure.axes:
        for labels, at, bounds in (
            (ax.get_xticklabels(), 0, ax.get_xlim()),
            (ax.get_yticklabels(), 1, ax.get_ylim()),
        ):
            if any(text is label for label in labels):
                return min(bounds) <= text.get_position()[at] <= max(bounds)
    return True


def too_small(found: Found) -> list[str]:
    return [f"{text.get_text()}: {text.get_fontsize()} pt" for text, _ in found if text.get_fontsize() < SMALLEST]


def cut_off(figure: Figure, found: Found) -> list[str]:
    """Texts that reach beyond the figure."""
    width, height = figure.bbox.width, figure.bbox.height
    return [
        text.get_text()
        for text, box in found
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > width + 0.5 or box.y1 > height + 0.5
    ]


def overlapping(found: Found) -> list[str]:
    """Pairs of texts that touch; spaces around letters are part of a box, so a pixel is nothing."""
    return [
        f"{one.get_text()} / {other.get_text()}"
        for (one, left), (other, right) in combinations(found, 2)
        if left.padded(-1.0).overlaps(right.padded(-1.0))
    ]


def markers_outside(figure: Figure) -> list[str]:
    """Means, runs and ends of intervals that are not within their axes. The figure has been drawn."""
    found = []
    for ax in figure.axes:
        for place in points(ax):
            if not ax.bbox.padded(0.5).contains(*place):
                found.append(f"{ax.get_title(loc='left')}: {place}")
    return found


def points(ax: Axes) -> Iterator[np.ndarray]:
    """Of everything that stands for a value, in pixels."""
    for line in ax.lines:
        if line.get_gid() in ("mean", "runs", "interval", "line", "reached", "lost"):
            places = line.get_transform().transform(np.asarray(line.get_xydata(), float))
            yield from places[np.isfinite(places).all(axis=1)]
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            for segment in collection.get_segments():
                yield from ax.transData.transform(np.asarray(segment, float))


def out_of_range(figure: Figure) -> list[str]:
    """Axes of a metric that reach further than its range and a margin, and ticks where no value can be."""
    found = []
    for ax in figure.axes:
        for name, bounds, ticks in (
            (ax.get_xlabel(), ax.get_xlim(), ax.get_xticks()),
            (ax.get_ylabel(), ax.get_ylim(), ax.get_yticks()),
        ):
            if (most := RANGES.get(name)) and not is_difference(ax):
                low, high = bounds
                within = [tick for tick in ticks if low <= tick <= high]
                if low < -BEYOND * most or high > (1 + BEYOND) * most or any(not 0 <= tick <= most for tick in within):
                    found.append(f"{ax.get_title(loc='left')}, {name}: {low:.1f} to {high:.1f}, ticks {within}")
    return found


def is_difference(ax: Axes) -> bool:
    return any(line.get_gid() == "zero" for line in ax.lines)


def all_of(figure: Figure) -> dict[str, list[str]]:
    """What is wrong, by what it is."""
    found = list(texts(figure))
    wrong = {
        "too_small": too_small(found),
        "cut_off": cut_off(figure, found),
        "overlapping": overlapping(found),
        "markers_outside": markers_outside(figure),
        "out_of_range": out_of_range(figure),
    }
    return {what: where for what, where in wrong.items() if where}
