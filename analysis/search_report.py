"""A search from its records to its files: tables, trials as CSV, figure and caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis import figures, search, search_figures, search_tables
from analysis.figure_files import named
from analysis.latex import latex
from analysis.markdown import markdown
from analysis.report import put
from analysis.sources import Source
from analysis.terminal import terminal
from mmprompt.files import write_over
from mmprompt.run import Store


def report_search(
    store: Store, manifest: dict[str, Any], source: Source, out: Path, deep: bool, width: str, formats: Sequence[str]
) -> tuple[str, bool]:
    """Writes a search's files; returns what its user should read, and whether all belongs together.

    Raises StoreError for a damaged file of the study.
    """
    name = manifest["sweep"]
    searched = search.read_search(store, manifest, source, deep)
    is_sound = not searched.sweep.conflicts
    if not searched.is_begun:
        nothing = f"{name}: none of its trials has come to anything yet, so there is no table"
        return "\n".join([nothing, *searched.sweep.notes]), is_sound
    trials, confirmation, notes = search.trials(searched), search.confirmation(searched), search.notes(searched)
    front = search.front(searched) if len(searched.definition.objective) > 1 else None
    groups, importances = search.groups(searched, trials), search.importances(searched)
    made = search_tables.tables(searched, trials, confirmation, groups, importances, front)
    written = {
        ".md": markdown(made, notes),
        ".tex": latex(made, name, notes),
        ".csv": search.csv(searched, trials, confirmation),
    }
    figure = search_figures.draw(searched, trials, confirmation, front, width)
    drawn = figures.save(figure, out / "figures" / named(name, width), formats)
    drawn.append(out / "figures" / f"{named(name, width)}.caption.txt")
    write_over(drawn[-1], search_figures.caption(searched))
    return "\n".join([terminal(made, notes), *put(out, name, written, drawn, store, source)]), is_sound
