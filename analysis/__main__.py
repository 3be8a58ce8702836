"""Results of sweeps and searches, from their records.

`python -m analysis tables [NAME ...]` writes tables/NAME.md, .tex, .csv, .runs.csv (the runs behind it) and more,
figures/NAME.pdf, .png and its caption, the paper's values apart as NAME_paper; it prints the tables, what is wrong with the
data, and where everything lies. `verify` says whether what is read belongs together, `curves` writes every logged step as
CSV, `claims` says what sweeps claim and whether their runs show it. `trace SWEEP KEY=VALUE ...` goes from a cell to its runs,
files and commands; `compare SWEEP ROW ROW` compares any two rows; `publish FILE ...` writes results into documents.

NAME is a sweep's, or a search's: search-NAME, or NAME where no sweep has that name. All read the store, or with `--from
server` the runs' W&B records from the server that `wandb login` or WANDB_BASE_URL and WANDB_API_KEY name. What is cheap is
always checked; `verify`, and `--verify`, read every byte.

The exit status is 0, or 1 where something does not belong together or a run's file is damaged, or 2 where a sweep cannot be
read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmprompt.runs.deployment import default_store, store_folder
from mmprompt.runs.files import StoreError, follow_mode, vanished, write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from analysis.frame import Sweep
    from analysis.report import SweepReport
    from analysis.search_report import SearchReport
    from analysis.sources import Source

CHECKED = (
    "configurations, labels and header of the manifest, settings and splits of evaluations, W&B records to the last byte, "
    "scores of single examples, ranges, weights"
)
Read = tuple[Store, dict[str, Any], "Source"]  # a sweep, and where its records are
Verb = Callable[[Read, argparse.Namespace], tuple[str, bool]]  # gives what to print, and whether all belongs together


def main(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    # Matplotlib keeps a list of fonts, under $HOME unless told otherwise before it is imported; so that comes later.
    os.environ.setdefault("MPLCONFIGDIR", str((given.runs / "cache" / "matplotlib").absolute()))
    from analysis.manifest import read_manifest
    from mmprompt.runs.wandb_server import ServerError

    store, status = Store(given.runs), 0
    try:
        follow_mode(store.root)
        if given.verb == "publish":
            from analysis.publish import publish

            print(publish(store, given.files, given.docs))
            return 0
        if given.verb == "report":
            from analysis.inventory import store_at

            store_at(store)  # before Matplotlib is imported, which makes a folder in it
            from analysis.page.render import write_page

            print(write_page(store))
            if given.wandb:
                from analysis.wandb_report import report_to_wandb

                print(report_to_wandb(store, given.project))
            return 0
        if given.verb == "notebooks":
            from analysis.notebook_files import write

            for line, is_well in write(store, given.out, given.names):
                print(line, flush=True)
                status = max(status, 0 if is_well else 1)
            return status
        names = given.names or sorted(store.sweeps())
        if not names:
            raise StoreError(f"no sweep was launched in {store.root}; give the store with --runs or MMPROMPT_RUNS")
        documents = []
        for name in names:
            try:
                manifest = read_manifest(store, name)
                with source_of(given, manifest) as source:
                    text, is_sound = VERBS[given.verb]((store, manifest, source), given)
                documents.append(text) if is_json(given) else print(text)
                status = max(status, 0 if is_sound else 1)
            except StoreError as error:  # of one sweep; the others can be read all the same
                print(f"analysis: {error}", file=sys.stderr)
                status = 2
        if is_json(given):
            print("[" + ",\n".join(documents) + "]")
    except (StoreError, ServerError) as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        print(f"analysis: {vanished(error)}", file=sys.stderr)
        return 2
    return status


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m analysis", description="Tables, figures, claims and runs of sweeps."
    )
    verbs = whole.add_subparsers(dest="verb", required=True)

    def verb(name: str, what: str) -> argparse.ArgumentParser:
        options = verbs.add_parser(name, help=what, description=what)
        help = "the store; default: MMPROMPT_RUNS, or runs/ in the clone"
        options.add_argument("--runs", type=store_folder, default=default_store(), help=help)
        options.add_argument("--from", dest="place", choices=["store", "server"], default="store", help="W&B records")
        options.add_argument("--project", metavar="[ENTITY/]PROJECT", help="on the server; default: as launched")
        return options

    def of_all(name: str, what: str) -> argparse.ArgumentParser:
        options = verb(name, what)
        options.add_argument("names", nargs="*", metavar="NAME", help="sweeps and searches; none: all in the store")
        return options

    def of_one(name: str, what: str) -> argparse.ArgumentParser:
        options = verb(name, what)
        options.add_argument("names", nargs=1, metavar="SWEEP")
        return options

    tables = of_all("tables", "table and figure of sweeps")
    tables.add_argument("--verify", action="store_true", help="check all that `verify` checks")
    widths = "of figures, as they are printed: text (5.5 in, NAME.pdf) or column (3.25 in, NAME_column.pdf)"
    tables.add_argument("--width", choices=["text", "column"], default="text", help=widths)
    kinds = "of figures, with commas between: pdf, png, svg; default: pdf,png"
    tables.add_argument("--json", action="store_true", help="for programs: one JSON document, a list of sweeps")
    tables.add_argument("--format", type=_kinds, default=("pdf", "png"), help=kinds)
    for one in (tables, of_all("curves", "every logged step of their runs, as CSV")):
        one.add_argument("--out", type=Path, help="where the files are made; default: in the store")
    of_all("verify", "whether runs, records and manifest belong together; writes nothing")
    of_all("claims", "what sweeps claim, and whether their runs show it")
    trace = of_one("trace", "from a cell of a table to its runs, their files and the commands that repeat them")
    trace.add_argument("cell", nargs="*", metavar="KEY=VALUE", help="the cell; axes, task and split; none: all")
    compare = of_one("compare", "one row less another, whichever two")
    compare.add_argument("rows", nargs=2, metavar="ROW", help="as the table calls it: 120, prompt, 'bitfit all'")
    compare.add_argument("--quantity", default="score", help="score, kept, or a fact that runs record; default: score")
    publish = verb("publish", "write results into documents, between their marks, and what they rest on into docs/")
    publish.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown")
    publish.add_argument(
        "--docs", type=Path, default=Path("docs"), help="where results/ and figures/ are; default: docs"
    )
    page = verb("report", "write the report page, STORE/report.html: one file, no network")
    page.add_argument("--wandb", action="store_true", help="send it, tables and figures to the W&B project, as one run")
    notebooks = verb("notebooks", "execute the notebooks, and write them with what they show")
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="notebooks; none: all")
    notebooks.add_argument("--out", type=Path, default=Path("docs/notebooks"), help="default: docs/notebooks")
    return whole


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if not set(kinds) <= {"pdf", "png", "svg"}:
        raise argparse.ArgumentTypeError(f"{text}: these are pdf, png and svg, with commas between")
    return kinds


def source_of(given: argparse.Namespace, manifest: Mapping[str, Any]) -> AbstractContextManager[Source]:
    """Where the W&B records of this sweep are read; those of the store to the last byte where everything is checked."""
    from analysis.server import on_server
    from analysis.sources import InStore

    return on_server(manifest, given.project) if given.place == "server" else nullcontext(InStore(is_deep(given)))


def is_deep(given: argparse.Namespace) -> bool:
    """Whether everything is checked."""
    return given.verb == "verify" or getattr(given, "verify", False)


def is_json(given: argparse.Namespace) -> bool:
    return getattr(given, "json", False)


def tables(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Writes the files of a sweep or a search."""
    (store, manifest, source), out = read, given.out or read[0].root

    def as_text(one: SweepReport | SearchReport, text: str) -> str:
        from analysis.document import document

        return json.dumps(document(one, out), indent=1) if given.json else text

    if manifest["search"] is not None:
        from analysis.search_report import SearchReport, report_search

        found = SearchReport(store, manifest, source, is_deep(given))
        text = report_search(found, out, given.width, given.format)
        return as_text(found, text), not found.searched.sweep.conflicts
    from analysis.report import printed, read_report, write

    one = read_report(store, manifest, source, is_deep(given))
    if not one.is_begun:
        why = "no run can be read" if one.sweep.conflicts else "none of its runs is done yet"
        text = "\n".join([f"{one.name}: {why}, so there is no table", *one.sweep.notes])
        return as_text(one, text), not one.sweep.conflicts
    places = write(one, out, given.width, given.format)
    return as_text(one, printed(one, places)), not one.sweep.conflicts


def verify(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Says what was checked and what is wrong; writes nothing."""
    from analysis import remarks
    from analysis.reading import assemble

    _, manifest, _ = read
    sweep = assemble(*read, deep=True)
    frame = sweep.frame
    done = frame.loc[frame["attempt"].notna() | frame["state"].isin(("conflict", "unreadable")), "run"].nunique()
    about = f"{manifest['sweep']}: {done} of {frame['run'].nunique()} runs checked"
    if not done:
        return f"{about}; none is done yet", True
    found = f"{len(sweep.conflicts)} conflict{'s' * (len(sweep.conflicts) != 1)}" if sweep.conflicts else "no conflict"
    notes = list(sweep.notes) if manifest["search"] is not None else [*sweep.notes, *remarks.notes(sweep)]
    return "\n".join([f"{about}: {CHECKED}: {found}", *(f"- {note}" for note in notes)]), not sweep.conflicts


def curves(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Writes every logged step; of curves nothing is checked."""
    from analysis.curves import curves

    store, manifest, source = read
    notes: list[str] = []
    rows = curves(store, manifest, source, notes)
    file = (given.out or store.root) / "curves" / f"{manifest['sweep']}.csv"
    write_over(file, rows.to_csv(index=False))
    written = f"curves   {file} ({len(rows):,} steps of {rows['run'].nunique()} runs)"
    return "\n".join([*dict.fromkeys(notes), written]), True


def claims(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Prints a sweep's claims."""
    from analysis.claim_tables import claim_table
    from analysis.claims import claims
    from analysis.reading import assemble
    from analysis.terminal import terminal

    sweep = assemble(*read)
    found = claims(sweep)
    if not len(found):
        return f"{sweep.manifest['sweep']}: no claim, or no run of one is done", not sweep.conflicts
    return terminal([claim_table(found)], _notes(sweep)), not sweep.conflicts


def trace(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Prints all that a cell comes from."""
    from analysis.reading import assemble
    from analysis.trace import trace

    sweep = assemble(*read)
    return trace(sweep, read[0], given.cell), not sweep.conflicts


def compare(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Prints one row less another."""
    from analysis.claim_tables import comparison_table
    from analysis.compare import compare
    from analysis.reading import assemble
    from analysis.terminal import terminal

    sweep = assemble(*read)
    first, second = given.rows
    found = compare(sweep, first, second, given.quantity)
    table = comparison_table(found, first, second, sweep.manifest["sweep"])
    return terminal([table], _notes(sweep)), not sweep.conflicts


def _notes(sweep: Sweep) -> list[str]:
    """What has to be known of contrasts: what does not belong together, and what their intervals leave out."""
    from analysis.samples import SEEDS_ALONE, has_examples

    return [*sweep.conflicts, *([] if has_examples(sweep) else [SEEDS_ALONE])]


VERBS: dict[str, Verb] = {
    **{"tables": tables, "verify": verify, "curves": curves, "claims": claims, "trace": trace, "compare": compare},
}


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ? instead
    sys.exit(main(sys.argv[1:]))
