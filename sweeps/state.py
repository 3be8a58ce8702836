"""The state of runs, rebuilt from the store and the scheduler by whoever asks, at any time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmprompt.run import Attempt, RunFolder, Store
from sweeps import scheduler
from sweeps.batch import batches

Name = Literal["done", "failed", "running", "queued", "lost?", "to do"]
TRIES = 3  # attempts that end in an error without getting further than the ones before: then a run is left alone
SILENT = "its process ended without a word"
INTERRUPTED = "interrupted: "  # how the error of an attempt begins that nothing was wrong with


@dataclass(frozen=True)
class Queue:
    """What SLURM has of our runs: by run, the newest batch that holds it, and SLURM's word for the state of its job.

    The word is None where squeue gives no information.
    """

    jobs: Mapping[str, tuple[str, str | None]]


@dataclass(frozen=True)
class State:
    name: Name  # "lost?": another machine may be at it, and nobody can tell
    attempt: Attempt | None  # the newest
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


def state(folder: RunFolder, queue: Queue) -> State:
    """One run's state. A result is the last word, an error ends an attempt; the rest is asked of who executes it."""
    result = folder.result()
    attempts = folder.attempts()
    attempt = attempts[-1] if attempts else None
    if result is not None:
        return State("done", attempt, result)
    error = attempt.error if attempt else None
    held = queue.jobs.get(folder.id)
    if held and attempt and error is not None and attempt.job["batch"] == held[0]:
        held = None  # that job has had its try
    alive = is_alive(attempt, held) if attempt and error is None else False
    if alive:
        return State("running", attempt, None)
    if held and held[1] is not None:
        return State("queued", attempt, None)
    if held or alive is None:
        return State("lost?", attempt, None)
    is_failure = error is not None and not error.startswith(INTERRUPTED)
    return State("failed" if is_failure else "to do", attempt, None)


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
    """How many attempts in a row ended in an error without getting further than the best one before them."""
    count, furthest = 0, -1
    for attempt in folder.attempts():
        step = (attempt.progress or {"step": 0})["step"]
        count = count if step <= furthest else 0
        count += attempt.error is not None and not attempt.error.startswith(INTERRUPTED)
        furthest = max(furthest, step)
    return count


def bury(attempt: Attempt) -> None:
    """Writes down that an attempt is over whose process is gone: on another host nobody could tell."""
    attempt.fail(f"{SILENT}\n" if attempt.job["scheduler"] == "slurm" else f"{INTERRUPTED}{SILENT}\n")


def last_line(text: str) -> str:
    """The reason, at the end of a traceback."""
    return (text.strip().splitlines() or ["no reason given"])[-1]
