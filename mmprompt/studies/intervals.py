"""Student's t intervals of means over seeds, and of several differences at once.

With three to five seeds a percentile bootstrap that says 95 % covers 75 to 83 %; the t interval covers what it says.
One value has no interval, and none is made up for it.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    value: float  # the mean; NaN when n is 0
    lower: float  # NaN when n is below 2, as is the upper end
    upper: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return self.upper - self.value

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False if there is no interval."""
        return self.lower > 0 or self.upper < 0


def t_interval(values: Iterable[float], of: int = 1) -> Interval:
    """Mean and two-sided t interval of the mean. NaN stands for a missing value.

    `of`: how many intervals are to hold together, each at level 1 - (1 - LEVEL) / of (Bonferroni).
    """
    import numpy as np
    from scipy.special import stdtrit  # imported late: reading a study's state does not need it

    x = np.asarray([value for value in values if not math.isnan(value)])  # n
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    quantile = float(stdtrit(len(x) - 1, 1 - (1 - LEVEL) / (2 * of)))
    half = quantile * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half, len(x))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], of: int = 1) -> Interval:
    """The interval of the difference, over the seeds that both have."""
    return t_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs], of)
