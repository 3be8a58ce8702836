"""A study on disk, and `advance`: every step is rebuilt from files, in any process and after any kill."""

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
from mmprompt.studies.outcomes import Observation, Reader
from mmprompt.studies.study import Study, runs_of
from sweeps.search.advance import Desk, Limits
from sweeps.search.space import asked
from sweeps.search.warm import warm_start

LR = {"optim.lr": {"log": [1e-3, 3.0]}}
HALVING = {"rungs": [50, 100], "stop": {"halving": {"keep": 0.34}}}


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    copy = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", copy)
    return copy


def peak(config: RunConfig) -> float:
    """Best at a rate of 0.1; longer prompts are a little better."""
    length = config.prompt.length if config.prompt is not None else 0
    return 80 - 10 * abs(math.log10(config.optim.lr / 0.1)) + length / 100 + config.seed % 3 / 10


def diverging(config: RunConfig) -> float | None:
    return None if config.optim.lr > 0.3 else peak(config)


# ------------------------------------------------------------------------------------------------- any caller, at any time


class Killed(BaseException):
    """As a kill, at the next file operation."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Calling it with n lets the process die before its n-th link or rename from now on."""
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
def test_a_search_that_is_killed_between_any_two_lines_comes_to_the_trials_of_one_that_nobody_disturbed(
    conf: Path, tmp_path: Path, kill: Any, name: str
) -> None:
    search_file(conf, "mine", space=LR, sampler=name, budget={"trials": 7}, confirm={"top": 1, "seeds": 2}, **HALVING)
    _, calm = begun(conf, tmp_path / "calm", "mine")
    search_on(calm, peak)
    _, study = begun(conf, tmp_path / "disturbed", "mine")
    kills, random = 0, np.random.default_rng(0)
    while not is_over(Reader(study).look()):
        kill(int(random.integers(1, 12)))
        try:
            search_on(study, peak)
        except Killed:
            kills += 1
            for folder in (
                study.store.run(run) for run in study.store.runs()
            ):  # as whoever finds the process gone does
                for attempt in folder.attempts()[-1:]:
                    if error_of(attempt) is None and folder.result() is None:
                        kill(math.inf)
                        attempt.fail(from_text(f"{INTERRUPTED}killed\n"))
        finally:
            kill(math.inf)
    assert kills > 10
    assert contents(study) == contents(calm)
    assert [one.trial.number for one in Reader(study).look().outcomes] == list(range(7))


def test_of_two_that_ask_together_one_makes_the_trial(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, sampler="random", budget={"trials": 6})
    _, study = begun(conf, tmp_path / "runs", "mine")
    first, second = Desk(study), Desk(study)
    for _ in range(6):
        one, other = first.advance(), second.advance()
        assert [work.run for work in one.work] == [work.run for work in other.work]
        assert len(study.trials()) == len({trial.number for trial in study.trials().values()})
        execute(study.store, one.work[0], peak)
    assert sorted(trial.number for trial in study.trials().values()) == list(range(6))


@pytest.mark.parametrize("name", ["random", "sobol"])
def test_trials_do_not_depend_on_how_many_workers_there_are_nor_on_who_is_first(
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
    desk, held, random = Desk(study), [], np.random.default_rng(1)
    taken: set[str] = set()
    while not is_over(Reader(study).look()):
        step = desk.advance()
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


def claim_elsewhere(store: Store, run: str) -> None:
    """A process on another host is at it."""
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
def test_every_trial_can_be_asked_for_again_from_what_was_known(
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
    desk, picture = Desk(study), Reader(study).look()
    for one in picture.outcomes:
        again = desk.proposed(picture, 0, one.trial.number, one.trial.knew)
        assert again.settings == one.trial.settings
    settings = [tuple(one.trial.settings.items()) for one in picture.outcomes]
    assert len(set(settings)) == trials


def test_what_is_not_of_the_study_or_its_runs_changes_no_proposal(conf: Path, tmp_path: Path) -> None:
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


def test_a_diverged_trial_is_a_bad_answer_and_the_sampler_stays_away(
    conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def share(folder: str) -> tuple[float, float]:
        """Of diverged trials in the first and the second half, over four studies."""
        halves: list[list[bool]] = [[], []]
        for number in range(4):
            _, study = begun(conf, tmp_path / folder / str(number), "mine", f"study_seed={number}")
            search_on(study, diverging)
            for one in Reader(study).look().outcomes:
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

    monkeypatch.setattr(sampler, "_frozen", as_failed)  # the planted fault
    _, wasted = share("failed")
    assert wasted > 1.5 * after


def test_samplers_that_look_at_values_alone_are_told_the_worst_value_of_a_diverged_trial(
    conf: Path, tmp_path: Path
) -> None:
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
    picture = Reader(study).look()
    assert any(one.state == "diverged" for one in picture.outcomes)
    told = picture.told(0, 99, picture.knew(0))
    made = sampler.as_optuna(picture.definition, 0, told).get_trials()
    worst = min(one.values[0] for one in told if one.values is not None)
    for one, trial in zip(told, made, strict=True):
        assert trial.values == (list(one.values) if one.values is not None else [worst])


def test_a_run_that_fails_for_reasons_of_the_place_is_no_information_and_the_search_goes_on(
    conf: Path, tmp_path: Path
) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 5}, confirm={"top": 1, "seeds": 1})
    _, study = begun(conf, tmp_path / "runs", "mine")
    desk, broken = Desk(study), ""
    while not (step := desk.advance()).is_over and step.work:
        [work, *_] = step.work
        folder = study.store.run(work.run)
        broken = broken or (work.run if len(study.trials()) == 3 else "")
        if work.run == broken:
            attempt = folder.claim(folder.next_number, instant.JOB)
            assert attempt is not None
            attempt.fail(from_text("torch.OutOfMemoryError: CUDA out of memory"))
        else:
            execute(study.store, work, peak)
    picture = Reader(study).look()
    assert [one.state for one in picture.outcomes] == ["done", "done", "failed", "done", "done"]
    assert len(study.store.run(broken).attempts()) == 3
    assert [one.state for one in picture.told(0, 99, picture.knew(0))] == ["done", "done", "failed", "done", "done"]
    assert is_over(picture)
    again = Desk(study, Limits(retry=frozenset([broken]), batch="2"))
    assert again.reader.look().outcomes[2].state == "failed"


# ----------------------------------------------------------------------------------------------------------- halving, racing


def test_the_best_share_goes_on_whoever_was_first_and_the_default_takes_nobodys_place(
    conf: Path, tmp_path: Path
) -> None:
    search_file(
        conf, "mine", space=LR, sampler="random", budget={"trials": 12}, confirm={"top": 1, "seeds": 1}, **HALVING
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    picture = Reader(study).look()
    others = [one for one in picture.outcomes if one.trial.origin != "default"]
    for rung, there in ((50, others), (100, [one for one in others if 100 in one.rungs])):
        best = sorted(there, key=lambda one: -one.rungs[rung])[: math.ceil(0.34 * len(there))]
        gone_on = {number for number, step in picture.decisions if step == rung}
        assert gone_on == {0, *(one.trial.number for one in best)}
    assert len([one for one in others if one.state == "done"]) == math.ceil(0.34 * math.ceil(0.34 * 11))
    assert {max(one.rungs) for one in others if one.state == "stopped"} == {50, 100}


def test_nothing_is_trained_twice_and_a_rung_is_the_beginning_of_the_whole_run(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf, "mine", space=LR, sampler="random", budget={"trials": 9}, confirm={"top": 1, "seeds": 1}, **HALVING
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    for one in Reader(study).look().outcomes:
        attempts = study.store.run(one.trial.runs["1"]).attempts()
        expected = {"done": 3, "stopped": len(one.rungs)}[one.state]
        assert len(attempts) == expected  # one for each part


def test_pruners_of_optuna_stop_for_good(conf: Path, tmp_path: Path) -> None:
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
    picture = Reader(study).look()
    ended = [key for key, decision in picture.decisions.items() if not decision.goes_on]
    assert ended
    assert all(picture.outcomes[number].state == "stopped" for number, _ in ended)
    assert all(0 not in key for key in ended)  # never the default


def test_more_seeds_go_to_the_top_quarter_alone_and_the_best_is_one_of_those(conf: Path, tmp_path: Path) -> None:
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
    picture = Reader(study).look()
    many = {one.trial.number for one in picture.outcomes if len(one.seeds) == 3}
    ranked = sorted(picture.outcomes, key=lambda one: -one.runs[1].values["score"])
    assert many == {one.trial.number for one in ranked[:3]}  # a quarter of 12
    assert picture.best(0)[0].trial == ranked[0].trial.number and len(picture.best(0)) == 3
    assert all(one.state == "done" for one in picture.outcomes)


# -------------------------------------------------------------------------------------------- runs that are there, warm start


def test_a_study_over_points_that_are_there_trains_nothing(conf: Path, tmp_path: Path) -> None:
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


def test_finished_runs_in_the_space_are_warm_trials_and_those_near_it_say_why_not(conf: Path, tmp_path: Path) -> None:
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
    one = asked("mine", "mine", [f"paths.runs={tmp_path / 'runs'}"], conf, instant.ABOUT)
    warm, left_out = warm_start(one)
    rates = {trial.settings["optim.lr"]: sorted(trial.runs) for trial in warm}
    expected = {trial.settings["optim.lr"] for trial in wide.trials().values() if trial.settings["optim.lr"] <= 3}
    assert set(rates) == expected | {0.3}
    assert all("1" in seeds and "2" in seeds for rate, seeds in rates.items() if rate in expected)
    assert any("optim.steps=300, and the study has 150" in reason for reason in left_out)
    assert ("optim.lr=5.0 is outside 0.001 to 3 (log)" in " ".join(left_out)) == any(
        t.settings["optim.lr"] == 5.0 for t in wide.trials().values()
    )


def test_runs_near_one_of_several_groups_say_why_they_do_not_count(conf: Path, tmp_path: Path) -> None:
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
    one = asked("mine", "mine", [f"paths.runs={tmp_path / 'runs'}"], conf, instant.ABOUT)
    warm, left_out = warm_start(one)
    assert {trial.group for trial in warm} == {1}
    assert any("optim.lr=5.0 is outside 0.001 to 3 (log)" in reason for reason in left_out)


# -------------------------------------------------------------------------------------------------------- budget, confirmation


def test_confirmation_uses_seeds_that_neither_trials_nor_warm_runs_have_and_only_it_is_asked_for_test(
    conf: Path, tmp_path: Path
) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 5}, seeds=2, confirm={"top": 2, "seeds": 3})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    picture = Reader(study).look()
    assert picture.confirmation is not None and not set(picture.confirmation.seeds) & {1, 2}
    trials = {run for one in picture.outcomes for run in one.trial.runs.values()}
    confirming = {run for one in picture.confirmation.groups[0].candidates for run in one.runs.values()}
    assert not trials & confirming
    for run in trials:
        result = study.store.run(run).result()
        assert result is not None and list(result["evaluations"]) == ["val"]
    for run in confirming:
        result = study.store.run(run).result()
        assert result is not None and list(result["evaluations"]) == ["val", "test"]
    assert [one.origin for one in picture.confirmation.groups[0].candidates] == ["default", "best", "best"]


def test_a_budget_of_device_hours_leaves_room_for_the_confirmation(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"device_hours": 0.30}, confirm={"top": 2, "seeds": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    picture = Reader(study).look()
    used = sum(one.device_hours for one in picture.outcomes)
    assert 0.30 - 0.12 - 0.011 <= used <= 0.30 - 0.12  # 12 runs confirm, of 0.01 each
    assert is_over(picture)


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
    picture = Reader(study).look()
    assert [[one.trial.number for one in picture.of(group)] for group in (0, 1)] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert all(("lora.rank" in one.trial.settings) == (one.trial.group == 1) for one in picture.outcomes)
    assert picture.confirmation is not None and [group.group for group in picture.confirmation.groups] == [0, 1]


def test_of_several_objectives_the_front_is_kept_and_confirmed(conf: Path, tmp_path: Path) -> None:
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
    picture = Reader(study).look()
    values = [one.values for one in picture.outcomes if one.values is not None]
    front = picture.best(0)
    for one in front:
        assert not any(
            v[0] >= one.values[0] and v[1] <= one.values[1] and tuple(v) != tuple(one.values) for v in values
        )
    assert picture.confirmation is not None
    confirmed = [one.trial for one in picture.confirmation.groups[0].candidates[1:]]
    assert set(confirmed) <= {one.trial for one in front}


def test_where_all_trials_diverge_the_default_alone_is_confirmed(conf: Path, tmp_path: Path) -> None:
    search_file(
        conf, "mine", space={"optim.lr": {"log": [1.0, 3.0]}}, budget={"trials": 3}, confirm={"top": 2, "seeds": 2}
    )
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, diverging)
    picture = Reader(study).look()
    assert [one.state for one in picture.outcomes] == ["done", "diverged", "diverged"]  # the default, 0.3, does not
    assert picture.confirmation is not None and len(picture.confirmation.groups[0].candidates) == 1
    assert is_over(picture)
    assert not picture.told(0, 1, picture.knew(0))  # the default lies outside the space: the sampler is not told


# ------------------------------------------------------------------------------------------------------------ damaged files


def test_the_next_launch_writes_the_settings_of_every_run_again_that_somebody_has_damaged(
    conf: Path, tmp_path: Path
) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 3}, confirm={"top": 1, "seeds": 1})
    _, study = begun(conf, tmp_path / "runs", "mine")
    search_on(study, peak)
    files = [study.store.run(run).config_file for run in runs_of(study.store, "mine")]
    before = [file.read_bytes() for file in files]
    files[0].write_text("")
    files[-1].unlink()
    Desk(study).restore_all(Reader(study).look())
    assert [file.read_bytes() for file in files] == before


def test_strangers_files_are_left_alone(conf: Path, tmp_path: Path) -> None:
    search_file(conf, "mine", space=LR, budget={"trials": 4})
    _, study = begun(conf, tmp_path / "runs", "mine")
    strange = [
        study.folder / name for name in ("trials/notes.txt", "trials/²", "decisions/x.json", "trials/1 (copy).json")
    ]
    for file in strange:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    search_on(study, peak, most=2)
    assert study.damage() == [] and len(study.trials()) >= 2
    assert all(file.read_text() == "{}" for file in strange)


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
        Desk(Study(study.store, "mine")).advance()
    assert sorted(study.store.root.rglob("*")) == before
