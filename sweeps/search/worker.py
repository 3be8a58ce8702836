"""A worker of a search: it repeatedly advances the study and executes the run that is next, as long as its batch allows.

All workers are alike, on this machine or on nodes, and none directs the others: a free worker makes the next trial, the next
decision, or the confirmation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import parse
from mmprompt.studies.study import Study
from sweeps.search.advance import Limits, StudyDriver, Work

POLL = 1.0  # seconds between two readings of the study while other workers execute the runs that come first


def work_on(frozen: Mapping[str, Any], job: Mapping[str, Any], wanted: Callable[[], bool]) -> bool:
    """Works on the study of a batch until it is over, until the batch allows no more, or until `wanted` returns False.

    Returns whether there may be more to do. On SLURM, where an idle job costs something, it waits for other workers no longer than
    one of their runs is likely to take. `frozen`: the content of batch.json; `job`: the facts of this job, for its attempts.
    Raises SystemExit, with a sentence, if the study cannot be read or written.
    """
    search = frozen["search"]
    limits = Limits(search["trials"], frozenset(search["retry"]), str(job["batch"]))
    driver = StudyDriver(Study(Store(Path(frozen["store"])), search["name"]), limits)
    try:
        return _work(driver, [parse(JobSettings, settings) for settings in search["settings"]], job, wanted)
    except StoreError as error:
        raise SystemExit(f"this process ends: {error}") from error


def _execute(driver: StudyDriver, work: Work, settings: Sequence[JobSettings], job: Mapping[str, Any]) -> bool:
    """Executes a run. Returns False if another process is working on it or nothing is missing of it."""
    from mmprompt.execution.execute import execute_for_search

    return execute_for_search(driver.study.store, work.run, settings[work.base], job, work.evaluations, work.until)


def _work(
    driver: StudyDriver, settings: Sequence[JobSettings], job: Mapping[str, Any], wanted: Callable[[], bool]
) -> bool:
    idle_since: float | None = None
    lost: set[str] = set()  # runs whose settings cannot be restored, so that no worker can train them
    while wanted():
        step = driver.advance()
        lost |= {work.run for work in step.work if work.run not in lost and not driver.restore(work)}
        possible = [work for work in step.work if work.run not in lost]
        if step.is_over or not (possible or step.waits):
            return False
        if any(_execute(driver, work, settings, job) for work in possible):  # it executes the first run that is free
            idle_since = None
            continue
        idle_since = idle_since or time.monotonic()
        if job["scheduler"] == "slurm" and time.monotonic() - idle_since > driver.patience():
            print("nothing to do here for a while; the other workers go on", flush=True)
            return False
        time.sleep(POLL)
    return True
