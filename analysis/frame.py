"""A sweep as one tidy frame: manifest, results and W&B records put together, and what does not fit said in words.

A metric's value is the one in the summary of the published attempt's W&B record, wherever that is read: in the store, or on
the server (`analysis.server`). `result.json` says which attempt that is, and holds the same values: where the two disagree it
is noted; where there is no readable record it stands in, which is noted too. Where there is no `result.json` the record of a
finished attempt says it all. States here are done, failed and not done; whether a run is running is for `sweeps` to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import RecordError, read_record
from mmprompt.config import nearest
from mmprompt.run import RunFolder, Store, StoreError

SPLITS = ("val", "test")
ENDED_BADLY = ("failed", "crashed", "killed")  # states of W&B's
FROM_RESULT = ("attempt", "best_step", "trainable_parameters", "seconds", "commit", "dirty", "device")


@dataclass(frozen=True)
class Tracked:
    """The W&B record of one attempt, wherever it was read."""

    state: str  # W&B's word for how it ended
    config: dict[str, Any]
    summary: dict[str, Any]
    history: Callable[[], pd.DataFrame]  # a row per logged step, as `analysis.records` reads it
    rows: int | None  # how many that should be; None: as many as there are


# The record of a run whose result is given, or None; what does not fit goes into the notes.
Source = Callable[[RunFolder, Mapping[str, Any] | None, list[str]], Tracked | None]


@dataclass(frozen=True)
class Sweep:
    """A manifest, and its points as a frame.

    `frame` has a row per point: a column per axis, then run, state, metric (the task's), source (wandb or result.json),
    what `FROM_RESULT` names, and a column `split/metric` for each value found.
    """

    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]  # what a reader of the numbers has to know

    @property
    def compare(self) -> str:
        """The axis that is compared: a table's rows, a figure's x."""
        return str(self.manifest["compare"])

    @property
    def extra_axes(self) -> list[str]:
        """Axes besides task, compared axis and seed that take several values: each combination is a row of its own."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() > 1]

    @property
    def settled_axes(self) -> list[str]:
        """Those that take one value, which a caption says."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() == 1]

    @property
    def _other_axes(self) -> list[str]:
        return [axis for axis in self.manifest["axes"] if axis not in ("task", self.compare, "seed")]

    @property
    def tasks(self) -> dict[str, str]:
        """Each task and its metric, in the order of the manifest."""
        return {task: about["metric"] for task, about in self.manifest["tasks"].items()}

    @property
    def scores(self) -> pd.DataFrame:
        """Long form: a row per point and split, with `split` and `value`, the task's metric there, NaN without one."""
        parts = [self.frame.assign(split=split, value=self._values(split)) for split in SPLITS]
        return pd.concat(parts, ignore_index=True)

    def _values(self, split: str) -> list[float]:
        return [row.get(f"{split}/{row['metric']}", math.nan) for _, row in self.frame.iterrows()]


def read_sweep(store: Store, name: str) -> Sweep:
    """From the store alone. Raises StoreError when there is no such sweep."""
    return assemble(store, read_manifest(store, name), in_store)


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Raises StoreError when there is no such sweep."""
    try:
        return json.loads(store.manifest(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(_no_such_sweep(store, name)) from None


def assemble(store: Store, manifest: dict[str, Any], source: Source) -> Sweep:
    notes: list[str] = []
    rows = [_row(manifest, point, store.run(point["run"]), source, notes) for point in manifest["points"]]
    untracked = sum(row["source"] == "result.json" for row in rows)
    if untracked:
        notes.append(f"{untracked} of {len(rows)} runs have no readable W&B record; their values are from result.json")
    return Sweep(manifest, pd.DataFrame(rows), tuple(dict.fromkeys(notes)))


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("*.json"))


def _no_such_sweep(store: Store, name: str) -> str:
    names = sweep_names(store)
    there = f"; there are: {', '.join(names)}" if names else "; none was launched there yet"
    return f"no sweep {name} in {store.root}{nearest(name, names) or there}"


def _row(
    manifest: Mapping[str, Any], point: Mapping[str, Any], folder: RunFolder, source: Source, notes: list[str]
) -> dict[str, Any]:
    row = point_values(manifest, point)
    row |= {"state": "done", "metric": manifest["tasks"][row["task"]]["metric"], "source": None}
    result = folder.result()
    tracked = source(folder, result, notes)
    if result is None and tracked is not None and tracked.state == "finished":
        result = _as_result(tracked)
    if result is None:
        return row | {"state": _state(folder, tracked)} | dict.fromkeys(FROM_RESULT)
    return row | {key: result[key] for key in FROM_RESULT} | _metrics(point, result, tracked, notes)


def point_values(manifest: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's value on each axis, its task and its run."""
    values = point["values"]
    task = values["task"] if "task" in values else next(iter(manifest["tasks"]))
    return {axis: axis_value(values, axis) for axis in manifest["axes"]} | {"task": task, "run": point["run"]}


def axis_value(values: Mapping[str, Any], axis: str) -> Any:
    """Numbers and words as they are; the rest as text, so that rows can be grouped by it."""
    if axis not in values:
        return "as configured"  # a block of the grid that does not vary this key
    value = values[axis]
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _state(folder: RunFolder, tracked: Tracked | None) -> str:
    attempts = folder.attempts()
    if attempts:
        return "failed" if attempts[-1].error is not None else "not done"
    return "failed" if tracked is not None and tracked.state in ENDED_BADLY else "not done"


def _as_result(tracked: Tracked) -> dict[str, Any]:
    """What `result.json` would say, from the record."""
    said = tracked.config | tracked.summary
    evaluations = {split: said[f"{split}/evaluation"] for split in SPLITS if f"{split}/evaluation" in said}
    keys = [key for split in evaluations for key in sorted(tracked.summary) if key.startswith(f"{split}/")]
    metrics = {key: number(tracked.summary[key]) for key in keys if not key.endswith("/evaluation")}
    known: dict[str, Any] = {key: said.get(key) for key in FROM_RESULT} | {"seconds": number(said.get("seconds"))}
    return known | {"evaluations": evaluations, "metrics": metrics}


def number(value: Any) -> float:
    """JSON's number as it was logged: W&B writes 5.0 as 5, and NaN may come as text. NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _metrics(
    point: Mapping[str, Any], result: Mapping[str, Any], tracked: Tracked | None, notes: list[str]
) -> dict[str, Any]:
    """The values of a done run, each `split/metric`, of the evaluations that the sweep asks for."""
    run = point["run"]
    wanted, made = point["evaluations"], result["evaluations"]
    asked = [split for split in wanted if split in made and made[split] == wanted[split]]
    for split in sorted(set(wanted) - set(asked)):
        notes.append(f"run {run}: its {split} evaluation is not the one this sweep asks for; left out")
    published = {key: value for key, value in result["metrics"].items() if key.split("/")[0] in asked}
    if tracked is not None and tracked.state != "finished":
        notes.append(f"run {run}: its W&B record says {tracked.state}, its result.json done")
    if tracked is None or not tracked.summary:
        return published | {"source": "result.json"}
    found = {key: tracked.summary.get(key) for key in published}
    for key, value in found.items():
        if value != published[key]:
            notes.append(f"run {run}: {key} is {value} in its W&B record and {published[key]} in result.json")
    return published | {key: number(value) for key, value in found.items() if value is not None} | {"source": "wandb"}


def in_store(folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
    """The published attempt's W&B record in the store; None if there is none that can be read."""
    if result is None or result["wandb"] is None:
        return None
    file = folder.path / result["wandb"]
    try:
        record = read_record(file, history=False)
    except RecordError as error:
        notes.append(f"run {folder.id}: {error}")
        return None
    notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
    history = partial(_history, file)
    return Tracked(record.state, record.config, record.summary, history, None)


def _history(file: Path) -> pd.DataFrame:
    return read_record(file, history=True).history
