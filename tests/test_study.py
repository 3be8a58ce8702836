"""A study on disk, and `advance`: any process can rebuild every step from the files, after a kill at any moment."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import instant
import numpy as np
import pytest
from attempts import error_of
from instant import begun, contents, execute, search_file, search_on

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.studies import sampler
from mmprompt.studies.confirmation import is_over
from mmprompt.studies.outcomes import Observation, RunOutcome, StudyReader
from mmprompt.studies.study import Study, runs_of
from sweeps.jobs import slurm
from sweeps.search.advance import Limits, StudyDriver
from sweeps.search.definition import compose_search
from sweeps.search.ongoing_runs import OngoingRuns
from sweeps.search.warm import warm_start
from sweeps.verbs.search import conclude

LR = {"optim.lr": {"log": [1e-3, 3.0]}}
HALVING = {"rungs": [50, 100], "stop": {"halving": {"keep": 0.34}}}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    copy = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", copy)
    return copy


def peak(config: RunConfig) -> float:
    """A score that is best at a learning rate of 0.1; longer prompts are a little better."""
    length = config.prompt.length if config.prompt is not None else 0
    return 80 - 10 * abs(math.log10(config.optim.lr / 0.1)) + length / 100 + config.seed % 3 / 10


def diverging(config: RunConfig) -> float | None:
    """The same score, but None, which means that the run diverges, for learning rates above 0.3."""
    return None if config.optim.lr > 0.3 else peak(config)


def test_a_run_whose_patience_ended_before_a_rung_has_its_last_score_there_and_one_on_its_way_none() -> None:
    scores = {25: 40.0, 50: 60.0, 75: 55.0}
    done = RunOutcome("done", {"score": 61.0}, scores, 0.1, [])
    assert [done.score_at(rung) for rung in (10, 50, 100)] == [None, 60.0, 55.0]
    assert RunOutcome("open", {}, scores, 0.1, []).score_at(100) is None


# ------------------------------------------------------------------------------------------------- any caller, at any time


class Killed(BaseException):
    """Stands for a kill: raised at a file operation, where nothing catches it."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function of n: from then on n calls of link, replace and rename succeed, and the next one raises Killed."""
    real = {"link": os.link, "replace": os.replace, "rename": os.rename}
    left = [math.inf]

    def dying(name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real[name](*arguments, **named)

        return call

    for name in real:
        monkeypatch.setattr(os, name, dying(name))
    yield lambda count: left.__setitem__(0, count)
    left[0] = math.inf


@pytest.mark.parametrize("name", ["random", "sobol", "TPESampler"])
def test_a_search_that_is_killed_between_any_two_lines_makes_the_same_trials_as_an_undisturbed_one(
    conf: Path, tmp_path: Path, kill: Any, name: str
) -> None:
    search_file(conf, "mine", space=LR, sampler=name, budget={"trials": 7}, confirm={"top": 1, "seeds": 2}, **HALVING)
    _, calm = begun(conf, tmp_path / "calm", "mine")
    search_on(calm, peak)
    _, study = begun(conf, tmp_path / "disturbed", "mine")
    kills, random = 0, np.random.default_rng(0)
    while not is_over(StudyReader(study).read()):
        kill(int(random.integers(1, 12)))
        try:
            search_on(study, peak)
        except Killed:
            kills += 1
            # The attempt is marked as failed, as by a process that finds its process gone.
            for folder in (study.store.run(run) for run in study.store.runs()):
                for attempt in folder.attempts()[-1:]:
                    if error_of(attempt) is None and folder.result() is None:
                        kill(math.inf)
                        attempt.fail(from_text(f"{INTERRUPTED}killed\n"))
        finally:
            kill(math.inf)
    assert kills > 10
    assert contents(study) == contents(calm)
    assert [one.trial.number for one in StudyReader(study).read().outcomes] == list(range(7))


def test_if_two_drivers_advance_together_only_one_makes_the_trial(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, sampler="random", budget={"trials": 6})
    _, study = begun(conf, tmp_path / "runs", "mine")
    first, second = StudyDriver(study), StudyDriver(study)
    for _ in range(6):
        one, other = first.advance(), second.advance()
        assert [work.run for work in one.work] == [work.run for work in other.work]
        assert len(study.trials()) == len({trial.number for trial in study.trials().values()})
        execute(study.store, one.work[0], peak)
    assert sorted(trial.number for trial in study.trials().values()) == list(range(6))


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_trials_depend_neither_on_the_number_of_workers_nor_on_their_order(
    conf: Path, tmp_path: Path, name: str
) -> None:
    search_file(
        conf,
        "mine",
        space=LR | {"prompt.length": {"int": [8, 128]}},
        sampler=name,
        budget={"trials": 12},
        seeds={"first": 1, "most": 2},
        confirm={"top": 1, "seeds": 1},
        **HALVING,
    )
    _, calm = begun(conf, tmp_path / "calm", "mine")
    search_on(calm, peak)
    _, study = begun(conf, tmp_path / "parallel", "mine")
    driver, held, random = StudyDriver(study), [], np.random.default_rng(1)
    taken: set[str] = set()
    while not is_over(StudyReader(study).read()):
        step = driver.advance()
        new = [work for work in step.work if work.run not in taken]
        if new and len(held) < 4:
            held.append(new[0])
            taken.add(new[0].run)
            claim_elsewhere(study.store, new[0].run)
        else:
            work = held.pop(int(random.integers(len(held))))
            taken.remove(work.run)
            release(study.store, work.run)
            execute(study.store, work, peak)
    assert contents(study) == contents(calm)


def test_the_end_that_a_worker_writes_down_while_slurm_is_asked_about_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, facts = Store(tmp_path), instant.JOB | {"scheduler": "slurm"}
    paused, published, gone = (store.run(run).claim(1, facts) for run in ("paused", "published", "gone"))
    assert paused and published and gone

    def asked(batches: object) -> slurm.Answer:
        paused.fail(from_text(f"{INTERRUPTED}paused at step 50"))
        published.run.result_file.write_text(json.dumps({"attempt": 1, "metrics": {}}))
        return slurm.Answer({}, frozenset(), "")  # and none of the jobs is in the queue any more

    monkeypatch.setattr(slurm, "jobs", asked)
    assert OngoingRuns(store).among([one.run.id for one in (paused, published, gone)]) == set()
    assert paused.reason is not None and paused.reason.kind == "paused" and paused.run.tries() == 0
    assert published.reason is None
    assert gone.reason is not None and gone.reason.kind == "killed"


def claim_elsewhere(store: Store, run: str) -> None:
    """Makes an attempt as a process on another host does."""
    folder = store.run(run)
    assert folder.claim(folder.next_number, instant.JOB)


def release(store: Store, run: str) -> None:
    store.run(run).attempts()[-1].fail(from_text(f"{INTERRUPTED}elsewhere"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("TPESampler", {}),
        ("nsga2", {"population_size": 4}),
        ("cmaes", {"n_startup_trials": 3}),
        ("sobol", {}),
        ("GPSampler", {}),
    ],
)
def test_every_trial_is_proposed_again_from_what_was_known(
    conf: Path, tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    trials = 6 if name == "GPSampler" else 14
    search_file(
        conf,
        "mine",
        space=LR | {"prompt.length": {"int": [8, 128]}},
        sampler={name: arguments},
        budget={"trials": trials},
        seeds={"first": 1, "most": 2},
        confirm={"top": 1, "seeds": 1},
        **HALVING,
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, diverging)
    driver, progress = StudyDriver(study), StudyReader(study).read()
    for one in progress.outcomes:
        again = driver.propose(progress, 0, one.trial.number, one.trial.knew)
        assert again.settings == one.trial.settings
    settings = [tuple(one.trial.settings.items()) for one in progress.outcomes]
    assert len(set(settings)) == trials


def test_proposals_depend_on_no_file_but_those_of_the_study_and_its_runs(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 10}, confirm={"top": 1, "seeds": 1})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak, most=6)
    for folder in study.store.root.iterdir():
        if folder.name not in ("run", "searches"):
            shutil.rmtree(folder)
    search_on(study, peak)
    _, calm = begun(conf, tmp_path / "calm", "mine")
    search_on(calm, peak)
    assert contents(study) == contents(calm)
    assert (
        json.loads(study.store.manifest("search-mine").read_text()).keys()
        == json.loads(calm.store.manifest("search-mine").read_text()).keys()
    )


# ----------------------------------------------------------------------------------------------------- what the sampler is told


@pytest.mark.long
def test_the_sampler_avoids_settings_near_those_of_diverged_trials(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(folder: str) -> tuple[float, float]:
        """The share of diverged trials in the first and in the second half of four studies."""
        halves: list[list[bool]] = [[], []]
        for number in range(4):
            _, study = begun(conf, tmp_path / folder / str(number), "mine", f"study_seed={number}")
            search_on(study, diverging)
            for one in StudyReader(study).read().outcomes:
                halves[one.trial.number >= 20].append(one.state == "diverged")
        return sum(halves[0]) / len(halves[0]), sum(halves[1]) / len(halves[1])

    search_file(
        conf, "mine", space={"optim.lr": {"log": [1e-2, 10.0]}}, budget={"trials": 40}, confirm={"top": 1, "seeds": 1}
    )
    before, after = share("told")
    assert after < before
    real = sampler._frozen

    def as_failed(definition: Any, told: Any, worst: Any, readable: bool) -> Any:
        told = told if told.state != "diverged" else Observation(told.settings, "failed", number=told.number)
        return real(definition, told, worst, readable)

    monkeypatch.setattr(sampler, "_frozen", as_failed)  # a planted fault: the sampler is not told that trials diverged
    _, wasted = share("failed")
    assert wasted > 1.5 * after


def test_samplers_that_need_values_are_told_the_worst_value_for_a_diverged_trial(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf,
        "mine",
        space=LR,
        sampler={"nsga2": {"population_size": 4}},
        budget={"trials": 12},
        confirm={"top": 1, "seeds": 1},
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, diverging)
    progress = StudyReader(study).read()
    assert any(one.state == "diverged" for one in progress.outcomes)
    told = progress.told(0, 99, progress.knew(0))
    made = sampler.as_optuna(progress.definition, 0, told).get_trials()
    worst = min(one.values[0] for one in told if one.values is not None)
    for one, trial in zip(told, made, strict=True):
        assert trial.values == (list(one.values) if one.values is not None else [worst])


def test_a_trial_that_failed_for_another_reason_than_its_settings_does_not_stop_the_search(
    conf: Path, tmp_path: Path
) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 5}, confirm={"top": 1, "seeds": 1})
    _, study = begun(conf, tmp_path / "runs", "mine")
    driver, broken = StudyDriver(study), ""
    while not (step := driver.advance()).is_over and step.work:
        [work, *_] = step.work
        folder = study.store.run(work.run)
        broken = broken or (work.run if len(study.trials()) == 3 else "")
        if work.run == broken:
            attempt = folder.claim(folder.next_number, instant.JOB)
            assert attempt is not None
            attempt.fail(from_text("torch.OutOfMemoryError: CUDA out of memory"))
        else:
            execute(study.store, work, peak)
    progress = StudyReader(study).read()
    assert [one.state for one in progress.outcomes] == ["done", "done", "failed", "done", "done"]
    assert len(study.store.run(broken).attempts()) == 3
    assert [one.state for one in progress.told(0, 99, progress.knew(0))] == ["done", "done", "failed", "done", "done"]
    assert is_over(progress)
    again = StudyDriver(study, Limits(retry=frozenset([broken]), batch="2"))
    assert again.reader.read().outcomes[2].state == "failed"


# ----------------------------------------------------------------------------------------------------------- halving, racing


def test_the_best_share_goes_on_whatever_the_order_and_the_default_does_not_count_towards_it(
    conf: Path, tmp_path: Path
) -> None:
    search_file(
        conf, "mine", space=LR, sampler="random", budget={"trials": 12}, confirm={"top": 1, "seeds": 1}, **HALVING
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    others = [one for one in progress.outcomes if one.trial.origin != "default"]
    for rung, reached in ((50, others), (100, [one for one in others if 100 in one.rungs])):
        best = sorted(reached, key=lambda one: -one.rungs[rung])[: math.ceil(0.34 * len(reached))]
        gone_on = {number for number, step in progress.decisions if step == rung}
        assert gone_on == {0, *(one.trial.number for one in best)}
    assert len([one for one in others if one.state == "done"]) == math.ceil(0.34 * math.ceil(0.34 * 11))
    assert {max(one.rungs) for one in others if one.state == "stopped"} == {50, 100}


def test_nothing_is_decided_while_a_run_is_damaged_and_the_same_trials_go_on_once_it_is_mended(
    conf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"space": LR, "sampler": "random", "budget": {"trials": 12}, "confirm": {"top": 1, "seeds": 1}}
    search_file(conf, "mine", **about, **HALVING)
    _, undisturbed = begun(conf, tmp_path / "undisturbed", "mine")
    search_on(undisturbed, peak)
    expected = StudyReader(undisturbed).read()

    _, study = begun(conf, tmp_path / "runs", "mine")
    broken = expected.best(0)[0].runs["1"]
    driver = StudyDriver(study)
    while len(study.trials()) < 12:
        for work in driver.advance().work:
            execute(study.store, work, peak)
    file = study.store.run(broken).attempts()[0].path / "job.json"
    whole = file.read_bytes()
    file.write_bytes(b"{")
    for _ in range(3):
        step = StudyDriver(study).advance()
        for work in step.work:
            execute(study.store, work, peak)
    assert (step.work, step.is_over, step.waits) == ([], False, False)
    assert {number for number, _ in StudyReader(study).read().decisions} == {0}
    assert study.confirmation() is None
    assert conclude(study, StudyReader(study).read()) == 1
    said = capsys.readouterr().out
    assert f"damaged: {file}" in said and "failed" not in said.split("damaged: ")[1]
    file.write_bytes(whole)
    search_on(study, peak)
    progress = StudyReader(study).read()
    assert (progress.decisions, progress.confirmation) == (expected.decisions, expected.confirmation)


def test_a_run_that_goes_on_after_a_rung_resumes_and_trains_nothing_twice(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf, "mine", space=LR, sampler="random", budget={"trials": 9}, confirm={"top": 1, "seeds": 1}, **HALVING
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    for one in StudyReader(study).read().outcomes:
        attempts = study.store.run(one.trial.runs["1"]).attempts()
        expected = {"done": 3, "stopped": len(one.rungs)}[one.state]
        assert len(attempts) == expected  # one attempt for each part


def test_optunas_pruners_stop_trials_for_good_but_never_the_default(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf,
        "mine",
        space=LR,
        sampler="random",
        budget={"trials": 12},
        confirm={"top": 1, "seeds": 1},
        rungs=[50, 100],
        stop={"MedianPruner": {"n_startup_trials": 2}},
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    ended = [key for key, decision in progress.decisions.items() if not decision.goes_on]
    assert ended
    assert all(progress.outcomes[number].state == "stopped" for number, _ in ended)
    assert all(0 not in key for key in ended)  # never the default


def test_only_the_top_quarter_gets_further_seeds_and_the_best_is_one_of_it(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf,
        "mine",
        space=LR,
        sampler="random",
        budget={"trials": 12},
        seeds={"first": 1, "most": 3},
        confirm={"top": 1, "seeds": 2},
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    many = {one.trial.number for one in progress.outcomes if len(one.seeds) == 3}
    ranked = sorted(progress.outcomes, key=lambda one: -one.runs[1].values["score"])
    assert many == {one.trial.number for one in ranked[:3]}  # a quarter of 12
    assert progress.best(0)[0].trial == ranked[0].trial.number and len(progress.best(0)) == 3
    assert all(one.state == "done" for one in progress.outcomes)


# -------------------------------------------------------------------------------------------- runs that are there, warm start


def test_a_study_whose_runs_are_done_trains_nothing(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf,
        "mine",
        space={"prompt.length": [10, 16, 64]},
        sampler="random",
        budget={"trials": 3},
        confirm={"top": 1, "seeds": 1},
    )
    _, first = begun(conf, tmp_path / "runs", "mine", called="first")
    search_on(first, peak)
    before = {run: len(first.store.run(run).attempts()) for run in first.store.runs()}
    _, second = begun(conf, tmp_path / "runs", "mine", called="second")
    search_on(second, peak)
    assert {run: len(first.store.run(run).attempts()) for run in first.store.runs()} == before
    assert len({trial.settings["prompt.length"] for trial in second.trials().values()}) == 3


def test_finished_runs_in_the_space_are_warm_trials_and_similar_ones_are_left_out_with_a_reason(
    conf: Path, tmp_path: Path
) -> None:
    search_file(
        conf,
        "wide",
        space={"optim.lr": [0.01, 0.03, 5.0]},
        sampler="random",
        budget={"trials": 3},
        seeds=2,
        confirm={"top": 1, "seeds": 1},
    )
    _, wide = begun(conf, tmp_path / "runs", "wide")
    search_on(wide, peak)
    _, longer = begun(conf, tmp_path / "runs", "wide", "optim.steps=300", called="longer")
    search_on(longer, peak, most=2)
    search_file(conf, "mine", space=LR, budget={"trials": 4}, confirm={"top": 1, "seeds": 1})
    search = compose_search("mine", "mine", [f"paths.runs={tmp_path / 'runs'}"], conf, instant.ABOUT)
    warm, left_out = warm_start(search)
    rates = {trial.settings["optim.lr"]: sorted(trial.runs) for trial in warm}
    expected = {trial.settings["optim.lr"] for trial in wide.trials().values() if trial.settings["optim.lr"] <= 3}
    assert set(rates) == expected | {0.3}
    assert all("1" in seeds and "2" in seeds for rate, seeds in rates.items() if rate in expected)
    assert any("optim.steps=300, and the study has 150" in reason for reason in left_out)
    assert ("optim.lr=5.0 is outside 0.001 to 3 (log)" in " ".join(left_out)) == any(
        t.settings["optim.lr"] == 5.0 for t in wide.trials().values()
    )


def test_runs_similar_to_one_of_several_groups_are_left_out_with_a_reason(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf, "near", space={"optim.lr": [5.0]}, sampler="random", budget={"trials": 2}, confirm={"top": 1, "seeds": 1}
    )
    _, near = begun(conf, tmp_path / "runs", "near")
    search_on(near, peak)
    search_file(
        conf,
        "mine",
        space=LR,
        each={"method": ["lora", "prompt"]},
        fixed={"task": "micro_grounding"},
        budget={"trials": 1},
    )
    search = compose_search("mine", "mine", [f"paths.runs={tmp_path / 'runs'}"], conf, instant.ABOUT)
    warm, left_out = warm_start(search)
    assert {trial.group for trial in warm} == {1}
    assert any("optim.lr=5.0 is outside 0.001 to 3 (log)" in reason for reason in left_out)


# -------------------------------------------------------------------------------------------------------- budget, confirmation


def test_the_confirmation_has_fresh_seeds_and_only_its_runs_are_evaluated_on_test(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 5}, seeds=2, confirm={"top": 2, "seeds": 3})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    assert progress.confirmation is not None and not set(progress.confirmation.seeds) & {1, 2}
    trials = {run for one in progress.outcomes for run in one.trial.runs.values()}
    confirming = {run for one in progress.confirmation.groups[0].candidates for run in one.runs.values()}
    assert not trials & confirming
    for run in trials:
        result = study.store.run(run).result()
        assert result is not None and list(result["evaluations"]) == ["val"]
    for run in confirming:
        result = study.store.run(run).result()
        assert result is not None and list(result["evaluations"]) == ["val", "test"]
    assert [one.origin for one in progress.confirmation.groups[0].candidates] == ["default", "best", "best"]


def test_a_budget_of_device_hours_leaves_room_for_the_confirmation(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"device_hours": 0.30}, confirm={"top": 2, "seeds": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    used = sum(one.device_hours for one in progress.outcomes)
    assert 0.30 - 0.12 - 0.011 <= used <= 0.30 - 0.12  # the confirmation has 12 runs of 0.01 hours each
    assert is_over(progress)


def test_each_group_gets_the_same_budget_and_its_own_confirmation(conf: Path, tmp_path: Path) -> None:
    space = {"optim.lr": {"log": [1e-4, 3.0]}, "lora.rank": {"int": [2, 64], "when": {"method": "lora"}}}
    search_file(
        conf,
        "mine",
        space=space,
        each={"method": ["prompt", "lora"]},
        fixed={"task": "micro_grounding"},
        budget={"trials": 4},
        confirm={"top": 1, "seeds": 1},
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    assert [[one.trial.number for one in progress.of(group)] for group in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert all(("lora.rank" in one.trial.settings) == (one.trial.group == 1) for one in progress.outcomes)
    assert progress.confirmation is not None and [group.group for group in progress.confirmation.groups] == [0, 1]


def test_with_several_objectives_trials_of_the_front_are_confirmed(conf: Path, tmp_path: Path) -> None:
    objective = {"score": "maximize", "trainable_parameters": "minimize"}
    search_file(
        conf,
        "mine",
        space=LR | {"prompt.length": {"int": [1, 128], "log": True}},
        objective=objective,
        budget={"trials": 15},
        confirm={"top": 3, "seeds": 1},
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    progress = StudyReader(study).read()
    values = [one.values for one in progress.outcomes if one.values is not None]
    front = progress.best(0)
    for one in front:
        assert not any(
            v[0] >= one.values[0] and v[1] <= one.values[1] and tuple(v) != tuple(one.values) for v in values
        )
    assert progress.confirmation is not None
    confirmed = [one.trial for one in progress.confirmation.groups[0].candidates[1:]]
    assert set(confirmed) <= {one.trial for one in front}


def test_if_all_trials_diverge_only_the_default_is_confirmed(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf, "mine", space={"optim.lr": {"log": [1.0, 3.0]}}, budget={"trials": 3}, confirm={"top": 2, "seeds": 2}
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, diverging)
    progress = StudyReader(study).read()
    assert [one.state for one in progress.outcomes] == ["done", "diverged", "diverged"]  # the default, 0.3, does not
    assert progress.confirmation is not None and len(progress.confirmation.groups[0].candidates) == 1
    assert is_over(progress)
    assert not progress.told(0, 1, progress.knew(0))  # the default lies outside the space: the sampler is not told


# ------------------------------------------------------------------------------------------------------------ damaged files


def test_restoring_writes_every_damaged_or_missing_config_again(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 3}, confirm={"top": 1, "seeds": 1})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    files = [study.store.run(run).config_file for run in runs_of(study.store, "mine")]
    before = [file.read_bytes() for file in files]
    files[0].write_text("")
    files[-1].unlink()
    StudyDriver(study).restore_all(StudyReader(study).read())
    assert [file.read_bytes() for file in files] == before


def test_files_of_other_programs_are_ignored_and_stay(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    foreign = [
        study.folder / name for name in ("trials/notes.txt", "trials/²", "decisions/x.json", "trials/1 (copy).json")
    ]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    search_on(study, peak, most=2)
    assert study.damage() == [] and len(study.trials()) >= 2
    assert all(file.read_text() == "{}" for file in foreign)


def test_all_damaged_files_of_a_study_are_named(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak, most=3)
    (study.folder / "trials/0.json").write_text("{")
    (study.folder / "trials/2.json").unlink()
    (study.folder / "trials/2.json").mkdir()
    (study.folder / "confirmed.json").write_text("[]")
    named = [str(error).split(" ")[0] for error in Study(study.store, "mine").damage()]
    assert named == [str(study.folder / name) for name in ("trials/0.json", "trials/2.json", "confirmed.json")]


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("trials/1.json", "{", r"trials/1.json is cut off or damaged"),
        ("trials/1.json", "{}", r"trials/1.json is damaged: it has no version; remove it"),
        ("trials/7.json", None, r"trials/7.json is not trial 7 of search mine"),
        ("study.json", "", r"study.json is cut off or damaged"),
        ("confirmed.json", "[]", r"confirmed.json is damaged"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(
    conf: Path, tmp_path: Path, file: str, content: str | None, sentence: str
) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak, most=2)
    target = study.folder / file
    target.parent.mkdir(exist_ok=True)
    target.write_text(content if content is not None else (study.folder / "trials/1.json").read_text())
    before = sorted(study.store.root.rglob("*"))
    with pytest.raises(StoreError, match=sentence):
        StudyDriver(Study(study.store, "mine")).advance()
    assert sorted(study.store.root.rglob("*")) == before
