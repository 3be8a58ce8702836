"""A sweep from its records to its files: tables, the runs behind them, claims, figure and captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import remarks, tables
from analysis.claim_tables import claim_table
from analysis.claims import claims
from analysis.cost_tables import cost_tables
from analysis.costs import Costs, read_costs, spent_in_all
from analysis.curves import curves
from analysis.frame import Sweep
from analysis.latex import latex
from analysis.layout import Table
from analysis.markdown import markdown
from analysis.published import Published, published, unpublished
from analysis.reading import assemble
from analysis.references import References, references
from analysis.runs import runs
from analysis.sources import InStore, Source
from analysis.statistics import cells, edges, facts, learning_curves
from analysis.summaries import averages, detectable, trends
from analysis.terminal import terminal
from mmprompt.files import write_over
from mmprompt.run import Store


@dataclass(frozen=True)
class Report:
    """All that is computed of a sweep, once, for every format."""

    sweep: Sweep
    store: Store
    cells: pd.DataFrame
    facts: pd.DataFrame
    trends: pd.DataFrame
    averages: pd.DataFrame
    detectable: pd.DataFrame
    claims: pd.DataFrame
    costs: Costs
    curves: pd.DataFrame | None  # over seeds, where the sweep asks for them
    references: References
    papers: list[Published]
    own: list[str]  # notes on our numbers
    notes: list[str]  # and on the paper's

    @property
    def tables(self) -> list[Table]:
        """Ours."""
        more = [*cost_tables(self.sweep, self.costs), *([claim_table(self.claims)] if len(self.claims) else [])]
        pairs = zip(self.trends["task"], self.trends["split"], strict=True)
        shown = self.trends[[pair in self.sweep.shown for pair in pairs]]
        summaries = shown, self.averages, self.detectable
        return tables.ours(self.sweep, self.cells, self.facts, *summaries, more, self.references)


def report(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Report | Sweep:
    """The sweep alone where none of its runs is done, as there is nothing to compute."""
    sweep = assemble(store, manifest, source, deep)
    if sweep.frame["attempt"].isna().all():
        return sweep
    values, costs, spent = cells(sweep), read_costs(store, sweep), spent_in_all(store, sweep)
    own = [*sweep.notes, *remarks.notes(sweep), *edges(sweep, values), *costs.notes]
    own += [spent] if spent else []
    learnt = None
    if manifest["curves"]:
        said: list[str] = []
        learnt = learning_curves(sweep, curves(store, manifest, source, said))
        own += [note for note in dict.fromkeys(said) if note not in own]
    return Report(
        sweep=sweep,
        store=store,
        cells=values,
        facts=facts(sweep),
        trends=trends(sweep),
        averages=averages(sweep),
        detectable=detectable(sweep),
        claims=claims(sweep),
        costs=costs,
        curves=learnt,
        references=references(store, sweep),
        papers=list(published(manifest)),
        own=own,
        notes=[*own, *unpublished(manifest)],
    )


def texts(one: Report) -> dict[str, str]:
    """What goes into files beside each other, by the ending of their name."""
    theirs = tables.paper(one.papers)
    name = one.sweep.manifest["sweep"]
    made = {
        ".md": markdown([*one.tables, *theirs], one.notes),
        ".tex": latex(one.tables, name, one.own),
        ".csv": tables.csv(one.cells, one.facts, one.costs),
        ".runs.csv": runs(one.sweep, one.store).to_csv(index=False),
    }
    frames = {"claims": one.claims, "trends": one.trends, "averages": one.averages}
    made |= {f".{kind}.csv": frame.to_csv(index=False) for kind, frame in frames.items() if len(frame)}
    return made | ({"_paper.tex": latex(theirs, name)} if theirs else {})


def write(one: Report, out: Path, source: Source, width: str, formats: Sequence[str]) -> list[str]:
    """Puts every file in place; returns a line on each kind."""
    drawn = draw(one, out / "figures", width, formats)
    return put(out, one.sweep.manifest["sweep"], texts(one), drawn, one.store, source)


def draw(one: Report, folder: Path, width: str, formats: Sequence[str]) -> list[Path]:
    """The figure's files, ours first."""
    from analysis import figure_files

    return figure_files.write(
        folder,
        one.sweep,
        primary(one),
        one.papers,
        one.curves,
        width=width,
        formats=formats,
        averages=one.averages,
        trends=one.trends,
        references=one.references,
        costs=one.costs.frame,
    )


def primary(one: Report) -> pd.DataFrame:
    """The cells of the metric that each task is judged by."""
    return one.cells[one.cells["metric"] == one.cells["task"].map(one.sweep.tasks)]


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


def printed(one: Report, places: Sequence[str]) -> str:
    """What its user should read."""
    return "\n".join([terminal(one.tables, one.notes), *places])
