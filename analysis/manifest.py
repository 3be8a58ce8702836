"""The manifest of a sweep, STORE/sweeps/NAME.json, as `sweeps.manifest` wrote it at launch: all that is known of a sweep here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.stored import Unreadable, read_json
from mmprompt.config import nearest
from mmprompt.files import StoreError
from mmprompt.run import OF_SEARCH, Store

UNSET = "as configured"  # where a block of the grid does not vary an axis
# key that manifests did not always have -> what stands for the time before
ADDED: dict[str, Any] = {"each": [], "over": None, "kept_from": None, "curves": False, "facts": [], "splits": None}
ADDED |= {"search": None}  # the study whose trials these are
# `family`: what is corrected for its number together, the "table" or each "task". `paired`: whether seeds pair. `margin`: by
# metric, what counts as equivalent. `tuned_seeds`: those whose validation scores chose the rates in use.
ADDED |= {"family": "table", "paired": False, "margin": {}, "claims": [], "tuned_seeds": []}


def read_manifest(store: Store, name: str) -> dict[str, Any]:
    """Of a sweep, else of the search of that name. Raises StoreError when there is neither."""
    for one in (name, f"{OF_SEARCH}{name}"):
        file = store.manifest(one)
        try:
            found = read_json(file)
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


def sweep_names(store: Store) -> list[str]:
    return sorted(path.stem for path in store.manifest("x").parent.glob("*.json"))


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
