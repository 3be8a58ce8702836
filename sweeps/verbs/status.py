"""`python -m sweeps status [NAME ...]`: how far sweeps are, run by run, what went wrong, and what to type next.

A sweep is what its manifest says, the state of its runs what the store and SLURM say at this moment; nothing is written.
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

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import StoreError
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import OF_SEARCH, Store
from sweeps.display.live_table import WIDE, LiveTable, fitted
from sweeps.display.looks import SweepReader
from sweeps.display.page import rows_of, short_names, table
from sweeps.display.report import SweepStatus, together
from sweeps.grid import launched
from sweeps.search.report import StudyReader, StudyStatus
from sweeps.states.advice import advice

POLL = 2.0  # seconds between two looks at the store


def status(names: Sequence[str], runs: Path, watch: bool, json: bool) -> int:
    """Prints how far these sweeps are; without names, the one launched last that is not done, and a line for each other one.

    Returns 1 if a run has stopped (those that are listed with a cause), else 0. Raises StoreError for an unknown sweep.
    """
    if watch and json:
        raise ConfigError("--watch and --json do not go together: --json is one document")
    store = launched.store_at(runs)
    look = StatusView(store, *told_apart(store, names))
    if json:
        print(as_json(look))
    elif watch:
        with contextlib.suppress(KeyboardInterrupt):
            follow(look)
        print_page(look)
    else:
        look.again()
        print_page(look)
    is_well = not (any(report.has_stopped for report in look.reports) or any(one.has_failed for one in look.studies))
    return 0 if is_well and not look.damaged else 1


def told_apart(store: Store, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The sweeps and the searches that are meant; a name that both have means both."""
    searches, there = store.studies(), store.sweeps()
    meant = [name.removeprefix(OF_SEARCH) for name in names]
    sweeps = [name for name in names if not name.startswith(OF_SEARCH) and (name in there or name not in searches)]
    return sweeps, [name for name in dict.fromkeys(meant) if name in searches]


class StatusView:
    """What one sees of some sweeps and searches of a store: of those with these names, or of all of them."""

    def __init__(self, store: Store, names: Sequence[str], searches: Sequence[str]) -> None:
        self.store = store
        self.names = list(dict.fromkeys(names))
        self.searches = searches
        self.is_all = not names and not searches
        self.reports: list[SweepStatus] = []
        self.studies: list[StudyStatus] = []
        self._sweeps, self._studies = SweepReader(store), StudyReader(store)
        self._manifests: list[DamagedError] = []  # that cannot be used

    def again(self) -> None:
        """Reads the store; asks SLURM if that was not done in the last half minute."""
        self.studies = self._studies.again(self.store.studies() if self.is_all else self.searches)
        sweeps, self._manifests = [], []
        for name in self._names() if self.is_all else self.names:
            try:
                sweeps.append(launched.read(self.store, name))
            except DamagedError as error:
                self._manifests.append(error)
        self.reports = self._sweeps.again(sweeps)

    @property
    def damaged(self) -> list[str]:
        """Records that are of no run: manifests, what batches left, the files of searches."""
        return [*map(str, [*self._manifests, *self._sweeps.damaged]), *self._studies.damaged]

    def _names(self) -> list[str]:
        names = [name for name in self.store.sweeps() if not name.startswith(OF_SEARCH)]
        if not names and not self.studies:
            raise StoreError(f"no sweep was launched into {self.store.root}, and no search begun")
        return names

    @property
    def scheduler(self) -> str:
        if self.problem:
            return f"no information: {self.problem}"
        return (
            "answers"
            if any(batch.is_slurm for batch in self._sweeps.batches)
            else "not asked: no job was sent to SLURM"
        )

    @property
    def problem(self) -> str:
        """Why SLURM gives no information about some runs."""
        return self._sweeps.queue.problem

    @property
    def shown(self) -> list[SweepStatus]:
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
        searches = list(map(str, self.studies)) if self.is_all else []
        return lines + ([f"{', '.join(done)}: done"] if done else []) + searches


# For a person


def follow(look: StatusView) -> None:
    """Shows it again and again, until all is done or Ctrl-C: on a terminal in place, in a log a line now and then."""
    with LiveTable() as screen:
        while True:
            began = time.monotonic()
            look.again()
            if all(one.is_done for one in look.reports) and all(one.is_over for one in look.studies):
                return
            said = [*look.shown, *together(look.shown), *look.studies]
            screen.show(lambda width, height: page(look, width, height), "; ".join(map(str, said)))
            time.sleep(max(POLL, 5 * (time.monotonic() - began)))  # a big sweep is looked at less often


def print_page(look: StatusView) -> None:
    """On a terminal runs that are done, wait, or have nobody at them are counted where the rows would not fit."""
    size = shutil.get_terminal_size()
    is_terminal = sys.stdout.isatty()
    print(
        "\n".join(page(look, size.columns if is_terminal else WIDE, size.lines if is_terminal else None, is_whole=True))
    )


def page(look: StatusView, width: int, height: int | None, is_whole: bool = False) -> list[str]:
    """Lines of at most `width`, and `height` of them; `is_whole`: as many as it takes to show what matters."""
    names = short_names(look.store, look.reports) if look.reports else {}
    problem = [f"no information from SLURM ({look.problem})"] if look.problem else []
    problem += [f"damaged: {one}" for one in look.damaged]
    advised = {
        one.launched.name: [*one.repairs, *one.silent(names), *advice(one.launched, one.failures, names)]
        for one in look.shown
    }
    searches = [] if look.is_all else look.studies
    more = len(problem) + len(look.others) + sum(2 + len(lines) for lines in advised.values())
    rows = rows_of(height, len(look.shown) + len(searches), more)
    lines = [*problem, *together(look.shown)]
    for study in searches:
        lines += [str(study), *study.table(rows, width), *study.conclusion, ""]
    for one in look.shown:
        lines += [str(one), *table(one, names, rows, width, is_whole), *advised[one.launched.name], ""]
    lines = [*lines[:-1], *look.others]
    return lines if is_whole else fitted(lines, width, height)


def as_json(look: StatusView) -> str:
    look.again()
    about: dict[str, Any] = {"store": str(look.store.root), "scheduler": look.scheduler}
    about |= {"damaged": look.damaged}
    sweeps, searches = [one.json() for one in look.reports], [one.json() for one in look.studies]
    return json.dumps(about | {"sweeps": sweeps, "searches": searches}, indent=1)
