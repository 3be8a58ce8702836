"""A worker of a search: asks what is to be done next, does it, and asks again, as long as it may.

All workers are alike, here or on nodes, and none of them is in charge: whoever is free makes the next trial, the next decision,
or the confirmation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmprompt.run import Store
from mmprompt.study import Study
from sweeps.search.advance import Desk, Limits

POLL = 1.0  # seconds between two looks while others are at what comes before


def work_on(
    frozen: Mapping[str, Any], job: Mapping[str, Any], wanted: Callable[[], bool], patience: float | None
) -> bool:
    """Works on the study of a batch until it is over, until nothing is left that the batch allows, or until it is not `wanted`.
    Whether there may be more to do.

    `patience`: seconds without anything to do after which it leaves the rest to those who are at work; None: as long as it takes.
    Raises SystemExit, with a sentence, when the process has to end.
    """
    from mmprompt.job import take

    search = frozen["search"]
    store = Path(frozen["store"])
    limits = Limits(search["trials"], frozenset(search["retry"]), str(job["batch"]))
    desk = Desk(Study(Store(store), search["name"]), limits)
    idle_since: float | None = None
    while wanted():
        step = desk.advance()
        if step.is_over or not (step.work or step.waits):
            return False
        for work in step.work:
            if take(store, work.run, search["where"][work.base], job, work.evaluations, work.until):
                idle_since = None
                break
        else:
            idle_since = idle_since or time.monotonic()
            if patience is not None and time.monotonic() - idle_since > patience:
                print("nothing to do here for a while; those who are at work go on", flush=True)
                return False
            time.sleep(POLL)
    return True
