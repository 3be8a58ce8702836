"""A store as a sweep leaves it, with numbers that were made up: real run folders, real W&B records, no training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from analysis.frame import ADDED
from mmprompt.config import PRIMARY_METRIC
from mmprompt.files import write_once
from mmprompt.identity import canonical, digest, evaluation_id
from mmprompt.place import Tracking
from mmprompt.run import Attempt, RunFolder, Store
from mmprompt.tracking import Record, record_file

OFFLINE = Tracking(mode="offline", project="mmprompt", entity=None)
DISABLED = Tracking(mode="disabled", project="mmprompt", entity=None)
STEPS = 30
LENGTHS = [10, 16, 30, 64, 100, 120]
FAMILY = {
    "micro_grounding": "grounding",
    "micro_entailment": "entailment",
    "micro_vqa": "vqa",
    "micro_caption": "caption",
}
JOB: dict[str, Any] = {"batch": "b", "code": "c0de", "commit": "0123456789abcdef", "dirty": False}
JOB |= {"scheduler": "local", "host": "elsewhere", "pid": 1, "started": 0.0}


FACTS: dict[str, Any] = {"trainable_parameters": 12345, "seconds": 14.2}
ASKED = ("attack.", "evaluation.")  # axes that make evaluations, not runs


def train(
    store: Store,
    point: Mapping[str, Any],
    values: Mapping[str, float],
    tracking: Tracking,
    facts: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Do what a job does for one run, with these `split/metric` values. Its settings are the point's values.

    `facts`: what it says of itself, by default what runs have said from the beginning.
    """
    attempt, metric = claim(store, point), PRIMARY_METRIC[FAMILY[point["task"]]]
    folder = attempt.run
    config = {**settings_of(point), "run_id": folder.id, "work": "train", **made_by(attempt)}
    record = Record(attempt.path, f"{folder.id}-{attempt.number}", str(point), "micro", config, tracking)
    for step in range(1, STEPS + 1):
        record.log(step, {"train/loss": 2.0 / step})
        if step % 10 == 0:
            record.log(step, {f"val/{metric}": 10.0 + step, "val/while_training": while_training(values, metric, step)})
    evaluations = {
        split: one
        for split, one in evaluations_of(settings_of(point)).items()
        if any(key.startswith(f"{split}/") for key in values)
    }
    said = {"best_step": 20} | dict(FACTS if facts is None else facts)
    record.finish({**values, **said, **{f"{split}/evaluation": one for split, one in evaluations.items()}}, 0)
    result = {
        "run": folder.id,
        **made_by(attempt),
        **said,
        "metrics": dict(values),
        "steps": STEPS,
        "evaluations": evaluations,
        "wandb": record_file(attempt.path),
    }
    assert folder.publish(attempt, result)
    return folder


def while_training(values: Mapping[str, float], metric: str, step: int) -> float:
    """Of a score that rises to the one on validation."""
    return values[f"val/{metric}"] * (1 - 0.5 ** (step / 10))


def evaluate(store: Store, points: Sequence[Mapping[str, Any]], values: Sequence[float], tracking: Tracking) -> Attempt:
    """Do what a job does for these points of one run that is done, all of one split: these are their values."""
    attempt = claim(store, points[0], JOB | {"work": "evaluate"})
    folder = attempt.run
    config = {**settings_of(points[0]), "run_id": folder.id, "work": "evaluate", **made_by(attempt)}
    record = Record(attempt.path, f"{folder.id}-{attempt.number}", "name", "micro", config, tracking)
    made = {}
    for point, value in zip(points, values, strict=True):
        ((split, evaluation),) = evaluations_of(point).items()
        made[evaluation] = value
        metric = PRIMARY_METRIC[FAMILY[point["task"]]]
        content = {
            "evaluation": evaluation,
            "run": folder.id,
            **made_by(attempt),
            "settings": {"split": split},
            "n": 500,
        }
        content |= {"metrics": {metric: value}, "seconds": 1.0, "wandb": record_file(attempt.path)}
        write_once(folder.path / "evaluations" / f"{evaluation}.json", json.dumps(content))
    record.finish({f"evaluation/{one}": value for one, value in made.items()}, 0)
    attempt.end({"evaluations": list(made), "seconds": 1.0, "wandb": record_file(attempt.path)})
    return attempt


def made_by(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        **{key: JOB[key] for key in ("commit", "dirty", "code")},
        "device": "cpu: a core",
    }


def claim(store: Store, point: Mapping[str, Any], job: Mapping[str, Any] = JOB) -> Attempt:
    folder = store.run(run_of(point))
    write_once(folder.config_file, canonical(settings_of(point)))
    attempt = folder.claim(folder.next_number, job)
    assert attempt is not None
    return attempt


def settings_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the run: of the evaluations that are made of it it knows nothing."""
    return {key: value for key, value in point.items() if not key.startswith(ASKED)}


def run_of(point: Mapping[str, Any]) -> str:
    return digest(canonical(settings_of(point)))


def evaluations_of(point: Mapping[str, Any]) -> dict[str, str]:
    """By split; under an attack only those of test."""
    run, epsilon = run_of(point), point.get("attack.epsilon")
    if epsilon is None:
        return {split: evaluation_id(run, {"split": split}) for split in ("val", "test")}
    attack = {"attack": {"kind": "fgsm", "input": "embeddings", "epsilon": epsilon}} if epsilon else {}
    return {"test": evaluation_id(run, {"split": "test", "examples": 500} | attack)}


def manifest(
    name: str,
    axes: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
    compare: str | list[str],
    paper: Mapping[str, str],
    baseline: Mapping[str, Any],
    **shown: Any,
) -> dict[str, Any]:
    """The product of the axes, or the union of several, as `sweeps` freezes it at launch; `shown`: what becomes of it."""
    blocks = [axes] if isinstance(axes, Mapping) else list(axes)
    points = [
        {"values": point, "run": run_of(point), "evaluations": evaluations_of(point)}
        for block in blocks
        for values in product(*block.values())
        for point in [dict(zip(block, values, strict=True))]
    ]
    known: dict[str, list[Any]] = {}
    for block in blocks:
        for axis, values in block.items():
            known[axis] = known.get(axis, []) + [value for value in values if value not in known.get(axis, [])]
    tasks = {task: {"family": FAMILY[task], "metric": PRIMARY_METRIC[FAMILY[task]]} for task in known["task"]}
    return {
        "sweep": name,
        "claim": "Prompts of 64 vectors are enough; more than 20 are needed.",
        "paper": dict(paper),
        "command": f"make sweep-{name}",
        "axes": known,
        "baseline": dict(baseline),
        "compare": compare,
        **ADDED,
        **shown,
        "tasks": {task: about | {"validation": "val"} for task, about in tasks.items()},
        "header": {"model": "micro", "backbone.mode": "eval", "method": "prompt", "optim.steps": STEPS},
        "tracking": {"project": OFFLINE.project, "entity": OFFLINE.entity},
        "points": points,
        "commit": JOB["commit"],
        "dirty": JOB["dirty"],
        "launched": "2026-11-24T00:00:00+00:00",
    }


def launch(store: Store, about: Mapping[str, Any]) -> None:
    file = store.manifest(about["sweep"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(about))


MIDDLE = {"micro_grounding": 78.0, "micro_entailment": 66.0, "micro_vqa": 71.0, "micro_caption": 132.0}


def scores(point: Mapping[str, Any], noise: np.random.Generator) -> dict[str, float]:
    """Values of one point in the size and spread that the small world has."""
    metric = PRIMARY_METRIC[FAMILY[point["task"]]]
    middle = MIDDLE[point["task"]] + 4.0 * (1 - 10 / point.get("prompt.length", 64))
    middle -= 3.0 * (point.get("prompt.depth") == "decoder")
    return {f"{split}/{metric}": float(np.round(middle + noise.normal(0, 1.1), 2)) for split in ("val", "test")}


def run_all(store: Store, points: Iterable[Mapping[str, Any]], tracking: Tracking, seed: int) -> None:
    noise = np.random.default_rng(seed)
    for point in points:
        train(store, point["values"], scores(point["values"], noise), tracking)
