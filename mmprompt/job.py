"""A job: a list of runs, executed one after another in one process that loads torch and the backbone once.

Each run is claimed, trained, evaluated and published, or it fails on its own and says why; the next one starts from the same state
whatever ran before it. Several processes may be given the same list: each run is executed by one of them.

What is wrong with the place ends the process, and the runs that it has not begun have lost nothing: a store that cannot be
written (then the run at hand is to blame neither), a GPU that is not there or in error, memory that is used up.
"""

from __future__ import annotations

import copy
import io
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from mmprompt.config import PRIMARY_METRIC, Caching, Model, RunConfig, Tracking, parse
from mmprompt.data import SPLITS, load
from mmprompt.ending import TOLD_TO_END, end_when_told, time_is_up
from mmprompt.evaluate import example_scores
from mmprompt.fingerprint import fingerprint
from mmprompt.frozen import cpu_name, kept, view
from mmprompt.ofa import OFA
from mmprompt.official import load_backbone, read
from mmprompt.run import (
    INTERRUPTED,
    NEAR_LIMIT,
    TRIES,
    Attempt,
    RunFolder,
    Store,
    StoreError,
    evaluation_id,
    read_config,
    this_process,
    who,
    write_over,
)
from mmprompt.staging import staged
from mmprompt.tracking import Record, record_file
from mmprompt.train import Checkpoints, State, train
from mmprompt.tuned import Tuned, View

FAKE_GPUS = "MMPROMPT_FAKE_GPUS"
REPORT_EVERY = 2.0  # seconds between two progress reports
Report = Callable[[State], None]


class NoGPUError(RuntimeError):
    """A GPU was asked for and none is seen. The message says what is there."""


def execute(
    store: Path,
    runs: Sequence[str],
    where: Mapping[str, Any],
    job: Mapping[str, Any],
    watch: Report | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> dict[str, str]:
    """Executes the runs that are not done, that nobody else is at, and that this batch has not seen fail.

    Asks before each whether it is still `wanted`. Returns "done", "failed" or, of one that somebody else is at or that was
    not begun, "open" for each. Raises SystemExit, with a sentence, when the process has to end.
    """
    end_when_told()
    for run in runs:
        folder = Store(store).run(run)
        number = folder.next_number  # before looking: whoever claims in between has it
        if not is_free(folder, job["batch"]):
            if folder.result() is not None:
                folder.tidy(None)  # whoever published may have been killed before it did
            continue
        if not wanted():
            print("this process ends here; what it has not begun waits for another", flush=True)
            break
        try:
            attempt = folder.claim(number, dict(job) | process_facts())
            if attempt is not None:
                try_once(folder, attempt, where, watch)
        except StoreError as error:
            raise SystemExit(f"this process ends: {error}") from error
    return {run: outcome(Store(store).run(run), job["batch"]) for run in runs}


def try_once(folder: RunFolder, attempt: Attempt, where: Mapping[str, Any], watch: Report | None) -> None:
    """One attempt, and what is said of it when it fails. Raises what must end the process: StoreError, SystemExit."""
    try:
        perform(folder, attempt, where, watch)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        told = [*TOLD_TO_END, *([signal.SIGINT] if isinstance(error, KeyboardInterrupt) else [])]
        if told:  # whatever was raised: compiled code can turn the handler's exit into some other exception
            record(
                folder,
                attempt,
                NEAR_LIMIT if time_is_up() else f"{INTERRUPTED}told to end by {signal.Signals(told[0]).name}",
            )
            if time_is_up() and folder.tries() >= TRIES:
                record(
                    folder,
                    attempt,
                    f"TimeLimitError: {TRIES} attempts came near the time limit of their jobs, and none got further "
                    f"than the one before; a larger cluster.time_min is the cure\n",
                )
            raise SystemExit(128 + told[0]) from None
        if isinstance(error, StoreError):
            if record(folder, attempt, INTERRUPTED + traceback.format_exc()):
                raise
        else:
            record(folder, attempt, traceback.format_exc())
        if is_of_the_place(error):
            raise SystemExit(f"the run failed, and this process ends with it: {error}") from error


def record(folder: RunFolder, attempt: Attempt, reason: str) -> bool:
    """Writes down why an attempt ended. False if another attempt was first: then nobody needs this one."""
    if folder.result() is not None:
        return False
    try:
        attempt.fail(reason)
    except StoreError:
        print(reason, file=sys.stderr, flush=True)
        raise
    return True


def is_of_the_place(error: BaseException) -> bool:
    """Whether it is the machine's or the process's as much as the run's. After an error CUDA does nothing any more."""
    words = ("CUDA error", "cuDNN error", "can't allocate memory")  # RuntimeErrors, and told by their text alone
    kinds = (NoGPUError, MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def is_free(folder: RunFolder, batch: str) -> bool:
    """In this order: whoever is gone now has published what it has."""
    return not is_live(folder) and outcome(folder, batch) == "open"


def outcome(folder: RunFolder, batch: str) -> str:
    if folder.result():
        return "done"
    errors = [attempt.error for attempt in folder.attempts() if attempt.job["batch"] == batch]
    failed = any(error is not None and not error.startswith(INTERRUPTED) for error in errors)
    return "failed" if failed else "open"


def process_facts() -> dict[str, Any]:
    """Who executes an attempt: enough to tell later whether it still lives, and on what its numbers were made."""
    return {
        **this_process(),
        "user": who(),
        "scheduler_job": os.environ.get("SLURM_JOB_ID"),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
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
    for other in folder.attempts()[:-1]:
        if other.lives() is False:
            other.sweep()
    config = read_config(folder.config_file)
    device = the_device(where["gpus"])
    torch.set_num_threads(config.threads)
    backbone = backbone_of(config, Path(where["backbone"]), where["stage"])
    generator = torch.Generator().manual_seed(config.seed)
    tuned = Tuned(config, copy.deepcopy(backbone), generator).to(device)
    cache = kept(parse(Caching, where["cache"]), Store(folder.path.parent.parent).cache, device)
    views = {split: view(config, tuned, backbone, split, cache) for split in SPLITS}
    record = Record(
        folder=attempt.path,
        id=f"{folder.id}-{attempt.number}",
        name=describe(config),
        group=f"{config.model.name}/{config.task.name}/{config.method}",
        config=config.model_dump(mode="json") | {"run_id": folder.id} | origin(attempt, device),
        tracking=parse(Tracking, where["tracking"]),
    )
    # The one place, and after the last that may have drawn numbers: loading a backbone does, the first time in a process.
    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(attempt, where["checkpoint_every"])
    try:
        state = train(config, tuned, views, checkpoints, record.log, reporter(config, attempt, watch))
        result = facts(config, folder, attempt, state, tuned, device)
        evaluations, values = evaluate_splits(config, attempt, tuned, views)
        result |= {"metrics": values, "evaluations": evaluations}
        result |= {"resumed_from": checkpoints.resumed_from, "damaged_checkpoints": checkpoints.damaged}
        summary = values | {key: result[key] for key in ("best_step", "trainable_parameters", "seconds")}
        summary |= {f"{split}/evaluation": evaluation for split, evaluation in evaluations.items()}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)  # on disk before the result says that the run is done
    write_over(attempt.weights_file, save(tuned.tuned_state()))
    folder.publish(attempt, result | {"wandb": record_file(attempt.path)})


def the_device(gpus: int) -> torch.device:
    """Raises NoGPUError if more GPUs were asked for than are seen: never a silent CPU.

    Those of the test cluster (tests/slurm) are fake, and said to be so: then it is the CPU, and the record says it.
    """
    if not gpus:
        return torch.device("cpu")
    seen = torch.cuda.device_count()
    if seen < gpus:
        if os.environ.get(FAKE_GPUS) == "1":
            return torch.device("cpu")
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise NoGPUError(
            f"cluster.gpus={gpus} was asked for, and torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees "
            f"{seen}: {nvidia_driver()}, CUDA_VISIBLE_DEVICES {'is not set' if visible is None else f'is {visible!r}'}"
        )
    return torch.device("cuda")


def nvidia_driver() -> str:
    """The driver in the kernel, in words."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return "no NVIDIA driver is loaded"
    return f"NVIDIA's driver is {first.removeprefix('NVRM version:').strip()}"


@lru_cache(maxsize=1)
def pretrained(file: Path, checksum: str, model_json: str, stage: bool) -> OFA:
    """The backbone as it came, read once per process; never trained, only copied. Raises RuntimeError if it is another file."""
    if stage:
        file = staged(file, checksum)
    found = fingerprint(file)
    if found != checksum:
        raise RuntimeError(
            f"{file} has changed since launch: its checksum is {found}, the run was launched with {checksum}"
        )
    model = OFA(Model.model_validate_json(model_json)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    load_backbone(model, read(file))
    return model.eval().requires_grad_(False)


def backbone_of(config: RunConfig, file: Path, stage: bool = False) -> OFA:
    return pretrained(file, config.backbone.checksum, config.model.model_dump_json(), stage)


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
                    "seconds": state.seconds,  # that its steps took, of earlier attempts too
                    "time": time.time(),
                }
            )

    return report


def evaluate_splits(
    config: RunConfig, attempt: Attempt, tuned: Tuned, views: Mapping[str, View]
) -> tuple[dict[str, str], dict[str, float]]:
    """The chosen weights on the whole validation and test splits: ids of the evaluations, and their values by `split/metric`."""
    metric = PRIMARY_METRIC[config.task.family]
    ids, values = {}, {}
    for name in ("val", "test"):
        split = load(config.task, config.model, name)
        scores = example_scores(config, tuned, split, views[name], len(split))
        ids[name], values[f"{name}/{metric}"] = evaluation_id(attempt.run.id, {"split": name}), float(scores.mean())
        file, buffer = attempt.evaluation_file(ids[name]), io.BytesIO()
        np.save(buffer, scores.astype(np.float32))
        write_over(file.with_suffix(".npy"), buffer.getbuffer())
        evaluation = {"evaluation": ids[name], "run": attempt.run.id, "settings": {"split": name}, "n": len(scores)}
        content = json.dumps(evaluation | {"metrics": {metric: values[f"{name}/{metric}"]}})
        write_over(file, content)
    return ids, values


def facts(
    config: RunConfig, folder: RunFolder, attempt: Attempt, state: State, tuned: Tuned, device: torch.device
) -> dict[str, Any]:
    """What the result says besides its metrics."""
    return {
        "run": folder.id,
        **origin(attempt, device),
        "best_step": state.best_step,
        "steps": state.step,
        "trainable_parameters": sum(p.numel() for p in tuned.parameters() if p.requires_grad),
        "seconds": round(state.seconds, 2),
        "threads": torch.get_num_threads(),
    }


def origin(attempt: Attempt, device: torch.device) -> dict[str, Any]:
    """Whose numbers they are, and made with what; the W&B record says it too, so that it can be read without the store."""
    made_with = {key: attempt.job[key] for key in ("commit", "dirty", "code")}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu: {cpu_name()}"
    if device.type == "cpu" and os.environ.get(FAKE_GPUS) == "1" and os.environ.get("CUDA_VISIBLE_DEVICES"):
        name += " (in place of a fake GPU)"
    return {"attempt": attempt.number, **made_with, "device": name}


def describe(config: RunConfig) -> str:
    """A name for the eye."""
    prompt = config.prompt
    return f"{config.task.name} P={prompt.length} {prompt.depth} {prompt.reparameterization} seed={config.seed}"
