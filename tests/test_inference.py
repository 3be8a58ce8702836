"""Estimates, families, trends and exact tests: by hand, against scipy and statsmodels, and by simulation.

A simulation's bound is its nominal level and three binomial standard errors.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from groups import some
from scipy import stats
from scipy.special import expit
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_ind, ttost_paired

from analysis.statistics.exact import mcnemar, permutation
from analysis.statistics.families import Comparison, compare, contrasts, equivalent, holm
from analysis.statistics.inference import (
    Estimate,
    Sample,
    average,
    contrast,
    difference,
    difference_by_seed,
    mean,
    relative,
    share_of_wins,
    variances,
)
from analysis.statistics.trends import trend


def sample(*scores: float) -> Sample:
    return Sample(np.array(scores, float), None)


def error(share: float, tries: int) -> float:
    return 3 * math.sqrt(share * (1 - share) / tries)


# Means


def test_a_mean_has_students_interval_and_p() -> None:
    x = [81.0, 83.5, 80.2]
    low, high = stats.t.interval(0.95, 2, loc=np.mean(x), scale=stats.sem(x))
    one = mean(sample(*x)).alone()
    assert (one.lower, one.upper) == pytest.approx((low, high))
    assert mean(sample(0.5, 1.5, 2.5)).p == pytest.approx(stats.ttest_1samp([0.5, 1.5, 2.5], 0).pvalue)


def test_the_squares_of_both_half_widths_add_up() -> None:
    examples = np.array([100.0, 0.0, 100.0, 100.0, 50.0])
    one = mean(Sample(np.array([60.0, 70.0, 80.0]), examples))
    assert one.se_examples == pytest.approx(examples.std(ddof=1) / math.sqrt(5))
    interval = one.alone()
    assert interval.half_seeds == pytest.approx(4.302653 * 10 / math.sqrt(3), rel=1e-6)
    assert interval.half_examples == pytest.approx(1.959964 * one.se_examples, rel=1e-6)
    assert interval.upper - one.value == pytest.approx(math.hypot(interval.half_seeds, interval.half_examples))


def test_one_seed_has_a_value_and_no_interval() -> None:
    one = mean(sample(81.0))
    assert one.value == 81.0
    assert not one.has_interval and math.isnan(one.p) and math.isnan(one.alone().half)


def test_seeds_that_all_score_the_same_have_no_interval() -> None:
    assert not mean(sample(80.1, 80.1, 80.1)).has_interval
    assert not difference_by_seed(sample(80.1, 70.3, 60.7), sample(79.1, 69.3, 59.7)).has_interval  # up to rounding


def crossed(random: np.random.Generator, seed_sd: float, n: int, m: int) -> Sample:
    """Answers whose logit of being right is 1 plus the effects of the seed and of the example; the latter's sd is 2."""
    logit = 1 + random.normal(0, seed_sd, (n, 1)) + random.normal(0, 2, m)
    right = 100.0 * (random.random((n, m)) < expit(logit))  # n m
    return Sample(right.mean(axis=1), right.mean(axis=0))


def expected(seed_sd: float) -> float:
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(100 * expit(1 + math.hypot(seed_sd, 2) * z) @ weights / weights.sum())


@pytest.mark.parametrize("seed_sd", [0.02, 0.1, 0.25])
def test_intervals_cover_new_examples_and_more_seeds_do_not_make_it_worse(seed_sd: float) -> None:
    random, tries, truth = np.random.default_rng(1), 1500, expected(seed_sd)
    both, seeds_alone = {}, {}
    for n in (3, 5):
        estimates = [mean(crossed(random, seed_sd, n, 300)) for _ in range(tries)]
        intervals = [one.alone() for one in estimates]
        both[n] = np.mean([one.lower <= truth <= one.upper for one in intervals])
        seeds_alone[n] = np.mean(
            [abs(one.value - truth) <= at.half_seeds for one, at in zip(estimates, intervals, strict=True)]
        )
    assert min(both.values()) >= 0.95 - error(0.95, tries)  # 0.017
    assert both[5] >= both[3] - 0.02
    # without the error from the examples:
    assert seeds_alone[5] < 0.9 and seeds_alone[5] < seeds_alone[3] < 0.95


# Contrasts


def test_a_difference_equals_welchs() -> None:
    x, y = [81.0, 83.5, 80.2], [78.0, 79.0, 70.0, 77.5]
    one, theirs = difference(sample(*x), sample(*y)), stats.ttest_ind(x, y, equal_var=False)
    low, high = theirs.confidence_interval()
    assert (one.p, one.df) == pytest.approx((theirs.pvalue, theirs.df))
    assert (one.alone().lower, one.alone().upper) == pytest.approx((low, high))


def test_a_pooled_contrast_counts_the_seeds_of_all_rows() -> None:
    x, y, other = [81.0, 83.5, 80.2], [78.0, 79.0, 70.0, 77.5], [60.0, 64.0]
    two = contrast([1, -1], [sample(*x), sample(*y)], pooled=True)
    assert two.p == pytest.approx(stats.ttest_ind(x, y).pvalue)
    three = contrast([1, -1, 0], [sample(*x), sample(*y), sample(*other)], pooled=True)
    squares = sum((len(z) - 1) * np.var(z, ddof=1) for z in (x, y, other))
    assert (three.df, three.se) == pytest.approx((6, math.sqrt(squares / 6 * (1 / 3 + 1 / 4))))


def test_the_error_from_examples_is_that_of_each_examples_contrast() -> None:
    random = np.random.default_rng(0)
    easy = random.random(400)
    rows = [Sample(random.normal(70, 1, 3), 100 * easy + random.normal(0, 1, 400)) for _ in range(2)]
    # the difficulty of the examples cancels
    assert difference(*rows).se_examples == pytest.approx(math.sqrt(2 / 400), rel=0.15)
    assert mean(rows[0]).se_examples > 1
    assert math.isnan(difference(rows[0], sample(70, 71, 72)).se_examples)  # unknown
    assert math.isnan(difference(rows[0], Sample(rows[1].scores, rows[1].examples[:300])).se_examples)  # type: ignore[index]


def test_pairs_need_the_same_seeds() -> None:
    x, y = [81.0, 83.5, 80.2], [78.0, 79.0, 70.0]
    assert difference_by_seed(sample(*x), sample(*y)).p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    some = difference_by_seed(sample(*x, 99.0, math.nan), sample(*y, math.nan, 99.0))
    assert (some.value, some.p) == pytest.approx((np.mean(np.subtract(x, y)), stats.ttest_rel(x, y).pvalue))
    with pytest.raises(ValueError, match="3 of the row, 2 of the baseline"):
        difference_by_seed(sample(*x), sample(1, 2))


# Families


def test_holm_equals_statsmodels() -> None:
    random = np.random.default_rng(0)
    gc.freeze()  # multipletests collects garbage each time
    for _ in range(1000):
        p = random.random(random.integers(1, 30)) ** random.integers(1, 6)
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    gc.unfreeze()


def test_holm_ignores_nan() -> None:
    assert holm([0.01, math.nan, 0.04]).tolist() == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


def made(random: np.random.Generator, sds: Sequence[float], n: int, effects: Sequence[float] = ()) -> list[Sample]:
    """The samples of the baseline and of the rows."""
    means = [*effects, *[0.0] * (len(sds) - len(effects))]
    return [Sample(random.normal(at, sd, n), None) for at, sd in zip(means, sds, strict=True)]


Family = Callable[[Sample, Sequence[Sample]], list[Comparison]]


def by_default(baseline: Sample, rows: Sequence[Sample]) -> list[Comparison]:
    return compare(baseline, rows, 0.05)


def by_pairs(baseline: Sample, rows: Sequence[Sample]) -> list[Comparison]:
    return compare(baseline, rows, 0.05, paired=True)


def by_welch(baseline: Sample, rows: Sequence[Sample]) -> list[Comparison]:
    return contrasts([difference(row, baseline) for row in rows], 0.05)


def wrong(family: Family, tries: int, sds: Sequence[float], n: int) -> float:
    """The share of tables in which any row differs significantly from a baseline with the same mean."""
    random = np.random.default_rng(n)
    return float(
        np.mean(
            [
                any(one.verdict in ("higher", "lower") for one in family(baseline, rows))
                for baseline, *rows in (made(random, sds, n) for _ in range(tries))
            ]
        )
    )


@pytest.mark.parametrize("n", some([3, 5], 5))
@pytest.mark.parametrize(
    ("family", "least"), some([(by_default, 0.025), (by_pairs, 0.025), (by_welch, 0.01)], (by_default, 0.025))
)
def test_a_family_of_six_rows_errs_in_5_percent_of_tables_at_most(family: Family, least: float, n: int) -> None:
    tries = 1200
    assert least <= wrong(family, tries, [1.0] * 7, n) <= 0.05 + error(0.05, tries)  # 0.019


@pytest.mark.parametrize(
    ("sds", "n", "measured"),
    some(
        [  # in brackets, with variances always pooled
            ([1, 1, 1, 1, 1, 3, 3], 3, 0.064),  # 0.09
            ([1, 1, 1, 1, 1, 1, 5], 3, 0.061),  # 0.17
            ([3, 1, 1, 1, 1, 1, 1], 3, 0.062),  # 0.19
            ([1, 1, 1, 1, 1, 1, 5], 5, 0.041),  # 0.16
            ([3, 1, 1, 1, 1, 1, 1], 5, 0.038),  # 0.19
            ([1 / 3, 1, 1], 5, 0.032),
        ],
        ([3, 1, 1, 1, 1, 1, 1], 3, 0.062),
        ([1 / 3, 1, 1], 5, 0.032),
    ),
)
def test_unequal_variances_do_not_raise_the_error_rate(sds: list[float], n: int, measured: float) -> None:
    tries = 800
    assert wrong(by_default, tries, sds, n) <= measured + error(measured, tries)  # 0.026


def test_unfinished_sweeps_have_no_higher_error_rate() -> None:
    random, tries = np.random.default_rng(0), 1000
    errors = [
        compare(sample(*random.normal(size=3)), [sample(*random.normal(size=n)) for n in (3, 2, 1, 5, 0, 2)], 0.05)
        for _ in range(tries)
    ]
    assert np.mean([any(one.verdict in ("higher", "lower") for one in family) for family in errors]) <= 0.05 + 0.021
    assert {tuple(one.verdict == "" for one in family) for family in errors} == {
        (False, False, True, False, True, False)
    }


@pytest.mark.parametrize(("n", "rows", "power"), [(3, 1, 0.73), (3, 6, 0.59), (4, 6, 0.79), (5, 6, 0.90)])
def test_the_power_at_3_standard_deviations(n: int, rows: int, power: float) -> None:
    random, tries = np.random.default_rng(0), 500
    families = [
        compare(one[0], one[1:], 0.05) for one in (made(random, [1] * (rows + 1), n, [0, 3]) for _ in range(tries))
    ]
    assert abs(np.mean([family[0].verdict == "higher" for family in families]) - power) < error(power, tries)


def test_other_rows_keep_their_power_beside_a_collapsed_row() -> None:
    random, tries = np.random.default_rng(0), 300
    families = [
        compare(one[0], one[1:], 0.05) for one in (made(random, [1] * 6 + [30], 5, [0, 3]) for _ in range(tries))
    ]
    assert np.mean([family[0].verdict == "higher" for family in families]) > 0.75  # 0.86; 0.00 were it pooled
    assert all(family[-1].method == "Welch, Holm" for family in families)


def test_pooled_comparisons_have_scipys_dunnett_p() -> None:
    baseline, rows = [1.0, 2.0, 3.5], [[2.0, 4.1, 3.0], [5.0, 6.5, 4.4], [1.5, 2.5, 3.0, 4.0]]
    comparisons = compare(sample(*baseline), [sample(*row) for row in rows], 0.05)
    theirs = stats.dunnett(*rows, control=baseline, rng=np.random.default_rng(0))
    interval = theirs.confidence_interval()
    assert {one.method for one in comparisons} == {"Dunnett"}
    assert [one.p_corrected for one in comparisons] == pytest.approx(theirs.pvalue, abs=1e-3)
    assert [one.lower for one in comparisons] == pytest.approx(interval.low, abs=0.01)
    assert [one.upper for one in comparisons] == pytest.approx(interval.high, abs=0.01)


@pytest.mark.parametrize("family", [by_default, by_pairs, by_welch])
def test_an_interval_excludes_0_exactly_where_its_corrected_p_is_below_alpha(family: Family) -> None:
    random, seen = np.random.default_rng(0), set()
    for _ in range(150):
        effects, sds = [0.0, *random.normal(0, 4, 5)], random.choice([1.0, 1.0, 4.0], 6)
        one = [Sample(x.scores, random.normal(0, 5, 100)) for x in made(random, list(sds), 3, effects)]
        for comparison in family(one[0], one[1:]):
            excludes = comparison.lower > 0 or comparison.upper < 0
            assert excludes == (comparison.p_corrected < 0.05) == (comparison.verdict in ("higher", "lower"))
            assert (comparison.single_lower > 0 or comparison.single_upper < 0) == (comparison.p < 0.05)
            assert comparison.p <= comparison.p_corrected
            seen.add((comparison.method, excludes))
    assert {excludes for _, excludes in seen} == {True, False}
    assert family is not by_default or len({method for method, _ in seen}) == 2


def test_the_interval_at_level_p_just_reaches_0() -> None:
    one = Estimate(3.0, 0.7, 4, 0.9)
    interval = one.alone(one.p)
    assert interval.lower == pytest.approx(0, abs=1e-6)
    assert Estimate(0.0, 0.7, 4, 0.9).p == Estimate(1e-300, 0.7, 1.3, math.nan).p == 1.0


def test_a_baseline_of_one_seed_leaves_differences_without_interval_or_verdict() -> None:
    for one in compare(sample(70.0), [sample(71, 72, 73), sample(80, 81, 82)], 0.05):
        assert one.verdict == "" and math.isnan(one.lower) and math.isnan(one.p_corrected)
        assert one.value in (2.0, 11.0)


def test_without_any_spread_there_is_no_verdict() -> None:
    same = sample(80.1, 80.1, 80.1)
    for one in compare(same, [same, sample(81.3, 81.3, 81.3)], 0.05, margin=2.0):
        assert one.verdict == "" and math.isnan(one.upper)


def test_a_noisy_baseline_makes_all_comparisons_unpooled_and_a_noisy_row_only_its_own() -> None:
    quiet, loud = [sample(1, 2, 3), sample(1, 3, 2), sample(2, 3, 4), sample(4, 5, 6)], sample(-20, 0, 20)
    assert variances([*quiet, loud], baseline=0).noisy == (False, False, False, False, True)
    assert [one.method for one in compare(quiet[0], [*quiet[1:], loud], 0.05)] == [*["Dunnett"] * 3, "Welch, Holm"]
    assert {one.method for one in compare(loud, quiet, 0.05)} == {"Welch, Holm"}


def test_intervals_over_seeds_and_examples_err_no_more_than_their_level() -> None:
    """Models of one row agree more on examples than models of different rows: with seeds alone, equal rows would differ."""
    random, tries, m = np.random.default_rng(0), 400, 200
    both, seeds_alone = [], []
    for _ in range(tries):
        hard, rows = random.normal(0, 1.5, m), []
        for _row in range(4):
            logit = 1 + hard + random.normal(0, 1.5, m) + random.normal(0, 0.05, (3, 1))
            right = 100.0 * (random.random((3, m)) < expit(logit))
            rows.append(Sample(right.mean(axis=1), right.mean(axis=0)))
        both.append(any(one.verdict in ("higher", "lower") for one in compare(rows[0], rows[1:], 0.05)))
        alone = [Sample(row.scores, None) for row in rows]
        seeds_alone.append(any(one.verdict in ("higher", "lower") for one in compare(alone[0], alone[1:], 0.05)))
    assert np.mean(both) <= 0.05 + error(0.05, tries) < np.mean(seeds_alone)


# Equivalence


def test_equivalence_equals_statsmodels_tost() -> None:
    x, y = np.array([81.0, 83.5, 80.2, 82.0]), np.array([80.5, 82.0, 80.7, 82.2])
    for margin in (0.2, 1.0, 3.0):
        pairs = difference_by_seed(sample(*x), sample(*y))
        assert equivalent(pairs, margin) == pytest.approx(ttost_paired(x, y, -margin, margin)[0])
        apart = difference(sample(*x), sample(*y))
        assert equivalent(apart, margin) == pytest.approx(ttost_ind(x, y, -margin, margin, usevar="unequal")[0])


@pytest.mark.parametrize("n", [3, 10])
def test_at_the_margin_5_percent_are_called_equivalent(n: int) -> None:
    random, tries = np.random.default_rng(n), 2000
    differences = [difference(sample(*random.normal(4, 1, n)), sample(*random.normal(0, 1, n))) for _ in range(tries)]
    share = np.mean([equivalent(one, 4.0) < 0.05 for one in differences])
    assert abs(share - 0.05) < error(0.05, tries) + 0.005  # Welch's own error with 3 seeds


def test_a_family_calls_rows_at_the_margin_equivalent_in_5_percent_of_tables_at_most() -> None:
    random, tries, effects = np.random.default_rng(0), 600, [0, 5, -5, 5, -5, 5, -5]
    families = [
        compare(one[0], one[1:], 0.05, margin=5.0) for one in (made(random, [1] * 7, 5, effects) for _ in range(tries))
    ]
    assert np.mean([any(one.p_equivalent < 0.05 for one in family) for family in families]) <= 0.05 + error(0.05, tries)


def test_a_comparison_is_equivalent_or_higher_or_lower_or_not_known() -> None:
    baseline, same, higher, unsure = (
        sample(70, 71, 72),
        sample(70.1, 71.1, 72.1),
        sample(80, 81, 82),
        sample(72, 73, 74),
    )
    verdicts = compare(baseline, [same, higher, unsure], 0.05, margin=3.0)
    assert [one.verdict for one in verdicts] == ["equivalent", "higher", "not known"]
    assert compare(higher, [baseline], 0.05)[0].verdict == "lower"
    assert compare(baseline, [same], 0.05)[0].verdict == "not known"  # without a margin, no difference is equivalent


# Averages


@pytest.mark.parametrize(("sds", "measured"), [((1.0, 1.5, 2.0, 3.0), 0.953), ((0.5, 1.0, 2.0, 8.0), 0.943)])
def test_an_average_has_its_coverage_with_variances_that_differ_between_tasks(
    sds: tuple[float, ...], measured: float
) -> None:
    random, tries = np.random.default_rng(0), 2000
    averages = [average([mean(sample(*random.normal(at, sd, 3))) for at, sd in enumerate(sds)]) for _ in range(tries)]
    covered = np.mean([one.alone().lower <= 1.5 <= one.alone().upper for one in averages])
    assert abs(covered - measured) < error(measured, tries)  # 0.015


def test_an_average_by_hand() -> None:
    one = average([Estimate(10, 3, 2, 0.6), Estimate(20, 4, 2, 0.8)])
    assert (one.value, one.se, one.se_examples) == pytest.approx((15, 2.5, 0.5))
    assert one.df == pytest.approx((9 + 16) ** 2 / (81 / 2 + 256 / 2))
    assert math.isnan(average([Estimate(10, 3, 2, 0.6), Estimate(20, 4, 2, math.nan)]).se_examples)
    assert not average([Estimate(10, 3, 2, 0.6), mean(sample(20))]).has_interval


def test_a_relative_score_has_its_coverage() -> None:
    random, tries = np.random.default_rng(0), 2000
    ratios = [
        relative(mean(sample(*random.normal(63, 2, 3))), mean(sample(*random.normal(70, 2, 3)))) for _ in range(tries)
    ]
    covered = np.mean([one.alone().lower <= 90 <= one.alone().upper for one in ratios])
    assert 0.95 - error(0.95, tries) <= covered <= 0.985


def test_a_relative_score_by_hand() -> None:
    one = relative(Estimate(45, 0.9, 2, 0.45), Estimate(50, 0.5, 2, math.nan))
    assert one.value == pytest.approx(90)
    assert one.se == pytest.approx(90 * math.hypot(0.9 / 45, 0.5 / 50))
    assert math.isnan(one.se_examples)
    assert math.isnan(relative(one, Estimate(0, 1, 2, 1)).value)


def test_the_probability_of_improvement_counts_ties_half() -> None:
    assert share_of_wins([2, 3], [1, 2]) == pytest.approx(3.5 / 4)
    assert share_of_wins([5, 5], [5, 5]) == 0.5
    assert math.isnan(share_of_wins([], [1]))


# Trends

LENGTHS = [10, 16, 30, 64, 100, 120]


def rising(
    random: np.random.Generator, slope: float, bend: float = 0, n: int = 3, sds: Sequence[float] = (1,) * 6
) -> list[Sample]:
    log_x = np.log2(LENGTHS)
    at = log_x - log_x.mean()
    means = slope * at + bend * at**2
    return [Sample(random.normal(mu, sd, n), None) for mu, sd in zip(means, sds, strict=True)]


def test_a_trend_is_the_regression_of_all_runs() -> None:
    random = np.random.default_rng(24)
    samples = [sample(*random.normal(at, 1, n)) for at, n in enumerate([3, 2, 3, 1, 3, 3])]
    x = np.repeat(np.log2(LENGTHS), [one.n for one in samples])
    data = pd.DataFrame({"x": x, "y": np.concatenate([one.scores for one in samples])})
    line, parabola, free = (ols(f"y ~ {form}", data).fit() for form in ("x", "x + I(x**2)", "C(x)"))
    fitted = trend(LENGTHS, samples)
    assert fitted.pooled
    assert fitted.slope.value == pytest.approx(line.params["x"])
    assert fitted.curvature.value == pytest.approx(parabola.params["I(x ** 2)"])
    assert fitted.lack_of_fit_p == pytest.approx(anova_lm(line, free)["Pr(>F)"][1])
    assert fitted.slope.df == free.df_resid
    assert fitted.slope.se == pytest.approx(math.sqrt(free.mse_resid / np.sum((x - x.mean()) ** 2)))


@pytest.mark.parametrize("sds", [(1,) * 6, (1, 1, 1, 1, 1, 5), (3, 1, 1, 1, 1, 1)])
def test_without_a_trend_5_percent_show_a_slope_a_curvature_or_lack_of_fit(sds: Sequence[float]) -> None:
    random, tries = np.random.default_rng(0), 1500
    trends = [trend(LENGTHS, rising(random, 0, sds=sds)) for _ in range(tries)]
    for share in (
        np.mean([one.slope.p < 0.05 for one in trends]),
        np.mean([one.curvature.p < 0.05 for one in trends]),
        np.mean([one.lack_of_fit_p < 0.05 for one in trends]),
    ):
        assert 0.01 < share <= 0.05 + error(0.05, tries) + (0.015 if max(sds) > 1 else 0)


def test_a_slope_of_one_standard_deviation_per_doubling_is_significant_and_fits_a_line() -> None:
    random, tries = np.random.default_rng(0), 300
    trends = [trend(LENGTHS, rising(random, 1)) for _ in range(tries)]
    assert np.mean([one.slope.p < 0.05 for one in trends]) > 0.98
    assert np.mean([one.lack_of_fit_p < 0.05 for one in trends]) < 0.05 + error(0.05, tries)


def test_a_turning_point_is_estimated_if_the_curve_bends() -> None:
    fitted = trend(LENGTHS, rising(np.random.default_rng(0), 0.5, bend=-5, n=5))
    assert fitted.curvature.value == pytest.approx(-5, abs=1) and fitted.lack_of_fit_p < 1e-6
    assert fitted.turning_point == pytest.approx(2 ** (np.mean(np.log2(LENGTHS)) + 0.05), rel=0.1)
    assert math.isnan(
        trend(LENGTHS, rising(np.random.default_rng(0), 30, bend=-5, n=5)).turning_point
    )  # past the last x
    assert math.isnan(trend(LENGTHS, rising(np.random.default_rng(0), 1)).turning_point)  # a line


def test_too_few_x_have_no_trend() -> None:
    two = trend([10, 64], [sample(1, 2, 3), sample(3, 4, 5)])
    assert two.slope.value == pytest.approx(2 / math.log2(6.4))
    assert math.isnan(two.curvature.value) and math.isnan(two.lack_of_fit_p)
    assert math.isnan(trend([10], [sample(1, 2, 3)]).slope.value)
    assert trend([10, 30, 64], [sample(1, 2, 3), sample(), sample(3, 4, 5)]).slope.value == pytest.approx(
        two.slope.value
    )


def test_a_trend_per_doubling_needs_numbers_above_0() -> None:
    with pytest.raises(ValueError, match="above 0, not 0"):
        trend([0, 10], [sample(1, 2), sample(2, 3)])


# Exact tests


def test_mcnemar_equals_statsmodels() -> None:
    random = np.random.default_rng(0)
    for of in (0.5, 0.7, 0.95):
        row, baseline = random.random(60) < of, random.random(60) < 0.6
        table = [[np.sum(row & baseline), np.sum(row & ~baseline)], [np.sum(~row & baseline), np.sum(~row & ~baseline)]]
        assert mcnemar(row, baseline) == pytest.approx(mcnemar_of_statsmodels(table, exact=True).pvalue)
    assert mcnemar(row, row) == 1.0


def test_permutation_agrees_with_mcnemar_for_binary_scores() -> None:
    random = np.random.default_rng(0)
    row, baseline = random.random(300) < 0.75, random.random(300) < 0.68
    assert permutation(row, baseline, random) == pytest.approx(mcnemar(row, baseline), abs=0.015)
    assert permutation(row, row, random) == 1.0
    assert permutation(np.full(50, 80.0), np.full(50, 70.0), random, tries=999) == 1 / 1000
