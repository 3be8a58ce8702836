"""The ongoing runs of a study: those that a process works on, here or on another host."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.failures import Reason, silent
from mmprompt.runs.store import Store
from sweeps.jobs import slurm
from sweeps.jobs.batch import batches

ALIVE = 30.0  # seconds for which SLURM is not queried again about a job that was running


class OngoingRuns:
    """Finds out which runs of a store are ongoing, again and again, with few questions to SLURM."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._last_alive: dict[tuple[str, int], float] = {}  # by run and attempt: when SLURM last had its job

    def among(self, runs: Collection[str]) -> set[str]:
        """The runs among these that a process works on, or may work on if that cannot be found out.

        Attempts whose process is gone are marked as ended in the store, so that every reader knows. Raises StoreError if a run's
        files cannot be read or written.
        """
        busy: set[str] = set()
        elsewhere: list[Attempt] = []
        for run in runs:
            folder = self.store.run(run)
            attempts = folder.current_attempts(folder.result())
            if not attempts or attempts[-1].reason is not None:
                continue
            newest, own_job = attempts[-1], os.environ.get("SLURM_JOB_ID")
            is_running = newest.is_running()
            if is_running:
                busy.add(run)
            elif own_job is not None and newest.job.get("scheduler_job") == own_job:  # SLURM has requeued this very job
                _mark_ended(newest, silent(True))
            elif is_running is None:
                elsewhere.append(newest)
            else:
                _mark_ended(newest, silent(False, "killed, cancelled, or out of memory"))
        return busy | self._elsewhere(elsewhere)

    def _elsewhere(self, attempts: Sequence[Attempt]) -> set[str]:
        """The runs of these attempts of other hosts that a process may work on; for SLURM jobs by what squeue says.

        SLURM is queried after the attempts were read, so that it knows a job that has just begun.
        """
        now = time.monotonic()
        recent = {one for one in attempts if now - self._last_alive.get((one.run.id, one.number), -ALIVE) < ALIVE}
        unknown = [attempt for attempt in attempts if attempt not in recent]
        busy = {attempt.run.id for attempt in recent}
        if not unknown:
            return busy
        on_slurm = [attempt for attempt in unknown if attempt.job["scheduler"] == "slurm"]
        busy |= {attempt.run.id for attempt in unknown if attempt not in on_slurm}
        by_id = {batch.id: batch for batch in batches(self.store)}
        of_attempts = {one.job["batch"]: by_id[one.job["batch"]] for one in on_slurm if one.job["batch"] in by_id}
        answer = slurm.jobs(list(of_attempts.values()))
        words = {job.id: job.state for job in answer.jobs.values()}
        for attempt in on_slurm:
            word = words.get(str(attempt.job.get("job")))
            if of_attempts.get(attempt.job["batch"]) in answer.unknown or word not in (None, "PENDING"):
                busy.add(attempt.run.id)
                self._last_alive[attempt.run.id, attempt.number] = now
            else:  # a job that is pending again was interrupted and has not failed
                _mark_ended(attempt, silent(interrupted=bool(word)))
        return busy


def _mark_ended(attempt: Attempt, reason: Reason) -> None:
    """Writes down that an attempt whose process is gone has ended, unless the process itself has written down its end since the
    attempt was looked at, a reason or a result: SLURM may take seconds to answer."""
    if attempt.reason is None and attempt in attempt.run.current_attempts(attempt.run.result()):
        attempt.fail(reason)
