"""Estimates of means and of linear contrasts of means, each with two sources of error: seeds, and the finite test set.

Numbers in, numbers out: nothing here knows a sweep. A sample is a row of a table on one task and split. R samples (rows),
n seeds, m examples of the test set. Scores and examples are in the same unit.

An interval is value ± h, h = sqrt((c se)^2 + (z se_examples)^2): c is the quantile for the seeds (t or Dunnett's), z its
counterpart of the normal distribution at the same level. Seeds alone would say how sure the mean is on this very test set,
and the interval would cover new examples the less, the more seeds there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mmprompt.studies.intervals import LEVEL
from mmprompt.studies.power import SMALLEST, two_sided

Quantiles = Callable[[float], tuple[float, float]]  # alpha -> quantiles for the seeds and for the examples
# levels of the test that a sample varies more over seeds than the others: chosen by simulation, see families.compare
NOISY_BASELINE = {3: 0.2, math.inf: 0.1}  # of a baseline, by its seeds: up to so many
NOISY = 0.05  # of any other
NOISY_BESIDE_OUTLIER = 0.2  # of any other, once variances are known to differ
OUTLIER = 1e-5  # left out of the pooled variance, which it would drown


@dataclass(frozen=True, eq=False)
class Sample:
    """A row of a table on one task and split."""

    scores: np.ndarray  # n: a score per seed
    examples: np.ndarray | None  # m: of each example, the mean of its score over these seeds; None: unknown

    @property
    def n(self) -> int:
        return len(self.scores)

    @cached_property
    def mean(self) -> float:
        """NaN without seeds."""
        return float(np.mean(self.scores)) if self.n else math.nan

    @cached_property
    def variance(self) -> float:
        """Over seeds, with n - 1; NaN below 2 seeds."""
        return _variance(np.asarray(self.scores, float), self.scores)


@dataclass(frozen=True)
class Bounds:
    """NaN throughout where the seeds say nothing of their spread."""

    lower: float
    upper: float
    half_seeds: float
    half_examples: float  # 0 where what examples add is unknown

    @property
    def half(self) -> float:
        return math.hypot(self.half_seeds, self.half_examples)

    @property
    def excludes_zero(self) -> bool:
        return self.lower > 0 or self.upper < 0


@dataclass(frozen=True)
class Estimate:
    """Of a mean, a difference of means, or any other linear contrast of means."""

    value: float
    se: float  # over seeds; NaN: one seed
    df: float  # of `se`
    se_examples: float  # from the finite test set; NaN: unknown, and then it counts as 0

    @property
    def has_interval(self) -> bool:
        """Not from one seed, and not from seeds that all scored the same: no spread over seeds is a fault, not precision."""
        return self.se > 0 and self.df > 0

    def interval(self, seeds: float, examples: float) -> Bounds:
        """By these quantiles."""
        if not self.has_interval:
            return Bounds(math.nan, math.nan, math.nan, math.nan)
        of_examples = 0.0 if math.isnan(self.se_examples) else examples * self.se_examples
        half = math.hypot(seeds * self.se, of_examples)
        return Bounds(self.value - half, self.value + half, seeds * self.se, of_examples)

    def alone(self, alpha: float = 1 - LEVEL) -> Bounds:
        """Two-sided, for this estimate by itself."""
        return self.interval(*self.quantiles(alpha))

    def quantiles(self, alpha: float) -> tuple[float, float]:
        return (two_sided(self.df, alpha) if self.has_interval else math.nan), two_sided(math.inf, alpha)

    @property
    def p(self) -> float:
        """Two-sided, of the value being 0."""
        return p_value(self, self.value, self.quantiles)


def p_value(estimate: Estimate, distance: float, quantiles: Quantiles) -> float:
    """The alpha at which the interval's half is `distance`: below it the interval reaches further. NaN without interval.

    `quantiles`: those of the interval, so that p < alpha exactly where the interval at alpha ends before `distance`.
    Nothing below SMALLEST is told from it.
    """
    from scipy.optimize import brentq

    if not estimate.has_interval:
        return math.nan

    def too_short(log_alpha: float) -> float:
        return abs(distance) - estimate.interval(*quantiles(math.exp(log_alpha))).half

    if too_short(0.0) <= 0:  # but for last digits, the distance is 0
        return 1.0
    if too_short(math.log(SMALLEST)) >= 0:
        return SMALLEST
    return math.exp(brentq(too_short, math.log(SMALLEST), 0.0, xtol=1e-10))


def mean(sample: Sample) -> Estimate:
    """t with n - 1 degrees of freedom."""
    return contrast([1.0], [sample], pooled=False)


def difference(row: Sample, baseline: Sample, shared: tuple[float, float] | None = None) -> Estimate:
    """Row less baseline, each with its own variance (Welch), or with the one they share: that and its degrees of freedom."""
    return _contrast([(1.0, row), (-1.0, baseline)], shared)


def difference_by_seed(row: Sample, baseline: Sample) -> Estimate:
    """Row less baseline over the seeds that both have: scores stand in the same order of seeds, NaN where there is none.

    Raises ValueError where they are not of the same number.
    """
    if row.n != baseline.n:
        raise ValueError(f"pairs are of the same seeds: {row.n} of the row, {baseline.n} of the baseline")
    differences = np.asarray(row.scores, float) - np.asarray(baseline.scores, float)
    there = ~np.isnan(differences)
    pairs = Sample(differences[there], None)
    spread = _variance(pairs.scores, np.asarray(row.scores)[there]) / max(pairs.n, 1)
    return Estimate(pairs.mean, math.sqrt(spread), pairs.n - 1, _of_examples([(1.0, row), (-1.0, baseline)]))


def contrast(weights: Sequence[float], samples: Sequence[Sample], pooled: bool) -> Estimate:
    """Sum over r of w_r mean_r.

    `pooled`: one variance for all samples, those of weight 0 too, with as many degrees of freedom as all have; a sample of
    one seed adds none, and may have a weight. Otherwise each has its own: V = sum w_r^2 s_r^2 / n_r, with Satterthwaite's
    degrees of freedom, and none may have a single seed. The samples share the test set, so that the error from its
    examples is that of the contrast of each example; it is known where all samples with a weight have them.
    """
    used = [(w, sample) for w, sample in zip(weights, samples, strict=True) if w]
    return _contrast(used, pooled_variance(samples) if pooled else None)


def _contrast(used: Sequence[tuple[float, Sample]], shared: tuple[float, float] | None) -> Estimate:
    value = math.fsum(w * one.mean for w, one in used)
    if shared is not None:
        variance, df = shared
        spread = variance * sum(w**2 / one.n if one.n else math.nan for w, one in used)
    else:
        spread, df = sum_of_variances([(w**2 * one.variance / max(one.n, 1), one.n - 1) for w, one in used])
    return Estimate(value, math.sqrt(spread), df, _of_examples(used))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over T tasks: V = sum V_t / T^2, with Satterthwaite's degrees of freedom.

    Tasks have seeds and test sets of their own, so that both errors add up as squares. What examples add is known where it
    is of every task.
    """
    count = len(estimates)
    spread, df = sum_of_variances([(one.se**2 / count**2, one.df) for one in estimates])
    of_examples = math.sqrt(sum(one.se_examples**2 for one in estimates)) / count
    return Estimate(math.fsum(one.value for one in estimates) / count, math.sqrt(spread), df, of_examples)


def relative(row: Estimate, baseline: Estimate) -> Estimate:
    """100 row / baseline, for averages over metrics of different scales, by the delta method.

    Row and baseline count as independent. Over seeds they are; answers to the same examples go together, which makes the
    part of the examples too wide rather than too narrow.
    """
    if baseline.value == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    ratio, scale = row.value / baseline.value, 100 / abs(baseline.value)
    spread, df = sum_of_variances([((scale * row.se) ** 2, row.df), ((scale * ratio * baseline.se) ** 2, baseline.df)])
    of_examples = scale * math.hypot(row.se_examples, ratio * baseline.se_examples)
    return Estimate(100 * ratio, math.sqrt(spread), df, of_examples)


def better(row: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray) -> float:
    """Share of all pairs of a run of the row and one of the baseline in which the row's is higher; a tie is half a pair."""
    higher = np.sign(np.asarray(row, float)[:, None] - np.asarray(baseline, float))
    return float((1 + higher.mean()) / 2) if higher.size else math.nan


@dataclass(frozen=True)
class Variances:
    """Of R samples: which are too noisy to share a variance with the others, and which share one."""

    noisy: tuple[bool, ...]  # R
    pooled: tuple[bool, ...]  # R: those that are not noisy, and those that are, but are no outlier


def variances(samples: Sequence[Sample], baseline: int | None = None) -> Variances:
    """Which samples vary more over seeds than the others, so that a pooled variance would be too small for them.

    F test, one-sided, of each variance against the pooled one of all others: at 0.05; of the baseline, which is in every
    comparison, at 0.2 up to 3 seeds and at 0.1 with more; at those of all samples where there is no baseline. A noisy sample
    stays in the pooled variance of the others: left out, what is pooled would be the lower for having been chosen. Only
    below 1e-5 it is left out, as it would drown the others; the test is then repeated, at 0.2. What error and power this
    leaves is said at `families.compare`.
    """
    places = range(len(samples))
    outliers: set[int] = set()
    while True:
        p = [
            _noisier(samples[at], [samples[other] for other in places if other not in outliers | {at}]) for at in places
        ]
        more = {at for at in places if p[at] < OUTLIER and at != baseline} - outliers
        if not more:
            break
        outliers |= more
    of_rows = NOISY_BESIDE_OUTLIER if outliers else NOISY
    levels = [of_rows if baseline not in (None, at) else _level_of_baseline(samples[at].n) for at in places]
    return Variances(tuple(p[at] < levels[at] for at in places), tuple(at not in outliers for at in places))


def _level_of_baseline(n: int) -> float:
    return next(level for most, level in NOISY_BASELINE.items() if n <= most)


def _noisier(sample: Sample, others: Sequence[Sample]) -> float:
    """p of the F test that its variance is not above the pooled one of the others; 1 where that cannot be told."""
    rest, df = pooled_variance(others)
    return _upper_f(sample.variance, rest, sample.n - 1, df) if sample.n > 1 and df > 0 else 1.0


def _upper_f(variance: float, other: float, df: float, other_df: float) -> float:
    """P(F > variance / other)"""
    from scipy.special import fdtrc

    if variance == 0:
        return 1.0
    return float(fdtrc(df, other_df, variance / other)) if other else 0.0


def _variance(x: np.ndarray, scores: np.ndarray) -> float:
    """0 where values differ by no more than the last digits of these scores do."""
    if len(x) < 2:
        return math.nan
    return float(np.var(x, ddof=1)) if np.ptp(x) > 1e-12 * np.max(np.abs(scores)) else 0.0


def pooled_variance(samples: Sequence[Sample]) -> tuple[float, float]:
    """Over seeds within samples, and its degrees of freedom; NaN and 0 where no sample has 2 seeds."""
    several = [sample for sample in samples if sample.n > 1]
    df = sum(sample.n - 1 for sample in several)
    return (sum((one.n - 1) * one.variance for one in several) / df if df else math.nan), df


def sum_of_variances(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Sum of independent variances, each with its degrees of freedom, and Satterthwaite's of the sum; NaN if one is."""
    total = sum(variance for variance, _ in parts)
    if not total > 0:
        return total, sum(df for _, df in parts)
    return total, total**2 / sum(variance**2 / df for variance, df in parts if variance > 0)


def _of_examples(used: Sequence[tuple[float, Sample]]) -> float:
    """Standard error from the finite test set of a contrast of samples that share it; NaN where it is unknown."""
    known = [(w, one.examples) for w, one in used if one.examples is not None]
    if len(known) < len(used) or len({len(x) for _, x in known}) != 1 or len(known[0][1]) < 2:
        return math.nan
    of_each = sum(w * np.asarray(x, float) for w, x in known)  # m
    return float(np.std(of_each, ddof=1)) / math.sqrt(len(known[0][1]))
