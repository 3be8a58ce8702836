"""`python -m sweeps status [NAME ...]`: how far sweeps are, run by run, what went wrong, and what to type next.

A sweep is what its manifest says, the state of its runs what the store and SLURM say at this moment; nothing is written.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from mmprompt.config import ConfigError
from mmprompt.files import StoreError
from mmprompt.processes import lives
from mmprompt.run import OF_SEARCH, Store
from sweeps import launched
from sweeps.advice import advice
from sweeps.batch import Batch, batches
from sweeps.causes import Failure, failures
from sweeps.launched import Launched
from sweeps.report import ORDER, Line, Report, line_of, validation
from sweeps.screen import Screen, aligned, cut, short
from sweeps.search.report import StudyLooks, StudyReport
from sweeps.state import AT_ONCE, Queue, State, queue, states

NUMBERS = 5  # columns at the end
SHORTEST = 4  # characters of a run's id
SQUEUE = 30.0  # seconds between two questions to SLURM
POLL = 2.0  # seconds between two looks at the store
WIDE = 10_000  # columns, where nobody's terminal ends

Wanted = tuple[str, frozenset[str]]  # a run, and the evaluations that a sweep wants of it


def status(names: Sequence[str], runs: Path, watch: bool, json: bool) -> int:
    """Prints how far these sweeps are; without names, the one launched last that is not done, and a line for each other one.

    Returns 1 if a run has stopped (those that are listed with a cause), else 0. Raises StoreError for an unknown sweep.
    """
    if watch and json:
        raise ConfigError("--watch and --json do not go together: --json is one document")
    store = launched.store_at(runs)
    look = Look(store, *told_apart(store, names))
    if json:
        print(as_json(look))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(look)
        print_page(look)
    else:
        look.again()
        print_page(look)
    return 1 if any(report.failures for report in look.reports) or any(one.has_failed for one in look.studies) else 0


def told_apart(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sweeps and the searches that are meant; a name that both have means both."""
    searches, there = store.studies(), launched.names(store)
    meant = [name.removeprefix(OF_SEARCH) for name in names]
    sweeps = [name for name in names if not name.startswith(OF_SEARCH) and (name in there or name not in searches)]
    return sweeps, [name for name in dict.fromkeys(meant) if name in searches]


class Look:
    """What one sees of some sweeps and searches of a store: of those with these names, or of all of them."""

    def __init__(self, store: Store, names: Sequence[str], searches: Sequence[str]) -> None:
        self.store = store
        self.names = list(dict.fromkeys(names))
        self.searches = searches
        self.is_all = not names and not searches
        self.reports: list[Report] = []
        self.studies: list[StudyReport] = []
        self._studies = StudyLooks(store)
        self.batches: list[Batch] = []
        self.queue = Queue({})
        self._asked = -SQUEUE
        self._seen: dict[str, State] = {}
        self._done: dict[Wanted, Line] = {}  # what is done stays so, and is not read again
        self._failures: tuple[object, dict[str, Failure]] = None, {}

    def again(self) -> None:
        """Reads the store; asks SLURM if that was not done in the last half minute."""
        self.studies = self._studies.again(self.store.studies() if self.is_all else self.searches)
        if self._studies.damaged and not self.is_all:
            raise StoreError(self._studies.damaged[0])
        sweeps = [launched.read(self.store, name) for name in (self._readable() if self.is_all else self.names)]
        wanted: dict[str, frozenset[str]] = {}
        for sweep in sweeps:
            wanted |= {run: some | wanted.get(run, frozenset()) for run, some in sweep.wanted.items()}
        runs = list(wanted)
        is_due = time.monotonic() - self._asked >= SQUEUE
        if is_due:
            self.batches = batches(self.store)
            self.queue, self._asked = queue(self.store, runs, self.batches), time.monotonic()
        left = dict.fromkeys(
            run for sweep in sweeps for run, some in sweep.wanted.items() if (run, some) not in self._done
        )
        self._seen |= states(self.store, list(left), self.queue, wanted)
        seen, waiting = self._seen, at_hand(self.batches)
        stopped = [
            run
            for run in runs
            if seen[run].name == "failed" or (seen[run].name in ("to do", "to evaluate") and run not in waiting)
        ]
        key = [(run, seen[run].attempt) for run in stopped]
        if is_due or key != self._failures[0]:
            self._failures = key, failures(self.store, stopped, seen, self.batches)
        self.reports = [self._report(sweep, waiting) for sweep in sweeps]

    def _report(self, sweep: Launched, waiting: Collection[str]) -> Report:
        values = {point["run"]: point["values"] for point in reversed(sweep.manifest["points"])}
        metrics = {task: validation(about) for task, about in sweep.manifest["tasks"].items()}
        seen = {run: self._seen[run].to(self.store.run(run), wanted) for run, wanted in sweep.wanted.items()}
        failures = {run: one for run, one in self._failures[1].items() if run in seen and seen[run].name != "done"}

        def line(run: str) -> Line:
            wanted = run, sweep.wanted[run]
            if wanted not in self._done:
                made = line_of(run, values[run], seen[run], failures.get(run), metrics[values[run]["task"]])
                if made.state != "done":
                    return made
                self._done[wanted] = made
            return replace(self._done[wanted], values=values[run])

        with ThreadPoolExecutor(AT_ONCE) as pool:
            lines = list(pool.map(line, sweep.runs))
        ahead = Counter(one.state for one in lines if one.run in waiting)
        return Report(sweep, lines, failures, ahead["to do"], ahead["to evaluate"])

    def _readable(self) -> list[str]:
        names = [name for name in launched.names(self.store) if not name.startswith(OF_SEARCH)]
        if not names and not self.studies:
            raise StoreError(f"no sweep was launched into {self.store.root}, and no search begun")
        return names

    @property
    def scheduler(self) -> str:
        if self.queue.problem:
            return f"no information: {self.queue.problem}"
        return "answers" if any(batch.is_slurm for batch in self.batches) else "not asked: no job was sent to SLURM"

    @property
    def shown(self) -> list[Report]:
        """Those whose rows are shown."""
        if not self.is_all:
            return self.reports
        return ([one for one in self.reports if not one.is_done] or self.reports)[:1]

    @property
    def others(self) -> list[str]:
        """A line for each other sweep that is not done."""
        rest = [one for one in self.reports if one not in self.shown]
        done = [one.launched.name for one in rest if one.is_done]
        lines = [str(one) for one in rest if not one.is_done]
        searches = [*map(str, self.studies), *self._studies.damaged] if self.is_all else []
        return lines + ([f"{', '.join(done)}: done"] if done else []) + searches


def at_hand(batches: Iterable[Batch]) -> set[str]:
    """The runs that launches on local processes, which are at work, have or will come to."""
    alive = [batch for batch in batches if not batch.is_slurm and lives(batch.frozen["launcher"])]
    return {run for batch in alive for job in batch.jobs for run in job}


# For a person


def follow(look: Look) -> None:
    """Shows it again and again, until all is done or Ctrl-C: on a terminal in place, in a log a line now and then."""
    with Screen() as screen:
        while True:
            began = time.monotonic()
            look.again()
            if all(one.is_done for one in look.reports) and all(one.is_over for one in look.studies):
                return
            screen.show(
                lambda width, height: page(look, width, height), "; ".join(map(str, [*look.shown, *look.studies]))
            )
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # a big sweep is looked at less often


def print_page(look: Look) -> None:
    """On a terminal runs that are done, wait, or have nobody at them are counted where the rows would not fit."""
    size = shutil.get_terminal_size()
    is_terminal = sys.stdout.isatty()
    print(
        "\n".join(page(look, size.columns if is_terminal else WIDE, size.lines if is_terminal else None, is_whole=True))
    )


def page(look: Look, width: int, height: int | None, is_whole: bool = False) -> list[str]:
    """Lines of at most `width`, and `height` of them; `is_whole`: as many as it takes to show what matters."""
    names = short_names(look.store, look.reports) if look.reports else {}
    problem = [f"no information from SLURM ({look.queue.problem})"] if look.queue.problem else []
    advised = {one.launched.name: advice(one.launched, one.failures, names) for one in look.shown}
    rest = sum(2 + len(lines) for lines in advised.values()) + len(problem) + len(look.others)
    searches = [] if look.is_all else look.studies
    shown = len(look.shown) + len(searches)
    rows = WIDE if height is None else max(8, (height - rest) // max(1, shown) - 3)
    lines = [*problem]
    for study in searches:
        lines += [str(study), *study.table(rows, width), *study.conclusion, ""]
    for one in look.shown:
        lines += [str(one), *table(one, names, rows, width, is_whole), *advised[one.launched.name], ""]
    lines = [*lines[:-1], *look.others]
    return lines if is_whole else [cut(line, width - 1) for line in lines[: (height or WIDE) - 1]]


def table(report: Report, names: Mapping[str, str], rows: int, width: int, is_whole: bool) -> list[str]:
    """A head and a row for each run, those at work first; those that have no place are counted."""
    lines = sorted(report.lines, key=lambda line: line.rank)
    if len(lines) > rows:
        always = sum(line.rank < ORDER.index("queued") for line in lines) if is_whole else 0
        lines = lines[: max(rows, always)]
    axes = list(dict.fromkeys(axis for one in report.launched.differences.values() for axis in one))
    differences = report.launched.differences
    head = ["run", *short(axes), "state", "job", "node", "attempt", "step", report.metric, "elapsed", "left"]
    body = [[names[line.run], *(differences[line.run].get(axis, "") for axis in axes), *line.cells] for line in lines]
    used = [i for i in range(len(head)) if any(row[i] for row in body)]
    cells = [[row[i] for i in used] for row in [head, *body]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [at for at, i in enumerate(used) if i >= len(head) - NUMBERS]
    left = Counter(line.state for line in report.lines)
    left.subtract(line.state for line in lines)
    more = ", ".join(f"{left[name]} {name}" for name in ORDER if left[name])
    return [*aligned(cells, widths, width - 1, numbers), *([f"  and {more}"] if more else [])]


def short_names(store: Store, reports: Sequence[Report]) -> dict[str, str]:
    """What to call each run on the command line: as much of its id as no other run of the store has."""
    ids = store.runs() | {line.run for one in reports for line in one.lines}
    length = next(n for n in range(SHORTEST, 65) if len({run[:n] for run in ids}) == len(ids))
    return {run: run[:length] for run in ids}


def as_json(look: Look) -> str:
    look.again()
    about = {"store": str(look.store.root), "scheduler": look.scheduler}
    sweeps, searches = [one.json() for one in look.reports], [one.json() for one in look.studies]
    return json.dumps(about | {"sweeps": sweeps, "searches": searches}, indent=1)
