"""The conversion of a figure to a compact SVG for the page."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from analysis.figures.shown_figure import printed


def image(figure: Figure) -> str:
    """Returns a figure as SVG, with letters as outlines so that it looks the same everywhere."""
    return compact(bytes(printed(figure, "svg")).decode())


def compact(svg: str) -> str:
    """Returns a smaller SVG that looks the same: numbers with four digits, no blanks between elements, no unused ids.

    Text between tags is unchanged.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"[a-zA-Z0-9.]+_\d+\"", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), svg)
    return re.sub(r"<g ?/>", "", re.sub(r">\s+<", "><", svg))


def _short(tag: str) -> str:
    """A tag with shorter numbers, and without blanks and rotations by zero."""
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.4g}", " ".join(tag.split()))
    tag = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", tag)
    return tag.replace(": ", ":").replace("; ", ";")
