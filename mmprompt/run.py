"""A run on disk: its identity, its folder, its attempts, and how it is published exactly once.

    STORE/sweeps/NAME.json       manifest of a sweep
    STORE/run/ID/config.json     the canonical JSON whose sha256 is ID; written once
    STORE/run/ID/attempts/N/     one try, and all that it makes: checkpoints, weights.safetensors, evaluations/, wandb/
    STORE/run/ID/result.json     the result; it names the attempt whose files are the run's
    STORE/run/ID/evaluations/    what later attempts found when they evaluated it; ID.json, each written once
    STORE/cache/                 what frozen backbones made of examples (`mmprompt.cache`); may be deleted at any time

There are no locks. An attempt is claimed by renaming a prepared folder into place, which only one process can do; a result is
published by link(2), which never replaces what is there, and nothing else is moved. Two copies of one run are therefore
harmless, and a process may die between any two steps. What begins with a dot is not finished.

Several Unix users may share a store: all that is made in it has the group and the permissions of the folder it lies in.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mmprompt.config import WORLD_VERSION, ConfigError, Questions, RunConfig, Task, nearest, parse
from mmprompt.files import StoreError, drafted, remove, write_once, write_over
from mmprompt.fingerprint import fingerprint, fingerprints
from mmprompt.place import Place

ROOT = Path(__file__).resolve().parent.parent  # the folder that holds conf/, mmprompt/, sweeps/
TRAINING_VERSION = 2  # raise when the same settings begin to mean other numbers: every run then gets a new id
EVALUATION_VERSION = 1
# key added later -> the value that stands for the time before it; left out of the hash
NEUTRAL: dict[str, Any] = {
    "task.beam": None,
    "task.no_repeat_ngram": None,
    "precision": "float32",
    "prompt": None,  # of a run by another method
    "finetune": None,
    "bitfit": None,
    "adapter": None,
    "lora": None,
    "optim.smoothing_over": "vocabulary",
    "optim.drop_worst": 0.0,
    "optim.drop_worst_after": 0,
    "optim.ema_decay": None,
}
DECODING = ("beam", "no_repeat_ngram")  # those that stand in for the task's
ID_LENGTH = 16  # hex digits: 64 bits
CLOCK = 2.0  # seconds by which a process's start may seem to move, when the clock is set
INTERRUPTED = "interrupted: "  # how the error of an attempt begins that nothing was wrong with
DIVERGED = "mmprompt.train.TrainingError: "  # in the error of an attempt whose loss or gradient became infinite
TRIES = 3  # attempts that end in an error without getting further than the ones before: then a run is left alone
NEAR_LIMIT = f"{INTERRUPTED}the time limit of its job was near"


def canonical(values: Mapping[str, Any]) -> str:
    """The one JSON text of these values: sorted keys, no spaces, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def frozen_text(config: RunConfig, neutral: Mapping[str, Any] | None = None) -> str:
    """What is hashed, and what `config.json` holds: all settings except those that stand at their neutral value."""
    values = config.model_dump(mode="json")
    for key, value in (NEUTRAL if neutral is None else neutral).items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        if section[last] == value:
            del section[last]
    return canonical(values)


def run_id(config: RunConfig) -> str:
    return digest(frozen_text(config))


def evaluation_id(run: str, settings: Mapping[str, Any]) -> str:
    """An evaluation is one run's chosen checkpoint on one split under one decoding and attack setting."""
    return digest(canonical({"run": run, "settings": settings, "evaluation_version": EVALUATION_VERSION}))


def is_of_evaluations(key: str) -> bool:
    """Is it a setting of what finished weights are asked? Its values make more evaluations, and no more runs."""
    return key.split(".")[0] in Questions.model_fields


def evaluations_of(composed: Mapping[str, Any], config: RunConfig) -> dict[str, dict[str, Any]]:
    """By split, the settings of the evaluations that a composed configuration asks for.

    {"split": ...}, and what makes it another than that of the whole split, without attack, as the task decodes: so what is the
    same has one spelling. Raises ConfigError for what cannot be meant.
    """
    asked = parse(Questions, {key: composed[key] for key in Questions.model_fields})
    evaluation, attack = asked.evaluation, asked.attack
    more: dict[str, Any] = {} if evaluation.examples is None else {"examples": evaluation.examples}
    decoding = {key: value for key in DECODING if (value := getattr(evaluation, key)) is not None}
    task = as_asked(config.task, decoding)
    more |= {key: value for key, value in decoding.items() if getattr(task, key) != getattr(config.task, key)}
    if attack.epsilon > 0:
        more["attack"] = attack.model_dump(exclude=set() if attack.kind == "pgd" else {"steps"})
    known = ("train", *config.task.splits)
    for split in evaluation.splits or ():
        if split not in known:
            of = f"task.name={config.task.name} has {', '.join(known)}"
            raise ConfigError(f"evaluation.splits={split} is not a split of the task{nearest(split, known)}; {of}")
    return {split: {"split": split} | more for split in evaluation.splits or config.task.splits}


def clean(config: RunConfig) -> list[dict[str, Any]]:
    """The settings of the evaluations that a run has by default."""
    return [{"split": split} for split in config.task.splits]


def as_asked(task: Task, settings: Mapping[str, Any]) -> Task:
    """The task with the decoding of an evaluation with these settings."""
    changes = {key: settings[key] for key in DECODING if key in settings}
    return parse(Task, task.model_dump() | changes) if changes else task


def freeze(composed: Mapping[str, Any]) -> tuple[RunConfig, Place]:
    """A composed configuration (plain containers, interpolations resolved) as what is computed, and where.

    Raises ConfigError for a wrong key, type or value, and for a backbone file that is not there.
    """
    place = place_of(composed)
    return config_of(composed, checksum_of(place)), place


def place_of(composed: Mapping[str, Any]) -> Place:
    return parse(Place, {key: composed.get(key, {}) for key in Place.model_fields})


def checksum_of(place: Place) -> str:
    """Of the backbone's file."""
    file = backbone_file(place)
    if not file.is_file():
        raise ConfigError(
            f"paths.backbone={place.paths.backbone} is not a file; give the pretrained checkpoint of this model, "
            "for instance paths.backbone=/data/ofa_base.pt"
        )
    return fingerprint(file)


def as_written(composed: Mapping[str, Any], checksum: str) -> RunConfig:
    """A run's settings, but for what the task's files decide. Raises ConfigError.

    `tuned`, the rates that optim.lr refers to, is no part of it, nor is what finished weights are asked.
    """
    others = {"tuned", *Questions.model_fields, *Place.model_fields}
    values = {key: value for key, value in composed.items() if key not in others}
    values["backbone"] = dict(values["backbone"]) | {"checksum": checksum}
    data = dict(values["task"]["data"]) | {"fingerprint": f"digits-{WORLD_VERSION}"}
    values["task"] = dict(values["task"]) | {"data": data}
    return parse(RunConfig, values | {"training_version": TRAINING_VERSION})


def config_of(composed: Mapping[str, Any], checksum: str) -> RunConfig:
    """A run's settings. Raises ConfigError, also for a file of its task that is not there."""
    config = as_written(composed, checksum)
    if config.task.files:
        found = {"fingerprint": data_checksum(config.task, composed["paths"]["data"])}
        task = config.task.model_copy(update={"data": config.task.data.model_copy(update=found)})
        config = config.model_copy(update={"task": task})
    if composed["cache"]["frozen"] == "on" and config.backbone.mode == "train":
        raise ConfigError(
            "cache.frozen=on does not go with backbone.mode=train, where BatchNorm follows the batches and nothing stays as it "
            "was computed; leave cache.frozen at auto, or freeze the backbone with backbone.mode=eval"
        )
    return config


def data_folder(place: Place) -> str | None:
    """An absolute path stays itself."""
    return None if place.paths.data is None else str(ROOT / place.paths.data)


def data_checksum(task: Task, folder: str | None) -> str:
    """Of the task's files. Raises ConfigError if one is not there."""
    if folder is None:
        raise ConfigError(
            f"task={task.name} reads files, and paths.data=null; give the folder that holds {task.files[0]} and the others, "
            "for instance paths.data=/data/ofa"
        )
    for name in task.files:
        if not (ROOT / folder / name).is_file():
            raise ConfigError(f"paths.data={folder} holds no file {name}, which task={task.name} reads")
    return fingerprints([ROOT / folder / name for name in task.files])


def provenance() -> dict[str, Any]:
    """{"commit": sha or None, "dirty": whether packages or conf differ from it}. None where git has no commit to name."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", "mmprompt", "sweeps", "conf")
    return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": bool(changes)}


def backbone_file(place: Place) -> Path:
    return ROOT / place.paths.backbone  # an absolute path stays itself


def read_config(file: Path) -> RunConfig:
    """The frozen settings of a run. Raises ConfigError when they are not what the folder's name promises."""
    text = file.read_text(encoding="utf-8")
    if digest(text) != file.parent.name:
        raise ConfigError(
            f"{file} was changed after launch: its hash is {digest(text)}, its folder says {file.parent.name}"
        )
    return parse(RunConfig, completed(json.loads(text)))


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings as they were frozen, with the neutral value of each key that was added later."""
    for key, value in NEUTRAL.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section.setdefault(last, value)
    return values


def default_store() -> Path:
    """Where no other is named: MMPROMPT_RUNS, else `runs` in the clone, whatever folder one is in."""
    return Path(os.environ.get("MMPROMPT_RUNS") or ROOT / "runs").absolute()


def who() -> str:
    """The user whose process this is; by number where nobody knows a name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def this_process() -> dict[str, Any]:
    """What `lives` needs to know of the process that calls this."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def lives(process: Mapping[str, Any]) -> bool | None:
    """Is a process still there, by its host, pid and start?

    None: nobody here can tell. It is another host's, or another user's where /proc hides those (hidepid).
    """
    if process["host"] != socket.gethostname():
        return None
    try:
        found = psutil.Process(process["pid"])
        alive = found.status() != psutil.STATUS_ZOMBIE
        return alive and abs(found.create_time() - process["started"]) < CLOCK  # else the pid is a stranger's by now
    except psutil.NoSuchProcess:
        return None if is_hidden(process["pid"]) else False
    except psutil.AccessDenied:
        return None


def is_hidden(pid: int) -> bool:
    """Whether it is another user's process that /proc does not show."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


@dataclass(frozen=True)
class Store:
    """The folder everything is written to, and the only place that knows how it is laid out."""

    root: Path

    def run(self, run: str) -> RunFolder:
        return RunFolder(self.root / "run" / run)

    def runs(self) -> set[str]:
        """The runs that have a folder."""
        try:
            return set(os.listdir(self.root / "run"))
        except FileNotFoundError:
            return set()

    def manifest(self, sweep: str) -> Path:
        return self.root / "sweeps" / f"{sweep}.json"

    @property
    def cache(self) -> Path:
        """What frozen backbones made of examples; anyone may delete it at any time."""
        return self.root / "cache"

    @property
    def jobs(self) -> Path:
        """One folder per launch: what was submitted, submitit's files and logs."""
        return self.root / "jobs"

    @property
    def code(self) -> Path:
        """Copies of our packages as they were at a launch, by content hash."""
        return self.root / "code"


@dataclass(frozen=True)
class RunFolder:
    """One run's folder: at most 15 files once it is finished, and up to four for each attempt that did not finish it."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    @property
    def published(self) -> Attempt:
        """The attempt whose files are the run's. Raises FileNotFoundError while there is none."""
        return Attempt(self, json.loads(self.result_file.read_text(encoding="utf-8"))["attempt"])

    @property
    def weights_file(self) -> Path:
        return self.published.weights_file

    @property
    def evaluations(self) -> Path:
        """Those that were made after the run had published."""
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """Of a run that is done: its published attempt's, else that of a later one."""
        own = self.published.evaluation_file(evaluation)
        return own if own.exists() else self.evaluations / own.name

    def missing(self, wanted: Collection[str], result: Mapping[str, Any] | None) -> frozenset[str]:
        """Of these evaluations those that are not there. `result`: the run's, if it has one."""
        left = frozenset(wanted)
        if result is not None and left:
            left -= {*result.get("evaluations", {}).values(), *result.get("evaluated", ())}
        if result is None or not left:
            return left
        try:
            return left - {name.removesuffix(".json") for name in os.listdir(self.evaluations)}
        except FileNotFoundError:
            return left

    def is_done(self, wanted: Collection[str]) -> bool:
        result = self.result()
        return result is not None and not self.missing(wanted, result)

    def create(self, config: RunConfig) -> None:
        if not self.config_file.exists():
            write_once(self.config_file, frozen_text(config))

    def result(self) -> dict[str, Any] | None:
        """The published result, or None while there is none."""
        try:
            return json.loads(self.result_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def attempts(self) -> list[Attempt]:
        """All attempts, oldest first."""
        numbers = sorted(int(path.name) for path in (self.path / "attempts").glob("*") if path.name.isdigit())
        return [Attempt(self, number) for number in numbers]

    def attempts_at_hand(self, result: Mapping[str, Any] | None) -> list[Attempt]:
        """Those at what is left to do. Of a run that has its `result`: those that evaluate, since one of them came to its end."""
        if result is None:
            return self.attempts()
        evaluating = [attempt for attempt in self.attempts() if attempt.evaluates]
        ended = max((attempt.number for attempt in evaluating if attempt.has_ended), default=0)
        return [attempt for attempt in evaluating if attempt.number > ended]

    def claim(self, number: int, job: Mapping[str, Any]) -> Attempt | None:
        """Attempt `number`, holding `job.json`; None when another process claimed that number first.

        A caller takes the number before it looks whether somebody is at the run: whoever claims in between has it.
        """
        attempt = Attempt(self, number)
        try:
            with drafted(attempt.path) as draft:
                write_once(draft / "job.json", json.dumps(job, indent=1))
                draft.rename(attempt.path)  # fails if that attempt exists, because it holds a job.json
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                return None
            raise StoreError(f"{attempt.path} cannot be made: {error.strerror}") from error
        return attempt

    @property
    def next_number(self) -> int:
        """Of an attempt that would be made now."""
        attempts = self.attempts()
        return attempts[-1].number + 1 if attempts else 1

    def tries(self) -> int:
        """How many attempts in a row ended in an error, or at a time limit, without getting further than those before them.

        To get further is to leave a further checkpoint, where the next attempt would go on, or to have made an evaluation.
        """
        count, furthest, is_trained = 0, 0, self.result() is not None
        for attempt in self.attempts():
            if is_trained and not attempt.evaluates:
                continue
            step, error = max(attempt.checkpoint_steps, default=0), attempt.error
            if step > furthest or attempt.has_evaluated:
                count, furthest = 0, max(step, furthest)
            count += error is not None and (not error.startswith(INTERRUPTED) or error.startswith(NEAR_LIMIT))
        return count

    def checkpoints(self) -> list[tuple[int, Attempt]]:
        """Step and attempt of every checkpoint, the furthest first; of equals the latest attempt's."""
        found = [(step, attempt) for attempt in self.attempts() for step in attempt.checkpoint_steps]
        return sorted(found, key=lambda one: (one[0], one[1].number), reverse=True)

    def publish(self, attempt: Attempt, result: Mapping[str, Any]) -> bool:
        """Make the attempt's result the run's. False if another attempt was first; then nothing changes."""
        won = write_once(self.result_file, json.dumps(result, indent=1))
        self.tidy(attempt)
        return won

    def tidy(self, mine: Attempt | None) -> None:
        """Of a done run, removes what nobody will need: checkpoints, what other attempts made, what was left half written.

        Attempts that are still at work, other than `mine`, are left to tidy up themselves; of those of which nobody here can
        tell, those that evaluate: they do not end because the run has its result.
        """
        published = self.published
        for attempt in self.attempts():
            lives = attempt.lives()
            if attempt == mine or lives is False or (lives is None and not attempt.evaluates):
                attempt.sweep()
                for step in attempt.checkpoint_steps:
                    remove(attempt.checkpoint_file(step))
                if attempt != published:
                    shutil.rmtree(attempt.evaluations, ignore_errors=True)
                    remove(attempt.weights_file)
        for draft in (self.path / "attempts").glob(".*"):
            shutil.rmtree(draft, ignore_errors=True)
        for file in self.path.glob(".*"):
            remove(file)


@dataclass(frozen=True)
class Attempt:
    """One try of one run by one job. Everything it writes before publishing lies in its own folder."""

    run: RunFolder
    number: int

    @property
    def path(self) -> Path:
        return self.run.path / "attempts" / str(self.number)

    @property
    def job(self) -> dict[str, Any]:
        return json.loads((self.path / "job.json").read_text(encoding="utf-8"))

    @property
    def evaluates(self) -> bool:
        """Does it evaluate a run that had its result before, and train nothing?"""
        return self.job.get("work") == "evaluate"  # attempts of long ago do not say that they train

    def lives(self) -> bool | None:
        """Is its process still there? None: nobody here can tell."""
        return lives(self.job)

    @property
    def end_file(self) -> Path:
        return self.path / "evaluated.json"

    @property
    def has_ended(self) -> bool:
        """Has it, evaluating, done what it was made for? Its process may go on with other runs."""
        return self.end_file.exists()

    def end(self, facts: Mapping[str, Any]) -> None:
        """What an attempt that evaluates says last, when all is there."""
        write_once(self.end_file, json.dumps(facts, indent=1))

    @property
    def has_evaluated(self) -> bool:
        """Has it put an evaluation in place?"""
        progress = self.progress
        return progress is not None and bool(progress.get("evaluated"))

    @property
    def claimed(self) -> float:
        """When it began, in seconds since the epoch."""
        return (self.path / "job.json").stat().st_mtime

    @property
    def last_sign(self) -> float:
        """When it was last heard of at work. Somebody else may have written why it ended, much later: that does not count."""
        signs = [self.path / "progress.json", *map(self.checkpoint_file, self.checkpoint_steps)]
        times = [self.claimed]
        for sign in signs:
            with contextlib.suppress(FileNotFoundError):
                times.append(sign.stat().st_mtime)
        return max(times)

    def checkpoint_file(self, step: int) -> Path:
        return self.path / f"checkpoint.{step}.pt"

    @property
    def checkpoint_steps(self) -> list[int]:
        """Of the checkpoints that are there, in order."""
        return sorted(int(file.name.split(".")[1]) for file in self.path.glob("checkpoint.*.pt"))

    @property
    def weights_file(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    def evaluation_file(self, evaluation: str) -> Path:
        """Its values; the scores of single examples lie beside it, as .npy."""
        return self.evaluations / f"{evaluation}.json"

    def sweep(self) -> None:
        """Removes what its process, now gone, was writing when it ended, and the W&B client's logs, but not its record."""
        for file in (*self.path.glob(".*"), *self.evaluations.glob(".*")):
            remove(file)
        for part in ("files", "logs", "tmp"):
            for folder in self.path.glob(f"wandb/*run-*/{part}"):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def error(self) -> str | None:
        """Why it failed; None if it did not, or if it never got to say."""
        try:
            return (self.path / "error.txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def diverged(self) -> bool:
        """Whether its loss or gradient became infinite: with the same settings it always will, so this is an outcome."""
        return DIVERGED in (self.error or "")

    @property
    def has_failed(self) -> bool:
        """Whether it ended for a reason that lies in the run, and was not interrupted."""
        error = self.error
        return error is not None and not error.startswith(INTERRUPTED)

    def fail(self, reason: str) -> None:
        write_over(self.path / "error.txt", reason)

    @property
    def progress(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def report(self, progress: Mapping[str, Any]) -> None:
        write_over(self.path / "progress.json", json.dumps(progress))
