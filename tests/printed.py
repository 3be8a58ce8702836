"""An independent implementation of how tables print numbers and words, which the tests of the layout compare with."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from analysis.tables.layout import Table


def half_of(examples: np.ndarray) -> float:
    """The half-width of the interval of a mean over seeds and examples. `examples` has the shape (seeds, examples)."""
    seeds, count = examples.shape
    of_seeds = stats.t.ppf(0.975, seeds - 1) * examples.mean(axis=1).std(ddof=1) / math.sqrt(seeds)
    of_examples = stats.norm.ppf(0.975) * examples.mean(axis=0).std(ddof=1) / math.sqrt(count)
    return math.hypot(of_seeds, of_examples)


def formatted(value: float, half: float, sign: str = "") -> str:
    """A value with its half-width as tables print them, `83.1 ± 1.2`: two significant digits of the half-width determine both."""
    digits = 1 - int(f"{half:.1e}".partition("e")[2])
    value, half = round(value, digits), round(half, digits)
    return f"{value:{sign if value else ''},.{max(digits, 0)}f} ± {half:,.{max(digits, 0)}f}".replace("-0.0 ", "0.0 ")


def words_of(table: Table) -> str:
    """The caption, the notes and the origin of a table as one text."""
    return " ".join([table.caption, *table.notes, *table.about])
