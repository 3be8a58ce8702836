"""A store as a sweep leaves it, with numbers that were made up: real run folders, real W&B records, no training."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from analysis.records.manifest import DEFAULTS
from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.files import write_once
from mmprompt.runs.identity import canonical, digest, evaluation_id
from mmprompt.runs.records import as_json
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_writer import RecordWriter
from mmprompt.settings.deployment import Tracking

OFFLINE = Tracking(mode="offline", project="mmprompt", entity=None)
DISABLED = Tracking(mode="disabled", project="mmprompt", entity=None)
STEPS = 30
EXAMPLES = 500  # of each split
ALIKE = 0.65  # correlation of two seeds over the examples: some are hard for every run
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
    config = {**config_of(point), "run_id": folder.id, "work": "train", **made_by(attempt)}
    record = RecordWriter(attempt.path, f"{folder.id}-{attempt.number}", str(point), "micro", config, tracking)
    for step in range(1, STEPS + 1):
        record.log(step, {"train/loss": 2.0 / step})
        if step % 10 == 0:
            record.log(step, {f"val/{metric}": 10.0 + step, "val/while_training": while_training(values, metric, step)})
    asked = {
        split: settings
        for split, settings in settings_by_split(settings_of(point)).items()
        if any(key.startswith(f"{split}/") for key in values)
    }
    evaluations = {split: evaluation_id(folder.id, settings) for split, settings in asked.items()}
    said = {"best_step": 20} | dict(FACTS if facts is None else facts)
    record.finish({**values, **said, **{f"{split}/evaluation": one for split, one in evaluations.items()}}, 0)
    for split, settings in asked.items():
        put(attempt, attempt.evaluations, point["task"], settings, values[f"{split}/{metric}"])
    result = {
        "run": folder.id,
        **made_by(attempt),
        **said,
        "metrics": dict(values),
        "steps": STEPS,
        "evaluations": evaluations,
        "evaluated": list(evaluations.values()),
        "wandb": attempt.wandb,
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
    config = {**config_of(points[0]), "run_id": folder.id, "work": "evaluate", **made_by(attempt)}
    record = RecordWriter(attempt.path, f"{folder.id}-{attempt.number}", "name", "micro", config, tracking)
    made = {}
    for point, value in zip(points, values, strict=True):
        ((_, settings),) = settings_by_split(point).items()
        made[evaluation_id(folder.id, settings)] = value
        put(attempt, folder.evaluations, point["task"], settings, value)
    record.finish({f"evaluation/{one}": value for one, value in made.items()}, 0)
    attempt.end({"evaluations": list(made), "seconds": 1.0, "wandb": attempt.wandb})
    return attempt


def put(attempt: Attempt, folder: Path, task: str, settings: Mapping[str, Any], value: float) -> None:
    """The files of an evaluation of this value, as `mmprompt.execution.evaluations` leaves them."""
    metric, one = PRIMARY_METRIC[FAMILY[task]], evaluation_id(attempt.run.id, settings)
    buffer = io.BytesIO()
    np.save(buffer, example_scores(metric, value, f"{task}/{settings['split']}", one))
    write_once(folder / f"{one}.npy", buffer.getvalue())
    content = {"evaluation": one, "run": attempt.run.id, **made_by(attempt), "settings": dict(settings), "n": EXAMPLES}
    content |= {"metrics": {metric: value}, "seconds": 1.0, "wandb": attempt.wandb}
    write_once(folder / f"{one}.json", as_json(content))


def example_scores(metric: str, value: float, split: str, evaluation: str) -> np.ndarray:
    """Scores of single examples whose mean is this value; which of them are hard is the split's, the rest is the run's."""
    highest, total = 1000.0 if metric == "cider" else 100.0, EXAMPLES * value
    if not 0 <= value <= highest:
        return np.full(EXAMPLES, value, dtype=np.float32)
    ease = ALIKE**0.5 * standard(split) + (1 - ALIKE) ** 0.5 * standard(evaluation)
    if metric == "cider":
        found = value * (1 + 0.6 * np.tanh(ease)) if value < 600 else np.full(EXAMPLES, value)
        return (found * (value / found.mean() if value else 1.0)).astype(np.float32)
    found = np.zeros(EXAMPLES)
    easiest = np.argsort(-ease)
    whole = min(EXAMPLES, int(total // highest))
    found[easiest[:whole]] = highest
    if whole < EXAMPLES:  # one example is right in part, so that the mean is any number
        found[easiest[whole]] = total - whole * highest
    return found.astype(np.float32)


@cache
def standard(name: str) -> np.ndarray:
    """Normal numbers, a number per example, the same for the same name."""
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=EXAMPLES)


def examples_of(store: Store, points: Iterable[Mapping[str, Any]], split: str = "test") -> np.ndarray:
    """Of these runs, from their files alone: a row per point, a column per example."""
    files = [store.run(run_of(point)).evaluation_file(evaluations_of(point)[split]) for point in points]
    return np.array([np.load(file.with_suffix(".npy")) for file in files], dtype=np.float64)


def made_by(attempt: Attempt) -> dict[str, Any]:
    return {
        "attempt": attempt.number,
        **{key: JOB[key] for key in ("commit", "dirty", "code")},
        "device": "cpu: a core",
    }


def claim(store: Store, point: Mapping[str, Any], job: Mapping[str, Any] = JOB) -> Attempt:
    folder = store.run(run_of(point))
    write_once(folder.config_file, canonical(config_of(point)))
    attempt = folder.claim(folder.next_number, job)
    assert attempt is not None
    return attempt


def settings_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the run: of the evaluations that are made of it it knows nothing."""
    return {key: value for key, value in point.items() if not key.startswith(ASKED)}


def config_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """What a run freezes, as far as it is looked at: the point's settings and some of those that are the same for all."""
    config: dict[str, Any] = {
        "training_version": 2,
        "seed": 1,
        "model": {"name": "micro"},
        "backbone": {"mode": "eval", "checksum": "0"},
        "task": {"name": point["task"], "family": FAMILY[point["task"]]},
        "method": "prompt",
        "optim": {"lr": 0.3, "steps": STEPS},
    }
    for key, value in settings_of(point).items():
        if key != "task":
            *path, last = key.split(".")
            section = config
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
    return config


def run_of(point: Mapping[str, Any]) -> str:
    return digest(canonical(config_of(point)))


def settings_by_split(point: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of its evaluations; under an attack only those of test."""
    epsilon = point.get("attack.epsilon")
    if epsilon is None:
        return {split: {"split": split} for split in ("val", "test")}
    attack = {"attack": {"kind": "fgsm", "input": "embeddings", "epsilon": epsilon}} if epsilon else {}
    return {"test": {"split": "test", "examples": EXAMPLES} | attack}


def evaluations_of(point: Mapping[str, Any]) -> dict[str, str]:
    """By split."""
    run = run_of(point)
    return {split: evaluation_id(run, settings) for split, settings in settings_by_split(point).items()}


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
        **DEFAULTS,
        **shown,
        "tasks": {task: about | {"validation": "val"} for task, about in tasks.items()},
        "header": header([point["values"] for point in points]),
        "tracking": {"project": OFFLINE.project, "entity": OFFLINE.entity},
        "points": points,
        "commit": JOB["commit"],
        "dirty": JOB["dirty"],
        "launched": "2026-11-24T00:00:00+00:00",
    }


def header(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all runs have in common."""
    configs = [config_of(point) for point in points]
    said = [
        {
            "model": config["model"]["name"],
            "backbone.mode": config["backbone"]["mode"],
            "method": config["method"],
            "optim.steps": config["optim"]["steps"],
        }
        for config in configs
    ]
    return {key: value for key, value in said[0].items() if all(one[key] == value for one in said)}


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
