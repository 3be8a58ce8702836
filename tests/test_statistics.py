"""Means, t intervals, and the choice of the baseline and of the best cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_store import manifest

from analysis.records.frame import Sweep
from analysis.statistics.cell_statistics import cells
from mmprompt.studies.intervals import t_interval

QUANTILE = {2: 12.7062, 3: 4.30265, 5: 2.77645, 10: 2.26216}  # n -> 97.5 % quantile of t, from a printed table


def made_up(values: dict[tuple[int, str], Sequence[float]], baseline: int = 64) -> Sweep:
    """A sweep with two lengths, one task and three seeds. `values`: (length, split) -> a value per seed."""
    lengths = sorted({length for length, _ in values})
    axes: dict[str, list[Any]] = {"task": ["micro_grounding"], "prompt.length": lengths, "seed": [1, 2, 3]}
    about = manifest("made_up", axes, "prompt.length", {}, {"prompt.length": baseline})
    rows: list[dict[str, Any]] = []
    for length, seed in product(lengths, range(3)):
        scores = {f"{split}/acc@0.5": values[length, split][seed] for split in ("val", "test")}
        point = {"task": "micro_grounding", "prompt.length": length, "seed": seed + 1, "metric": "acc@0.5"}
        rows.append(point | {"run": f"{length}-{seed}", "state": "done"} | scores)
    return Sweep(about, pd.DataFrame(rows), ())


@pytest.mark.parametrize("n", QUANTILE)
def test_the_interval_is_mean_and_quantile_times_standard_error(n: int) -> None:
    x = np.random.default_rng(n).normal(80, 2, n)
    interval = t_interval(x)
    half = QUANTILE[n] * x.std(ddof=1) / math.sqrt(n)
    assert interval.n == n
    assert interval.value == pytest.approx(x.mean())
    assert interval.upper - interval.value == pytest.approx(half, rel=1e-5)
    assert interval.value - interval.lower == pytest.approx(half, rel=1e-5)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_equals_scipys(n: int) -> None:
    x = np.random.default_rng(n).normal(80, 2, n)
    low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
    assert t_interval(x)[1:3] == pytest.approx((low, high))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_95_percent_of_the_intervals_cover_the_true_mean(n: int) -> None:
    random, tries = np.random.default_rng(0), 4000
    intervals = [t_interval(random.normal(80, 2, n)) for _ in range(tries)]
    covered = sum(interval.lower <= 80 <= interval.upper for interval in intervals) / tries
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / tries)  # 0.010


def test_one_value_has_a_mean_and_no_interval() -> None:
    interval = t_interval([83.1])
    assert (interval.value, interval.n) == (83.1, 1)
    assert math.isnan(interval.lower) and math.isnan(interval.upper)


def test_no_value_has_no_mean() -> None:
    interval = t_interval([])
    assert interval.n == 0 and math.isnan(interval.value)


def test_a_missing_value_does_not_count() -> None:
    assert t_interval([80.0, math.nan, 82.0]) == t_interval([80.0, 82.0])


def test_the_best_row_on_validation_is_chosen_for_both_splits_whatever_its_test_score() -> None:
    better_on_val, better_on_test = [82.0, 83.0, 84.0], [90.0, 91.0, 92.0]
    worse = [70.0, 71.0, 72.0]
    sweep = made_up({(10, "val"): better_on_val, (10, "test"): worse, (64, "val"): worse, (64, "test"): better_on_test})
    frame = cells(sweep).set_index(["prompt.length", "split"])
    assert frame["chosen"].to_dict() == {(10, "val"): True, (10, "test"): True, (64, "val"): False, (64, "test"): False}
    assert frame["among"].to_dict() == {(10, "val"): 2, (10, "test"): 2, (64, "val"): 0, (64, "test"): 0}


def test_nothing_is_chosen_while_a_value_is_missing() -> None:
    some, all_ = [82.0, math.nan, 84.0], [70.0, 71.0, 72.0]
    frame = cells(made_up({(10, "val"): some, (10, "test"): some, (64, "val"): all_, (64, "test"): all_}))
    assert not frame["chosen"].any()
    assert frame.set_index(["prompt.length", "split"])["n"].to_dict()[10, "val"] == 2
    assert (frame["planned"] == 3).all()


def test_the_baseline_is_the_manifests_and_each_value_lists_its_runs() -> None:
    same = [70.0, 71.0, math.nan]
    frame = cells(made_up({(length, split): same for length in (10, 64) for split in ("val", "test")}))
    assert set(frame.loc[frame["baseline"], "prompt.length"]) == {64}
    assert list(frame.loc[frame["prompt.length"] == 10, "runs"]) == ["10-0 10-1", "10-0 10-1"]
