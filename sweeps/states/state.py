"""The state of runs, rebuilt from the store and the scheduler by whoever asks, at any time.

Whoever asks says which evaluations he wants of each: a run that has its result and lacks one of them is not done.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from mmprompt.runs.failures import silent
from mmprompt.runs.records import DamagedError, ResultRecord
from mmprompt.runs.store import Attempt, RunFolder, Store
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, batches
from sweeps.jobs.slurm import Job

Name = Literal["done", "diverged", "failed", "damaged", "running", "queued", "lost?", "to do", "to evaluate"]
ENDED: tuple[Name, ...] = ("failed", "diverged")  # for a reason that lies in the run
OPEN: tuple[Name, ...] = ("to do", "to evaluate", *ENDED)  # nobody is at it, and a launch would be, or may be told to
COUNTED: tuple[Name, ...] = (
    "done",
    "diverged",
    "running",
    "queued",
    "lost?",
    "failed",
    "damaged",
    "to evaluate",
    "to do",
)  # in a sentence
LOOKS = 2  # at a run that is being removed
AT_ONCE = 16  # runs that are looked at together


@dataclass(frozen=True)
class Held:
    """A SLURM job that holds a run. `job` is None where there is no information."""

    batch: str
    number: int
    job: Job | None
    wanted: frozenset[str] = frozenset()  # the evaluations that its batch sees to


@dataclass(frozen=True)
class Queue:
    """What SLURM has of our runs: by run, the jobs that hold it, oldest first. `problem`: why something is not known."""

    jobs: Mapping[str, Sequence[Held]]
    problem: str = ""


@dataclass(frozen=True)
class State:
    name: Name  # "lost?": another machine may be at it, and nobody can tell; "diverged": an outcome, and would be again
    attempt: Attempt | None  # the newest; of a trained run one that evaluates, of a done one that which published
    result: ResultRecord | None
    job: Job | None  # that SLURM has, of a run that is queued or running
    missing: frozenset[str] = frozenset()  # of the evaluations that are wanted, those that are not there
    damage: DamagedError | None = None  # of a damaged run the file that cannot be used, and why

    def to(self, folder: RunFolder, wanted: Collection[str]) -> State:
        """The same run to somebody who wants only these evaluations."""
        missing = self.missing.intersection(wanted)
        if self.result is not None and not missing:
            return State("done", Attempt(folder, self.result["attempt"]), self.result, None)
        return replace(self, missing=missing)


def queue(store: Store, runs: Iterable[str], known: Sequence[Batch] | None = None) -> Queue:
    """Asks squeue once, and only if a SLURM batch of this store holds one of these runs. `known`: the batches there are."""
    asked = set(runs)
    found = [batch for batch in (batches(store) if known is None else known) if batch.is_slurm]
    every = [(batch, number, asked.intersection(job)) for batch in found for number, job in enumerate(batch.jobs)]
    held = [(batch, number, some) for batch, number, some in every if some]
    holding = list(dict.fromkeys(batch for batch, _, _ in held))
    submitting = set(filter(slurm.is_submitting, holding))  # before: what has been handed over is in squeue
    answer = slurm.jobs(holding)
    jobs: dict[str, list[Held]] = {}
    for batch, number, some in held:
        job = answer.jobs.get((batch, number))
        if job is None and batch in submitting:
            job = Job("", "SUBMITTING", "", "a launch hands it over", "", batch.record["user"])
        if job is not None or batch in answer.unknown:
            for run in some:
                jobs.setdefault(run, []).append(Held(batch.id, number, job, batch.evaluations_of(run)))
    return Queue(jobs, answer.problem)


def states(
    store: Store, runs: Sequence[str], queue: Queue, wanted: Mapping[str, Collection[str]] = MappingProxyType({})
) -> dict[str, State]:
    """The state of each of these runs; `wanted`: by run, of those of which evaluations are. On a shared file system every
    look-up waits for a server, so there are few of them, and several at a time."""
    there = store.runs() | queue.jobs.keys()

    def one(run: str) -> State:
        evaluations = frozenset(wanted.get(run, ()))
        if run not in there:
            return State("to do", None, None, None, evaluations)
        return state(store.run(run), queue, evaluations)

    def some(runs: Sequence[str]) -> list[tuple[str, State]]:
        return [(run, one(run)) for run in runs]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(itertools.chain(*pool.map(some, (runs[i::AT_ONCE] for i in range(AT_ONCE)))))
    return {run: found[run] for run in runs}


def state(folder: RunFolder, queue: Queue, wanted: Collection[str] = ()) -> State:
    """One run's state. A result with all the evaluations that are `wanted` is the last word, an error ends an attempt; the rest
    is asked of who executes it. A file that cannot be used is the affair of this run alone."""
    for _ in range(LOOKS):
        try:
            seen = _state(folder, queue, wanted)
            if seen.name not in ("done", "running") and (seen.attempt or folder.id in queue.jobs):
                folder.settings()
            return seen
        except DamagedError as error:
            damage = error
            if folder.path.exists():
                break  # else it was being removed while we looked
    held = [one.job for one in queue.jobs.get(folder.id, ()) if one.job]
    return State("damaged", None, None, held[-1] if held else None, frozenset(wanted), damage)


def _state(folder: RunFolder, queue: Queue, wanted: Collection[str]) -> State:
    """Raises DamagedError."""
    result = folder.result()
    missing = folder.missing(wanted, result)
    if result is not None and not missing:
        return State("done", Attempt(folder, result["attempt"]), result, None)
    attempts = folder.current_attempts(result)
    attempt = attempts[-1] if attempts else None
    reason = attempt.reason if attempt else None
    failed = reason is not None and not reason.interrupted
    held = list(queue.jobs.get(folder.id, ()))
    if result is not None:  # a job that has trained it, and is at other runs now, need not be one that evaluates it
        held = [one for one in held if one.wanted & missing]
    if failed and attempt:  # a batch tries a run once; one that was interrupted SLURM starts again
        held = [one for one in held if one.batch != attempt.job["batch"]]
    own = next((one for one in held if attempt and one.job and one.job.id == attempt.job.get("job")), None)
    alive = is_alive(attempt, held) if attempt and reason is None else False
    if alive:
        return State("running", attempt, result, own.job if own else None, missing)
    waiting = next((one.job for one in [*([own] if own else []), *reversed(held)] if one.job), None)
    if waiting:
        return State("queued", attempt, result, waiting, missing)
    if held or alive is None:
        return State("lost?", attempt, result, None, missing)
    if folder.result() != result or folder.missing(wanted, result) != missing:
        return _state(folder, queue, wanted)  # whoever was at it has published since the first look, and may be gone
    if failed and reason:
        return State("diverged" if reason.kind == "diverged" else "failed", attempt, result, None, missing)
    return State("to evaluate" if result else "to do", attempt, result, None, missing)


def is_alive(attempt: Attempt, held: Sequence[Held]) -> bool | None:
    """Whether some process is still at this attempt; None without information."""
    here, job = attempt.is_running(), attempt.job
    if here is not None:
        return here
    if job["scheduler"] != "slurm":
        return None
    if any(one.job and one.job.id == job.get("job") and one.job.state != "PENDING" for one in held):
        return True
    return None if any(one.batch == job["batch"] and one.job is None for one in held) else False


def mark_dead(attempt: Attempt) -> None:
    """Writes down that an attempt is over whose process is gone: on another host nobody could tell."""
    attempt.fail(silent(interrupted=attempt.job["scheduler"] != "slurm"))
