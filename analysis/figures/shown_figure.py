"""A figure as it is shown in a notebook and written into files: the same look, and the same bytes for the same values."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis.figures.figure_formats import DEFAULT_FORMATS
from analysis.figures.style import applied
from mmprompt.runs.files import write_over

DPI = 300  # resolution of a PNG
ON_SCREEN, PIXELS = 180, 130  # in a notebook: dots per inch of the image, and displayed pixels per inch


class Shown(Figure):
    """A figure that looks the same in a notebook and in a file, and that is saved in our style (Type 42 fonts) always."""

    def savefig(self, *places: Any, **options: Any) -> None:
        with applied():
            super().savefig(*places, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        with applied():
            return bytes(printed(self, "png", ON_SCREEN)), {"width": round(self.get_figwidth() * PIXELS)}


def save(figure: Figure, stem: Path, formats: Iterable[str] = DEFAULT_FORMATS) -> list[Path]:
    """Writes STEM.pdf and so on; returns the files."""
    places = []
    with applied():
        for kind in formats:
            places.append(stem.with_name(f"{stem.name}.{kind}"))
            write_over(places[-1], printed(figure, kind))
    return places


def printed(figure: Figure, kind: str, dpi: int = DPI) -> memoryview:
    """Returns the bytes of the figure's file, without date and version.

    It calls the canvas directly: `savefig` would draw everything once more to compute a layout that is already solved.
    """
    buffer = io.BytesIO()
    if kind == "pdf":
        FigureCanvasPdf(figure).print_pdf(buffer, metadata={"CreationDate": None})
    elif kind == "svg":
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    else:
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getbuffer()


def finished(figure: Figure) -> Figure:
    """Solves the layout of a figure once, so that each format need not do it again; returns the figure."""
    figure.align_ylabels()
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure
