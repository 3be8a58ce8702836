"""The time that unfinished runs are expected to take, from finished runs like them: of the sweep, else of the store.

The estimates themselves are made in `sweeps.planning.cost`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster
from sweeps.jobs.batch import Batch
from sweeps.planning.cost import Cost, KindCost, Work, cost_of
from sweeps.states.state import AT_ONCE, State


@dataclass(frozen=True)
class ExpectedTime:
    """The seconds that a run is expected to take; None where no finished run is like it."""

    total: float | None = None  # for everything that is missing of the run, started from the beginning
    after_training: float | None = None  # for what follows the last step: the run's evaluations


UNKNOWN = ExpectedTime()


class Pace:
    """Estimates expected times repeatedly; it reads the store again only when a run or an evaluation has finished meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._works: dict[str, Work] = {}  # by run
        self._expected: dict[str, ExpectedTime] = {}
        self._estimated_from: object = None

    def expected(self, states: Mapping[str, State], batches: Sequence[Batch]) -> Mapping[str, ExpectedTime]:
        """The expected time of each run that is not done and whose settings can be read."""
        finished = {run: (state.result is not None, state.missing) for run, state in states.items()}
        if finished != self._estimated_from:
            self._estimated_from, self._expected = finished, dict(self._estimate(states, batches))
        return self._expected

    def _estimate(self, states: Mapping[str, State], batches: Sequence[Batch]) -> Iterator[tuple[str, ExpectedTime]]:
        self._read([run for run in states if run not in self._works])
        works = {run: self._works[run] for run in states if run in self._works}
        to_do = [run for run in works if states[run].name != "done"]
        evaluations, cluster = requested(batches, to_do)
        cost = cost_of(self._store, works, evaluations, states, to_do, cluster)
        for run in to_do:
            yield (
                run,
                expected_time(run, cost, [evaluations[run].get(evaluation) for evaluation in states[run].missing]),
            )

    def _read(self, runs: Sequence[str]) -> None:
        def read_work(run: str) -> Work | None:
            with contextlib.suppress(DamagedError):
                return Work.frozen(self._store.run(run))
            return None

        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._works |= {
                run: read_work for run, read_work in zip(runs, pool.map(read_work, runs), strict=True) if read_work
            }


def expected_time(run: str, cost: Cost, missing: Sequence[Mapping[str, Any] | None]) -> ExpectedTime:
    """The expected time of a run. `missing`: the settings of the evaluations that it lacks, None if they are not known."""
    finished_runs = cost.kind_costs[run]
    known = [settings for settings in missing if settings is not None]
    if finished_runs is None or len(known) < len(missing):
        return UNKNOWN
    return ExpectedTime(cost.seconds[run], seconds_after_training(finished_runs, known))


def seconds_after_training(finished_runs: KindCost, missing: Sequence[Mapping[str, Any]]) -> float | None:
    """The seconds that the missing evaluations are expected to take.

    Evaluations of old stores did not record their seconds; there the finished runs' time besides training is taken instead.
    """
    evaluating = finished_runs.evaluation_seconds(missing)
    return evaluating if evaluating is None else evaluating or finished_runs.rest or None


def requested(batches: Sequence[Batch], runs: Sequence[str]) -> tuple[dict[str, dict[str, Mapping[str, Any]]], Cluster]:
    """What launches requested: for each run the settings of its evaluations, by evaluation id; and the cluster settings of the
    newest of these launches."""
    evaluations: dict[str, dict[str, Mapping[str, Any]]] = {run: {} for run in runs}
    cluster = Cluster.model_construct(gpus=0, cpus=1)
    for batch in batches:
        for part in [] if batch.search else [part for parts in batch.record["jobs"] for part in parts]:
            for run in evaluations.keys() & part["runs"]:
                evaluations[run] |= {evaluation_id(run, settings): settings for settings in part.get("evaluations", [])}
                recorded: dict[str, Any] = {"gpus": 0, "cpus": 1, **batch.record["cluster"]}
                cluster = Cluster.model_construct(**recorded)
    return evaluations, cluster
