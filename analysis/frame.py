"""A sweep as one tidy frame: manifest, results and W&B records put together, and what does not fit said in words.

A metric's value is the one in the summary of the published attempt's W&B record, wherever that is read: in the store, or on
the server (`analysis.server`). `result.json` says which attempt that is, and holds the same values: where the two disagree it
is noted; where there is no readable record it stands in, which is noted too. Where there is no `result.json` the record of a
finished attempt says it all. What was asked of finished weights later (another split, an attack) is in a file of its own, and
in the record of the attempt that asked; the same holds for those two. States here are done, not evaluated (trained, but not
asked all), failed and not done; whether a run is running is for `sweeps` to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis.records import RecordError, read_record
from mmprompt.config import FURTHER_METRICS, nearest
from mmprompt.files import StoreError
from mmprompt.run import OF_SEARCH, RunFolder, Store

UNSET = "as configured"  # where a block of the grid does not vary an axis
ENDED_BADLY = ("failed", "crashed", "killed")  # states of W&B's
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
ADDED |= {"family": "table", "paired": False, "margin": {}, "claims": [], "tuned_seeds": []}
ADDED |= {"search": None}  # the study whose trials these are
# `family`: what is corrected for its number together, the "table" or each "task". `paired`: whether seeds pair. `margin`: by
# metric, what counts as equivalent. `tuned_seeds`: those whose validation scores chose the rates in use.
ADDED |= {"family": "table", "paired": False, "margin": None, "claims": [], "tuned_seeds": []}


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
    ) -> dict[str, Any]:
        """By evaluation: its value in the record of the attempt that made it. `said`: what its file says, None without one."""


@dataclass(frozen=True)
class Sweep:
    """A manifest, and its points as a frame.

    `frame` has a row per point: a column per axis, then run, state, metric (the task's), source (wandb or result.json),
    what `ABOUT` and `FACTS` name, and a column `split/metric` for each value found, of the task's metric and of further ones
    (FURTHER_METRICS; NaN where they were not computed).
    """

    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]  # what a reader of the numbers has to know

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
        return self.frame.assign(**labels, baseline=[self._is_baseline(row) for _, row in self.frame.iterrows()])

    def _is_baseline(self, row: pd.Series) -> bool:
        """Whether a point is what the sweep is measured against, as far as its row's labels say it."""
        baseline = self.manifest["baseline"] or {}
        wanted = [axis for axes in self.roles.values() for axis in axes if axis in baseline]
        return bool(wanted) and all(row[axis] == axis_value(baseline, axis) for axis in wanted)

    @property
    def scores(self) -> pd.DataFrame:
        """Long form: a row per point and split, with `split` and `value`, the task's metric there, NaN without one."""
        asked, named = self.asked, self.named
        parts = [named.assign(split=split, value=self._values(split)) for split in self.splits]
        rows = pd.concat(parts, ignore_index=True)
        return rows[[split in asked[task] for task, split in zip(rows["task"], rows["split"], strict=True)]]

    def _values(self, split: str) -> list[float]:
        return [row.get(f"{split}/{row['metric']}", math.nan) for _, row in self.frame.iterrows()]


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
        try:
            return ADDED | json.loads(store.manifest(one).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
    raise StoreError(_no_such_sweep(store, name))


def assemble(store: Store, manifest: dict[str, Any], source: Source) -> Sweep:
    notes: list[str] = []
    points: dict[str, list[Mapping[str, Any]]] = {}
    for point in manifest["points"]:
        points.setdefault(point["run"], []).append(point)
    found = {run: iter(_rows(manifest, those, store.run(run), source, notes)) for run, those in points.items()}
    rows = [next(found[point["run"]]) for point in manifest["points"]]
    untracked = len({row["run"] for row in rows if row["source"] == "result.json"})
    if untracked:
        notes.append(
            f"{untracked} of {len(points)} runs have no readable W&B record; their values are from result.json"
        )
    return Sweep(manifest, pd.DataFrame(rows), tuple(dict.fromkeys(notes)))


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("*.json"))


def _no_such_sweep(store: Store, name: str) -> str:
    names = sweep_names(store)
    there = f"; there are: {', '.join(names)}" if names else "; none was launched there yet"
    return f"no sweep {name} in {store.root}{nearest(name, names) or there}"


def _rows(
    manifest: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    source: Source,
    notes: list[str],
) -> list[dict[str, Any]]:
    """A row for each of these points of one run."""
    known = [point_values(manifest, point) for point in points]
    metric = manifest["tasks"][known[0]["task"]]["metric"]
    on_disk = folder.result()
    tracked = source.published(folder, on_disk, notes)
    result = on_disk
    if result is None and tracked is not None and tracked.state == "finished":
        result = _as_result(tracked)
    if result is None:
        about = {"state": _state(folder, tracked), "metric": metric, "source": None} | dict.fromkeys((*ABOUT, *FACTS))
        return [row | about for row in known]
    about = {"state": "done", "metric": metric} | {key: result[key] for key in ABOUT}
    about |= {key: number(result.get(key)) for key in FACTS}
    published = _published(folder.id, result, metric, tracked, notes)
    later = {one for point in points for one in point["evaluations"].values()} - published.keys()
    values = published | _evaluated(folder, sorted(later), metric, on_disk is not None, source, notes)
    about["source"] = "result.json" if tracked is None or not tracked.summary else "wandb"
    rows = []
    for row, point in zip(known, points, strict=True):
        scores = {f"{split}/{metric}": values[one] for split, one in point["evaluations"].items() if one in values}
        missing = len(scores) < len(point["evaluations"])
        scores |= _further(folder, result, point["evaluations"], manifest["tasks"][row["task"]]["family"])
        rows.append(row | about | scores | ({"state": _state_of_evaluations(folder, result)} if missing else {}))
    return rows


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


def _published(
    run: str, result: Mapping[str, Any], metric: str, tracked: Tracked | None, notes: list[str]
) -> dict[str, float]:
    """By evaluation: the values that a run was published with."""
    if tracked is not None and tracked.state != "finished":
        notes.append(f"run {run}: its W&B record says {tracked.state}, its result.json done")
    summary = tracked.summary if tracked is not None else {}
    values = {}
    for split, evaluation in result["evaluations"].items():
        key = f"{split}/{metric}"
        published, found = result["metrics"][key], summary.get(key)
        if summary and found != published:
            notes.append(f"run {run}: {key} is {found} in its W&B record and {published} in result.json")
        values[evaluation] = published if found is None else number(found)
    return values


def _evaluated(
    folder: RunFolder, evaluations: Sequence[str], metric: str, with_files: bool, source: Source, notes: list[str]
) -> dict[str, float]:
    """The values of evaluations that were made of a finished run, of those that there are."""
    if not evaluations:
        return {}
    said = {one: _file(folder.evaluation_file(one)) if with_files else None for one in evaluations}
    recorded = source.evaluated(folder, said, notes)
    values = {}
    for one, file in said.items():
        written, found = None if file is None else file["metrics"][metric], recorded.get(one)
        if file is not None and found is None:
            notes.append("some evaluations have no readable W&B record; their values are from their files")
        elif file is not None and found != written:
            notes.append(f"run {folder.id}: evaluation {one} is {found} in its W&B record and {written} in its file")
        if found is not None or written is not None:
            values[one] = number(written if found is None else found)
    return values


def _further(
    folder: RunFolder, result: Mapping[str, Any], evaluations: Mapping[str, str], family: str
) -> dict[str, float]:
    """By `split/metric`: what these evaluations say besides the task's metric, from `result.json` and their files."""
    found: dict[str, float] = {}
    for split, one in evaluations.items() if family in FURTHER_METRICS else ():
        if result["evaluations"].get(split) == one:
            said = {name: result["metrics"].get(f"{split}/{name}") for name in FURTHER_METRICS[family]}
        else:
            file = _file(folder.evaluation_file(one)) if folder.result_file.exists() else None
            said = file["metrics"] if file is not None else {}
        found |= {f"{split}/{name}": number(said.get(name)) for name in FURTHER_METRICS[family]}
    return found


def _file(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


class InStore:
    """The records in the store."""

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        if result is None or result["wandb"] is None:
            return None
        return self._read(folder, result["wandb"], notes)

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Any]:
        files = {one: file["wandb"] for one, file in said.items() if file is not None and file["wandb"] is not None}
        read = {file: self._read(folder, file, notes) for file in sorted(set(files.values()))}
        summaries = {one: tracked.summary for one, file in files.items() if (tracked := read[file]) is not None}
        return {one: summary.get(f"evaluation/{one}") for one, summary in summaries.items()}

    @staticmethod
    def _read(folder: RunFolder, place: str, notes: list[str]) -> Tracked | None:
        file = folder.path / place
        try:
            record = read_record(file, history=False)
        except RecordError as error:
            notes.append(f"run {folder.id}: {error}")
            return None
        notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
        history = partial(_history, file)
        return Tracked(record.state, record.config, record.summary, history, None)


in_store = InStore()


def _history(file: Path) -> pd.DataFrame:
    return read_record(file, history=True).history
