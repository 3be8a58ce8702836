"""The report of a sweep: all its results, each computed once and on demand, and their files.

The files are tables, the runs behind them, claims, figures and captions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.paper_values import Published, published, unpublished
from analysis.records import remarks
from analysis.records.frame import Sweep
from analysis.records.reading import assemble
from analysis.records.references import References, references
from analysis.records.run_table import run_table
from analysis.records.sources import InStore, Source
from analysis.reports import curves
from analysis.statistics import cell_statistics, summaries
from analysis.statistics.claims import claims
from analysis.statistics.costs import Costs, read_costs, spent_device_hours
from analysis.tables import sweep_tables
from analysis.tables.claim_tables import claim_table
from analysis.tables.cost_tables import cost_tables
from analysis.tables.latex import latex
from analysis.tables.layout import Table
from analysis.tables.markdown import markdown
from analysis.tables.terminal import terminal
from mmprompt.runs.files import write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SweepReport:
    """The results of a sweep, from which tables, figures, documents, notebooks and the page are made."""

    def __init__(self, store: Store, sweep: Sweep, source: Source) -> None:
        self.store, self.sweep, self.source = store, sweep, source

    def with_manifest(self, **manifest: Any) -> SweepReport:
        """A report on the same runs under a manifest that differs in these keys."""
        return SweepReport(self.store, replace(self.sweep, manifest={**self.sweep.manifest, **manifest}), self.source)

    @property
    def name(self) -> str:
        return str(self.sweep.manifest["sweep"])

    @property
    def is_begun(self) -> bool:
        """Whether any run is done; otherwise there is nothing to compute."""
        return bool(self.sweep.frame["attempt"].notna().any())

    @cached_property
    def cells(self) -> pd.DataFrame:
        return cell_statistics.cells(self.sweep)

    @cached_property
    def facts(self) -> pd.DataFrame:
        return cell_statistics.facts(self.sweep)

    @cached_property
    def trends(self) -> pd.DataFrame:
        return summaries.trends(self.sweep)

    @cached_property
    def averages(self) -> pd.DataFrame:
        return summaries.averages(self.sweep)

    @cached_property
    def detectable(self) -> pd.DataFrame:
        return summaries.detectable(self.sweep)

    @cached_property
    def claims(self) -> pd.DataFrame:
        return claims(self.sweep)

    @cached_property
    def costs(self) -> Costs:
        return read_costs(self.store, self.sweep)

    @cached_property
    def steps(self) -> tuple[pd.DataFrame, list[str]]:
        """Every logged step of its runs, and the notes on them."""
        notes: list[str] = []
        rows = curves.curves(self.store, self.sweep.manifest, self.source, notes)
        return rows, list(dict.fromkeys(notes))

    @cached_property
    def curves(self) -> pd.DataFrame | None:
        """Learning curves over seeds; None if the sweep does not ask for them."""
        return cell_statistics.learning_curves(self.sweep, self.steps[0]) if self.sweep.manifest["curves"] else None

    @cached_property
    def references(self) -> References:
        return references(self.store, self.sweep)

    @cached_property
    def paper_parts(self) -> list[Published]:
        return list(published(self.sweep.manifest))

    @cached_property
    def own_notes(self) -> list[str]:
        """The notes on our own numbers."""
        notes = [
            *self.sweep.notes,
            *remarks.notes(self.sweep),
            *cell_statistics.edges(self.sweep, self.cells),
            *self.costs.notes,
        ]
        spent = spent_device_hours(self.store, self.sweep)
        notes += [spent] if spent else []
        return list(dict.fromkeys([*notes, *(self.steps[1] if self.sweep.manifest["curves"] else [])]))

    @property
    def notes(self) -> list[str]:
        """The notes on our own numbers and on the paper's."""
        return [*self.own_notes, *unpublished(self.sweep.manifest)]

    @cached_property
    def primary(self) -> pd.DataFrame:
        """The cells of each task's primary metric."""
        return self.cells[self.cells["metric"] == self.cells["task"].map(self.sweep.tasks)]

    @cached_property
    def tables(self) -> list[Table]:
        """The tables of our own numbers."""
        further_tables = [
            *cost_tables(self.sweep, self.costs),
            *([claim_table(self.claims)] if len(self.claims) else []),
        ]
        pairs = zip(self.trends["task"], self.trends["split"], strict=True)
        shown_trends = self.trends[[pair in self.sweep.shown for pair in pairs]]
        summaries = shown_trends, self.averages, self.detectable
        return sweep_tables.ours(self.sweep, self.cells, self.facts, *summaries, further_tables, self.references)

    def figure(self, width: str = "text") -> Figure:
        """The figure of the sweep. `width`: column or text, the width it is printed at."""
        from analysis.figures import sweep_figures

        return sweep_figures.draw(self.sweep, self.primary, self.curves, width=width, **self._drawn)

    def caption(self, width: str = "text") -> str:
        """The caption of the figure, a sentence per line."""
        from analysis.figures import captions

        return captions.caption(self.sweep, self.primary, self.curves, width=width, **self._drawn)

    @property
    def _drawn(self) -> dict[str, Any]:
        return {"averages": self.averages, "trends": self.trends, "references": self.references}


def read_report(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> SweepReport:
    """Reads a sweep. `deep`: every byte of it is checked (`analysis.records.verify.check_deeply`)."""
    return SweepReport(store, assemble(store, manifest, source, deep), source)


def texts(report: SweepReport) -> dict[str, str]:
    """Returns the contents of a sweep's text files, by the ending of their names."""
    paper_tables = sweep_tables.paper(report.paper_parts)
    contents = {
        ".md": markdown([*report.tables, *paper_tables], report.notes),
        ".tex": latex(report.tables, report.name, report.own_notes),
        ".csv": sweep_tables.csv(report.cells, report.facts, report.costs),
        ".runs.csv": run_table(report.sweep, report.store).to_csv(index=False),
    }
    frames = {"claims": report.claims, "trends": report.trends, "averages": report.averages}
    contents |= {f".{kind}.csv": frame.to_csv(index=False) for kind, frame in frames.items() if len(frame)}
    return contents | ({"_paper.tex": latex(paper_tables, report.name)} if paper_tables else {})


def write(report: SweepReport, out: Path, width: str, formats: Sequence[str]) -> list[str]:
    """Writes every file of a sweep; returns a line about each kind."""
    drawn = draw(report, out / "figures", width, formats)
    return write_texts(out, report.name, texts(report), drawn, report.store, report.source)


def draw(report: SweepReport, folder: Path, width: str, formats: Sequence[str]) -> list[Path]:
    """Draws the figures of a sweep into a folder. Returns their files, our own figure first."""
    from analysis.figures import figure_files

    return figure_files.write(
        folder,
        report.sweep,
        report.primary,
        report.paper_parts,
        report.curves,
        width=width,
        formats=formats,
        averages=report.averages,
        trends=report.trends,
        references=report.references,
        costs=report.costs.frame,
    )


def write_texts(
    out: Path, name: str, contents: Mapping[str, str], drawn: Sequence[Path], store: Store, source: Source
) -> list[str]:
    """Writes the text files; returns a line about each kind of file.

    `written`: the texts by the ending of their files. `drawn`: the files of the figures. `source`: where W&B records were read.
    """
    for ending, text in contents.items():
        write_over(out / "tables" / f"{name}{ending}", text)
    records = f"{store.run('ID').path}/attempts/N/wandb" if isinstance(source, InStore) else "on the W&B server"
    first, *other_endings = contents
    return [
        f"tables   {out / 'tables' / name}{first}, {', '.join(other_endings)}",
        f"figure   {', '.join([str(drawn[0]), *(_ending(place, drawn[0]) for place in drawn[1:])])}",
        f"records  {records}, IDs in {name}.runs.csv"
        if ".runs.csv" in contents
        else f"records  {records}, IDs in the csv",
    ]


def _ending(place: Path, first: Path) -> str:
    """The part of a file's name that differs from the first file's: `.png`, `_paper.pdf`."""
    return place.name.removeprefix(first.stem)


def printed(report: SweepReport, places: Sequence[str]) -> str:
    """Returns the text for the terminal: the tables, their notes, and the lines about the files."""
    return "\n".join([terminal(report.tables, report.notes), *places])
