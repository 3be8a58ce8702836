"""A sweep or a search in a notebook: `load("length")`, `study("prompt")`. All that tables, figures and the page show, as frames.

What is computed is computed once, by `analysis.report`, and when it is asked for. Every name that is misspelt, and every store
that is not there, is an error of one sentence that says what there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from analysis import compare, html, missing, paired, trace
from analysis.claim_tables import claim_table
from analysis.frame import Sweep
from analysis.inventory import store_at
from analysis.manifest import axis_value, read_manifest
from analysis.report import SweepReport, read_report
from analysis.run import Run
from analysis.samples import groups, plain
from analysis.search_report import SearchReport
from analysis.shown_table import ShownTable
from analysis.sources import InStore, Source
from analysis.terminal import terminal
from mmprompt.runs.config import nearest
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.runs.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = Literal["store", "server"]


def load(
    name: str,
    store: Store | Path | str | None = None,
    *,
    source: Place = "store",
    project: str | None = None,
    tasks: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    baseline: Mapping[str, Any] | None = None,
    deep: bool = False,
) -> Results:
    """A sweep as it is now, also one that is half done.

    `store`: its folder; MMPROMPT_RUNS, or runs/ in the clone, unless given. `source="server"`: the records of runs are read from
    the W&B server, `project` (ENTITY/PROJECT) or the one that the launch named. `tasks`, `splits`, `baseline`: what is looked at,
    in place of what the sweep's file says; all numbers, intervals and verdicts follow. `deep`: every byte is checked.

    Raises StoreError for a store, sweep, task, split or row that is not there.
    """
    place = store_at(store)
    manifest = read_manifest(place, name)
    if manifest["search"] is not None:
        raise StoreError(f"{name} is a search; study({manifest['search']!r}) loads it")
    manifest = chosen(manifest, tasks, splits, baseline)
    with ExitStack() as stack:
        records = _source(source, manifest, project, deep, stack)
        return Results(read_report(place, manifest, records, deep), stack.pop_all())


def study(name: str, store: Store | Path | str | None = None, *, deep: bool = False) -> SearchReport:
    """A search as it is now: trials, what fresh seeds confirm, importances, figure, and itself as a study of Optuna's.

    Raises StoreError for a store or a search that is not there.
    """
    place = store_at(store)
    if name not in place.studies():
        there = ", ".join(place.studies()) or "none"
        raise StoreError(
            f"no search {name} in {place.root}{nearest(name, place.studies())}; there is {there}; `make search-{name}` runs it"
        )
    return SearchReport(place, read_manifest(place, name), InStore(deep), deep)


def chosen(
    manifest: Mapping[str, Any],
    tasks: Sequence[str] | None,
    splits: Sequence[str] | None,
    baseline: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The manifest of a part of a sweep, or of one with another baseline. Raises StoreError for what it does not have."""
    made, name = dict(manifest), manifest["sweep"]
    if tasks is not None:
        _check(name, "task", tasks, manifest["tasks"])
        made["tasks"] = {task: about for task, about in manifest["tasks"].items() if task in tasks}
        first = next(iter(manifest["tasks"]))
        made["points"] = [one for one in manifest["points"] if one["values"].get("task", first) in tasks]
        if "task" in manifest["axes"]:
            made["axes"] = {**manifest["axes"], "task": list(made["tasks"])}
    if splits is not None:
        _check(name, "split", splits, {split for point in manifest["points"] for split in point["evaluations"]})
        made["splits"] = list(splits)
    if baseline is not None:
        _check(name, "axis", baseline, [axis for axis in manifest["axes"] if axis not in ("task", "seed")])
        for axis in baseline:
            there = dict.fromkeys(axis_value(point["values"], axis) for point in manifest["points"])
            _check(name, axis, [as_text(axis_value(baseline, axis))], [as_text(one) for one in there])
        made["baseline"] = dict(baseline)
    return made


def _check(sweep: str, what: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    known = list(there)
    for one in wanted:
        if one not in known:
            raise StoreError(
                f"sweep {sweep} has no {what} {one}{nearest(one, known)}; it has {', '.join(sorted(known))}"
            )


def _source(source: Place, manifest: Mapping[str, Any], project: str | None, deep: bool, stack: ExitStack) -> Source:
    if source == "store":
        return InStore(deep)
    if source != "server":
        raise StoreError(f"source={source!r} is neither 'store' nor 'server'")
    from analysis.server import on_server

    return stack.enter_context(on_server(manifest, project))


class Results:
    """A sweep's results."""

    def __init__(self, report: SweepReport, connection: ExitStack) -> None:
        """`connection`: what is open as long as this object is used."""
        self.report, self._connection = report, connection

    # what it is

    @property
    def sweep(self) -> Sweep:
        return self.report.sweep

    @property
    def name(self) -> str:
        return self.report.name

    @property
    def claim(self) -> str:
        return str(self.sweep.manifest["claim"])

    @property
    def frame(self) -> pd.DataFrame:
        """A row per point (`analysis.frame.Sweep`)."""
        return self.sweep.frame

    @property
    def scores(self) -> pd.DataFrame:
        """A row per point and split."""
        return self.sweep.scores

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know; what does not belong together comes first."""
        return self.report.notes if self.report.is_begun else list(self.sweep.notes)

    # what it says

    def cells(self) -> pd.DataFrame:
        """A row per cell of the table and split: mean, interval, difference to the baseline (`analysis.statistics.cells`)."""
        return self._begun.cells

    def facts(self) -> pd.DataFrame:
        """What runs record of themselves, in the columns of `cells`."""
        return self._begun.facts

    def costs(self) -> pd.DataFrame:
        """What its rows take, as measured by `make costs-NAME` (`analysis.costs.Costs`); empty where it was not."""
        return self._begun.costs.frame

    def curves(self) -> pd.DataFrame:
        """Every logged step of its runs: the axes, run, step, and every key that was logged."""
        return self._begun.steps[0]

    def claims(self) -> pd.DataFrame:
        """What the sweep claims, and whether its runs show it (`analysis.claims`)."""
        return self._begun.claims

    def trends(self) -> pd.DataFrame:
        """Slope per doubling and turning point, of a sweep over numbers (`analysis.summaries`)."""
        return self._begun.trends

    def averages(self) -> pd.DataFrame:
        """Rows averaged over tasks."""
        return self._begun.averages

    def compare(self, row: Any, other: Any, quantity: str = "score") -> pd.DataFrame:
        """One row less another, on each task and on average (`analysis.compare`). Rows as the table calls them: "bitfit all"."""
        return compare.compare(self._begun.sweep, str(row), str(other), quantity)

    def paired(
        self, row: Any, other: Any, task: str | None = None, split: str | None = None, **at: Any
    ) -> paired.Paired:
        """Two rows example by example: those that differ most, with their pictures (`analysis.paired`)."""
        return paired.paired(self._begun.sweep, str(row), str(other), task, split, at)

    # as people look at it

    @property
    def tables(self) -> dict[str, ShownTable]:
        """By name: scores, differences, and what else the sweep has."""
        return {table.name or "scores": ShownTable.of(table) for table in self._begun.tables}

    def table(self, name: str = "scores") -> ShownTable:
        """Raises StoreError for one that the sweep does not have."""
        _check(self.name, "table", [name], self.tables)
        return self.tables[name]

    def figure(self, width: Literal["column", "text"] = "text") -> Figure:
        """The figure that `make tables` saves."""
        return self._begun.figure(width)

    # what is behind it

    def missing(self) -> pd.DataFrame:
        """A row per run that has no value yet: its point, state, why, the command that fills it, the seconds it should take."""
        return missing.missing(self.sweep)

    def run(self, prefix: str) -> Run:
        """The run of this sweep whose id begins so. Raises StoreError if none does, or several do."""
        found = [run for run in self._points if run.startswith(prefix)]
        if len(found) != 1:
            what = f"{len(found)} runs" if found else "no run"
            raise StoreError(
                f"sweep {self.name} has {what} whose id begins with {prefix!r}{nearest(prefix, self._points)}"
            )
        return self._run(found[0])

    def at(self, **settings: Any) -> list[Run]:
        """The runs at these values of the sweep's axes: `at(task="micro_vqa", **{"prompt.length": 64})`.

        Raises StoreError for an axis or a value that the sweep does not have.
        """
        rows = self.frame
        _check(self.name, "axis", settings, dict.fromkeys([*self.sweep.manifest["axes"], "task"]))
        for axis, value in settings.items():
            texts = rows[axis].map(lambda one: as_text(plain(one)))
            _check(self.name, axis, [as_text(value)], texts.unique())
            rows = rows[texts == as_text(value)]
        return [self._run(run) for run in rows["run"].unique()]

    @cached_property
    def _points(self) -> dict[str, Mapping[str, Any]]:
        """By run, the first of its points."""
        return {point["run"]: point for point in reversed(self.sweep.manifest["points"])}

    def _run(self, run: str) -> Run:
        return Run(self.report.store.run(run), self._points[run], self.report.source)

    def examples(self, split: str | None = None) -> pd.DataFrame:
        """The score of each example of each run, a row each: the columns that name a row, task, seed, run, example, score.

        `split`: that of each task which tables show, unless given. Raises StoreError where no such scores are at hand.
        """
        parts = []
        for group in groups(self._begun.sweep):
            is_meant = (
                group.label["split"] == split
                if split
                else (group.label["task"], group.label["split"]) in self.sweep.shown
            )
            for row in group.rows.to_dict("records") if is_meant else ():
                scores = self.sweep.examples(row["run"], row["evaluation"]) if row["conflict"] is None else None
                if scores is not None:
                    label = {**group.label, "seed": row.get("seed"), "run": row["run"]}
                    parts.append(pd.DataFrame({**label, "example": range(len(scores)), "score": scores}))
        if not parts:
            raise StoreError(
                f"sweep {self.name} has no scores of single examples{f' of {split}' if split else ''} at hand"
            )
        return pd.concat(parts, ignore_index=True)

    def trace(self, **cell: Any) -> Text:
        """From a cell to its runs, files and the commands that repeat them: `trace(task="micro_vqa", **{"prompt.length": 64})`."""
        words = [f"{key}={as_text(value)}" for key, value in cell.items()]
        return Text(trace.trace(self._begun.sweep, self.report.store, words))

    def verify(self) -> list[str]:
        """Reads everything again to the last byte; what does not belong together, a sentence each. Empty: all does."""
        manifest, source = self.sweep.manifest, self.report.source
        whole = InStore(True) if isinstance(source, InStore) else source
        return list(read_report(self.report.store, manifest, whole, True).sweep.conflicts)

    # on a screen

    @property
    def _begun(self) -> SweepReport:
        """Raises StoreError while there is nothing to compute."""
        if not self.report.is_begun:
            raise StoreError(self._nothing)
        return self.report

    @property
    def _nothing(self) -> str:
        command = self.sweep.manifest["command"]
        return f"sweep {self.name}: none of its {self._planned} runs is done yet; `{command}` goes on with them"

    @property
    def _planned(self) -> int:
        return int(self.frame["run"].nunique())

    @property
    def _count(self) -> str:
        done = int(self.frame.loc[self.frame["attempt"].notna(), "run"].nunique())
        return f"{done} of {self._planned} runs done"

    def __repr__(self) -> str:
        if not self.report.is_begun:
            return f"<{self._nothing}>"
        table = self.report.tables[0]
        return terminal([table], self.sweep.notes).rstrip()

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.name)}</b>: {escape(self.claim)} ({self._count})</p>"
        if not self.report.is_begun:
            return f"{head}<p>{escape(self._nothing)}</p>{html.listed(self.notes)}"
        parts = [self.report.tables[0]]
        parts += [claim_table(self.report.claims)] if len(self.report.claims) else []
        return f"{head}{html.html(parts, self.notes)}"


class Text(str):
    """Text that a notebook shows as it is, and not with \\n in it."""

    def __repr__(self) -> str:
        return str(self)
