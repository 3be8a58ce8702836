"""Tables of claims and of compared rows, with the value, the interval and the verdict of each."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pandas as pd

from analysis import names
from analysis.statistics.claims import AVERAGE, verdict_counts
from analysis.tables.layout import Cell, Column, Table, table

RESULT = Column("Result")
WORDS = (
    "holds: significantly different from 0 in the expected direction or, if no difference was expected, shown to be smaller than "
    "the margin; reversed: significant in the other direction; equivalent: a difference was expected, but is shown to be smaller "
    "than the margin; differs: no difference was expected, but there is a significant one; not known: none of these."
)


def claim_table(claim_rows: pd.DataFrame) -> Table:
    """Returns a table with a row per claim and task: the contrast and its verdict.

    `claim_rows`: from `analysis.statistics.claims`, of one sweep or several. Each interval has the level of its step in Holm's
    procedure, among all claims of its sweep.
    """
    entries = []
    for row in _rows(claim_rows):
        claim = f"{row.claim} ({row.of})" if row.of else row.claim
        labels = (f"{claim} [{row.paper}]" if row.paper else claim, _task(row.task))
        entries.append((labels, Column("Contrast"), _cell(row)))
        entries.append((labels, Column("Quantity"), Cell(word=_quantity(row.quantity))))
        entries.append((labels, Column("n"), Cell(word=str(row.n))))
        entries.append((labels, RESULT, Cell(word=row.verdict)))
    notes = [
        WORDS,
        "The contrasts are declared in the sweep's file; intervals are corrected for all claims of a sweep (Holm).",
    ]
    caption = "Claims, and whether the runs support them."
    return table(caption, ["Claim", "Task"], entries, name="claims", notes=tuple(notes))


def result_table(claim_rows: pd.DataFrame) -> Table:
    """Returns a short table with a row per claim: its verdicts, counted over tasks, and n."""
    entries = []
    for (claim, of, paper), rows in claim_rows.groupby(["claim", "of", "paper"], sort=False):
        labels = (f"{claim} ({of})" if of else str(claim), str(paper or "-"))
        entries.append((labels, RESULT, Cell(word=verdict_counts(rows))))
        entries.append((labels, Column("n"), Cell(word=_counts(rows["n"].tolist()))))
    return table("", ["Claim", "Paper"], entries, [RESULT, Column("n")], name="results")


def comparison_table(task_rows: pd.DataFrame, first: str, second: str, sweep: str) -> Table:
    """Returns a table with a row per task. `task_rows`: from `analysis.statistics.compare`."""
    entries = []
    for row in _rows(task_rows):
        labels = (_task(row.task),)
        entries.append((labels, Column("Quantity"), Cell(word=_quantity(row.quantity))))
        entries.append((labels, Column("Difference"), _cell(row)))
        entries.append(
            (labels, Column("Alone (95 %)"), Cell(row.value, row.single_lower, row.single_upper, signed=True))
        )
        p = row.p if not pd.isna(row.p) else row.p_examples
        entries.append((labels, Column("p"), Cell(word="-" if pd.isna(p) else f"{p:.2g}")))
        entries.append((labels, Column("n"), Cell(word=str(row.n))))
    notes = ["Intervals of differences are corrected for the tasks (Holm)."]
    if task_rows["p_examples"].notna().any():
        notes.append(
            "For single runs, p is computed over the test examples alone: it is about these two runs, not about their settings."
        )
    return table(f"{sweep}: {first} less {second}.", ["Task"], entries, name="compared", notes=tuple(notes))


def _cell(row: SimpleNamespace) -> Cell:
    return Cell(row.value, row.lower, row.upper, digits=1, signed=True)


def _quantity(name: str) -> str:
    """`acc@0.5 per doubling` -> Acc@0.5 per doubling."""
    first, _, rest = name.partition(" ")
    return " ".join(filter(None, [names.metric(first, short=True), rest]))


def _task(task: str) -> str:
    return "Average" if task == AVERAGE else names.task(task)


def _counts(n: Sequence[int]) -> str:
    return str(min(n)) if min(n) == max(n) else f"{min(n)} to {max(n)}"


def _rows(frame: pd.DataFrame) -> list[SimpleNamespace]:
    return [SimpleNamespace(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records")]
