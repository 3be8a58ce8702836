"""The command line of the analysis: `python -m analysis VERB`.

`tables [NAME ...]` writes tables/NAME.md, .tex, .csv, .runs.csv (the runs behind each cell) and more, and figures/NAME.pdf, .png
and the caption; the paper's own values go into separate files, NAME_paper. It prints the tables, the problems of the data, and
the paths of all files. `verify` reports whether the files and records agree with each other. `curves` writes every logged step as
CSV. `claims` lists the claims of sweeps and whether their runs show them. `trace SWEEP KEY=VALUE ...` lists the runs, files and
commands behind a cell. `compare SWEEP ROW ROW` compares any two rows. `publish FILE ...` writes results into documents.
`export RUN|SWEEP ...` writes the answers of runs for EvalAI and for COCO's server.

NAME is the name of a sweep or a search. A search is called search-NAME, or NAME where no sweep has that name. All verbs read the
store, or with `--from server` the runs' W&B records on the server that `wandb login` or WANDB_BASE_URL and WANDB_API_KEY
select. Cheap checks are always made; `verify` and `--verify` read every byte.

The exit status is 0; 1 where files or records contradict each other or a run's file is damaged; 2 where a sweep cannot be read.
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

from analysis.figures.figure_formats import DEFAULT_FORMATS, FORMATS
from mmprompt.runs.deployment import default_store, store_folder
from mmprompt.runs.files import StoreError, follow_mode, vanished, write_over
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from analysis.records.frame import Sweep
    from analysis.records.sources import Source
    from analysis.reports.report import SweepReport
    from analysis.reports.search_report import SearchReport

CHECKED = (
    "configurations, labels and header of the manifest, settings and splits of evaluations, W&B records to the last byte, "
    "scores of single examples, ranges, weights"
)
EXPORT = ("export", "answers")  # names of one verb: the command `mmprompt export` writes weights
Read = tuple[Store, dict[str, Any], "Source"]  # the store, a sweep's manifest, and the source of its W&B records
Verb = Callable[
    [Read, argparse.Namespace], tuple[str, bool]
]  # returns the text to print, and whether there is no conflict


def main(arguments: Sequence[str]) -> int:
    given = parser().parse_args(arguments)
    # Matplotlib caches a list of fonts under $HOME unless MPLCONFIGDIR is set before it is imported: hence the late imports.
    os.environ.setdefault("MPLCONFIGDIR", str((given.runs / "cache" / "matplotlib").absolute()))
    from analysis.records.manifest import read_manifest
    from mmprompt.runs.wandb_server import ServerError

    store, status = Store(given.runs), 0
    try:
        follow_mode(store.root)
        if given.verb == "publish":
            from analysis.reports.publish import publish

            print(publish(store, given.files, given.docs))
            return 0
        if given.verb == "report":
            from analysis.records.inventory import open_store

            open_store(store)  # checks that the store exists before Matplotlib is imported, which makes a folder in it
            from analysis.page.render import write_page

            print(write_page(store))
            if given.wandb:
                from analysis.page.wandb_report import report_to_wandb

                print(report_to_wandb(store, given.project))
            return 0
        if given.verb in EXPORT:
            from analysis.reports.challenge_files import export

            for line, is_ok in export(store, given.names, given.out or store.root / "answers"):
                print(line, flush=True)
                status = max(status, 0 if is_ok else 1)
            return status
        if given.verb == "notebooks":
            from analysis.reports.notebook_files import write

            for line, is_ok in write(store, given.out, given.names):
                print(line, flush=True)
                status = max(status, 0 if is_ok else 1)
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
            except StoreError as error:  # concerns this sweep alone; the others can still be read
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

    def verb(name: str, description: str, *others: str) -> argparse.ArgumentParser:
        options = verbs.add_parser(name, help=description, description=description, aliases=others)
        help = "the store; default: MMPROMPT_RUNS, or runs/ in the clone"
        options.add_argument("--runs", type=store_folder, default=default_store(), help=help)
        options.add_argument("--from", dest="place", choices=["store", "server"], default="store", help="W&B records")
        options.add_argument("--project", metavar="[ENTITY/]PROJECT", help="on the server; default: as launched")
        return options

    def verb_of_many(name: str, description: str) -> argparse.ArgumentParser:
        options = verb(name, description)
        options.add_argument("names", nargs="*", metavar="NAME", help="sweeps and searches; none: all in the store")
        return options

    def verb_of_one(name: str, description: str) -> argparse.ArgumentParser:
        options = verb(name, description)
        options.add_argument("names", nargs=1, metavar="SWEEP")
        return options

    tables = verb_of_many("tables", "write and print the tables and figures of sweeps")
    tables.add_argument("--verify", action="store_true", help="check all that `verify` checks")
    widths = "of figures, as they are printed: text (5.5 in, NAME.pdf) or column (3.25 in, NAME_column.pdf)"
    tables.add_argument("--width", choices=["text", "column"], default="text", help=widths)
    formats = f"of figures, with commas between: {', '.join(FORMATS)}; default: {','.join(DEFAULT_FORMATS)}"
    tables.add_argument("--json", action="store_true", help="for programs: one JSON document, a list of sweeps")
    tables.add_argument("--format", type=_formats, default=DEFAULT_FORMATS, help=formats)
    for options in (tables, verb_of_many("curves", "write every logged step of runs as CSV")):
        options.add_argument("--out", type=Path, help="where the files are made; default: in the store")
    verb_of_many("verify", "check that runs, records and manifest agree; writes no file")
    verb_of_many("claims", "print the claims of sweeps, and whether their runs support them")
    behind = "list the runs behind a cell of a table, their files and the commands that repeat them"
    trace = verb_of_one("trace", behind)
    trace.add_argument("cell", nargs="*", metavar="KEY=VALUE", help="the cell; axes, task and split; none: all")
    compare = verb_of_one("compare", "compare any two rows of a sweep, on every task")
    compare.add_argument("rows", nargs=2, metavar="ROW", help="as the table calls it: 120, prompt, 'bitfit all'")
    compare.add_argument("--quantity", default="score", help="score, kept, or a fact that runs record; default: score")
    publish = verb("publish", "write results into documents: claims, tables, figures, and the runs behind them")
    publish.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Markdown")
    publish.add_argument(
        "--docs", type=Path, default=Path("docs"), help="where results/ and figures/ are; default: docs"
    )
    page = verb("report", "write the report page, report.html in the store: one file, no network")
    page.add_argument(
        "--wandb", action="store_true", help="write the page, tables and figures as one run of your W&B project"
    )
    server = "write the answers of runs into the JSON files that EvalAI (VQA) and COCO's server (captions) take"
    export = verb(EXPORT[0], server, *EXPORT[1:])
    export.add_argument("names", nargs="+", metavar="RUN|SWEEP", help="the beginning of a run's id, or a sweep")
    export.add_argument("--out", type=Path, help="where the files are made; default: answers/ in the store")
    notebooks = verb("notebooks", "execute the notebooks on your runs, and write them with their output")
    notebooks.add_argument("names", nargs="*", metavar="NAME", help="notebooks; none: all")
    notebooks.add_argument("--out", type=Path, default=Path("docs/notebooks"), help="default: docs/notebooks")
    return whole


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    if unknown := [name for name in formats if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} came; wanted: {', '.join(FORMATS)}, with commas between")
    return formats


def source_of(given: argparse.Namespace, manifest: Mapping[str, Any]) -> AbstractContextManager[Source]:
    """The source of this sweep's W&B records. Records in the store are read to the last byte if everything is checked."""
    from analysis.records.server import on_server
    from analysis.records.sources import InStore

    return on_server(manifest, given.project) if given.place == "server" else nullcontext(InStore(is_deep(given)))


def is_deep(given: argparse.Namespace) -> bool:
    """Whether the slow checks are made too."""
    return given.verb == "verify" or getattr(given, "verify", False)


def is_json(given: argparse.Namespace) -> bool:
    return getattr(given, "json", False)


def tables(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Writes the files of a sweep or a search."""
    (store, manifest, source), out = read, given.out or read[0].root

    def as_text(report: SweepReport | SearchReport, text: str) -> str:
        from analysis.reports.document import document

        return json.dumps(document(report, out), indent=1) if given.json else text

    if manifest["search"] is not None:
        from analysis.reports.search_report import SearchReport, report_search

        search = SearchReport(store, manifest, source, is_deep(given))
        text = report_search(search, out, given.width, given.format)
        return as_text(search, text), not search.searched.sweep.conflicts
    from analysis.reports.report import printed, read_report, write

    report = read_report(store, manifest, source, is_deep(given))
    if not report.is_begun:
        why = "no run can be read" if report.sweep.conflicts else "none of its runs is done yet"
        text = "\n".join([f"{report.name}: {why}, so there is no table", *report.sweep.notes])
        return as_text(report, text), not report.sweep.conflicts
    places = write(report, out, given.width, given.format)
    return as_text(report, printed(report, places)), not report.sweep.conflicts


def verify(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Reports what was checked and what is wrong; writes no file."""
    from analysis.records import remarks
    from analysis.records.reading import assemble

    _, manifest, _ = read
    sweep = assemble(*read, deep=True)
    frame = sweep.frame
    done = frame.loc[frame["attempt"].notna() | frame["state"].isin(("conflict", "unreadable")), "run"].nunique()
    heading = f"{manifest['sweep']}: {done} of {frame['run'].nunique()} runs checked"
    if not done:
        return f"{heading}; none is done yet", True
    conflict_count = (
        f"{len(sweep.conflicts)} conflict{'s' * (len(sweep.conflicts) != 1)}" if sweep.conflicts else "no conflict"
    )
    notes = list(sweep.notes) if manifest["search"] is not None else [*sweep.notes, *remarks.notes(sweep)]
    return "\n".join([f"{heading}: {CHECKED}: {conflict_count}", *(f"- {note}" for note in notes)]), not sweep.conflicts


def curves(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Writes every logged step of a sweep's runs; curves are not checked."""
    from analysis.reports.curves import curves

    store, manifest, source = read
    notes: list[str] = []
    rows = curves(store, manifest, source, notes)
    file = (given.out or store.root) / "curves" / f"{manifest['sweep']}.csv"
    write_over(file, rows.to_csv(index=False))
    written = f"curves   {file} ({len(rows):,} steps of {rows['run'].nunique()} runs)"
    return "\n".join([*dict.fromkeys(notes), written]), True


def claims(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Shows the claims of a sweep and their verdicts."""
    from analysis.records.reading import assemble
    from analysis.statistics.claims import claims
    from analysis.tables.claim_tables import claim_table
    from analysis.tables.terminal import terminal

    sweep = assemble(*read)
    claim_rows = claims(sweep)
    if not len(claim_rows):
        return f"{sweep.manifest['sweep']}: no claim, or no run of one is done", not sweep.conflicts
    return terminal([claim_table(claim_rows)], _notes(sweep)), not sweep.conflicts


def trace(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Lists the runs, files and commands behind a cell."""
    from analysis.records.reading import assemble
    from analysis.reports.trace import trace

    sweep = assemble(*read)
    return trace(sweep, read[0], given.cell), not sweep.conflicts


def compare(read: Read, given: argparse.Namespace) -> tuple[str, bool]:
    """Shows one row minus another."""
    from analysis.records.reading import assemble
    from analysis.statistics.compare import compare
    from analysis.tables.claim_tables import comparison_table
    from analysis.tables.terminal import terminal

    sweep = assemble(*read)
    first, second = given.rows
    comparison = compare(sweep, first, second, given.quantity)
    table = comparison_table(comparison, first, second, sweep.manifest["sweep"])
    return terminal([table], _notes(sweep)), not sweep.conflicts


def _notes(sweep: Sweep) -> list[str]:
    """The notes below contrasts: the conflicts, and what their intervals leave out."""
    from analysis.statistics.samples import SEEDS_ALONE, has_examples

    return [*sweep.conflicts, *([] if has_examples(sweep) else [SEEDS_ALONE])]


VERBS: dict[str, Verb] = {
    **{"tables": tables, "verify": verify, "curves": curves, "claims": claims, "trace": trace, "compare": compare},
}


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that lacks a character shows ? instead
    sys.exit(main(sys.argv[1:]))
