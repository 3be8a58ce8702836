"""Reports of sweeps, again and again: what `status` shows, and a launch that waits. SLURM is asked now and then."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from mmprompt.runs.files import server_time
from mmprompt.runs.processes import is_running
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import Store
from sweeps.display.pace import UNKNOWN, Pace
from sweeps.display.report import RunLine, SweepStatus, line_of, validation, with_time_left
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.batch import Batch, Batches, batches
from sweeps.states.causes import RunFailure, failures
from sweeps.states.state import AT_ONCE, Queue, State, queue, states

SQUEUE = 30.0  # seconds between two questions to SLURM's controller

Wanted = tuple[str, frozenset[str]]  # a run, and the evaluations that a sweep wants of it


class SweepReader:
    """`states` is what was last seen of each run, with what any of the sweeps wants of it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.batches = Batches(store)
        self.damaged: list[DamagedError] = []  # records of batches
        self.queue = Queue({})
        self.states: dict[str, State] = {}
        self._asked = -SQUEUE
        self._done: dict[Wanted, RunLine] = {}  # what is done stays so, and is not read again
        self._failures: tuple[object, dict[str, RunFailure]] = None, {}
        self._paces: dict[str, Pace] = {}  # by sweep

    def forget_queue(self) -> None:
        """SLURM is asked at the next look: jobs were submitted."""
        self._asked = -SQUEUE

    def again(self, sweeps: Sequence[LaunchedSweep]) -> list[SweepStatus]:
        """Reads the store; asks SLURM if that was not done in the last half minute."""
        wanted: dict[str, frozenset[str]] = {}
        for sweep in sweeps:
            wanted |= {run: some | wanted.get(run, frozenset()) for run, some in sweep.evaluations.items()}
        runs = list(wanted)
        is_due = time.monotonic() - self._asked >= SQUEUE
        if is_due:
            self.batches = batches(self.store)
            self.damaged = [*self.batches.damaged, *(one for batch in self.batches for one in batch.damage)]
            self.queue, self._asked = queue(self.store, runs, self.batches), time.monotonic()
        left = dict.fromkeys(
            run for sweep in sweeps for run, some in sweep.evaluations.items() if (run, some) not in self._done
        )
        self.states |= states(self.store, list(left), self.queue, wanted)
        waiting = at_hand(self.batches)
        self._explain(runs, waiting, is_due)
        return self._foreseen([self._report(sweep) for sweep in sweeps], waiting)

    def _explain(self, runs: Iterable[str], waiting: Collection[str], is_due: bool) -> None:
        """Why runs have stopped; asked again when others have."""
        seen = self.states
        stopped = [
            run
            for run in runs
            if seen[run].name == "failed" or (seen[run].name in ("to do", "to evaluate") and run not in waiting)
        ]
        key = [(run, seen[run].attempt) for run in stopped]
        if is_due or key != self._failures[0]:
            self._failures = key, failures(self.store, stopped, seen, self.batches)

    def _report(self, sweep: LaunchedSweep) -> SweepStatus:
        values = {point["run"]: point["values"] for point in reversed(sweep.manifest["points"])}
        metrics = {task: validation(about) for task, about in sweep.manifest["tasks"].items()}
        first = next(iter(metrics), "")  # the task of points that name none
        seen = self._seen(sweep)
        failures = {run: one for run, one in self._failures[1].items() if run in seen and seen[run].name != "done"}

        def line(run: str) -> RunLine:
            wanted = run, sweep.evaluations[run]
            if wanted not in self._done:
                made = line_of(run, values[run], seen[run], failures.get(run), metrics[values[run].get("task", first)])
                if made.state != "done":
                    return made
                self._done[wanted] = made
            return replace(self._done[wanted], values=values[run])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            lines = list(pool.map(line, sweep.runs))
        return SweepStatus(sweep, lines, failures)

    def _foreseen(self, reports: Sequence[SweepStatus], waiting: Collection[str]) -> list[SweepStatus]:
        """With what is to be expected of runs that are not done, where anybody is at work."""
        if not any(line.state == "running" or line.has_slot for one in reports for line in one.lines):
            return list(reports)
        now = server_time(self.store.root)
        return [one if one.is_done else self._expected(one, waiting, now) for one in reports]

    def _expected(self, report: SweepStatus, waiting: Collection[str], now: float) -> SweepStatus:
        """As the sweep's own runs tell, so that it is the same whatever other sweeps are looked at."""
        pace = self._paces.setdefault(report.launched.name, Pace(self.store))
        takes = pace.of(self._seen(report.launched), self.batches)
        lines = [with_time_left(line, takes.get(line.run, UNKNOWN), line.run in waiting, now) for line in report.lines]
        return replace(report, lines=lines)

    def _seen(self, sweep: LaunchedSweep) -> dict[str, State]:
        """Its runs, with the evaluations that it wants of them."""
        return {
            run: self.states[run].restricted_to(self.store.run(run), wanted)
            for run, wanted in sweep.evaluations.items()
        }


def at_hand(batches: Iterable[Batch]) -> set[str]:
    """The runs that launches on local processes, which are at work, have or will come to."""
    alive = [batch for batch in batches if not batch.is_slurm and is_running(batch.record["launcher"])]
    return {run for batch in alive for job in batch.jobs for run in job}
