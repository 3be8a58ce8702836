"""`python -m sweeps cancel`: stops runs, chosen by id, by sweep or by state. It touches no other run, and no other user's jobs.

A run is held by a SLURM job, or by a launch with its processes on this machine. Such a holder is cancelled if all runs that it
would still execute were named. If it holds other runs as well it stays, and these runs are printed. Cancelled runs keep their
checkpoints, from which the next launch resumes them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import is_running, who
from mmprompt.runs.store import OF_SEARCH, NoRunError, Store
from mmprompt.settings.spelling import nearest
from sweeps.display.live_table import confirm
from sweeps.grid.launched import find_run, read, store_at
from sweeps.jobs import slurm
from sweeps.jobs.arrays import ranges
from sweeps.jobs.batch import Batch, batches, evaluations_by_run
from sweeps.jobs.local import LAST_WORDS, Workers, batch_folder, running_workers
from sweeps.states.state import ENDED, Queue, State, queue, states
from sweeps.wording import count

SUBMITTING = 30.0  # seconds to wait for a launch that is submitting jobs
POLL = 0.5  # seconds between two checks while it waits
OVER = ("done", *ENDED)  # states of runs that their job will not execute again
ENDING = ("COMPLETING", "COMPLETED", "CANCELLED", "FAILED")  # states of jobs that are ending, in squeue's words
SHOWN = 8  # how many runs are listed
MANY = 500  # runs: from this number on reading them takes so long that a line says what is going on


@dataclass(frozen=True)
class Holder:
    """A SLURM job or a local launch that holds runs."""

    name: str
    batch: Batch
    runs: list[str]
    job: str  # SLURM's id
    problem: str  # why it cannot be cancelled; empty if it can


@dataclass
class Cancellation:
    """The jobs and launches to cancel, each with the runs that it would still execute; and the runs that cannot be cancelled."""

    jobs: dict[str, list[str]] = field(default_factory=dict)  # by SLURM's id
    launches: dict[Batch, list[str]] = field(default_factory=dict)
    stays: dict[str, list[str]] = field(default_factory=dict)  # by the reason: the runs that are not cancelled

    @property
    def runs(self) -> list[str]:
        """The runs that will be cancelled."""
        return list(dict.fromkeys(itertools.chain(*self.jobs.values(), *self.launches.values())))


def cancel(what: Sequence[str], runs: Path, state: str | None) -> int:
    """Prints what it would cancel, asks for confirmation, and cancels it. Returns 1 if some of the named runs are not cancelled.

    Raises StoreError if there is no such run or sweep.
    """
    store = store_at(runs)
    named = runs_named(store, what, state, batches(store))
    if len(named) >= MANY:
        print(f"looking at {count(named)}", flush=True)
    _wait_for_launches(store, named)
    planned = plan_cancellation(store, what, state)
    _print_stays(planned.stays)
    if not planned.runs:
        none = f": of {count(named)} none is {state or 'queued or running'}"
        print(f"nothing is cancelled{'' if planned.stays else none}")
        return 1 if planned.stays else 0
    if planned.jobs:
        print(f"SLURM jobs to cancel: {' '.join(ranges(planned.jobs))}")
    for batch in planned.launches:
        print(f"launch to end, with its processes: that of {batch.folder}")
    if not confirm(f"cancel {count(planned.runs)}?"):
        return 1
    # While the question waited, pending jobs may have begun, and a search may have got further runs.
    now = plan_cancellation(store, what, state)
    _print_stays({reason: staying for reason, staying in now.stays.items() if reason not in planned.stays})
    refused = slurm.cancel(ranges([job for job in planned.jobs if job in now.jobs]))
    for batch in planned.launches:
        if batch in now.launches:
            stop(batch)
    return _report(store, what, state, planned, now, refused)


def runs_named(store: Store, what: Sequence[str], state: str | None, all_batches: Sequence[Batch]) -> list[str]:
    """The ids of the runs that the words name: runs, and all runs of sweeps, of earlier launches too. Without words, all runs that
    were ever launched.

    `all_batches`: those of the store. A search gets further runs while it is at work; its name means those that these batches have.
    Raises StoreError for a word that names nothing, and if neither words nor a state are given.
    """
    if not what and state is None:
        raise StoreError("cancel what? give the beginning of a run's id, a sweep, or --state queued or running")
    runs, sweeps = store.runs(), store.sweeps()
    named: dict[str, None] = {}
    for word in what:
        name = word if word in sweeps else f"{OF_SEARCH}{word}"
        if name in sweeps:
            named |= dict.fromkeys(read(store, name).runs)
            named |= dict.fromkeys(run for batch in all_batches for run in batch.runs_of(name))
        else:
            named[word if word in runs else _run_named(store, word)] = None
    return list(named) if what else sorted({run for batch in all_batches for job in batch.jobs for run in job})


def _run_named(store: Store, word: str) -> str:
    try:
        return find_run(store, word).id
    except NoRunError as error:
        raise StoreError(f"{error}, and there is no sweep of this name{nearest(word, store.sweeps())}") from None


def plan_cancellation(store: Store, what: Sequence[str], state: str | None) -> Cancellation:
    """Finds out, from the store, SLURM and this machine's processes, what now holds the runs that the words name and that are in
    this state."""
    all_batches = batches(store)
    named = runs_named(store, what, state, all_batches)
    queued, planned = queue(store, named, all_batches), Cancellation()
    holders = [*_jobs(all_batches, queued, named), *_launches(store, all_batches, set(named))]
    held = {run for holder in holders for run in holder.runs}
    of_interest = sorted(held.union(named))
    holding = dict.fromkeys(holder.batch for holder in holders)  # each batch once: it may have thousands of jobs
    run_states = states(store, of_interest, queued, evaluations_by_run(holding, of_interest))
    names: dict[str, str] = {run: run_state.name for run, run_state in run_states.items()}
    for holder in holders:
        if not holder.batch.is_slurm:
            names |= {run: "queued" for run in holder.runs if _will_be_executed(run_states[run], holder.batch)}
    meant = {run for run in named if names[run] not in OVER and state in (None, names[run])}
    for holder in holders:
        rest = [run for run in holder.runs if names[run] not in OVER]
        mine, others = [run for run in rest if run in meant], [run for run in rest if run not in meant]
        problem = holder.problem or (others and f"{holder.name} also holds {_listed(others)}; name all to cancel it")
        if mine and problem:
            planned.stays.setdefault(problem, []).extend(mine)
        elif mine and holder.batch.is_slurm:
            planned.jobs[holder.job] = mine
        elif mine:
            planned.launches[holder.batch] = mine
    for run in named:
        if run in meant and run not in held and names[run] in ("running", "lost?"):
            planned.stays.setdefault(_process(run_states[run]), []).append(run)
    return planned


def _process(state: State) -> str:
    """Why a run stays that neither a job nor a launch on this machine holds: it names the process of its attempt."""
    if state.attempt is None:
        return "a process may be at work on another machine"
    job = state.attempt.job
    return f"process {job['pid']} on {job['host']} is at work, or may be; end it there"


def _will_be_executed(state: State, batch: Batch) -> bool:
    """Whether a live local launch will still execute a run that it holds."""
    has_failed = state.name in ENDED and state.attempt is not None and state.attempt.job["batch"] != batch.id
    return state.name in ("to do", "to evaluate") or has_failed


def _jobs(all_batches: Sequence[Batch], queued: Queue, named: Iterable[str]) -> Iterator[Holder]:
    """The SLURM jobs that hold the named runs, without jobs that are ending."""
    by_id = {batch.id: batch for batch in all_batches}
    held = {(job.batch, job.number): job.job for run in named for job in queued.jobs.get(run, ())}
    for (name, number), job in held.items():
        batch, problem = by_id[name], ""
        if job is None:
            problem = f"SLURM gives no information about their jobs now, {queued.problem}"
        elif job.state == "SUBMITTING":
            problem = f"the launch of batch {name} is submitting their jobs; ask again when it has"
        elif job.user != who():
            problem = f"their jobs are {job.user}'s"
        if job is None or job.state not in ENDING:
            yield Holder(f"job {job.id if job else ''}", batch, batch.jobs[number], job.id if job else "", problem)


def _launches(store: Store, all_batches: Iterable[Batch], named: set[str]) -> Iterator[Holder]:
    """The launches on local processes that hold named runs and are live on this machine: the launch itself, or a process of it.

    A launch of another user whose processes are hidden from us counts as live.
    """
    local = [batch for batch in all_batches if not batch.is_slurm and named.intersection(batch.jobs[0])]
    workers = {batch_folder(worker).resolve() for worker in running_workers(store)} if local else set()
    for batch in local:
        launcher, user = batch.record["launcher"], batch.record["user"]
        hidden = is_running(launcher) is None and launcher["host"] == socket.gethostname()
        if is_running(launcher) or hidden or batch.folder.resolve() in workers:
            name = f"the launch of batch {batch.id}"
            yield Holder(name, batch, batch.jobs[0], "", f"{name} is {user}'s" if user != who() else "")


def _listed(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    return " ".join(runs[:SHOWN]) + more


def _wait_for_launches(store: Store, named: Iterable[str]) -> None:
    """Waits while launches submit jobs of these runs, 30 seconds at most: such jobs have no id yet by which to cancel them."""
    meant, began = set(named), time.monotonic()
    mine = [batch for batch in batches(store) if batch.is_slurm and any(meant.intersection(job) for job in batch.jobs)]
    if any(map(slurm.is_submitting, mine)):
        print("a launch is submitting; waiting for it", flush=True)
    while any(map(slurm.is_submitting, mine)) and time.monotonic() - began < SUBMITTING:
        time.sleep(POLL)


def stop(batch: Batch) -> None:
    """Ends a launch as Ctrl-C does, if it is still alive, and then its processes."""
    launcher = batch.record["launcher"]
    if is_running(launcher):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(launcher["pid"], signal.SIGTERM)
        deadline = time.monotonic() + LAST_WORDS
        while is_running(launcher) and time.monotonic() < deadline:
            time.sleep(POLL)
    Workers(batch, 0).stop()


def _print_stays(stays: Mapping[str, Sequence[str]]) -> None:
    for reason, staying in stays.items():
        print(f"{count(staying)} {'stays' if len(staying) == 1 else 'stay'}: {reason}")


def _report(
    store: Store,
    what: Sequence[str],
    state: str | None,
    planned: Cancellation,
    now: Cancellation,
    refused: Sequence[tuple[str, str]],
) -> int:
    """Prints how many runs were cancelled, and what is still held. Returns the exit code.

    `planned`: what the question was about; `now`: what could be cancelled when it was answered.
    """
    for job, reason in refused:
        print(f"scancel {job}: {reason}")
    left = plan_cancellation(store, what, state)
    cancelled = len(set(planned.runs).intersection(now.runs).difference(left.runs))
    print(
        f"{cancelled} of {count(planned.runs)} cancelled; "
        "runs that were at work keep their checkpoints, and the next launch resumes them"
    )
    if left.runs:
        print(f"{count(left.runs)} still held by {' '.join([*ranges(left.jobs), *(b.id for b in left.launches)])}")
    return 1 if left.runs or now.stays or planned.stays else 0
