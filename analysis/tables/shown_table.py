"""A table for notebooks: it displays itself, and converts itself to Markdown, LaTeX and CSV."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from analysis.tables.html import html
from analysis.tables.latex import latex
from analysis.tables.layout import Table
from analysis.tables.markdown import markdown
from analysis.tables.terminal import terminal


@dataclass(frozen=True)
class ShownTable(Table):
    """A table that displays itself in a notebook."""

    @classmethod
    def of(cls, table: Table) -> ShownTable:
        return cls(**{field.name: getattr(table, field.name) for field in fields(table)})

    def __str__(self) -> str:
        """The table as text for a terminal."""
        return terminal([self]).rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html([replace(self, about=())])

    def markdown(self) -> str:
        return markdown([self])

    def latex(self) -> str:
        """The table as a table environment for a paper."""
        return latex([self], self.name or "table")

    def csv(self) -> str:
        """The table's cells as text. Numbers at full precision are in `Results.cells()`."""
        return self.frame.to_csv()
