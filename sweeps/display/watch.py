"""Follows the runs of a launch until each is done or failed, or no process works on any of them.

It reads the store, so runs that other launches execute, here or elsewhere, are seen alike.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.failures import silent
from mmprompt.runs.store import TRIES, Attempt
from sweeps.display.live_table import LiveTable
from sweeps.display.looks import SweepReader
from sweeps.display.page import drawn_page
from sweeps.display.report import SweepStatus, together
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.local import Workers, batch_folder, running_workers
from sweeps.states import causes
from sweeps.states.state import ENDED, OPEN, State, state
from sweeps.wording import duration

POLL = 0.5  # seconds between two looks at the store
NEWS = 60.0  # seconds until what another host has written is surely seen here (NFS)
RECONCILE = 60.0  # seconds between two looks for runs that have to be submitted again
SCORES = tuple(f"/{metric}" for metric in PRIMARY_METRIC.values())  # how the keys end of what is said of a run
Submit = Callable[[Sequence[str], Callable[[str], None]], Sequence[str]]  # these runs, where to say so; those that were


class Watch:
    """`open` runs are neither done nor failed yet; `states` is what was last seen of each run.

    With `submit`, of SLURM's jobs, runs that were killed or failed are submitted again, until that leads nowhere.
    """

    def __init__(
        self,
        sweeps: Sequence[LaunchedSweep],
        labels: Mapping[str, str],
        runs: Iterable[str],
        workers: Workers | None,
        submit: Submit | None = None,
    ) -> None:
        """`labels`: what to call each run."""
        self.sweeps = sweeps
        self.store = sweeps[0].store
        self.workers = workers
        self.open = list(runs)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.left: list[str] = []  # cancelled: neither done nor failed, and not to be submitted again
        self.states: dict[str, State] = {}
        self.reports: list[SweepStatus] = []
        self._labels = labels
        self._looks = SweepReader(self.store)
        self._lacked: dict[str, int] = {}  # by run that had its result: how many evaluations it lacked
        self._submit = submit
        self._submitted: Counter[tuple[str, int]] = Counter()  # how often again, by run and furthest step
        self._reconciled = time.monotonic()
        self._before = {run: number(next(reversed(self.store.run(run).attempts()), None)) for run in self.open}
        self._dead_since: dict[str, float] = {}
        self._waits = False  # for workers of other launches

    def follow(self, screen: LiveTable) -> None:
        """Returns when nothing is left to wait for; then nobody is at the runs that are still `open`."""
        while True:
            began = time.monotonic()
            alive = self.workers.alive() if self.workers else 0  # before the store: what the dead did is there
            self.look(screen)
            self._reconcile(screen)
            waiting = [run for run in self.open if self.states[run].name in OPEN]
            more = self._start_missing(alive, len(waiting), screen)
            if not (alive or more or self._submit or len(waiting) < len(self.open)) or not self.open:
                return
            self.show(screen)
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # a big sweep is looked at less often

    def show(self, screen: LiveTable) -> None:
        """What `status` says at this moment of the sweeps that are not done."""
        open = [one for one in self.reports if not one.is_done] or self.reports
        said = [*map(str, open), *together(open)]
        screen.show(lambda width, height: drawn_page(self.store, open, width, height), "; ".join(said))

    def look(self, screen: LiveTable) -> None:
        """Reads the state of every open run, and settles those that are done or failed."""
        self.reports = self._looks.again(self.sweeps)
        for run in list(self.open):
            seen = self.states[run] = self._seen(run, self._looks.states[run])
            if seen.result and seen.missing:
                self._lacked.setdefault(run, len(seen.missing))
            if seen.name == "done":
                self._settle(run, self.done, screen)
            elif seen.damage is not None and seen.job is None:
                self._settle(run, self.left, screen, str(seen.damage))
            elif seen.name in ENDED and number(seen.attempt) > self._before[run] and self._is_final(run):
                self._settle(run, self.failed, screen)

    def _is_final(self, run: str) -> bool:
        return self._submit is None or self.states[run].name == "diverged" or self.store.run(run).tries() >= TRIES

    def _reconcile(self, screen: LiveTable) -> None:
        """Submits again what was killed or failed, three times at most without getting further; what was cancelled is left."""
        if self._submit is None or time.monotonic() - self._reconciled < RECONCILE:
            return
        self._reconciled = time.monotonic()
        ended = [run for run in self.open if self.states[run].name in OPEN]
        why = causes.failures(self.store, ended, self.states)
        again: dict[str, int] = {}
        for run in ended:
            furthest = max((step for step, _ in self.store.run(run).checkpoints()), default=0)
            if run in why and why[run].cause == "cancelled":
                self._settle(run, self.left, screen, "cancelled")
            elif self._submitted[run, furthest] >= TRIES:
                self._settle(run, self.failed, screen, why[run].reason if run in why else "its jobs end without a word")
            else:
                again[run] = furthest
        if again:
            self._submitted.update((run, again[run]) for run in self._submit(list(again), screen.line))
            self._looks.forget_queue()  # what was known of it is not true any more

    def _seen(self, run: str, seen: State) -> State:
        """A run's state. An attempt of this watch whose process is gone failed, and cannot say so itself."""
        folder = self.store.run(run)
        said = seen.attempt is not None and seen.attempt.reason is not None
        is_open = seen.name in ("to do", "to evaluate")
        if seen.attempt is None or said or not is_open or seen.attempt.number <= self._before[run]:
            self._dead_since.pop(run, None)
            return seen
        since = time.monotonic() - self._dead_since.setdefault(run, time.monotonic())
        if seen.attempt.job["host"] != socket.gethostname() and since < NEWS:
            return dataclasses.replace(seen, name="lost?")
        seen.attempt.fail(silent(False, "killed, cancelled, or out of memory"))
        return state(folder, self._looks.queue, seen.missing)

    def _settle(self, run: str, settled: list[str], screen: LiveTable, reason: str = "") -> None:
        self.open.remove(run)
        settled.append(run)
        seen, total = self.states[run], len(self.done) + len(self.failed) + len(self.left) + len(self.open)
        ended = seen.attempt.reason if seen.attempt else None
        what = reason or (ended.message if ended else "no reason given")
        if seen.name == "done":
            lacked = self._lacked.get(run)
            what = f"{lacked} evaluation{'s' if lacked > 1 else ''} made" if lacked else metrics(seen)
        screen.line(f"[{total - len(self.open)}/{total}] {seen.name:<6} {self._labels[run]}  {what}")

    def _start_missing(self, alive: int, waiting: int, screen: LiveTable) -> bool:
        """Starts the workers that are missing and have a place. False: none was started, nor will one that lives make room.

        One for each run at most, and one more for each that was settled: some die before they work.
        """
        if not self.workers:
            return False
        settled = len(self.done) + len(self.failed)
        left = min(self.workers.most, settled + len(self.open)) + settled - self.workers.started
        missing = min(self.workers.most, waiting, alive + left) - alive
        if missing <= 0:
            return False
        there = running_workers(self.store)
        started = self.workers.start(missing, there)
        others = len([worker for worker in there if batch_folder(worker) != self.workers.batch.folder])
        if started == missing or not others:
            self._waits = False
        elif not self._waits:
            self._waits = True
            screen.line(waits(others))
        return bool(started or there)


def waits(others: int) -> str:
    """What is said while other launches' workers have the places."""
    if others == 1:
        return "1 process of another launch is at work here; it is waited for"
    return f"{others} processes of other launches are at work here; they are waited for"


def number(attempt: Attempt | None) -> int:
    return attempt.number if attempt else 0


def metrics(seen: State) -> str:
    assert seen.result is not None
    scores = [(key, value) for key, value in seen.result["metrics"].items() if key.endswith(SCORES)]
    values = ", ".join(f"{name} {value:.1f}" for name, value in scores)
    return f"{values}  ({duration(seen.result['seconds'])})"
