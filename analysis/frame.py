"""A sweep as one tidy frame: manifest, results and W&B records put together, and what does not fit said in words.

A metric's value is the one in the summary of the published attempt's W&B record. `result.json` says which attempt that
is, and holds the same values: where the two disagree it is noted; where there is no readable record it stands in, which
is noted too. States here are done, failed and not done; whether a run is running is for `sweeps status` to say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.records import RecordError, RunRecord, read_record
from mmprompt.config import nearest
from mmprompt.run import RunFolder, Store, StoreError

SPLITS = ("val", "test")
FROM_RESULT = ("attempt", "best_step", "trainable_parameters", "seconds", "commit", "dirty", "device")


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
    """Raises StoreError when there is no such sweep."""
    try:
        manifest = json.loads(store.manifest(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(_no_such_sweep(store, name)) from None
    notes: list[str] = []
    rows = [_row(manifest, point, store.run(point["run"]), notes) for point in manifest["points"]]
    untracked = sum(row["source"] == "result.json" for row in rows)
    if untracked:
        notes.append(f"{untracked} of {len(rows)} runs have no readable W&B record; their values are from result.json")
    return Sweep(manifest, pd.DataFrame(rows), tuple(notes))


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("*.json"))


def _no_such_sweep(store: Store, name: str) -> str:
    names = sweep_names(store)
    there = f"; there are: {', '.join(names)}" if names else "; none was launched there yet"
    return f"no sweep {name} in {store.root}{nearest(name, names) or there}"


def _row(manifest: Mapping[str, Any], point: Mapping[str, Any], folder: RunFolder, notes: list[str]) -> dict[str, Any]:
    values = point["values"]
    task = values["task"] if "task" in values else next(iter(manifest["tasks"]))
    row = {axis: axis_value(values, axis) for axis in manifest["axes"]} | {"task": task, "run": point["run"]}
    row |= {"state": _state(folder), "metric": manifest["tasks"][task]["metric"], "source": None}
    result = folder.result()
    if result is None:
        return row | dict.fromkeys(FROM_RESULT)
    return row | {key: result[key] for key in FROM_RESULT} | _metrics(point, folder, result, notes)


def axis_value(values: Mapping[str, Any], axis: str) -> Any:
    """Numbers and words as they are; the rest as text, so that rows can be grouped by it."""
    if axis not in values:
        return "as configured"  # a block of the grid that does not vary this key
    value = values[axis]
    return value if isinstance(value, (int, float, str)) else json.dumps(value)


def _state(folder: RunFolder) -> str:
    if folder.result_file.exists():
        return "done"
    attempts = folder.attempts()
    return "failed" if attempts and attempts[-1].error is not None else "not done"


def _metrics(
    point: Mapping[str, Any], folder: RunFolder, result: Mapping[str, Any], notes: list[str]
) -> dict[str, Any]:
    """The values of a done run, each `split/metric`, of the evaluations that the sweep asks for."""
    record = _record(folder, result, notes)
    wanted, made = point["evaluations"], result["evaluations"]
    asked = [split for split in wanted if split in made and made[split] == wanted[split]]
    for split in sorted(set(wanted) - set(asked)):
        notes.append(f"run {folder.id}: its {split} evaluation is not the one this sweep asks for; left out")
    published = {key: value for key, value in result["metrics"].items() if key.split("/")[0] in asked}
    if record is None:
        return published | {"source": "result.json"}
    tracked = {key: record.summary.get(key) for key in published}
    for key, value in tracked.items():
        if value != published[key]:
            notes.append(f"run {folder.id}: {key} is {value} in its W&B record and {published[key]} in result.json")
    return published | {key: value for key, value in tracked.items() if value is not None} | {"source": "wandb"}


def _record(folder: RunFolder, result: Mapping[str, Any], notes: list[str]) -> RunRecord | None:
    """The published attempt's W&B record; None if there is none that can be used."""
    if result["wandb"] is None:
        return None
    try:
        record = read_record(folder.path / result["wandb"], history=False)
    except RecordError as error:
        notes.append(f"run {folder.id}: {error}")
        return None
    notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
    if record.state != "finished":
        notes.append(f"run {folder.id}: its W&B record says {record.state}, its result.json done")
    return record if record.summary else None
