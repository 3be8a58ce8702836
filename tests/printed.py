"""Numbers and words as tables print them, written out once more: what the tests of layout compare with."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from analysis.layout import Table


def half_of(examples: np.ndarray) -> float:
    """Of the interval of a mean over seeds and examples. `examples`: a row per seed, a column per example."""
    seeds, count = examples.shape
    of_seeds = stats.t.ppf(0.975, seeds - 1) * examples.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
    of_examples = stats.norm.ppf(0.975) * examples.mean(axis=0).std(ddof=1) / math.sqrt(count)
    return math.hypot(of_seeds, of_examples)


def said(value: float, half: float, sign: str = "") -> str:
    """`83.1 ± 1.2`: two significant digits of the half-width, the value to the same place."""
    digits = 1 - int(f"{half:.1e}".partition("e")[2])
    value, half = round(value, digits), round(half, digits)
    return f"{value:{sign if value else ''},.{max(digits, 0)}f} ± {half:,.{max(digits, 0)}f}".replace("-0.0 ", "0.0 ")


def told(table: Table) -> str:
    """All that a table says in words."""
    return " ".join([table.caption, *table.notes, *table.about])
