"""The figure files of a sweep, each with its caption.

They are the sweep's own figure, the seconds at inference where models of several sizes were measured, and the paper's values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from analysis.figures import captions, paper_figures, sweep_figures
from analysis.figures.figure_formats import DEFAULT_FORMATS
from analysis.figures.shown_figure import save
from analysis.paper_values import Published, compared
from analysis.records.frame import Sweep
from analysis.records.references import NO_REFERENCES, References
from mmprompt.runs.files import write_over


def write(
    folder: Path,
    sweep: Sweep,
    cells: pd.DataFrame,
    published: Sequence[Published],
    curves: pd.DataFrame | None = None,
    *,
    width: str = "text",
    formats: Iterable[str] = DEFAULT_FORMATS,
    averages: pd.DataFrame | None = None,
    trends: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
    costs: pd.DataFrame | None = None,
) -> list[Path]:
    """Writes NAME.pdf, NAME.png and NAME.caption.txt, NAME_inference.* if `costs` has models of several sizes, and NAME_paper.* if
    the paper has scores. Returns the files, the sweep's own figure first.

    Figures of column width are called NAME_column.pdf and so on. `formats`: some of `figure_formats.FORMATS`.
    """
    name = sweep.manifest["sweep"]
    summaries = {"averages": averages, "trends": trends}
    ours = sweep_figures.draw(sweep, cells, curves, width=width, references=references, **summaries)
    text = captions.caption(sweep, cells, curves, width=width, references=references, **summaries)
    places = save(ours, folder / file_stem(name, width), formats)
    places.append(_caption(folder, file_stem(name, width), text))
    if costs is not None and has_sizes(costs):
        places += save(
            sweep_figures.inference(costs, width=width), folder / file_stem(f"{name}_inference", width), formats
        )
        places.append(_caption(folder, file_stem(f"{name}_inference", width), captions.inference(costs)))
    paper_values = paper_figures.choose_part(published)
    if paper_values is not None:
        theirs = paper_figures.draw(paper_values, compared(sweep.manifest), width=width)
        places += save(theirs, folder / file_stem(f"{name}_paper", width), formats)
        places.append(_caption(folder, file_stem(f"{name}_paper", width), paper_figures.caption(paper_values)))
    return places


def has_sizes(costs: pd.DataFrame) -> bool:
    """Whether seconds at inference were measured for several models, each with one method or several."""
    return {"model", "method"} <= set(costs.columns) and costs["model"].nunique() > 1


def file_stem(name: str, width: str) -> str:
    """The stem of a figure's files: the name; with the width appended unless that is the text's."""
    return name if width == "text" else f"{name}_{width}"


def _caption(folder: Path, name: str, text: str) -> Path:
    place = folder / f"{name}.caption.txt"
    write_over(place, text)
    return place
