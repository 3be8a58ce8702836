"""Claims that a sweep declares, their verdicts, and comparisons of any two rows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from full_sweeps import sweep_of
from scipy import stats
from test_cells import Scores, of_examples, stored

from analysis.records.frame import Sweep
from analysis.statistics.claims import AVERAGE, claims, verdict, verdict_counts
from analysis.statistics.compare import compare
from analysis.statistics.exact import mcnemar
from analysis.statistics.families import Comparison
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.grid.sweep_file import Claim, names, read, with_overrides

MOST = 20_000  # points
NOTHING = dict.fromkeys(("half_seeds", "half_examples", "single_lower", "single_upper", "p", "p_corrected"), math.nan)


def claim(**said: Any) -> dict[str, Any]:
    return Claim(**{"claim": "it is so", "expect": "higher"} | said).model_dump()


def seen(said: str, outside: float) -> Comparison:
    """A comparison with this verdict and this p of lying outside the margin."""
    return Comparison(1.0, 0.0, 2.0, p_equivalent=outside, method="Holm", verdict=said, **NOTHING)


@pytest.mark.parametrize(
    ("expect", "said", "outside", "wanted"),
    [
        ("higher", "higher", 0.9, "holds"),
        ("higher", "higher", 0.01, "holds"),  # significant, though within the margin
        ("higher", "lower", 0.9, "reversed"),
        ("lower", "higher", 0.9, "reversed"),
        ("lower", "lower", 0.9, "holds"),
        ("higher", "not known", 0.9, "not known"),
        ("higher", "not known", math.nan, "not known"),
        ("higher", "equivalent", 0.01, "equivalent"),
        ("higher", "", math.nan, "not known"),
        ("equivalent", "equivalent", 0.01, "holds"),
        ("equivalent", "higher", 0.01, "holds"),
        ("equivalent", "higher", 0.9, "differs"),
        ("equivalent", "lower", math.nan, "differs"),
        ("equivalent", "not known", 0.2, "not known"),
    ],
)
def test_a_verdict_follows_from_the_direction_and_the_comparison(
    expect: str, said: str, outside: float, wanted: str
) -> None:
    assert verdict(expect, seen(said, outside)) == wanted


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep]:
    scores: Scores = {
        ("micro_grounding", 10): [60.0, 61.0, 62.5],
        ("micro_grounding", 30): [70.0, 71.5, 70.7],
        ("micro_grounding", 64): [80.0, 81.2, 79.0],
        ("micro_entailment", 10): [90.0, 90.6, 90.3],
        ("micro_entailment", 30): [90.1, 90.5, 90.4],
        ("micro_entailment", 64): [90.3, 90.0, 90.5],
    }
    long, short = {"prompt.length": 64}, {"prompt.length": 10}
    asked = [
        claim(claim="64 is better", row=long, than=short),
        claim(claim="10 is better", row=short, than=long),
        claim(claim="they are equal", row=long, than=short, expect="equivalent"),
        claim(claim="longer is better", trend="slope"),
        claim(claim="64 is better on average", row=long, than=short, tasks="average"),
    ]
    return stored(tmp_path_factory.mktemp("store"), scores, margin={"percent": 4.0}, claims=asked)


def test_every_claim_has_a_verdict_on_every_task(made: tuple[Store, Sweep]) -> None:
    claim_rows = claims(made[1])
    verdicts = {(row.claim, row.task): row.verdict for row in claim_rows.itertuples()}
    assert verdicts == {
        ("64 is better", "micro_grounding"): "holds",
        ("64 is better", "micro_entailment"): "equivalent",
        ("10 is better", "micro_grounding"): "reversed",
        ("10 is better", "micro_entailment"): "equivalent",
        ("they are equal", "micro_grounding"): "differs",
        ("they are equal", "micro_entailment"): "holds",
        ("longer is better", "micro_grounding"): "holds",
        ("longer is better", "micro_entailment"): "not known",  # no margin is declared for slopes
        ("64 is better on average", AVERAGE): "holds",
    }
    assert (claim_rows["among"] == 9).all()
    assert verdict_counts(claim_rows[claim_rows["claim"] == "64 is better"]) == "holds on 1 of 2 tasks, equivalent on 1"
    assert verdict_counts(claim_rows[claim_rows["claim"] == "64 is better on average"]) == "holds"


def test_a_claims_value_and_p_follow_from_its_files(made: tuple[Store, Sweep]) -> None:
    store, sweep = made
    row = next(claims(sweep).itertuples())
    x = {length: of_examples(store, "micro_grounding", length) for length in (10, 30, 64)}
    by_seed = {length: one.mean(axis=1) for length, one in x.items()}
    variance = np.mean([one.var(ddof=1) for one in by_seed.values()])  # pooled over rows, six degrees of freedom
    of_seeds, df = math.sqrt(2 * variance / 3), 6
    of_test = (x[64] - x[10]).mean(axis=0).std(ddof=1) / math.sqrt(x[10].shape[1])
    assert row.value == pytest.approx(by_seed[64].mean() - by_seed[10].mean(), abs=1e-4)
    half = math.hypot(stats.t.ppf(0.975, df) * of_seeds, stats.norm.ppf(0.975) * of_test)
    assert row.single_upper - row.value == pytest.approx(half, rel=1e-3)
    assert row.upper > row.single_upper and row.p < row.p_corrected <= 9.001 * row.p


def test_a_claim_without_runs_is_left_out_and_one_with_a_single_seed_is_not_known(tmp_path: Path) -> None:
    asked = [claim(row={"prompt.length": 64}, than={"prompt.length": 10}, expect="higher")]
    scores: Scores = {("micro_grounding", 10): [70.0], ("micro_grounding", 64): [99.0]}
    _, sweep = stored(tmp_path, scores, claims=asked)
    (row,) = claims(sweep).itertuples()
    assert (row.n, row.verdict) == (1, "not known") and math.isnan(row.p)


def test_any_two_rows_are_compared_on_every_task_and_on_average(made: tuple[Store, Sweep]) -> None:
    _, sweep = made
    there = compare(sweep, "30", "10", "score").set_index("task")
    back = compare(sweep, "10", "30", "score").set_index("task")
    assert list(there.index) == ["micro_grounding", "micro_entailment", AVERAGE]
    assert there["value"].to_dict() == pytest.approx({task: -value for task, value in back["value"].items()})
    assert there["verdict"].to_dict()["micro_grounding"] == "higher"
    assert there["p_examples"].isna().all()  # the rows have several runs


def test_two_single_runs_are_compared_by_their_examples(tmp_path: Path) -> None:
    scores: Scores = {("micro_grounding", 10): [60.0], ("micro_grounding", 64): [75.0]}
    store, sweep = stored(tmp_path, scores)
    (row,) = compare(sweep, "64", "10", "score").itertuples()
    ours, theirs = (of_examples(store, "micro_grounding", length)[0] for length in (64, 10))
    assert row.verdict == "" and math.isnan(row.p)
    assert row.p_examples == pytest.approx(mcnemar(ours > 0, theirs > 0)) and row.p_examples < 0.001


def test_an_unknown_row_is_an_error_that_suggests_the_nearest(made: tuple[Store, Sweep]) -> None:
    with pytest.raises(StoreError, match=r"made: no row is called '65'.*there are 10, 30, 64"):
        compare(made[1], "65", "10", "score")


@pytest.mark.parametrize("name", names(ROOT / "conf"))
def test_every_sweep_that_claims_something_declares_its_contrasts(name: str) -> None:
    sweep = read(name, ROOT / "conf", MOST)
    assert bool(sweep.claims) == (name not in ("learning_rate", "zero_shot"))
    assert all(one.paper or name in ("robustness_pgd", "pixels", "convergence") for one in sweep.claims)


@pytest.mark.parametrize("name", names(ROOT / "conf"))
def test_every_claim_of_a_sweep_that_is_done_has_a_verdict_on_each_of_its_tasks(name: str) -> None:
    sweep = sweep_of(name)
    found = claims(sweep)
    for claim in sweep.manifest["claims"]:
        tasks = {AVERAGE} if claim["tasks"] == "average" else {*sweep.tasks}
        assert {*found.loc[found["claim"] == claim["claim"], "task"]} == tasks


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({"row": {"prompt.length": 64}}, "needs either row and than, or trend"),
        ({"row": {"prompt.length": 64}, "than": {"prompt.length": 10}, "trend": "slope"}, "needs either row and than"),
        ({"row": {"prompt.length": 64}, "than": {"prompt.length": 11}}, "is about rows that the grid does not have"),
        ({"row": {"prompt.length": 64}, "than": {"prompt.depth": "both"}}, "names prompt.depth, which is not compared"),
        ({"trend": "slope", "quantity": "kept"}, "quantity=kept; wanted score, "),
        ({"trend": "slope", "quantity": "epochs"}, "quantity=epochs, which is not among the sweep's facts"),
        (
            {"trend": "slope", "expect": "equivalent", "margin": None},
            "expects equivalent, and the sweep declares no margin",
        ),
    ],
)
def test_a_claim_that_cannot_be_computed_is_refused(said: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    import shutil

    import yaml

    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    file = tmp_path / "conf" / "sweep" / "length.yaml"
    content = yaml.safe_load(file.read_text())
    if "margin" in said:
        del content["margin"]
    one = {"claim": "it is so", "expect": "higher"} | {key: value for key, value in said.items() if key != "margin"}
    file.write_text(yaml.safe_dump(content | {"claims": [one]}))
    with pytest.raises(ConfigError, match=r"length.yaml: claims: 'it is so'") as error:
        read("length", tmp_path / "conf", MOST)
    assert wanted in str(error.value)


def test_an_override_that_takes_rows_away_takes_their_claims(tmp_path: Path) -> None:
    sweep = read("length", ROOT / "conf", MOST)
    few = with_overrides(sweep, {"prompt.length": [10, 64]}, MOST)
    assert [one.claim for one in few.claims] == ["64 is better than 10"]
    assert len(with_overrides(sweep, {"seed": [1, 2]}, MOST).claims) == len(sweep.claims)


def test_no_more_claims_hold_by_chance_than_one_family_allows() -> None:
    """Ten claims without an effect, simulated many times: in at most 5 of 100 families any of them is significant."""
    from analysis.statistics import families
    from analysis.statistics.inference import Sample, difference

    random, tries, wrong = np.random.default_rng(0), 400, 0
    for _ in range(tries):
        pairs = [(random.normal(70, 1, 5), random.normal(70, 1, 5)) for _ in range(10)]
        estimates = [difference(Sample(a, None), Sample(b, None)) for a, b in pairs]
        made = families.contrasts(estimates, 0.05)
        wrong += any(
            verdict(expect, one) in ("holds", "reversed")
            for one, expect in zip(made, itertools.cycle(["higher", "lower"]))
        )
    assert wrong / tries <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / tries)
