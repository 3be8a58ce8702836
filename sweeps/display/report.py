"""A report of a sweep: a line for each run, and what they come to together."""

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
from sweeps.display.pace import UNKNOWN, Takes
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.arrays import ranges
from sweeps.states.causes import RunFailure
from sweeps.states.state import COUNTED, Name, State
from sweeps.wording import duration, time_to_come

HERE = socket.gethostname()
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
)  # of rows; up to `diverged` all are shown
OVER: tuple[Name, ...] = ("done", "diverged")  # nothing is left to do
HELD = (
    "launch failed requeued held",
    "job requeued in held state",
)  # why SLURM lets a job wait until somebody releases it
QUIET = 600.0  # seconds without a word, after which a run at work is suspicious


@dataclass(frozen=True)
class RunLine:
    """A run: the keys of the JSON, and below them what goes into the estimate of the whole sweep."""

    run: str
    values: Mapping[str, Any]  # of the point
    state: Name
    slurm: str | None  # its word for the state of the job
    job: str | None
    node: str | None
    attempt: int | None
    step: int | None
    steps: int | None
    validation: float | None  # the latest score
    elapsed: float | None  # seconds that its steps took, of earlier attempts too
    left: float | None  # seconds until it is done; of a run at work, None where that is not known
    job_left: float | None  # seconds until the job's time limit: if that is less, SLURM starts it again
    heard: float | None  # when it last said something, in seconds since 1970, by the clock of the file server
    cause: str | None  # why it stopped
    reason: str | None  # of that, or why SLURM lets it wait
    damaged: str | None = None  # the file that cannot be used, relative to the store
    evaluating: bool = False  # it is trained; what is at hand, or ahead, are evaluations, and the steps are examples

    silent: float = 0.0  # seconds for which a run at work has said nothing
    takes: Takes = UNKNOWN  # of a run that is not done
    waits: bool = False  # a launch on local processes, which is at work, has it or will come to it
    is_whole: bool = True  # `left` is all of it; else it is that of its steps alone, and what comes after is not known

    def json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {key: values[key] for key in values if key not in ("silent", "takes", "waits", "is_whole")}

    @property
    def is_at_work(self) -> bool:
        return self.state == "running" and self.slurm != "SUSPENDED"

    @property
    def has_slot(self) -> bool:
        """Is somebody at it, or a job that will be at it when others are done?"""
        return self.is_at_work or (self.state == "queued" and self.slurm == "RUNNING")

    @property
    def slot(self) -> str:
        """Of a run that has one: of all runs of a job it is the same, for it is at one after another."""
        return self.job or self.run

    @property
    def is_ahead(self) -> bool:
        """Does it wait for what is at work now?"""
        return self.state == "queued" or (self.waits and self.state in ("to do", "to evaluate"))

    @property
    def done(self) -> float:
        """How much of it, from 0 to 1; of a run at work by the time that its steps and what comes after them take."""
        if self.state in OVER or not self.step or not self.steps:
            return float(self.state in OVER)
        if self.state != "running":
            return 0.0
        if self.elapsed and self.left and self.is_whole:
            return self.elapsed / (self.elapsed + self.left)
        return min(0.99, self.step / self.steps)

    @property
    def rank(self) -> int:
        """Its place among the rows: what stopped is as much worth seeing as what failed."""
        return ORDER.index("failed" if self.cause else self.state)

    @property
    def doing(self) -> str:
        """What a run that counts as running does, where that is not to make its steps."""
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
    def word(self) -> str:
        """The state, for a person."""
        if self.damaged:
            return f"damaged: {self.damaged}"
        if self.cause:
            return f"{self.state} ({self.cause})"
        if self.state == "queued" and self.slurm != "PENDING":
            return f"queued ({'its job runs' if self.slurm == 'RUNNING' else str(self.slurm).lower()})"
        if self.state == "queued" and self.reason:
            return f"queued ({self.reason})"
        word = self.doing or self.state
        return f"{word}, silent for {duration(self.silent)}" if self.silent > QUIET else word

    @property
    def cells(self) -> list[str]:
        step = "" if self.step is None else f"{self.step}/{self.steps}"
        score = "" if self.validation is None else f"{self.validation:.1f}"
        elapsed = "" if self.elapsed is None else duration(self.elapsed)
        attempt = "" if self.attempt is None else str(self.attempt)
        return [self.word, self.job or "", self.node or "", attempt, step, score, elapsed, self._left]

    @property
    def _left(self) -> str:
        if self.left is None:
            return ""
        job = f" (job {duration(self.job_left)})" if self.job_left is not None and self.job_left < self.left else ""
        return f"{'' if self.is_whole else '> '}{time_to_come(self.left)}{job}"


@dataclass(frozen=True)
class Left:
    """How long it will be until all is done."""

    seconds: float | None  # None: nothing is known
    is_whole: bool  # False: of a part it is not known

    def __str__(self) -> str:
        if self.seconds is None:
            return "time left not known yet"
        return f"{'about' if self.is_whole else 'more than'} {time_to_come(self.seconds)} left"


def time_left(lines: Iterable[RunLine]) -> Left | None:
    """Of what is at work and what waits for it; None where nobody is at work.

    Whoever is at work, and nobody more, takes what waits, one run after another, in this order. A run that no finished one tells
    of takes as long as those that are at work.
    """
    lines = list(lines)
    at_work = [line for line in lines if line.is_at_work]
    free = {line.slot: 0.0 for line in lines if line.has_slot}  # when
    if not free:
        return None
    usual = {kind: _usual([line for line in at_work if line.evaluating == kind]) for kind in (False, True)}

    def whole(line: RunLine) -> float | None:
        return usual[line.evaluating] if line.takes.whole is None else line.takes.whole

    lefts = [(line, whole(line) if line.doing == "starting" else line.left) for line in at_work]
    waiting = [whole(line) for line in lines if line.is_ahead]
    seconds = [*(left for _, left in lefts), *waiting]
    for line, left in lefts:
        free[line.slot] += left or 0.0
    ends = sorted(free.values())  # a heap
    for one in waiting:
        heapq.heapreplace(ends, ends[0] + (one or 0.0))
    is_known = any(one is not None for one in seconds)
    is_whole = all(one is not None for one in seconds) and all(line.is_whole for line in at_work)
    return Left(max(ends) if is_known else None, is_whole)


def _usual(at_work: Sequence[RunLine]) -> float | None:
    """Seconds that such a run takes from its start to its end; at least, if what comes after its steps is not known."""
    took = [line.elapsed + (line.left or 0.0) for line in at_work if line.elapsed and line.step]
    return mean(took) if took else None


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at this moment."""

    launched: LaunchedSweep
    lines: Sequence[RunLine]  # in the order of the manifest
    failures: Mapping[str, RunFailure]

    @property
    def counts(self) -> dict[Name, int]:
        counts = Counter(line.state for line in self.lines)
        return {name: counts[name] for name in COUNTED}

    @property
    def repairs(self) -> list[str]:
        """What to do about damaged runs, and about jobs that will not begin by themselves."""
        damaged = [f"damaged: {line.reason}" for line in self.lines if line.state == "damaged"]
        held: dict[str, dict[str, None]] = {}  # by reason the jobs, each once
        for line in self.lines:
            if line.state == "queued" and line.reason in HELD and line.job:
                held.setdefault(line.reason, {})[line.job] = None
        released = [
            f"held by SLURM ({reason}): scontrol release {' '.join(ranges(jobs))}" for reason, jobs in held.items()
        ]
        return [*damaged, *released]

    def silent(self, names: Mapping[str, str]) -> Iterator[str]:
        """What to do about runs at work that say nothing any more. A job can only be cancelled with all the runs that it holds.
        `names`: what to call each run on the command line."""
        silent = [line for line in self.lines if line.silent > QUIET]
        if silent:
            jobs = {line.slot for line in silent}
            held = [names[line.run] for line in self.lines if line.has_slot and line.slot in jobs]
            longest = duration(max(line.silent for line in silent))
            yield f"no word for {longest} from {', '.join(names[line.run] for line in silent)}:"
            yield f"  `python -m sweeps logs {names[silent[0].run]}` shows its last; next, if it hangs, and then launch again:"
            yield f"    python -m sweeps cancel {' '.join(held)}"

    @property
    def has_stopped(self) -> bool:
        """Has a run come to an end that it should not have?"""
        return bool(self.failures) or any(line.state == "damaged" for line in self.lines)

    @property
    def is_done(self) -> bool:
        return all(line.state in OVER for line in self.lines)

    @property
    def done(self) -> float:
        """How much of the sweep, from 0 to 1."""
        return sum(line.done for line in self.lines) / max(1, len(self.lines))

    @cached_property
    def left(self) -> Left | None:
        return time_left(self.lines)

    def __str__(self) -> str:
        said = ", ".join(f"{count} {name}{self._more(name)}" for name, count in self.counts.items() if count)
        left = f", {self.left}" if self.left else ""
        runs = f"{len(self.lines)} run{'s' if len(self.lines) != 1 else ''}"
        percent = 100 * self.done if self.is_done else min(99.0, 100 * self.done)
        return f"{self.launched.name}: {runs}: {said}; {percent:.0f} % done{left}"

    def _more(self, state: Name) -> str:
        """Why they stopped, or what they do."""
        more = Counter(line.cause or line.doing for line in self.lines if line.state == state)
        del more[""]
        return f" ({', '.join(f'{count} {word}' for word, count in more.items())})" if more else ""

    @property
    def metric(self) -> str:
        names = {validation(task) for task in self.launched.manifest["tasks"].values()}
        return names.pop() if len(names) == 1 else "validation"

    def json(self) -> dict[str, Any]:
        about = {"sweep": self.launched.name, "counts": self.counts, "done": round(self.done, 4)}
        about |= {"left": self.left.seconds if self.left else None, "metric": self.metric}
        return about | {"runs": [line.json() for line in self.lines]}


def together(reports: Sequence[SweepStatus]) -> list[str]:
    """When several sweeps will be done: what they share is done once."""
    left = time_left({line.run: line for one in reports for line in one.lines}.values())
    return [f"together {left}"] if left and len(reports) > 1 else []


def validation(task: TaskRecord) -> str:
    """The key of a task's validation score, by what a manifest says of the task; one of long ago has only `val`."""
    return f"{task.get('validation', 'val')}/{task['metric']}"


def line_of(run: str, values: Mapping[str, Any], seen: State, failure: RunFailure | None, metric: str) -> RunLine:
    """A run's line: what its newest attempt had reached, of a done run its result. `metric`: the key of its validation score."""
    attempt, job = seen.attempt, seen.job
    facts = attempt.job if attempt else None
    progress = attempt.progress if attempt and seen.name != "done" else None
    line = RunLine(
        run=run,
        values=values,
        state=seen.name,
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
        reason=failure.reason if failure else str(seen.damage) if seen.damage else job.reason if job else None,
        damaged=None if seen.damage is None else place_of(seen.damage),
        evaluating=seen.result is not None and seen.name != "done",
    )
    if seen.result and seen.name == "done":
        made, score = seen.result, seen.result["metrics"].get(metric)
        steps = made.get("steps")
        return replace(line, step=steps, steps=steps, validation=score, elapsed=made.get("seconds"))
    if progress:
        step, steps, took = progress["step"], progress["steps"], progress["seconds"]
        score = progress["validation"][-1][1] if progress["validation"] else None
        return replace(line, step=step, steps=steps, validation=score, elapsed=took)
    return line


def with_time_left(line: RunLine, takes: Takes, waits: bool, now: float) -> RunLine:
    """The line of a run that is not done, with what is to be expected of it. `now`: the time of the file server."""
    silent = max(0.0, now - line.heard) if line.heard and line.is_at_work else 0.0
    line = replace(line, takes=takes, waits=waits, silent=silent)
    if line.state != "running":
        return line
    if line.step is None or line.steps is None or line.elapsed is None:
        return replace(line, left=takes.whole)
    steps = line.elapsed / line.step * (line.steps - line.step) if line.step else None
    after = 0.0 if line.evaluating else takes.after
    if steps is None or after is None:
        return replace(line, left=steps or None, is_whole=False)
    return replace(line, left=steps + after)


def place_of(damage: DamagedError) -> str:
    """Where the damaged file of a run lies, from the folder of runs on."""
    parts = damage.file.parts
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("run") :])


def in_seconds(left: str) -> float | None:
    """SLURM's `1-02:03:04`, `2:03`; None of UNLIMITED and the like."""
    days, _, clock = left.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    clocked = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return float(int(days or 0) * 86400 + clocked)
