"""A sweep as it was launched: its manifest. All that the verbs after a launch know of it, so that they need no `conf/`."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt.runs import records
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import is_of_evaluations
from mmprompt.runs.overrides import as_text
from mmprompt.runs.records import ManifestRecord
from mmprompt.runs.store import LISTED, NoSweepError, RunFolder, SeveralRunsError, Store


@dataclass(frozen=True)
class LaunchedSweep:
    store: Store
    name: str
    manifest: ManifestRecord

    @property
    def runs(self) -> list[str]:
        """Each once, in the order of the points."""
        return list(dict.fromkeys(point["run"] for point in self.manifest["points"]))

    @cached_property
    def wanted(self) -> dict[str, frozenset[str]]:
        """By run, the evaluations that its points want."""
        found: dict[str, set[str]] = {run: set() for run in self.runs}
        for point in self.manifest["points"]:
            found[point["run"]].update(point["evaluations"].values())
        return {run: frozenset(some) for run, some in found.items()}

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        points = [(point["run"], point["values"]) for point in self.manifest["points"]]
        return differences(points, self.manifest["axes"])

    @property
    def told(self) -> tuple[str, list[str]]:
        """The target of make, and the overrides, that it was launched with."""
        if "target" in self.manifest and "overrides" in self.manifest:
            return self.manifest["target"], list(self.manifest["overrides"])
        _, target, *rest = shlex.split(self.manifest["command"])  # manifests of long ago have them in one string
        return target, [text for word in rest for text in shlex.split(word.removeprefix("ARGS="))]

    @cached_property
    def labels(self) -> dict[str, str]:
        """What tells each run from the others, as text."""
        return {run: label(one) for run, one in self.differences.items()}


def differences(
    points: Sequence[tuple[str, Mapping[str, Any]]], axes: Mapping[str, Sequence[Any]]
) -> dict[str, dict[str, str]]:
    """By run: what tells it from the others, the axes on which points differ, or that some do not have.

    Axes of evaluations are none of them: their points share a run.
    """
    axes = {key: values for key, values in axes.items() if not is_of_evaluations(key)}
    varied = [key for key, values in axes.items() if len(values) > 1 or any(key not in values for _, values in points)]
    found: dict[str, dict[str, str]] = {}
    for run, values in points:
        found.setdefault(run, {key: as_text(values[key]) for key in varied or axes if key in values})
    return found


def label(differences: Mapping[str, str]) -> str:
    return " ".join(f"{key}={text}" for key, text in differences.items())


def read(store: Store, name: str) -> LaunchedSweep:
    """Raises StoreError, with the nearest names, for a sweep that was not launched into this store; DamagedError."""
    file = store.manifest(name)
    found = records.read(file, records.MANIFEST, f"remove it, and launch sweep {name} again: no run is lost")
    if found is None:
        raise NoSweepError(store, name)
    return LaunchedSweep(store, name, found)


def readable(store: Store) -> Iterator[LaunchedSweep]:
    """The sweeps whose manifests can be read, the last launched first."""
    for name in store.sweeps():
        with contextlib.suppress(StoreError):
            yield read(store, name)


def label_of(store: Store, run: str) -> str:
    """What a run is called in the newest sweep that has it; nothing if none has."""
    return next((f"{one.name}: {one.labels[run]}" for one in readable(store) if run in one.labels), "")


def wanted_of(store: Store, run: str) -> frozenset[str]:
    """The evaluations that any sweep wants of a run."""
    return frozenset[str]().union(*(one.wanted[run] for one in readable(store) if run in one.labels))


def find_run(store: Store, beginning: str) -> RunFolder:
    """The run whose id begins so. Raises StoreError if there is none, or several: then it says what each is called."""
    try:
        return store.find(beginning)
    except SeveralRunsError as error:
        named = [f"{run} {label_of(store, run)}".rstrip() for run in error.runs[:LISTED]]
        more = [f"and {len(error.runs) - LISTED} more"] if len(error.runs) > LISTED else []
        head = f"{beginning!r} begins the ids of {len(error.runs)} runs; give more of it:"
        raise StoreError("\n  ".join([head, *named, *more])) from None


def store_at(folder: Path) -> Store:
    """Raises StoreError if it is no folder."""
    if not folder.is_dir():
        raise StoreError(f"there is no store {folder.absolute()}; --runs or MMPROMPT_RUNS names it")
    return Store(folder.absolute())
