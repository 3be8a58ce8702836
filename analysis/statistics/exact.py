"""Distribution-free tests of two single runs over their examples.

One seed tells nothing about the spread over seeds. The examples tell whether two trained models differ on new examples, not
whether two methods do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mcnemar(row: Sequence[bool] | np.ndarray, baseline: Sequence[bool] | np.ndarray) -> float:
    """Exact two-sided p of McNemar's test that two runs are right on equally many of the same examples.

    `row`, `baseline`: shape (m,). 1 where they agree on every example.
    """
    from scipy.special import bdtr

    ours, theirs = np.asarray(row, bool), np.asarray(baseline, bool)  # m
    only_ours, only_theirs = int(np.sum(ours & ~theirs)), int(np.sum(theirs & ~ours))
    return min(1.0, 2 * float(bdtr(min(only_ours, only_theirs), only_ours + only_theirs, 0.5)))


def permutation(
    row: Sequence[float] | np.ndarray,
    baseline: Sequence[float] | np.ndarray,
    random: np.random.Generator,
    tries: int = 9999,
) -> float:
    """Two-sided p of a permutation test that two runs score the same on the same examples, for scores that are not binary.

    `row`, `baseline`: shape (m,). Row and baseline are exchanged at random, example by example;
    p = (1 + permutations at least as far apart) / (1 + tries).
    """
    x = np.asarray(row, float) - np.asarray(baseline, float)
    x = x[x != 0]  # m
    reached, limit = 0, abs(x.sum()) - 1e-12 * np.abs(x).sum()
    for start in range(0, tries, 500):
        signs = random.integers(0, 2, (min(500, tries - start), len(x)), dtype=np.int8)
        reached += int(np.sum(np.abs((2 * signs - 1) @ x) >= limit))
    return (1 + reached) / (1 + tries)
