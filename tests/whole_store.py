"""A store that looks as if sweeps and searches of conf/ had run: real manifests, settings, W&B records and files of evaluations,
but invented scores. Nothing is trained."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import instant
import numpy as np
from synthetic_store import JOB, OFFLINE

from mmprompt.families.registry import FAMILIES, PRIMARY_METRIC
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import write_once
from mmprompt.runs.identity import evaluation_id, run_id
from mmprompt.runs.records import as_json
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_writer import RecordWriter
from sweeps.grid.manifest import expand, write

SWEEPS = ("main", "methods", "depth", "reparameterization", "length", "robustness", "convergence")
EXAMPLES = 200  # of each split
FEWER = ("seed=11,12", f"task.data.val={EXAMPLES}", f"task.data.test={EXAMPLES}")
LEVEL = {"grounding": 60.0, "entailment": 80.0, "vqa": 50.0, "caption": 300.0}
OF_METHOD = {"finetune": 1.25, "adapter": 1.1, "lora": 1.15, "bitfit": 1.05, "prompt": 1.0}
ORIGIN = {key: JOB[key] for key in ("commit", "dirty", "code")} | {"device": "cpu: a core"}


def filled(root: Path, names: tuple[str, ...] = SWEEPS, skipped: int = 0) -> Store:
    """A store with these sweeps; the last `skipped` runs of the first sweep have not run."""
    store = Store(root)
    for name in names:
        more = [f"evaluation.examples={EXAMPLES}"] if name == "robustness" else []
        expanded = expand(name, [f"paths.runs={root}", *FEWER, *more], ROOT / "conf")
        write(expanded, {"commit": JOB["commit"], "dirty": False})
        runs = list(expanded.configs)
        for run in runs[: len(runs) - skipped]:
            train(store, expanded.configs[run], expanded.evaluations[run])
        skipped = 0
    return store


def searched(root: Path, name: str = "learning_rate") -> Store:
    """A store with a search that has ended."""
    _, study = instant.begun(ROOT / "conf", root, name)

    def score(config: RunConfig) -> float:
        return 60.0 - 5.0 * abs(np.log10(config.optim.lr / 0.1)) + noise(f"{config.seed}", 1.0)

    instant.search_on(study, score)
    return Store(root)


def noise(name: str, scale: float) -> float:
    return float(np.random.default_rng(zlib.crc32(name.encode())).normal(0, scale))


def train(store: Store, config: RunConfig, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes what an attempt leaves that trains and evaluates a run; or, for a done run, what a later attempt adds."""
    folder = store.run(run_id(config))
    if folder.result() is None:
        folder.create(config)
        attempt = folder.claim(1, JOB)
        assert attempt is not None
        clean = {evaluation_id(folder.id, settings): settings for settings in ({"split": "val"}, {"split": "test"})}
        record = recorded(attempt, config, {**clean, **wanted})
        said = {one: values(config, settings, one) for one, settings in {**clean, **wanted}.items()}
        metrics = {
            f"{settings['split']}/{key}": value for one, settings in clean.items() for key, value in said[one].items()
        }
        facts = {
            "best_step": config.optim.steps,
            "trainable_parameters": 61440,
            "seconds": 12.5,
            "threads": 1,
            "epochs": 1.6,
        }
        facts |= {"epochs_to_99": 1.2, "device_hours": 0.004, "device_hours_spent": 0.004, "peak_memory_mb": 700.0}
        evaluations = {settings["split"]: one for one, settings in clean.items()}
        named = {f"{split}/evaluation": one for split, one in evaluations.items()}
        metric = PRIMARY_METRIC[config.task.family]
        rest = {f"evaluation/{one}": said[one][metric] for one in wanted if one not in clean}
        record.finish({**metrics, **facts, **named, **rest}, 0)
        result = {"run": folder.id, "attempt": 1, **ORIGIN, **facts, "metrics": metrics, "steps": config.optim.steps}
        result |= {"evaluations": evaluations, "evaluated": [*clean, *wanted], "wandb": attempt.wandb}
        assert folder.publish(attempt, result)
    else:
        attempt = folder.published
        missing = folder.missing(list(wanted), folder.result())
        for one in missing:  # written as a later attempt would
            put(attempt, folder.evaluations, config, wanted[one], one)


def recorded(attempt: Attempt, config: RunConfig, wanted: Mapping[str, Mapping[str, Any]]) -> RecordWriter:
    """Writes the files of these evaluations, and the W&B record with its history; the record is not finished yet."""
    about = config.model_dump(mode="json") | {"run_id": attempt.run.id, "work": "train", "attempt": 1} | ORIGIN
    record = RecordWriter(attempt.path, f"{attempt.run.id}-1", "name", "group", about, OFFLINE)
    final = level(config)
    for step in range(config.optim.validate_every, config.optim.steps + 1, config.optim.validate_every):
        score = final * (1 - 0.4 ** (step / config.optim.steps * 4))
        record.log(step, {"train/loss": 2.0 / step, "val/while_training": score})
    for one, settings in wanted.items():
        put(attempt, attempt.evaluations, config, settings, one)
    return record


def put(attempt: Attempt, folder: Path, config: RunConfig, settings: Mapping[str, Any], one: str) -> None:
    buffer = io.BytesIO()
    np.save(buffer, scores(config, settings, one))
    write_once(folder / f"{one}.npy", buffer.getvalue())
    content = {
        "evaluation": one,
        "run": attempt.run.id,
        "attempt": attempt.number,
        **ORIGIN,
        "settings": dict(settings),
    }
    content |= {
        "n": EXAMPLES,
        "metrics": values(config, settings, one),
        "seconds": 1.0,
        "wandb": attempt.wandb,
    }
    write_once(folder / f"{one}.json", as_json(content))


def values(config: RunConfig, settings: Mapping[str, Any], one: str) -> dict[str, float]:
    found = {PRIMARY_METRIC[config.task.family]: float(scores(config, settings, one).astype(np.float64).mean())}
    return found | {metric.name: 20.0 for metric in FAMILIES[config.task.family].further}


def scores(config: RunConfig, settings: Mapping[str, Any], one: str) -> np.ndarray:
    """The score of each example: right or wrong at random, and for captions a random number on the scale of CIDEr."""
    rng = np.random.default_rng(zlib.crc32(one.encode()))
    mean = level(config) * (1 - 4 * settings.get("attack", {}).get("epsilon", 0.0))
    if config.task.family == "caption":
        return np.clip(rng.normal(mean, 150, EXAMPLES), 0, 1000).astype(np.float32)
    return (100.0 * (rng.random(EXAMPLES) < mean / 100)).astype(np.float32)


def level(config: RunConfig) -> float:
    length = config.prompt.length if config.prompt is not None else 64
    found = LEVEL[config.task.family] * OF_METHOD[config.method] + 2 * np.log2(max(1, length) / 64)
    return float(found + noise(f"{config.seed} {config.method}", 1.0))
