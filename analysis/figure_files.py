"""The files that the figures of a sweep become, each with its caption: ours, seconds at inference where models of several sizes
were measured, and the paper's values in files of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis import captions, figures, paper_figures
from analysis.frame import Sweep
from analysis.paper_values import Published, compared
from analysis.references import NO_REFERENCES, References
from mmprompt.runs.files import write_over


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
    costs: pd.DataFrame | None = None,
) -> list[Path]:
    """NAME.pdf, NAME.png and NAME.caption.txt, NAME_inference.* where `costs` has models of several sizes, and NAME_paper.* where
    the paper has scores; returns them, ours first.

    As wide as a column, all are NAME_column.pdf and so on. `formats`: of `figures.KINDS`.
    """
    name = sweep.manifest["sweep"]
    more = {"averages": averages, "trends": trends}
    ours = figures.draw(sweep, cells, curves, width=width, references=references, **more)
    said = captions.caption(sweep, cells, curves, width=width, references=references, **more)
    places = figures.save(ours, folder / named(name, width), formats)
    places.append(_caption(folder, named(name, width), said))
    if costs is not None and has_sizes(costs):
        places += figures.save(
            figures.inference(costs, width=width), folder / named(f"{name}_inference", width), formats
        )
        places.append(_caption(folder, named(f"{name}_inference", width), captions.inference(costs)))
    part = paper_figures.drawn(published)
    if part is not None:
        theirs = paper_figures.draw(part, compared(sweep.manifest), width=width)
        places += figures.save(theirs, folder / named(f"{name}_paper", width), formats)
        places.append(_caption(folder, named(f"{name}_paper", width), paper_figures.caption(part)))
    return places


def has_sizes(costs: pd.DataFrame) -> bool:
    """Whether seconds at inference were measured of several models, each with several methods or one."""
    return {"model", "method"} <= set(costs.columns) and costs["model"].nunique() > 1


def named(name: str, width: str) -> str:
    """What is as wide as the text has the name alone."""
    return name if width == "text" else f"{name}_{width}"


def _caption(folder: Path, name: str, text: str) -> Path:
    place = folder / f"{name}.caption.txt"
    write_over(place, text)
    return place
