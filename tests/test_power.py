"""Dunnett's critical values against printed tables and scipy, and the smallest difference that n seeds can detect."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from mmprompt.studies.power import detectable, dunnett, dunnett_quantiles, dunnett_tail, two_sided

PRINTED = {  # Dunnett 1964, two-sided, equal n: by alpha and degrees of freedom, for 1 to 9 rows
    (0.05, 5): [2.57, 3.03, 3.29, 3.48, 3.62, 3.73, 3.82, 3.90, 3.97],
    (0.05, 10): [2.23, 2.57, 2.76, 2.89, 2.99, 3.07, 3.14, 3.19, 3.24],
    (0.05, 20): [2.09, 2.38, 2.54, 2.65, 2.73, 2.80, 2.86, 2.90, 2.95],
    (0.05, math.inf): [1.96, 2.21, 2.35, 2.44, 2.51, 2.57, 2.61, 2.65, 2.69],
    (0.01, 5): [4.03, 4.63, 4.98, 5.22, 5.41, 5.56, 5.69, 5.80, 5.89],
    (0.01, 10): [3.17, 3.53, 3.74, 3.88, 3.99, 4.08, 4.16, 4.22, 4.28],
}


@pytest.mark.parametrize(("alpha", "df"), PRINTED)
def test_dunnetts_critical_values_are_the_printed_ones(alpha: float, df: float) -> None:
    found = [dunnett(df, 3, [3] * rows, alpha) for rows in range(1, 10)]
    assert found == pytest.approx(PRINTED[alpha, df], abs=0.0085)  # some of the printed ones are rounded upwards


@pytest.mark.parametrize(("df", "n_baseline", "rows"), [(5, 3, (3,) * 8), (6, 2, (5, 3, 2)), (3, 12, (2, 2))])
def test_the_tail_is_the_one_of_adaptive_integration(df: float, n_baseline: int, rows: tuple[int, ...]) -> None:
    critical, phi = dunnett(df, n_baseline, rows, 0.01), special.ndtr

    def inside(z: float, s: float) -> float:
        """Given the baseline's mean and the pooled standard deviation, all T_r are within."""
        product = stats.norm.pdf(z)
        for n in rows:
            shared, own = math.sqrt(n / (n + n_baseline)), math.sqrt(n_baseline / (n + n_baseline))
            product *= phi((shared * z + critical * s) / own) - phi((shared * z - critical * s) / own)
        return float(product)

    def given(s: float) -> float:
        return integrate.quad(inside, -8, 8, args=(s,), epsabs=1e-9)[0] * stats.chi.pdf(s * math.sqrt(df), df)

    whole = integrate.quad(given, 0, 6, epsabs=1e-7)[0] * math.sqrt(df)
    assert 1 - whole == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (4, 3, 5, 3), (2, 5, 5, 2, 3), (10, 2, 2, 2), (2, 12, 12, 3)])
def test_p_values_are_scipys_with_unequal_n_too(sizes: tuple[int, ...]) -> None:
    random = np.random.default_rng(sum(sizes))
    baseline, *rows = (random.normal(at, 1, n) for at, n in enumerate(sizes))
    df = sum(sizes) - len(sizes)
    pooled = sum((len(x) - 1) * x.var(ddof=1) for x in (baseline, *rows)) / df
    t = [abs(x.mean() - baseline.mean()) / math.sqrt(pooled * (1 / len(x) + 1 / sizes[0])) for x in rows]
    theirs = stats.dunnett(*rows, control=baseline, rng=np.random.default_rng(0)).pvalue
    assert dunnett_tail(t, df, sizes[0], sizes[1:]) == pytest.approx(
        theirs, abs=1e-3
    )  # theirs has random numbers in it


@pytest.mark.parametrize("df", [1, 2, 14, 300, math.inf])
def test_one_row_is_students_t(df: float) -> None:
    c = np.array([0.1, 1.0, 3.0, 9.0])
    exact = 2 * (stats.norm.sf(c) if math.isinf(df) else stats.t.sf(c, df))
    assert dunnett_tail(c, df, 3, [3]) == pytest.approx(exact, rel=1e-6)
    assert dunnett(df, 3, [3], 0.05) == two_sided(df, 0.05)


@pytest.mark.parametrize(
    ("df", "rows"), [(4, (2, 2)), (14, (3,) * 6), (20, (2, 3, 5, 5)), (80, (3,) * 40), (math.inf, (3,) * 6)]
)
def test_the_quick_quantiles_are_the_exact_ones(df: float, rows: tuple[int, ...]) -> None:
    quick = dunnett_quantiles(df, 3, rows)
    for alpha in (1e-9, 1e-4, 0.01, 0.05, 0.3, 0.5):
        assert quick(alpha) == pytest.approx(dunnett(df, 3, rows, alpha), rel=1e-5)
    alphas = np.geomspace(1e-12, 1, 200)
    assert np.all(np.diff([quick(alpha) for alpha in alphas]) < 0)


@pytest.mark.parametrize("n", range(2, 11))
def test_the_power_at_the_smallest_detectable_difference_is_80_percent(n: int) -> None:
    rows, tries = 6, 20_000
    random = np.random.default_rng(n)
    scores = random.normal(size=(tries, rows + 1, n))
    scores[:, 1] += detectable(n, rows)
    se = np.sqrt(2 * scores.var(axis=2, ddof=1).mean(axis=1) / n)
    t = np.abs(scores[:, 1].mean(axis=1) - scores[:, 0].mean(axis=1)) / se
    found = np.mean(t > dunnett((rows + 1) * (n - 1), n, [n] * rows, 0.05))
    assert abs(found - 0.8) < 3 * math.sqrt(0.8 * 0.2 / tries)  # 0.008


def test_with_one_row_it_is_the_noncentral_ts() -> None:
    shift = detectable(5, 1) / math.sqrt(2 / 5)
    critical = stats.t.ppf(0.975, 8)
    assert stats.nct.sf(critical, 8, shift) + stats.nct.cdf(-critical, 8, shift) == pytest.approx(0.8, abs=1e-6)


def test_more_seeds_show_smaller_differences_and_more_rows_only_larger_ones() -> None:
    assert np.all(np.diff([detectable(n, 6) for n in range(2, 30)]) < 0)
    assert np.all(np.diff([detectable(10, rows) for rows in range(1, 20)]) > 0)


def test_with_one_seed_no_difference_is_detectable() -> None:
    assert math.isnan(detectable(1, 6))
