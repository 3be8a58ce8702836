"""A figure as an image of the page: SVG as small as it can be."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from analysis import figures


def image(figure: Figure) -> str:
    """With letters as outlines, so that it looks the same wherever it is read."""
    return compact(bytes(figures.printed(figure, "svg")).decode())


def compact(svg: str) -> str:
    """Smaller, and looks the same: numbers with four digits, no blanks between elements, no unused ids. Text between tags is
    unchanged."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"[a-zA-Z0-9.]+_\d+\"", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), svg)
    return re.sub(r"<g ?/>", "", re.sub(r">\s+<", "><", svg))


def _short(tag: str) -> str:
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.4g}", " ".join(tag.split()))
    tag = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", tag)
    return tag.replace(": ", ":").replace("; ", ";")
