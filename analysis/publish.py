"""`python -m analysis publish README.md docs/results-micro.md`: what documents say of results, written from the records.

A document has blocks, from `<!-- results: WHAT -->` to `<!-- end of results -->`. What stands between is written anew, the prose
around stays. WHAT is one of

    claims SWEEP ...    every claim and what came of it, task by task
    verdicts SWEEP ...  the same in a line per claim
    table SWEEP KIND    one of a sweep's tables: scores, kept, differences, trend, average, cost, measured, hours
    made SWEEP ...      of how many runs, seeds and examples, at which commit, on what

Of every sweep that is named DOCS/results/ holds the tables, the runs behind them (NAME.runs.csv), their settings (configs.jsonl)
and the scores of every example (examples.npz, by evaluation), so that a reader computes all of it again without a store; and
DOCS/figures/ the figure.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.claim_tables import claim_table, result_table
from analysis.frame import Sweep
from analysis.layout import Table
from analysis.manifest import read_manifest
from analysis.markdown import markdown
from analysis.report import SweepReport, draw, read_report, texts
from analysis.sources import in_store
from analysis.table_notes import commits
from mmprompt.runs.config import nearest
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.store import Store

BEGIN, END = "<!-- results: ", "<!-- end of results -->"
BLOCK = re.compile(r"(<!-- results: ([^>]*?) -->\n).*?(<!-- end of results -->)", re.DOTALL)
KINDS = ("claims", "verdicts", "table", "made")


def publish(store: Store, files: Sequence[Path], docs: Path) -> str:
    """Writes the blocks of these documents, and what they rest on below `docs`; returns a line on each kind.

    Raises StoreError for a block that cannot be made, and for a sweep with a conflict: of that nothing is published.
    """
    contents = {file: file.read_text(encoding="utf-8") for file in files}
    named = [words for file, text in contents.items() for words in blocks(text, file)]
    names = list(dict.fromkeys(name for words in named for name in (words[1:2] if words[0] == "table" else words[1:])))
    reports = {name: _report(store, name) for name in names}
    made = {file: filled(text, reports) for file, text in contents.items()}  # all, before anything is written
    for name, one in reports.items():
        for ending, text in texts(one).items():
            if not ending.endswith(".tex"):
                write_over(docs / "results" / f"{name}{ending}", text)
        draw(one, docs / "figures", "text", ("png",))
    runs = (
        pd.concat([_published(one) for one in reports.values()])
        if reports
        else pd.DataFrame(columns=["run", "evaluation"])
    )
    write_over(docs / "results" / "configs.jsonl", configs(store, sorted(set(runs["run"]))))
    write_over(docs / "results" / "examples.npz", examples(list(reports.values())))
    for file, text in made.items():
        write_over(file, text)
    return f"{', '.join(map(str, files))}: {len(named)} blocks; {docs / 'results'}: {', '.join(names)}"


def blocks(text: str, file: Path) -> list[list[str]]:
    """The words of each block of a document. Raises StoreError for one that is not understood, or has no end."""
    found = [match[2].split() for match in BLOCK.finditer(text)]
    if text.count(BEGIN) != len(found):
        raise StoreError(f"{file}: a block that begins with {BEGIN}WHAT --> has no {END}")
    for words in found:
        if not words or words[0] not in KINDS or len(words) < 2:
            what = " ".join(words)
            raise StoreError(f"{file}: {BEGIN}{what} --> is none of {', '.join(f'{kind} SWEEP' for kind in KINDS)}")
    return found


def filled(text: str, reports: Mapping[str, SweepReport]) -> str:
    """The document with every block written anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_made(match[2].split(), reports).strip()}\n\n{match[3]}", text)


def _made(words: Sequence[str], reports: Mapping[str, SweepReport]) -> str:
    kind, *rest = words
    if kind == "table":
        name, which = rest[0], " ".join(rest[1:]) or "scores"
        return markdown([_table(reports[name], which)])
    chosen = [reports[name] for name in rest]
    if kind == "made":
        return "\n".join(f"* {made(one.sweep)}" for one in chosen)
    found = pd.concat([one.claims for one in chosen], ignore_index=True)
    return markdown([claim_table(found) if kind == "claims" else result_table(found)])


def _table(one: SweepReport, which: str) -> Table:
    there = {table.name or "scores": table for table in one.tables}
    if which not in there:
        raise StoreError(f"sweep {one.name} has no table {which}{nearest(which, there)}; it has {', '.join(there)}")
    return there[which]


def made(sweep: Sweep) -> str:
    """Of how many runs the tables of a sweep are, and where those were made."""
    frame = sweep.frame.drop_duplicates("run")
    done = frame[frame["attempt"].notna()]
    seeds = " ".join(str(seed) for seed in sorted(frame["seed"].unique()))
    devices = ", ".join(sorted(done["device"].dropna().unique()))
    return (
        f"{sweep.manifest['sweep']}: {len(done)} of {len(frame)} runs, seeds {seeds}, `{sweep.manifest['command']}`; "
        f"{devices}. {commits(sweep.frame)}"
    )


def _report(store: Store, name: str) -> SweepReport:
    one = read_report(store, read_manifest(store, name), in_store)
    if not one.is_begun:
        raise StoreError(f"sweep {name}: none of its runs is done, so there is nothing to publish")
    if one.sweep.conflicts:
        raise StoreError(f"sweep {name} is not published: {one.sweep.conflicts[0]}")
    return one


def _published(one: SweepReport) -> pd.DataFrame:
    """The evaluations that a sweep's tables show."""
    scores = one.sweep.scores
    shown = [pair in one.sweep.shown for pair in zip(scores["task"], scores["split"], strict=True)]
    rows = scores[shown]
    return rows.loc[rows["value"].notna(), ["run", "evaluation"]]


def configs(store: Store, runs: Sequence[str]) -> str:
    """A line per run, {"run": ID, "config": TEXT}: ID is the beginning of the sha256 of TEXT."""
    lines = ({"run": run, "config": store.run(run).config_file.read_text(encoding="utf-8")} for run in runs)
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def examples(reports: Sequence[SweepReport]) -> bytes:
    """An npz with an array per evaluation, the score of each example as float32."""
    found: dict[str, np.ndarray] = {}
    for one in reports:
        for run, evaluation in _published(one).itertuples(index=False, name=None):
            scores = one.sweep.examples(run, evaluation)
            if scores is not None:
                found[evaluation] = scores.astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict(sorted(found.items())))  # type: ignore[arg-type]
    return buffer.getvalue()
