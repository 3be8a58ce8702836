"""A watch over the runs of a launch, until each is done or failed, or nobody is left who is at it.

It looks at the store, never at what submitit believes; whoever executes a run, here or elsewhere, is seen alike.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Iterable

from mmprompt.run import Attempt
from sweeps.manifest import Expanded
from sweeps.screen import Screen
from sweeps.state import SILENT, Queue, State, last_line, queue, state
from sweeps.workers import Workers

POLL = 0.5  # seconds between two looks at the store
SQUEUE = 30.0  # seconds between two questions to SLURM's controller
NEWS = 60.0  # seconds until what another host has written is surely seen here (NFS)


class Watch:
    """`open` runs are neither done nor failed yet; `states` is what was last seen of each run."""

    def __init__(self, expanded: Expanded, runs: Iterable[str], workers: Workers | None) -> None:
        self.expanded = expanded
        self.store = expanded.store
        self.workers = workers
        self.open = list(runs)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.states: dict[str, State] = {}
        self._before = {run: number(next(reversed(self.store.run(run).attempts()), None)) for run in self.open}
        self._dead_since: dict[str, float] = {}
        self._queue, self._asked = Queue({}), -SQUEUE
        self._started_at = -1  # how many runs were settled when workers were last started
        self._began = time.monotonic()
        self._head_start: float | None = None  # runs' worth of steps that was done when the watch began

    def follow(self, screen: Screen) -> None:
        """Returns when nothing is left to wait for; then nobody is at the runs that are still `open`."""
        while True:
            began = time.monotonic()
            alive = self.workers.alive() if self.workers else 0  # before the store: what the dead did is there
            self.look(screen)
            waiting = [run for run in self.open if self.states[run].name in ("to do", "failed")]
            started = self._start_missing(alive, len(waiting))
            if not (alive or started or len(waiting) < len(self.open)) or not self.open:
                return
            screen.now(self._summary(), self._rows())
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # a big sweep is looked at less often

    def look(self, screen: Screen) -> None:
        """Reads the state of every open run, and settles those that are done or failed."""
        if time.monotonic() - self._asked >= SQUEUE:
            self._queue, self._asked = queue(self.store, self.open), time.monotonic()
        for run in list(self.open):
            seen = self.states[run] = self._seen(run)
            if seen.name == "done":
                self._settle(run, self.done, screen)
            elif seen.name == "failed" and number(seen.attempt) > self._before[run]:
                self._settle(run, self.failed, screen)
        if self._head_start is None:
            self._head_start = sum(fraction(self.states[run]) for run in self.open)

    def _seen(self, run: str) -> State:
        """A run's state. An attempt of this watch whose process is gone failed, and cannot say so itself."""
        folder = self.store.run(run)
        seen = state(folder, self._queue)
        if seen.name == "to do" and number(seen.attempt) > self._before[run]:
            seen = state(folder, self._queue)  # again: it may have published while the first look was taken
        if seen.attempt is None or seen.name != "to do" or seen.attempt.number <= self._before[run]:
            self._dead_since.pop(run, None)
            return seen
        since = time.monotonic() - self._dead_since.setdefault(run, time.monotonic())
        if seen.attempt.job["host"] != socket.gethostname() and since < NEWS:
            return dataclasses.replace(seen, name="lost?")
        seen.attempt.fail(f"{SILENT}: killed, cancelled, or out of memory\n")
        return state(folder, self._queue)

    def _settle(self, run: str, settled: list[str], screen: Screen) -> None:
        self.open.remove(run)
        settled.append(run)
        seen, total = self.states[run], len(self.done) + len(self.failed) + len(self.open)
        what = metrics(seen) if seen.result else last_line((seen.attempt and seen.attempt.error) or "")
        screen.line(f"[{total - len(self.open)}/{total}] {seen.name:<6} {self.expanded.labels[run]}  {what}")

    def _start_missing(self, alive: int, waiting: int) -> bool:
        """Starts the workers that are missing; again only once a run was settled: some die before they work."""
        settled = len(self.done) + len(self.failed)
        if not self.workers or alive >= min(self.workers.most, waiting) or settled <= self._started_at:
            return False
        self._started_at = settled
        for _ in range(min(self.workers.most, waiting) - alive):
            self.workers.start()
        return True

    def _summary(self) -> str:
        names = [self.states[run].name for run in self.open]
        counts = {"done": len(self.done), "failed": len(self.failed), "running": names.count("running")}
        counts["to do"] = len(self.open) - counts["running"]
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count) + f"; {self._time_left()}"

    def _time_left(self) -> str:
        """From what was done since the watch began, runs in progress counted by their steps."""
        under_way = sum(fraction(self.states[run]) for run in self.open)
        done = len(self.done) + len(self.failed) + under_way - (self._head_start or 0.0)
        if done < 0.5:
            return "time left not known yet"
        return f"about {duration((time.monotonic() - self._began) * (len(self.open) - under_way) / done)} left"

    def _rows(self) -> list[str]:
        running = [run for run in self.open if self.states[run].name == "running"]
        return [f"{self.expanded.labels[run]}  {position(self.states[run].attempt)}" for run in running]


def number(attempt: Attempt | None) -> int:
    return attempt.number if attempt else 0


def metrics(seen: State) -> str:
    assert seen.result is not None
    values = ", ".join(f"{name} {value:.1f}" for name, value in seen.result["metrics"].items())
    return f"{values}  ({duration(seen.result['seconds'])})"


def fraction(seen: State) -> float:
    """How much of a run is done, as far as it has said."""
    progress = seen.attempt.progress if seen.attempt and seen.name == "running" else None
    return progress["step"] / progress["steps"] if progress else 0.0


def position(attempt: Attempt | None) -> str:
    progress = attempt.progress if attempt else None
    if progress is None:
        return "starting"
    validation = f", validation {progress['validation'][-1][1]:.1f}" if progress["validation"] else ""
    return f"step {progress['step']}/{progress['steps']}{validation}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
