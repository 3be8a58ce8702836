"""All that is computed of a search, each thing once and when it is asked for; and its files: tables, trials as CSV, figure and
caption."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import figures, search, search_figures, search_tables
from analysis.figure_files import named
from analysis.html import html, listed
from analysis.latex import latex
from analysis.layout import Table
from analysis.markdown import markdown
from analysis.report import put
from analysis.sources import Source
from analysis.terminal import terminal
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SearchReport:
    """What tables, the figure, notebooks and the page of a search are made of."""

    def __init__(self, store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> None:
        """Reads the search. Raises StoreError for a damaged file of the study."""
        self.store, self.source = store, source
        self.searched = search.read_search(store, manifest, source, deep)

    @property
    def name(self) -> str:
        """That of the study: `prompt`."""
        return self.searched.name

    @property
    def is_begun(self) -> bool:
        return self.searched.is_begun

    @cached_property
    def trials(self) -> pd.DataFrame:
        """A row per trial (`analysis.search.trials`)."""
        return search.trials(self.searched)

    @cached_property
    def confirmation(self) -> pd.DataFrame:
        """What fresh seeds say of the default and the best (`analysis.search.confirmation`)."""
        return search.confirmation(self.searched)

    @cached_property
    def importances(self) -> pd.DataFrame:
        """How much each searched key matters (`analysis.search.importances`)."""
        return search.importances(self.searched)

    @cached_property
    def groups(self) -> pd.DataFrame:
        """A row per group (`analysis.search.groups`)."""
        return search.groups(self.searched, self.trials)

    @cached_property
    def front(self) -> pd.DataFrame | None:
        """The trials that no other beats on all objectives; None of a search with one."""
        return search.front(self.searched) if len(self.searched.definition.objective) > 1 else None

    @cached_property
    def notes(self) -> list[str]:
        return search.notes(self.searched)

    @cached_property
    def tables(self) -> list[Table]:
        """Raises StoreError while none of its trials has come to anything."""
        if not self.is_begun:
            raise StoreError(self._nothing)
        frames = self.trials, self.confirmation, self.groups, self.importances, self.front
        return search_tables.tables(self.searched, *frames)

    def figure(self, width: str = "text") -> Figure:
        """The figure that `make tables` saves."""
        return search_figures.draw(self.searched, self.trials, self.confirmation, self.front, width)

    def optuna(self, group: str | int = 0) -> Any:
        """The trials as an `optuna.Study` in memory: its plots and importances work on it. `group`: its label or number."""
        from mmprompt.studies import sampler

        labels = self.searched.labels
        if group in labels:
            group = labels.index(str(group))
        if not isinstance(group, int) or not 0 <= group < len(labels):
            raise StoreError(f"search {self.name} has no group {group!r}; it has {', '.join(map(repr, labels))}")
        picture = self.searched.picture
        after = max((one.trial.number for one in picture.outcomes), default=-1) + 1
        told = picture.told(group, after, picture.knew(group))
        return sampler.as_optuna(self.searched.definition, group, told, readable=True)

    @property
    def _nothing(self) -> str:
        return f"search {self.name}: none of its trials has come to anything yet"

    def __repr__(self) -> str:
        return terminal(self.tables[:1]).rstrip() if self.is_begun else f"<{self._nothing}>"

    def _repr_html_(self) -> str:
        return (
            html(self.tables[:1], self.notes)
            if self.is_begun
            else f"<p>{escape(self._nothing)}</p>{listed(self.notes)}"
        )


def report_search(one: SearchReport, out: Path, width: str, formats: Sequence[str]) -> str:
    """Writes a search's files; returns what its user should read."""
    name = one.searched.sweep.manifest["sweep"]
    if not one.is_begun:
        nothing = f"{name}: none of its trials has come to anything yet, so there is no table"
        return "\n".join([nothing, *one.searched.sweep.notes])
    written = {
        ".md": markdown(one.tables, one.notes),
        ".tex": latex(one.tables, name, one.notes),
        ".csv": search.csv(one.searched, one.trials, one.confirmation),
    }
    drawn = figures.save(one.figure(width), out / "figures" / named(name, width), formats)
    drawn.append(out / "figures" / f"{named(name, width)}.caption.txt")
    write_over(drawn[-1], search_figures.caption(one.searched))
    return "\n".join([terminal(one.tables, one.notes), *put(out, name, written, drawn, one.store, one.source)])
