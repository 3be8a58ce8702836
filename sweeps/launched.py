"""A sweep as it was launched: its manifest. All that the verbs after a launch know of it, so that they need no `conf/`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt import records
from mmprompt.config import nearest
from mmprompt.files import StoreError
from mmprompt.identity import is_of_evaluations
from mmprompt.keys import as_text
from mmprompt.records import ManifestRecord
from mmprompt.run import OF_SEARCH, RunFolder, Store

SHOWN = 8  # runs, where several are meant


@dataclass(frozen=True)
class Launched:
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


def names(store: Store) -> list[str]:
    """Of the sweeps that were launched into this store, the last launched first."""
    found = []
    for file in store.manifest("*").parent.glob("[!.]*.json"):
        with contextlib.suppress(OSError):  # removed at this moment
            found.append((file.stat().st_mtime, file.stem))
    return [name for _, name in sorted(found, reverse=True)]


def read(store: Store, name: str) -> Launched:
    """Raises StoreError, with the nearest names, for a sweep that was not launched into this store; DamagedError."""
    file = store.manifest(name)
    found = records.read(file, records.MANIFEST, f"remove it, and launch sweep {name} again: no run is lost")
    if found is None:
        there = names(store)
        known = f"; there are {', '.join(sorted(there))}" if there else "; none was launched into it"
        raise StoreError(f"no sweep {name} in {store.root}{nearest(name, there) or known}")
    return Launched(store, name, found)


def manifest_of(store: Store, word: str) -> str:
    """The name of a sweep's manifest; of a search, by the name of the search as well."""
    is_search = not store.manifest(word).exists() and store.manifest(f"{OF_SEARCH}{word}").exists()
    return f"{OF_SEARCH}{word}" if is_search else word


def readable(store: Store) -> Iterator[Launched]:
    """The sweeps whose manifests can be read, the last launched first."""
    for name in names(store):
        with contextlib.suppress(StoreError):
            yield read(store, name)


def label_of(store: Store, run: str) -> str:
    """What a run is called in the newest sweep that has it; nothing if none has."""
    return next((f"{one.name}: {one.labels[run]}" for one in readable(store) if run in one.labels), "")


def wanted_of(store: Store, run: str) -> frozenset[str]:
    """The evaluations that any sweep wants of a run."""
    return frozenset[str]().union(*(one.wanted[run] for one in readable(store) if run in one.labels))


def find_run(store: Store, prefix: str) -> RunFolder:
    """The run whose id begins so. Raises StoreError if none does, or several do."""
    runs = store.runs()
    found = sorted(run for run in runs if run.startswith(prefix))
    if len(found) == 1:
        return store.run(found[0])
    if not found:
        raise StoreError(f"no run's id begins with {prefix!r} in {store.root}{nearest(prefix, runs)}")
    meant = [f"{run} {label_of(store, run)}".rstrip() for run in found[:SHOWN]]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    raise StoreError(
        f"{prefix!r} begins the ids of {len(found)} runs; give more of it:\n  " + "\n  ".join(meant + more)
    )


def store_at(folder: Path) -> Store:
    """Raises StoreError if it is no folder."""
    if not folder.is_dir():
        raise StoreError(f"there is no store {folder.absolute()}; --runs or MMPROMPT_RUNS names it")
    return Store(folder.absolute())
