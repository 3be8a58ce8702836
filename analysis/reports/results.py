"""The results of a sweep or a search for notebooks: `load("length")`, `study("prompt")`.

They give everything that tables, figures and the page show, as frames. `analysis.reports.report` computes each result once, on
demand. A misspelt name or a store that does not exist raises an error of one sentence that lists the existing names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from analysis.records import missing
from analysis.records.frame import Sweep
from analysis.records.inventory import open_store
from analysis.records.manifest import axis_value, read_manifest
from analysis.records.sources import InStore, Source
from analysis.reports import paired, trace
from analysis.reports.report import SweepReport, read_report
from analysis.reports.run import Run
from analysis.reports.search_report import SearchReport
from analysis.statistics import compare
from analysis.statistics.samples import groups, plain
from analysis.tables import html
from analysis.tables.claim_tables import claim_table
from analysis.tables.shown_table import ShownTable
from analysis.tables.terminal import terminal
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.runs.store import Store
from mmprompt.settings.spelling import nearest

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
    """Loads a sweep in its present state; it need not be finished.

    `store`: its folder; None: MMPROMPT_RUNS, or runs/ in the clone. `source="server"`: W&B records are read from the W&B server,
    from `project` (ENTITY/PROJECT) or the project of the launch. `tasks`, `splits`, `baseline`: replace those of the sweep's
    file; all numbers, intervals and verdicts follow. `deep`: every byte is checked.

    Raises StoreError for a store, sweep, task, split or row that does not exist.
    """
    opened = open_store(store)
    manifest = read_manifest(opened, name)
    if manifest["search"] is not None:
        raise StoreError(f"{name} is a search; study({manifest['search']!r}) loads it")
    manifest = selected(manifest, tasks, splits, baseline)
    with ExitStack() as stack:
        records = _source(source, manifest, project, deep, stack)
        return Results(read_report(opened, manifest, records, deep), stack.pop_all())


def study(name: str, store: Store | Path | str | None = None, *, deep: bool = False) -> SearchReport:
    """Loads a search in its present state: trials, confirmation, importances, figure, and the search as an Optuna study.

    Raises StoreError for a store or a search that does not exist.
    """
    opened = open_store(store)
    if name not in opened.studies():
        existing = ", ".join(opened.studies()) or "none"
        raise StoreError(
            f"no search {name} in {opened.root}{nearest(name, opened.studies())}; there is {existing}; `make search-{name}` runs it"
        )
    return SearchReport(opened, read_manifest(opened, name), InStore(deep), deep)


def selected(
    manifest: Mapping[str, Any],
    tasks: Sequence[str] | None,
    splits: Sequence[str] | None,
    baseline: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns the manifest of a part of a sweep, or with another baseline; None keeps what the manifest has.

    Raises StoreError for a task, split, axis or value that the sweep does not have.
    """
    changed, name = dict(manifest), manifest["sweep"]
    if tasks is not None:
        _check_names(name, "task", tasks, manifest["tasks"])
        changed["tasks"] = {task: about for task, about in manifest["tasks"].items() if task in tasks}
        first = next(iter(manifest["tasks"]))
        changed["points"] = [one for one in manifest["points"] if one["values"].get("task", first) in tasks]
        if "task" in manifest["axes"]:
            changed["axes"] = {**manifest["axes"], "task": list(changed["tasks"])}
    if splits is not None:
        _check_names(name, "split", splits, {split for point in manifest["points"] for split in point["evaluations"]})
        changed["splits"] = list(splits)
    if baseline is not None:
        _check_names(name, "axis", baseline, [axis for axis in manifest["axes"] if axis not in ("task", "seed")])
        for axis in baseline:
            values = dict.fromkeys(axis_value(point["values"], axis) for point in manifest["points"])
            _check_names(name, axis, [as_text(axis_value(baseline, axis))], [as_text(one) for one in values])
        changed["baseline"] = dict(baseline)
    return changed


def _check_names(sweep: str, kind: str, requested: Iterable[str], allowed: Iterable[str]) -> None:
    existing = list(allowed)
    for name in requested:
        if name not in existing:
            raise StoreError(
                f"sweep {sweep} has no {kind} {name}{nearest(name, existing)}; it has {', '.join(sorted(existing))}"
            )


def _source(source: Place, manifest: Mapping[str, Any], project: str | None, deep: bool, stack: ExitStack) -> Source:
    if source == "store":
        return InStore(deep)
    if source != "server":
        raise StoreError(f"source={source!r} is neither 'store' nor 'server'")
    from analysis.records.server import on_server

    return stack.enter_context(on_server(manifest, project))


class Results:
    """The results of a sweep."""

    def __init__(self, report: SweepReport, connection: ExitStack) -> None:
        """`connection`: the connection to the server, which stays open as long as this object is used."""
        self.report, self._connection = report, connection

    # the sweep

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
        """A row per point (`analysis.records.frame.Sweep`)."""
        return self.sweep.frame

    @property
    def scores(self) -> pd.DataFrame:
        """A row per point and split."""
        return self.sweep.scores

    @property
    def notes(self) -> list[str]:
        """The notes for the reader of the numbers, the conflicts first."""
        return self.report.notes if self.report.is_begun else list(self.sweep.notes)

    # its numbers

    def cells(self) -> pd.DataFrame:
        """A row per cell of the table and split: mean, interval, difference from the baseline
        (`analysis.statistics.cell_statistics.cells`)."""
        return self._begun.cells

    def facts(self) -> pd.DataFrame:
        """The facts that runs record, in the columns of `cells`."""
        return self._begun.facts

    def costs(self) -> pd.DataFrame:
        """Time and memory per row, as measured by `make costs-NAME` (`analysis.statistics.costs.Costs`); empty without a
        measurement."""
        return self._begun.costs.frame

    def curves(self) -> pd.DataFrame:
        """Every logged step of its runs: the axes, run, step, and every key that was logged."""
        return self._begun.steps[0]

    def claims(self) -> pd.DataFrame:
        """The sweep's claims, and whether its runs show them (`analysis.statistics.claims`)."""
        return self._begun.claims

    def trends(self) -> pd.DataFrame:
        """Slope per doubling and turning point, for a sweep over numbers (`analysis.statistics.summaries`)."""
        return self._begun.trends

    def averages(self) -> pd.DataFrame:
        """The rows averaged over tasks (`analysis.statistics.summaries`)."""
        return self._begun.averages

    def compare(self, row: Any, other: Any, quantity: str = "score") -> pd.DataFrame:
        """One row minus another, on each task and on average (`analysis.statistics.compare`).

        `row`, `other`: their names in the table, such as "bitfit all".
        """
        return compare.compare(self._begun.sweep, str(row), str(other), quantity)

    def paired(
        self, row: Any, other: Any, task: str | None = None, split: str | None = None, **at: Any
    ) -> paired.Paired:
        """Two rows example by example: those that differ most, with their pictures (`analysis.reports.paired`)."""
        return paired.paired(self._begun.sweep, str(row), str(other), task, split, at)

    # its tables and its figure

    @property
    def tables(self) -> dict[str, ShownTable]:
        """The tables by name: scores, differences, and the others that the sweep has."""
        return {table.name or "scores": ShownTable.of(table) for table in self._begun.tables}

    def table(self, name: str = "scores") -> ShownTable:
        """One table by its name. Raises StoreError if the sweep does not have it."""
        _check_names(self.name, "table", [name], self.tables)
        return self.tables[name]

    def figure(self, width: Literal["column", "text"] = "text") -> Figure:
        """The figure that `make tables` saves."""
        return self._begun.figure(width)

    # its runs

    def missing(self) -> pd.DataFrame:
        """A row per run without a value: its point, state, why, the command that completes it, the seconds it should take."""
        return missing.missing(self.sweep)

    def run(self, prefix: str) -> Run:
        """The run of this sweep whose id begins with `prefix`. Raises StoreError if there is none, or several."""
        matching = [run for run in self._points if run.startswith(prefix)]
        if len(matching) != 1:
            problem = f"{len(matching)} runs" if matching else "no run"
            raise StoreError(
                f"sweep {self.name} has {problem} whose id begins with {prefix!r}{nearest(prefix, self._points)}"
            )
        return self._run(matching[0])

    def at(self, **settings: Any) -> list[Run]:
        """The runs at these values of the sweep's axes: `at(task="micro_vqa", **{"prompt.length": 64})`.

        Raises StoreError for an axis or a value that the sweep does not have.
        """
        rows = self.frame
        _check_names(self.name, "axis", settings, dict.fromkeys([*self.sweep.manifest["axes"], "task"]))
        for axis, value in settings.items():
            texts = rows[axis].map(lambda one: as_text(plain(one)))
            _check_names(self.name, axis, [as_text(value)], texts.unique())
            rows = rows[texts == as_text(value)]
        return [self._run(run) for run in rows["run"].unique()]

    @cached_property
    def _points(self) -> dict[str, Mapping[str, Any]]:
        """The first point of each run."""
        return {point["run"]: point for point in reversed(self.sweep.manifest["points"])}

    def _run(self, run: str) -> Run:
        return Run(self.report.store.run(run), self._points[run], self.report.source)

    def examples(self, split: str | None = None) -> pd.DataFrame:
        """A row per run and example. Columns: the row labels, task, split, seed, run, example, score.

        `split`: None for the splits that tables show. Raises StoreError if no such scores are available.
        """
        parts = []
        for group in groups(self._begun.sweep):
            is_selected = (
                group.label["split"] == split
                if split
                else (group.label["task"], group.label["split"]) in self.sweep.shown
            )
            for row in group.rows.to_dict("records") if is_selected else ():
                scores = self.sweep.examples(row["run"], row["evaluation"]) if row["conflict"] is None else None
                if scores is not None:
                    label = {**group.label, "seed": row.get("seed"), "run": row["run"]}
                    parts.append(pd.DataFrame({**label, "example": range(len(scores)), "score": scores}))
        if not parts:
            raise StoreError(f"sweep {self.name} has no scores of single examples{f' of {split}' if split else ''}")
        return pd.concat(parts, ignore_index=True)

    def trace(self, **cell: Any) -> Text:
        """The runs behind a cell, their files and their commands: `trace(task="micro_vqa", **{"prompt.length": 64})`."""
        words = [f"{key}={as_text(value)}" for key, value in cell.items()]
        return Text(trace.trace(self._begun.sweep, self.report.store, words))

    def verify(self) -> list[str]:
        """Reads everything again to the last byte. Returns a sentence for each conflict; empty if there is none."""
        manifest, source = self.sweep.manifest, self.report.source
        deep_source = InStore(True) if isinstance(source, InStore) else source
        return list(read_report(self.report.store, manifest, deep_source, True).sweep.conflicts)

    # its display

    @property
    def _begun(self) -> SweepReport:
        """The report. Raises StoreError while no run is done."""
        if not self.report.is_begun:
            raise StoreError(self._not_begun)
        return self.report

    @property
    def _not_begun(self) -> str:
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
            return f"<{self._not_begun}>"
        table = self.report.tables[0]
        return terminal([table], self.sweep.notes).rstrip()

    def _repr_html_(self) -> str:
        head = f"<p><b>{escape(self.name)}</b>: {escape(self.claim)} ({self._count})</p>"
        if not self.report.is_begun:
            return f"{head}<p>{escape(self._not_begun)}</p>{html.note_list(self.notes)}"
        parts = [self.report.tables[0]]
        parts += [claim_table(self.report.claims)] if len(self.report.claims) else []
        return f"{head}{html.html(parts, self.notes)}"


class Text(str):
    """Text that a notebook shows with its line breaks."""

    def __repr__(self) -> str:
        return str(self)
