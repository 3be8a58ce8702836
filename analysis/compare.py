"""`python -m analysis compare length 120 10`: one row less another, whichever two, on every task.

The tasks are one family (Holm). Of single runs, which say nothing about seeds, it says at least what the test set allows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis import exact, families
from analysis.claims import AVERAGE, ENDS, asked_of, columns
from analysis.frame import Sweep
from analysis.samples import Row, rows
from mmprompt.runs.config import nearest
from mmprompt.runs.files import StoreError
from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.power import share_of

COLUMNS = ["task", "quantity", "n", "value", *ENDS, "p", "p_corrected", "margin", "verdict"]
RIGHT = (0.0, 100.0)  # the only scores of an example that is right or wrong


def compare(sweep: Sweep, first: str, second: str, quantity: str) -> pd.DataFrame:
    """The first row less the second: a row per task, and one for their average.

    `first`, `second`: rows as the table calls them. `quantity`: score, kept or a fact that runs record. Columns: task,
    quantity, n, value, lower and upper (over all tasks together, Holm), single_lower and single_upper (95 %, alone), p,
    p_corrected, margin, verdict (higher, lower, equivalent or not known), p_examples (of two single runs, over their
    examples). The average is a question of its own, and not corrected. Raises StoreError for a row that is not there.
    """
    there = rows(sweep, quantity)
    row, other = find(sweep, there, first), find(sweep, there, second)
    each = list(asked_of(sweep, there, row, other, quantity, "each"))
    average = list(asked_of(sweep, there, row, other, quantity, "average")) if len(each) > 1 else []
    made = families.contrasts([one.estimate for one in each], 1 - LEVEL, [one.margin for one in each])
    made += families.contrasts([one.estimate for one in average], share_of(1), [one.margin for one in average])
    found = [columns(one, seen) for one, seen in zip([*each, *average], made, strict=True)]
    return pd.DataFrame(found, columns=COLUMNS).assign(
        p_examples=[_of_single_runs(row, other, one.task) for one in [*each, *average]]
    )


def find(sweep: Sweep, there: Sequence[Row], word: str) -> Row:
    """The one row that is called so. Raises StoreError if there is none, or several."""
    names = {" ".join(str(value) for value in row.label.values()): row for row in there}
    meant = [row for name, row in names.items() if word in (name, str(row.label[sweep.compare]))]
    if len(meant) != 1:
        what = f"{len(meant)} rows are called" if meant else "no row is called"
        raise StoreError(
            f"{sweep.manifest['sweep']}: {what} {word!r}{nearest(word, names)}; there are {', '.join(names)}"
        )
    return meant[0]


def _of_single_runs(row: Row, other: Row, task: str) -> float:
    """p over the examples of two single runs: exact McNemar where each is right or wrong, else by permutation. NaN else."""
    if task == AVERAGE or any(one.samples[task].n != 1 for one in (row, other)):
        return math.nan
    ours, theirs = (one.samples[task].examples for one in (row, other))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return math.nan
    if np.isin(ours, RIGHT).all() and np.isin(theirs, RIGHT).all():
        return exact.mcnemar(ours > 0, theirs > 0)
    return exact.permutation(ours, theirs, np.random.default_rng(0))
