"""Estimates of means and of linear contrasts of means, each with two sources of error: seeds, and the finite test set.

The functions take and return numbers; none of them knows a sweep. A sample is a row of a table on one task and split. R samples
(rows), n seeds, m examples of the test set. Scores and examples are in the same unit.

An interval is value ± h with h = sqrt((c se)^2 + (z se_examples)^2). c is the quantile for the seeds (t or Dunnett's), z the
quantile of the normal distribution at the same level. With seeds as the only source of error, the interval would describe the
mean on this one test set, and its coverage on new examples would fall as seeds are added.
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
# Levels of the test that a sample varies more over seeds than the others. They were chosen by simulation, see families.compare.
NOISY_BASELINE = {3: 0.2, math.inf: 0.1}  # largest number of the baseline's seeds -> level for the baseline
NOISY = 0.05  # for any other sample
NOISY_BESIDE_OUTLIER = 0.2  # for any other sample, once variances are known to differ
OUTLIER = 1e-5  # a sample with a smaller p is left out of the pooled variance, which it would dominate


@dataclass(frozen=True, eq=False)
class Sample:
    """A row of a table on one task and split."""

    scores: np.ndarray  # n: a score per seed
    examples: np.ndarray | None  # m: the mean over these seeds of each example's score; None: unknown

    @property
    def n(self) -> int:
        return len(self.scores)

    @cached_property
    def mean(self) -> float:
        """Mean over seeds; NaN without seeds."""
        return float(np.mean(self.scores)) if self.n else math.nan

    @cached_property
    def variance(self) -> float:
        """Variance over seeds, with n - 1 in the denominator; NaN below 2 seeds."""
        return _variance(np.asarray(self.scores, float), self.scores)


@dataclass(frozen=True)
class Bounds:
    """The bounds of an interval and its two half-widths. All are NaN if the spread over seeds is unknown."""

    lower: float
    upper: float
    half_seeds: float
    half_examples: float  # 0 if the error from the examples is unknown

    @property
    def half(self) -> float:
        return math.hypot(self.half_seeds, self.half_examples)

    @property
    def excludes_zero(self) -> bool:
        return self.lower > 0 or self.upper < 0


@dataclass(frozen=True)
class Estimate:
    """The estimate of a mean, a difference of means, or any other linear contrast of means."""

    value: float
    se: float  # standard error over seeds; NaN: one seed
    df: float  # degrees of freedom of `se`
    se_examples: float  # standard error from the finite test set; NaN: unknown, which counts as 0

    @property
    def has_interval(self) -> bool:
        """Whether seeds give an interval: not one seed, and not seeds with equal scores, which are a fault and no precision."""
        return self.se > 0 and self.df > 0

    def interval(self, seeds: float, examples: float) -> Bounds:
        """Returns the interval for these quantiles of seeds and examples."""
        if not self.has_interval:
            return Bounds(math.nan, math.nan, math.nan, math.nan)
        of_examples = 0.0 if math.isnan(self.se_examples) else examples * self.se_examples
        half = math.hypot(seeds * self.se, of_examples)
        return Bounds(self.value - half, self.value + half, seeds * self.se, of_examples)

    def alone(self, alpha: float = 1 - LEVEL) -> Bounds:
        """Returns the two-sided interval at level 1 - alpha, uncorrected."""
        return self.interval(*self.quantiles(alpha))

    def quantiles(self, alpha: float) -> tuple[float, float]:
        """The two-sided quantiles at `alpha`: t for the seeds (NaN without an interval), normal for the examples."""
        return (two_sided(self.df, alpha) if self.has_interval else math.nan), two_sided(math.inf, alpha)

    @property
    def p(self) -> float:
        """Two-sided p of the hypothesis that the true value is 0."""
        return p_value(self, self.value, self.quantiles)


def p_value(estimate: Estimate, distance: float, quantiles: Quantiles) -> float:
    """Returns the alpha at which the half-width of the interval equals `distance`; NaN without an interval.

    `quantiles`: the interval's, so that p < alpha exactly where the interval at alpha ends before `distance`. The result is never
    smaller than SMALLEST.
    """
    from scipy.optimize import brentq

    if not estimate.has_interval:
        return math.nan

    def too_short(log_alpha: float) -> float:
        return abs(distance) - estimate.interval(*quantiles(math.exp(log_alpha))).half

    if too_short(0.0) <= 0:  # the distance is 0, up to rounding
        return 1.0
    if too_short(math.log(SMALLEST)) >= 0:
        return SMALLEST
    return math.exp(brentq(too_short, math.log(SMALLEST), 0.0, xtol=1e-10))


def mean(sample: Sample) -> Estimate:
    """Estimates the mean of a sample, by t with n - 1 degrees of freedom."""
    return contrast([1.0], [sample], pooled=False)


def difference(row: Sample, baseline: Sample, shared: tuple[float, float] | None = None) -> Estimate:
    """Estimates row minus baseline.

    `shared`: a pooled variance and its degrees of freedom; None: each sample has its own variance (Welch).
    """
    return _contrast([(1.0, row), (-1.0, baseline)], shared)


def difference_by_seed(row: Sample, baseline: Sample) -> Estimate:
    """Estimates row minus baseline over the seeds that both have.

    The scores of both are in the same order of seeds, NaN where one is missing. Raises ValueError if their numbers differ.
    """
    if row.n != baseline.n:
        raise ValueError(f"pairs are of the same seeds: {row.n} of the row, {baseline.n} of the baseline")
    differences = np.asarray(row.scores, float) - np.asarray(baseline.scores, float)
    in_both = ~np.isnan(differences)
    pairs = Sample(differences[in_both], None)
    spread = _variance(pairs.scores, np.asarray(row.scores)[in_both]) / max(pairs.n, 1)
    return Estimate(pairs.mean, math.sqrt(spread), pairs.n - 1, _se_of_examples([(1.0, row), (-1.0, baseline)]))


def contrast(weights: Sequence[float], samples: Sequence[Sample], pooled: bool) -> Estimate:
    """Estimates the contrast: the sum over r of w_r mean_r.

    `pooled`: one variance for all samples, including those of weight 0, with the sum of their degrees of freedom; a sample of one
    seed adds none, but may have a weight. Otherwise each sample has its own variance: V = sum w_r^2 s_r^2 / n_r, with
    Satterthwaite's degrees of freedom, and none may have a single seed. The samples share the test set, so the error from its
    examples is the standard error of the examples' own contrasts; it is known if all samples with a weight have examples.
    """
    weighted = [(w, sample) for w, sample in zip(weights, samples, strict=True) if w]
    return _contrast(weighted, pooled_variance(samples) if pooled else None)


def _contrast(weighted: Sequence[tuple[float, Sample]], shared: tuple[float, float] | None) -> Estimate:
    value = math.fsum(w * sample.mean for w, sample in weighted)
    if shared is not None:
        variance, df = shared
        spread = variance * sum(w**2 / sample.n if sample.n else math.nan for w, sample in weighted)
    else:
        spread, df = sum_of_variances(
            [(w**2 * sample.variance / max(sample.n, 1), sample.n - 1) for w, sample in weighted]
        )
    return Estimate(value, math.sqrt(spread), df, _se_of_examples(weighted))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Estimates the mean over T tasks: V = sum V_t / T^2, with Satterthwaite's degrees of freedom.

    Tasks have separate seeds and test sets, so the squares of both errors add up. The error from the examples is known if it is
    known for every task.
    """
    count = len(estimates)
    spread, df = sum_of_variances([(one.se**2 / count**2, one.df) for one in estimates])
    of_examples = math.sqrt(sum(one.se_examples**2 for one in estimates)) / count
    return Estimate(math.fsum(one.value for one in estimates) / count, math.sqrt(spread), df, of_examples)


def relative(row: Estimate, baseline: Estimate) -> Estimate:
    """Estimates 100 row / baseline by the delta method, for averages over metrics with different scales.

    Row and baseline are treated as independent. Over seeds they are; their answers to the same examples are correlated, so the
    error from the examples is overestimated rather than underestimated.
    """
    if baseline.value == 0:
        return Estimate(math.nan, math.nan, math.nan, math.nan)
    ratio, scale = row.value / baseline.value, 100 / abs(baseline.value)
    spread, df = sum_of_variances([((scale * row.se) ** 2, row.df), ((scale * ratio * baseline.se) ** 2, baseline.df)])
    of_examples = scale * math.hypot(row.se_examples, ratio * baseline.se_examples)
    return Estimate(100 * ratio, math.sqrt(spread), df, of_examples)


def share_of_wins(row: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray) -> float:
    """Returns the share of all pairs of a row's run and a baseline's run in which the row's score is higher; a tie counts half."""
    higher = np.sign(np.asarray(row, float)[:, None] - np.asarray(baseline, float))
    return float((1 + higher.mean()) / 2) if higher.size else math.nan


@dataclass(frozen=True)
class Variances:
    """Which of R samples are too noisy to share a variance with the others, and which are pooled."""

    noisy: tuple[bool, ...]  # R
    pooled: tuple[bool, ...]  # R: all but the outliers


def variances(samples: Sequence[Sample], baseline: int | None = None) -> Variances:
    """Finds the samples that vary more over seeds than the others, so that a pooled variance would be too small for them.

    Each variance is compared with the pooled variance of all others by a one-sided F test. The level is 0.05; for the baseline,
    which is part of every comparison, it is 0.2 up to 3 seeds and 0.1 with more. Without a baseline, the baseline's levels hold
    for all samples. A noisy sample stays in the pooled variance of the others: leaving it out would bias that variance downward.
    It is left out only if its p is below 1e-5, as it would dominate the others; the test is then repeated at 0.2. See
    `families.compare` for the resulting error and power.
    """
    places = range(len(samples))
    outliers: set[int] = set()
    while True:
        p = [
            _p_of_noisier(samples[at], [samples[other] for other in places if other not in outliers | {at}])
            for at in places
        ]
        new_outliers = {at for at in places if p[at] < OUTLIER and at != baseline} - outliers
        if not new_outliers:
            break
        outliers |= new_outliers
    of_rows = NOISY_BESIDE_OUTLIER if outliers else NOISY
    levels = [of_rows if baseline not in (None, at) else _level_of_baseline(samples[at].n) for at in places]
    return Variances(tuple(p[at] < levels[at] for at in places), tuple(at not in outliers for at in places))


def _level_of_baseline(n: int) -> float:
    return next(level for most, level in NOISY_BASELINE.items() if n <= most)


def _p_of_noisier(sample: Sample, others: Sequence[Sample]) -> float:
    """p of the F test that a sample's variance is not above the pooled variance of the others; 1 if it cannot be tested."""
    rest, df = pooled_variance(others)
    return _upper_tail_of_f(sample.variance, rest, sample.n - 1, df) if sample.n > 1 and df > 0 else 1.0


def _upper_tail_of_f(variance: float, other: float, df: float, other_df: float) -> float:
    """P(F > variance / other)"""
    from scipy.special import fdtrc

    if variance == 0:
        return 1.0
    return float(fdtrc(df, other_df, variance / other)) if other else 0.0


def _variance(x: np.ndarray, scores: np.ndarray) -> float:
    """The variance of `x`, with n - 1; 0 if the values differ by no more than the rounding error of `scores`."""
    if len(x) < 2:
        return math.nan
    return float(np.var(x, ddof=1)) if np.ptp(x) > 1e-12 * np.max(np.abs(scores)) else 0.0


def pooled_variance(samples: Sequence[Sample]) -> tuple[float, float]:
    """Returns the pooled variance over seeds and its degrees of freedom; NaN and 0 if no sample has 2 seeds."""
    several = [sample for sample in samples if sample.n > 1]
    df = sum(sample.n - 1 for sample in several)
    return (sum((one.n - 1) * one.variance for one in several) / df if df else math.nan), df


def sum_of_variances(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the sum of independent variances and its degrees of freedom (Satterthwaite); NaN if one variance is NaN.

    `parts`: each variance with its degrees of freedom.
    """
    total = sum(variance for variance, _ in parts)
    if not total > 0:
        return total, sum(df for _, df in parts)
    return total, total**2 / sum(variance**2 / df for variance, df in parts if variance > 0)


def _se_of_examples(weighted: Sequence[tuple[float, Sample]]) -> float:
    """Standard error that the finite test set adds to a contrast of samples that share it; NaN if it is unknown."""
    with_examples = [(w, sample.examples) for w, sample in weighted if sample.examples is not None]
    if (
        len(with_examples) < len(weighted)
        or len({len(x) for _, x in with_examples}) != 1
        or len(with_examples[0][1]) < 2
    ):
        return math.nan
    of_example = sum(w * np.asarray(x, float) for w, x in with_examples)  # m
    return float(np.std(of_example, ddof=1)) / math.sqrt(len(with_examples[0][1]))
