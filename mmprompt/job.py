"""A job: a list of runs, executed one after another in one process that loads torch and the backbone once.

Each run is claimed, trained, evaluated and published, or it fails on its own and says why; the next one starts from the same state
whatever ran before it. Several processes may be given the same list: each run is executed by one of them.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmprompt.config import PRIMARY_METRIC, Model, RunConfig, Task, Tracking, parse
from mmprompt.data import SPLITS, load, stem_features
from mmprompt.evaluate import example_scores
from mmprompt.fingerprint import fingerprint
from mmprompt.ofa import OFA
from mmprompt.official import load_backbone, read
from mmprompt.run import Attempt, RunFolder, Store, evaluation_id, read_config, write_over
from mmprompt.tracking import TOLD_TO_END, Record, exit_on_sigterm, record_file
from mmprompt.train import Checkpoints, State, features_of, train
from mmprompt.tuned import Tuned

REPORT_EVERY = 2.0  # seconds between two progress reports
Report = Callable[[State], None]


def execute(
    store: Path, runs: Sequence[str], where: Mapping[str, Any], job: Mapping[str, Any], watch: Report | None = None
) -> dict[str, str]:
    """Executes the runs that are not done, that nobody else is at, and that this batch has not seen fail.

    Returns "done", "failed" or, of one that somebody else is at, "open" for each.
    """
    exit_on_sigterm()
    for run in runs:
        folder = Store(store).run(run)
        number = folder.next_number  # before looking: whoever claims in between has it
        attempt = folder.claim(number, dict(job) | process_facts()) if is_free(folder, job["batch"]) else None
        if attempt is not None:
            try:
                perform(folder, attempt, where, watch)
            except Exception:  # whatever it is, it is this run's failure, and the next run goes on
                if TOLD_TO_END:
                    raise SystemExit(128 + TOLD_TO_END[0]) from None  # not the run's fault
                attempt.fail(traceback.format_exc())
    return {run: outcome(Store(store).run(run), job["batch"]) for run in runs}


def is_free(folder: RunFolder, batch: str) -> bool:
    return outcome(folder, batch) == "open" and not is_live(folder)


def outcome(folder: RunFolder, batch: str) -> str:
    if folder.result():
        return "done"
    failed_here = [
        attempt for attempt in folder.attempts() if attempt.error is not None and attempt.job["batch"] == batch
    ]
    return "failed" if failed_here else "open"


def process_facts() -> dict[str, Any]:
    """Who executes an attempt: enough to tell later whether it still lives, and on what its numbers were made."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "scheduler_job": os.environ.get("SLURM_JOB_ID"),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def is_live(folder: RunFolder) -> bool:
    """Is some process at this run? Of one on another host it is only known that nobody has said it ended.

    Except that SLURM has started this very job again: then whoever had it before is gone.
    """
    attempts = folder.attempts()
    if not attempts or attempts[-1].error is not None:
        return False
    lives, before = attempts[-1].lives(), attempts[-1].job["scheduler_job"]
    if lives is None:
        return before is None or before != os.environ.get("SLURM_JOB_ID")
    return lives


def perform(folder: RunFolder, attempt: Attempt, where: Mapping[str, Any], watch: Report | None) -> None:
    """One attempt, from the frozen configuration to the published result."""
    config = read_config(folder.config_file)
    device = the_device(where["gpus"])
    torch.set_num_threads(config.threads)
    backbone = Path(where["backbone"])
    generator = torch.Generator().manual_seed(config.seed)
    tuned = Tuned(config, copy.deepcopy(backbone_of(config, backbone)), generator).to(device)
    cached = None if tuned.live else cached_features(config, backbone, device)
    record = Record(
        folder=attempt.path,
        id=f"{folder.id}-{attempt.number}",
        name=describe(config),
        group=f"{config.model.name}/{config.task.name}/{config.method}",
        config=config.model_dump(mode="json") | {"run_id": folder.id, "attempt": attempt.number},
        tracking=parse(Tracking, where["tracking"]),
    )
    # The one place, and after the last that may have drawn numbers: loading a backbone does, the first time in a process.
    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(attempt.checkpoint_file, where["checkpoint_every"], older_checkpoints(folder))
    try:
        state = train(config, tuned, cached, checkpoints, record.log, reporter(config, attempt, watch))
        result = facts(config, folder, attempt, state, tuned, device)
        evaluations, values = evaluate_splits(config, attempt, tuned, cached, device)
        result |= {"metrics": values, "evaluations": evaluations}
        summary = values | {key: result[key] for key in ("best_step", "trainable_parameters", "seconds")}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)  # on disk before the result says that the run is done
    save_file(tuned.tuned_state(), attempt.weights_file)
    folder.publish(attempt, result | {"wandb": record_file(attempt.path)})


def the_device(gpus: int) -> torch.device:
    """Raises RuntimeError if a GPU was asked for and none is seen: never a silent CPU."""
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"cluster.gpus={gpus} was asked for, and torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU"
        )
    return torch.device("cuda")


@lru_cache(maxsize=1)
def pretrained(file: Path, checksum: str, model_json: str) -> OFA:
    """The backbone as it came, read once per process; never trained, only copied. Raises RuntimeError if it is another file."""
    found = fingerprint(file)
    if found != checksum:
        raise RuntimeError(
            f"{file} has changed since launch: its checksum is {found}, the run was launched with {checksum}"
        )
    model = OFA(Model.model_validate_json(model_json)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_backbone(model, read(file))
    return model.eval()


def backbone_of(config: RunConfig, file: Path) -> OFA:
    return pretrained(file, config.backbone.checksum, config.model.model_dump_json())


@lru_cache(maxsize=len(SPLITS))  # the runs of a job mostly share their task
def frozen_features(
    file: Path, checksum: str, model_json: str, task_json: str, split: str, device: torch.device
) -> Tensor:
    """Image features of a whole split under the frozen stem, n C h w."""
    model, task = pretrained(file, checksum, model_json), Task.model_validate_json(task_json)
    stem = copy.deepcopy(model.encoder.resnet).to(device)
    return stem_features(stem, load(task, Model.model_validate_json(model_json), split).images, task.image_size, device)


def cached_features(config: RunConfig, file: Path, device: torch.device) -> dict[str, Tensor]:
    model_json, task_json = config.model.model_dump_json(), config.task.model_dump_json()
    return {s: frozen_features(file, config.backbone.checksum, model_json, task_json, s, device) for s in SPLITS}


def older_checkpoints(folder: RunFolder) -> list[Path]:
    """Those of all attempts, the latest attempt's first."""
    files = [attempt.checkpoint_file for attempt in reversed(folder.attempts())]
    return [file for file in files if file.exists()]


def reporter(config: RunConfig, attempt: Attempt, watch: Report | None) -> Report:
    """Writes progress.json every few seconds, and tells whoever watches each step."""
    last = 0.0

    def report(state: State) -> None:
        nonlocal last
        if watch is not None:
            watch(state)
        if time.monotonic() - last > REPORT_EVERY or state.step == config.optim.steps:
            last = time.monotonic()
            loss = state.history[-1][1]["train/loss"]
            attempt.report(
                {
                    "step": state.step,
                    "steps": config.optim.steps,
                    "loss": loss,
                    "validation": state.validation,
                    "time": time.time(),
                }
            )

    return report


def evaluate_splits(
    config: RunConfig, attempt: Attempt, tuned: Tuned, cached: dict[str, Tensor] | None, device: torch.device
) -> tuple[dict[str, str], dict[str, float]]:
    """The chosen weights on the whole validation and test splits: ids of the evaluations, and their values by `split/metric`."""
    metric = PRIMARY_METRIC[config.task.family]
    ids, values = {}, {}
    for name in ("val", "test"):
        split = load(config.task, config.model, name)
        features = features_of(tuned, config, split, None if cached is None else cached[name], device)
        scores = example_scores(config, tuned, split, features, len(split))
        ids[name], values[f"{name}/{metric}"] = evaluation_id(attempt.run.id, {"split": name}), float(scores.mean())
        attempt.evaluations.mkdir(exist_ok=True)
        np.save(attempt.evaluations / f"{ids[name]}.npy", scores.astype(np.float32))
        evaluation = {"evaluation": ids[name], "run": attempt.run.id, "settings": {"split": name}, "n": len(scores)}
        content = json.dumps(evaluation | {"metrics": {metric: values[f"{name}/{metric}"]}})
        write_over(attempt.evaluations / f"{ids[name]}.json", content)
    return ids, values


def facts(
    config: RunConfig, folder: RunFolder, attempt: Attempt, state: State, tuned: Tuned, device: torch.device
) -> dict[str, Any]:
    """What the result says besides its metrics."""
    job = attempt.job
    return {
        "run": folder.id,
        "attempt": attempt.number,
        "best_step": state.best_step,
        "steps": state.step,
        "trainable_parameters": sum(p.numel() for p in tuned.parameters() if p.requires_grad),
        "seconds": round(state.seconds, 2),
        "commit": job["commit"],
        "dirty": job["dirty"],
        "code": job["code"],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu: {cpu_name()}",
    }


@lru_cache
def cpu_name() -> str:
    """The processor's name; numbers differ in the last bits between kinds."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe(config: RunConfig) -> str:
    """A name for the eye."""
    prompt = config.prompt
    return f"{config.task.name} P={prompt.length} {prompt.depth} {prompt.reparameterization} seed={config.seed}"
