"""`python -m analysis tables [NAME ...]`: the table and the figure of a sweep, from what lies in the store.

Writes tables/NAME.md, .tex, .csv and figures/NAME.png, .pdf; prints the table, what is wrong with the data, and where
everything lies.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmprompt.run import Store, StoreError


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Tables and figures from the store.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    tables = verbs.add_parser("tables", help="table and figure of sweeps that were launched")
    tables.add_argument("names", nargs="*", metavar="NAME", help="sweeps; none: every sweep in the store")
    tables.add_argument("--runs", type=Path, default=Path(os.environ.get("MMPROMPT_RUNS", "runs")), help="the store")
    tables.add_argument("--out", type=Path, help="where tables/ and figures/ are made; not given: in the store")
    given = parser.parse_args(arguments)
    # Matplotlib keeps a list of fonts, under $HOME unless told otherwise before it is imported; so that comes later.
    os.environ.setdefault("MPLCONFIGDIR", str((given.runs / "cache" / "matplotlib").absolute()))
    from analysis.frame import sweep_names

    store = Store(given.runs)
    try:
        names = given.names or sweep_names(store)
        if not names:
            raise StoreError(f"no sweep was launched in {store.root}; give the store with --runs or MMPROMPT_RUNS")
        for name in names:
            print(report(store, name, given.out or store.root))
    except StoreError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    return 0


def report(store: Store, name: str, out: Path) -> str:
    """Write a sweep's files; returns what its user should read."""
    from analysis import figures, tables
    from analysis.frame import read_sweep
    from analysis.published import published
    from analysis.statistics import cells

    sweep = read_sweep(store, name)
    values, papers = cells(sweep), list(published(sweep.manifest))
    ours, theirs = tables.comparison(sweep, values), tables.paper(papers)
    written = {
        "md": tables.markdown([ours, *theirs], sweep.notes),
        "tex": tables.latex([ours, *theirs], name),
        "csv": tables.csv(values),
    }
    for kind, text in written.items():
        write(out / "tables" / f"{name}.{kind}", text)
    stem = out / "figures" / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figures.draw(sweep, values, papers), stem)
    places = [
        f"table    {out / 'tables' / name}.md, .tex, .csv" + (" (with the paper's values)" if papers else ""),
        f"figure   {stem}.png, .pdf",
        f"records  {store.run('ID').path}/attempts/N/wandb, IDs in the csv",
    ]
    return "\n".join([tables.markdown([ours], sweep.notes), *places])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
