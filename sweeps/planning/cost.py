"""What runs will take, as finished runs of their kind tell: time, GPU-hours, disk. Nothing is guessed where none is finished.

A kind is a model, a task and a method, or that nothing is trained, on a GPU or not. Finished runs of the sweep at hand tell, else
a sample of the store's.
What an evaluation takes is told by those of its kind: of the same split, decoded and attacked in the same way with whatever budget.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import Cluster
from mmprompt.runs.identity import canonical
from mmprompt.runs.records import EVALUATION, DamagedError, EvaluationRecord, ResultRecord, read
from mmprompt.runs.store import Attempt, RunFolder, Store
from mmprompt.settings.prompt import Prompt
from sweeps.states.state import State

LOOKED_INTO = 1000  # run folders, for kinds of which the sweep has not finished any
ENOUGH = 16  # finished runs of a kind, of which each is looked at
AT_ONCE = 16  # folders that are looked into together
STATES = 4  # of the size of the trainable parameters: themselves, the best so far, and AdamW's two moments
KEPT = 3  # checkpoints of a run at work: two, and one that is being written
PASS = 20e3, 8  # bytes and files of an attempt that evaluates, and for each evaluation
TRY = "try `launch --limit 1`"

Kind = tuple[str, str, str]
Settings = Mapping[str, Any]  # of an evaluation


@dataclass(frozen=True)
class Work:
    """What decides what it takes to train a run."""

    kind: Kind
    examples: int  # that it trains on, counted as often as it sees them

    @classmethod
    def of(cls, config: RunConfig) -> Work:
        prompt = config.settings_of(Prompt)
        lengths = () if prompt is None else (prompt.length, prompt.decoder_length)
        kind = config.model.name, config.task.name, _trained(config.method, lengths)
        return cls(kind, config.optim.steps * config.optim.batch_size)

    @classmethod
    def frozen(cls, folder: RunFolder) -> Work:
        """As its config.json says, of whatever version. Raises DamagedError."""
        config = folder.settings()
        prompt = config.get("prompt") or {}
        method = _trained(config["method"], (prompt.get("length"), prompt.get("decoder_length")))
        kind = config["model"]["name"], config["task"]["name"], method
        return cls(kind, config["optim"]["steps"] * config["optim"]["batch_size"])


@dataclass(frozen=True)
class FinishedRun:
    """A finished run that can tell what others of its kind will take."""

    folder: RunFolder
    examples: int  # that it trained on, counted as often as it saw them
    result: ResultRecord


@dataclass(frozen=True)
class FinishedRuns:
    """What finished runs tell of a kind."""

    seconds: float  # of training, per example
    rest: float  # seconds before and after it, less those of evaluations, where these say what they took
    evaluations: Mapping[str, float]  # seconds that they took, by their kind
    bytes: float  # that a finished run leaves
    files: float
    checkpoints: float  # bytes that a run needs besides while it is at work

    def evaluating(self, settings: Iterable[Settings]) -> float | None:
        """Seconds that these evaluations take. Of clean ones that do not say it, `rest` has them."""
        took = [self.evaluations.get(like(one), 0.0 if one.keys() == {"split"} else None) for one in settings]
        known = [one for one in took if one is not None]
        return sum(known) if len(known) == len(took) else None

    def evaluated(self, count: int) -> FinishedRuns:
        """What is told of a trained run that lacks so many evaluations."""
        bytes, files = PASS
        return replace(self, bytes=bytes * (count + 1), files=files + 2 * count, checkpoints=0.0)


@dataclass(frozen=True)
class Cost:
    """By run that is to do: its seconds, and what is told of its kind; None where nothing is."""

    seconds: dict[str, float | None]
    told: dict[str, FinishedRuns | None]
    finished: int  # runs that told it
    devices: int  # that a job asks for: GPUs, or CPU cores where it asks for no GPU
    unit: str

    @property
    def known(self) -> list[float]:
        return [seconds for seconds in self.seconds.values() if seconds is not None]

    @property
    def hours(self) -> float | None:
        """GPU-hours or CPU-core-hours of the runs of which something is known."""
        return self.devices * sum(self.known) / 3600 if self.known else None

    def wall(self, jobs: Iterable[Sequence[str]], at_once: int) -> float | None:
        """Seconds until the last of these jobs has ended, so many at a time, if none has to wait for others' jobs."""
        free = [0.0] * at_once
        for job in jobs:
            took = [seconds for run in job if (seconds := self.seconds[run]) is not None]
            if len(took) < len(job):
                return None
            heapq.heapreplace(free, free[0] + sum(took))
        return max(free)

    def disk(self, at_once: int) -> tuple[float, float] | None:
        """Bytes and files that the runs need, so many of them at work together."""
        told = [one for one in self.told.values() if one is not None]
        if len(told) < len(self.told):
            return None
        checkpoints = sorted((one.checkpoints for one in told), reverse=True)[:at_once]
        return sum(one.bytes for one in told) + sum(checkpoints), sum(one.files for one in told)

    def __str__(self) -> str:
        if self.hours is None:
            what = "finished run of their kind was asked the same" if self.finished else "run of their kind is finished"
            return f"{self.unit} unknown, no {what}; {TRY}"
        told = f"as {self.finished} finished run{'s' if self.finished != 1 else ''} of their kind took"
        unknown = len(self.seconds) - len(self.known)
        more = f"; {unknown} more runs are of a kind that was never finished, unknown, {TRY}" if unknown else ""
        return f"about {self.hours:.2g} {self.unit}, {told}{more}"


def cost(
    store: Store,
    configs: Mapping[str, RunConfig],
    wanted: Mapping[str, Mapping[str, Settings]],
    states: Mapping[str, State],
    to_do: Sequence[str],
    cluster: Cluster,
) -> Cost:
    """Of the runs that are to do; `configs`, `wanted`, their evaluations by id, and `states` are of the whole launch."""
    return cost_of(store, {run: Work.of(one) for run, one in configs.items()}, wanted, states, to_do, cluster)


def cost_of(
    store: Store,
    works: Mapping[str, Work],
    wanted: Mapping[str, Mapping[str, Settings]],
    states: Mapping[str, State],
    to_do: Sequence[str],
    cluster: Cluster,
) -> Cost:
    """The same of runs of which only that is known which decides it."""
    on_gpu = cluster.gpus > 0 and os.environ.get("MMPROMPT_FAKE_GPUS") != "1"  # there a CPU stands in for it
    found: dict[Kind, list[FinishedRun]] = {works[run].kind: [] for run in to_do}
    for run, work in works.items():
        result = states[run].result
        if result and work.kind in found and is_on_gpu(result) == on_gpu:
            found[work.kind].append(FinishedRun(store.run(run), work.examples, result))
    _look_elsewhere(store, {kind: there for kind, there in found.items() if not there}, on_gpu)
    told = {kind: tell(there) if there else None for kind, there in found.items()}
    by_run: dict[str, FinishedRuns | None] = {}
    seconds: dict[str, float | None] = {}
    for run in to_do:
        one, work, seen = told[works[run].kind], works[run], states[run]
        by_run[run], seconds[run] = one, None
        if one is not None:
            missing = [settings for id, settings in wanted[run].items() if id in seen.missing]
            asking, training = one.evaluating(missing), 0.0 if seen.result else one.seconds * work.examples
            seconds[run] = one.rest + training + asking if asking is not None else None
            by_run[run] = one.evaluated(len(missing)) if seen.result else one
    unit = "GPU-hours" if cluster.gpus else "CPU-core-hours"
    return Cost(seconds, by_run, sum(map(len, found.values())), cluster.gpus or cluster.cpus, unit)


def _trained(method: str, lengths: Iterable[int | None]) -> str:
    """The method; that of prompts of length 0 tells nothing of training others. `lengths`: of the prompts of both stacks."""
    return "nothing" if method == "prompt" and not any(lengths) else method


def like(settings: Settings) -> str:
    """The kind of an evaluation."""
    attack = {"attack": {key: value for key, value in settings.get("attack", {}).items() if key != "epsilon"}}
    return canonical({**settings, **attack})


def is_on_gpu(result: ResultRecord) -> bool:
    return not result.get("device", "cpu").startswith("cpu")


def _look_elsewhere(store: Store, missing: Mapping[Kind, list[FinishedRun]], on_gpu: bool) -> None:
    """Fills in finished runs of these kinds. A big store is sampled: ids are hashes, so any part of them is a fair one."""
    runs = sorted(store.runs())
    runs = runs[:: max(1, len(runs) // LOOKED_INTO)] if missing else []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for i in range(0, len(runs), AT_ONCE):
            for kind, finished in filter(None, pool.map(_finished, map(store.run, runs[i : i + AT_ONCE]))):
                if kind in missing and is_on_gpu(finished.result) == on_gpu:
                    missing[kind].append(finished)
            if all(len(there) >= ENOUGH for there in missing.values()):
                return


def _finished(folder: RunFolder) -> tuple[Kind, FinishedRun] | None:
    with contextlib.suppress(DamagedError):
        result = folder.result()
        if result is not None:
            work = Work.frozen(folder)
            return work.kind, FinishedRun(folder, work.examples, result)
    return None


def tell(there: Sequence[FinishedRun]) -> FinishedRuns:
    some = there[:: max(1, len(there) // ENOUGH)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = list(pool.map(lambda one: list(_evaluations(one)), some))
        rests = [rest for rest in pool.map(_rest, some, asked) if rest is not None]
        sizes = list(pool.map(lambda one: list(_sizes(one.folder.path)), some))
    parameters = mean(one.result.get("trainable_parameters", 0) for one in some)
    took: dict[str, list[float]] = {}
    for evaluation in itertools.chain(*asked):
        took.setdefault(like(evaluation["settings"]), []).append(evaluation["seconds"])
    return FinishedRuns(
        sum(one.result.get("seconds", 0.0) for one in there) / sum(one.examples for one in there),
        median(rests) if rests else 0.0,
        {kind: median(seconds) for kind, seconds in took.items()},
        mean(map(sum, sizes)),
        mean(map(len, sizes)),
        4 * parameters * STATES * KEPT,
    )


def _evaluations(one: FinishedRun) -> Iterator[EvaluationRecord]:
    """Those that were made of it, as far as they say what they took: those of long ago do not."""
    for file in one.folder.evaluation_files(one.result["attempt"]):
        with contextlib.suppress(DamagedError):
            evaluation = read(file, EVALUATION)
            if evaluation is not None and "seconds" in evaluation:
                yield evaluation


def _rest(one: FinishedRun, evaluations: Iterable[Mapping[str, Any]]) -> float | None:
    """Seconds from the claim to the result that were neither training nor, as far as that is known, evaluation.

    None of a run that took several attempts.
    """
    attempt = Attempt(one.folder, one.result["attempt"])
    if attempt.number > 1:
        return None
    try:
        began, ended = ((attempt.path / "job.json").stat().st_mtime, one.folder.result_file.stat().st_mtime)
    except OSError:
        return None
    asking = sum(evaluation["seconds"] for evaluation in evaluations if evaluation["attempt"] == attempt.number)
    return max(0.0, ended - began - one.result.get("seconds", 0.0) - asking)


def _sizes(folder: os.PathLike[str] | str) -> Iterator[int]:
    """Of every file and folder in it that is not removed meanwhile."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            with contextlib.suppress(OSError):
                yield entry.stat(follow_symlinks=False).st_size
