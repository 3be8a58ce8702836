"""What runs on the node: one job of a batch. It reads what was frozen at launch and imports the snapshot's packages."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from mmprompt.run import lives

GPUS = "MMPROMPT_GPUS"  # the variable that says which a local worker may use; others find it in its environment


def work(batch: str, index: int) -> None:
    """Executes the runs of job `index` of the batch in this folder; on local processes only as long as the launch lives.

    Raises RuntimeError at the end if one failed: a scheduler then shows the job as failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it; while torch loads nothing needs an orderly end
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a time limit is near: submitit would raise, and blame the run
    frozen = json.loads((Path(batch) / "batch.json").read_text(encoding="utf-8"))
    driver = frozen["driver"]
    if driver is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS]  # before anything could look
    from submitit import JobEnvironment

    from mmprompt.job import execute

    store = Path(frozen["store"])
    job = frozen["job"] | {"job": JobEnvironment().job_id}
    outcome: dict[str, str] = {}
    for part in frozen["jobs"][index]:
        outcome |= execute(
            store, part["runs"], part["where"], job, wanted=lambda: driver is None or lives(driver) is True
        )
    failed = [run for run, end in outcome.items() if end == "failed"]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(outcome)} runs failed: {', '.join(failed)}")
