"""All that is computed of a sweep, each thing once and when it is asked for; and its files: tables, the runs behind them, claims,
figures and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis import curves, remarks, statistics, summaries, tables
from analysis.claim_tables import claim_table
from analysis.claims import claims
from analysis.cost_tables import cost_tables
from analysis.costs import Costs, read_costs, spent_in_all
from analysis.frame import Sweep
from analysis.latex import latex
from analysis.layout import Table
from analysis.markdown import markdown
from analysis.paper_values import Published, published, unpublished
from analysis.reading import assemble
from analysis.references import References, references
from analysis.run_table import run_table
from analysis.sources import InStore, Source
from analysis.terminal import terminal
from mmprompt.runs.files import write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SweepReport:
    """What tables, figures, documents, notebooks and the page of a sweep are made of."""

    def __init__(self, store: Store, sweep: Sweep, source: Source) -> None:
        self.store, self.sweep, self.source = store, sweep, source

    def of(self, **manifest: Any) -> SweepReport:
        """The same runs under a manifest that differs in this."""
        return SweepReport(self.store, replace(self.sweep, manifest={**self.sweep.manifest, **manifest}), self.source)

    @property
    def name(self) -> str:
        return str(self.sweep.manifest["sweep"])

    @property
    def is_begun(self) -> bool:
        """Whether any run is done; else there is nothing to compute."""
        return bool(self.sweep.frame["attempt"].notna().any())

    @cached_property
    def cells(self) -> pd.DataFrame:
        return statistics.cells(self.sweep)

    @cached_property
    def facts(self) -> pd.DataFrame:
        return statistics.facts(self.sweep)

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
        """Every logged step of its runs, and what is to be said of them."""
        notes: list[str] = []
        rows = curves.curves(self.store, self.sweep.manifest, self.source, notes)
        return rows, list(dict.fromkeys(notes))

    @cached_property
    def curves(self) -> pd.DataFrame | None:
        """Learning curves over seeds, where the sweep asks for them."""
        return statistics.learning_curves(self.sweep, self.steps[0]) if self.sweep.manifest["curves"] else None

    @cached_property
    def references(self) -> References:
        return references(self.store, self.sweep)

    @cached_property
    def papers(self) -> list[Published]:
        return list(published(self.sweep.manifest))

    @cached_property
    def own(self) -> list[str]:
        """Notes on our numbers."""
        said = [
            *self.sweep.notes,
            *remarks.notes(self.sweep),
            *statistics.edges(self.sweep, self.cells),
            *self.costs.notes,
        ]
        spent = spent_in_all(self.store, self.sweep)
        said += [spent] if spent else []
        return list(dict.fromkeys([*said, *(self.steps[1] if self.sweep.manifest["curves"] else [])]))

    @property
    def notes(self) -> list[str]:
        """And on the paper's."""
        return [*self.own, *unpublished(self.sweep.manifest)]

    @cached_property
    def primary(self) -> pd.DataFrame:
        """The cells of the metric that each task is judged by."""
        return self.cells[self.cells["metric"] == self.cells["task"].map(self.sweep.tasks)]

    @cached_property
    def tables(self) -> list[Table]:
        """Ours."""
        more = [*cost_tables(self.sweep, self.costs), *([claim_table(self.claims)] if len(self.claims) else [])]
        pairs = zip(self.trends["task"], self.trends["split"], strict=True)
        shown = self.trends[[pair in self.sweep.shown for pair in pairs]]
        summed = shown, self.averages, self.detectable
        return tables.ours(self.sweep, self.cells, self.facts, *summed, more, self.references)

    def figure(self, width: str = "text") -> Figure:
        """`width`: column or text, as it is printed."""
        from analysis import figures

        return figures.draw(self.sweep, self.primary, self.curves, width=width, **self._drawn)

    def caption(self, width: str = "text") -> str:
        """Of the figure, a sentence per line."""
        from analysis import captions

        return captions.caption(self.sweep, self.primary, self.curves, width=width, **self._drawn)

    @property
    def _drawn(self) -> dict[str, Any]:
        return {"averages": self.averages, "trends": self.trends, "references": self.references}


def read_report(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> SweepReport:
    """`deep`: every byte of the sweep is checked (`analysis.verify.deeply`)."""
    return SweepReport(store, assemble(store, manifest, source, deep), source)


def texts(one: SweepReport) -> dict[str, str]:
    """What goes into files beside each other, by the ending of their name."""
    theirs = tables.paper(one.papers)
    made = {
        ".md": markdown([*one.tables, *theirs], one.notes),
        ".tex": latex(one.tables, one.name, one.own),
        ".csv": tables.csv(one.cells, one.facts, one.costs),
        ".runs.csv": run_table(one.sweep, one.store).to_csv(index=False),
    }
    frames = {"claims": one.claims, "trends": one.trends, "averages": one.averages}
    made |= {f".{kind}.csv": frame.to_csv(index=False) for kind, frame in frames.items() if len(frame)}
    return made | ({"_paper.tex": latex(theirs, one.name)} if theirs else {})


def write(one: SweepReport, out: Path, width: str, formats: Sequence[str]) -> list[str]:
    """Puts every file in place; returns a line on each kind."""
    drawn = draw(one, out / "figures", width, formats)
    return put(out, one.name, texts(one), drawn, one.store, one.source)


def draw(one: SweepReport, folder: Path, width: str, formats: Sequence[str]) -> list[Path]:
    """The figure's files, ours first."""
    from analysis import figure_files

    return figure_files.write(
        folder,
        one.sweep,
        one.primary,
        one.papers,
        one.curves,
        width=width,
        formats=formats,
        averages=one.averages,
        trends=one.trends,
        references=one.references,
        costs=one.costs.frame,
    )


def put(
    out: Path, name: str, written: Mapping[str, str], drawn: Sequence[Path], store: Store, source: Source
) -> list[str]:
    """Puts tables in place; returns a line on each kind. `drawn`: what the figure became; `source`: where records were read."""
    for ending, text in written.items():
        write_over(out / "tables" / f"{name}{ending}", text)
    records = f"{store.run('ID').path}/attempts/N/wandb" if isinstance(source, InStore) else "on the W&B server"
    first, *more = written
    return [
        f"tables   {out / 'tables' / name}{first}, {', '.join(more)}",
        f"figure   {', '.join([str(drawn[0]), *(_ending(place, drawn[0]) for place in drawn[1:])])}",
        f"records  {records}, IDs in {name}.runs.csv"
        if ".runs.csv" in written
        else f"records  {records}, IDs in the csv",
    ]


def _ending(place: Path, first: Path) -> str:
    """What is not the same as in the first one's name: `.png`, `_paper.pdf`."""
    return place.name.removeprefix(first.stem)


def printed(one: SweepReport, places: Sequence[str]) -> str:
    """What its user should read."""
    return "\n".join([terminal(one.tables, one.notes), *places])
