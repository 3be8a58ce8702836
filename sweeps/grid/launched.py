"""A launched sweep, read from its manifest. The verbs that follow a launch read nothing else of it and need no `conf/`."""

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
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import LISTED, NoSweepError, SeveralRunsError, Store


@dataclass(frozen=True)
class LaunchedSweep:
    store: Store
    name: str
    manifest: ManifestRecord

    @property
    def runs(self) -> list[str]:
        """The ids of its runs, each once, in the order of the points."""
        return list(dict.fromkeys(point["run"] for point in self.manifest["points"]))

    @cached_property
    def evaluations(self) -> dict[str, frozenset[str]]:
        """The ids of the evaluations that the sweep's points need, by run."""
        needed: dict[str, set[str]] = {run: set() for run in self.runs}
        for point in self.manifest["points"]:
            needed[point["run"]].update(point["evaluations"].values(), point.get("unscored", {}).values())
        return {run: frozenset(ids) for run, ids in needed.items()}

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        """The values that distinguish each run from the sweep's other runs, by run and axis (see `differences` below)."""
        points = [(point["run"], point["values"]) for point in self.manifest["points"]]
        return differences(points, self.manifest["axes"])

    @property
    def launched_with(self) -> tuple[str, list[str]]:
        """The make target and the overrides that the sweep was launched with."""
        if "target" in self.manifest and "overrides" in self.manifest:
            return self.manifest["target"], list(self.manifest["overrides"])
        _, target, *rest = shlex.split(self.manifest["command"])  # old manifests have both in one string
        return target, [text for word in rest for text in shlex.split(word.removeprefix("ARGS="))]

    @cached_property
    def labels(self) -> dict[str, str]:
        """The values that distinguish each run from the others, as text, by run."""
        return {run: label(values) for run, values in self.differences.items()}


def differences(
    points: Sequence[tuple[str, Mapping[str, Any]]], axes: Mapping[str, Sequence[Any]]
) -> dict[str, dict[str, str]]:
    """Returns, by run, its values on the axes on which points differ, or which some points lack.

    Axes of evaluations are left out: points that differ only there share a run.
    """
    axes = {key: values for key, values in axes.items() if not is_of_evaluations(key)}
    varied = [key for key, values in axes.items() if len(values) > 1 or any(key not in values for _, values in points)]
    distinguishing: dict[str, dict[str, str]] = {}
    for run, values in points:
        distinguishing.setdefault(run, {key: as_text(values[key]) for key in varied or axes if key in values})
    return distinguishing


def label(differences: Mapping[str, str]) -> str:
    """Returns the differences of one run as `KEY=VALUE KEY=VALUE`."""
    return " ".join(f"{key}={text}" for key, text in differences.items())


def read(store: Store, name: str) -> LaunchedSweep:
    """Reads the manifest of a launched sweep.

    Raises NoSweepError, with the nearest names, if the sweep was not launched into this store, and DamagedError if the manifest
    cannot be used.
    """
    file = store.manifest(name)
    manifest = records.read(file, records.MANIFEST, f"remove it, and launch sweep {name} again: no run is lost")
    if manifest is None:
        raise NoSweepError(store, name)
    return LaunchedSweep(store, name, manifest)


def readable(store: Store) -> Iterator[LaunchedSweep]:
    """Yields the sweeps whose manifests can be read, the last launched first."""
    for name in store.sweeps():
        with contextlib.suppress(StoreError):
            yield read(store, name)


def label_of(store: Store, run: str) -> str:
    """Returns `SWEEP: LABEL` of a run, from the newest sweep that contains it; "" if no sweep does."""
    return next((f"{sweep.name}: {sweep.labels[run]}" for sweep in readable(store) if run in sweep.labels), "")


def evaluations_of(store: Store, run: str) -> frozenset[str]:
    """Returns the ids of the evaluations that any launched sweep needs of a run."""
    return frozenset[str]().union(*(sweep.evaluations[run] for sweep in readable(store) if run in sweep.labels))


def find_run(store: Store, beginning: str) -> RunFolder:
    """Returns the folder of the run whose id begins with `beginning`.

    Raises StoreError if no run or several runs match; for several, the message lists each with its label.
    """
    try:
        return store.find(beginning)
    except SeveralRunsError as error:
        labelled = [f"{run} {label_of(store, run)}".rstrip() for run in error.runs[:LISTED]]
        rest = [f"and {len(error.runs) - LISTED} more"] if len(error.runs) > LISTED else []
        head = f"{beginning!r} begins the ids of {len(error.runs)} runs; give more of it:"
        raise StoreError("\n  ".join([head, *labelled, *rest])) from None


def store_at(folder: Path) -> Store:
    """Returns the store in this folder. Raises StoreError if it is not a folder."""
    if not folder.is_dir():
        raise StoreError(f"there is no store {folder.absolute()}; --runs or MMPROMPT_RUNS names it")
    return Store(folder.absolute())
