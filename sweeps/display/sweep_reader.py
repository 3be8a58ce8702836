"""Reads the status of sweeps repeatedly, for `status` and for a launch that waits; SLURM is queried only now and then."""

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
from sweeps.display.report import RunLine, SweepStatus, line_of, validation_metric, with_time_left
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs.batch import Batch, Batches, batches
from sweeps.states.causes import RunFailure, failures
from sweeps.states.state import AT_ONCE, Queue, State, queue, states

SQUEUE = 30.0  # seconds between two queries of SLURM's controller

WantedRun = tuple[str, frozenset[str]]  # a run's id, and the ids of the evaluations that a sweep wants of it


class SweepReader:
    """Reads the status of sweeps. `states` holds each run's state at the last reading, for the evaluations that any sweep wants."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.batches = Batches(store)
        self.damaged: list[DamagedError] = []  # records of batches
        self.queue = Queue({})
        self.states: dict[str, State] = {}
        self._queried = -SQUEUE  # when SLURM was last queried
        self._done: dict[WantedRun, RunLine] = {}  # done runs stay done and are not read again
        self._failures: tuple[object, dict[str, RunFailure]] = None, {}
        self._paces: dict[str, Pace] = {}  # by sweep

    def forget_queue(self) -> None:
        """Makes the next `read` query SLURM; to be called when jobs were submitted."""
        self._queried = -SQUEUE

    def read(self, sweeps: Sequence[LaunchedSweep]) -> list[SweepStatus]:
        """Reads the store, and queries SLURM if the last query is more than 30 seconds ago."""
        wanted: dict[str, frozenset[str]] = {}
        for sweep in sweeps:
            wanted |= {run: some | wanted.get(run, frozenset()) for run, some in sweep.evaluations.items()}
        runs = list(wanted)
        is_due = time.monotonic() - self._queried >= SQUEUE
        if is_due:
            self.batches = batches(self.store)
            self.damaged = [*self.batches.damaged, *(damage for batch in self.batches for damage in batch.damage)]
            self.queue, self._queried = queue(self.store, runs, self.batches), time.monotonic()
        unfinished = dict.fromkeys(
            run for sweep in sweeps for run, some in sweep.evaluations.items() if (run, some) not in self._done
        )
        self.states |= states(self.store, list(unfinished), self.queue, wanted)
        waiting = held_by_live_launches(self.batches)
        self._read_failures(runs, waiting, is_due)
        return self._with_time_left([self._report(sweep) for sweep in sweeps], waiting)

    def _read_failures(self, runs: Iterable[str], waiting: Collection[str], is_due: bool) -> None:
        """Finds out why runs have stopped; the reasons are read again when SLURM was queried or other runs have stopped."""
        states = self.states
        stopped = [
            run
            for run in runs
            if states[run].name == "failed" or (states[run].name in ("to do", "to evaluate") and run not in waiting)
        ]
        key = [(run, states[run].attempt) for run in stopped]
        if is_due or key != self._failures[0]:
            self._failures = key, failures(self.store, stopped, states, self.batches)

    def _report(self, sweep: LaunchedSweep) -> SweepStatus:
        values = {point["run"]: point["values"] for point in reversed(sweep.manifest["points"])}
        metrics = {task: validation_metric(record) for task, record in sweep.manifest["tasks"].items()}
        first = next(iter(metrics), "")  # the task of points that do not name one
        states = self._states_in(sweep)
        failures = {run: one for run, one in self._failures[1].items() if run in states and states[run].name != "done"}

        def read_line(run: str) -> RunLine:
            wanted = run, sweep.evaluations[run]
            if wanted not in self._done:
                metric = metrics[values[run].get("task", first)]
                line = line_of(run, values[run], states[run], failures.get(run), metric)
                if line.state != "done":
                    return line
                self._done[wanted] = line
            return replace(self._done[wanted], values=values[run])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            lines = list(pool.map(read_line, sweep.runs))
        return SweepStatus(sweep, lines, failures)

    def _with_time_left(self, reports: Sequence[SweepStatus], waiting: Collection[str]) -> list[SweepStatus]:
        """Adds the estimated time left to reports of unfinished sweeps, if any process or job is working on any of the sweeps."""
        if not any(line.state == "running" or line.has_slot for report in reports for line in report.lines):
            return list(reports)
        now = server_time(self.store.root)
        return [report if report.is_done else self._estimated(report, waiting, now) for report in reports]

    def _estimated(self, report: SweepStatus, waiting: Collection[str], now: float) -> SweepStatus:
        """Estimates from the sweep's own runs, so that the estimate does not depend on which other sweeps are shown."""
        pace = self._paces.setdefault(report.launched.name, Pace(self.store))
        expected = pace.expected(self._states_in(report.launched), self.batches)
        lines = [
            with_time_left(line, expected.get(line.run, UNKNOWN), line.run in waiting, now) for line in report.lines
        ]
        return replace(report, lines=lines)

    def _states_in(self, sweep: LaunchedSweep) -> dict[str, State]:
        """The states of a sweep's runs, judged by the evaluations that this sweep wants of them."""
        return {
            run: self.states[run].restricted_to(self.store.run(run), wanted)
            for run, wanted in sweep.evaluations.items()
        }


def held_by_live_launches(batches: Iterable[Batch]) -> set[str]:
    """The ids of the runs that live launches on local processes are working on or will work on."""
    live = [batch for batch in batches if not batch.is_slurm and is_running(batch.record["launcher"])]
    return {run for batch in live for job in batch.jobs for run in job}
