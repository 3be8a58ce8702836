"""Executes a list of runs, one after another, in one process that loads torch and the backbone once.

Each run is claimed, trained, evaluated and published, or it fails and records why; the next one starts from the same state whatever
ran before it. A finished run is never trained again: missing evaluations are made from its weights. Each is written once, and the
last one only after the W&B record of the attempt is complete. Several processes may get the same list; each run is executed by one.

Faults of the machine end the process: a disk that is full or read-only (which does not count against the run), a missing or broken
GPU, no more memory. Runs that it has not begun lose nothing.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from mmprompt.data.ranks import Ranks
from mmprompt.execution.determinism import deterministic
from mmprompt.execution.evaluations import Settings, evaluate_finished_run, is_default, make_evaluation, results
from mmprompt.execution.followers import followers, meet
from mmprompt.execution.progress import OnStep, heartbeat, progress_reporter
from mmprompt.execution.resources import device_hours, epochs, near_best, peak_memory_mb
from mmprompt.execution.run_context import NoGPUError, RunContext, load_run
from mmprompt.runs.attempt import TRIES, Attempt, seconds_at_work
from mmprompt.runs.comparison import RECORDED
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.failures import MEMORY, Cause, Reason, told_to_end
from mmprompt.runs.files import GoneError, StoreError
from mmprompt.runs.identity import default_evaluations, evaluation_id
from mmprompt.runs.processes import this_process, who
from mmprompt.runs.records import DamagedError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.signals import TOLD_TO_END, end_when_told, time_is_up
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_writer import TrackingError
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.checkpoints import Checkpoints, State
from mmprompt.training.train import Paused, train
from mmprompt.training.update import TrainingError

NEAR_LIMIT = Reason("time limit", "the time limit of its job was near", interrupted=True)
LIMIT_REACHED = Reason(
    "time limit",
    f"{TRIES} attempts came near the time limit of their jobs, and none got further than the one before; "
    "a larger cluster.time_min is the cure",
)
# Of the result's facts, those that a W&B record has in its summary.
SUMMARISED = ("best_step", *RECORDED)


def execute(
    store: Store,
    runs: Sequence[str],
    settings: JobSettings,
    job: Mapping[str, Any],
    watch: OnStep | None = None,
    wanted: Callable[[], bool] = lambda: True,
    evaluations: Sequence[Settings] | None = None,
) -> dict[str, str]:
    """Executes the runs that are not done, that no other process works on, and that have not failed in this batch.

    `evaluations`: the settings of the evaluations that each run needs; None: a process that trains a run makes the default ones.
    `wanted` is asked before each run; if it returns False, no further run is begun. Returns "done", "failed", "damaged" or "open"
    for each run; "open" if another process works on it or it was not begun. Raises SystemExit with a sentence if the process has
    to end.
    """
    end_when_told()
    asked = {run: [evaluation_id(run, one) for one in evaluations or ()] for run in runs}
    for run in runs:
        folder = store.run(run)
        try:
            number = folder.next_number  # read first, so that another claim in between wins
            if not is_free(folder, job["batch"], asked[run]):
                if folder.result() is not None:
                    folder.tidy(None)  # the process that published may have been killed before it did this
                elif folder.path.exists():
                    folder.settings()  # DamagedError
                continue
        except DamagedError as error:
            print(error, file=sys.stderr, flush=True)
            continue
        if not wanted():
            print("this process ends here; what it has not begun waits for another", flush=True)
            break
        claim_and_try(folder, number, settings, job, watch, evaluations)
    return {run: outcome(store.run(run), job["batch"], asked[run]) for run in runs}


def execute_for_search(
    store: Store,
    run: str,
    settings: JobSettings,
    job: Mapping[str, Any],
    evaluations: Sequence[Settings],
    until: int | None = None,
) -> bool:
    """Executes one run of a search, or pauses it after update `until`. Returns False if it is done, or if its last attempt has not
    recorded an end.

    Such an attempt may have been killed since the caller looked. The caller finds out, and records that end before the next
    attempt: an attempt that is not the last is never looked at again. A failure is recorded in its attempt; the caller
    decides whether to try again. Raises SystemExit with a sentence if the process has to end.
    """
    end_when_told()
    folder = store.run(run)
    try:
        number = folder.next_number  # read first, so that another claim in between wins
        attempts = folder.current_attempts(folder.result())
        if attempts and attempts[-1].reason is None:
            return False
        if folder.is_done([evaluation_id(run, one) for one in evaluations]):
            return False
    except DamagedError as error:
        print(error, file=sys.stderr, flush=True)
        return False
    return claim_and_try(folder, number, settings, job, None, evaluations, until)


def claim_and_try(
    folder: RunFolder,
    number: int,
    settings: JobSettings,
    job: Mapping[str, Any],
    watch: OnStep | None,
    evaluations: Sequence[Settings] | None,
    until: int | None = None,
) -> bool:
    """Claims attempt `number` and executes it. Returns False if another process has claimed it, or the run was removed."""
    if not folder.config_file.exists():
        print(f"{folder.path} was removed after launch; the next launch trains that run", file=sys.stderr, flush=True)
        return False
    try:
        work = "train" if folder.result() is None else "evaluate"
        place = {key: getattr(settings, key) for key in ("gpus", "speed", "deterministic")}
        attempt = folder.claim(number, dict(job) | {"work": work} | place | process_facts())
        if attempt is not None:
            try_once(folder, attempt, settings, watch, evaluations, until)
    except StoreError as error:
        raise SystemExit(f"this process ends: {error}") from error
    return attempt is not None


def try_once(
    folder: RunFolder,
    attempt: Attempt,
    settings: JobSettings,
    watch: OnStep | None,
    evaluations: Sequence[Settings] | None,
    until: int | None = None,
) -> None:
    """Executes an attempt, and records why if it fails. Raises SystemExit if the process has to end, and StoreError if the reason
    cannot be recorded."""
    asked = [evaluation_id(folder.id, one) for one in evaluations or ()]

    def record(reason: Reason) -> bool:
        """Records why the attempt ended. Returns False if another attempt finished the run, or this one was removed."""
        try:
            if folder.is_done(asked if attempt.evaluates else ()):
                return False
            attempt.fail(reason)
        except GoneError as error:
            leave_removed_attempt(attempt, error)
            return False
        except StoreError:
            print(reason.text, file=sys.stderr, flush=True)
            raise
        return True

    try:
        perform(folder, attempt, settings, watch, evaluations, until)
    except Paused as pause:
        record(Reason("paused", str(pause), interrupted=True))
    except GoneError as error:
        leave_removed_attempt(attempt, error)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        told = [*TOLD_TO_END, *([signal.SIGINT] if isinstance(error, KeyboardInterrupt) else [])]
        if told:  # compiled code can turn the handler's exit into any other exception
            record(NEAR_LIMIT if time_is_up() else told_to_end(signal.Signals(told[0]).name))
            if time_is_up() and folder.tries() >= TRIES:
                record(LIMIT_REACHED)
            raise SystemExit(128 + told[0]) from None
        if isinstance(error, StoreError) or is_disk_full(error):
            if record(replace(reason_of(error), interrupted=True)):
                raise SystemExit(f"this process ends: {error}") from error
        else:
            record(reason_of(error))
        if is_machine_failure(error):
            raise SystemExit(f"the run failed, and this process ends with it: {error}") from error


def reason_of(error: BaseException) -> Reason:
    """Why an attempt failed. A wrong setting, a full disk or a lost W&B record has no traceback: the fault is not in the code."""
    first = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}" if first else type(error).__name__
    if isinstance(error, StoreError | ConfigError | TrackingError):
        return Reason(kind_of(error), message)
    return Reason(kind_of(error), message, traceback.format_exc())


def kind_of(error: BaseException) -> Cause:
    if isinstance(error, TrainingError):
        return "diverged"
    if is_disk_full(error):
        return "disk full"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or MEMORY.search(str(error)):
        return "out of memory"
    return "error"


def leave_removed_attempt(attempt: Attempt, error: GoneError) -> None:
    """Ends an attempt whose folder was removed, and removes what it wrote since."""
    print(f"this attempt ends: {error}; the next launch trains that run", file=sys.stderr, flush=True)
    attempt.leave()


def is_machine_failure(error: BaseException) -> bool:
    """Whether the fault may be the machine's or the process's. After an error, CUDA does nothing more in this process."""
    words = ("CUDA error", "cuDNN error", "can't allocate memory")  # RuntimeErrors that differ by their text alone
    kinds = (NoGPUError, MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk, a full quota or a read-only file system caused the error, on any disk."""
    kinds = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    of_torch = ("PytorchStreamWriter failed writing", "basic_ios::clear: iostream error")
    words = (*map(os.strerror, kinds), *of_torch)  # errors of compiled code differ by their text alone
    return any(
        (isinstance(one, OSError) and one.errno in kinds) or any(word in str(one) for word in words)
        for one in chain_of(error)
    )


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes: those it was raised from, or while they were handled."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def is_free(folder: RunFolder, batch: str, asked: Collection[str]) -> bool:
    """Whether this process may execute the run. In this order, because a process that has ended has published its result."""
    return not is_live(folder) and outcome(folder, batch, asked) == "open"


def outcome(folder: RunFolder, batch: str, asked: Collection[str]) -> str:
    """Returns "done", "failed", "damaged" or "open". `asked`: the ids of the evaluations that the run needs."""
    try:
        result = folder.result()
        if result is not None and not folder.missing(asked, result):
            return "done"
        if folder.path.exists():
            folder.settings()
        ours = (attempt for attempt in folder.current_attempts(result) if attempt.job["batch"] == batch)
        return "failed" if any(attempt.has_failed for attempt in ours) else "open"
    except DamagedError:
        return "damaged"


def process_facts() -> dict[str, Any]:
    """This process for job.json: what shows later whether it still runs, and what its numbers were made with."""
    return {
        **this_process(),
        "user": who(),
        "scheduler_job": os.environ.get("SLURM_JOB_ID"),
        "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def is_live(folder: RunFolder) -> bool:
    """Whether a process works on this run. A process on another host counts until its attempt has recorded an end.

    Unless SLURM has started this very job again: then its earlier process is gone.
    """
    attempts = folder.current_attempts(folder.result())
    if not attempts or attempts[-1].reason is not None:
        return False
    running, before = attempts[-1].is_running(), attempts[-1].job.get("scheduler_job")
    if running is None:
        return before is None or before != os.environ.get("SLURM_JOB_ID")
    return running


def perform(
    folder: RunFolder,
    attempt: Attempt,
    settings: JobSettings,
    watch: OnStep | None,
    evaluations: Sequence[Settings] | None,
    until: int | None,
) -> None:
    """Executes one attempt: from config.json to the published result, or to the missing evaluations."""
    with deterministic(settings.deterministic), followers(folder, attempt, settings, until) as meeting:
        run = load_run(folder, attempt, settings, Ranks(0, max(1, settings.gpus)))  # first: its time counts from here
        for other in folder.readable_attempts():
            if other != attempt and other.is_running() is False:
                other.sweep()
        meet(run, meeting)
        if attempt.evaluates:
            evaluate_finished_run(run, evaluations or ())
        else:
            asked = default_evaluations(run.config) if evaluations is None else evaluations
            train_and_evaluate(run, settings, watch, asked, until)
        run.ranks.same(None)  # there is nothing more to evaluate


def train_and_evaluate(
    run: RunContext, settings: JobSettings, watch: OnStep | None, evaluations: Sequence[Settings], until: int | None
) -> None:
    """Trains, makes the evaluations, and publishes. Raises Paused after update `until`."""
    config, attempt, tuned = run.config, run.attempt, run.tuned
    splits = {name: run.data.split(name) for name in ("train", *config.task.splits)}
    for asked in evaluations:
        run.asked_split(asked)  # a wrong line of an unscored split is named before anything trains, too
    views = {name: run.view(split) for name, split in splits.items()}
    record = run.record()
    # After everything that may have drawn random numbers: loading a backbone does, the first time in a process.
    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(attempt, settings.checkpoint_every, settings.checkpoint_seconds)
    try:
        report = progress_reporter(config, attempt, watch, until)
        state = train(config, tuned, splits, views, checkpoints, record.log, report, until, run.ranks, run.speed)
        result = facts(run, state)
        made = [make_evaluation(run, one, heartbeat(attempt)) for one in filter(is_default, evaluations)]
        result |= resources_taken(
            run, state, checkpoints.seconds_before, settings.gpus
        )  # and no more than every run is asked
        made += [make_evaluation(run, one, heartbeat(attempt)) for one in evaluations if not is_default(one)]
        for one in made:
            one.put(attempt, attempt.evaluations)
        result |= results(made) | {
            "device_hours_spent": device_hours(seconds_spent(run), settings.gpus or config.threads)
        }
        result |= {"resumed_from": checkpoints.resumed_from, "damaged_checkpoints": checkpoints.damaged}
        summary = result["metrics"] | {key: result[key] for key in SUMMARISED}
        summary |= {f"{split}/evaluation": evaluation for split, evaluation in result["evaluations"].items()}
        summary |= {key: value for one in made if not one.is_default for key, value in one.values.items()}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)  # on disk before the result says that the run is done
    weights = save(tuned.published_state())
    attempt.put(attempt.weights_file, weights)
    result |= {"weights": sha256(weights).hexdigest(), "wandb": attempt.wandb}
    run.folder.publish(attempt, result)


def facts(run: RunContext, state: State) -> dict[str, Any]:
    """The facts of a result besides its metrics."""
    return {
        "run": run.folder.id,
        **run.origin,
        "best_step": state.best_step,
        "steps": state.step,
        "trainable_parameters": sum(parameter.numel() for parameter in run.tuned.trained.values()),
        "seconds": round(state.seconds, 2),
        "compile_seconds": round(state.compile_seconds, 2),
        "speed": run.speed.facts,
        "threads": torch.get_num_threads(),
    }


def resources_taken(run: RunContext, state: State, before: float, gpus: int) -> dict[str, Any]:
    """Time, memory and epochs of a run, up to the end of its default evaluations.

    `before`: seconds of training in earlier attempts that this one went on from.
    """
    config, here = run.config, time.monotonic() - run.began
    train = len(run.data.split("train"))
    return {
        "device_hours": device_hours(before + here, gpus or config.threads),
        "peak_memory_mb": peak_memory_mb(run.device),
        "epochs": epochs(state.step, config.optim.batch_size, train),
        "epochs_to_99": epochs(near_best(state.validation), config.optim.batch_size, train),
    }


def seconds_spent(run: RunContext) -> float:
    """Seconds spent on a run so far, failed attempts and further evaluations included."""
    others = [attempt for attempt in run.folder.attempts() if attempt.number != run.attempt.number]
    return seconds_at_work(others) + time.monotonic() - run.began
