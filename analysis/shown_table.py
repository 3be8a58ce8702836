"""A table as a notebook holds it: it shows itself, and is written down as a paper, a page or a spreadsheet wants it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from analysis.html import html
from analysis.latex import latex
from analysis.layout import Table
from analysis.markdown import markdown
from analysis.terminal import terminal


@dataclass(frozen=True)
class ShownTable(Table):
    @classmethod
    def of(cls, table: Table) -> ShownTable:
        return cls(**{field.name: getattr(table, field.name) for field in fields(table)})

    def __str__(self) -> str:
        """As a terminal shows it."""
        return terminal([self]).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html([replace(self, about=())])

    def markdown(self) -> str:
        return markdown([self])

    def latex(self) -> str:
        """A table environment for a paper."""
        return latex([self], self.name or "table")

    def csv(self) -> str:
        """The cells in plain words; the numbers at full precision are in `cells()`."""
        return self.frame.to_csv()
