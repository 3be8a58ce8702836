"""The manifest of a sweep, STORE/sweeps/NAME.json, as `sweeps.manifest` wrote it at launch: all that is known of a sweep here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from mmprompt import records
from mmprompt.config import PRIMARY_METRIC, nearest
from mmprompt.files import StoreError
from mmprompt.records import FACTS, OPEN, PointRecord, Text, task_is_described
from mmprompt.run import OF_SEARCH, Store

UNSET = "as configured"  # where a block of the grid does not vary an axis
# key that manifests did not always have -> what stands for the time before
ADDED: dict[str, Any] = {"each": [], "over": None, "kept_from": None, "curves": False, "facts": [], "splits": None}
ADDED |= {"search": None}  # the study whose trials these are
# `family`: what is corrected for its number together, the "table" or each "task". `paired`: whether seeds pair. `margin`: by
# metric, what counts as equivalent. `tuned_seeds`: those whose validation scores chose the rates in use.
ADDED |= {"family": "table", "paired": False, "margin": {}, "claims": [], "tuned_seeds": []}

Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@with_config(OPEN)
class ClaimRecord(TypedDict):
    """A contrast that the sweep declares (`sweeps.grid.Claim`)."""

    claim: str
    paper: str | None
    row: dict[str, Any]
    than: dict[str, Any]
    trend: Literal["slope", "curvature"] | None
    expect: Literal["higher", "lower", "equivalent"]
    quantity: str
    tasks: Literal["each", "average"]


@with_config(OPEN)
class TaskRecord(TypedDict):
    family: str
    metric: str
    validation: NotRequired[str]


@with_config(OPEN)
class ManifestRecord(TypedDict):
    """All that tables need of it."""

    sweep: Text
    claim: str
    paper: dict[str, str]
    command: Text
    axes: dict[str, list[Any]]
    baseline: dict[str, Any] | None
    compare: str | list[str]
    tasks: dict[str, TaskRecord]
    header: dict[str, Any]
    points: list[PointRecord]
    each: NotRequired[list[str]]
    over: NotRequired[str | None]
    curves: NotRequired[bool]
    facts: NotRequired[list[str]]
    splits: NotRequired[list[str] | None]
    search: NotRequired[str | None]
    family: NotRequired[Literal["table", "task"]]
    paired: NotRequired[bool]
    margin: NotRequired[dict[str, Margin]]
    claims: NotRequired[list[ClaimRecord]]
    tuned_seeds: NotRequired[list[int]]


def _is_consistent(manifest: ManifestRecord) -> ManifestRecord:
    """Raises ValueError where one part names what another does not have."""
    for point in manifest["points"]:
        task_is_described(point, manifest["tasks"])
        if unknown := point["values"].keys() - manifest["axes"].keys() - {"task"}:
            raise ValueError(f"{min(unknown)} is a value of run {point['run']}, and no axis")
    compared = [manifest["compare"]] if isinstance(manifest["compare"], str) else manifest["compare"]
    over = manifest.get("over")
    for axis in (*compared, *manifest.get("each", ()), *(manifest["baseline"] or ()), *([over] if over else [])):
        if axis not in manifest["axes"]:
            raise ValueError(f"{axis} is no axis of it")
    for task in manifest["tasks"].values():
        if PRIMARY_METRIC.get(task["family"]) != task["metric"]:
            raise ValueError(f"{task['metric']} is no metric of {task['family']}")
    for fact in manifest.get("facts", ()):
        if fact not in FACTS:
            raise ValueError(f"{fact} is no fact that runs record")
    return manifest


MANIFEST = TypeAdapter(Annotated[ManifestRecord, AfterValidator(_is_consistent)])


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Of a sweep, else of the search of that name. Raises StoreError when there is neither, DamagedError."""
    for one in (name, f"{OF_SEARCH}{name}"):
        cure = f"remove it, and launch sweep {name} again: no run is lost"
        found = records.read(store.manifest(one), MANIFEST, cure)
        if found is not None:
            return ADDED | dict(found)
    raise StoreError(_no_such_sweep(store, name))


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("[!.]*.json"))


def _no_such_sweep(store: Store, name: str) -> str:
    names = sweep_names(store)
    there = f"; there are: {', '.join(names)}" if names else "; none was launched there yet"
    return f"no sweep {name} in {store.root}{nearest(name, names) or there}"


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
