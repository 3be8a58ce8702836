"""Families of comparisons with simultaneous intervals: Dunnett, Welch with Holm, equivalence.

A comparison has one of three outcomes: the difference is significant, or it is equivalent to 0 within a declared margin, or it is
not known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.inference import (
    Bounds,
    Estimate,
    Sample,
    difference,
    difference_by_seed,
    p_value,
    pooled_variance,
    variances,
)
from mmprompt.studies.power import dunnett, dunnett_quantiles


@dataclass(frozen=True)
class Comparison:
    """A contrast as a member of a family. Bounds and p are NaN where there is no interval."""

    value: float
    lower: float  # simultaneous over the family
    upper: float
    half_seeds: float  # half = sqrt(half_seeds^2 + half_examples^2)
    half_examples: float
    single_lower: float  # 95 %, uncorrected
    single_upper: float
    p: float  # uncorrected
    p_corrected: float  # below the family's alpha exactly where lower..upper excludes 0
    p_equivalent: float  # p that the true value lies outside the margin, corrected (Holm); NaN without a margin
    method: str  # "Dunnett", "Welch, Holm", "paired, Holm" or "Holm"
    verdict: str  # "higher", "lower", "equivalent", "not known"; "" where there is no interval


def compare(
    baseline: Sample, rows: Sequence[Sample], alpha: float, paired: bool = False, margin: float | None = None
) -> list[Comparison]:
    """Returns each row minus the baseline, as a family whose error probability is `alpha`, over seeds and examples together.

    The method is Dunnett (1955) with a pooled variance. If the variances differ (`inference.variances`), the comparisons of the
    noisier rows, or all comparisons if the baseline is the noisier one, use the variances of their own two samples (Welch) and
    the level of their step in Holm's procedure among all rows. `paired`: differences by seed, with Holm; the scores of all
    samples are in the same order of seeds.

    A row with one seed, or any row if the baseline has one seed, has a difference without an interval and does not count in the
    family. The same holds if all scores are equal over seeds.

    Each of Holm's intervals has the level of its own step (after the first step that fails, the level of that step), so that an
    interval excludes 0 exactly where Holm rejects. As simultaneous intervals for all true differences they are a little short:
    with six large differences and 5 seeds, 0.06 of tables miss one.

    A significant difference is "higher" or "lower", whether it lies within the margin or not. The p of "equivalent" is corrected
    by Holm for every method, as rows may lie at either end of the margin.

    How often the whole procedure errs at alpha 0.05, for the given standard deviations, the baseline's first; in brackets with
    Dunnett alone. Normal scores, 20,000 tables each (+- 0.004):

        seeds                   3             4             5             10
        1; 1 to 6 rows of 1     0.037..0.041  0.041..0.045  0.041..0.047  0.043..0.047
        1; 1 3                  0.058 (0.080) 0.051 (0.076) 0.045 (0.075) 0.038 (0.068)
        1; 1 5                  0.063 (0.106) 0.049 (0.098) 0.043 (0.093) 0.048 (0.080)
        1; 1 1 1 1 3 3          0.064 (0.091) 0.059 (0.091) 0.050 (0.086) 0.031 (0.079)
        1; 1 1 1 1 1 5          0.061 (0.168) 0.047 (0.163) 0.041 (0.159) 0.041 (0.142)
        1; 1 1 1 1 1 30         0.037 (0.250) 0.041 (0.231) 0.038 (0.216) 0.041 (0.187)
        1; 1 1 1 1 3 10         0.068 (0.197) 0.047 (0.187) 0.038 (0.179) 0.041 (0.158)
        3; 1 1                  0.055 (0.101) 0.054 (0.099) 0.046 (0.098) 0.036 (0.090)
        3; 1 1 1 1 1 1          0.062 (0.194) 0.053 (0.190) 0.038 (0.190) 0.021 (0.186)
        2; 1 1 1 1 1 1          0.066 (0.133) 0.069 (0.135) 0.057 (0.137) 0.034 (0.139)
        1/3; 1 1                0.040 (0.046) 0.034 (0.039) 0.032 (0.037) 0.026 (0.030)

    Power at a difference of 3 standard deviations, all of them equal (Dunnett alone; Welch and Holm alone): six rows 0.59 (0.77;
    0.20) with 3 seeds, 0.79 (0.91; 0.53) with 4, 0.90 (0.97; 0.80) with 5; one row 0.73 (0.79; 0.68), 0.93 and 0.98. With 2
    seeds variances cannot be distinguished: up to 0.10 of tables err. Brown and Forsythe's test at 0.05, combined with a ratio
    of standard deviations above 3, would choose Welch in 82 % of tables of seven equal variances with 3 seeds (power 0.30).
    """
    margins = [margin] * len(rows)
    if paired:
        by_seed = [difference_by_seed(row, baseline) for row in rows]
        return _by_holm(by_seed, alpha, margins, ["paired, Holm"] * len(rows))
    samples = [baseline, *rows]
    spread = variances(samples, baseline=0)
    is_welch = [spread.noisy[0] or of_row for of_row in spread.noisy[1:]]
    is_pooled = [not welch and min(row.n, baseline.n) > 1 for welch, row in zip(is_welch, rows, strict=True)]
    shared = pooled_variance([sample for sample, pooled in zip(samples, spread.pooled, strict=True) if pooled])
    estimates = [
        difference(row, baseline, shared if pooled else None) for row, pooled in zip(rows, is_pooled, strict=True)
    ]
    by_holm = _by_holm(estimates, alpha, margins, ["Welch, Holm" if welch else "Dunnett" for welch in is_welch])
    sizes = tuple(sorted(row.n for row in rows if row.n > 1))
    return [
        _by_dunnett(estimate, holm_comparison, baseline.n, sizes, alpha)
        if pooled and estimate.has_interval
        else holm_comparison
        for estimate, holm_comparison, pooled in zip(estimates, by_holm, is_pooled, strict=True)
    ]


def contrasts(
    estimates: Sequence[Estimate], alpha: float, margins: Sequence[float | None] | None = None
) -> list[Comparison]:
    """Returns a declared family of contrasts, corrected by Holm. They need be neither independent nor of the same kind."""
    return _by_holm(estimates, alpha, margins or [None] * len(estimates), ["Holm"] * len(estimates))


def holm(p: Sequence[float]) -> np.ndarray:
    """Returns Holm's corrected p values: the running maximum of p_(i) (M - i + 1), at most 1. NaN stays NaN and does not count."""
    given = np.asarray(p, float)
    corrected = np.full(len(given), math.nan)
    order = np.argsort(given, kind="stable")[: int(np.sum(~np.isnan(given)))]  # NaN come last
    steps = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(given[order] * steps))
    return corrected


def equivalent(estimate: Estimate, margin: float) -> float:
    """p of two one-sided tests (TOST) that the true value lies outside ± margin; NaN without an interval.

    p is below a exactly where the interval of level 1 - 2a, over both sources of error, lies inside ± margin.
    """
    inside = margin - abs(estimate.value)
    two_sided = p_value(estimate, inside, estimate.quantiles)
    return two_sided / 2 if inside > 0 else 1 - two_sided / 2


def _by_holm(
    estimates: Sequence[Estimate], alpha: float, margins: Sequence[float | None], methods: Sequence[str]
) -> list[Comparison]:
    p = [estimate.p for estimate in estimates]
    outside = holm(
        [math.nan if of is None else equivalent(estimate, of) for estimate, of in zip(estimates, margins, strict=True)]
    )
    bounds = [estimate.alone(level) for estimate, level in zip(estimates, _levels(p, alpha), strict=True)]
    return [
        _comparison(alpha, *of_member)
        for of_member in zip(estimates, bounds, p, holm(p).tolist(), outside.tolist(), methods, strict=True)
    ]


def _levels(p: Sequence[float], alpha: float) -> np.ndarray:
    """Returns for each p the level of its step in Holm's procedure; after the first step that fails, the level of that step."""
    given = np.asarray(p, float)
    order = np.argsort(given, kind="stable")[: int(np.sum(~np.isnan(given)))]  # NaN come last
    levels = np.full(len(given), alpha)
    for step, at in enumerate(order):
        levels[order[step:]] = alpha / (len(order) - step)
        if given[at] >= levels[at]:
            break
    return levels


def _by_dunnett(
    estimate: Estimate, by_holm: Comparison, n_baseline: int, n_rows: tuple[int, ...], alpha: float
) -> Comparison:
    def quantiles(level: float) -> tuple[float, float]:
        return of_seeds(level), of_examples(level)

    of_seeds = dunnett_quantiles(estimate.df, n_baseline, n_rows)
    of_examples = dunnett_quantiles(math.inf, n_baseline, n_rows)
    bounds = estimate.interval(
        dunnett(estimate.df, n_baseline, n_rows, alpha), dunnett(math.inf, n_baseline, n_rows, alpha)
    )
    corrected = p_value(estimate, estimate.value, quantiles)
    return _comparison(alpha, estimate, bounds, by_holm.p, corrected, by_holm.p_equivalent, by_holm.method)


def _comparison(
    alpha: float, estimate: Estimate, bounds: Bounds, p: float, corrected: float, outside: float, method: str
) -> Comparison:
    single = estimate.alone()
    halves = bounds.half_seeds, bounds.half_examples
    verdict = _verdict(estimate, bounds, outside, alpha)
    ends = bounds.lower, bounds.upper, *halves, single.lower, single.upper
    return Comparison(estimate.value, *ends, p, corrected, outside, method, verdict)


def _verdict(estimate: Estimate, bounds: Bounds, outside: float, alpha: float) -> str:
    if not estimate.has_interval:
        return ""
    if bounds.excludes_zero:
        return "higher" if estimate.value > 0 else "lower"
    return "equivalent" if outside < alpha else "not known"
