"""A watch over the runs of a launch, until each is done or failed, or nobody is left who is at it.

It looks at the store, never at what submitit believes; whoever executes a run, here or elsewhere, is seen alike.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mmprompt.config import PRIMARY_METRIC
from mmprompt.run import TRIES, Attempt
from sweeps import causes
from sweeps.cost import cost
from sweeps.outlook import Outlook
from sweeps.screen import Row, Screen, View, duration
from sweeps.state import COUNTED, ENDED, OPEN, SILENT, Name, Queue, State, last_line, queue, state, states
from sweeps.workers import Workers, at_work, folder_of

POLL = 0.5  # seconds between two looks at the store
SQUEUE = 30.0  # seconds between two questions to SLURM's controller
LONG = 300.0  # seconds that a start takes no large part of
AT_WORK: tuple[Name, ...] = ("running", "lost?")  # shown in this order
NEWS = 60.0  # seconds until what another host has written is surely seen here (NFS)
LEARN = 20.0  # seconds between two looks at what finished runs tell
RECONCILE = 60.0  # seconds between two looks for runs that have to be submitted again
SCORES = tuple(f"/{metric}" for metric in PRIMARY_METRIC.values())  # how the keys end of what is said of a run
Submit = Callable[[Sequence[str], Callable[[str], None]], Sequence[str]]  # these runs, where to say so; those that were


class Watch:
    """`open` runs are neither done nor failed yet; `states` is what was last seen of each run.

    With `submit`, of SLURM's jobs, runs that were killed or failed are submitted again, until that leads nowhere.
    """

    def __init__(
        self, seen: Outlook, runs: Iterable[str], workers: Workers | None, submit: Submit | None = None
    ) -> None:
        self.expanded = seen.expanded
        self.store = seen.expanded.store
        self.workers = workers
        self.open = list(runs)
        self.done: list[str] = []
        self.failed: list[str] = []
        self.left: list[str] = []  # cancelled: neither done nor failed, and not to be submitted again
        self.states: dict[str, State] = {}
        self._lacked: dict[str, int] = {}  # by run that had its result: how many evaluations it lacked
        self._submit = submit
        self._submitted: Counter[tuple[str, int]] = Counter()  # how often again, by run and furthest step
        self._reconciled = time.monotonic()
        self._before = {run: number(next(reversed(self.store.run(run).attempts()), None)) for run in self.open}
        self._dead_since: dict[str, float] = {}
        self._queue, self._asked = Queue({}), -SQUEUE
        self._waits = False  # for workers of other launches
        self._began = time.monotonic()
        self._pace = Pace(seen, self.open)
        self._end = (0.0, 0.0)  # what was done when the end was last foreseen; for when
        self._head_start: float | None = None  # what of it was done when the watch began

    def follow(self, screen: Screen) -> None:
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
            screen.now(self._view())
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # a big sweep is looked at less often

    def look(self, screen: Screen) -> None:
        """Reads the state of every open run, and settles those that are done or failed."""
        if time.monotonic() - self._asked >= SQUEUE:
            self._queue, self._asked = queue(self.store, self.open), time.monotonic()
        looked = states(self.store, self.open, self._queue, self.expanded.wanted)
        for run in list(self.open):
            seen = self.states[run] = self._seen(run, looked[run])
            if seen.result and seen.missing:
                self._lacked.setdefault(run, len(seen.missing))
            if seen.name == "done":
                self._settle(run, self.done, screen)
            elif seen.name in ENDED and number(seen.attempt) > self._before[run] and self._is_final(run):
                self._settle(run, self.failed, screen)
        if self._head_start is None:
            self._head_start = self._under_way()

    def _is_final(self, run: str) -> bool:
        return self._submit is None or self.states[run].name == "diverged" or self.store.run(run).tries() >= TRIES

    def _reconcile(self, screen: Screen) -> None:
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
            self._asked = -SQUEUE  # what was known of the queue is not true any more

    def _seen(self, run: str, seen: State) -> State:
        """A run's state. An attempt of this watch whose process is gone failed, and cannot say so itself."""
        folder = self.store.run(run)
        said = seen.attempt is not None and seen.attempt.error is not None
        is_open = seen.name in ("to do", "to evaluate")
        if seen.attempt is None or said or not is_open or seen.attempt.number <= self._before[run]:
            self._dead_since.pop(run, None)
            return seen
        since = time.monotonic() - self._dead_since.setdefault(run, time.monotonic())
        if seen.attempt.job["host"] != socket.gethostname() and since < NEWS:
            return dataclasses.replace(seen, name="lost?")
        seen.attempt.fail(f"{SILENT}: killed, cancelled, or out of memory\n")
        return state(folder, self._queue, self.expanded.wanted[run])

    def _settle(self, run: str, settled: list[str], screen: Screen, reason: str = "") -> None:
        self.open.remove(run)
        settled.append(run)
        seen, total = self.states[run], len(self.done) + len(self.failed) + len(self.left) + len(self.open)
        what = reason or last_line((seen.attempt and seen.attempt.error) or "")
        if seen.name == "done":
            lacked = self._lacked.get(run)
            what = f"{lacked} evaluation{'s' if lacked > 1 else ''} made" if lacked else metrics(seen)
        screen.line(f"[{total - len(self.open)}/{total}] {seen.name:<6} {self.expanded.labels[run]}  {what}")

    def _start_missing(self, alive: int, waiting: int, screen: Screen) -> bool:
        """Starts the workers that are missing and have a place. False: none was started, nor will one that lives make room.

        One for each run at most, and one more for each that was settled: some die before they work.
        """
        if not self.workers:
            return False
        settled = len(self.done) + len(self.failed)
        left = min(self.workers.most, settled + len(self.open)) + settled - len(self.workers.jobs)
        missing = min(self.workers.most, waiting, alive + left) - alive
        if missing <= 0:
            return False
        there = at_work(self.store)
        started = self.workers.start(missing, there)
        others = len([worker for worker in there if folder_of(worker) != self.workers.batch.folder])
        if started == missing or not others:
            self._waits = False
        elif not self._waits:
            self._waits = True
            screen.line(waits(others))
        return bool(started or there)

    def _view(self) -> View:
        names = {run: self.states[run].name for run in self.open}
        at_work = sorted((run for run in self.open if names[run] in AT_WORK), key=lambda run: AT_WORK.index(names[run]))
        said = {run: progress(self.states[run]) for run in at_work}
        total = len(self.open) + len(self.done) + len(self.failed) + len(self.left)
        # What failed before this watch, and is still open, is to be done.
        counts: Counter[Name] = Counter(
            name if name not in ENDED else "to evaluate" if self.states[run].result else "to do"
            for run, name in names.items()
        )
        counts.update(failed=len(self.failed))
        words = [f"{counts[name]} {name}" for name in COUNTED if counts[name]]
        summary = ", ".join([f"{len(self.done)}/{total} done", *words])
        rows = [row(self.expanded.differences[run], names[run], said[run]) for run in at_work]
        return View(f"{summary}; {self._time_left()}", self._metric, rows)

    @cached_property
    def _metric(self) -> str:
        names = {PRIMARY_METRIC[config.task.family] for config in self.expanded.configs.values()}
        return f"val/{names.pop()}" if len(names) == 1 else "validation"

    def _under_way(self) -> float:
        """Of the open runs, what is done of what they take."""
        return sum(self._pace.takes(run) * fraction(progress(self.states[run])) for run in self.open)

    def _time_left(self) -> str:
        """From what was done since the watch began, runs in progress counted by their steps. Until there is enough of that, as
        finished runs of their kind tell."""
        settled, now = [*self.done, *self.failed], time.monotonic()
        self._pace.learn(self.states, len(settled))
        under_way = self._under_way()
        done = sum(map(self._pace.takes, settled)) + under_way - (self._head_start or 0.0)
        ahead = sum(map(self._pace.takes, self.open)) - under_way
        took, each = now - self._began, (done + ahead) / max(1, len(settled) + len(self.open))
        if done >= each * (0.5 if took < LONG else 0.01) and self._pace.compares:
            left = took * ahead / done
        elif self._pace.knows and self.workers:
            left = ahead / min(self.workers.most, len(self.open))
        else:
            return "time left not known yet"
        if done != self._end[0] or not self._end[1]:  # between two reports of the runs the clock runs down
            self._end = done, now + left
        return f"about {duration(max(0.0, self._end[1] - now))} left"


class Pace:
    """What each run of a watch takes, to be compared with what others take: seconds, as finished runs tell, those of this launch
    too. A run of which none tells takes as long as others that train, or are evaluated, in proportion to its size."""

    def __init__(self, seen: Outlook, runs: Sequence[str]) -> None:
        self._expanded, self._states = seen.expanded, seen.states
        self._runs = list(runs)
        self._seconds: dict[str, float] = {}
        self._takes: dict[str, float] = {}
        self._settled, self._learned = -1, -LEARN
        self._learn({})

    def learn(self, states: Mapping[str, State], settled: int) -> None:
        """Looks again, when more runs are settled; not all the time."""
        if settled > max(0, self._settled) and time.monotonic() - self._learned >= LEARN:
            self._learn(states)
            self._settled = settled

    def _learn(self, since: Mapping[str, State]) -> None:
        expanded, self._learned = self._expanded, time.monotonic()
        cluster = expanded.place.cluster
        told = cost(expanded.store, expanded.configs, expanded.wanted, self._states, self._runs, cluster, since)
        self._seconds |= {run: seconds for run, seconds in told.seconds.items() if seconds is not None}
        sizes = {run: self._size(run) for run in self._runs}
        for work in (self._trains, self._evaluates):
            known = [run for run in work if run in self._seconds]
            size = sum(sizes[run] for run in known)
            each = sum(self._seconds[run] for run in known) / size if size else 1.0
            self._takes |= {run: self._seconds.get(run, each * sizes[run]) for run in work}

    def takes(self, run: str) -> float:
        return self._takes[run]

    @property
    def knows(self) -> bool:
        """Is it seconds that all of them take?"""
        return len(self._seconds) == len(self._runs)

    @property
    def compares(self) -> bool:
        """Can what trains be compared with what is evaluated?"""
        works = [work for work in (self._trains, self._evaluates) if work]
        return len(works) < 2 or all(any(run in self._seconds for run in work) for work in works)

    @cached_property
    def _trains(self) -> list[str]:
        return [run for run in self._runs if self._states[run].result is None]

    @cached_property
    def _evaluates(self) -> list[str]:
        return [run for run in self._runs if self._states[run].result is not None]

    def _size(self, run: str) -> float:
        """Examples to train on, or evaluations that it lacks."""
        config, seen = self._expanded.configs[run], self._states[run]
        return len(seen.missing) if seen.result else config.optim.steps * config.optim.batch_size


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


def progress(seen: State) -> dict[str, Any] | None:
    """What a run that is at work has said last."""
    return seen.attempt.progress if seen.attempt and seen.name == "running" else None


def fraction(progress: Mapping[str, Any] | None) -> float:
    """How much of a run is done."""
    return progress["step"] / progress["steps"] if progress else 0.0


def row(differences: Mapping[str, str], name: Name, progress: Mapping[str, Any] | None) -> Row:
    """A run at work, in words. Its time left is that of its steps; how long the splits take at the end is not known."""
    if progress is None:
        return Row(differences, "starting" if name == "running" else name, "", "", "")
    step, steps = progress["step"], progress["steps"]
    score = f"{progress['validation'][-1][1]:.1f}" if progress["validation"] else ""
    left = duration(progress["seconds"] / step * (steps - step)) if step < steps else ""
    word = "evaluating" if "evaluated" in progress else "running" if left else "scoring"
    return Row(differences, word, f"{step}/{steps}", score, left)
