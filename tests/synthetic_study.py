"""Studies as a search leaves them, with numbers that were made up: the project's own files and run folders, no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic_store import DISABLED, FACTS, claim, run_of, train

from mmprompt.runs.failures import OLD_DIVERGED as DIVERGED
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import write_over
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Tracking
from mmprompt.studies.outcomes import StudyReader
from mmprompt.studies.schemas import (
    SCORE,
    VERSION,
    Candidate,
    Confirmation,
    Decision,
    Definition,
    Group,
    Knew,
    Parameter,
    Settings,
    Trial,
    Warm,
)
from mmprompt.studies.study import Study
from sweeps.search.manifest import manifest

TASK, METRIC = "micro_grounding", "acc@0.5"
FRESH = [101, 102, 103, 104, 105]
RATE: dict[str, Any] = {"key": "optim.lr", "kind": "float", "low": 1e-3, "high": 3.0, "log": True}
LENGTH: dict[str, Any] = {"key": "prompt.length", "kind": "int", "low": 8, "high": 128, "log": True}
MADE_BY: dict[str, Any] = {"key": "prompt.reparameterization", "kind": "choice", "choices": ["none", "mlp"]}
WIDE: dict[str, Any] = {"key": "prompt.mlp_dim", "kind": "int", "low": 32, "high": 256}
WIDE["when"] = {"prompt.reparameterization": ["mlp"]}
UNSET = {"low": None, "high": None, "log": False, "step": None, "choices": None, "when": {}}


def parameter(**about: Any) -> Parameter:
    return Parameter(**(UNSET | about))


def define(store: Store, space: Sequence[Mapping[str, Any]], name: str = "made", **changes: Any) -> Study:
    """A study of these parameters, begun, without trials."""
    about: dict[str, Any] = {
        "version": VERSION,
        "name": name,
        "claim": "The default is as good as any",
        "command": f"make search-{name}",
        "objective": {SCORE: "maximize"},
        "fixed": {"task": TASK},
        "each": [],
        "groups": [{}],
        "sampler": {"name": "TPESampler", "arguments": {"n_startup_trials": 8}},
        "stop": None,
        "rungs": [],
        "steps": 150,
        "seeds": {"first": 1, "most": 1},
        "budget": {"trials": 12, "device_hours": None, "hours": None},
        "confirm": {"top": 3, "seeds": len(FRESH)},
        "study_seed": 0,
        "tasks": {TASK: {"family": "grounding", "metric": METRIC, "validation": "val"}},
        "splits": {TASK: ["val", "test"]},
        "bases": [{"choices": {}, "settings": {}, "checksum": "0", "fingerprint": None}],
        "warm": [],
        "left_out": [],
        "threads": 1,
        "training_version": 2,
        "header": {"model": "micro", "backbone.mode": "eval", "optim.steps": 150},
        "tracking": {"project": "mmprompt", "entity": None},
        "commit": "0123456789abcdef",
        "dirty": False,
        "created": "2026-11-27T00:00:00+00:00",
    } | changes
    about.setdefault("seed_values", list(range(1, about["seeds"]["most"] + 1)))
    study = Study(store, name)
    study.define(Definition(**about, space=[parameter(**one) for one in space]))
    return study


def point(study: Study, settings: Settings, group: int, seed: int) -> dict[str, Any]:
    """What makes a run."""
    definition = study.definition
    steps = {"optim.steps": definition.steps}
    return {**definition.fixed, **steps, **definition.groups[group], **settings, "seed": seed}


def add(
    study: Study,
    settings: Settings,
    scores: Mapping[int, float] | None = None,
    *,
    group: int = 0,
    rungs: Mapping[int, float] | None = None,
    diverges: bool = False,
    facts: Mapping[str, Any] | None = None,
    tracking: Tracking = DISABLED,
) -> Trial:
    """A trial with these scores on validation by seed; with none it is stopped at the last of the rungs, diverged, or open."""
    definition = study.definition
    there = [one for one in study.trials().values() if one.group == group]
    runs = {str(seed): run_of(point(study, settings, group, seed)) for seed in definition.seed_values}
    trial = Trial(
        version=VERSION,
        number=len(there) * len(definition.groups) + group,
        group=group,
        origin="sampler" if there else "default",
        settings=settings,
        base=0,
        runs=runs,
        knew=Knew.nothing(),
    )
    assert study.add(trial)
    for seed in definition.seed_values:
        validation = [[step, score] for step, score in (rungs or {}).items()]
        about = point(study, settings, group, seed)
        if seed in (scores or {}):
            folder = run(study, about, {"val": (scores or {})[seed]}, facts, tracking)
            folder.published.report({"validation": validation, "step": 150, "steps": 150, "seconds": 1.0})
        elif (rungs or diverges) and seed <= definition.seeds.first:
            attempt = claim(study.store, about)
            attempt.report({"validation": validation, "step": max(rungs or {0: 0}), "steps": 150, "seconds": 1.0})
            attempt.fail(from_text(f"{DIVERGED}the loss is nan at step 3" if diverges else "interrupted: paused"))
    for step in list(rungs or {})[: None if scores else -1]:
        study.decide(Decision(version=VERSION, trial=trial.number, step=step, goes_on=True, score=0.0, why="1 of 3"))
    if len(scores or {}) > definition.seeds.first:
        study.decide(Decision(version=VERSION, trial=trial.number, step=None, goes_on=True, score=0.0, why="1 of 3"))
    return trial


def run(
    study: Study,
    about: Mapping[str, Any],
    scores: Mapping[str, float],
    facts: Mapping[str, Any] | None = None,
    tracking: Tracking = DISABLED,
) -> RunFolder:
    """A done run with these scores by split."""
    values = {f"{split}/{METRIC}": score for split, score in scores.items()}
    return train(study.store, about, values, tracking, FACTS | {"device_hours": 0.01} | (facts or {}))


def confirm(
    study: Study,
    groups: Sequence[Sequence[tuple[Trial, Sequence[float] | None, Sequence[Mapping[str, float]]]]],
    tracking: Tracking = DISABLED,
) -> None:
    """Per group the default and the candidates: a trial, its values in the search, and by fresh seed its scores by split.

    A run without scores has diverged; one that is left out at the end of the list is still to come.
    """
    found = []
    for group, candidates in enumerate(groups):
        rows = []
        for trial, values, scores in candidates:
            points = [point(study, trial.settings, group, seed) for seed in FRESH]
            for about, by_split in zip(points, scores, strict=False):
                if by_split:
                    run(study, about, by_split, tracking=tracking)
                else:
                    claim(study.store, about).fail(from_text(f"{DIVERGED}the loss is nan at step 3"))
            origin = "default" if trial.origin == "default" else "best"
            runs = {str(seed): run_of(about) for seed, about in zip(FRESH, points, strict=True)}
            rows.append(
                Candidate(
                    trial=trial.number,
                    origin=origin,
                    settings=trial.settings,
                    base=0,
                    found=None if values is None else list(values),
                    runs=runs,
                )
            )
        found.append(Group(group=group, candidates=rows))
    assert study.confirm(Confirmation(version=VERSION, seeds=FRESH, groups=found))


def record(study: Study) -> None:
    """The manifest, as the search writes it."""
    write_over(study.store.manifest(study.manifest), manifest(study, StudyReader(study).read()))


def fresh(
    noise: np.random.Generator, middle: float, sd: float = 1.5, count: int = len(FRESH)
) -> list[dict[str, float]]:
    """Scores on fresh seeds; validation and test of one run are alike."""
    runs = middle + noise.normal(0, sd, count)
    return [{"val": round(one, 2), "test": round(one + noise.normal(0, 0.5), 2)} for one in runs.tolist()]


def warm(settings: Settings, values: Sequence[float], group: int = 0, seeds: int = 3) -> Warm:
    runs = {str(seed): f"{seed:016x}" for seed in range(1, seeds + 1)}
    return Warm(group=group, settings=settings, runs=runs, values=list(values))


def several_parameters(root: Path, over: bool = True) -> Study:
    """Four parameters, one under a condition, rungs, warm trials, racing seeds, some diverged; without `over` half of it."""
    noise = np.random.default_rng(1)
    known = [
        warm({"optim.lr": 0.3, "prompt.length": length, "prompt.reparameterization": "none"}, [60.0 + length / 20])
        for length in (10, 30, 100)
    ]
    study = define(
        Store(root),
        [RATE, LENGTH, MADE_BY, WIDE],
        rungs=[50, 100],
        stop={"name": "halving", "arguments": {"keep": 0.34}},
        seeds={"first": 1, "most": 3},
        budget={"trials": 40, "device_hours": None, "hours": None},
        warm=known,
        left_out=["2 runs: optim.lr=5 is outside of 0.001 to 3"],
    )
    trials, count = [], 40 if over else 14
    default = {"optim.lr": 0.3, "prompt.length": 64, "prompt.reparameterization": "none"}
    for index in range(count):
        rate, length = float(f"{10 ** noise.uniform(-3, 0.477):.3g}"), int(2 ** noise.uniform(3, 7))
        settings: Settings = {
            "optim.lr": rate,
            "prompt.length": length,
            "prompt.reparameterization": ["none", "mlp"][index % 2],
        }
        if index % 2:
            settings["prompt.mlp_dim"] = int(noise.integers(32, 257))
        settings = default if index == 0 else settings
        rate = settings["optim.lr"]
        score = (
            66
            - 9 * (np.log10(rate) + 0.6) ** 2
            + 2 * np.log2(settings["prompt.length"] / 64)
            - 4 * (index % 2)
            + noise.normal(0, 1.5)
        )
        at = {50: round(0.8 * score, 1), 100: round(0.93 * score, 1)}
        if rate > 2 and index:
            trials.append(add(study, settings, diverges=True))
        elif score < 56 and index:
            trials.append(add(study, settings, rungs={50: at[50]} if score < 50 else at))
        else:
            seeds = (1, 2, 3) if score > 65 else (1,)
            trials.append(
                add(study, settings, {seed: round(score + noise.normal(0, 1.0), 2) for seed in seeds}, rungs=at)
            )
    if over:
        progress = StudyReader(study).read()
        best = [one for one in progress.best(0) if one.settings != default and one.trial is not None][:3]
        rows = [(trials[0], list(progress.outcomes[0].values or []), fresh(noise, 66.0))]
        rows += [(trials[one.trial or 0], list(one.values), fresh(noise, 67.0)) for one in best]
        confirm(study, [rows])
    record(study)
    return study


def methods(root: Path) -> Study:
    """A group for each of five methods, the space of one of them its own."""
    noise = np.random.default_rng(2)
    names = ["prompt", "finetune", "bitfit", "adapter", "lora"]
    dim: dict[str, Any] = {
        "key": "adapter.dim",
        "kind": "int",
        "low": 8,
        "high": 128,
        "log": True,
        "when": {"method": ["adapter"]},
    }
    groups = [{"method": name} for name in names]
    study = define(Store(root), [RATE, dim], name="fair", each=["method"], groups=groups)
    middle = dict(zip(names, (66.0, 88.0, 74.0, 70.0, 85.0), strict=True))
    for index in range(12):
        for group, name in enumerate(names):
            rate = 0.03 if index == 0 else float(f"{10 ** noise.uniform(-3, 0.477):.3g}")
            settings: Settings = {"optim.lr": rate} | (
                {"adapter.dim": int(2 ** noise.uniform(3, 7))} if name == "adapter" else {}
            )
            score = middle[name] - 7 * (np.log10(rate) + 1.5) ** 2 + noise.normal(0, 1.5)
            if rate > {"finetune": 0.5}.get(name, 2.0):
                add(study, settings, diverges=True, group=group)
            else:
                add(study, settings, {1: round(float(score), 2)}, group=group)
    progress = StudyReader(study).read()
    rows = []
    for group, name in enumerate(names):
        there = progress.of(group)
        best = [one for one in progress.best(group) if one.trial != there[0].trial.number][:3]
        known = {one.trial.number: one.trial for one in there}
        part = [(there[0].trial, list(there[0].values or []), fresh(noise, middle[name] - 1))]
        rows.append(part + [(known[one.trial or 0], list(one.values), fresh(noise, middle[name])) for one in best])
    confirm(study, rows)
    record(study)
    return study


def two_objectives(root: Path) -> Study:
    """The score against trainable parameters."""
    noise = np.random.default_rng(3)
    objective = {SCORE: "maximize", "trainable_parameters": "minimize"}
    study = define(
        Store(root),
        [RATE, LENGTH],
        name="small",
        objective=objective,
        warm=[warm({"optim.lr": 0.3, "prompt.length": 10}, [61.0, 9600.0])],
    )
    trials = []
    for index in range(20):
        rate, length = (
            (0.3, 64) if index == 0 else (float(f"{10 ** noise.uniform(-2, 0.3):.3g}"), int(2 ** noise.uniform(3, 7)))
        )
        score = 58 + 2.2 * np.log2(length) - 5 * (np.log10(rate) + 0.6) ** 2 + noise.normal(0, 1.0)
        facts = {"trainable_parameters": 960 * length}
        settings = {"optim.lr": rate, "prompt.length": length}
        trials.append(add(study, settings, {1: round(float(score), 2)}, facts=facts))
    progress = StudyReader(study).read()
    best = [one for one in progress.best(0) if one.trial][:3]
    rows = [(trials[0], list(progress.outcomes[0].values or []), fresh(noise, 70.0))]
    confirm(study, [[*rows, *((trials[one.trial or 0], list(one.values), fresh(noise, 69.0)) for one in best)]])
    record(study)
    return study


def odd_values(root: Path) -> Study:
    """Eight parameters of all kinds with long names, lists and null among their values, a narrow range, three objectives."""

    def choice(key: str, *values: Any) -> dict[str, Any]:
        return {"key": key, "kind": "choice", "choices": list(values)}

    def number(key: str, low: float, high: float, log: bool = False) -> dict[str, Any]:
        return {"key": key, "kind": "float", "low": low, "high": high, "log": log}

    noise = np.random.default_rng(4)
    space = [
        RATE,
        choice("prompt.layers", None, [0], [0, 1], [0, 1, 2]),
        choice("optim.smoothing_over", "vocabulary", "allowed", "neither of the two"),
        choice("finetune.freeze_embedding", True, False),
        number("optim.weight_decay", 0.0, 0.25),
        number("optim.warmup_ratio", 0.02, 0.06, log=True),
        number("optim.eps", 1e-10, 1e-6, log=True),
        {"key": "lora.rank", "kind": "int", "low": 4, "high": 64, "step": 4},
    ]
    objective = {"device_hours": "minimize", SCORE: "maximize", "peak_memory_mb": "minimize"}
    study = define(Store(root), space, name="odd", objective=objective)
    trials = []
    for index in range(30):
        settings: Settings = {one["key"]: one["choices"][index % len(one["choices"])] for one in space[1:4]}
        settings |= {one["key"]: float(f"{noise.uniform(one['low'], one['high']):.3g}") for one in space[4:6]}
        settings |= {
            "optim.eps": float(f"{10 ** noise.uniform(-10, -6):.3g}"),
            "lora.rank": int(4 * noise.integers(1, 17)),
        }
        settings["optim.lr"] = (
            5.0 if index == 0 else float(f"{10 ** noise.uniform(-3, 0.477):.3g}")
        )  # outside of the range
        facts = {
            "device_hours": round(0.01 + 0.02 * noise.random(), 4),
            "peak_memory_mb": 800 + 10 * settings["lora.rank"],
        }
        scores = {1: round(60 + noise.normal(), 2)}
        trials.append(add(study, settings, None if index % 7 == 6 else scores, facts=facts, diverges=index % 7 == 6))
    confirm(
        study,
        [[(trials[0], [0.02, 60.0, 900.0], fresh(noise, 60.0)), (trials[1], [0.01, 60.0, 900.0], fresh(noise, 60.0))]],
    )
    record(study)
    return study
