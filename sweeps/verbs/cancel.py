"""`python -m sweeps cancel`: stops runs, by their ids, by sweep or by state. Nothing else is touched, and nobody else's jobs.

What holds a run is a job of SLURM's, or a launch with its processes on this machine. It is cancelled if all that it would
still execute was asked for; one that holds other runs as well stays, and it is said which they are. What was at work keeps its
checkpoint, and the next launch goes on from there.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmprompt.runs.config import nearest
from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import is_running, who
from mmprompt.runs.store import OF_SEARCH, NoRunError, Store
from sweeps.display.live_table import confirmed
from sweeps.grid.launched import find_run, read, store_at
from sweeps.jobs import slurm
from sweeps.jobs.arrays import ranges
from sweeps.jobs.batch import Batch, batches, evaluations_by_run
from sweeps.jobs.local import LAST_WORDS, Workers, batch_folder, running_workers
from sweeps.states.state import ENDED, Queue, State, queue, states
from sweeps.wording import count

HANDING_OVER = 30.0  # seconds to wait for a launch that is submitting
LOOK = 0.5  # seconds between two looks meanwhile
OVER = ("done", *ENDED)  # of runs: a job does not execute them again
ENDING = ("COMPLETING", "COMPLETED", "CANCELLED", "FAILED")  # of jobs, in squeue's words
SHOWN = 8  # runs, where there may be many
MANY = 500  # runs, to look at which takes so long that one wonders


@dataclass(frozen=True)
class Holder:
    """A job of SLURM's, or a launch on some machine, that holds runs."""

    name: str
    batch: Batch
    runs: list[str]
    job: str  # SLURM's id
    problem: str  # why it cannot be cancelled, or nothing


@dataclass
class Found:
    """What is to be cancelled, each with the runs that it would still execute; and what stays, by the reason."""

    jobs: dict[str, list[str]] = field(default_factory=dict)  # by SLURM's id
    launches: dict[Batch, list[str]] = field(default_factory=dict)
    stays: dict[str, list[str]] = field(default_factory=dict)

    @property
    def runs(self) -> list[str]:
        return list(dict.fromkeys(itertools.chain(*self.jobs.values(), *self.launches.values())))


def cancel(what: Sequence[str], runs: Path, state: str | None) -> int:
    """Says what it would cancel, asks, and cancels it. Returns 1 if some of what was asked for stays.

    Raises StoreError for a run or a sweep that is not there.
    """
    store = store_at(runs)
    asked = named(store, what, state)
    if len(asked) >= MANY:
        print(f"looking at {count(asked)}", flush=True)
    _wait_for_launches(store, asked)
    found = look(store, asked, state)
    for why, left in found.stays.items():
        print(f"{count(left)} {'stays' if len(left) == 1 else 'stay'}: {why}")
    if not found.runs:
        none = f": of {count(asked)} none is {state or 'queued or running'}"
        print(f"nothing is cancelled{'' if found.stays else none}")
        return 1 if found.stays else 0
    if found.jobs:
        print(f"SLURM jobs to cancel: {' '.join(ranges(found.jobs))}")
    for batch in found.launches:
        print(f"launch to end, with its processes: that of {batch.folder}")
    if not confirmed(f"cancel {count(found.runs)}?"):
        return 1
    now = look(store, asked, state)  # the answer may have taken a while: what was pending may have begun
    refused = slurm.cancel(ranges([job for job in found.jobs if job in now.jobs]))
    for batch in found.launches:
        if batch in now.launches:
            stop(batch)
    return _report(store, found, refused, state)


def named(store: Store, what: Sequence[str], state: str | None) -> list[str]:
    """The runs that are meant: of sweeps, also of their earlier launches; single ones; or all that were ever launched."""
    if not what and state is None:
        raise StoreError("cancel what? give the beginning of a run's id, a sweep, or --state queued or running")
    known, runs, sweeps = batches(store), store.runs(), store.sweeps()
    found: dict[str, None] = {}
    for word in what:
        name = word if word in sweeps else f"{OF_SEARCH}{word}"
        if name in sweeps:
            found |= dict.fromkeys(read(store, name).runs)
            found |= dict.fromkeys(run for batch in known for run in batch.runs_of(name))
        else:
            found[word if word in runs else _run(store, word)] = None
    return list(found) if what else sorted({run for batch in known for job in batch.jobs for run in job})


def _run(store: Store, word: str) -> str:
    try:
        return find_run(store, word).id
    except NoRunError as error:
        raise StoreError(f"{error}, and no sweep is called so{nearest(word, store.sweeps())}") from None


def look(store: Store, asked: Sequence[str], state: str | None) -> Found:
    """Asks store, scheduler and processes what holds these runs, as far as they are in this state."""
    known = batches(store)
    queued, found = queue(store, asked, known), Found()
    holders = [*_jobs(known, queued, asked), *_launches(store, known, set(asked))]
    held = {run for holder in holders for run in holder.runs}
    of_interest = sorted(held.union(asked))
    holding = dict.fromkeys(holder.batch for holder in holders)  # each once: it may have thousands of jobs
    known_states = states(store, of_interest, queued, evaluations_by_run(holding, of_interest))
    seen: dict[str, str] = {run: one.name for run, one in known_states.items()}
    for holder in holders:
        if not holder.batch.is_slurm:
            seen |= {run: "queued" for run in holder.runs if _is_ahead(known_states[run], holder.batch)}
    meant = {run for run in asked if seen[run] not in OVER and state in (None, seen[run])}
    for holder in holders:
        rest = [run for run in holder.runs if seen[run] not in OVER]
        mine, others = [run for run in rest if run in meant], [run for run in rest if run not in meant]
        problem = holder.problem or (others and f"{holder.name} also holds {_listed(others)}; name all to cancel it")
        if mine and problem:
            found.stays.setdefault(problem, []).extend(mine)
        elif mine and holder.batch.is_slurm:
            found.jobs[holder.job] = mine
        elif mine:
            found.launches[holder.batch] = mine
    for run in asked:
        if run in meant and run not in held and seen[run] in ("running", "lost?"):
            found.stays.setdefault(_process(known_states[run]), []).append(run)
    return found


def _process(state: State) -> str:
    """Of an attempt that no job and no launch here holds."""
    if state.attempt is None:
        return "a process may be at work on another machine"
    job = state.attempt.job
    return f"process {job['pid']} on {job['host']} is at work, or may be; end it there"


def _is_ahead(state: State, batch: Batch) -> bool:
    """Will a local launch that lives come to this run?"""
    has_failed = state.name in ENDED and state.attempt is not None and state.attempt.job["batch"] != batch.id
    return state.name in ("to do", "to evaluate") or has_failed


def _jobs(known: Sequence[Batch], queued: Queue, asked: Iterable[str]) -> Iterator[Holder]:
    by_id = {batch.id: batch for batch in known}
    held = {(one.batch, one.number): one.job for run in asked for one in queued.jobs.get(run, ())}
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


def _launches(store: Store, known: Iterable[Batch], asked: set[str]) -> Iterator[Holder]:
    """On this machine those that live, or whose processes do; on another those of which nobody can tell."""
    local = [batch for batch in known if not batch.is_slurm and asked.intersection(batch.jobs[0])]
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


def _wait_for_launches(store: Store, asked: Iterable[str]) -> None:
    """A launch that is submitting has jobs that have no id yet."""
    meant, began = set(asked), time.monotonic()
    mine = [batch for batch in batches(store) if batch.is_slurm and any(meant.intersection(job) for job in batch.jobs)]
    if any(map(slurm.is_submitting, mine)):
        print("a launch is submitting; waiting for it", flush=True)
    while any(map(slurm.is_submitting, mine)) and time.monotonic() - began < HANDING_OVER:
        time.sleep(LOOK)


def stop(batch: Batch) -> None:
    """Ends a launch as Ctrl-C does, and its processes, be it alive or not."""
    launcher = batch.record["launcher"]
    if is_running(launcher):
        os.kill(launcher["pid"], signal.SIGTERM)
        deadline = time.monotonic() + LAST_WORDS
        while is_running(launcher) and time.monotonic() < deadline:
            time.sleep(LOOK)
    Workers(batch, 0).stop()


def _report(store: Store, found: Found, refused: Sequence[tuple[str, str]], state: str | None) -> int:
    """What is still there after all."""
    for job, reason in refused:
        print(f"scancel {job}: {reason}")
    left = look(store, found.runs, state)
    gone = len(found.runs) - len(left.runs)
    print(
        f"{gone} of {count(found.runs)} cancelled; what was at work keeps its checkpoint, and the next launch goes on"
    )
    if left.runs:
        print(f"{count(left.runs)} still held by {' '.join([*ranges(left.jobs), *(b.id for b in left.launches)])}")
    return 1 if left.runs or found.stays else 0
