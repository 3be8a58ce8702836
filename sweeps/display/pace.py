"""What runs that are not done will take, by finished runs of their kind: of the sweep, else of the store (`planning.cost`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mmprompt.runs.deployment import Cluster
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import Store
from sweeps.jobs.batch import Batch
from sweeps.planning.cost import Cost, KindCost, Work, cost_of
from sweeps.states.state import AT_ONCE, State


@dataclass(frozen=True)
class Takes:
    """Seconds of a run; None where no finished run tells."""

    whole: float | None = None  # all that is left to do of it, begun anew
    after: float | None = None  # what comes after its last step: its evaluations


UNKNOWN = Takes()


class Pace:
    """Asked again and again; the store is looked into when something was finished in between."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._works: dict[str, Work] = {}  # by run
        self._takes: dict[str, Takes] = {}
        self._known: object = None

    def of(self, states: Mapping[str, State], batches: Sequence[Batch]) -> Mapping[str, Takes]:
        """By run of those that are not done, as far as its settings can be read."""
        known = {run: (seen.result is not None, seen.missing) for run, seen in states.items()}
        if known != self._known:
            self._known, self._takes = known, dict(self._learned(states, batches))
        return self._takes

    def _learned(self, states: Mapping[str, State], batches: Sequence[Batch]) -> Iterator[tuple[str, Takes]]:
        self._read([run for run in states if run not in self._works])
        works = {run: self._works[run] for run in states if run in self._works}
        to_do = [run for run in works if states[run].name != "done"]
        asked, cluster = asked_of(batches, to_do)
        told = cost_of(self._store, works, asked, states, to_do, cluster)
        for run in to_do:
            yield run, takes(run, told, [asked[run].get(one) for one in states[run].missing])

    def _read(self, runs: Sequence[str]) -> None:
        def work(run: str) -> Work | None:
            with contextlib.suppress(DamagedError):
                return Work.frozen(self._store.run(run))
            return None

        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._works |= {run: one for run, one in zip(runs, pool.map(work, runs), strict=True) if one}


def takes(run: str, told: Cost, missing: Sequence[Mapping[str, Any] | None]) -> Takes:
    """`missing`: the settings of the evaluations that it lacks, None where nobody knows them."""
    one = told.kind_costs[run]
    known = [settings for settings in missing if settings is not None]
    if one is None or len(known) < len(missing):
        return UNKNOWN
    return Takes(told.seconds[run], after(one, known))


def after(told: KindCost, missing: Sequence[Mapping[str, Any]]) -> float | None:
    """Long ago evaluations did not say what they took; then what there was besides training says it."""
    evaluating = told.evaluation_seconds(missing)
    return evaluating if evaluating is None else evaluating or told.rest or None


def asked_of(batches: Sequence[Batch], runs: Sequence[str]) -> tuple[dict[str, dict[str, Mapping[str, Any]]], Cluster]:
    """By run, the evaluations by id that launches ask of it; what the newest of these launches asked of the cluster."""
    asked: dict[str, dict[str, Mapping[str, Any]]] = {run: {} for run in runs}
    cluster = Cluster.model_construct(gpus=0, cpus=1)
    for batch in batches:
        for part in [] if batch.search else [part for parts in batch.record["jobs"] for part in parts]:
            for run in asked.keys() & part["runs"]:
                asked[run] |= {evaluation_id(run, settings): settings for settings in part.get("evaluations", [])}
                known: dict[str, Any] = {"gpus": 0, "cpus": 1, **batch.record["cluster"]}
                cluster = Cluster.model_construct(**known)
    return asked, cluster
