"""`python -m sweeps status [NAME ...]`: the progress of sweeps run by run, their failures, and the commands to type next.

It takes a sweep from its manifest, and the states of its runs from the store and SLURM at this moment. It writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.files import StoreError
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import OF_SEARCH, Store
from mmprompt.settings.parsing import ConfigError
from sweeps.display.live_table import UNLIMITED, LiveTable, fit_to_terminal
from sweeps.display.page import rows_per_table, short_names, table
from sweeps.display.report import SweepStatus, total_time_left
from sweeps.display.sweep_reader import SweepReader
from sweeps.grid import launched
from sweeps.search.report import StudyStatus, StudyStatusReader
from sweeps.states.advice import advice

POLL = 2.0  # seconds between two readings of the store


def status(names: Sequence[str], runs: Path, watch: bool, json: bool) -> int:
    """Prints the status of these sweeps; without names, of the last launched sweep that is not done, and a line for each other.

    Returns 1 if a run has stopped (it is listed with a cause) or a record is damaged, else 0. Raises StoreError for an unknown
    sweep.
    """
    if watch and json:
        raise ConfigError("--watch and --json do not go together: --json is one document")
    store = launched.store_at(runs)
    view = StatusView(store, *split_names(store, names))
    if json:
        print(as_json(view))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(view)
        print_page(view)
    else:
        view.read()
        print_page(view)
    is_well = not (any(sweep.has_stopped for sweep in view.reports) or any(study.has_failed for study in view.studies))
    return 0 if is_well and not view.damaged else 1


def split_names(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of sweeps, and those of searches. A name that both a sweep and a search have stands for both."""
    searches, launched_sweeps = store.studies(), store.sweeps()
    bare = [name.removeprefix(OF_SEARCH) for name in names]
    sweeps = [
        name for name in names if not name.startswith(OF_SEARCH) and (name in launched_sweeps or name not in searches)
    ]
    return sweeps, [name for name in dict.fromkeys(bare) if name in searches]


class StatusView:
    """The status of the sweeps and searches with these names; without names, of all sweeps and searches of the store."""

    def __init__(self, store: Store, names: Sequence[str], searches: Sequence[str]) -> None:
        self.store = store
        self.names = list(dict.fromkeys(names))
        self.searches = searches
        self.is_all = not names and not searches
        self.reports: list[SweepStatus] = []
        self.studies: list[StudyStatus] = []
        self._sweeps, self._studies = SweepReader(store), StudyStatusReader(store)
        self._manifests: list[DamagedError] = []  # manifests that cannot be used

    def read(self) -> None:
        """Reads the store, and queries SLURM if the last query is more than 30 seconds ago."""
        self.studies = self._studies.read(self.store.studies() if self.is_all else self.searches)
        sweeps, self._manifests = [], []
        for name in self._names() if self.is_all else self.names:
            try:
                sweeps.append(launched.read(self.store, name))
            except DamagedError as error:
                self._manifests.append(error)
        self.reports = self._sweeps.read(sweeps)

    @property
    def damaged(self) -> list[str]:
        """Messages about damaged records that belong to no run: manifests, records of batches, files of searches."""
        return [*map(str, [*self._manifests, *self._sweeps.damaged]), *self._studies.damaged]

    def _names(self) -> list[str]:
        names = [name for name in self.store.sweeps() if not name.startswith(OF_SEARCH)]
        if not names and not self.studies:
            raise StoreError(f"no sweep was launched into {self.store.root}, and no search begun")
        return names

    @property
    def scheduler(self) -> str:
        """Whether SLURM answers, for the JSON."""
        if self.problem:
            return f"no information: {self.problem}"
        return (
            "answers"
            if any(batch.is_slurm for batch in self._sweeps.batches)
            else "not asked: no job was sent to SLURM"
        )

    @property
    def problem(self) -> str:
        """Why SLURM gives no information about some runs; empty if it does."""
        return self._sweeps.queue.problem

    @property
    def shown(self) -> list[SweepStatus]:
        """The sweeps that are shown with a row for each run."""
        if not self.is_all:
            return self.reports
        return ([report for report in self.reports if not report.is_done] or self.reports)[:1]

    @property
    def others(self) -> list[str]:
        """A line for each other sweep that is not done, one line with the names of the done ones, and a line for each search."""
        rest = [report for report in self.reports if report not in self.shown]
        done = [report.launched.name for report in rest if report.is_done]
        lines = [str(report) for report in rest if not report.is_done]
        searches = list(map(str, self.studies)) if self.is_all else []
        return lines + ([f"{', '.join(done)}: done"] if done else []) + searches


# Text


def follow(view: StatusView) -> None:
    """Shows the status repeatedly until all is done or Ctrl-C: on a terminal redrawn in place, in a log a line now and then."""
    with LiveTable() as live_table:
        while True:
            began = time.monotonic()
            view.read()
            if all(report.is_done for report in view.reports) and all(study.is_over for study in view.studies):
                return
            sentences = [*view.shown, *total_time_left(view.shown), *view.studies]
            live_table.show(lambda width, height: page(view, width, height), "; ".join(map(str, sentences)))
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # large sweeps are read less often


def print_page(view: StatusView) -> None:
    """Prints the status once. On a terminal the rows of done and waiting runs that would not fit are replaced by counts."""
    size = shutil.get_terminal_size()
    is_terminal = sys.stdout.isatty()
    print(
        "\n".join(
            page(view, size.columns if is_terminal else UNLIMITED, size.lines if is_terminal else None, is_whole=True)
        )
    )


def page(view: StatusView, width: int, height: int | None, is_whole: bool = False) -> list[str]:
    """Lines for a terminal of this width and height; with `is_whole` there may be more lines than `height`, so that every running
    or stopped run has its row and its advice. `height` None: no limit."""
    names = short_names(view.store, view.reports) if view.reports else {}
    problems = [f"no information from SLURM ({view.problem})"] if view.problem else []
    problems += [f"damaged: {message}" for message in view.damaged]
    advised = {
        sweep.launched.name: [
            *sweep.repairs,
            *sweep.silence_advice(names),
            *advice(sweep.launched, sweep.failures, names),
        ]
        for sweep in view.shown
    }
    searches = [] if view.is_all else view.studies
    other_lines = len(problems) + len(view.others) + sum(2 + len(lines) for lines in advised.values())
    rows = rows_per_table(height, len(view.shown) + len(searches), other_lines)
    lines = [*problems, *total_time_left(view.shown)]
    for study in searches:
        lines += [str(study), *study.table(rows, width), *study.conclusion, ""]
    for sweep in view.shown:
        lines += [str(sweep), *table(sweep, names, rows, width, is_whole), *advised[sweep.launched.name], ""]
    lines = [*lines[:-1], *view.others]
    return lines if is_whole else fit_to_terminal(lines, width, height)


def as_json(view: StatusView) -> str:
    """Reads the status, and returns it as one JSON document."""
    view.read()
    content: dict[str, Any] = {"store": str(view.store.root), "scheduler": view.scheduler}
    content |= {"damaged": view.damaged}
    sweeps, searches = [report.json() for report in view.reports], [study.json() for study in view.studies]
    return json.dumps(content | {"sweeps": sweeps, "searches": searches}, indent=1)
