"""The files that the figure of a sweep becomes: ours and its caption, and the paper's values and theirs in files of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis import captions, figures, paper_figures
from analysis.frame import Sweep
from analysis.published import Published, compared
from analysis.references import NO_REFERENCES, References
from mmprompt.files import write_over


def write(
    folder: Path,
    sweep: Sweep,
    cells: pd.DataFrame,
    published: Sequence[Published],
    curves: pd.DataFrame | None = None,
    *,
    width: str = "text",
    formats: Iterable[str] = figures.FORMATS,
    averages: pd.DataFrame | None = None,
    trends: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
) -> list[Path]:
    """NAME.pdf, NAME.png and NAME.caption.txt, and NAME_paper.* where the paper has scores; returns them, ours first.

    As wide as a column, all are NAME_column.pdf and so on. `formats`: of `figures.KINDS`.
    """
    name = sweep.manifest["sweep"]
    more = {"averages": averages, "trends": trends}
    ours = figures.draw(sweep, cells, curves, width=width, references=references, **more)
    said = captions.caption(sweep, cells, curves, width=width, references=references, **more)
    places = figures.save(ours, folder / named(name, width), formats)
    places.append(_caption(folder, named(name, width), said))
    part = paper_figures.drawn(published)
    if part is not None:
        theirs = paper_figures.draw(part, compared(sweep.manifest), width=width)
        places += figures.save(theirs, folder / named(f"{name}_paper", width), formats)
        places.append(_caption(folder, named(f"{name}_paper", width), paper_figures.caption(part)))
    return places


def named(name: str, width: str) -> str:
    """What is as wide as the text has the name alone."""
    return name if width == "text" else f"{name}_{width}"


def _caption(folder: Path, name: str, text: str) -> Path:
    place = folder / f"{name}.caption.txt"
    write_over(place, text)
    return place
