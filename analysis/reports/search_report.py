"""The report of a search: all its results, each computed once and on demand, and their files.

The files are tables, trials as CSV, the figure and its caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.figures import search_figures
from analysis.figures.figure_files import file_stem
from analysis.figures.shown_figure import save
from analysis.records.search_reading import read_search
from analysis.records.sources import Source
from analysis.reports.report import write_texts
from analysis.statistics import search_results
from analysis.tables import search_tables
from analysis.tables.html import html, note_list
from analysis.tables.latex import latex
from analysis.tables.layout import Table
from analysis.tables.markdown import markdown
from analysis.tables.terminal import terminal
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SearchReport:
    """The results of a search, from which tables, the figure, notebooks and the page are made."""

    def __init__(self, store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> None:
        """Reads the search. Raises StoreError for a damaged file of the study."""
        self.store, self.source = store, source
        self.searched = read_search(store, manifest, source, deep)

    @property
    def name(self) -> str:
        """The name of the study: `prompt`."""
        return self.searched.name

    @property
    def is_begun(self) -> bool:
        return self.searched.is_begun

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial (`analysis.statistics.search_results.trials`)."""
        return search_results.trials(self.searched)

    @cached_property
    def confirmation(self) -> pd.DataFrame:
        """The scores of the default and the best trials on fresh seeds (`analysis.statistics.search_results.confirmation`)."""
        return search_results.confirmation(self.searched)

    @cached_property
    def importances(self) -> pd.DataFrame:
        """How much each searched key matters (`analysis.statistics.search_results.importances`)."""
        return search_results.importances(self.searched)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """A row per group (`analysis.statistics.search_results.groups`)."""
        return search_results.groups(self.searched, self.trials)

    @cached_property
    def front(self) -> pd.DataFrame | None:
        """The trials that no other beats on all objectives; None for a search with one objective."""
        return search_results.front(self.searched) if len(self.searched.definition.objective) > 1 else None

    @cached_property
    def notes(self) -> list[str]:
        return search_results.notes(self.searched)

    @cached_property
    def tables(self) -> list[Table]:
        """The tables of the search. Raises StoreError while no trial has a result."""
        if not self.is_begun:
            raise StoreError(self._not_begun)
        frames = self.trials, self.confirmation, self.groups, self.importances, self.front
        return search_tables.tables(self.searched, *frames)

    def figure(self, width: str = "text") -> Figure:
        """The figure that `make tables` saves."""
        return search_figures.draw(self.searched, self.trials, self.confirmation, self.front, width)

    def optuna(self, group: str | int = 0) -> Any:
        """The trials as an `optuna.Study` in memory, for Optuna's own plots and importances. `group`: its label or number.

        Raises StoreError if there is no such group.
        """
        from mmprompt.studies import sampler

        labels = self.searched.labels
        if group in labels:
            group = labels.index(str(group))
        if not isinstance(group, int) or not 0 <= group < len(labels):
            raise StoreError(f"search {self.name} has no group {group!r}; it has {', '.join(map(repr, labels))}")
        progress = self.searched.progress
        after = max((one.trial.number for one in progress.outcomes), default=-1) + 1
        told = progress.told(group, after, progress.knew(group))
        return sampler.as_optuna(self.searched.definition, group, told, readable=True)

    @property
    def _not_begun(self) -> str:
        return f"search {self.name}: none of its trials has a result yet"

    def __repr__(self) -> str:
        return terminal(self.tables[:1]).rstrip() if self.is_begun else f"<{self._not_begun}>"

    def _repr_html_(self) -> str:
        return (
            html(self.tables[:1], self.notes)
            if self.is_begun
            else f"<p>{escape(self._not_begun)}</p>{note_list(self.notes)}"
        )


def report_search(report: SearchReport, out: Path, width: str, formats: Sequence[str]) -> str:
    """Writes the files of a search; returns the text for the terminal."""
    name = report.searched.sweep.manifest["sweep"]
    if not report.is_begun:
        nothing = f"{name}: none of its trials has a result yet, so there is no table"
        return "\n".join([nothing, *report.searched.sweep.notes])
    contents = {
        ".md": markdown(report.tables, report.notes),
        ".tex": latex(report.tables, name, report.notes),
        ".csv": search_results.csv(report.searched, report.trials, report.confirmation),
    }
    drawn = save(report.figure(width), out / "figures" / file_stem(name, width), formats)
    drawn.append(out / "figures" / f"{file_stem(name, width)}.caption.txt")
    write_over(drawn[-1], search_figures.caption(report.searched))
    return "\n".join(
        [terminal(report.tables, report.notes), *write_texts(out, name, contents, drawn, report.store, report.source)]
    )
