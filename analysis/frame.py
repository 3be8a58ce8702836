"""A sweep as one tidy frame: manifest, results and W&B records put together, and what does not fit said in words.

A metric's value stands in several places: in the summary of the published attempt's W&B record, wherever that is read (in the
store, or on the server, `analysis.server`), in `result.json`, which says which attempt that is, and as the mean of the scores of
single examples beside the evaluation's own file. All that is there must agree, with the run's configuration and the manifest
too (`analysis.verify`): else there is no value, and a sentence says why. Nothing chooses between two numbers. A record that
cannot be read, or only in part, is noted; where there is no `result.json` the record of the first attempt that finished
stands for it, which is noted too. What was asked of finished weights later (another split, an attack) is in a file of its own,
and in the record of the attempt that asked; the same holds for those two.

States here are done, not evaluated (trained, but not asked all), failed, diverged, not done, conflict (what is there does not
belong together) and unreadable (a file is damaged); whether a run is running is for `sweeps` to say.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from analysis import verify
from analysis.records import RecordError, read_ends, read_record
from analysis.verify import RECORD, RESULT, Finding, Unreadable
from mmprompt.config import FURTHER_METRICS, Questions, RunConfig, nearest
from mmprompt.files import StoreError
from mmprompt.run import OF_SEARCH, Attempt, RunFolder, Store

NO_RECORD = "no readable W&B record; their values are from result.json"
NO_RESULT = "no result.json; their values are from the W&B record of the first attempt that finished"
NO_SCORES = "no scores of single examples for what is shown; nothing but their records says that the values are right"
UNSET = "as configured"  # where a block of the grid does not vary an axis
ENDED_BADLY = ("failed", "crashed", "killed")  # states of W&B's
WRONG = ("conflict", "unreadable")  # states of points with no value to show
FACTS = {  # what runs record of themselves, and its name in a table
    "trainable_parameters": "trainable parameters",
    "epochs": "epochs",
    "epochs_to_99": "epochs to 99 % of best",
    "seconds": "training s",
    "device_hours": "device hours",
    "device_hours_spent": "device hours spent",
    "seconds_per_100": "s per 100 answers",
    "peak_memory_mb": "peak MB",
}
ABOUT = ("attempt", "best_step", "commit", "dirty", "device")  # what else is said of a run
# key that manifests did not always have -> what stands for the time before
ADDED: dict[str, Any] = {"each": [], "over": None, "kept_from": None, "curves": False, "facts": [], "splits": None}
ADDED |= {"search": None}  # the study whose trials these are
# `family`: what is corrected for its number together, the "table" or each "task". `paired`: whether seeds pair. `margin`: by
# metric, what counts as equivalent. `tuned_seeds`: those whose validation scores chose the rates in use.
ADDED |= {"family": "table", "paired": False, "margin": {}, "claims": [], "tuned_seeds": []}


@dataclass(frozen=True)
class Tracked:
    """The W&B record of one attempt, wherever it was read."""

    state: str  # W&B's word for how it ended
    config: dict[str, Any]
    summary: dict[str, Any]
    history: Callable[[], pd.DataFrame]  # a row per logged step, as `analysis.records` reads it
    rows: int | None  # how many that should be; None: as many as there are


class Source(Protocol):
    """Where W&B records are read. What does not fit goes into the notes."""

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        """The record of a run whose result is given."""

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Tracked]:
        """By evaluation: the record of the attempt that made it. `said`: what its file says, None without one."""


@dataclass(frozen=True)
class Sweep:
    """A manifest, and its points as a frame.

    `frame` has a row per point: a column per axis, then run, state, metric (the task's), source (wandb or result.json), what
    `ABOUT` and `FACTS` name, and for each split that is asked `split/evaluation` (its id), `split/metric` for each value found,
    `split/conflict` where there is one: why there is no value. Further metrics (FURTHER_METRICS) have columns of the kind too,
    NaN where they were not computed.
    """

    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]  # what a reader of the numbers has to know; what does not belong together comes first
    conflicts: tuple[str, ...] = ()  # of these the latter: a sentence for each thing that is wrong
    store: Store | None = None  # where its runs are

    def examples(self, run: str, evaluation: str) -> np.ndarray | None:
        """The score of each example, shape (m,), on the metric's scale; None where the store does not have the file.

        Raises StoreError if that is damaged.
        """
        if self.store is None or math.isnan(attempt := self._attempts.get(run, math.nan)):
            return None
        try:
            return _example_files(self.store.run(run), int(attempt), evaluation).scores
        except Unreadable as error:
            raise StoreError(f"run {run}: {error}") from None

    @cached_property
    def _attempts(self) -> dict[str, float]:
        """Of each run the one whose files are its."""
        return dict(zip(self.frame["run"], self.frame["attempt"].astype("float64"), strict=True))

    @property
    def roles(self) -> dict[str, list[str]]:
        """The columns that together name a row, in their order, and the axes whose values each of them joins.

        The axes that are compared are one of them, as are those that it is done for each of, where there are any.
        """
        each, compare, over = self.manifest["each"], self.manifest["compare"], self.over
        joined = [each, [compare] if isinstance(compare, str) else compare, [] if over is None else [over]]
        return {axes[0]: list(axes) for axes in [*joined, *([axis] for axis in self.extra_axes)] if axes}

    @property
    def compare(self) -> str:
        """The column of what is compared: a table's rows, a figure's x."""
        compare = self.manifest["compare"]
        return compare if isinstance(compare, str) else str(compare[0])

    @property
    def over(self) -> str | None:
        """The axis along which each row is followed."""
        return self.manifest["over"]

    @property
    def extra_axes(self) -> list[str]:
        """Axes of which a sweep says nothing and that take several values: each combination is a row of its own."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() > 1]

    @property
    def settled_axes(self) -> list[str]:
        """Those that take one value, which a caption says."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() == 1]

    @property
    def _other_axes(self) -> list[str]:
        compare = self.manifest["compare"]
        known = {
            "task",
            "seed",
            self.over,
            *self.manifest["each"],
            *([compare] if isinstance(compare, str) else compare),
        }
        return [axis for axis in self.manifest["axes"] if axis not in known]

    @property
    def tasks(self) -> dict[str, str]:
        """Each task and its metric, in the order of the manifest."""
        return {task: about["metric"] for task, about in self.manifest["tasks"].items()}

    @property
    def asked(self) -> dict[str, list[str]]:
        """The splits that each task is asked."""
        splits: dict[str, list[str]] = {task: [] for task in self.tasks}
        for point in self.manifest["points"]:
            task = point["values"].get("task", next(iter(self.tasks)))
            splits[task] += [split for split in point["evaluations"] if split not in splits[task]]
        return splits

    @property
    def splits(self) -> list[str]:
        """All that the sweep asks for."""
        return list(dict.fromkeys(split for splits in self.asked.values() for split in splits))

    @property
    def validation(self) -> dict[str, str]:
        """Of each task the split on which choices are made; val where the manifest is older than tasks that call it otherwise."""
        return {task: about.get("validation", "val") for task, about in self.manifest["tasks"].items()}

    @property
    def shown(self) -> list[tuple[str, str]]:
        """Task and split of what tables and figures show: the splits that the manifest names, else all but validation."""
        named, validation = self.manifest["splits"], self.validation
        return [
            (task, split)
            for task, splits in self.asked.items()
            for split in splits
            if (split in named if named is not None else split != validation[task])
        ]

    @property
    def named(self) -> pd.DataFrame:
        """`frame` with the columns that name its rows, "bitfit all" where method and bitfit.rule are compared together, and
        whether they are the baseline's.
        """
        labels = {name: joined(self.frame, axes) for name, axes in self.roles.items()}
        return self.frame.assign(**labels, baseline=self._of_baseline())

    def _of_baseline(self) -> pd.Series:
        """Which points are what the sweep is measured against, as far as their rows' labels say it."""
        baseline = self.manifest["baseline"] or {}
        wanted = [axis for axes in self.roles.values() for axis in axes if axis in baseline]
        found = pd.Series(bool(wanted), index=self.frame.index)
        for axis in wanted:
            found &= self.frame[axis] == axis_value(baseline, axis)
        return found

    @property
    def scores(self) -> pd.DataFrame:
        """Long form: a row per point and split.

        Columns besides those of `named`: split; evaluation, its id; value, the task's metric there, NaN without one; conflict,
        why there is none though there are numbers, else None. `state` is that of this evaluation.
        """
        named, tasks = self.named, self.asked
        parts = []
        for split in self.splits:
            rows = named[named["task"].map({task: split in splits for task, splits in tasks.items()})]
            conflict = self._told(f"{split}/conflict").loc[rows.index]
            value = self._values(split).loc[rows.index]
            elsewhere = rows["state"].isin(WRONG) & conflict.isna()  # of another split of the same run
            state = (
                rows["state"].mask(elsewhere & value.notna(), "done").mask(elsewhere & value.isna(), "not evaluated")
            )
            evaluation = self._told(f"{split}/evaluation").loc[rows.index]
            parts.append(rows.assign(split=split, evaluation=evaluation, value=value, conflict=conflict, state=state))
        return pd.concat(parts, ignore_index=True)

    def _values(self, split: str) -> pd.Series:
        metrics = self.frame["metric"]
        found = pd.Series(math.nan, index=self.frame.index)
        for metric in metrics.unique():
            if (column := f"{split}/{metric}") in self.frame:
                found = found.mask(metrics == metric, self.frame[column].astype("float64"))
        return found

    def _told(self, column: str) -> pd.Series:
        """A column of text, None where there is none."""
        texts = self.frame.get(column, pd.Series(None, index=self.frame.index, dtype=object)).astype(object)
        return texts.where(texts.notna(), None)


def joined(frame: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """A value per row: that on the axis; on several axes all that the row has, as text."""
    if len(axes) == 1:
        return frame[axes[0]]
    rows = frame[list(axes)].itertuples(index=False, name=None)
    texts = [" ".join(str(value) for value in row if value != UNSET) or UNSET for row in rows]
    return pd.Series(texts, index=frame.index, dtype=object)


def read_sweep(store: Store, name: str) -> Sweep:
    """From the store alone. Raises StoreError when there is no such sweep."""
    return assemble(store, read_manifest(store, name), in_store)


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Of a sweep, else of the search of that name. Raises StoreError when there is neither."""
    for one in (name, f"{OF_SEARCH}{name}"):
        file = store.manifest(one)
        try:
            found = verify.read_json(file)
        except Unreadable as error:
            raise StoreError(f"the manifest {file}: {error}") from None
        if found is not None:
            return _checked(ADDED | found, file)
    raise StoreError(_no_such_sweep(store, name))


def _checked(manifest: dict[str, Any], file: Path) -> dict[str, Any]:
    """Raises StoreError for a manifest that lacks what all have."""
    for key in ("sweep", "claim", "paper", "command", "axes", "baseline", "compare", "tasks", "header", "points"):
        if key not in manifest:
            raise StoreError(f"the manifest {file} is damaged: it has no {key}")
    for point in manifest["points"]:
        task = point["values"].get("task", next(iter(manifest["tasks"])))
        if task not in manifest["tasks"]:
            raise StoreError(
                f"the manifest {file} lists run {point['run']} under task {task}, which it does not describe"
            )
    return manifest


def assemble(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Sweep:
    """A sweep from these records. `deep`: what takes longer is checked as well (`analysis.verify.deeply`)."""
    reading = Reading(manifest, source, deep)
    points: dict[str, list[Mapping[str, Any]]] = {}
    for point in manifest["points"]:
        points.setdefault(point["run"], []).append(point)
    found = {run: iter(reading.rows(store.run(run), those)) for run, those in points.items()}
    rows = [next(found[point["run"]]) for point in manifest["points"]]
    if manifest["search"] is None:  # one run may be several trials
        reading.look_for_doubles(rows)
    reading.compare_counts(rows)
    notes = list(reading.notes)
    for count, what in (
        (len({row["run"] for row in rows if row["source"] == RESULT}), NO_RECORD),
        (len(reading.without_result), NO_RESULT),
        (len(reading.without_scores), NO_SCORES),
    ):
        if count:
            notes.append(f"{count} of {len(points)} runs have {what}")
    conflicts = verify.sentences(reading.findings)
    return Sweep(manifest, pd.DataFrame(rows), tuple(dict.fromkeys([*conflicts, *notes])), tuple(conflicts), store)


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("*.json"))


def _no_such_sweep(store: Store, name: str) -> str:
    names = sweep_names(store)
    there = f"; there are: {', '.join(names)}" if names else "; none was launched there yet"
    return f"no sweep {name} in {store.root}{nearest(name, names) or there}"


class Reading:
    """The runs of a sweep being read, and what is found of them on the way."""

    def __init__(self, manifest: Mapping[str, Any], source: Source, deep: bool) -> None:
        self.manifest, self.source, self.deep = manifest, source, deep
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        self.without_result: set[str] = set()
        self.without_scores: set[str] = set()
        self.counts: dict[tuple[str, str], int] = {}  # of examples, by run and evaluation

    def rows(self, folder: RunFolder, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A row for each of these points of one run."""
        rows = [self.labelled(point) for point in points]
        try:
            on_disk, text = _result(folder), _text(folder.config_file)
        except Unreadable as error:
            return self.without_values(rows, points, Finding("unreadable", folder.id, str(error)))
        tracked = self.source.published(folder, on_disk, self.notes)
        if on_disk is not None and tracked is not None and tracked.state != "finished":
            self.notes.append(f"run {folder.id}: {RECORD} says {tracked.state}, its {RESULT} done")
        result = on_disk
        if result is None and tracked is not None and tracked.state == "finished":
            result = _as_result(tracked)
            if folder.config_file.exists():
                self.without_result.add(folder.id)
        if result is None:
            state = {"state": _state(folder, tracked)}
            return [row | state for row in rows]
        about = {"state": "done", "source": RESULT if tracked is None or not tracked.summary else "wandb"}
        about |= {key: result[key] for key in ABOUT} | {key: number(result.get(key)) for key in FACTS}
        rows = [row | about for row in rows]
        if self.deep:
            self.notes.extend(f"run {folder.id}: {said}" for said in verify.deeply(folder, on_disk))
        said, config = verify.of_folder(folder.id, text, on_disk), _config(text, tracked)
        if said is None and tracked is not None:
            said = verify.of_record(folder.id, result["attempt"], tracked.config, None if text is None else config)
            said = said or verify.of_published(result["evaluations"], tracked.summary)
        if said is None and config is not None:
            said = verify.of_header(self.manifest["header"], config)
        if said is not None:
            return self.without_values(rows, points, Finding("conflict", folder.id, said))
        run = _Run(folder, result, tracked, config)
        run.read_evaluations({one for point in points for one in point["evaluations"].values()}, self)
        for row, point in zip(rows, points, strict=True):
            self.fill(row, point, run)
        return rows

    def labelled(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The beginning of a row: whose values they would be."""
        labels = point_values(self.manifest, point)
        metric = self.manifest["tasks"][labels["task"]]["metric"]
        ids = {f"{split}/evaluation": one for split, one in point["evaluations"].items()}
        return labels | {"state": None, "metric": metric, "source": None} | dict.fromkeys((*ABOUT, *FACTS)) | ids

    def without_values(
        self, rows: Sequence[dict[str, Any]], points: Sequence[Mapping[str, Any]], finding: Finding
    ) -> list[dict[str, Any]]:
        self.findings.append(finding)
        unknown = {"state": finding.kind} | dict.fromkeys(FACTS, math.nan)
        return [
            row | unknown | {f"{split}/conflict": finding.sentence for split in point["evaluations"]}
            for row, point in zip(rows, points, strict=True)
        ]

    def fill(self, row: dict[str, Any], point: Mapping[str, Any], run: _Run) -> None:
        """The values of a point, or why there are none."""
        said = None if run.config is None else verify.of_labels(point["values"], run.config, run.id)
        if said is not None:
            row |= self.without_values([row], [point], Finding("conflict", run.id, said))[0]
            return
        missing = False
        for split, one in point["evaluations"].items():
            found = run.value(split, one, row["metric"], self.questions(point), self)
            if isinstance(found, Finding):
                self.spoil(row, split, found)
            elif found is None:
                missing = True
            else:
                row[f"{split}/{row['metric']}"] = found
        row |= run.further(point["evaluations"], self.manifest["tasks"][row["task"]]["family"])
        if missing and row["state"] not in WRONG:
            row["state"] = _state_of_evaluations(run.folder, run.result)

    def questions(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of the settings of a point's evaluations."""
        said = self.manifest["header"] | point["values"]
        return {key: value for key, value in said.items() if key.split(".")[0] in Questions.model_fields}

    def spoil(self, row: dict[str, Any], split: str, finding: Finding) -> None:
        """This split of a point has no value."""
        self.findings.append(finding)
        row.pop(f"{split}/{row['metric']}", None)
        row |= {f"{split}/conflict": finding.sentence}
        row["state"] = finding.kind if row["state"] != "conflict" else "conflict"

    def look_for_doubles(self, rows: Sequence[dict[str, Any]]) -> None:
        """Points with the same labels: a cell would count one seed twice."""
        alike = defaultdict(list)
        for row, point in zip(rows, self.manifest["points"], strict=True):
            if row["state"] not in WRONG:
                alike[tuple(row[axis] for axis in (*self.manifest["axes"], "task"))].append((row, point))
        for those in alike.values():
            if len(those) > 1:
                labels = ", ".join(f"{key} {value}" for key, value in those[0][1]["values"].items())
                runs = list(dict.fromkeys(row["run"] for row, _ in those))
                what = f"it {len(those)} times" if len(runs) == 1 else f"runs {' and '.join(runs)}"
                for row, point in those:
                    for split in point["evaluations"]:
                        self.spoil(
                            row, split, Finding("conflict", row["run"], f"the manifest lists {what} for {labels}")
                        )

    def compare_counts(self, rows: Sequence[dict[str, Any]]) -> None:
        """Examples of a column's evaluations: as many in all of them, unless the sweep varies how many there are."""
        if any(axis.startswith(("evaluation.examples", "task.data")) for axis in self.manifest["axes"]):
            return
        columns: defaultdict[tuple[Any, ...], list[tuple[dict[str, Any], str, str, int]]] = defaultdict(list)
        over = self.manifest["over"]
        for row, point in zip(rows, self.manifest["points"], strict=True):
            for split, one in point["evaluations"].items():
                count = self.counts.get((row["run"], one))
                if count is not None and f"{split}/conflict" not in row:
                    columns[row["task"], split, row.get(over)].append((row, split, one, count))
        for cells in columns.values():
            tally = Counter(count for *_, count in cells).most_common()
            if len(tally) > 1:
                most = tally[0][0] if tally[0][1] > tally[1][1] else None  # of as many of each, none is right
                others = " and ".join(f"{count} examples ({times} of {len(cells)})" for count, times in tally)
                for row, split, one, count in cells:
                    if count != most:
                        said = f"evaluation {one} has {count} examples, and its column {others}"
                        self.spoil(row, split, Finding("conflict", row["run"], said))


@dataclass(frozen=True)
class _Files:
    """What lies there of an evaluation."""

    about: dict[str, Any] | None
    scores: np.ndarray | None


@dataclass
class _Run:
    """A run that has its result, and whose folder holds what it should."""

    folder: RunFolder
    result: Mapping[str, Any]
    tracked: Tracked | None  # the record of the attempt that was published
    config: Mapping[str, Any] | None

    @property
    def id(self) -> str:
        return self.folder.id

    def read_evaluations(self, wanted: set[str], reading: Reading) -> None:
        """Files and records of these evaluations, of those that there are."""
        self.files: dict[str, _Files | Unreadable] = {}
        for one in sorted(wanted):
            try:
                self.files[one] = _example_files(self.folder, self.result["attempt"], one)
            except Unreadable as error:
                self.files[one] = error
        later = sorted(wanted - set(self.result["evaluations"].values()))
        said = {one: file.about for one in later if isinstance(file := self.files[one], _Files)}
        self.later = reading.source.evaluated(self.folder, said, reading.notes)

    def value(
        self, split: str, one: str, metric: str, labels: Mapping[str, Any], reading: Reading
    ) -> float | Finding | None:
        """Of an evaluation that is shown as this split; None if it was not made."""
        files = self.files[one]
        if isinstance(files, Unreadable):
            return Finding("unreadable", self.id, str(files))
        published = {evaluation: name for name, evaluation in self.result["evaluations"].items()}
        if published.get(one, split) != split:
            return self.conflict(f"the manifest shows evaluation {one} as {split}, and {RESULT} says {published[one]}")
        if one not in published and one not in self.later and files.about is None:
            return None
        if files.about is not None:
            said = verify.of_evaluation(self.id, one, split, files.about, labels, self.config)
            said = said or verify.of_count(files.about, one, files.scores)
            if said is not None:
                return self.conflict(said)
        values: dict[str, float] = {}
        for where, found in self.sources(split, one, metric, files, one in published, reading):
            if isinstance(found, str):
                return self.conflict(found)
            values[where] = found
        said = verify.of_values(f"{split}/{metric}", metric, values, one, files.scores)
        if said is not None:
            return self.conflict(said)
        if files.scores is not None:
            reading.counts[self.id, one] = len(files.scores)
        elif self.folder.result_file.exists():
            reading.without_scores.add(self.id)
        return next(iter(values.values()))

    def further(self, evaluations: Mapping[str, str], family: str) -> dict[str, float]:
        """By `split/metric`: what these evaluations say besides the task's metric, from `result.json` and their files."""
        found: dict[str, float] = {}
        for split, one in evaluations.items() if family in FURTHER_METRICS else ():
            files = self.files[one]
            if self.result["evaluations"].get(split) == one:
                said = {name: self.result["metrics"].get(f"{split}/{name}") for name in FURTHER_METRICS[family]}
            else:
                said = files.about["metrics"] if isinstance(files, _Files) and files.about is not None else {}
            found |= {f"{split}/{name}": number(said.get(name)) for name in FURTHER_METRICS[family]}
        return found

    def sources(
        self, split: str, one: str, metric: str, files: _Files, is_published: bool, reading: Reading
    ) -> Iterator[tuple[str, float | str]]:
        """Where the value stands, and what it is there; or why it does not."""
        key = f"{split}/{metric}" if is_published else f"evaluation/{one}"
        tracked = self.tracked if is_published else self.later.get(one)
        if tracked is not None and not is_published:
            attempt = None if files.about is None else files.about["attempt"]
            said = verify.of_record(
                self.id, attempt, tracked.config, self.config, f"the W&B record of evaluation {one}"
            )
            if said is not None:
                yield RECORD, said
        if tracked is not None and key in tracked.summary:
            yield RECORD, number(tracked.summary[key])
        elif tracked is not None and tracked.summary:
            reading.notes.append(f"run {self.id}: {key} is not in its W&B record")
        elif not is_published and files.about is not None:
            reading.notes.append("some evaluations have no readable W&B record; their values are from their files")
        if is_published:
            yield from self.said(RESULT, key, self.result["metrics"])
        if files.about is not None:
            yield from self.said(f"evaluations/{one}.json", metric, files.about["metrics"])

    @staticmethod
    def said(where: str, key: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
        yield (
            where,
            number(metrics[key]) if key in metrics else f"{where} has no {key}, but {', '.join(metrics) or 'nothing'}",
        )

    def conflict(self, text: str) -> Finding:
        return Finding("conflict", self.id, text)


def _result(folder: RunFolder) -> dict[str, Any] | None:
    """What `result.json` says; None without one. Raises Unreadable."""
    result = verify.read_json(folder.result_file)
    lacking = (
        [] if result is None else [key for key in ("metrics", "evaluations", "wandb", *ABOUT) if key not in result]
    )
    if lacking:
        raise Unreadable(f"{RESULT} is damaged: it has no {lacking[0]}")
    return result


def _example_files(folder: RunFolder, attempt: int, one: str) -> _Files:
    """Of an evaluation: the published attempt's, else a later one's. Raises Unreadable."""
    for file in (Attempt(folder, attempt).evaluation_file(one), folder.evaluations / f"{one}.json"):
        about = verify.read_json(file)
        if about is not None:
            for key in ("settings", "metrics", "attempt", "wandb"):
                if key not in about:
                    raise Unreadable(f"evaluations/{file.name} is damaged: it has no {key}")
            return _Files(about, verify.read_scores(file.with_suffix(".npy")))
    return _Files(None, None)


def _text(file: Path) -> str | None:
    """None without the file. Raises Unreadable."""
    try:
        return file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{file.name} cannot be read: {error}") from None


def _config(text: str | None, tracked: Tracked | None) -> dict[str, Any] | None:
    """The run's settings, from its record where its folder was not copied; None where nothing says them."""
    if text is not None:
        try:
            return json.loads(text)
        except ValueError:
            return None  # its hash will say so
    said = {} if tracked is None else tracked.config
    return {key: said[key] for key in RunConfig.model_fields if key in said} or None


def point_values(manifest: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's value on each axis, its task and its run."""
    values = point["values"]
    task = values["task"] if "task" in values else next(iter(manifest["tasks"]))
    return {axis: axis_value(values, axis) for axis in manifest["axes"]} | {"task": task, "run": point["run"]}


def axis_value(values: Mapping[str, Any], axis: str) -> Any:
    """Numbers and words as they are; the rest as text, so that rows can be grouped by it."""
    if axis not in values:
        return UNSET
    value = values[axis]
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _state(folder: RunFolder, tracked: Tracked | None) -> str:
    attempts = folder.attempts()
    if attempts:
        if attempts[-1].diverged:
            return "diverged"
        return "failed" if attempts[-1].has_failed else "not done"
    return "failed" if tracked is not None and tracked.state in ENDED_BADLY else "not done"


def _state_of_evaluations(folder: RunFolder, result: Mapping[str, Any]) -> str:
    """Of a run that is done, and not asked all that the sweep wants to know."""
    later = [attempt for attempt in folder.attempts() if attempt.number > result["attempt"]]
    return "failed" if later and later[-1].has_failed else "not evaluated"


def _as_result(tracked: Tracked) -> dict[str, Any]:
    """What `result.json` would say, from the record."""
    said = tracked.config | tracked.summary
    end = "/evaluation"
    evaluations = {key.removesuffix(end): one for key, one in sorted(tracked.summary.items()) if key.endswith(end)}
    keys = [key for split in evaluations for key in sorted(tracked.summary) if key.startswith(f"{split}/")]
    metrics = {key: number(tracked.summary[key]) for key in keys if not key.endswith(end)}
    return {key: said.get(key) for key in (*ABOUT, *FACTS)} | {"evaluations": evaluations, "metrics": metrics}


def number(value: Any) -> float:
    """JSON's number as it was logged: W&B writes 5.0 as 5, and NaN may come as text. NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


@dataclass(frozen=True)
class InStore:
    """The records in the store. `whole`: all of each file is read, so that damage anywhere in it is noted."""

    whole: bool = False

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        if result is None:
            return self._finished(folder)
        if result["wandb"] is None:
            return None
        return self._read(folder, result["wandb"], notes)

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Tracked]:
        files = {one: file["wandb"] for one, file in said.items() if file is not None and file["wandb"] is not None}
        read = {file: self._read(folder, file, notes) for file in sorted(set(files.values()))}
        return {one: tracked for one, file in files.items() if (tracked := read[file]) is not None}

    def _finished(self, folder: RunFolder) -> Tracked | None:
        """Of a run without a result: the record of its first attempt that trained to the end; None if none did."""
        for attempt in folder.attempts():
            for file in sorted(attempt.path.glob("wandb/*run-*-*/run-*.wandb")):
                tracked = self._read(folder, str(file.relative_to(folder.path)), [])
                if tracked is not None and tracked.state == "finished" and tracked.config.get("work") != "evaluate":
                    return tracked
        return None

    def _read(self, folder: RunFolder, place: str, notes: list[str]) -> Tracked | None:
        file = folder.path / place
        try:
            record = read_record(file, history=False) if self.whole else read_ends(file)
        except RecordError as error:
            notes.append(f"run {folder.id}: {error}")
            return None
        notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
        history = partial(_history, file)
        return Tracked(record.state, record.config, record.summary, history, None)


in_store = InStore()


def _history(file: Path) -> pd.DataFrame:
    return read_record(file, history=True).history
