"""A job: a list of runs, executed one after another in one process that loads torch and the backbone once.

Each run is claimed, trained, evaluated and published, or it fails on its own and says why; the next one starts from the same state
whatever ran before it. A run that has its result is never trained again: what evaluations it lacks are made from its weights, each
is put in place once, and the last of them when the W&B record of the attempt is complete.
Several processes may be given the same list: each run is executed by one of them.

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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from safetensors.torch import save
from torch import Tensor

from mmprompt.cache import Cache
from mmprompt.config import PRIMARY_METRIC, Caching, Model, RunConfig, Tracking, parse
from mmprompt.data import load, locate
from mmprompt.ending import TOLD_TO_END, end_when_told, leave, time_is_up
from mmprompt.evaluate import Answered, answers, attack_of, count, evaluate
from mmprompt.fingerprint import fingerprint
from mmprompt.frozen import cpu_name, kept, live, view
from mmprompt.ofa import OFA
from mmprompt.official import load_backbone, read
from mmprompt.resources import device_hours, epochs, forget_peak, near_best, peak_memory_mb, seconds_per_100, spent
from mmprompt.run import (
    INTERRUPTED,
    NEAR_LIMIT,
    TRIES,
    Attempt,
    RunFolder,
    Store,
    StoreError,
    clean,
    evaluation_id,
    read_config,
    this_process,
    who,
    write_once,
    write_over,
)
from mmprompt.staging import staged
from mmprompt.tracking import Record, record_file
from mmprompt.train import Checkpoints, State, train
from mmprompt.tuned import Tuned, View

FAKE_GPUS = "MMPROMPT_FAKE_GPUS"
REPORT_EVERY = 2.0  # seconds between two progress reports
Report = Callable[[State], None]
# Of the result's facts, those that a W&B record has in its summary.
SUMMARISED = (
    *("best_step", "trainable_parameters", "seconds", "device_hours", "device_hours_spent", "peak_memory_mb"),
    *("seconds_per_100", "epochs", "epochs_to_99"),
)
Settings = Mapping[str, Any]  # of an evaluation (`mmprompt.run.evaluations_of`)
Want = Literal["pixels", "features", "encoded"]
WANTED: dict[str, Want] = {"embeddings": "features", "pixels": "pixels"}  # what an attack starts from


class WeightsError(RuntimeError):
    """A finished run cannot be evaluated. The message names the file, what is wrong with it, and the cure."""


class NoGPUError(RuntimeError):
    """A GPU was asked for and none is seen. The message says what is there."""


def execute(
    store: Path,
    runs: Sequence[str],
    where: Mapping[str, Any],
    job: Mapping[str, Any],
    watch: Report | None = None,
    wanted: Callable[[], bool] = lambda: True,
    evaluations: Sequence[Settings] | None = None,
) -> dict[str, str]:
    """Executes the runs that are not done, that nobody else is at, and that this batch has not seen fail.

    `evaluations`: the settings of those that each of them shall have; None: those of the task's splits, by who trains it.
    Asks before each whether it is still `wanted`. Returns "done", "failed" or, of one that somebody else is at or that was
    not begun, "open" for each. Raises SystemExit, with a sentence, when the process has to end.
    """
    end_when_told()
    asked = {run: [evaluation_id(run, settings) for settings in evaluations or ()] for run in runs}
    for run in runs:
        folder = Store(store).run(run)
        number = folder.next_number  # before looking: whoever claims in between has it
        if not is_free(folder, job["batch"], asked[run]):
            if folder.result() is not None:
                folder.tidy(None)  # whoever published may have been killed before it did
            continue
        if not wanted():
            print("this process ends here; what it has not begun waits for another", flush=True)
            break
        try:
            work = "train" if folder.result() is None else "evaluate"
            attempt = folder.claim(number, dict(job) | {"work": work} | process_facts())
            if attempt is not None:
                try_once(folder, attempt, where, watch, evaluations)
        except StoreError as error:
            raise SystemExit(f"this process ends: {error}") from error
    return {run: outcome(Store(store).run(run), job["batch"], asked[run]) for run in runs}


def try_once(
    folder: RunFolder,
    attempt: Attempt,
    where: Mapping[str, Any],
    watch: Report | None,
    evaluations: Sequence[Settings] | None,
) -> None:
    """One attempt, and what is said of it when it fails. Raises what must end the process: StoreError, SystemExit."""
    asked = [evaluation_id(folder.id, settings) for settings in evaluations or ()]

    def record(reason: str) -> bool:
        """Writes down why the attempt ended. False if another attempt was first: then nobody needs this one."""
        if folder.is_done(asked if attempt.evaluates else ()):
            return False
        try:
            attempt.fail(reason)
        except StoreError:
            print(reason, file=sys.stderr, flush=True)
            raise
        return True

    try:
        perform(folder, attempt, where, watch, evaluations)
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        told = [*TOLD_TO_END, *([signal.SIGINT] if isinstance(error, KeyboardInterrupt) else [])]
        if told:  # whatever was raised: compiled code can turn the handler's exit into some other exception
            record(NEAR_LIMIT if time_is_up() else f"{INTERRUPTED}told to end by {signal.Signals(told[0]).name}")
            if time_is_up() and folder.tries() >= TRIES:
                record(
                    f"TimeLimitError: {TRIES} attempts came near the time limit of their jobs, and none got further "
                    f"than the one before; a larger cluster.time_min is the cure\n"
                )
            raise SystemExit(128 + told[0]) from None
        if isinstance(error, StoreError):
            if record(INTERRUPTED + traceback.format_exc()):
                raise
        else:
            record(traceback.format_exc())
        if is_of_the_place(error):
            raise SystemExit(f"the run failed, and this process ends with it: {error}") from error


def is_of_the_place(error: BaseException) -> bool:
    """Whether it is the machine's or the process's as much as the run's. After an error CUDA does nothing any more."""
    words = ("CUDA error", "cuDNN error", "can't allocate memory")  # RuntimeErrors, and told by their text alone
    kinds = (NoGPUError, MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def is_free(folder: RunFolder, batch: str, asked: Collection[str]) -> bool:
    """In this order: whoever is gone now has published what it has."""
    return not is_live(folder) and outcome(folder, batch, asked) == "open"


def outcome(folder: RunFolder, batch: str, asked: Collection[str]) -> str:
    """`asked`: the evaluations that the run shall have."""
    result = folder.result()
    if result is not None and not folder.missing(asked, result):
        return "done"
    errors = [attempt.error for attempt in folder.attempts_at_hand(result) if attempt.job["batch"] == batch]
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
    attempts = folder.attempts_at_hand(folder.result())
    if not attempts or attempts[-1].error is not None:
        return False
    lives, before = attempts[-1].lives(), attempts[-1].job["scheduler_job"]
    if lives is None:
        return before is None or before != os.environ.get("SLURM_JOB_ID")
    return lives


@dataclass(frozen=True)
class Loaded:
    """A run in memory, as an attempt begins with it."""

    attempt: Attempt
    config: RunConfig
    device: torch.device
    backbone: OFA  # as it came
    tuned: Tuned
    cache: Cache | None
    tracking: Tracking

    @property
    def folder(self) -> RunFolder:
        return self.attempt.run

    def view(self, split: str, want: Want = "encoded") -> View:
        return view(self.config, self.tuned, self.backbone, split, self.cache, want)

    def record(self) -> Record:
        """Opens the W&B record of the attempt."""
        config = self.config
        return Record(
            folder=self.attempt.path,
            id=f"{self.folder.id}-{self.attempt.number}",
            name=describe(config) + (" evaluated" if self.attempt.evaluates else ""),
            group=f"{config.model.name}/{config.task.name}/{config.method}",
            config=config.model_dump(mode="json")
            | {"run_id": self.folder.id, "work": self.attempt.job["work"]}
            | origin(self.attempt, self.device),
            tracking=self.tracking,
        )


def perform(
    folder: RunFolder,
    attempt: Attempt,
    where: Mapping[str, Any],
    watch: Report | None,
    evaluations: Sequence[Settings] | None,
) -> None:
    """One attempt, from the frozen configuration to the published result, or to the evaluations that it lacks."""
    for other in folder.attempts()[:-1]:
        if other.lives() is False:
            other.sweep()
    run = loaded(folder, attempt, where)
    if attempt.evaluates:
        evaluate_only(run, evaluations or ())
    else:
        asked = clean(run.config) if evaluations is None else evaluations
        train_and_evaluate(run, where, watch, asked)


def loaded(folder: RunFolder, attempt: Attempt, where: Mapping[str, Any]) -> Loaded:
    config = read_config(folder.config_file)
    store = Store(folder.path.parent.parent)
    locate(config.task, where["data"], where["stage"], store.cache if where["cache"]["max_gb"] > 0 else None)
    device = the_device(where["gpus"])
    forget_peak(device)
    torch.set_num_threads(config.threads)
    backbone = backbone_of(config, Path(where["backbone"]), where["stage"])
    generator = torch.Generator().manual_seed(config.seed)
    tuned = Tuned(config, copy.deepcopy(backbone), generator).to(device)
    cache = kept(parse(Caching, where["cache"]), store.cache, device)
    return Loaded(attempt, config, device, backbone, tuned, cache, parse(Tracking, where["tracking"]))


def train_and_evaluate(
    run: Loaded, where: Mapping[str, Any], watch: Report | None, evaluations: Sequence[Settings]
) -> None:
    """Trains, makes these evaluations, and publishes."""
    config, attempt, tuned = run.config, run.attempt, run.tuned
    views = {split: run.view(split) for split in ("train", *config.task.splits)}
    record = run.record()
    # After the last that may have drawn numbers: loading a backbone does, the first time in a process.
    torch.manual_seed(config.seed)
    checkpoints = Checkpoints(attempt, where["checkpoint_every"])
    try:
        state = train(config, tuned, views, checkpoints, record.log, reporter(config, attempt, watch))
        result = facts(config, run.folder, attempt, state, tuned, run.device)
        made = [evaluated(run, settings, still_alive(attempt)) for settings in evaluations]
        for one in made:
            one.put(attempt.evaluations)
        result |= results(made) | taken(run, state, checkpoints.seconds_before, where["gpus"])
        result |= {"resumed_from": checkpoints.resumed_from, "damaged_checkpoints": checkpoints.damaged}
        summary = result["metrics"] | {key: result[key] for key in SUMMARISED}
        summary |= {f"{split}/evaluation": evaluation for split, evaluation in result["evaluations"].items()}
        summary |= {f"evaluation/{one.id}": one.value for one in made if not one.is_clean}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)  # on disk before the result says that the run is done
    weights = save(tuned.tuned_state())
    write_over(attempt.weights_file, weights)
    result |= {"weights": sha256(weights).hexdigest(), "wandb": record_file(attempt.path)}
    run.folder.publish(attempt, result)


def evaluate_only(run: Loaded, evaluations: Sequence[Settings]) -> None:
    """Makes those of these evaluations that a run with a result lacks, from its weights. Trains nothing.

    Raises WeightsError, and RuntimeError where there is no result.
    """
    folder, attempt = run.folder, run.attempt
    result = folder.result()
    if result is None:
        raise RuntimeError(
            f"run {folder.id} has no result that could be evaluated; `python -m sweeps launch` trains it"
        )
    missing = folder.missing([evaluation_id(folder.id, settings) for settings in evaluations], result)
    asked = [settings for settings in evaluations if evaluation_id(folder.id, settings) in missing]
    run.tuned.load_tuned_state(published_weights(folder, result))
    run.tuned.eval()
    began, record = time.monotonic(), run.record()
    made: list[Made] = []
    progress = Progress(attempt, sum(count(run.config, settings) for settings in asked))
    try:
        for settings in asked:
            if made:
                made[-1].put(folder.evaluations)
                progress.report(len(made))
            if time_is_up():
                leave()
            made.append(evaluated(run, settings, progress.answered))
            record.log(len(made), {f"evaluation/{made[-1].id}": made[-1].value})
        # The values of all that were made of this run since it was published: whoever reads the newest record has them.
        summary = {f"evaluation/{file.stem}": value_in(file) for file in sorted(folder.evaluations.glob("[!.]*.json"))}
        summary |= {f"evaluation/{one.id}": one.value for one in made}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)
    if made:
        made[-1].put(folder.evaluations)  # when the record is on disk: nobody comes again to one that has them all
        progress.report(len(made))
    seconds = round(time.monotonic() - began, 2)
    attempt.end({"evaluations": [one.id for one in made], "seconds": seconds, "wandb": record_file(attempt.path)})
    folder.tidy(attempt)


def published_weights(folder: RunFolder, result: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the published attempt trained. Raises WeightsError if it is not there, or not as it was."""
    file = Attempt(folder, result["attempt"]).weights_file
    cure = f"remove {folder.path}, and `python -m sweeps launch` trains the run again"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{file} cannot be read ({error.strerror}): {cure}") from error
    checksum = sha256(data).hexdigest()
    if result.get("weights", checksum) != checksum:  # results of long ago do not say it
        raise WeightsError(
            f"{file} is damaged, its sha256 is {checksum}, that of the result's {result['weights']}: {cure}"
        )
    try:
        return load_weights(data)
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged ({error}): {cure}") from error


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


def still_alive(attempt: Attempt) -> Answered:
    """Says every few seconds that an attempt which has trained is at work; how far it is was said before."""
    last = time.monotonic()

    def answered(count: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY and (before := attempt.progress):
            last = time.monotonic()
            attempt.report(before | {"time": time.time()})

    return answered


@dataclass
class Progress:
    """The progress.json of an attempt that evaluates, with the keys of one that trains: its steps are examples."""

    attempt: Attempt
    examples: int  # of all its evaluations
    _done: int = 0  # examples of evaluations before the one at hand
    _here: int = 0
    _made: int = 0
    _began: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def answered(self, count: int) -> None:
        self._here = count
        if time.monotonic() - self._last > REPORT_EVERY:
            self._report()

    def report(self, made: int) -> None:
        """So many evaluations are in place."""
        self._made, self._done, self._here = made, self._done + self._here, 0
        self._report()

    def _report(self) -> None:
        self._last = time.monotonic()
        step = {"step": self._done + self._here, "steps": self.examples, "evaluated": self._made, "validation": []}
        self.attempt.report(step | {"seconds": time.monotonic() - self._began, "time": time.time()})


@dataclass(frozen=True)
class Made:
    """An evaluation that was made: what its files hold."""

    content: dict[str, Any]
    scores: np.ndarray  # of each example

    @property
    def id(self) -> str:
        return str(self.content["evaluation"])

    @property
    def value(self) -> float:
        [value] = self.content["metrics"].values()
        return float(value)

    @property
    def is_clean(self) -> bool:
        """Of a whole split, without attack, as the task decodes?"""
        return self.content["settings"].keys() == {"split"}

    def put(self, folder: Path) -> None:
        """What is there already stays: the first wins."""
        buffer = io.BytesIO()
        np.save(buffer, self.scores.astype(np.float32))
        write_once(folder / f"{self.id}.npy", buffer.getbuffer())
        write_once(folder / f"{self.id}.json", json.dumps(self.content))


def evaluated(run: Loaded, settings: Settings, answered: Answered) -> Made:
    """One evaluation of the weights that are loaded. It has the same bits whatever was done before it."""
    config, attack, began = run.config, attack_of(settings), time.monotonic()
    seen = run.view(settings["split"], WANTED[attack.input] if attack else "encoded")
    torch.manual_seed(config.seed)
    scores = evaluate(config, run.tuned, seen, settings, answered)
    content = {
        "evaluation": evaluation_id(run.folder.id, settings),
        "run": run.folder.id,
        **origin(run.attempt, run.device),
        "settings": dict(settings),
        "n": len(scores),
        "metrics": {PRIMARY_METRIC[config.task.family]: float(scores.mean())},
        "seconds": round(time.monotonic() - began, 2),
        "wandb": record_file(run.attempt.path),
    }
    return Made(content, scores)


def value_in(file: Path) -> float:
    """Of an evaluation's file."""
    [value] = json.loads(file.read_text(encoding="utf-8"))["metrics"].values()
    return float(value)


def results(made: Sequence[Made]) -> dict[str, Any]:
    """What the result says of its evaluations: of the clean ones by split their values, of all that they are there."""
    clean = {one.content["settings"]["split"]: one for one in made if one.is_clean}
    values = {
        f"{split}/{metric}": value for split, one in clean.items() for metric, value in one.content["metrics"].items()
    }
    ids = {split: one.id for split, one in clean.items()}
    return {"metrics": values, "evaluations": ids, "evaluated": [one.id for one in made]}


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


def taken(run: Loaded, state: State, before: float, gpus: int) -> dict[str, Any]:
    """What led to the result, to the end of its evaluations, what was spent on it, and what its weights take to answer.

    `before`: seconds of training in earlier attempts that this one went on from.
    """
    config, last = run.config, run.config.task.splits[-1]
    split, train = load(config.task, config.model, last), len(load(config.task, config.model, "train"))
    here, devices = time.time() - run.attempt.claimed, gpus or config.threads
    others = [attempt for attempt in run.folder.attempts() if attempt.number != run.attempt.number]
    answer = partial(answers, config, run.tuned, split, live(config, run.tuned, last, run.device))
    return {
        "device_hours": device_hours(before + here, devices),
        "device_hours_spent": device_hours(spent(others) + here, devices),
        "peak_memory_mb": peak_memory_mb(run.device),
        "seconds_per_100": seconds_per_100(answer, run.device),
        "epochs": epochs(state.step, config.optim.batch_size, train),
        "epochs_to_99": epochs(near_best(state.validation), config.optim.batch_size, train),
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
    how = ""
    if config.prompt is not None:
        how = f" P={config.prompt.length} {config.prompt.depth} {config.prompt.reparameterization}"
    elif config.bitfit is not None:
        how = f" {config.bitfit.rule}"
    elif config.adapter is not None:
        how = f" r={config.adapter.dim}"
    elif config.lora is not None:
        how = f" r={config.lora.rank}"
    return f"{config.task.name} {config.method}{how} seed={config.seed}"
