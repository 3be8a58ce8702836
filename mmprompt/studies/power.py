"""What n seeds can show: Dunnett's critical values, and the smallest difference that they would detect.

T_r, of a row's mean less the baseline's, share the baseline and the pooled variance. Given those two they are independent;
so P(max |T_r| > c) is an integral over a normal and a chi distribution (Dunnett 1955), here by the trapezium rule, whose
error vanishes exponentially for such integrands. There is no random number in it, unlike in `scipy.stats.dunnett`.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from mmprompt.studies.intervals import LEVEL

if TYPE_CHECKING:
    import numpy as np

BELOW = 35.0  # where the integrand is below exp(-35) of its peak, it is left out
SMALLEST = 1e-12  # p values below it are reported as this


def two_sided(df: float, alpha: float) -> float:
    """Quantile of |t|, exceeded with probability alpha; of the normal distribution where df is inf."""
    from scipy.special import ndtri, stdtrit

    return -float(ndtri(alpha / 2) if math.isinf(df) else stdtrit(df, alpha / 2))


def share_of(blocks: int, level: float = LEVEL) -> float:
    """The error rate of each of `families` independent families, so that all hold together at this level (Šidák)."""
    return float(1 - level ** (1 / max(1, blocks)))


def dunnett(df: float, n_baseline: int, n_rows: Sequence[int], alpha: float) -> float:
    """Two-sided critical value: max |T_r| stays below it with probability 1 - alpha if all means are the same.

    `df`: of the pooled variance; math.inf where it is known. `n_rows`: the runs of each row, at least 1 each.
    """
    return _dunnett(df, n_baseline, tuple(sorted(n_rows)), alpha)


@lru_cache(maxsize=4096)
def _dunnett(df: float, n_baseline: int, n_rows: tuple[int, ...], alpha: float) -> float:
    from scipy.optimize import brentq

    single, bonferroni = two_sided(df, alpha), two_sided(df, alpha / len(n_rows))
    if len(n_rows) == 1:
        return single
    return float(brentq(lambda c: math.log(dunnett_tail([c], df, n_baseline, n_rows)[0] / alpha), single, bonferroni))


@lru_cache(maxsize=256)
def dunnett_quantiles(df: float, n_baseline: int, n_rows: tuple[int, ...]) -> Callable[[float], float]:
    """`dunnett` as an interpolated function of alpha from SMALLEST to 1, for many values.

    Within 1e-5 of itself for alpha up to 0.5, 0.005 beyond.

    What is interpolated is close to a straight line: the quantile against the one that would hold were the T_r independent.
    """
    import numpy as np
    from scipy.interpolate import CubicSpline

    def independent(alpha: float) -> float:
        return two_sided(df, -math.expm1(math.log1p(-alpha) / len(n_rows)))

    c = np.array([two_sided(df, alone) for alone in np.geomspace(SMALLEST / len(n_rows), 0.95, 48)])[::-1]
    tails = dunnett_tail(c, df, n_baseline, n_rows)
    known = tails < 1 - 1e-6
    x = np.array([independent(tail) for tail in tails[known]])
    quantile = CubicSpline(np.append(0.0, np.log1p(x)), np.append(0.0, np.log1p(c[known])))
    return lambda alpha: float(np.expm1(quantile(math.log1p(independent(alpha))))) if alpha < 1 else 0.0


def dunnett_tail(c: Sequence[float] | np.ndarray, df: float, n_baseline: int, n_rows: Sequence[int]) -> np.ndarray:
    """P(max |T_r| > c) for each c, if all means are the same. Right to about 1e-8 of itself, far into the tail too."""
    import numpy as np
    from scipy.special import ndtr

    sizes, times = np.unique(np.asarray(n_rows, float), return_counts=True)
    shared = np.sqrt(sizes / (n_baseline + sizes))[
        :, None, None, None
    ]  # of the baseline in T_r: corr = shared_r shared_q
    own = np.sqrt(1 - shared**2)
    z, of_z = _normal(min(0.25, 0.5 * float((own / shared).min())))
    s, of_s = _chi(df)
    bound = np.asarray(c, float)[:, None, None] * s[:, None]  # c s 1
    outside = ndtr((shared * z - bound) / own) + ndtr((-shared * z - bound) / own)  # sizes c s z
    with np.errstate(divide="ignore"):
        some = -np.expm1(np.tensordot(times, np.log1p(-np.minimum(outside, 1.0)), 1))  # c s z: any T_r outside
    return (some @ of_z) @ of_s


def detectable(n: int, rows: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference, in standard deviations over seeds, that is detected with this power.

    By Dunnett's comparison of `rows` rows with a baseline, n runs each, pooled variance. NaN for n below 2.
    Exact: the noncentral t as an integral over the chi distribution of the pooled standard deviation.
    """
    import numpy as np
    from scipy.optimize import brentq
    from scipy.special import ndtr

    if n < 2:
        return math.nan
    df = (rows + 1) * (n - 1)
    critical = dunnett(df, n, [n] * rows, alpha)
    s, of_s = _chi(df)

    def missed(shift: float) -> float:
        found = ndtr(shift - critical * s) + ndtr(-shift - critical * s)
        return float(power - np.dot(found, of_s))

    return float(brentq(missed, 0, 20 * critical)) * math.sqrt(2 / n)


def _normal(step: float) -> tuple[np.ndarray, np.ndarray]:
    """Points z >= 0 and weights for a standard normal z, of a function that is even in z."""
    import numpy as np

    z = np.arange(0, math.sqrt(2 * BELOW) + step, step)
    density = np.exp(-(z**2) / 2)
    density[0] /= 2
    return z, density / density.sum()


def _chi(df: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights for s = sqrt(chi2(df) / df), evenly spaced in log s; the one point 1 for df = inf."""
    import numpy as np

    if math.isinf(df):
        return np.ones(1), np.ones(1)
    lowest = -BELOW / df - math.sqrt(BELOW / df)
    highest = math.log1p(2 * BELOW / df + 2 * math.sqrt(2 * BELOW / df)) / 2
    logarithm = np.arange(lowest, highest, min(0.2, 0.8 / math.sqrt(2 * df)))
    density = np.exp(df * (logarithm - np.expm1(2 * logarithm) / 2))
    return np.exp(logarithm), density / density.sum()
