"""Estimates what runs cost, from finished runs of the same kind: time, GPU-hours and disk. Without such runs it makes no estimate.

A kind is a model, a task and a method, on a GPU or not; runs that train nothing are a kind of their own. The estimate uses finished
runs of the same launch, or, if it has none of the kind, a sample of the store's runs. The time of an evaluation is that of earlier
evaluations of its kind: on the same split, with the same decoding and attack, whatever the attack's budget.
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

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import canonical
from mmprompt.runs.records import EVALUATION, DamagedError, EvaluationRecord, ResultRecord, read
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster
from mmprompt.settings.prompt import Prompt
from sweeps.states.state import State

SAMPLED = 1000  # run folders of the store that are searched for kinds of which the launch has no finished run
ENOUGH = 16  # finished runs of a kind whose files are read
AT_ONCE = 16  # threads that read folders
STATES = 4  # arrays of the size of the trainable parameters: the parameters, the best so far, and AdamW's two moments
KEPT = 3  # checkpoints of a running run: two complete ones, and one that is being written
PASS = 20e3, 8  # bytes and files of an attempt that only evaluates, and again for each evaluation
TRY = "try `launch --limit 1`"

Kind = tuple[str, str, str]
EvaluationSettings = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """The part of a run's configuration that decides its cost."""

    kind: Kind
    examples: int  # training examples, each counted as often as the run sees it

    @classmethod
    def of(cls, config: RunConfig) -> Work:
        prompt = config.settings_of(Prompt)
        lengths = () if prompt is None else (prompt.length, prompt.decoder_length)
        kind = config.model.name, config.task.name, _trained(config.method, lengths)
        return cls(kind, config.optim.steps * config.optim.batch_size)

    @classmethod
    def frozen(cls, folder: RunFolder) -> Work:
        """Reads it from a run's config.json, of any version. Raises DamagedError if that file cannot be used."""
        config = folder.settings()
        prompt = config.get("prompt") or {}
        method = _trained(config["method"], (prompt.get("length"), prompt.get("decoder_length")))
        kind = config["model"]["name"], config["task"]["name"], method
        return cls(kind, config["optim"]["steps"] * config["optim"]["batch_size"])


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, from which the cost of other runs of its kind is estimated."""

    folder: RunFolder
    examples: int  # training examples, each counted as often as the run saw it
    result: ResultRecord


@dataclass(frozen=True)
class KindCost:
    """The cost of a run of one kind, estimated from finished runs."""

    seconds: float  # of training, per example
    rest: float  # seconds before and after training, without those of the evaluations that record their time
    evaluations: Mapping[str, float]  # seconds of an evaluation, by its kind
    bytes: float  # on disk after the run has finished
    files: float  # on disk after the run has finished
    checkpoints: float  # bytes that a run needs in addition while it runs

    def evaluation_seconds(self, settings: Iterable[EvaluationSettings]) -> float | None:
        """Returns the seconds that these evaluations take; None if a kind is unknown.

        Default evaluations that do not record their time count 0 here: `rest` includes them.
        """
        seconds = [
            self.evaluations.get(evaluation_kind(one), 0.0 if one.keys() == {"split"} else None) for one in settings
        ]
        known = [value for value in seconds if value is not None]
        return sum(known) if len(known) == len(seconds) else None

    def only_evaluating(self, count: int) -> KindCost:
        """Returns the cost for a trained run of this kind that lacks `count` evaluations."""
        bytes, files = PASS
        return replace(self, bytes=bytes * (count + 1), files=files + 2 * count, checkpoints=0.0)


@dataclass(frozen=True)
class Cost:
    """The estimated cost of the runs to do."""

    seconds: dict[str, float | None]  # by run; None: no estimate
    kind_costs: dict[str, KindCost | None]  # by run: the cost of its kind; None: no run of the kind is finished
    finished: int  # how many finished runs the estimate uses
    devices: int  # that a job requests: GPUs, or CPU cores if it requests no GPU
    unit: str  # of `hours`

    @property
    def known(self) -> list[float]:
        """The seconds of the runs with an estimate."""
        return [seconds for seconds in self.seconds.values() if seconds is not None]

    @property
    def hours(self) -> float | None:
        """GPU-hours or CPU-core-hours of the runs with an estimate; None if there is none."""
        return self.devices * sum(self.known) / 3600 if self.known else None

    def wall(self, jobs: Iterable[Sequence[str]], at_once: int) -> float | None:
        """Returns the seconds until the last of these jobs has ended, if `at_once` jobs run at a time and none waits for jobs of
        other users; None if a run has no estimate."""
        busy_until = [0.0] * at_once
        for job in jobs:
            known = [seconds for run in job if (seconds := self.seconds[run]) is not None]
            if len(known) < len(job):
                return None
            heapq.heapreplace(busy_until, busy_until[0] + sum(known))
        return max(busy_until)

    def disk(self, at_once: int) -> tuple[float, float] | None:
        """Returns the bytes and files that the runs need if `at_once` of them run at a time; None if one has no estimate."""
        known = [kind for kind in self.kind_costs.values() if kind is not None]
        if len(known) < len(self.kind_costs):
            return None
        checkpoints = sorted((kind.checkpoints for kind in known), reverse=True)[:at_once]
        return sum(kind.bytes for kind in known) + sum(checkpoints), sum(kind.files for kind in known)

    def __str__(self) -> str:
        if self.hours is None:
            reason = (
                "finished run of their kind made the same evaluations"
                if self.finished
                else "run of their kind is finished"
            )
            return f"{self.unit} unknown, no {reason}; {TRY}"
        source = f"as {self.finished} finished run{'s' if self.finished != 1 else ''} of their kind took"
        unknown = len(self.seconds) - len(self.known)
        others = f"; {unknown} more runs unknown, no run of their kind is finished; {TRY}" if unknown else ""
        return f"about {self.hours:.2g} {self.unit}, {source}{others}"


def cost(
    store: Store,
    configs: Mapping[str, RunConfig],
    wanted: Mapping[str, Mapping[str, EvaluationSettings]],
    states: Mapping[str, State],
    to_do: Sequence[str],
    cluster: Cluster,
) -> Cost:
    """Estimates the cost of the runs to do.

    `configs`, `wanted` and `states` are of the whole launch, by run. `wanted`: the settings of the evaluations that a run needs, by
    evaluation id.
    """
    return cost_of(store, {run: Work.of(config) for run, config in configs.items()}, wanted, states, to_do, cluster)


def cost_of(
    store: Store,
    works: Mapping[str, Work],
    wanted: Mapping[str, Mapping[str, EvaluationSettings]],
    states: Mapping[str, State],
    to_do: Sequence[str],
    cluster: Cluster,
) -> Cost:
    """Estimates the same from `works`, by run, instead of whole configurations."""
    on_gpu = cluster.gpus > 0 and os.environ.get("MMPROMPT_FAKE_GPUS") != "1"  # then CPUs stand in for GPUs
    finished: dict[Kind, list[FinishedRun]] = {works[run].kind: [] for run in to_do}
    for run, work in works.items():
        result = states[run].result
        if result and work.kind in finished and is_on_gpu(result) == on_gpu:
            finished[work.kind].append(FinishedRun(store.run(run), work.examples, result))
    _add_from_store(store, {kind: runs for kind, runs in finished.items() if not runs}, on_gpu)
    by_kind = {kind: kind_cost(runs) if runs else None for kind, runs in finished.items()}
    by_run: dict[str, KindCost | None] = {}
    seconds: dict[str, float | None] = {}
    for run in to_do:
        kind, work, state = by_kind[works[run].kind], works[run], states[run]
        by_run[run], seconds[run] = kind, None
        if kind is not None:
            missing = [settings for id, settings in wanted[run].items() if id in state.missing]
            evaluating, training = (
                kind.evaluation_seconds(missing),
                0.0 if state.result else kind.seconds * work.examples,
            )
            seconds[run] = kind.rest + training + evaluating if evaluating is not None else None
            by_run[run] = kind.only_evaluating(len(missing)) if state.result else kind
    unit = "GPU-hours" if cluster.gpus else "CPU-core-hours"
    return Cost(seconds, by_run, sum(map(len, finished.values())), cluster.gpus or cluster.cpus, unit)


def _trained(method: str, lengths: Iterable[int | None]) -> str:
    """Returns the method, or "nothing" for prompts of length 0, whose time tells nothing about training other prompts.

    `lengths`: those of the prompts of both stacks.
    """
    return "nothing" if method == "prompt" and not any(lengths) else method


def evaluation_kind(settings: EvaluationSettings) -> str:
    """Returns the kind of an evaluation: its settings without the attack's budget, as text."""
    attack = {"attack": {key: value for key, value in settings.get("attack", {}).items() if key != "epsilon"}}
    return canonical({**settings, **attack})


def is_on_gpu(result: ResultRecord) -> bool:
    return not result.get("device", "cpu").startswith("cpu")


def _add_from_store(store: Store, missing: Mapping[Kind, list[FinishedRun]], on_gpu: bool) -> None:
    """Adds finished runs of the store to the lists of these kinds.

    Of a large store it reads every n-th run. This is a fair sample, because ids are hashes.
    """
    runs = sorted(store.runs())
    runs = runs[:: max(1, len(runs) // SAMPLED)] if missing else []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for i in range(0, len(runs), AT_ONCE):
            for kind, finished in filter(None, pool.map(_finished, map(store.run, runs[i : i + AT_ONCE]))):
                if kind in missing and is_on_gpu(finished.result) == on_gpu:
                    missing[kind].append(finished)
            if all(len(found) >= ENOUGH for found in missing.values()):
                return


def _finished(folder: RunFolder) -> tuple[Kind, FinishedRun] | None:
    with contextlib.suppress(DamagedError):
        result = folder.result()
        if result is not None:
            work = Work.frozen(folder)
            return work.kind, FinishedRun(folder, work.examples, result)
    return None


def kind_cost(runs: Sequence[FinishedRun]) -> KindCost:
    """Estimates the cost of a kind from its finished runs. Files are read of a sample of the runs only."""
    sample = runs[:: max(1, len(runs) // ENOUGH)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        evaluations = list(pool.map(lambda run: list(_evaluations(run)), sample))
        rests = [rest for rest in pool.map(_rest, sample, evaluations) if rest is not None]
        sizes = list(pool.map(lambda run: list(_sizes(run.folder.path)), sample))
    parameters = mean(run.result.get("trainable_parameters", 0) for run in sample)
    times: dict[str, list[float]] = {}
    for evaluation in itertools.chain(*evaluations):
        times.setdefault(evaluation_kind(evaluation["settings"]), []).append(evaluation["seconds"])
    return KindCost(
        sum(run.result.get("seconds", 0.0) for run in runs) / sum(run.examples for run in runs),
        median(rests) if rests else 0.0,
        {kind: median(seconds) for kind, seconds in times.items()},
        mean(map(sum, sizes)),
        mean(map(len, sizes)),
        4 * parameters * STATES * KEPT,
    )


def _evaluations(run: FinishedRun) -> Iterator[EvaluationRecord]:
    """Yields the run's evaluations that record their time. Old ones do not."""
    for file in run.folder.evaluation_files(run.result["attempt"]):
        with contextlib.suppress(DamagedError):
            evaluation = read(file, EVALUATION)
            if evaluation is not None and "seconds" in evaluation:
                yield evaluation


def _rest(run: FinishedRun, evaluations: Iterable[Mapping[str, Any]]) -> float | None:
    """Returns the seconds from the claim to the result that were neither training nor evaluations with a recorded time.

    None for a run that took several attempts.
    """
    attempt = Attempt(run.folder, run.result["attempt"])
    if attempt.number > 1:
        return None
    try:
        began, ended = ((attempt.path / "job.json").stat().st_mtime, run.folder.result_file.stat().st_mtime)
    except OSError:
        return None
    evaluating = sum(evaluation["seconds"] for evaluation in evaluations if evaluation["attempt"] == attempt.number)
    return max(0.0, ended - began - run.result.get("seconds", 0.0) - evaluating)


def _sizes(folder: os.PathLike[str] | str) -> Iterator[int]:
    """Yields the size in bytes of every file and folder in a folder. Files that are removed meanwhile are left out."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(entry.path)
            with contextlib.suppress(OSError):
                yield entry.stat(follow_symlinks=False).st_size
