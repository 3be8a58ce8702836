"""Workers: local processes that take runs from a batch's list; started through submitit, stopped by the launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from mmprompt.config import Cluster, ConfigError
from sweeps.batch import Batch
from sweeps.node import work
from sweeps.state import last_line

LAST_WORDS = 20.0  # seconds that a worker has after SIGTERM to close its records
AGAIN = 8.0  # seconds after which it is told again: compiled code can swallow the exception that a signal raises


def places(cluster: Cluster, threads: int) -> int:
    """How many workers this machine carries at once. Raises ConfigError if it lacks the GPUs that one needs."""
    most = len(os.sched_getaffinity(0)) // threads
    if cluster.gpus:
        found = len(list(Path("/dev").glob("nvidia[0-9]*")))
        most = found // cluster.gpus
        if most == 0:
            raise ConfigError(f"cluster.gpus={cluster.gpus}, but this machine has {found} NVIDIA devices")
    return max(1, cluster.max_parallel or most)


class Workers:
    def __init__(self, batch: Batch, most: int) -> None:
        self.batch = batch
        self.most = most
        self.places: list[Any] = [None] * most  # submitit's job of the worker that has the place

    def alive(self) -> int:
        return sum(job is not None and not job.done() for job in self.places)

    def start(self) -> None:
        """One more worker in a free place. The place decides which GPUs it sees."""
        from submitit import LocalExecutor
        from submitit.core.utils import environment_variables

        place = next(i for i, job in enumerate(self.places) if job is None or job.done())
        gpus = self.batch.frozen["cluster"]["gpus"]
        executor = LocalExecutor(self.batch.folder)
        executor.update_parameters(
            timeout_min=60 * 24 * 365,  # a local process has no time limit
            gpus_per_node=gpus,
            visible_gpus=list(range(place * gpus, (place + 1) * gpus)),
        )
        # Ctrl-C in a terminal goes to all its processes, but workers shall hear of it from us alone, as SIGTERM.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with contextlib.chdir(self.batch.frozen["snapshot"]), environment_variables(**self.batch.environment):
                self.places[place] = executor.submit(work, str(self.batch.folder), 0)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def last_words(self) -> str:
        """The end of the log that was written to last."""
        logs = sorted(self.batch.folder.glob("*_log.err"), key=lambda log: log.stat().st_mtime)
        return (
            f"{logs[-1]} ends with\n  {last_line(logs[-1].read_text(encoding='utf-8'))}"
            if logs
            else "they wrote no log"
        )

    def stop(self) -> None:
        """Ends every worker: SIGTERM, on which it closes its records, and SIGKILL for those that do not end."""
        began = time.monotonic()
        while self.alive() and time.monotonic() - began < LAST_WORDS:
            for process in self._processes(recursive=False):
                process.terminate()  # submitit's process, which passes it on to the worker
            again = time.monotonic() + AGAIN
            while self.alive() and time.monotonic() < again:
                time.sleep(0.1)
        for process in self._processes(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _processes(self, recursive: bool) -> list[psutil.Process]:
        """submitit's process of each worker that lives, and, if `recursive`, the worker and all that it started."""
        found: list[psutil.Process] = []
        for job in self.places:
            with contextlib.suppress(psutil.NoSuchProcess):
                if job is not None and not job.done():
                    found.append(psutil.Process(int(job.job_id)))
                    found += found[-1].children(recursive=True) if recursive else []
        return found
