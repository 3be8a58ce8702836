"""`python -m analysis tables [NAME ...]`: the table and the figure of a sweep; `curves`: every logged step, as CSV.

NAME is a sweep's, or a search's: search-NAME, or NAME where no sweep has that name. `tables` writes tables/NAME.md, .tex, .csv,
NAME_paper.tex (the paper's own values) and figures/NAME.png, .pdf, and prints the tables, what is wrong with the data, and
where everything lies. `curves` writes curves/NAME.csv. Both read the store, or with `--from server` the runs' W&B records
from the server that `wandb login` or WANDB_BASE_URL and WANDB_API_KEY name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.files import StoreError, follow_mode, write_over
from mmprompt.place import default_store
from mmprompt.run import Store

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.frame import Source, Sweep


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Tables, figures and curves of sweeps.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("tables", "table and figure of sweeps"), ("curves", "every logged step of their runs, as CSV")):
        options = verbs.add_parser(verb, help=what, description=what)
        options.add_argument("names", nargs="*", metavar="NAME", help="sweeps and searches; none: all in the store")
        help = "the store; default: MMPROMPT_RUNS, or runs/ in the clone"
        options.add_argument("--runs", type=Path, default=default_store(), help=help)
        options.add_argument("--out", type=Path, help="where the files are made; default: in the store")
        options.add_argument("--from", dest="place", choices=["store", "server"], default="store", help="W&B records")
        options.add_argument("--project", metavar="[ENTITY/]PROJECT", help="on the server; default: as launched")
    given = parser.parse_args(arguments)
    # Matplotlib keeps a list of fonts, under $HOME unless told otherwise before it is imported; so that comes later.
    os.environ.setdefault("MPLCONFIGDIR", str((given.runs / "cache" / "matplotlib").absolute()))
    from analysis.frame import read_manifest, sweep_names
    from mmprompt.wandb_online import ServerError

    store, make = Store(given.runs), {"tables": report, "curves": write_curves}[given.verb]
    status = 0
    try:
        follow_mode(store.root)
        names = given.names or sweep_names(store)
        if not names:
            raise StoreError(f"no sweep was launched in {store.root}; give the store with --runs or MMPROMPT_RUNS")
        for name in names:
            try:
                manifest = read_manifest(store, name)
                with source_of(given.place, manifest, given.project) as source:
                    print(make(store, manifest, source, given.out or store.root))
            except StoreError as error:  # of one sweep; the others can be read all the same
                print(f"analysis: {error}", file=sys.stderr)
                status = 2
    except (StoreError, ServerError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return status


def source_of(place: str, manifest: Mapping[str, Any], project: str | None) -> AbstractContextManager[Source]:
    """Where the W&B records of this sweep are read."""
    from analysis.frame import in_store
    from analysis.server import on_server

    return on_server(manifest, project) if place == "server" else nullcontext(in_store)


def report(store: Store, manifest: dict[str, Any], source: Source, out: Path) -> str:
    """Write a sweep's files; returns what its user should read."""
    if manifest["search"] is not None:
        return report_search(store, manifest, source, out)
    from analysis import figures, tables
    from analysis.frame import assemble, in_store
    from analysis.latex import latex
    from analysis.markdown import markdown
    from analysis.published import published, unpublished
    from analysis.statistics import cells, edges, facts
    from analysis.terminal import terminal

    name = manifest["sweep"]
    sweep = assemble(store, manifest, source)
    if sweep.frame["attempt"].isna().all():
        return "\n".join([f"{name}: none of its runs is done yet, so there is no table", *sweep.notes])
    values, took, papers = tables.completed(cells(sweep)), facts(sweep), list(published(manifest))
    own = [*sweep.notes, *edges(sweep, values)]
    notes = [*own, *unpublished(manifest)]
    curves = learnt(store, sweep, source, notes) if manifest["curves"] else None
    ours, theirs = tables.ours(sweep, values, took), tables.paper(papers)
    written = {
        ".md": markdown([*ours, *theirs], notes),
        ".tex": latex(ours, name, own),
        ".csv": tables.csv(values, took),
    }
    if theirs:
        written["_paper.tex"] = latex(theirs, name)
    figure = figures.draw(sweep, values, papers, curves)
    places = write(out, name, written, figure, store, source is in_store, bool(papers))
    return "\n".join([terminal(ours, notes), *places])


def report_search(store: Store, manifest: dict[str, Any], source: Source, out: Path) -> str:
    """Write a search's files; returns what its user should read. Raises StoreError for a damaged file of the study."""
    from analysis import search, search_figures, search_tables
    from analysis.frame import in_store
    from analysis.latex import latex
    from analysis.markdown import markdown
    from analysis.terminal import terminal

    name = manifest["sweep"]
    searched = search.read_search(store, manifest, source)
    if not searched.is_begun:
        return "\n".join(
            [f"{name}: none of its trials has come to anything yet, so there is no table", *searched.sweep.notes]
        )
    trials, confirmation, notes = search.trials(searched), search.confirmation(searched), search.notes(searched)
    front = search.front(searched) if len(searched.definition.objective) > 1 else None
    groups, importances = search.groups(searched, trials), search.importances(searched)
    made = search_tables.tables(searched, trials, confirmation, groups, importances, front)
    written = {
        ".md": markdown(made, notes),
        ".tex": latex(made, name, notes),
        ".csv": search.csv(searched, trials, confirmation),
    }
    figure = search_figures.draw(searched, trials, confirmation, front)
    return "\n".join([terminal(made, notes), *write(out, name, written, figure, store, source is in_store, False)])


def write(
    out: Path, name: str, tables: Mapping[str, str], figure: Figure, store: Store, in_store: bool, with_papers: bool
) -> list[str]:
    """Puts the files in place; returns a line on each kind. `in_store`: whether the records were read there."""
    from analysis.figures import save

    for ending, text in tables.items():
        write_over(out / "tables" / f"{name}{ending}", text)
    stem = out / "figures" / name
    save(figure, stem)
    records = f"{store.run('ID').path}/attempts/N/wandb" if in_store else "on the W&B server"
    return [
        f"table    {out / 'tables' / name}.md, .tex, .csv"
        + (f"; {name}_paper.tex: the paper's values" if with_papers else ""),
        f"figure   {stem}.png, .pdf",
        f"records  {records}, IDs in the csv",
    ]


def learnt(store: Store, sweep: Sweep, source: Source, notes: list[str]) -> pd.DataFrame:
    """Learning curves, over seeds."""
    from analysis.curves import curves
    from analysis.statistics import learning_curves

    said: list[str] = []
    rows = curves(store, sweep.manifest, source, said)
    notes.extend(note for note in dict.fromkeys(said) if note not in notes)
    return learning_curves(sweep, rows)


def write_curves(store: Store, manifest: dict[str, Any], source: Source, out: Path) -> str:
    """Write a sweep's curves; returns what its user should read."""
    from analysis.curves import curves

    notes: list[str] = []
    rows = curves(store, manifest, source, notes)
    file = out / "curves" / f"{manifest['sweep']}.csv"
    write_over(file, rows.to_csv(index=False))
    return "\n".join([*dict.fromkeys(notes), f"curves   {file} ({len(rows):,} steps of {rows['run'].nunique()} runs)"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
