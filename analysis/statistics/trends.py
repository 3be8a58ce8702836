"""The trend of a score over a numeric axis x, on log2 x: slope per doubling, curvature, lack of fit.

R values of x with a mean each; `runs` is the number of runs of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.inference import Estimate, Sample, contrast, pooled_variance, variances
from mmprompt.studies.intervals import LEVEL


@dataclass(frozen=True)
class Trend:
    """The trend over R values of x with n_r seeds each. A part that cannot be computed is NaN."""

    slope: Estimate  # of the straight line: points per doubling of x
    curvature: Estimate  # coefficient of log2(x)^2 in the parabola: negative if it bends down
    turning_point: float  # x at the parabola's vertex; NaN unless the curvature is significant and x within the range
    lack_of_fit_p: float  # p of the F test of the straight line: low if the means do not lie on a line
    pooled: bool  # whether all x share one variance


def trend(x: Sequence[float], samples: Sequence[Sample], alpha: float = 1 - LEVEL) -> Trend:
    """Fits the trend by least squares over all runs, as contrasts of the R means.

    Variances are pooled unless `inference.variances` finds one that is higher than the others. Then each x has its own, with
    Satterthwaite's degrees of freedom and, for lack of fit, Box's (1954). With six x and no trend, a slope is significant in 0.039
    of cases (3 seeds) and 0.047 (5 seeds), and in at most 0.066 and 0.059 if one or two standard deviations are 2, 3 or 5 times
    the others (always pooled: 0.15; simulated 40,000 times at alpha 0.05). Values of x without a run are left out; without
    pooling, those of one seed are left out too. Raises ValueError if an x is not above 0.
    """
    if min(x, default=1) <= 0:
        raise ValueError(f"a trend per doubling needs numbers above 0, not {min(x)}")
    pooled = not any(variances(samples).noisy)
    used_pairs = [(at, sample) for at, sample in zip(x, samples, strict=True) if sample.n >= (1 if pooled else 2)]
    log_x = np.log2([at for at, _ in used_pairs])
    used_samples = [sample for _, sample in used_pairs]
    runs = np.array([sample.n for sample in used_samples], float)
    line, parabola = (_weights(log_x, runs, degree) for degree in (1, 2))  # R each
    slope, curvature = (_estimate(weights, used_samples, pooled) for weights in (line, parabola))
    turning_point = math.nan
    if curvature.p < alpha:
        vertex = float(np.mean(log_x)) - _centred_slope(log_x, runs, used_samples) / (2 * curvature.value)
        turning_point = 2**vertex if min(log_x) < vertex < max(log_x) else math.nan
    return Trend(slope, curvature, turning_point, _lack_of_fit(log_x, runs, used_samples, pooled), pooled)


def _powers(log_x: np.ndarray, degree: int) -> np.ndarray:
    """The powers of log2 x, shape (R, degree + 1); log2 x is centred so that they are not nearly collinear."""
    return np.vander(log_x - log_x.mean(), degree + 1, increasing=True)


def _weights(log_x: np.ndarray, runs: np.ndarray, degree: int) -> np.ndarray | None:
    """Weights of the means, shape (R,), that give the highest coefficient of a polynomial; None if there are too few x."""
    if len(set(log_x)) <= degree:
        return None
    powers = _powers(log_x, degree)
    return np.linalg.solve(powers.T @ (runs[:, None] * powers), powers.T * runs)[-1]


def _centred_slope(log_x: np.ndarray, runs: np.ndarray, samples: Sequence[Sample]) -> float:
    """The slope of the parabola at the mean of log2 x."""
    powers = _powers(log_x, 2)
    means = np.array([sample.mean for sample in samples])
    return float(np.linalg.solve(powers.T @ (runs[:, None] * powers), powers.T @ (runs * means))[1])


def _estimate(weights: np.ndarray | None, samples: Sequence[Sample], pooled: bool) -> Estimate:
    if weights is None:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    return contrast(weights.tolist(), samples, pooled)


def _lack_of_fit(log_x: np.ndarray, runs: np.ndarray, samples: Sequence[Sample], pooled: bool) -> float:
    """p of F = sum n_r (mean_r - line_r)^2 divided by its expectation without lack of fit; NaN for fewer than three x."""
    from scipy.special import fdtrc

    variance, df = pooled_variance(samples)
    if len(set(log_x)) < 3 or not variance > 0:
        return math.nan
    variance_of = np.array([variance if pooled else sample.variance for sample in samples])  # R
    root = np.sqrt(runs)
    powers = root[:, None] * _powers(log_x, 1)
    off_line = np.eye(len(runs)) - powers @ np.linalg.pinv(powers)  # R R, a projection
    residual = off_line @ (root * np.array([sample.mean for sample in samples]))
    share = np.diag(off_line) * variance_of
    if not pooled:
        df = share.sum() ** 2 / float(np.sum(share**2 / (runs - 1)))
    spread = off_line * variance_of
    return float(fdtrc(share.sum() ** 2 / np.trace(spread @ spread), df, residual @ residual / share.sum()))
