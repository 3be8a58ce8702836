"""`python -m sweeps logs RUN`: what the job of a run printed, and how its attempt ended.

A job that SLURM starts again goes on in the same log, and all the runs of a job print there: a log may hold several attempts.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Attempt, RunFolder, Store
from sweeps.grid.launched import find_run, label_of, store_at
from sweeps.jobs.batch import batches, evaluations_by_run, log_of
from sweeps.jobs.job_log import BEGINS, started_at, tail
from sweeps.jobs.slurm import Job
from sweeps.states.causes import CLOCKS, RunFailure, failures
from sweeps.states.state import OPEN, queue, state

LINES = 40  # of the end of a log
POLL = 1.0  # seconds between two looks at what is followed
SQUEUE = 30.0  # seconds between two questions to SLURM
OVER = ("done", "damaged", *OPEN)  # states of a run that nobody is at


def logs(run: str, runs: Path, follow: bool, attempt: int | None) -> int:
    """Prints how a run's newest attempt, or attempt number `attempt`, goes or went, and the end of its job's log.

    With `follow` it goes on while the run is at work, from attempt to attempt, until Ctrl-C. Raises StoreError for a run, or an
    attempt, that is not there.
    """
    store = store_at(runs)
    seen = LoggedRun(store, find_run(store, run))
    chosen = seen.state.attempt if attempt is None else the_attempt(seen, attempt, follow)
    print(f"{seen.folder.id}  {label_of(store, seen.folder.id)}".rstrip())
    failure = seen.failure
    print("\n".join(about(chosen, seen, failure) if chosen else [not_begun(seen, failure)]))
    printed = Printed()
    if chosen is None or (failure and failure.attempt is None):
        printed.end(*files(failure.log if failure else None))
    elif chosen == seen.state.attempt:
        printed.end(*files(log_of(chosen)))
    else:
        print("\n".join(own_part(chosen)))
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            go_on(seen, chosen, printed)
    return 0


class LoggedRun:
    """What one sees of a run; SLURM is asked now and then."""

    def __init__(self, store: Store, folder: RunFolder) -> None:
        self.store, self.folder = store, folder
        self.ask()

    def ask(self) -> None:
        self.batches = batches(self.store)
        self.queue, self._asked = queue(self.store, [self.folder.id], self.batches), time.monotonic()
        self.wanted = evaluations_by_run(self.batches, [self.folder.id])[self.folder.id]
        self.state = state(self.folder, self.queue, self.wanted)

    def again(self) -> None:
        self.state = state(self.folder, self.queue, self.wanted)
        if (
            self.state.name in OVER or time.monotonic() - self._asked > SQUEUE
        ):  # it may be over only for what was known before
            self.ask()

    @property
    def failure(self) -> RunFailure | None:
        run = self.folder.id
        return failures(self.store, [run], {run: self.state}, self.batches).get(run)


def the_attempt(seen: LoggedRun, number: int, follow: bool) -> Attempt:
    attempts = {attempt.number: attempt for attempt in seen.folder.attempts()}
    if number not in attempts:
        there = f"there are {', '.join(map(str, attempts))}" if attempts else "it was never begun"
        raise StoreError(f"--attempt {number}: run {seen.folder.id} has no such attempt; {there}")
    if follow and attempts[number] != seen.state.attempt:
        raise StoreError(
            f"--attempt {number} is over, and -f has nothing to wait for; without --attempt it follows the newest"
        )
    return attempts[number]


def about(attempt: Attempt, seen: LoggedRun, failure: RunFailure | None) -> list[str]:
    """Which attempt, where, and how it is or ended."""
    facts, newest = attempt.job, attempt == seen.state.attempt
    kind = "SLURM job" if facts["scheduler"] == "slurm" else "process"
    how = how_it_is(seen, failure) if newest else "over"
    lines = [
        f"attempt {attempt.number} of {seen.folder.attempts()[-1].number}: {kind} {facts.get('job')} on {facts['host']}; {how}"
    ]
    if (reason := attempt.reason) is not None:
        lines += ["", f"{attempt.error_text}:", *reason.text.splitlines()[-LINES:]]
    held = [job for one in seen.batches if one.id == facts["batch"] for job in one.jobs if attempt.run.id in job]
    others = max(map(len, held), default=1) - 1
    if others:
        lines += ["", f"the log is that of a job that has {others} other run{'s' if others > 1 else ''} as well"]
    return lines


def how_it_is(seen: LoggedRun, failure: RunFailure | None) -> str:
    now = seen.state
    if now.damage is not None:
        return f"damaged: {now.damage}"
    if failure:
        return how_it_ended(failure)
    if now.name == "queued" and now.job:
        return waits(now.job)
    if now.name == "lost?":
        return (
            f"lost? No information from SLURM ({seen.queue.problem})"
            if seen.queue.problem
            else "lost? Nobody can tell from here"
        )
    progress = now.attempt.progress if now.attempt and now.name == "running" else None
    is_suspended = now.job is not None and now.job.state == "SUSPENDED"
    return (
        f"{'suspended' if is_suspended else now.name}{', step {step}/{steps}'.format(**progress) if progress else ''}"
    )


def how_it_ended(failure: RunFailure) -> str:
    return f"{failure.cause}: {failure.reason}"


def waits(job: Job) -> str:
    named = f"SLURM job {job.id}".rstrip()
    if job.state == "PENDING":
        return f"queued: {named} is pending{f' ({job.reason})' if job.reason else ''}"
    return f"queued: {named} is {job.state.lower()}{f' on {job.node}' if job.node else ''}"


def not_begun(seen: LoggedRun, failure: RunFailure | None) -> str:
    """About a run that no job was ever at."""
    if seen.state.damage is not None:
        return f"damaged: {seen.state.damage}"
    if failure:
        return how_it_ended(failure)
    if seen.state.job:
        return waits(seen.state.job)
    if seen.queue.problem:
        return f"not begun; no information from SLURM ({seen.queue.problem})"
    return "not begun; SLURM has no job for it: a launch on local processes may come to it, else the next launch will"


def files(log: Path | None) -> list[Path]:
    """A job's log, and beside it what it printed to its standard output."""
    return [log, log.with_suffix(".out")] if log else []


def own_part(attempt: Attempt) -> list[str]:
    """The end of what an attempt's job printed before it was started again."""
    log, job = log_of(attempt), attempt.job
    lines = tail(log).splitlines() if log else []
    begins = [i for i, line in enumerate(lines) if line.startswith(BEGINS)]
    first = next((i for i in begins if is_of(job, lines[i])), 0)
    last = next((i for i in begins if i > first), len(lines))
    return ["", f"{log}:", *lines[first:last][-LINES:]]


def is_of(job: Mapping[str, Any], line: str) -> bool:
    """Is it the first line of the execution of this job.json? Of those of long ago only times can tell."""
    return bool(line == job["execution"] if "execution" in job else started_at(line) > job["started"] - CLOCKS)


class Printed:
    """What was printed of logs that grow."""

    def __init__(self) -> None:
        self._sizes: dict[Path, int] = {}
        self._last: Path | None = None

    def end(self, *logs: Path) -> None:
        """The last lines of each that holds anything."""
        for log in logs:
            self._sizes[log] = log.stat().st_size if log.is_file() else 0
            lines = tail(log).splitlines()[-LINES:]
            if lines:
                self._print(log, "\n".join(lines))

    def more(self, *logs: Path) -> None:
        """What came since; all of one that is new."""
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


def go_on(seen: LoggedRun, chosen: Attempt | None, printed: Printed) -> None:
    """Follows the run until nobody is at it, and none of SLURM's jobs will be."""
    said = ""
    while True:
        seen.again()
        now, is_over = seen.state, seen.state.name in OVER
        if now.attempt is not None and now.attempt != chosen:
            chosen = now.attempt
            print("\n" + "\n".join(about(chosen, seen, None)), flush=True)
        if chosen is not None:
            printed.more(*files(log_of(chosen)))
        if now.job and now.name == "queued" and said != (said := waits(now.job)):
            print(said, flush=True)
        if is_over:
            print(f"\n{how_it_is(seen, seen.failure)}")
            return
        time.sleep(POLL)
