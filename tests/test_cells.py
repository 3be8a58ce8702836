"""Cells of tables checked against NumPy: intervals over seeds and examples, differences, shares kept, averages, trends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic_store import OFFLINE, evaluate, evaluations_of, launch, manifest, run_of, train

from analysis.records.frame import Sweep
from analysis.records.reading import read_sweep
from analysis.statistics.cell_statistics import cells
from analysis.statistics.samples import rows
from analysis.statistics.summaries import averages, detectable, trends
from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.store import Store
from mmprompt.studies.power import share_of

Scores = dict[tuple[str, int], list[float]]  # task and length -> the score of each seed
SEEDS = [11, 12, 13]
METRIC = {"micro_grounding": "acc@0.5", "micro_entailment": "accuracy", "micro_caption": "cider"}


def stored(root: Path, scores: Scores, **shown: Any) -> tuple[Store, Sweep]:
    """A sweep over lengths whose runs have these scores, both on validation and on test."""
    store = Store(root)
    tasks, lengths = (list(dict.fromkeys(key[at] for key in scores)) for at in (0, 1))
    axes = {"task": tasks, "prompt.length": lengths, "seed": SEEDS[: max(map(len, scores.values()))]}
    about = manifest("made", axes, "prompt.length", {}, {"prompt.length": 64}, **shown)
    for point in about["points"]:
        values, metric = point["values"], METRIC[point["values"]["task"]]
        of_seeds = scores[values["task"], values["prompt.length"]]
        place = SEEDS.index(values["seed"])
        if place < len(of_seeds):
            score = of_seeds[place]
            train(store, values, {f"val/{metric}": score, f"test/{metric}": score}, OFFLINE)
    launch(store, about)
    return store, read_sweep(store, "made")


def of_examples(store: Store, task: str, length: int, split: str = "test") -> np.ndarray:
    """The scores of the examples from the files alone, shape (seeds, examples)."""
    rows = []
    for seed in SEEDS:
        point = {"task": task, "prompt.length": length, "seed": seed}
        folder = store.run(run_of(point))
        if folder.result_file.exists():
            rows.append(np.load(folder.evaluation_file(evaluations_of(point)[split]).with_suffix(".npy")))
    return np.array(rows, dtype=np.float64)


def at(frame: pd.DataFrame, **wanted: Any) -> Any:
    """The one row with these values. `length` means prompt.length."""
    for key, value in wanted.items():
        frame = frame[frame["prompt.length" if key == "length" else key] == value]
    (row,) = frame.itertuples(index=False)
    return row


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep]:
    scores: Scores = {
        ("micro_grounding", 10): [70.0, 71.0, 72.5],
        ("micro_grounding", 30): [75.0, 76.5, 75.7],
        ("micro_grounding", 64): [80.0, 81.2, 79.0],
        ("micro_entailment", 10): [60.1, 62.0, 61.0],
        ("micro_entailment", 30): [61.0, 62.5, 63.1],
        ("micro_entailment", 64): [63.0, 61.5, 62.7],
    }
    return stored(tmp_path_factory.mktemp("store"), scores, margin={"percent": 2.0})


def test_the_two_half_widths_of_a_cell_follow_from_its_files(made: tuple[Store, Sweep]) -> None:
    store, sweep = made
    row = at(cells(sweep), task="micro_grounding", length=10, split="test")
    x = of_examples(store, "micro_grounding", 10)  # seeds by examples
    of_seeds = stats.t.ppf(0.975, 2) * x.mean(axis=1).std(ddof=1) / math.sqrt(3)
    of_test = 1.959964 * x.mean(axis=0).std(ddof=1) / math.sqrt(x.shape[1])
    assert (row.value, row.n, row.examples) == (pytest.approx(x.mean(), abs=1e-4), 3, x.shape[1])
    assert (row.half_seeds, row.half_examples) == (pytest.approx(of_seeds, rel=1e-3), pytest.approx(of_test, rel=1e-4))
    assert row.upper - row.value == pytest.approx(math.hypot(of_seeds, of_test), rel=1e-3)
    assert row.value - row.lower == pytest.approx(math.hypot(of_seeds, of_test), rel=1e-3)
    assert row.seeds == "11 12 13"


def test_a_difference_has_dunnetts_interval_over_the_tables_columns_and_the_examples_own_differences(
    made: tuple[Store, Sweep],
) -> None:
    store, sweep = made
    row = at(cells(sweep), task="micro_grounding", length=10, split="test")
    x = {length: of_examples(store, "micro_grounding", length) for length in (10, 30, 64)}
    means = {length: of.mean(axis=1) for length, of in x.items()}
    of_table = stats.dunnett(
        means[10], means[30], control=means[64], random_state=0
    )  # two columns: the level is Šidák's
    low, high = (ends[0] for ends in of_table.confidence_interval(1 - share_of(2)))
    of_test = (x[10] - x[64]).mean(axis=0).std(ddof=1) / math.sqrt(x[10].shape[1])
    assert row.difference == pytest.approx(means[10].mean() - means[64].mean(), abs=1e-4)
    assert row.difference_method == "Dunnett" and row.difference_verdict == "lower"
    assert row.difference_half_seeds == pytest.approx((high - low) / 2, rel=2e-3)  # scipy's is by random numbers
    assert 1.96 * of_test < row.difference_half_examples < 3 * of_test
    half = math.hypot(row.difference_half_seeds, row.difference_half_examples)
    assert row.difference_upper - row.difference == pytest.approx(half)
    assert row.difference_single_upper < row.difference_upper  # the uncorrected interval is narrower
    assert row.difference_p < row.difference_p_corrected < 0.05


def test_a_family_of_one_task_is_corrected_less_than_that_of_the_table(
    tmp_path: Path, made: tuple[Store, Sweep]
) -> None:
    _, sweep = made
    apart = Sweep(sweep.manifest | {"family": "task"}, sweep.frame, sweep.notes, sweep.conflicts, sweep.store)
    table, task = (at(cells(one), task="micro_entailment", length=10, split="test") for one in (sweep, apart))
    assert task.difference_upper < table.difference_upper and task.difference_p_corrected < table.difference_p_corrected
    assert task.difference_p == pytest.approx(table.difference_p)


def test_the_baseline_has_no_difference_and_the_validation_split_has_a_separate_family(
    made: tuple[Store, Sweep],
) -> None:
    _, sweep = made
    frame = cells(sweep)
    assert frame.loc[frame["baseline"], "difference"].isna().all()
    val, test = (at(frame, task="micro_grounding", length=10, split=split) for split in ("val", "test"))
    assert val.difference_half_seeds == pytest.approx(test.difference_half_seeds)  # same scores, and as many columns


def test_an_interval_ends_where_the_metric_does(tmp_path: Path) -> None:
    high: Scores = {("micro_entailment", 64): [99.0, 99.9, 97.0], ("micro_entailment", 10): [1.0, 3.0, 0.0]}
    _, sweep = stored(tmp_path, high)
    frame = cells(sweep)
    top, bottom = at(frame, length=64, split="test"), at(frame, length=10, split="test")
    assert top.upper == 100.0 and top.value - top.lower == pytest.approx(math.hypot(top.half_seeds, top.half_examples))
    assert bottom.lower == 0.0 and bottom.difference_lower >= -100.0


def test_one_seed_has_a_difference_without_interval_and_verdict(tmp_path: Path) -> None:
    _, sweep = stored(tmp_path, {("micro_grounding", 10): [70.0], ("micro_grounding", 64): [75.0]})
    row = at(cells(sweep), length=10, split="test")
    assert (row.difference, row.difference_n, row.difference_verdict) == (-5.0, 1, "")
    assert math.isnan(row.lower) and math.isnan(row.difference_lower) and math.isnan(row.half_seeds)
    assert row.half_examples > 0


def test_equal_scores_over_seeds_give_no_interval(tmp_path: Path) -> None:
    _, sweep = stored(tmp_path, {("micro_grounding", 10): [70.0] * 3, ("micro_grounding", 64): [75.0] * 3})
    row = at(cells(sweep), length=10, split="test")
    assert math.isnan(row.lower) and row.difference_verdict == ""


def test_a_difference_within_the_margin_is_equivalent(tmp_path: Path) -> None:
    close: Scores = {("micro_caption", 10): [500.0, 500.4, 500.2], ("micro_caption", 64): [500.1, 500.3, 500.5]}
    _, sweep = stored(tmp_path, close, margin={"cider": 40.0})
    assert at(cells(sweep), length=10, split="test").difference_verdict == "equivalent"
    _, strict = stored(tmp_path / "strict", close, margin={"cider": 0.01})
    assert at(cells(strict), length=10, split="test").difference_verdict == "not known"


def test_seeds_are_paired_if_the_sweep_declares_it(tmp_path: Path) -> None:
    moved: Scores = {("micro_grounding", 10): [60.0, 70.0, 80.0], ("micro_grounding", 64): [61.0, 71.1, 81.0]}
    _, sweep = stored(tmp_path, moved)
    _, paired = stored(tmp_path / "paired", moved, paired=True)
    apart, together = (at(cells(one), length=10, split="test") for one in (sweep, paired))
    assert apart.difference_half_seeds > 20 > 0.5 > together.difference_half_seeds
    assert together.difference_method == "paired, Holm"


def test_a_share_kept_has_the_error_of_a_ratio_over_the_same_examples(tmp_path: Path) -> None:
    store = Store(tmp_path)
    axes = {"task": ["micro_grounding"], "method": ["prompt", "finetune"], "attack.epsilon": [0.0, 0.1], "seed": SEEDS}
    baseline = {"method": "finetune"}
    about = manifest("attack", axes, "method", {}, baseline, over="attack.epsilon", kept_from=0.0)
    kept: dict[str, list[np.ndarray]] = {"prompt": [], "finetune": []}
    for method in axes["method"]:
        for number, seed in enumerate(SEEDS):
            points = [
                {"task": "micro_grounding", "method": method, "attack.epsilon": epsilon, "seed": seed}
                for epsilon in (0.0, 0.1)
            ]
            scores = [80.0 + number, 60.0 - 5 * number - 10 * (method == "prompt")]
            train(store, points[0], {"val/acc@0.5": 81.0, "test/acc@0.5": 82.0}, OFFLINE)
            evaluate(store, points, scores, OFFLINE)
            folder = store.run(run_of(points[0]))
            files = [next(iter(evaluations_of(point).values())) for point in points]
            kept[method].append(np.array([np.load(folder.evaluation_file(one).with_suffix(".npy")) for one in files]))
    launch(store, about)
    frame = cells(read_sweep(store, "attack"))
    row = frame[(frame["method"] == "prompt") & (frame["attack.epsilon"] == 0.1)].iloc[0]
    shares = [100 * x[1].mean() / x[0].mean() for x in kept["prompt"]]
    assert row["kept"] == pytest.approx(np.mean(shares), rel=1e-5)
    assert row["kept_half_seeds"] == pytest.approx(
        stats.t.ppf(0.975, 2) * np.std(shares, ddof=1) / math.sqrt(3), rel=1e-3
    )
    random, again = np.random.default_rng(0), []  # the ratio for resampled examples
    for _ in range(1000):
        drawn = random.integers(0, kept["prompt"][0].shape[1], kept["prompt"][0].shape[1])
        again.append(np.mean([100 * x[1][drawn].mean() / x[0][drawn].mean() for x in kept["prompt"]]))
    assert row["kept_half_examples"] == pytest.approx(1.96 * np.std(again), rel=0.1)
    whole = frame[(frame["method"] == "prompt") & (frame["attack.epsilon"] == 0.0)].iloc[0]
    assert whole["kept"] == 100 and math.isnan(whole["kept_difference"])


@pytest.mark.parametrize("unattacked", [[0.0, 80.0, 80.0], [0.0, 0.0, 0.0]])
def test_a_seed_that_scores_0_without_attack_keeps_no_share_and_is_left_out(
    unattacked: list[float], tmp_path: Path
) -> None:
    store, epsilons = Store(tmp_path), [0.0, 0.1, 0.2]
    axes = {"task": ["micro_grounding"], "method": ["prompt"], "attack.epsilon": epsilons, "seed": SEEDS}
    for seed, score in zip(SEEDS, unattacked, strict=True):
        points = [
            {"task": "micro_grounding", "method": "prompt", "attack.epsilon": epsilon, "seed": seed}
            for epsilon in epsilons
        ]
        train(store, points[0], {"val/acc@0.5": 80.0, "test/acc@0.5": 80.0}, OFFLINE)
        evaluate(store, points, [score, 60.0, 40.0], OFFLINE)
    launch(store, manifest("attack", axes, "method", {}, {"method": "prompt"}, over="attack.epsilon", kept_from=0.0))
    samples = [sample for row in rows(read_sweep(store, "attack"), "kept") for sample in row.samples.values()]
    kept = [100 * (60 + 40) / 2 / score for score in unattacked if score]
    assert [score for sample in samples for score in sample.scores] == pytest.approx(kept, rel=0.02)


def test_metrics_in_percent_are_averaged_without_scaling(made: tuple[Store, Sweep]) -> None:
    store, sweep = made
    frame = averages(sweep)
    x = [of_examples(store, task, 10) for task in ("micro_grounding", "micro_entailment")]
    row = at(frame, length=10)
    assert row.value == pytest.approx(np.mean([one.mean() for one in x]), abs=1e-4)
    variance = [one.mean(axis=1).var(ddof=1) / 3 for one in x]
    df = sum(variance) ** 2 / sum(v**2 / 2 for v in variance)
    of_seeds = stats.t.ppf(0.975, df) * math.sqrt(sum(variance)) / 2
    of_test = 1.96 * math.sqrt(sum(one.mean(axis=0).var(ddof=1) / one.shape[1] for one in x)) / 2
    assert row.upper - row.value == pytest.approx(math.hypot(of_seeds, of_test), rel=1e-3)
    assert row.difference_verdict == "lower" and row.better == pytest.approx(
        np.mean(
            [
                np.mean([a > b for a in one for b in other])
                for one, other in (([70.0, 71.0, 72.5], [80.0, 81.2, 79.0]), ([60.1, 62.0, 61.0], [63.0, 61.5, 62.7]))
            ]
        )
    )


def test_metrics_that_differ_are_averaged_in_percent_of_the_baseline(tmp_path: Path) -> None:
    scores: Scores = {
        ("micro_grounding", 10): [40.0, 42.0, 41.0],
        ("micro_grounding", 64): [80.0, 82.0, 84.0],
        ("micro_caption", 10): [300.0, 306.0, 303.0],
        ("micro_caption", 64): [300.0, 303.0, 297.0],
    }
    _, sweep = stored(tmp_path, scores)
    row = at(averages(sweep), length=10)
    assert row.value == pytest.approx((100 * 41 / 82 + 100 * 303 / 300) / 2, abs=1e-3)
    assert row.difference == pytest.approx(row.value - 100) and "percent of the baseline" in row.rule


def test_a_trend_uses_all_runs_and_is_the_slope_of_least_squares(made: tuple[Store, Sweep]) -> None:
    _, sweep = made
    row = trends(sweep)[lambda frame: (frame["task"] == "micro_grounding") & (frame["split"] == "test")].iloc[0]
    x = np.log2(np.repeat([10, 30, 64], 3))
    y = np.array([70.0, 71.0, 72.5, 75.0, 76.5, 75.7, 80.0, 81.2, 79.0])
    assert row["slope"] == pytest.approx(stats.linregress(x, y).slope, abs=1e-4)
    assert row["slope_lower"] > 0 and row["n"] == 9


def test_words_and_single_seeds_have_no_trend(tmp_path: Path) -> None:
    one: Scores = {("micro_grounding", length): [70.0 + length / 10] for length in (10, 30, 64)}
    _, sweep = stored(tmp_path, one)
    assert trends(sweep).empty


def test_the_detectable_difference_shrinks_with_more_seeds(made: tuple[Store, Sweep]) -> None:
    _, sweep = made
    frame = detectable(sweep)
    assert list(frame["task"]) == ["micro_grounding", "micro_entailment"] and (frame["n"] == 3).all()
    assert (frame["with_5_seeds"] < frame["difference"]).all() and (frame["difference"] > 1).all()


def test_a_missing_seed_is_left_out(tmp_path: Path) -> None:
    some: Scores = {("micro_grounding", 10): [70.0, 71.0], ("micro_grounding", 64): [75.0, 76.0, 77.1]}
    _, sweep = stored(tmp_path, some)
    row = at(cells(sweep), length=10, split="test")
    assert (row.n, row.planned, row.seeds, row.difference_n) == (2, 3, "11 12", 2)
    assert row.difference_method == "Dunnett" and not math.isnan(row.difference_lower)
    assert PRIMARY_METRIC["grounding"] == row.metric
