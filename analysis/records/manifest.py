"""The manifest of a sweep, STORE/sweeps/NAME.json, which `sweeps.grid.manifest` writes and the analysis reads.

The analysis has no other source of information about a sweep's design.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, TypeAdapter, with_config
from typing_extensions import TypedDict

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs import records
from mmprompt.runs.comparison import Comparison
from mmprompt.runs.records import OPEN, PointRecord, Text, task_is_described
from mmprompt.runs.store import NoSweepError, Store

DEFAULTS: dict[str, Any] = {  # the values of keys that older manifests lack
    **Comparison(compare=[]).model_dump(exclude={"compare"}),
    "search": None,
    "tuned_seeds": [],
}
UNSET = "as configured"  # the value of an axis that a block of the grid does not vary


@with_config(OPEN)
class TaskRecord(TypedDict):
    family: str
    metric: str
    validation: NotRequired[str]


@with_config(OPEN)
class ManifestRecord(TypedDict):
    """The keys of a manifest that the analysis needs."""

    sweep: Text
    claim: str
    paper: dict[str, str]
    command: Text
    axes: dict[str, list[Any]]
    baseline: dict[str, Any] | None
    tasks: dict[str, TaskRecord]
    header: dict[str, Any]
    points: list[PointRecord]
    search: NotRequired[str | None]
    tuned_seeds: NotRequired[list[int]]


def _is_consistent(manifest: ManifestRecord) -> ManifestRecord:
    """Raises ValueError where one part of a manifest refers to something that another part lacks."""
    for point in manifest["points"]:
        task_is_described(point, manifest["tasks"])
        if unknown := point["values"].keys() - manifest["axes"].keys() - {"task"}:
            raise ValueError(f"{min(unknown)} is a value of run {point['run']}, and no axis")
        if "seed" in manifest["axes"] and type(point["values"].get("seed")) is not int:
            raise ValueError(f"the seed of run {point['run']} is no integer")
    comparison = comparison_of(manifest)
    over = [comparison.over] if comparison.over else []
    for axis in (*comparison.compared, *comparison.each, *(manifest["baseline"] or ()), *over):
        if axis not in manifest["axes"]:
            raise ValueError(f"{axis} is no axis of it")
    for task in manifest["tasks"].values():
        if PRIMARY_METRIC.get(task["family"]) != task["metric"]:
            raise ValueError(f"{task['metric']} is no metric of {task['family']}")
    return manifest


def comparison_of(manifest: Mapping[str, Any]) -> Comparison:
    """The comparison that a manifest declares. Raises ValidationError if it is none."""
    return Comparison.model_validate({key: manifest[key] for key in Comparison.model_fields if key in manifest})


MANIFEST = TypeAdapter(Annotated[ManifestRecord, AfterValidator(_is_consistent)])


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Returns the manifest of a sweep, or of the search of this name. Raises StoreError if there is neither, DamagedError if it
    is damaged."""
    cure = f"remove it, and launch sweep {name} again: no run is lost"
    record = records.read(store.manifest(store.manifest_name(name)), MANIFEST, cure)
    if record is None:  # it was removed in the meantime
        raise NoSweepError(store, name)
    return DEFAULTS | dict(record) | comparison_of(record).model_dump()


def point_values(manifest: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point's value on each axis, its task and its run."""
    values = point["values"]
    task = values["task"] if "task" in values else next(iter(manifest["tasks"]))
    return {axis: axis_value(values, axis) for axis in manifest["axes"]} | {"task": task, "run": point["run"]}


def axis_value(values: Mapping[str, Any], axis: str) -> Any:
    """Returns a number or a word as it is, anything else as JSON text, so that rows can be grouped by it."""
    if axis not in values:
        return UNSET
    value = values[axis]
    return value if isinstance(value, (int, float, str)) else json.dumps(value)
