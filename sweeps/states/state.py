"""Determines the states of runs from the store and from SLURM's queue. Any process can do so at any time.

The caller says which evaluations each run needs: a run that has its result and lacks one of them is not done.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.failures import silent
from mmprompt.runs.records import DamagedError, ResultRecord
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, batches
from sweeps.jobs.slurm import Job

Name = Literal["done", "diverged", "failed", "damaged", "running", "queued", "lost?", "to do", "to evaluate"]
ENDED: tuple[Name, ...] = ("failed", "diverged")  # the reason lies in the run
# No process works on these runs. A launch executes them, some only with --retry.
OPEN: tuple[Name, ...] = ("to do", "to evaluate", *ENDED)
# The order in which a sentence counts the states.
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
)
LOOKS = 2  # how often a run is read if it is removed while its files are read
AT_ONCE = 16  # threads that read runs


@dataclass(frozen=True)
class HoldingJob:
    """A SLURM job that has a run in its list."""

    batch: str
    number: int  # of the job, in its batch
    job: Job | None  # None: SLURM gives no information about it
    evaluations: frozenset[str] = frozenset()  # ids of the evaluations that its batch makes of the run


@dataclass(frozen=True)
class Queue:
    """The jobs of our runs that are in SLURM's queue."""

    jobs: Mapping[str, Sequence[HoldingJob]]  # by run, the jobs that have it in their list, oldest first
    problem: str = ""  # the reason why there is no information about some


@dataclass(frozen=True)
class State:
    """The state of one run.

    "lost?": a process on another machine may work on the run, and there is no information about it. "diverged" is an outcome:
    another attempt would diverge again.
    """

    name: Name
    # Of a done run the published attempt, otherwise the newest, which only evaluates if the run has its result.
    attempt: Attempt | None
    result: ResultRecord | None
    job: Job | None  # the SLURM job of a run that is queued or running
    missing: frozenset[str] = frozenset()  # ids of the evaluations that the run needs and does not have
    damage: DamagedError | None = None  # for a damaged run: the file that cannot be used, and the reason

    def restricted_to(self, folder: RunFolder, wanted: Collection[str]) -> State:
        """Returns the state of the run if only these evaluations are needed."""
        missing = self.missing.intersection(wanted)
        if self.result is not None and not missing:
            return State("done", Attempt(folder, self.result["attempt"]), self.result, None)
        return replace(self, missing=missing)


def queue(store: Store, runs: Iterable[str], known: Sequence[Batch] | None = None) -> Queue:
    """Returns the jobs in SLURM's queue that have one of these runs in their list.

    Calls squeue once, and only if a SLURM batch of this store contains one of the runs. `known`: the store's batches, if they have
    been read already.
    """
    asked = set(runs)
    slurm_batches = [batch for batch in (batches(store) if known is None else known) if batch.is_slurm]
    every_job = [
        (batch, number, asked.intersection(job)) for batch in slurm_batches for number, job in enumerate(batch.jobs)
    ]
    held = [(batch, number, held_runs) for batch, number, held_runs in every_job if held_runs]
    holding = list(dict.fromkeys(batch for batch, _, _ in held))
    submitting = set(filter(slurm.is_submitting, holding))  # before squeue, which then lists all that was submitted
    answer = slurm.jobs(holding)
    jobs: dict[str, list[HoldingJob]] = {}
    for batch, number, held_runs in held:
        job = answer.jobs.get((batch, number))
        if job is None and batch in submitting:
            job = Job("", "SUBMITTING", "", "a launch is submitting it", "", batch.record["user"])
        if job is not None or batch in answer.unknown:
            for run in held_runs:
                jobs.setdefault(run, []).append(HoldingJob(batch.id, number, job, batch.evaluations_of(run)))
    return Queue(jobs, answer.problem)


def states(
    store: Store, runs: Sequence[str], queue: Queue, wanted: Mapping[str, Collection[str]] = MappingProxyType({})
) -> dict[str, State]:
    """Returns the state of each of these runs. `wanted`: the ids of the evaluations that they need, by run.

    On a shared file system every look-up waits for a server, so there are few look-ups, and several at a time.
    """
    existing = store.runs() | queue.jobs.keys()

    def state_of(run: str) -> State:
        evaluations = frozenset(wanted.get(run, ()))
        if run not in existing:
            return State("to do", None, None, None, evaluations)
        return state(store.run(run), queue, evaluations)

    def states_of(runs: Sequence[str]) -> list[tuple[str, State]]:
        return [(run, state_of(run)) for run in runs]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        by_run = dict(itertools.chain(*pool.map(states_of, (runs[i::AT_ONCE] for i in range(AT_ONCE)))))
    return {run: by_run[run] for run in runs}


def state(folder: RunFolder, queue: Queue, wanted: Collection[str] = ()) -> State:
    """Returns the state of one run.

    A run with a result and all `wanted` evaluations is done, whatever else its files say. An attempt with an error has ended.
    Otherwise the state depends on the process or the SLURM job that executes the run. A file that cannot be used makes only this
    run "damaged".
    """
    for _ in range(LOOKS):
        try:
            current = _state(folder, queue, wanted)
            if current.name not in ("done", "running") and (current.attempt or folder.id in queue.jobs):
                folder.settings()
            return current
        except DamagedError as error:
            damage = error
            if folder.path.exists():
                break  # else it was removed while its files were read
    jobs = [holder.job for holder in queue.jobs.get(folder.id, ()) if holder.job]
    return State("damaged", None, None, jobs[-1] if jobs else None, frozenset(wanted), damage)


def _state(folder: RunFolder, queue: Queue, wanted: Collection[str]) -> State:
    """Returns the state of one run. Raises DamagedError if one of its files cannot be used."""
    result = folder.result()
    missing = folder.missing(wanted, result)
    if result is not None and not missing:
        return State("done", Attempt(folder, result["attempt"]), result, None)
    attempts = folder.current_attempts(result)
    attempt = attempts[-1] if attempts else None
    reason = attempt.reason if attempt else None
    failed = reason is not None and not reason.interrupted
    holders = list(queue.jobs.get(folder.id, ()))
    if result is not None:  # a job that trained the run and now executes others need not be one that evaluates it
        holders = [holder for holder in holders if holder.evaluations & missing]
    if failed and attempt:  # a batch tries a run only once; only after an interruption SLURM starts its job again
        holders = [holder for holder in holders if holder.batch != attempt.job["batch"]]
    own = next(
        (holder for holder in holders if attempt and holder.job and holder.job.id == attempt.job.get("job")), None
    )
    alive = is_alive(attempt, holders) if attempt and reason is None else False
    if alive:
        return State("running", attempt, result, own.job if own else None, missing)
    waiting = next((holder.job for holder in [*([own] if own else []), *reversed(holders)] if holder.job), None)
    if waiting:
        return State("queued", attempt, result, waiting, missing)
    if holders or alive is None:
        return State("lost?", attempt, result, None, missing)
    if folder.result() != result or folder.missing(wanted, result) != missing:
        return _state(folder, queue, wanted)  # a process has published since the files were read, and may have ended
    if failed and reason:
        return State("diverged" if reason.kind == "diverged" else "failed", attempt, result, None, missing)
    return State("to evaluate" if result else "to do", attempt, result, None, missing)


def is_alive(attempt: Attempt, holders: Sequence[HoldingJob]) -> bool | None:
    """Whether a process still works on this attempt; None without information. `holders`: the jobs that have its run."""
    runs_here, job = attempt.is_running(), attempt.job
    if runs_here is not None:
        return runs_here
    if job["scheduler"] != "slurm":
        return None
    if any(holder.job and holder.job.id == job.get("job") and holder.job.state != "PENDING" for holder in holders):
        return True
    return None if any(holder.batch == job["batch"] and holder.job is None for holder in holders) else False


def mark_dead(attempt: Attempt) -> None:
    """Writes down that an attempt whose process is gone has ended, since this cannot be seen from another host."""
    attempt.fail(silent(interrupted=attempt.job["scheduler"] != "slurm"))
