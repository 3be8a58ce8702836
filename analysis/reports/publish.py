"""The results in documents, written from the records: `python -m analysis publish README.md docs/results-micro.md`.

A document has blocks, from `<!-- results: WHAT -->` to `<!-- end of results -->`. The content of a block is rewritten; the prose
around it is kept. WHAT is one of

    claims SWEEP ...    every claim and its verdict, task by task
    verdicts SWEEP ...  the same with one line per claim
    table SWEEP KIND    one of a sweep's tables: scores, kept, differences, trend, average, cost, measured, hours
    made SWEEP ...      the number of runs, the seeds, the command, the devices and the commit

For every named sweep, DOCS/results/ gets the tables, the runs behind them (NAME.runs.csv), their settings (configs.jsonl) and the
scores of every example (examples.npz, by evaluation), so that a reader can compute everything again without a store. DOCS/figures/
gets the figure.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.records.frame import Sweep
from analysis.records.manifest import read_manifest
from analysis.records.sources import in_store
from analysis.reports.report import SweepReport, draw, read_report, texts
from analysis.tables.claim_tables import claim_table, result_table
from analysis.tables.layout import Table
from analysis.tables.markdown import markdown
from analysis.tables.table_notes import commits
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import Store
from mmprompt.settings.spelling import nearest

BEGIN, END = "<!-- results: ", "<!-- end of results -->"
BLOCK = re.compile(r"(<!-- results: ([^>]*?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
KINDS = ("claims", "verdicts", "table", "made")


def publish(store: Store, files: Sequence[Path], docs: Path) -> str:
    """Writes the blocks of these documents, and the data behind them below `docs`; returns a line about the files.

    Raises StoreError for a block that cannot be written, and for a sweep with a conflict, which is not published.
    """
    contents = {file: file.read_text(encoding="utf-8") for file in files}
    block_words = [words for file, text in contents.items() for words in blocks(text, file)]
    names = list(
        dict.fromkeys(name for words in block_words for name in (words[1:2] if words[0] == "table" else words[1:]))
    )
    reports = {name: _report(store, name) for name in names}
    rewritten = {
        file: with_blocks(text, reports) for file, text in contents.items()
    }  # all blocks, before any file is written
    for name, report in reports.items():
        for ending, text in texts(report).items():
            if not ending.endswith(".tex"):
                write_over(docs / "results" / f"{name}{ending}", text)
        draw(report, docs / "figures", "text", ("png",))
    runs = (
        pd.concat([_shown_evaluations(report) for report in reports.values()])
        if reports
        else pd.DataFrame(columns=["run", "evaluation"])
    )
    write_over(docs / "results" / "configs.jsonl", configs(store, sorted(set(runs["run"]))))
    write_over(docs / "results" / "examples.npz", examples(list(reports.values())))
    for file, text in rewritten.items():
        write_over(file, text)
    return f"{', '.join(map(str, files))}: {len(block_words)} blocks; {docs / 'results'}: {', '.join(names)}"


def blocks(text: str, file: Path) -> list[list[str]]:
    """Returns the words of each block of a document. Raises StoreError for a block that is unknown or has no end."""
    all_blocks = [match[2].split() for match in BLOCK.finditer(text)]
    if text.count(BEGIN) != len(all_blocks):
        raise StoreError(f"{file}: a block that begins with {BEGIN}WHAT --> has no {END}")
    for words in all_blocks:
        if not words or words[0] not in KINDS or len(words) < 2:
            block = " ".join(words)
            raise StoreError(f"{file}: {BEGIN}{block} --> is none of {', '.join(f'{kind} SWEEP' for kind in KINDS)}")
    return all_blocks


def with_blocks(text: str, reports: Mapping[str, SweepReport]) -> str:
    """Returns the document with every block rewritten."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_block_text(match[2].split(), reports).strip()}\n\n{match[3]}", text)


def _block_text(words: Sequence[str], reports: Mapping[str, SweepReport]) -> str:
    kind, *rest = words
    if kind == "table":
        name, which = rest[0], " ".join(rest[1:]) or "scores"
        return markdown([_table(reports[name], which)])
    selected = [reports[name] for name in rest]
    if kind == "made":
        return "\n".join(f"* {origin(report.sweep)}" for report in selected)
    claim_rows = pd.concat([report.claims for report in selected], ignore_index=True)
    return markdown([claim_table(claim_rows) if kind == "claims" else result_table(claim_rows)])


def _table(report: SweepReport, which: str) -> Table:
    table_of = {table.name or "scores": table for table in report.tables}
    if which not in table_of:
        raise StoreError(
            f"sweep {report.name} has no table {which}{nearest(which, table_of)}; it has {', '.join(table_of)}"
        )
    return table_of[which]


def origin(sweep: Sweep) -> str:
    """Describes the runs behind a sweep's tables: their number, seeds, command, devices and commit."""
    frame = sweep.frame.drop_duplicates("run")
    done = frame[frame["attempt"].notna()]
    seeds = " ".join(str(seed) for seed in sorted(frame["seed"].unique()))
    devices = ", ".join(sorted(done["device"].dropna().unique()))
    return (
        f"{sweep.manifest['sweep']}: {len(done)} of {len(frame)} runs, seeds {seeds}, `{sweep.manifest['command']}`; "
        f"{devices}. {commits(sweep.frame)}"
    )


def _report(store: Store, name: str) -> SweepReport:
    report = read_report(store, read_manifest(store, name), in_store)
    if not report.is_begun:
        raise StoreError(f"sweep {name}: none of its runs is done, so there is nothing to publish")
    if report.sweep.conflicts:
        raise StoreError(f"sweep {name} is not published: {report.sweep.conflicts[0]}")
    return report


def _shown_evaluations(report: SweepReport) -> pd.DataFrame:
    """The run and evaluation ids of the values that a sweep's tables show."""
    scores = report.sweep.scores
    shown = [pair in report.sweep.shown for pair in zip(scores["task"], scores["split"], strict=True)]
    rows = scores[shown]
    return rows.loc[rows["value"].notna(), ["run", "evaluation"]]


def configs(store: Store, runs: Sequence[str]) -> str:
    """Returns a line per run, {"run": ID, "config": TEXT}. ID is the beginning of the sha256 of TEXT."""
    lines = ({"run": run, "config": store.run(run).config_file.read_text(encoding="utf-8")} for run in runs)
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def examples(reports: Sequence[SweepReport]) -> bytes:
    """Returns an npz file with an array per evaluation: the score of each example, shape (m,), float32."""
    scores_of: dict[str, np.ndarray] = {}
    for report in reports:
        for run, evaluation in _shown_evaluations(report).itertuples(index=False, name=None):
            scores = report.sweep.examples(run, evaluation)
            if scores is not None:
                scores_of[evaluation] = scores.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(sorted(scores_of.items())))  # type: ignore[arg-type]
    return buffer.getvalue()
