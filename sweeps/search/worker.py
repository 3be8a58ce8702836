"""A worker of a search: asks what is to be done next, does it, and asks again, as long as it may.

All workers are alike, here or on nodes, and none of them is in charge: whichever is free makes the next trial, the next
decision, or the confirmation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.config import parse
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.studies.study import Study
from sweeps.search.advance import Desk, Limits, Work

POLL = 1.0  # seconds between two looks while others are at what comes before


def work_on(frozen: Mapping[str, Any], job: Mapping[str, Any], wanted: Callable[[], bool]) -> bool:
    """Works on the study of a batch until it is over, until nothing is left that the batch allows, or until it is not `wanted`.
    Whether there may be more to do.

    On SLURM, where a place costs something, it waits for others no longer than one of their runs may take.
    Raises SystemExit, with a sentence, when the process has to end.
    """
    search = frozen["search"]
    limits = Limits(search["trials"], frozenset(search["retry"]), str(job["batch"]))
    desk = Desk(Study(Store(Path(frozen["store"])), search["name"]), limits)
    try:
        return _work(desk, [parse(JobSettings, one) for one in search["settings"]], job, wanted)
    except StoreError as error:
        raise SystemExit(f"this process ends: {error}") from error


def _taken(desk: Desk, work: Work, settings: Sequence[JobSettings], job: Mapping[str, Any]) -> bool:
    from mmprompt.execution.execute import execute_for_search

    desk.restore(work)
    return execute_for_search(desk.study.store, work.run, settings[work.base], job, work.evaluations, work.until)


def _work(desk: Desk, settings: Sequence[JobSettings], job: Mapping[str, Any], wanted: Callable[[], bool]) -> bool:
    idle_since: float | None = None
    while wanted():
        step = desk.advance()
        if step.is_over or not (step.work or step.waits):
            return False
        if any(_taken(desk, one, settings, job) for one in step.work):
            idle_since = None  # it took the first that was still free
            continue
        idle_since = idle_since or time.monotonic()
        if job["scheduler"] == "slurm" and time.monotonic() - idle_since > desk.patience():
            print("nothing to do here for a while; those who are at work go on", flush=True)
            return False
        time.sleep(POLL)
    return True
