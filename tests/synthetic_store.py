"""A store as a sweep leaves it, with numbers that were made up: real run folders, real W&B records, no training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from mmprompt.config import PRIMARY_METRIC, Tracking
from mmprompt.run import Attempt, RunFolder, Store, canonical, digest, evaluation_id, write_once
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


def train(store: Store, point: Mapping[str, Any], values: Mapping[str, float], tracking: Tracking) -> RunFolder:
    """Do what a job does for one run, with these `split/metric` values. Its settings are the point's values."""
    attempt, metric = claim(store, point), PRIMARY_METRIC[FAMILY[point["task"]]]
    folder = attempt.run
    made = {
        "attempt": attempt.number,
        **{key: JOB[key] for key in ("commit", "dirty", "code")},
        "device": "cpu: a core",
    }
    config = {**point, "run_id": folder.id, **made}
    record = Record(attempt.path, f"{folder.id}-{attempt.number}", str(point), "micro", config, tracking)
    for step in range(1, STEPS + 1):
        record.log(step, {"train/loss": 2.0 / step})
        if step % 10 == 0:
            record.log(step, {f"val/{metric}": 10.0 + step})
    evaluations = evaluations_of(folder.id)
    said = {"best_step": 20, "trainable_parameters": 12345, "seconds": 14.2}
    record.finish({**values, **said, **{f"{split}/evaluation": one for split, one in evaluations.items()}}, 0)
    result = {
        "run": folder.id,
        **made,
        **said,
        "metrics": dict(values),
        "steps": STEPS,
        "evaluations": evaluations,
        "wandb": record_file(attempt.path),
    }
    assert folder.publish(attempt, result)
    return folder


def claim(store: Store, point: Mapping[str, Any], job: Mapping[str, Any] = JOB) -> Attempt:
    folder = store.run(run_of(point))
    write_once(folder.config_file, canonical(point))
    attempt = folder.claim(folder.next_number, job)
    assert attempt is not None
    return attempt


def run_of(point: Mapping[str, Any]) -> str:
    return digest(canonical(point))


def evaluations_of(run: str) -> dict[str, str]:
    return {split: evaluation_id(run, {"split": split}) for split in ("val", "test")}


def manifest(
    name: str, axes: Mapping[str, Sequence[Any]], compare: str, paper: Mapping[str, str], baseline: Mapping[str, Any]
) -> dict[str, Any]:
    """The product of the axes, as `sweeps` freezes it at launch."""
    points = []
    for values in product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        points.append({"values": point, "run": run_of(point), "evaluations": evaluations_of(run_of(point))})
    tasks = {task: {"family": FAMILY[task], "metric": PRIMARY_METRIC[FAMILY[task]]} for task in axes["task"]}
    return {
        "sweep": name,
        "claim": "Prompts of 64 vectors are enough; more than 20 are needed.",
        "paper": dict(paper),
        "command": f"make sweep-{name}",
        "axes": {axis: list(values) for axis, values in axes.items()},
        "baseline": dict(baseline),
        "compare": compare,
        "tasks": tasks,
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
