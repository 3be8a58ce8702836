"""The state of runs, rebuilt from the store and the scheduler by whoever asks, at any time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from mmprompt.run import INTERRUPTED, Attempt, RunFolder, Store
from sweeps import scheduler
from sweeps.batch import batches

Name = Literal["done", "failed", "running", "queued", "lost?", "to do"]
AT_ONCE = 16  # runs that are looked at together
TRIES = 3  # attempts that end in an error without getting further than the ones before: then a run is left alone
SILENT = "its process ended without a word"


@dataclass(frozen=True)
class Queue:
    """What SLURM has of our runs: by run, the newest batch that holds it, and SLURM's word for the state of its job.

    The word is None where squeue gives no information.
    """

    jobs: Mapping[str, tuple[str, str | None]]


@dataclass(frozen=True)
class State:
    name: Name  # "lost?": another machine may be at it, and nobody can tell
    attempt: Attempt | None  # the newest; of a done run, the one that published
    result: dict[str, Any] | None


def queue(store: Store, runs: Iterable[str]) -> Queue:
    """Asks squeue once, and only if a SLURM batch of this store holds one of these runs."""
    asked = set(runs)
    submitted = [batch for batch in batches(store) if batch.is_slurm]
    jobs = [(batch, number, asked.intersection(job)) for batch in submitted for number, job in enumerate(batch.jobs)]
    answer = scheduler.jobs(sorted({batch for batch, _, held in jobs if held}, key=lambda batch: batch.id))
    if answer is None:
        return Queue({run: (batch.id, None) for batch, _, held in jobs for run in held})
    known = [(batch, answer[batch, number], held) for batch, number, held in jobs if (batch, number) in answer]
    return Queue({run: (batch.id, word) for batch, word, held in known for run in held})


def states(store: Store, runs: Sequence[str], queue: Queue) -> dict[str, State]:
    """The state of each of these runs. On a shared file system every look-up waits for a server, so there are few of them,
    and several at a time."""
    there = store.runs() | queue.jobs.keys()

    def some(runs: Sequence[str]) -> list[tuple[str, State]]:
        return [(run, state(store.run(run), queue) if run in there else State("to do", None, None)) for run in runs]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(itertools.chain(*pool.map(some, (runs[i::AT_ONCE] for i in range(AT_ONCE)))))
    return {run: found[run] for run in runs}


def state(folder: RunFolder, queue: Queue) -> State:
    """One run's state. A result is the last word, an error ends an attempt; the rest is asked of who executes it."""
    result = folder.result()
    if result is not None:
        return State("done", Attempt(folder, result["attempt"]), result)
    attempts = folder.attempts()
    attempt = attempts[-1] if attempts else None
    error = attempt.error if attempt else None
    failed = error is not None and not error.startswith(INTERRUPTED)
    held = queue.jobs.get(folder.id)
    if held and attempt and failed and attempt.job["batch"] == held[0]:
        held = None  # that job has had its try; one that was interrupted SLURM starts again
    alive = is_alive(attempt, held) if attempt and error is None else False
    if alive:
        return State("running", attempt, None)
    if held and held[1] is not None:
        return State("queued", attempt, None)
    if held or alive is None:
        return State("lost?", attempt, None)
    result = folder.result()  # again: whoever was at it may have published, and gone, since the first look
    if result is not None:
        return State("done", attempt, result)
    return State("failed" if failed else "to do", attempt, None)


def is_alive(attempt: Attempt, held: tuple[str, str | None] | None) -> bool | None:
    """Whether some process is still at this attempt; None without information."""
    here, job = attempt.lives(), attempt.job
    if here is not None:
        return here
    if job["scheduler"] != "slurm":
        return None
    if held is None:
        return False
    return None if held[1] is None else held[1] != "PENDING"


def tries(folder: RunFolder) -> int:
    """How many attempts in a row ended in an error without getting further than those before them.

    To get further is to leave a further checkpoint: where the next attempt would go on.
    """
    count, furthest = 0, 0
    for attempt in folder.attempts():
        step = max(attempt.checkpoint_steps, default=0)
        if step > furthest:
            count, furthest = 0, step
        count += attempt.error is not None and not attempt.error.startswith(INTERRUPTED)
    return count


def bury(attempt: Attempt) -> None:
    """Writes down that an attempt is over whose process is gone: on another host nobody could tell."""
    attempt.fail(f"{SILENT}\n" if attempt.job["scheduler"] == "slurm" else f"{INTERRUPTED}{SILENT}\n")


def last_line(text: str) -> str:
    """The reason, at the end of a traceback."""
    return (text.strip().splitlines() or ["no reason given"])[-1]
