"""`python -m sweeps logs RUN`: the output of a run's job, and how the run's attempt ended.

A log may hold several attempts: all runs of a job print into it, and a job that SLURM requeues continues it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.files import StoreError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.grid.launched import find_run, label_of, store_at
from sweeps.jobs.batch import batches, evaluations_by_run, log_of
from sweeps.jobs.job_log import BEGINS, end_of, started_at, tail
from sweeps.jobs.slurm import Job
from sweeps.states.causes import CLOCKS, RunFailure, failures
from sweeps.states.state import OPEN, queue, state

LINES = 40  # how many lines are shown of the end of a log
POLL = 1.0  # seconds between two readings of a run that is followed
SQUEUE = 30.0  # seconds between two queries of SLURM
IDLE = ("done", "damaged", *OPEN)  # states of a run that no process and no job works on


def logs(run: str, runs: Path, follow: bool, attempt: int | None) -> int:
    """Prints the status of a run's newest attempt, or of attempt number `attempt`, and the end of its job's log.

    With `follow` it continues, from attempt to attempt, while the run is queued or running, until Ctrl-C. Raises StoreError if
    there is no such run or attempt.
    """
    store = store_at(runs)
    logged = LoggedRun(store, find_run(store, run))
    chosen = logged.state.attempt if attempt is None else chosen_attempt(logged, attempt, follow)
    print(f"{logged.folder.id}  {label_of(store, logged.folder.id)}".rstrip())
    failure = logged.failure
    print("\n".join(describe(chosen, logged, failure) if chosen else [describe_unbegun(logged, failure)]))
    printer = LogPrinter()
    if chosen is None or (failure and failure.attempt is None):
        printer.print_ends(*files(failure.log if failure else None))
    elif chosen == logged.state.attempt:
        printer.print_ends(*files(log_of(chosen)))
    else:
        print("\n".join(own_part(chosen)))
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            follow_run(logged, chosen, printer)
    return 0


class LoggedRun:
    """A run's state, read repeatedly; SLURM is queried only now and then."""

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self.store, self.folder = store, folder
        self.read_with_queue()

    def read_with_queue(self) -> None:
        """Queries SLURM, and reads the run's state."""
        self.batches = batches(self.store)
        self.queue, self._queried = queue(self.store, [self.folder.id], self.batches), time.monotonic()
        self.wanted = evaluations_by_run(self.batches, [self.folder.id])[self.folder.id]
        self.state = state(self.folder, self.queue, self.wanted)

    def read(self) -> None:
        """Reads the run's state; queries SLURM if the run seems to be idle, or if the last query is too long ago."""
        self.state = state(self.folder, self.queue, self.wanted)
        # The run may be idle only by the old answer of SLURM.
        if self.state.name in IDLE or time.monotonic() - self._queried > SQUEUE:
            self.read_with_queue()

    @property
    def failure(self) -> RunFailure | None:
        """Why the run has stopped; None if it has not."""
        run = self.folder.id
        return failures(self.store, [run], {run: self.state}, self.batches).get(run)


def chosen_attempt(logged: LoggedRun, number: int, follow: bool) -> Attempt:
    """The attempt with this number. Raises StoreError if there is none, or if it is over and cannot be followed."""
    attempts = {attempt.number: attempt for attempt in logged.folder.attempts()}
    if number not in attempts:
        existing = f"there are {', '.join(map(str, attempts))}" if attempts else "it was never begun"
        raise StoreError(f"--attempt {number}: run {logged.folder.id} has no such attempt; {existing}")
    if follow and attempts[number] != logged.state.attempt:
        raise StoreError(
            f"--attempt {number} is over, and -f has nothing to wait for; without --attempt it follows the newest"
        )
    return attempts[number]


def describe(attempt: Attempt, logged: LoggedRun, failure: RunFailure | None) -> list[str]:
    """Lines about an attempt: its number, its job and host, its status, its error, and the other runs of its job."""
    facts, newest = attempt.job, attempt == logged.state.attempt
    kind = "SLURM job" if facts["scheduler"] == "slurm" else "process"
    status = status_of(logged, failure) if newest else "over"
    lines = [
        f"attempt {attempt.number} of {logged.folder.attempts()[-1].number}: "
        f"{kind} {facts.get('job')} on {facts['host']}; {status}"
    ]
    if (reason := attempt.reason) is not None:
        lines += ["", f"{attempt.error_text}:", *reason.text.splitlines()[-LINES:]]
    held = [
        job for batch in logged.batches if batch.id == facts["batch"] for job in batch.jobs if attempt.run.id in job
    ]
    others = max(map(len, held), default=1) - 1
    if others:
        lines += ["", f"the log is that of a job that has {others} other run{'s' if others > 1 else ''} as well"]
    return lines


def status_of(logged: LoggedRun, failure: RunFailure | None) -> str:
    """The status of a run's newest attempt, in words."""
    now = logged.state
    if now.damage is not None:
        return f"damaged: {now.damage}"
    if failure:
        return failure_text(failure)
    if now.name == "queued" and now.job:
        return queue_text(now.job)
    if now.name == "lost?":
        return (
            f"lost? No information from SLURM ({logged.queue.problem})"
            if logged.queue.problem
            else "lost? It cannot be checked from here"
        )
    progress = now.attempt.progress if now.attempt and now.name == "running" else None
    is_suspended = now.job is not None and now.job.state == "SUSPENDED"
    return (
        f"{'suspended' if is_suspended else now.name}{', step {step}/{steps}'.format(**progress) if progress else ''}"
    )


def failure_text(failure: RunFailure) -> str:
    return f"{failure.cause}: {failure.reason}"


def queue_text(job: Job) -> str:
    """What the SLURM job of a queued run is doing, in words."""
    name = f"SLURM job {job.id}".rstrip()
    if job.state == "PENDING":
        return f"queued: {name} is pending{f' ({job.reason})' if job.reason else ''}"
    return f"queued: {name} is {job.state.lower()}{f' on {job.node}' if job.node else ''}"


def describe_unbegun(logged: LoggedRun, failure: RunFailure | None) -> str:
    """A line about a run that has no attempt."""
    if logged.state.damage is not None:
        return f"damaged: {logged.state.damage}"
    if failure:
        return failure_text(failure)
    if logged.state.job:
        return queue_text(logged.state.job)
    if logged.queue.problem:
        return f"not begun; no information from SLURM ({logged.queue.problem})"
    return "not begun; SLURM has no job for it: a launch on local processes may execute it, else the next launch will"


def files(log: Path | None) -> list[Path]:
    """The two log files of a job: its standard error, which is named first, and its standard output."""
    return [log, log.with_suffix(".out")] if log else []


def own_part(attempt: Attempt) -> list[str]:
    """The end of an earlier attempt's own part of its job's log: without the parts of later executions of that job."""
    log, job = log_of(attempt), attempt.job
    lines = tail(log).splitlines() if log else []
    begins = [i for i, line in enumerate(lines) if line.startswith(BEGINS)]
    first = next((i for i in begins if is_of(job, lines[i])), 0)
    last = next((i for i in begins if i > first), len(lines))
    return ["", f"{log}:", *lines[first:last][-LINES:]]


def is_of(job: Mapping[str, Any], line: str) -> bool:
    """Whether the line begins the execution that wrote this job.json. Old job.json do not name their execution: times decide."""
    return bool(line == job["execution"] if "execution" in job else started_at(line) > job["started"] - CLOCKS)


class LogPrinter:
    """Prints logs that grow, each line once."""

    def __init__(self) -> None:
        self._sizes: dict[Path, int] = {}  # bytes of each log that were printed or skipped
        self._last: Path | None = None  # the log that the last lines came from

    def print_ends(self, *logs: Path) -> None:
        """Prints the last lines of each log that is not empty."""
        for log in logs:
            text, self._sizes[log] = end_of(log)  # of one reading: a job may be writing
            lines = text.splitlines()[-LINES:]
            if lines:
                self._print(log, "\n".join(lines))

    def print_new(self, *logs: Path) -> None:
        """Prints what was added to each log since the last call; all of a log that is new."""
        for log in logs:
            with contextlib.suppress(FileNotFoundError), log.open("rb") as file:
                file.seek(self._sizes.get(log, 0))
                text = file.read()
                self._sizes[log] = file.tell()
                if text:
                    self._print(log, text.decode(errors="replace").removesuffix("\n"))

    def _print(self, log: Path, text: str) -> None:
        if log != self._last:
            print(f"\n{log}:")
            self._last = log
        print(text, flush=True)


def follow_run(logged: LoggedRun, chosen: Attempt | None, printer: LogPrinter) -> None:
    """Prints what is new of a run until no process works on it and no job of SLURM will."""
    last_text = ""
    while True:
        logged.read()
        now, is_over = logged.state, logged.state.name in IDLE
        if now.attempt is not None and now.attempt != chosen:
            chosen = now.attempt
            print("\n" + "\n".join(describe(chosen, logged, None)), flush=True)
        if chosen is not None:
            printer.print_new(*files(log_of(chosen)))
        if now.job and now.name == "queued" and last_text != (last_text := queue_text(now.job)):
            print(last_text, flush=True)
        if is_over:
            print(f"\n{status_of(logged, logged.failure)}")
            return
        time.sleep(POLL)
