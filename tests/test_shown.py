"""The options of a sweep's file, in tables and figures: rows by several axes, differences, attacks, curves, costs."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from groups import some
from hypothesis import given, settings
from hypothesis import strategies as st
from printed import formatted, half_of, words_of
from scipy import stats
from synthetic_store import (
    DISABLED,
    FACTS,
    OFFLINE,
    STEPS,
    claim,
    evaluate,
    examples_of,
    launch,
    manifest,
    run_all,
    run_of,
    scores,
    train,
    while_training,
)

from analysis.__main__ import main
from analysis.figures import paper_figures
from analysis.figures.captions import caption
from analysis.figures.scales import BREAK
from analysis.figures.sweep_figures import draw
from analysis.paper_values import published, published_values, unpublished
from analysis.records.frame import Sweep
from analysis.records.manifest import DEFAULTS, read_manifest
from analysis.records.reading import read_sweep
from analysis.records.sources import in_store
from analysis.reports.curves import curves
from analysis.reports.trace import command_to_repeat
from analysis.statistics.cell_statistics import WHILE_TRAINING, cells, edges, facts, learning_curves
from analysis.statistics.costs import SHOWN as MEASURED
from analysis.statistics.costs import read_costs
from analysis.statistics.families import compare
from analysis.statistics.inference import Sample
from analysis.tables import sweep_tables
from analysis.tables.markdown import markdown
from mmprompt.execution.execute import SUMMARISED
from mmprompt.runs.comparison import FACTS as FACT_NAMES
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.store import Store
from sweeps.grid.manifest import expand
from sweeps.grid.manifest import manifest as frozen
from sweeps.grid.sweep_file import Fact, names

TASKS = ["micro_grounding", "micro_entailment"]
SEEDS = [1, 2, 3]
METHODS = [
    {"task": TASKS, "method": ["bitfit"], "bitfit.rule": ["published", "all"], "seed": SEEDS},
    {"task": TASKS, "method": ["prompt", "finetune"], "seed": SEEDS},
]
HEAD = {TASKS[0]: "Grounding Acc@0.5", TASKS[1]: "Entailment Accuracy"}
NAME = {"bitfit published": "BitFit (published)", "bitfit all": "BitFit (all)", "finetune": "Finetuning"}
COMPARE = ["method", "bitfit.rule"]
EPSILONS = [0.0, 0.01, 0.1]
ATTACKS = [block | {"attack.epsilon": EPSILONS} for block in METHODS]


def methods(**shown: Any) -> dict[str, Any]:
    return manifest("methods", METHODS, COMPARE, {"table": "2"}, {"method": "prompt"}, **shown)


def made(store: Store, about: dict[str, Any], leave_out: Iterable[dict[str, Any]] = ()) -> Sweep:
    launch(store, about)
    run_all(store, [p for p in about["points"] if p["values"] not in list(leave_out)], DISABLED, seed=0)
    return read_sweep(store, about["sweep"])


def score_of(sweep: Sweep, task: str, label: str, split: str = "test") -> np.ndarray:
    """The scores by seed, computed from the results alone."""
    by_seed = {}
    for point in sweep.manifest["points"]:
        values = point["values"]
        if (values["task"], " ".join(str(values[axis]) for axis in COMPARE if axis in values)) == (task, label):
            by_seed[values["seed"]] = sweep.frame.loc[
                sweep.frame["run"] == point["run"], f"{split}/{metric(task)}"
            ].iloc[0]
    return np.array([by_seed[seed] for seed in SEEDS])


def metric(task: str) -> str:
    return {"micro_grounding": "acc@0.5", "micro_entailment": "accuracy"}[task]


def by_label(rows: pd.DataFrame, *more: str) -> pd.DataFrame:
    return rows.set_index(["method", "task", *more])


# Rows named by several axes


def test_axes_that_are_compared_together_name_rows_by_the_values_that_a_point_has(tmp_path: Path) -> None:
    sweep = made(store := Store(tmp_path), methods())
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    assert list(table.frame.index) == ["BitFit (published)", "BitFit (all)", "Prompt tuning", "Finetuning"]
    assert "as configured" not in markdown([table])
    assert "Behind method, in brackets: its BitFit rule, where it has one." in table.notes
    assert "Baseline: Prompt tuning." in table.notes
    x = examples_of(store, [{"task": TASKS[0], "method": "bitfit", "bitfit.rule": "all", "seed": one} for one in SEEDS])
    assert str(table.frame.loc["BitFit (all)", HEAD[TASKS[0]]]).startswith(formatted(x.mean(), half_of(x)))


def test_a_diverged_row_is_labelled_so_and_the_best_other_row_is_chosen(tmp_path: Path) -> None:
    store = Store(tmp_path)
    gone = [{"task": TASKS[0], "method": "finetune", "seed": seed} for seed in SEEDS]
    for point in gone:
        claim(store, point).fail(from_text("Traceback\nmmprompt.train.TrainingError: the loss is nan at step 9 of 150"))
    sweep = made(store, methods(), gone)
    frame = cells(sweep)
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    assert table.frame.loc["Finetuning", HEAD[TASKS[0]]] == "diverged"
    # nothing is missing
    assert "Of 24 runs 21 done, 3 diverged." in table.notes and "INCOMPLETE" not in words_of(table)
    here = frame[frame["task"] == TASKS[0]]
    assert here["chosen"].any() and not here[here["diverged"] > 0]["chosen"].any()


def test_a_row_whose_runs_all_failed_shows_failed_and_a_row_with_some_runs_shows_its_n(tmp_path: Path) -> None:
    store = Store(tmp_path)
    gone = [{"task": TASKS[0], "method": "finetune", "seed": seed} for seed in SEEDS]
    half = [{"task": TASKS[0], "method": "prompt", "seed": seed} for seed in SEEDS[:2]]
    for point in [*gone, half[0]]:
        claim(store, point).fail(from_text("RuntimeError: the loss is nan"))
    sweep = made(store, methods(), [*gone, *half])
    frame = sweep_tables.comparison(sweep, cells(sweep), facts(sweep)).frame[HEAD[TASKS[0]]]
    assert frame["Finetuning"] == "failed"
    assert str(frame["Prompt tuning"]).endswith("(1 of 3)")


def test_a_run_that_was_interrupted_has_not_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    point = {"task": TASKS[0], "method": "finetune", "seed": SEEDS[0]}
    claim(store, point).fail(from_text(f"{INTERRUPTED}told to end by SIGTERM"))
    sweep = made(store, methods(), [point])
    assert set(sweep.frame["state"]) == {"done", "not done"}


# Differences


def test_a_difference_is_marked_by_its_verdict(tmp_path: Path) -> None:
    sweep = made(Store(tmp_path), methods())
    mark = {"higher": "", "lower": "", "equivalent": " =", "not known": " ~"}
    verdicts = dict(zip(((label, task) for label in NAME for task in TASKS), [*mark, *list(mark)[2:]], strict=True))
    frame = cells(sweep)
    keys = zip(frame["method"], frame["task"], strict=True)
    frame = frame.assign(difference_verdict=[verdicts.get(key, "") for key in keys], difference_method="Dunnett")
    table = sweep_tables.differences(sweep, frame, "difference")
    rows = by_label(frame[frame["split"] == "test"])
    assert list(table.frame.index) == list(NAME.values())
    for label, name in NAME.items():
        for task in TASKS:
            row = rows.loc[(label, task)]
            text = formatted(row["difference"], row["difference_upper"] - row["difference"], "+")
            assert table.frame.loc[name, HEAD[task]] == text + mark[verdicts[label, task]]
    assert table.caption == (
        "Score minus that of the baseline (Prompt tuning), in points: simultaneous 95 % intervals over the 6 comparisons"
        " of this table (Dunnett; n = 3 seeds)."
    )
    for words in [
        "~ not known: not significantly different, which does not mean equal.",
        "= equivalent.",
        "No mark: significantly",
    ]:
        assert words in words_of(table)
    noisy = frame["difference_method"].mask(frame["task"] == TASKS[1], "Welch, Holm")
    caption = sweep_tables.differences(sweep, frame.assign(difference_method=noisy), "difference").caption
    assert "(Dunnett on Grounding and Welch, Holm on Entailment; n = 3 seeds)" in caption


def test_the_note_on_a_mark_states_the_margin(tmp_path: Path) -> None:
    sweep = made(Store(tmp_path), methods(margin={"percent": 2.0, "cider": 20.0}))
    table = sweep_tables.differences(sweep, cells(sweep).assign(difference_verdict="equivalent"), "difference")
    assert "= equivalent, within ± 2 points, 20 points of CIDEr." in table.notes


def test_differences_of_single_seeds_have_no_intervals_and_a_note_says_so(tmp_path: Path) -> None:
    left_out = [p["values"] for p in methods()["points"] if p["values"]["seed"] > 1]
    sweep = made(Store(tmp_path), methods(), left_out)
    table = sweep_tables.differences(sweep, cells(sweep), "difference")
    assert table.caption.endswith(", in points: without intervals.")
    assert all(str(cell).endswith(" ~") and "±" not in str(cell) for cell in table.frame.to_numpy().flat)


def test_seeds_that_both_rows_have_are_paired_only_if_the_sweep_says_so(tmp_path: Path) -> None:
    left_out = [{"task": TASKS[0], "method": "prompt", "seed": 1}, {"task": TASKS[0], "method": "finetune", "seed": 3}]
    scored = made(Store(tmp_path), methods(), left_out)
    ours, theirs = (score_of(scored, TASKS[0], label) for label in ("finetune", "prompt"))
    row = by_label(cells(scored), "split").loc[("finetune", TASKS[0], "test")]
    assert (row["n"], row["difference_n"]) == (2, 2)
    assert row["difference"] == pytest.approx(ours[:2].mean() - theirs[1:].mean()) and row["difference_upper"] > -100
    sweep = replace(scored, manifest=scored.manifest | {"paired": True})
    row = by_label(cells(sweep), "split").loc[("finetune", TASKS[0], "test")]
    second = [ours[1], theirs[1]]
    assert (row["n"], row["difference_n"]) == (2, 1)
    assert row["difference"] == pytest.approx(second[0] - second[1]) and math.isnan(row["difference_lower"])
    table = sweep_tables.differences(sweep, cells(sweep), "difference")
    shown = str(table.frame.loc["Finetuning", HEAD[TASKS[0]]])
    assert shown.startswith(f"{second[0] - second[1]:+.1f} (1 of 3) ~")
    assert "~ not known" in words_of(table)


def made_up(scores: np.ndarray, over: list[float] | None = None) -> Sweep:
    """Methods a, b, c with baseline a. `scores`: shape (method, epsilon, seed)."""
    epsilons = over or [0.0]
    axes: dict[str, list[Any]] = {
        "task": TASKS[:1],
        "method": ["a", "b", "c"],
        "seed": SEEDS,
        "attack.epsilon": epsilons,
    }
    shown = {"over": "attack.epsilon", "kept_from": 0.0} if over else {}
    about = manifest("made_up", axes, "method", {}, {"method": "a"}, **shown)
    rows = []
    for point in about["points"]:
        values = point["values"]
        at = "abc".index(values["method"]), epsilons.index(values["attack.epsilon"]), values["seed"] - 1
        rows.append(values | {"run": point["run"], "state": "done", "metric": "acc@0.5", "test/acc@0.5": scores[at]})
    return Sweep(about, pd.DataFrame(rows), ())


SCORES = st.lists(st.floats(1, 100), min_size=27, max_size=27).map(lambda x: np.array(x).reshape(3, 3, 3))


@settings(max_examples=30, deadline=None)
@given(SCORES)
def test_differences_of_scores_and_of_shares_are_families_over_the_columns_that_show_them(x: np.ndarray) -> None:
    found = cells(made_up(x, EPSILONS)).set_index(["method", "attack.epsilon"])
    share = 100 * x / x[:, :1]
    assert found["value"].to_list() == pytest.approx(x.mean(axis=2).ravel().tolist())
    assert found["kept"].to_list() == pytest.approx(share.mean(axis=2).ravel().tolist())
    # In the first column every run keeps all of its score, so there is nothing to compare; two columns share the error probability.
    for of, values, columns, most in (
        ("difference", x, [0, 1, 2], 100.0),
        ("kept_difference", share, [1, 2], math.inf),
    ):
        for e in columns:
            baseline, *rows = (Sample(values[i, e], None) for i in range(3))
            wanted = compare(baseline, rows, 1 - 0.95 ** (1 / len(columns)))
            for method, one in zip("bc", wanted, strict=True):
                row = found.loc[(method, EPSILONS[e])]
                ends = np.clip([one.lower, one.upper], -most, most)
                assert (row[of], row[f"{of}_lower"], row[f"{of}_upper"], row[f"{of}_p"]) == pytest.approx(
                    (one.value, *ends, one.p), nan_ok=True
                )
                assert (row[f"{of}_method"], row[f"{of}_verdict"]) == (one.method, one.verdict)
        assert found.loc["a", of].isna().all() and (found.loc["a", f"{of}_n"] == 0).all()
    assert found.xs(EPSILONS[0], level="attack.epsilon")["kept_difference"].isna().all()


@settings(max_examples=20, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_no_value_depends_on_the_order_of_the_points(x: np.ndarray, random: Any) -> None:
    sweep = made_up(x, EPSILONS)
    order = list(range(len(sweep.frame)))
    random.shuffle(order)
    about = sweep.manifest | {"points": [sweep.manifest["points"][i] for i in order]}
    shuffled = Sweep(about, sweep.frame.iloc[order].reset_index(drop=True), ())
    names = ["method", "attack.epsilon"]
    ours, theirs = (cells(one).sort_values(names, ignore_index=True) for one in (sweep, shuffled))
    behind = [
        [sorted(zip(*map(str.split, of), strict=True)) for of in zip(frame["runs"], frame["seeds"], strict=True)]
        for frame in (ours, theirs)
    ]
    assert behind[0] == behind[1]
    ours, theirs = (frame.drop(columns=["runs", "seeds"]) for frame in (ours, theirs))
    pd.testing.assert_frame_equal(ours, theirs)


def test_without_exactly_one_baseline_there_are_no_differences() -> None:
    x = np.full((3, 1, 3), 50.0)
    for baseline in (None, {}, {"attack.epsilon": 0.0}):
        sweep = made_up(x)
        about = sweep.manifest | {"baseline": baseline}
        assert cells(Sweep(about, sweep.frame, ()))["difference"].isna().all()


# Attacks: one run, many evaluations


def robustness(store: Store, left_out: Iterable[float] = (), tracking: Any = OFFLINE) -> tuple[Sweep, dict[str, float]]:
    """The sweep, and the score of each evaluation by its id. `left_out`: values of epsilon without an evaluation."""
    shown = {"over": "attack.epsilon", "kept_from": 0.0}
    about = manifest("robustness", ATTACKS, COMPARE, {"figure": "3"}, {"method": "finetune"}, **shown)
    launch(store, about)
    noise = np.random.default_rng(1)
    answers = {}
    for run in dict.fromkeys(point["run"] for point in about["points"]):
        points = [p for p in about["points"] if p["run"] == run and p["values"]["attack.epsilon"] not in list(left_out)]
        train(store, points[0]["values"], scores(points[0]["values"], noise), tracking)
        values = [float(np.round(60 - 100 * p["values"]["attack.epsilon"] + noise.normal(), 3)) for p in points]
        answers |= {p["evaluations"]["test"]: value for p, value in zip(points, values, strict=True)}
        for first in range(0, len(points), 2):  # two in a pass
            evaluate(store, [p["values"] for p in points[first : first + 2]], values[first : first + 2], tracking)
    return read_sweep(store, "robustness"), answers


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep, dict[str, float]]:
    store = Store(tmp_path_factory.mktemp("attacked"))
    return store, *robustness(store)


def test_points_that_share_a_run_have_separate_evaluations(
    attacked: tuple[Store, Sweep, dict[str, float]],
) -> None:
    _, sweep, answers = attacked
    assert sweep.notes == ()
    assert len(sweep.frame) == 3 * sweep.frame["run"].nunique() == 72
    for point, (_, row) in zip(sweep.manifest["points"], sweep.frame.iterrows(), strict=True):
        assert row[f"test/{row['metric']}"] == answers[point["evaluations"]["test"]]
    assert set(sweep.frame["state"]) == {"done"} and set(sweep.frame["attempt"]) == {1}


def test_columns_are_the_epsilons_and_rows_task_and_method(attacked: tuple[Store, Sweep, dict[str, float]]) -> None:
    _, sweep, _ = attacked
    all_cells = cells(sweep)
    score, share, difference = sweep_tables.ours(sweep, all_cells, facts(sweep))
    assert list(score.frame.columns) == ["Attack ε 0", "Attack ε 0.01", "Attack ε 0.1"]
    assert list(share.frame.columns) == list(difference.frame.columns) == ["Attack ε 0.01", "Attack ε 0.1"]
    labels = ["BitFit (published)", "BitFit (all)", "Prompt tuning", "Finetuning"]
    rows = ["Grounding (Acc@0.5)", "Entailment (Accuracy)"]
    assert list(score.frame.index) == [(row, label) for row in rows for label in labels]
    assert len(difference.frame) == 2 * 3
    x = [score_at(sweep, "prompt", epsilon) for epsilon in (0.0, 0.1)]
    of_prompt = by_label(all_cells, "attack.epsilon").loc[("prompt", TASKS[0], 0.1)]
    text = formatted((100 * x[1] / x[0]).mean(), of_prompt["kept_upper"] - of_prompt["kept"])
    assert share.frame.loc[(rows[0], "Prompt tuning"), "Attack ε 0.1"] == text
    assert share.caption.startswith("Share of its own score at attack ε = 0 that a run keeps, in percent: mean")
    assert difference.caption.startswith("Share kept minus that of the baseline (Finetuning), in points: ")


def score_at(sweep: Sweep, method: str, epsilon: float) -> np.ndarray:
    rows = sweep.frame[(sweep.frame["task"] == TASKS[0]) & (sweep.frame["method"] == method)]
    return rows[rows["attack.epsilon"] == epsilon].sort_values("seed")["test/acc@0.5"].to_numpy(float)


def test_lines_over_epsilon_show_the_cells_and_the_axis_is_broken_after_0(
    attacked: tuple[Store, Sweep, dict[str, float]],
) -> None:
    _, sweep, _ = attacked
    values = cells(sweep)
    figure = draw(sweep, values)
    ax, below = figure.axes[:2]
    assert [figure.axes[at].get_title(loc="left") for at in (0, 2)] == ["Grounding", "Entailment"]
    assert [label.get_text() for label in below.get_xticklabels()] == ["0", "0.01", "0.1"]
    assert list(ax.get_xticks()) == [0.0, BREAK, 1.0] and "//" in [text.get_text() for text in ax.texts]
    drawn = [np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_gid() == "line"]
    labels = ["bitfit published", "bitfit all", "prompt", "finetune"]
    own = values[values["task"] == TASKS[0]]
    wanted = [own.loc[own["method"] == label, "value"].to_list() for label in labels]
    assert np.allclose(drawn, wanted)
    (legend,) = figure.legends
    called = ["BitFit (published)", "BitFit (all)", "Prompt tuning", "Finetuning"]
    assert {text.get_text() for text in legend.get_texts()} == set(called)


def test_a_missing_evaluation_is_counted_separately_from_a_missing_run(tmp_path: Path) -> None:
    sweep, _ = robustness(Store(tmp_path), left_out=[0.1], tracking=DISABLED)
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    assert set(table.frame["Attack ε 0.1"]) == {"missing"}
    assert "INCOMPLETE: of 72 points 48 done, 24 not evaluated." in table.notes


def test_a_failed_evaluation_shows_failed_and_does_not_affect_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sweep, _ = robustness(store, left_out=[0.1], tracking=DISABLED)
    for point in sweep.manifest["points"]:
        values = point["values"]
        if (values["method"], values["task"], values["attack.epsilon"]) == ("prompt", TASKS[0], 0.1):
            claim(store, values).fail(from_text("RuntimeError: out of memory"))
    sweep = read_sweep(store, "robustness")
    frame = sweep_tables.comparison(sweep, cells(sweep), facts(sweep)).frame
    row = frame.loc[("Grounding (Acc@0.5)", "Prompt tuning")]
    assert row["Attack ε 0.1"] == "failed" and "±" in row["Attack ε 0.01"]


def test_an_evaluation_whose_record_and_file_disagree_has_no_value(
    attacked: tuple[Store, Sweep, dict[str, float]], tmp_path: Path
) -> None:
    whole, sweep, answers = attacked
    store = Store(shutil.copytree(whole.root, tmp_path / "store"))
    point = sweep.manifest["points"][1]
    one = point["evaluations"]["test"]
    file = store.run(point["run"]).evaluation_file(one)
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"metrics": {"acc@0.5": 99.0}}))
    sweep = read_sweep(store, "robustness")
    told = (
        f"run {point['run']}: test/acc@0.5 is {answers[one]} in its W&B record and as the mean of evaluations/{one}.npy"
    )
    assert sweep.notes == sweep.conflicts == (f"{told}; 99 in evaluations/{one}.json",)
    assert math.isnan(sweep.frame.loc[1, "test/acc@0.5"]) and sweep.frame.loc[1, "state"] == "conflict"
    file.write_text(json.dumps(content))
    (store.run(point["run"]).path / content["wandb"]).unlink()
    sweep = read_sweep(store, "robustness")
    assert any("cannot be read: No such file" in note for note in sweep.notes)
    assert "some evaluations have no readable W&B record; their values are from their files" in sweep.notes
    assert sweep.frame.loc[1, "test/acc@0.5"] == answers[one]


# Facts that runs record


NEW = {"device_hours": 0.00412, "device_hours_spent": 0.005, "seconds_per_100": 0.31, "peak_memory_mb": 1234.5}
NEW |= {"epochs": 1.6, "epochs_to_99": 0.8}


def test_facts_have_a_row_per_task_and_method_and_parameters_are_a_column_of_the_scores(tmp_path: Path) -> None:
    wall_clock = ["device_hours", "device_hours_spent", "seconds", "seconds_per_100", "peak_memory_mb"]
    store, about = Store(tmp_path), methods(facts=["trainable_parameters", "epochs", *wall_clock, "epochs_to_99"])
    launch(store, about)
    noise = np.random.default_rng(0)
    epochs = {}
    for point in about["points"]:
        values = point["values"]
        epochs[point["run"]] = float(noise.uniform(0.001, 0.009))
        own = {"trainable_parameters": 4_915_200 if values["method"] == "prompt" else 186_368}
        train(store, values, scores(values, noise), DISABLED, FACTS | NEW | own | {"epochs": epochs[point["run"]]})
    sweep = read_sweep(store, "methods")
    score, _, cost = sweep_tables.ours(sweep, cells(sweep), facts(sweep))
    assert score.frame["Trainable parameters"].to_dict()["Prompt tuning"] == "4,915,200"
    assert score.frame["Trainable parameters"].to_dict()["BitFit (all)"] == "186,368"
    # There is no interval over facts that depend on other work of the machines, though all runs recorded them.
    assert list(cost.frame.columns) == ["Epochs", "Epochs to 99 %"]
    x = [epochs[run_of({"task": TASKS[1], "method": "finetune", "seed": seed})] for seed in SEEDS]
    value, half = map(float, cost.frame.loc[("Entailment", "Finetuning"), "Epochs"].split(" ± "))
    assert (value, half) == pytest.approx((np.mean(x), stats.t.ppf(0.975, 2) * stats.sem(x)), rel=0.06)
    assert cost.frame.loc[("Grounding", "BitFit (all)"), "Epochs to 99 %"].startswith("0.80")
    assert len(cost.frame) == 2 * 4


def test_a_fact_that_a_result_lacks_is_a_dash_and_a_fact_of_a_missing_result_is_missing(tmp_path: Path) -> None:
    left_out = [{"task": TASKS[0], "method": "prompt", "seed": seed} for seed in SEEDS]
    sweep = made(Store(tmp_path), methods(facts=["trainable_parameters", "epochs"]), left_out)
    table = sweep_tables.costs(sweep, facts(sweep))
    cost = table.frame["Epochs"]
    assert cost[("Grounding", "Finetuning")] == "-" and cost[("Grounding", "Prompt tuning")] == "missing"
    assert "- not recorded." in table.notes
    score = sweep_tables.comparison(sweep, cells(sweep), facts(sweep)).frame
    assert score["Trainable parameters"].to_dict()["Finetuning"] == "12,345"


def test_a_run_with_several_evaluations_counts_once_in_the_facts(tmp_path: Path) -> None:
    sweep, _ = robustness(Store(tmp_path), tracking=DISABLED)
    asked = Sweep(sweep.manifest | {"facts": ["trainable_parameters"]}, sweep.frame, ())
    assert set(facts(asked)["n"]) == {3} and np.allclose(facts(asked)["value"], 12345)


def test_the_csv_has_facts_as_further_metrics(tmp_path: Path) -> None:
    sweep = made(Store(tmp_path), methods(facts=["trainable_parameters"]))
    file = tmp_path / "methods.csv"
    file.write_text(sweep_tables.csv(cells(sweep), facts(sweep), read_costs(Store(tmp_path), sweep)))
    rows = pd.read_csv(file)
    assert (rows.loc[rows["metric"] == "trainable_parameters", "value"] == 12345).all()
    assert len(rows) == 2 * 4 * 2 + 2 * 4


def test_a_sweep_may_name_recorded_facts_and_measured_costs_and_nothing_else() -> None:
    known = set(Fact.__args__)  # type: ignore[attr-defined]
    assert known == set(FACT_NAMES) == {*SUMMARISED, "seconds_per_100"} - {"best_step"}
    assert set(MEASURED) <= known


# Learning curves


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep, pd.DataFrame]:
    store = Store(tmp_path_factory.mktemp("learnt"))
    axes: dict[str, list[Any]] = {"task": TASKS, "method": ["finetune", "prompt"], "seed": SEEDS}
    shown = {"curves": True, "facts": ["epochs_to_99"]}
    about = manifest("convergence", axes, "method", {"table": "5", "figure": "4"}, {"method": "finetune"}, **shown)
    launch(store, about)
    noise = np.random.default_rng(0)
    for point in about["points"]:
        train(store, point["values"], scores(point["values"], noise), OFFLINE, FACTS | NEW)
    sweep = read_sweep(store, "convergence")
    return store, sweep, learning_curves(sweep, curves(store, about, in_store, []))


def test_a_learning_curve_has_mean_and_interval_over_seeds_at_each_validation(
    learnt: tuple[Store, Sweep, pd.DataFrame],
) -> None:
    _, sweep, found = learnt
    assert len(found) == 2 * 2 * 3 and set(found["n"]) == {3}
    noise = np.random.default_rng(0)
    values = {json.dumps(p["values"]): scores(p["values"], noise) for p in sweep.manifest["points"]}
    rows = found.set_index(["task", "method", "step"])
    for task in TASKS:
        for method in ("finetune", "prompt"):
            points = [json.dumps({"task": task, "method": method, "seed": seed}) for seed in SEEDS]
            for step in (10, 20, STEPS):
                x = [while_training(values[point], metric(task), step) for point in points]
                half = stats.t.ppf(0.975, 2) * stats.sem(x)
                row = rows.loc[(task, method, step)]
                assert (row["value"], row["upper"]) == pytest.approx((np.mean(x), np.mean(x) + half))
                assert row["epoch"] == pytest.approx(1.6 * step / STEPS)


def test_a_run_that_ended_earlier_counts_on_with_the_score_of_the_weights_it_kept(
    learnt: tuple[Store, Sweep, pd.DataFrame],
) -> None:
    """Otherwise the later part of a curve would be the mean of the runs that were still getting better."""
    store, sweep, whole = learnt
    rows = curves(store, sweep.manifest, in_store, [])
    [ended] = rows.loc[
        (rows["task"] == TASKS[0]) & (rows["method"] == "prompt") & (rows["seed"] == SEEDS[0]), "run"
    ].unique()
    early = rows[(rows["run"] != ended) | (rows["step"] <= 20)].copy()
    early.loc[(early["run"] == ended) & (early["step"] == 20), WHILE_TRAINING] = 1.0  # its best was at step 10
    frame = sweep.frame.assign(
        epochs=sweep.frame["epochs"].where(sweep.frame["run"] != ended, sweep.frame["epochs"] * 20 / STEPS)
    )
    found = learning_curves(Sweep(sweep.manifest, frame, ()), early)
    last = found[(found["task"] == TASKS[0]) & (found["method"] == "prompt") & (found["step"] == STEPS)].iloc[0]
    scores_there = rows[(rows["task"] == TASKS[0]) & (rows["method"] == "prompt")]
    others = scores_there[(scores_there["step"] == STEPS) & (scores_there["run"] != ended)][WHILE_TRAINING]
    best = scores_there[(scores_there["step"] == 10) & (scores_there["run"] == ended)][WHILE_TRAINING].item()
    assert last["n"] == 3 and last["value"] == pytest.approx(np.mean([*others, best]))
    assert last["epoch"] == pytest.approx(1.6) and len(found) == len(whole)


def test_the_figure_shows_the_curves_over_epochs(learnt: tuple[Store, Sweep, pd.DataFrame]) -> None:
    _, sweep, points = learnt
    figure = draw(sweep, cells(sweep), points)
    assert paper_figures.choose_part(published(sweep.manifest)) is None  # GPU-hours are no scores: they have no figure
    ax = figure.axes[0]
    lines = [line for line in ax.lines if line.get_gid() == "line"]
    for line, method in zip(lines, ("finetune", "prompt"), strict=True):
        wanted = points[(points["task"] == TASKS[0]) & (points["method"] == method)]
        assert np.allclose(np.asarray(line.get_xydata()), wanted[["epoch", "value"]])
    assert ax.get_xlabel() == "Epoch" and ax.get_xlim()[0] == 0
    assert "n = 3 runs (seeds 1, 2, 3)" in caption(sweep, cells(sweep), points)


def test_runs_that_recorded_no_epochs_are_drawn_over_updates(
    learnt: tuple[Store, Sweep, pd.DataFrame],
) -> None:
    store, sweep, _ = learnt
    old = Sweep(sweep.manifest, sweep.frame.assign(epochs=math.nan), ())
    points = learning_curves(old, curves(store, sweep.manifest, in_store, []))
    ax = draw(old, cells(old), points).axes[-1]
    assert ax.get_xlabel() == "Update"
    assert next(list(line.get_xdata()) for line in ax.lines if line.get_gid() == "line") == [10, 20, STEPS]


def test_the_command_writes_tables_figures_and_curves(
    learnt: tuple[Store, Sweep, pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    store, _, _ = learnt
    assert main(["tables", "convergence", "--runs", str(store.root)]) == 0
    output = capsys.readouterr().out
    assert "Epochs to 99 %" in output and "the paper's Figure 4 stands nowhere here" in output
    assert "77.44" in (store.root / "tables" / "convergence.md").read_text()


def test_a_sweep_without_records_has_a_table_and_a_note_that_curves_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    axes: dict[str, list[Any]] = {"task": TASKS, "method": ["finetune"], "seed": [1]}
    made(store, manifest("convergence", axes, "method", {}, {}, curves=True))
    assert main(["tables", "convergence", "--runs", str(store.root)]) == 0
    assert "2 of 2 runs have no curve" in capsys.readouterr().out


# Learning rates: the best of each method


def rates(best: dict[str, float]) -> Sweep:
    """A sweep over rates of methods a and b with these best rates on validation; test would choose others."""
    grid = [0.01, 0.1, 1.0]
    axes: dict[str, list[Any]] = {"task": TASKS[:1], "method": list(best), "optim.lr": grid, "seed": SEEDS}
    about = manifest("learning_rate", axes, "optim.lr", {}, {}, each=["method"], splits=["val"])
    rows = []
    for point in about["points"]:
        values = point["values"]
        score = 50.0 - abs(math.log10(values["optim.lr"] / best[values["method"]])) + values["seed"] / 100
        run = {"run": point["run"], "state": "done", "attempt": 1, "metric": "acc@0.5", "commit": "c", "dirty": False}
        rows.append(values | run | {"device": "cpu", "val/acc@0.5": score, "test/acc@0.5": -score})
    return Sweep(about, pd.DataFrame(rows), ())


def test_the_best_rate_of_each_method_is_marked_on_validation_the_only_split_shown() -> None:
    sweep = rates({"a": 0.1, "b": 1.0})
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    marked = table.frame.index[table.frame.iloc[:, 0].str.endswith("*")]
    assert list(marked) == [("a", "0.1"), ("b", "1")] and "on the val split" in table.caption
    assert list(table.frame.index.names) == ["Method", "Learning rate"]
    assert "* highest mean on validation among 3 for each method." in table.notes
    ax = draw(sweep, cells(sweep)).axes[0]
    assert ax.get_ylabel() == "Acc@0.5 (%)" and "; val split." in caption(sweep, cells(sweep))
    assert [len(np.asarray(line.get_ydata())) for line in ax.lines if line.get_gid() == "line"] == [3, 3]


def test_a_note_names_a_best_rate_at_the_edge_of_its_grid() -> None:
    inside, outside = rates({"a": 0.1}), rates({"a": 0.1, "b": 1.0})
    assert edges(inside, cells(inside)) == []
    told = "b on micro_grounding: the best optim.lr, 1.0, is at the edge of its grid; extend it"
    assert edges(outside, cells(outside)) == [told]


# The paper's values


def test_table_1_has_the_papers_layout() -> None:
    (part,) = published({"compare": "method", "paper": {"table": "1"}})
    (table,) = sweep_tables.paper([part])
    rows = [("OFA-base", "Finetuning"), ("OFA-base", "Prompt tuning")]
    assert list(table.frame.index) == [*rows, ("OFA-large", "Finetuning"), ("OFA-large", "Prompt tuning")]
    heads = ["RefCOCO val testA testB", "RefCOCO+ val testA testB", "RefCOCOg val-u test-u", "SNLI-VE dev test"]
    heads += ["COCO Captions B@4 M CIDEr S", "VQA test-dev test-std"]
    groups = [(group, [one.head for one in those]) for group, those in groupby(table.columns, key=lambda it: it.group)]
    assert [" ".join([group, *those]) for group, those in groups] == heads
    assert table.frame["RefCOCO+ testB"].to_list() == ["74.29", "67.68", "79.22", "77.77"]
    assert table.frame["COCO Captions CIDEr"].to_list() == ["138.2", "134.2", "142.2", "141.4"]


def test_table_2_stands_beside_methods_that_are_compared_with_their_rules() -> None:
    (part,) = published({"compare": COMPARE, "paper": {"table": "2"}})
    (table,) = sweep_tables.paper([part])
    assert table.frame["SNLI-VE test"].to_dict() == {"BitFit": "89.42", "Adapter": "89.78", "Prompt tuning": "90.12"}


def test_table_5_has_the_papers_gpu_hours() -> None:
    (part,) = published({"compare": "method", "paper": {"table": "5", "figure": "4"}})
    (table,) = sweep_tables.paper([part])
    assert list(table.frame.index) == ["RefCOCO", "SNLI-VE", "COCO Captions", "VQA"]
    assert table.frame["Method Prompt tuning"].to_list() == ["77.44", "164.48", "16.16", "455.52"]
    assert table.frame["Method Finetuning"].to_list() == ["40.00", "80.96", "29.60", "616.16"]


@pytest.mark.parametrize("number", ["3", "4"])
def test_a_note_names_figures_without_published_values_and_nothing_is_drawn(number: str) -> None:
    about = {"compare": "method", "paper": {"figure": number}}
    assert list(published(about)) == []
    (sentence,) = unpublished(about)
    assert sentence.startswith(
        f"the paper's Figure {number} stands nowhere here: "
    ) and "not published" in sentence.replace("neither its values nor its epsilon are published", "not published")
    assert not (published_values()["table"] == f"figure{number}").any()


# Sweeps of conf/, and manifests of older versions


@pytest.mark.parametrize("name", some(names(ROOT / "conf"), "main", "length", "robustness"))
def test_every_sweep_of_conf_becomes_tables_and_a_figure_before_anything_has_run(name: str, tmp_path: Path) -> None:
    about = frozen(expand(name, ["seed=1"], ROOT / "conf"), {"commit": None, "dirty": False})
    store = Store(tmp_path)
    launch(store, json.loads(json.dumps(about)))
    sweep = read_sweep(store, name)
    all_tables = sweep_tables.ours(sweep, cells(sweep), facts(sweep))
    scores = all_tables[0].frame.drop(columns="Trainable parameters", errors="ignore")
    assert set(scores.to_numpy().flat) == {"missing"}
    assert {key.rpartition(".")[2] for key in sweep.manifest["header"]} >= {"model", "steps"}
    figure = draw(sweep, cells(sweep))
    assert len(figure.axes) >= len(about["tasks"]) and "INCOMPLETE" in caption(sweep, cells(sweep))


# Keys without a default in the analysis. `tracking` was added later; without it, the analysis asks for the project.
ALWAYS = {"sweep", "claim", "paper", "command", "axes", "baseline", "compare", "tasks", "header", "points", "commit"}
ALWAYS |= {"dirty", "launched", "tracking"}
TYPED = {"target", "overrides"}  # keys that no table needs


def test_every_key_that_was_added_to_manifests_has_a_default_for_older_ones() -> None:
    about = frozen(expand("length", ["seed=1"], ROOT / "conf"), {"commit": None, "dirty": False})
    assert about.keys() == ALWAYS | TYPED | DEFAULTS.keys() and not ALWAYS & DEFAULTS.keys()
    assert set(about["points"][0]) == {"values", "run", "evaluations", "fixed"}
    assert command_to_repeat({"values": {}, "run": "x"}, None).startswith("the manifest does not say what is fixed")


def test_a_manifest_older_than_these_keys_gives_the_same_tables(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.length": [10, 64], "seed": SEEDS}
    about = manifest("length", axes, "prompt.length", {}, {"prompt.length": 64})
    store = Store(tmp_path)
    new = made(store, about)
    old = {key: value for key, value in about.items() if key not in DEFAULTS}
    old["tasks"] = {task: {key: it[key] for key in ("family", "metric")} for task, it in about["tasks"].items()}
    launch(store, old)
    assert read_manifest(store, "length").keys() == about.keys()
    then = read_sweep(store, "length")
    pd.testing.assert_frame_equal(cells(new), cells(then))
    first, second = (markdown(sweep_tables.ours(one, cells(one), facts(one))) for one in (new, then))
    assert first == second


def test_splits_with_other_names_are_columns_and_each_task_has_its_own_validation(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"task": TASKS, "method": ["a", "b"], "seed": [1]}
    about = manifest("real", axes, "method", {}, {})
    splits = {TASKS[0]: ["val", "testA", "testB"], TASKS[1]: ["dev", "test"]}
    rows = []
    for point in about["points"]:
        values, those = point["values"], splits[point["values"]["task"]]
        point["evaluations"] = dict.fromkeys(those, "x")
        about["tasks"][values["task"]]["validation"] = those[0]
        score = {"a": 1.0, "b": 2.0}[values["method"]]
        own = {f"{split}/{metric(values['task'])}": score for split in those}
        rows.append(
            values | {"run": point["run"], "state": "done", "metric": metric(values["task"]), "attempt": 1} | own
        )
    frame = pd.DataFrame(rows).assign(commit="c", dirty=False, device="cpu")
    sweep = Sweep(about, frame, ())
    table = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    assert list(table.frame.columns) == ["Grounding testA", "Grounding testB", "Entailment Accuracy"]
    assert table.frame.loc["b"].to_list() == ["2.0 *"] * 3 and " on testA, testB and test: " in table.caption
    titles = [ax.get_title(loc="left") for ax in draw(sweep, cells(sweep)).axes]
    assert titles == ["Grounding, testA", "Grounding, testB", "Entailment"]
