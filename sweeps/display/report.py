"""The status of a sweep: a line for each run, the counts of states, and the estimated time left."""

from __future__ import annotations

import dataclasses
import heapq
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean
from typing import Any

from mmprompt.runs.records import DamagedError, TaskRecord
from sweeps.display.pace import UNKNOWN, ExpectedTime
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.arrays import ranges
from sweeps.states.causes import RunFailure
from sweeps.states.state import COUNTED, Name, State
from sweeps.wording import duration, remaining

HERE = socket.gethostname()
# The order of rows. Every run has a row whose state stands before `queued`.
ORDER: tuple[Name, ...] = (
    "running",
    "failed",
    "damaged",
    "lost?",
    "diverged",
    "queued",
    "to evaluate",
    "to do",
    "done",
)
FINISHED: tuple[Name, ...] = ("done", "diverged")  # states in which nothing is left to do
# SLURM's reasons for holding a job until a user releases it.
HELD = (
    "launch failed requeued held",
    "job requeued in held state",
)
SUSPICIOUS_SILENCE = 600.0  # seconds without progress after which a running run may hang


@dataclass(frozen=True)
class RunLine:
    """A run's row: first the keys of the JSON, below them what the estimate of the sweep's time left needs."""

    run: str
    values: Mapping[str, Any]  # of the point
    state: Name
    slurm: str | None  # the job's state in SLURM's word
    job: str | None
    node: str | None
    attempt: int | None
    step: int | None
    steps: int | None
    validation: float | None  # the latest score
    elapsed: float | None  # seconds that the run's steps took, in earlier attempts too
    left: float | None  # seconds until a running run is done, None if unknown
    # Seconds until the job's time limit: if it comes before the run's end, SLURM requeues the job.
    job_left: float | None
    heard: float | None  # when the run last reported, in seconds since 1970, by the clock of the file server
    cause: str | None  # why the run stopped
    reason: str | None  # the cause in a sentence, or SLURM's reason for letting the job wait
    damaged: str | None = None  # the damaged file, relative to the store
    evaluating: bool = False  # the run is trained and only evaluations are missing; its steps count examples

    silent: float = 0.0  # seconds since a running run last reported
    expected: ExpectedTime = UNKNOWN  # of a run that is not done
    is_held_locally: bool = False  # a live launch on local processes is working on the run or will work on it
    is_whole: bool = True  # False: `left` covers the steps alone, because the time of what follows them is unknown

    def json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {key: values[key] for key in values if key not in ("silent", "expected", "is_held_locally", "is_whole")}

    @property
    def is_active(self) -> bool:
        """Whether the run is running and not suspended."""
        return self.state == "running" and self.slurm != "SUSPENDED"

    @property
    def has_slot(self) -> bool:
        """Whether a process is working on the run, or a running job will when it is done with its other runs."""
        return self.is_active or (self.state == "queued" and self.slurm == "RUNNING")

    @property
    def slot(self) -> str:
        """What executes a run for which `has_slot` is True. All runs of a job share a slot: the job executes one after another."""
        return self.job or self.run

    @property
    def is_waiting(self) -> bool:
        """Whether the run waits for a slot."""
        return self.state == "queued" or (self.is_held_locally and self.state in ("to do", "to evaluate"))

    @property
    def done(self) -> float:
        """The share of the run that is done, from 0 to 1. For a running run it is a share of time, of evaluations too, if that
        is known, else of steps."""
        if self.state in FINISHED or not self.step or not self.steps:
            return float(self.state in FINISHED)
        if self.state != "running":
            return 0.0
        if self.elapsed and self.left and self.is_whole:
            return self.elapsed / (self.elapsed + self.left)
        return min(0.99, self.step / self.steps)

    @property
    def rank(self) -> int:
        """The run's place in the order of rows. Any run that stopped for a cause stands among the failed ones."""
        return ORDER.index("failed" if self.cause else self.state)

    @property
    def activity(self) -> str:
        """What a running run does instead of training; empty while it trains, and for runs that are not running."""
        if self.state != "running":
            return ""
        if self.slurm == "SUSPENDED":
            return "suspended"
        if self.step is None:
            return "starting"
        if self.evaluating:
            return "evaluating"
        return "scoring" if self.step == self.steps else ""

    @property
    def state_text(self) -> str:
        """The state as the table shows it, with its cause, reason or activity."""
        if self.damaged:
            return f"damaged: {self.damaged}"
        if self.cause:
            return f"{self.state} ({self.cause})"
        if self.state == "queued" and self.slurm != "PENDING":
            return f"queued ({'its job runs' if self.slurm == 'RUNNING' else str(self.slurm).lower()})"
        if self.state == "queued" and self.reason:
            return f"queued ({self.reason})"
        text = self.activity or self.state
        return f"{text}, silent for {duration(self.silent)}" if self.silent > SUSPICIOUS_SILENCE else text

    @property
    def cells(self) -> list[str]:
        """The row's cells, from the column `state` on."""
        step = "" if self.step is None else f"{self.step}/{self.steps}"
        score = "" if self.validation is None else f"{self.validation:.1f}"
        elapsed = "" if self.elapsed is None else duration(self.elapsed)
        attempt = "" if self.attempt is None else str(self.attempt)
        return [self.state_text, self.job or "", self.node or "", attempt, step, score, elapsed, self._left_text]

    @property
    def _left_text(self) -> str:
        if self.left is None:
            return ""
        job = f" (job {duration(self.job_left)})" if self.job_left is not None and self.job_left < self.left else ""
        return f"{'' if self.is_whole else '> '}{remaining(self.left)}{job}"


@dataclass(frozen=True)
class TimeLeft:
    """The estimated time until all runs are done."""

    seconds: float | None  # None: unknown
    is_whole: bool  # False: `seconds` leaves out runs or evaluations whose time is unknown

    def __str__(self) -> str:
        if self.seconds is None:
            return "time left not known yet"
        return f"{'about' if self.is_whole else 'more than'} {remaining(self.seconds)} left"


def time_left(lines: Iterable[RunLine]) -> TimeLeft | None:
    """The estimated time until the active and the waiting runs are done; None if no slot works on any of them.

    It assumes that the present slots, and no others, take the waiting runs one after another in the given order. A run that is
    like no finished run is expected to take as long as the active runs do.
    """
    lines = list(lines)
    active = [line for line in lines if line.is_active]
    busy_for = {line.slot: 0.0 for line in lines if line.has_slot}  # seconds until the slot is free
    if not busy_for:
        return None
    means = {kind: _mean_seconds([line for line in active if line.evaluating == kind]) for kind in (False, True)}

    def total(line: RunLine) -> float | None:
        return means[line.evaluating] if line.expected.total is None else line.expected.total

    active_seconds = [(line, total(line) if line.activity == "starting" else line.left) for line in active]
    waiting_seconds = [total(line) for line in lines if line.is_waiting]
    all_seconds = [*(seconds for _, seconds in active_seconds), *waiting_seconds]
    for line, seconds in active_seconds:
        busy_for[line.slot] += seconds or 0.0
    ends = sorted(busy_for.values())  # a sorted list is a heap
    for seconds in waiting_seconds:
        heapq.heapreplace(ends, ends[0] + (seconds or 0.0))
    is_known = any(seconds is not None for seconds in all_seconds)
    is_whole = all(seconds is not None for seconds in all_seconds) and all(line.is_whole for line in active)
    return TimeLeft(max(ends) if is_known else None, is_whole)


def _mean_seconds(active: Sequence[RunLine]) -> float | None:
    """The mean seconds that active runs take from start to end; a lower bound if the time after their steps is unknown."""
    took = [line.elapsed + (line.left or 0.0) for line in active if line.elapsed and line.step]
    return mean(took) if took else None


@dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep at one moment."""

    launched: LaunchedSweep
    lines: Sequence[RunLine]  # in the order of the manifest
    failures: Mapping[str, RunFailure]

    @property
    def counts(self) -> dict[Name, int]:
        counts = Counter(line.state for line in self.lines)
        return {name: counts[name] for name in COUNTED}

    @property
    def repairs(self) -> list[str]:
        """Lines that name damaged files, and the commands that release jobs which SLURM holds."""
        damaged = [f"damaged: {line.reason}" for line in self.lines if line.state == "damaged"]
        held: dict[str, dict[str, None]] = {}  # by reason: the jobs, each once
        for line in self.lines:
            if line.state == "queued" and line.reason in HELD and line.job:
                held.setdefault(line.reason, {})[line.job] = None
        released = [
            f"held by SLURM ({reason}): scontrol release {' '.join(ranges(jobs))}" for reason, jobs in held.items()
        ]
        return [*damaged, *released]

    def silence_advice(self, names: Mapping[str, str]) -> Iterator[str]:
        """What to do about running runs that have stopped reporting; nothing if there are none.

        The advice names all runs of their jobs, because a job can only be cancelled with all of them. `names`: what to call each
        run on the command line.
        """
        silent = [line for line in self.lines if line.silent > SUSPICIOUS_SILENCE]
        if silent:
            jobs = {line.slot for line in silent}
            held = [names[line.run] for line in self.lines if line.has_slot and line.slot in jobs]
            longest = duration(max(line.silent for line in silent))
            yield f"no word for {longest} from {', '.join(names[line.run] for line in silent)}:"
            yield f"  `python -m sweeps logs {names[silent[0].run]}` shows its last; next, if it hangs, and then launch again:"
            yield f"    python -m sweeps cancel {' '.join(held)}"

    @property
    def has_stopped(self) -> bool:
        """Whether any run has failed, was interrupted or is damaged."""
        return bool(self.failures) or any(line.state == "damaged" for line in self.lines)

    @property
    def is_done(self) -> bool:
        return all(line.state in FINISHED for line in self.lines)

    @property
    def done(self) -> float:
        """The share of the sweep that is done, from 0 to 1."""
        return sum(line.done for line in self.lines) / max(1, len(self.lines))

    @cached_property
    def left(self) -> TimeLeft | None:
        """The estimated time left; None if no process or job works on the sweep."""
        return time_left(self.lines)

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}{self._details(name)}" for name, count in self.counts.items() if count)
        left = f", {self.left}" if self.left else ""
        runs = f"{len(self.lines)} run{'s' if len(self.lines) != 1 else ''}"
        percent = 100 * self.done if self.is_done else min(99.0, 100 * self.done)
        return f"{self.launched.name}: {runs}: {counts}; {percent:.0f} % done{left}"

    def _details(self, state: Name) -> str:
        """The causes or activities of the runs in this state, counted, in brackets; empty if there are none."""
        details = Counter(line.cause or line.activity for line in self.lines if line.state == state)
        del details[""]
        return f" ({', '.join(f'{count} {detail}' for detail, count in details.items())})" if details else ""

    @property
    def metric(self) -> str:
        """The head of the column of scores: the validation metric, if all tasks of the sweep have the same."""
        names = {validation_metric(task) for task in self.launched.manifest["tasks"].values()}
        return names.pop() if len(names) == 1 else "validation"

    def json(self) -> dict[str, Any]:
        content = {"sweep": self.launched.name, "counts": self.counts, "done": round(self.done, 4)}
        content |= {"left": self.left.seconds if self.left else None, "metric": self.metric}
        return content | {"runs": [line.json() for line in self.lines]}


def total_time_left(reports: Sequence[SweepStatus]) -> list[str]:
    """A line with the time until several sweeps are all done, counting shared runs once; no line for a single sweep."""
    left = time_left({line.run: line for report in reports for line in report.lines}.values())
    return [f"together {left}"] if left and len(reports) > 1 else []


def validation_metric(task: TaskRecord) -> str:
    """The metric key of a task's validation score, from its record in a manifest. Old manifests name no split: it is `val`."""
    return f"{task.get('validation', 'val')}/{task['metric']}"


def line_of(run: str, values: Mapping[str, Any], state: State, failure: RunFailure | None, metric: str) -> RunLine:
    """A run's row: the result of a done run, the progress of the newest attempt of any other. `metric`: its validation metric."""
    attempt, job = state.attempt, state.job
    facts = attempt.job if attempt else None
    progress = attempt.progress if attempt and state.name != "done" else None
    line = RunLine(
        run=run,
        values=values,
        state=state.name,
        slurm=job.state if job else None,
        job=job.id if job and job.id else str(facts["job"]) if facts and "job" in facts else None,
        node=job.node if job and job.node else (facts["host"] if facts and facts["host"] != HERE else None),
        attempt=attempt.number if attempt else None,
        step=None,
        steps=None,
        validation=None,
        elapsed=None,
        left=None,
        job_left=in_seconds(job.left) if job and job.state == "RUNNING" else None,
        heard=attempt.last_sign if attempt and progress else None,
        cause=failure.cause if failure else None,
        reason=failure.reason if failure else str(state.damage) if state.damage else job.reason if job else None,
        damaged=None if state.damage is None else path_in_store(state.damage),
        evaluating=state.result is not None and state.name != "done",
    )
    if state.result and state.name == "done":
        result, score = state.result, state.result["metrics"].get(metric)
        steps = result.get("steps")
        return replace(line, step=steps, steps=steps, validation=score, elapsed=result.get("seconds"))
    if progress:
        step, steps, elapsed = progress["step"], progress["steps"], progress["seconds"]
        score = progress["validation"][-1][1] if progress["validation"] else None
        return replace(line, step=step, steps=steps, validation=score, elapsed=elapsed)
    return line


def with_time_left(line: RunLine, expected: ExpectedTime, is_held_locally: bool, now: float) -> RunLine:
    """The row of a run that is not done, with its estimated time left and the time since it last reported.

    `now`: the time of the file server, in seconds since 1970.
    """
    silent = max(0.0, now - line.heard) if line.heard and line.is_active else 0.0
    line = replace(line, expected=expected, is_held_locally=is_held_locally, silent=silent)
    if line.state != "running":
        return line
    if line.step is None or line.steps is None or line.elapsed is None:
        return replace(line, left=expected.total)
    training = line.elapsed / line.step * (line.steps - line.step) if line.step else None
    after = 0.0 if line.evaluating else expected.after_training
    if training is None or after is None:
        return replace(line, left=training or None, is_whole=False)
    return replace(line, left=training + after)


def path_in_store(damage: DamagedError) -> str:
    """The path of a run's damaged file relative to the store: `run/ID/...`."""
    parts = damage.file.parts
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("run") :])


def in_seconds(left: str) -> float | None:
    """Seconds of a duration that SLURM writes as `1-02:03:04` or `2:03`; None for words such as UNLIMITED."""
    days, _, clock = left.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    seconds = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return float(int(days or 0) * 86400 + seconds)
