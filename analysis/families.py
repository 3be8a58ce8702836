"""Families of comparisons that hold together: Dunnett, Welch with Holm, equivalence.

Three outcomes: a difference is told apart from 0, or it is equivalent to 0 within a margin that was declared, or it is not
known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.inference import (
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
    """A contrast as a member of a family. NaN where there is no interval."""

    value: float
    lower: float  # for the family
    upper: float
    half_seeds: float  # half = sqrt(half_seeds^2 + half_examples^2)
    half_examples: float
    single_lower: float  # 95 %, by itself
    single_upper: float
    p: float  # by itself
    p_corrected: float  # below the family's alpha exactly where lower..upper excludes 0
    p_equivalent: float  # of lying outside the margin, corrected (Holm); NaN without a margin
    method: str  # "Dunnett", "Welch, Holm", "paired, Holm" or "Holm"
    verdict: str  # "higher", "lower", "equivalent", "not known"; "" where nothing can be said


def compare(
    baseline: Sample, rows: Sequence[Sample], alpha: float, paired: bool = False, margin: float | None = None
) -> list[Comparison]:
    """Each row less the baseline: a family that errs with probability `alpha`, over seeds and examples together.

    Pooled variance and Dunnett (1955). Where variances differ (`inference.variances`) a comparison has the variances of
    its own two samples (Welch) and the level of its step of Holm's procedure among all rows: those of the rows that vary
    more, and all where it is the baseline that does. `paired`: by seed, with Holm; the scores are aligned.

    A row of one seed, or a baseline of one, has a difference and no interval, and does not count in the family. The same
    where all scores are equal over seeds.

    Holm's intervals are each at the level of its own step (of the step that failed, from there on), so that one excludes 0
    exactly where Holm rejects. As ranges that hold all true differences at once they are a little short: six large ones of
    5 seeds are missed in 0.06 of tables.

    A difference that is told from 0 is "higher" or "lower", be it within the margin or not; "equivalent" is corrected by
    Holm whatever the method, as rows may lie at either end of the margin.

    How often the whole procedure errs at alpha 0.05, standard deviations as given, the baseline's first; in brackets with
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

    Power at 3 standard deviations, all equal (Dunnett alone; Welch and Holm alone): six rows 0.59 (0.77; 0.20) with 3
    seeds, 0.79 (0.91; 0.53) with 4, 0.90 (0.97; 0.80) with 5; one row 0.73 (0.79; 0.68), 0.93 and 0.98. With 2 seeds
    variances cannot be told apart: up to 0.10 of tables err. Brown and Forsythe's test at 0.05 together with a ratio of
    standard deviations above 3 would take Welch in 82 % of tables of seven equal ones with 3 seeds (power 0.30).
    """
    margins = [margin] * len(rows)
    if paired:
        by_seed = [difference_by_seed(row, baseline) for row in rows]
        return _by_holm(by_seed, alpha, margins, ["paired, Holm"] * len(rows))
    samples = [baseline, *rows]
    found_out = variances(samples, baseline=0)
    welch = [found_out.noisy[0] or of_row for of_row in found_out.noisy[1:]]
    together = [not apart and min(row.n, baseline.n) > 1 for apart, row in zip(welch, rows, strict=True)]
    shared = pooled_variance([sample for sample, pooled in zip(samples, found_out.pooled, strict=True) if pooled])
    estimates = [
        difference(row, baseline, shared if pooled else None) for row, pooled in zip(rows, together, strict=True)
    ]
    found = _by_holm(estimates, alpha, margins, ["Welch, Holm" if apart else "Dunnett" for apart in welch])
    sizes = tuple(sorted(row.n for row in rows if row.n > 1))
    return [
        _by_dunnett(estimate, one, baseline.n, sizes, alpha) if pooled and estimate.has_interval else one
        for estimate, one, pooled in zip(estimates, found, together, strict=True)
    ]


def contrasts(
    estimates: Sequence[Estimate], alpha: float, margins: Sequence[float | None] | None = None
) -> list[Comparison]:
    """A declared family of any contrasts, by Holm: they need not be independent, nor of the same kind."""
    return _by_holm(estimates, alpha, margins or [None] * len(estimates), ["Holm"] * len(estimates))


def holm(p: Sequence[float]) -> np.ndarray:
    """Corrected p values: p_(i) (M - i + 1), its running maximum, at most 1. NaN stays, and does not count."""
    given = np.asarray(p, float)
    corrected = np.full(len(given), math.nan)
    order = np.argsort(given, kind="stable")[: int(np.sum(~np.isnan(given)))]  # NaN come last
    steps = len(order) - np.arange(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(given[order] * steps))
    return corrected


def equivalent(estimate: Estimate, margin: float) -> float:
    """p of two one-sided tests (TOST) that the true value lies outside ± margin; NaN without interval.

    Below a exactly where the interval of level 1 - 2a, over both sources of error, lies inside ± margin.
    """
    inside = margin - abs(estimate.value)
    two_sided = p_value(estimate, inside, estimate.quantiles)
    return two_sided / 2 if inside > 0 else 1 - two_sided / 2


def _by_holm(
    estimates: Sequence[Estimate], alpha: float, margins: Sequence[float | None], methods: Sequence[str]
) -> list[Comparison]:
    p = [one.p for one in estimates]
    outside = holm(
        [math.nan if of is None else equivalent(one, of) for one, of in zip(estimates, margins, strict=True)]
    )
    bounds = [one.alone(level) for one, level in zip(estimates, _levels(p, alpha), strict=True)]
    return [
        _comparison(alpha, *of_one)
        for of_one in zip(estimates, bounds, p, holm(p).tolist(), outside.tolist(), methods, strict=True)
    ]


def _levels(p: Sequence[float], alpha: float) -> np.ndarray:
    """The level of each one's step of Holm's procedure; from the first that fails on, of that step."""
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
