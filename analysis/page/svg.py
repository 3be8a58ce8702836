"""A figure as an image of the page: SVG as small as it can be."""

from __future__ import annotations

import re
from urllib.parse import quote

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import figures, style

READABLE = " <>='/:;,.()-+"  # of an address within double quotes, what is left as it is


def address(figure: Figure) -> Markup:
    """An image of the page, as SVG, safe within double quotes. Its text is text, in the fonts of the reader: outlines would be four
    times as large."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        image = bytes(figures.printed(figure, "svg")).decode()
    return Markup(f"data:image/svg+xml,{quote(compact(image), safe=READABLE)}")


def compact(svg: str) -> str:
    """Without what nobody sees: coordinates to the hundredth of a point, no blanks between elements, no names that nothing refers
    to. What stands between tags stays as it is."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r" id=\"[a-zA-Z0-9.]+_\d+\"", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _short(tag[0]), svg)
    return re.sub(r"<g ?/>", "", re.sub(r">\s+<", "><", svg))


def _short(tag: str) -> str:
    tag = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", " ".join(tag.split()))
    tag = re.sub(r" transform=\"rotate\(-0 [^)]*\)\"", "", tag)
    tag = tag.replace(f"'{style.FONT}'", f"{style.FONT},Times,serif").replace(": ", ":").replace("; ", ";")
    return tag if "'" in tag else tag.replace('"', "'")
