"""The comparison of any two rows of a sweep on every task, for `python -m analysis compare length 120 10`.

The tasks form one family (Holm). Two single runs tell nothing about the spread over seeds; for them there is a p over the
examples of the test set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.records.frame import Sweep
from analysis.statistics import exact, families
from analysis.statistics.claims import AVERAGE, ENDS, contrast_columns, row_contrasts
from analysis.statistics.samples import Row, rows
from mmprompt.runs.files import StoreError
from mmprompt.settings.spelling import nearest
from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.power import share_of

COLUMNS = ["task", "quantity", "n", "value", *ENDS, "p", "p_corrected", "margin", "verdict"]
RIGHT = (0.0, 100.0)  # the only scores of an example that is right or wrong


def compare(sweep: Sweep, first: str, second: str, quantity: str) -> pd.DataFrame:
    """Returns the first row minus the second: a row per task, and one for their average.

    `first`, `second`: the names of the rows in the table. `quantity`: score, kept or a fact that runs record. Columns: task,
    quantity, n, value, lower and upper (corrected over all tasks, Holm), single_lower and single_upper (95 %, uncorrected), p,
    p_corrected, margin, verdict (higher, lower, equivalent or not known), p_examples (for two single runs, over their
    examples). The average is a separate question and is not corrected. Raises StoreError for a row that does not exist.
    """
    all_rows = rows(sweep, quantity)
    row, other = find_row(sweep, all_rows, first), find_row(sweep, all_rows, second)
    each = list(row_contrasts(sweep, all_rows, row, other, quantity, "each"))
    average = list(row_contrasts(sweep, all_rows, row, other, quantity, "average")) if len(each) > 1 else []
    comparisons = families.contrasts([one.estimate for one in each], 1 - LEVEL, [one.margin for one in each])
    comparisons += families.contrasts([one.estimate for one in average], share_of(1), [one.margin for one in average])
    table_rows = [
        contrast_columns(one, comparison) for one, comparison in zip([*each, *average], comparisons, strict=True)
    ]
    return pd.DataFrame(table_rows, columns=COLUMNS).assign(
        p_examples=[_p_of_single_runs(row, other, one.task) for one in [*each, *average]]
    )


def find_row(sweep: Sweep, all_rows: Sequence[Row], word: str) -> Row:
    """Returns the one row of this name. Raises StoreError if there is none or several."""
    names = {" ".join(str(value) for value in row.label.values()): row for row in all_rows}
    matching = [row for name, row in names.items() if word in (name, str(row.label[sweep.compare]))]
    if len(matching) != 1:
        problem = f"{len(matching)} rows are called" if matching else "no row is called"
        raise StoreError(
            f"{sweep.manifest['sweep']}: {problem} {word!r}{nearest(word, names)}; there are {', '.join(names)}"
        )
    return matching[0]


def _p_of_single_runs(row: Row, other: Row, task: str) -> float:
    """p over the examples of two single runs: exact McNemar if every example is right or wrong, otherwise by permutation.

    NaN where the rows have several runs, or no scores of the same examples.
    """
    if task == AVERAGE or any(each.samples[task].n != 1 for each in (row, other)):
        return math.nan
    ours, theirs = (each.samples[task].examples for each in (row, other))
    if ours is None or theirs is None or len(ours) != len(theirs):
        return math.nan
    if np.isin(ours, RIGHT).all() and np.isin(theirs, RIGHT).all():
        return exact.mcnemar(ours > 0, theirs > 0)
    return exact.permutation(ours, theirs, np.random.default_rng(0))
