"""A report of a sweep: a line for each run, and what they come to together."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sweeps.causes import Failure
from sweeps.launched import Launched
from sweeps.screen import duration
from sweeps.state import COUNTED, Name, State

HERE = socket.gethostname()
ORDER: tuple[Name, ...] = (
    "running",
    "failed",
    "lost?",
    "diverged",
    "queued",
    "to evaluate",
    "to do",
    "done",
)  # of rows; up to `diverged` all are shown
OVER: tuple[Name, ...] = ("done", "diverged")  # nothing is left to do
QUIET = 600.0  # seconds without a word, after which a run at work is suspicious


@dataclass(frozen=True)
class Line:
    """A run: the keys of the JSON."""

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
    left: float | None  # seconds that its other steps will take
    job_left: float | None  # seconds until the job's time limit: if that is less, SLURM starts it again
    heard: float | None  # when it last said something, in seconds since 1970
    cause: str | None  # why it stopped
    reason: str | None  # of that, or why SLURM lets it wait
    evaluating: bool = False  # it is trained; what is at hand, or ahead, are evaluations, and the steps are examples

    @property
    def done(self) -> float:
        """How much of it, from 0 to 1."""
        if self.state in OVER:
            return 1.0
        return self.step / self.steps if self.state == "running" and self.step and self.steps else 0.0

    @property
    def rank(self) -> int:
        """Its place among the rows: what stopped is as much worth seeing as what failed."""
        return ORDER.index("failed" if self.cause else self.state)

    @property
    def word(self) -> str:
        """The state, for a person."""
        if self.cause:
            return f"{self.state} ({self.cause})"
        if self.slurm == "SUSPENDED":
            return "suspended"
        if self.state == "queued" and self.slurm != "PENDING":
            return f"queued ({'its job runs' if self.slurm == 'RUNNING' else str(self.slurm).lower()})"
        if self.state == "queued" and self.reason:
            return f"queued ({self.reason})"
        if self.state == "running" and self.step is None:
            return "starting"
        if self.state == "running" and self.evaluating:
            return "evaluating"
        if self.state == "running" and self.step == self.steps:
            return "scoring"
        return f"running, silent for {duration(self.silent)}" if self.silent > QUIET else self.state

    @property
    def silent(self) -> float:
        """For how many seconds a run at work has said nothing."""
        return time.time() - self.heard if self.heard and self.state == "running" and self.slurm != "SUSPENDED" else 0.0

    @property
    def cells(self) -> list[str]:
        step = "" if self.step is None else f"{self.step}/{self.steps}"
        score = "" if self.validation is None else f"{self.validation:.1f}"
        left = "" if self.left is None else duration(self.left)
        if self.left is not None and self.job_left is not None and self.job_left < self.left:
            left += f" (job {duration(self.job_left)})"
        elapsed = "" if self.elapsed is None else duration(self.elapsed)
        attempt = "" if self.attempt is None else str(self.attempt)
        return [self.word, self.job or "", self.node or "", attempt, step, score, elapsed, left]


@dataclass(frozen=True)
class Report:
    """A sweep at this moment."""

    launched: Launched
    lines: Sequence[Line]  # in the order of the manifest
    failures: Mapping[str, Failure]
    waiting: int  # runs to do that a launch on local processes will come to
    waiting_evaluated: int = 0  # the same of runs to evaluate

    @property
    def counts(self) -> dict[Name, int]:
        counts = Counter(line.state for line in self.lines)
        return {name: counts[name] for name in COUNTED}

    @property
    def is_done(self) -> bool:
        return all(line.state in OVER for line in self.lines)

    @property
    def done(self) -> float:
        """How much of the sweep, from 0 to 1."""
        return sum(line.done for line in self.lines) / max(1, len(self.lines))

    @cached_property
    def left(self) -> float | None:
        """Seconds until what is at work and what waits for it is done; None where that cannot be known.

        What runs, and nothing more, will go on running; a run that waits takes as long as others of the sweep, one that is to be
        evaluated as others that are.
        """
        at_work = [line for line in self.lines if line.state == "running" and line.slurm != "SUSPENDED"]
        works = [self._work(at_work, False, self.waiting), self._work(at_work, True, self.waiting_evaluated)]
        known = [work for work in works if work is not None]
        if not at_work or len(known) < len(works):
            return None
        longest = max((line.left for line in at_work if line.left is not None), default=0.0)
        return max(sum(known) / len(at_work), longest)

    def _work(self, at_work: Sequence[Line], evaluating: bool, waiting: int) -> float | None:
        """Seconds of runs to train, or of those to evaluate, one after another."""
        there = [line for line in at_work if line.evaluating == evaluating]
        known = [line.left for line in there if line.left is not None]
        took = [line.elapsed for line in self.lines if line.state == "done" and line.elapsed is not None]
        if evaluating or not took:
            took = [line.elapsed + line.left for line in there if line.elapsed and line.left is not None]
        waiting += sum(line.state == "queued" and line.evaluating == evaluating for line in self.lines)
        waiting += len(there) - len(known)
        if waiting and not took:
            return None
        return sum(known) + (waiting * sum(took) / len(took) if waiting else 0.0)

    def __str__(self) -> str:
        said = ", ".join(f"{count} {name}{self._causes(name)}" for name, count in self.counts.items() if count)
        left = f", about {duration(self.left)} left" if self.left is not None else ""
        runs = f"{len(self.lines)} run{'s' if len(self.lines) != 1 else ''}"
        return f"{self.launched.name}: {runs}: {said}; {100 * self.done:.0f} % done{left}"

    def _causes(self, state: Name) -> str:
        causes = Counter(line.cause for line in self.lines if line.state == state and line.cause)
        return f" ({', '.join(f'{count} {cause}' for cause, count in causes.items())})" if causes else ""

    @property
    def metric(self) -> str:
        names = {validation(task) for task in self.launched.manifest["tasks"].values()}
        return names.pop() if len(names) == 1 else "validation"

    def json(self) -> dict[str, Any]:
        about = {"sweep": self.launched.name, "counts": self.counts, "done": round(self.done, 4), "left": self.left}
        return about | {"metric": self.metric, "runs": [dataclasses.asdict(line) for line in self.lines]}


def validation(task: Mapping[str, str]) -> str:
    """The key of a task's validation score, by what a manifest says of the task; one of long ago has only `val`."""
    return f"{task.get('validation', 'val')}/{task['metric']}"


def line_of(run: str, values: Mapping[str, Any], seen: State, failure: Failure | None, metric: str) -> Line:
    """A run's line: what its newest attempt had reached, of a done run its result. `metric`: the key of its validation score."""
    attempt, job = seen.attempt, seen.job
    facts = attempt.job if attempt else {}
    progress = attempt.progress if attempt and seen.name != "done" else None
    line = Line(
        run=run,
        values=values,
        state=seen.name,
        slurm=job.word if job else None,
        job=job.id if job and job.id else str(facts["job"]) if "job" in facts else None,
        node=job.node if job and job.node else (facts.get("host") if facts.get("host") != HERE else None),
        attempt=attempt.number if attempt else None,
        step=None,
        steps=None,
        validation=None,
        elapsed=None,
        left=None,
        job_left=in_seconds(job.left) if job and job.word == "RUNNING" else None,
        heard=None,
        cause=failure.cause if failure else None,
        reason=failure.reason if failure else job.reason if job and job.reason else None,
        evaluating=seen.result is not None and seen.name != "done",
    )
    if seen.result and seen.name == "done":
        made, score = seen.result, seen.result["metrics"].get(metric)
        return replace(line, step=made["steps"], steps=made["steps"], validation=score, elapsed=made["seconds"])
    if progress:
        step, steps, took = progress["step"], progress["steps"], progress["seconds"]
        score = progress["validation"][-1][1] if progress["validation"] else None
        left = took / step * (steps - step) if step and seen.name == "running" else None
        heard = progress["time"]
        return replace(line, step=step, steps=steps, validation=score, elapsed=took, left=left, heard=heard)
    return line


def in_seconds(left: str) -> float | None:
    """SLURM's `1-02:03:04`, `2:03`; None of UNLIMITED and the like."""
    days, _, clock = left.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]):
        return None
    clocked = sum(int(part) * 60**i for i, part in enumerate(reversed(parts)))
    return float(int(days or 0) * 86400 + clocked)
