"""Runs of a search that end at once: it writes what a worker would leave in the store, without training.

The search itself is the real one. Only a run's score is computed by a function of its settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmprompt.runs.config import RunConfig
from mmprompt.runs.failures import OLD_DIVERGED as DIVERGED
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.identity import evaluation_id, read_config
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.studies.study import Study
from sweeps.search.advance import Limits, StudyDriver, Work
from sweeps.search.definition import CheckedSearch, compose_search

ABOUT = {"commit": None, "dirty": False}
Score = Callable[[RunConfig], float | None]  # the score of a run; None if it diverges
JOB = {
    "host": "elsewhere",
    "pid": 1,
    "started": 0.0,
    "batch": "1",
    "scheduler": "local",
    "job": "1",
    "gpus": 0,
    "work": "train",
}
JOB |= {"scheduler_job": None, "log": None, "code": None, "commit": None, "dirty": False}


def search_file(conf: Path, name: str, **content: Any) -> None:
    (conf / "search").mkdir(parents=True, exist_ok=True)
    about = {"claim": "A claim", "command": f"make search-{name}", "objective": {"score": "maximize"}}
    about |= {"fixed": {"task": "micro_grounding", "method": "prompt"}}
    (conf / "search" / f"{name}.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(about | content)))


def begun(
    conf: Path, store: Path, name: str, *overrides: str, called: str | None = None
) -> tuple[CheckedSearch, Study]:
    """Begins a search as `search NAME` does."""
    one = compose_search(name, called or name, [f"paths.runs={store}", *overrides], conf, ABOUT)
    study = Study(one.store, one.definition.name)
    study.define(one.definition)
    return one, study


def execute(store: Store, work: Work, score: Score) -> None:
    """Writes what an attempt leaves that does this work."""
    folder = store.run(work.run)
    config = read_config(folder.config_file)
    attempt = folder.claim(folder.next_number, JOB)
    assert attempt is not None
    value, optim = score(config), config.optim
    last = work.until or optim.steps
    steps = range(optim.validate_every, last + 1, optim.validate_every)
    curve = [(step, 0.0 if value is None else value * step / optim.steps) for step in steps]
    if value is None:
        attempt.fail(from_text(f"{DIVERGED}the loss is nan"))
        return
    attempt.report({"step": last, "steps": optim.steps, "validation": curve, "seconds": 1.0, "time": 0.0, "loss": 0.0})
    if work.until is not None and work.until < optim.steps:
        attempt.fail(from_text(f"{INTERRUPTED}paused at step {last}"))
        return
    publish(folder, attempt.number, config, work, value)


def publish(folder: RunFolder, number: int, config: RunConfig, work: Work, value: float) -> None:
    metric = {"grounding": "acc@0.5", "entailment": "accuracy", "vqa": "vqa_accuracy", "caption": "cider"}[
        config.task.family
    ]
    splits = [one["split"] for one in work.evaluations]
    parameters = config.prompt.length if config.prompt is not None else 1
    result = {
        "run": folder.id,
        "attempt": number,
        "metrics": {f"{split}/{metric}": value - (split != config.task.validation) for split in splits},
        "evaluations": {split: evaluation_id(folder.id, {"split": split}) for split in splits},
        "evaluated": [],
        "trainable_parameters": parameters,
        "seconds": 1.0,
        "device_hours": 0.01,
        "steps": config.optim.steps,
        "device": "cpu: none",
        "wandb": None,
        "commit": None,
        "dirty": False,
        "best_step": config.optim.steps,
    }
    folder.result_file.write_text(json.dumps(result))


def search_on(study: Study, score: Score, limits: Limits | None = None, most: int = 10_000) -> StudyDriver:
    """Runs one worker until the study is over, or until it has advanced it `most` times."""
    driver = StudyDriver(study, limits or Limits())
    for _ in range(most):
        step = driver.advance()
        if step.is_over or not step.work:
            return driver
        execute(study.store, step.work[0], score)
    return driver


def contents(study: Study) -> dict[str, Any]:
    """The settings, state, values and rungs of each trial, by its number."""
    from mmprompt.studies.outcomes import StudyReader

    progress = StudyReader(study).read()
    return {
        str(one.trial.number): (one.trial.settings, one.state, one.values, sorted(one.rungs.items()))
        for one in progress.outcomes
    }
