"""Searches: what one proposal costs, what rungs save, and workers that go on against a process for each trial."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from measure import Section, Timing, in_turns, interleaved, timed
from sweep import BECOME_PARENT, all_ended

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.studies import sampler
from mmprompt.studies.confirmation import confirmed
from mmprompt.studies.outcomes import Observation, StudyReader
from mmprompt.studies.schemas import Budget, Confirm, Definition, Named, Parameter, Seeds
from mmprompt.studies.study import Study

SIZES = (100, 1_000, 10_000)  # trials there are
ROUNDS = {100: 9, 1_000: 5, 10_000: 3}
RUNNING = 8  # of them
TRIALS, SHORT_TRIALS = 12, 8
TRAINED = [
    "optim.steps=90",
    "task.data.val=500",
    "task.data.test=500",
    "optim.validate_examples=250",
    "optim.validate_every=30",
]
SHORT = ["optim.steps=20", "optim.validate_every=20", "task.data.train=640", "task.data.val=200", "task.data.test=200"]
SEARCH = ["sampler=random", "cluster=local", "tracking=disabled"]
RUNGS = {"with rungs at 30 and 60 of 90 updates": "rungs=[30,60]", "each trial to its end": "rungs=[]"}


def definition(name: str) -> Definition:
    """Five searched keys, as `conf/search/prompt.yaml` has."""

    def number(key: str, kind: Any, low: float, high: float, log: bool) -> Parameter:
        return Parameter(key=key, kind=kind, low=low, high=high, log=log, step=None, choices=None, when={})

    space = [
        number("optim.lr", "float", 1e-3, 3.0, True),
        number("prompt.length", "int", 8, 128, True),
        number("prompt.dropout", "float", 0.0, 0.3, False),
        number("optim.weight_decay", "float", 1e-4, 0.1, True),
        Parameter(
            key="prompt.depth",
            kind="choice",
            low=None,
            high=None,
            log=False,
            step=None,
            choices=["both", "encoder"],
            when={},
        ),
    ]
    return Definition(
        version=1,
        name="bench",
        claim="",
        command="",
        objective={"score": "maximize"},
        fixed={},
        space=space,
        each=[],
        groups=[{}],
        sampler=Named(name=name, arguments={}),
        stop=Named(name="halving", arguments={"keep": 0.34}),
        rungs=[30, 60, 90, 120],
        steps=150,
        seeds=Seeds(first=1, most=1),
        seed_values=[1],
        budget=Budget(trials=1, device_hours=None, hours=None),
        confirm=Confirm(top=1, seeds=1),
        study_seed=0,
        tasks={},
        splits={},
        bases=[],
        warm=[],
        left_out=[],
        threads=1,
        training_version=2,
        header={},
        tracking={},
        commit=None,
        dirty=False,
        created="",
    )


def history(of: Definition, size: int) -> list[Observation]:
    """Random trials, two thirds of them stopped at some rung."""
    blind, random = of.model_copy(update={"sampler": Named(name="random", arguments={})}), np.random.default_rng(0)
    told = []
    for number in range(size):
        settings = sampler.ask(blind, 0, number, [], [])
        score, rungs = float(random.normal(60, 5)), of.rungs[: int(random.integers(1, 5))]
        is_done = number % 3 == 0
        curve = {rung: score * rung / 150 for rung in (of.rungs if is_done else rungs)}
        state: Any = "running" if number >= size - RUNNING else "done" if is_done else "stopped"
        values = [score] if state == "done" else None
        told.append(Observation(settings, state, values, curve if state != "running" else {}, number))
    return told


def asks() -> Iterator[Section]:
    for size in SIZES:
        of = definition("TPESampler")
        told = history(of, size)
        kept = sampler.as_optuna(of, 0, told)
        kept.sampler = optuna.samplers.TPESampler(seed=0)

        def of_optuna(kept: optuna.Study = kept, of: Definition = of) -> None:
            trial = kept.ask({one.key: sampler.distribution(one) for one in of.space})
            kept.tell(trial, state=optuna.trial.TrialState.FAIL)

        variants: dict[str, Callable[[], object]] = {
            "Optuna, a study kept in memory": of_optuna,
            "TPESampler, made anew from files that were read": partial(sampler.ask, of, 0, size, told, []),
            "random": partial(sampler.ask, definition("random"), 0, size, [], []),
            "sobol": partial(sampler.ask, definition("sobol"), 0, size, [], []),
        }
        setting = f"Five keys, two thirds of the trials stopped at one of four rungs, {RUNNING} at work"
        yield Section(f"One proposal after {size:,} trials", setting, interleaved(variants, ROUNDS[size]))


def search(folder: Path, *settings: str) -> Study:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(folder)}
    command = [sys.executable, "-m", "sweeps", "search", "learning_rate", *SEARCH, *settings]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == (1 if "--limit" in settings else 0), done.stdout + done.stderr  # 1: there is more to do
    all_ended()
    return Study(Store(folder), "learning_rate")


def trained(settings: Sequence[str]) -> tuple[str, Timing]:
    """What was confirmed, and what the search itself took: the confirmation is the same."""
    with tempfile.TemporaryDirectory() as folder:
        steps: list[int] = []

        def run() -> None:
            study = search(Path(folder), *settings)
            progress = StudyReader(study).read()
            assert progress.confirmation is not None
            best = confirmed(progress, progress.confirmation.groups[0])[1]
            interval = best.intervals["val"]
            said.append(f"trial {best.candidate.trial}, {interval.value:.1f} on validation of fresh seeds")
            for one in progress.outcomes:
                steps.append(max((max(run.scores, default=0) for run in one.runs.values()), default=0))

        said: list[str] = []
        timing = timed(run)
        return f"{sum(steps):,} updates in trials; confirmed {said[0]}", timing


def rungs() -> Section:
    common = [*TRAINED, f"budget.trials={TRIALS}", "confirm.top=1", "confirm.seeds=3"]
    variants = {}
    for name, words in RUNGS.items():
        stop = [] if words != "rungs=[]" else ["stop=null"]
        variants[name] = partial(trained, [*common, words, *stop])
    measured = in_turns({name: variants[name] for name in reversed(list(variants))}, 1)
    rows = {f"{name}: {some[0][0]}": [timing for _, timing in some] for name, some in measured.items()}
    setting = f"{TRIALS} random trials of the embedded default, the same in both, and 6 confirmation runs: {' '.join(TRAINED)}"
    return Section("A search with rungs and without", setting, rows)


def processes() -> Section:
    def by_workers() -> None:
        with tempfile.TemporaryDirectory() as folder:
            search(
                Path(folder),
                *SHORT,
                "rungs=[]",
                "stop=null",
                f"budget.trials={SHORT_TRIALS + 1}",
                "--limit",
                str(SHORT_TRIALS),
            )

    def by_processes() -> None:
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": folder}
            for number in range(SHORT_TRIALS):
                rate = f"optim.lr={0.01 * (number + 1)}"
                command = [
                    sys.executable,
                    "-m",
                    "mmprompt",
                    "task=micro_grounding",
                    "method=prompt",
                    "tracking=disabled",
                    rate,
                    *SHORT,
                ]
                subprocess.run([*command, "evaluation.splits=[val]"], env=environment, check=True, capture_output=True)
            all_ended()

    timings = interleaved(
        {"a process per trial, one after another": by_processes, "`python -m sweeps search`": by_workers},
        1,
        warm_up=False,
    )
    rows = {name: [Timing(t.wall / SHORT_TRIALS, t.cpu / SHORT_TRIALS) for t in some] for name, some in timings.items()}
    setting = f"{SHORT_TRIALS} trials of the embedded default, without confirmation, each with a fresh store: {' '.join(SHORT)}"
    return Section("A search of short trials", setting, rows, unit="trial")


def sections() -> Iterator[Section]:
    yield from asks()
    ctypes.CDLL(None).prctl(BECOME_PARENT, 1)  # so that workers' seconds are counted
    yield rungs()
    yield processes()
