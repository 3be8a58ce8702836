"""Follows the runs of a launch until each is done or failed, or until no process works on any of them.

It reads their states from the store, so it also follows runs that other launches execute, on this machine or elsewhere.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.attempt import TRIES, Attempt
from mmprompt.runs.failures import silent
from sweeps.display.live_table import LiveTable
from sweeps.display.page import drawn_page
from sweeps.display.report import SweepStatus, total_time_left
from sweeps.display.sweep_reader import SweepReader
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.local import Workers, batch_folder, running_workers
from sweeps.states import causes
from sweeps.states.state import ENDED, OPEN, State
from sweeps.states.state import state as read_state
from sweeps.wording import duration

POLL = 0.5  # seconds between two readings of the store
NEWS = 60.0  # seconds after which a file that another host has written is visible here (NFS)
RECONCILE = 60.0  # seconds between two checks for runs that have to be submitted again
# The ends of the metric keys that a done run's line shows.
SCORES = tuple(f"/{metric}" for metric in PRIMARY_METRIC.values())
# Called with runs and a function that prints a line; returns the runs that were submitted.
Submit = Callable[[Sequence[str], Callable[[str], None]], Sequence[str]]


class Watch:
    """Follows runs. `open` runs are neither done nor failed yet; `states` holds each run's state at the last reading.

    `submit`, given for SLURM jobs, submits runs again that were killed or failed, until they no longer get further.
    """

    def __init__(
        self,
        sweeps: Sequence[LaunchedSweep],
        labels: Mapping[str, str],
        runs: Iterable[str],
        workers: Workers | None,
        submit: Submit | None = None,
    ) -> None:
        """`labels`: the name of each run in the lines that are printed."""
        self.sweeps = sweeps
        self.store = sweeps[0].store
        self.workers = workers
        self.open = list(runs)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.abandoned: list[str] = []  # cancelled or damaged runs: neither done nor failed, and not submitted again
        self.states: dict[str, State] = {}
        self.reports: list[SweepStatus] = []
        self._labels = labels
        self._reader = SweepReader(self.store)
        self._to_evaluate: dict[str, int] = {}  # by trained run: how many evaluations were missing at first
        self._submit = submit
        # How often a run was submitted again, by its furthest step.
        self._submitted: Counter[tuple[str, int]] = Counter()
        self._reconciled = time.monotonic()
        self._attempts_before = {run: number(next(reversed(self.store.run(run).attempts()), None)) for run in self.open}
        self._dead_since: dict[str, float] = {}
        self._has_said_waiting = False  # that it waits for workers of other launches

    def follow(self, table: LiveTable) -> None:
        """Returns when there is nothing left to wait for; then no process works on the runs that are still `open`."""
        while True:
            began = time.monotonic()
            # Counted before the store is read, so that the store has all that dead workers wrote.
            alive = self.workers.alive() if self.workers else 0
            self.read(table)
            self._reconcile(table)
            waiting = [run for run in self.open if self.states[run].name in OPEN]
            may_start = self._start_missing(alive, len(waiting), table)
            if not (alive or may_start or self._submit or len(waiting) < len(self.open)) or not self.open:
                return
            self.show(table)
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # large sweeps are read less often

    def show(self, table: LiveTable) -> None:
        """Shows the status of the sweeps that are not done, as `status` does."""
        unfinished = [report for report in self.reports if not report.is_done] or self.reports
        sentences = [*map(str, unfinished), *total_time_left(unfinished)]
        table.show(lambda width, height: drawn_page(self.store, unfinished, width, height), "; ".join(sentences))

    def read(self, table: LiveTable) -> None:
        """Reads the state of every open run, and settles the runs that are done or failed."""
        self.reports = self._reader.read(self.sweeps)
        for run in list(self.open):
            state = self.states[run] = self._checked(run, self._reader.states[run])
            if state.result and state.missing:
                self._to_evaluate.setdefault(run, len(state.missing))
            if state.name == "done":
                self._settle(run, self.done, table)
            elif state.damage is not None and state.job is None:
                self._settle(run, self.abandoned, table, str(state.damage))
            elif state.name in ENDED and number(state.attempt) > self._attempts_before[run] and self._is_final(run):
                self._settle(run, self.failed, table)

    def _is_final(self, run: str) -> bool:
        """Whether a failed run will not be submitted again."""
        return self._submit is None or self.states[run].name == "diverged" or self.store.run(run).tries() >= TRIES

    def _reconcile(self, table: LiveTable) -> None:
        """Submits runs again that were killed or failed, at most three times without getting further; cancelled runs are not."""
        if self._submit is None or time.monotonic() - self._reconciled < RECONCILE:
            return
        self._reconciled = time.monotonic()
        ended = [run for run in self.open if self.states[run].name in OPEN]
        failures = causes.failures(self.store, ended, self.states)
        again: dict[str, int] = {}  # by run: its furthest step
        for run in ended:
            furthest = max((step for step, _ in self.store.run(run).checkpoints()), default=0)
            if run in failures and failures[run].cause == "cancelled":
                self._settle(run, self.abandoned, table, "cancelled")
            elif self._submitted[run, furthest] >= TRIES:
                reason = failures[run].reason if run in failures else "its jobs end without a word"
                self._settle(run, self.failed, table, reason)
            else:
                again[run] = furthest
        if again:
            self._submitted.update((run, again[run]) for run in self._submit(list(again), table.print_line))
            self._reader.forget_queue()  # the queue that was read before has changed

    def _checked(self, run: str, state: State) -> State:
        """A run's state, after its attempt was marked as failed if the process of that attempt is gone.

        Only attempts that began during this watch are marked: a process that was killed cannot record its failure itself.
        """
        folder = self.store.run(run)
        has_reason = state.attempt is not None and state.attempt.reason is not None
        is_open = state.name in ("to do", "to evaluate")
        if state.attempt is None or has_reason or not is_open or state.attempt.number <= self._attempts_before[run]:
            self._dead_since.pop(run, None)
            return state
        since = time.monotonic() - self._dead_since.setdefault(run, time.monotonic())
        if state.attempt.job["host"] != socket.gethostname() and since < NEWS:
            return dataclasses.replace(state, name="lost?")
        state.attempt.fail(silent(False, "killed, cancelled, or out of memory"))
        return read_state(folder, self._reader.queue, state.missing)

    def _settle(self, run: str, settled: list[str], table: LiveTable, reason: str = "") -> None:
        """Moves a run from `open` to the list `settled`, and prints how it ended."""
        self.open.remove(run)
        settled.append(run)
        state, total = self.states[run], len(self.done) + len(self.failed) + len(self.abandoned) + len(self.open)
        failure = state.attempt.reason if state.attempt else None
        outcome = reason or (failure.message if failure else "no reason given")
        if state.name == "done":
            evaluations = self._to_evaluate.get(run)
            outcome = (
                f"{evaluations} evaluation{'s' if evaluations > 1 else ''} made" if evaluations else metrics(state)
            )
        table.print_line(f"[{total - len(self.open)}/{total}] {state.name:<6} {self._labels[run]}  {outcome}")

    def _start_missing(self, alive: int, waiting: int, table: LiveTable) -> bool:
        """Starts the workers that are missing, as far as this machine has room for them.

        Returns False if none was started and no worker is running that could make room. It starts at most one worker for each
        run, and another one for each settled run, because workers may die before they begin a run.
        """
        if not self.workers:
            return False
        settled = len(self.done) + len(self.failed)
        may_start = min(self.workers.most, settled + len(self.open)) + settled - self.workers.started
        missing = min(self.workers.most, waiting, alive + may_start) - alive
        if missing <= 0:
            return False
        running = running_workers(self.store)
        started = self.workers.start(missing, running)
        others = len([worker for worker in running if batch_folder(worker) != self.workers.batch.folder])
        if started == missing or not others:
            self._has_said_waiting = False
        elif not self._has_said_waiting:
            self._has_said_waiting = True
            table.print_line(waiting_message(others))
        return bool(started or running)


def waiting_message(others: int) -> str:
    """The line that is printed while workers of other launches leave no room for those of this launch."""
    if others == 1:
        return "1 process of another launch is at work here; waiting for it"
    return f"{others} processes of other launches are at work here; waiting for them"


def number(attempt: Attempt | None) -> int:
    """The number of an attempt; 0 if there is none."""
    return attempt.number if attempt else 0


def metrics(state: State) -> str:
    """The scores of a done run and the seconds that it took, as its line shows them."""
    assert state.result is not None
    scores = [(key, value) for key, value in state.result["metrics"].items() if key.endswith(SCORES)]
    values = ", ".join(f"{name} {value:.1f}" for name, value in scores)
    return f"{values}  ({duration(state.result['seconds'])})"
