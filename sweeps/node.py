"""Executes one job of a batch on a node: `python -m sweeps.node BATCH NUMBER`, under SLURM as well as in a local process.

It reads the batch and the configurations stored at launch, and imports the packages of the snapshot.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.files import follow_mode
from mmprompt.runs.processes import is_running
from mmprompt.runs.records import DamagedError
from mmprompt.runs.signals import TOLD_TO_END, end_undisturbed, end_when_told, time_is_up, warning
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import parse
from sweeps.jobs.batch import GPUS, Batch
from sweeps.jobs.job_log import OUT_OF_TIME, first_line

PATIENCE = 60.0  # seconds that SLURM's controller has for an answer


@dataclass(frozen=True)
class Job:
    """The job that this process executes."""

    id: str
    log: Path  # the file that receives its stderr
    index: int  # its number in the batch, which gives its list of runs
    is_slurm: bool
    may_continue: Callable[[], bool]  # whether it may begin another run


def main(batch: Path, number: int) -> None:
    """Executes local worker `number` of a batch, or a SLURM job of the array whose first job has this number.

    A worker continues as long as its launch runs. SLURM sends a job a signal some time before its time limit: the job then writes a
    checkpoint and has SLURM start it again. Exits with 1 if a run failed.
    """
    record = read_batch(batch)
    job = (
        slurm_job(batch, record, number) if record["job"]["scheduler"] == "slurm" else local_job(batch, record, number)
    )
    execution = first_line(job.id)
    print(execution, file=sys.stderr, flush=True)
    about = about_job(record, job.id, job.log) | {"execution": execution}
    if "measure" in record:  # not requeued: a measurement has no checkpoint and would begin from the start
        measure(record, about, job.may_continue)
        return
    try:
        if "search" in record:
            outcome = search(record, about, job.may_continue)
        else:
            outcome = execute(record, job.index, about, job.may_continue)
    except SystemExit:
        if job.is_slurm:
            requeue_if_signalled(record, job.index)
        raise
    if "open" in outcome.values() and time_is_up():
        requeue()
    sys.exit(failure_message(outcome))


def local_job(batch: Path, record: Mapping[str, Any], number: int) -> Job:
    """Returns the job of local worker `number`. It may continue as long as its launch runs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS]  # before any library reads it
    launcher = record["launcher"]
    return Job(str(os.getpid()), Batch(batch).worker_log(number), 0, False, lambda: is_running(launcher) is True)


def slurm_job(batch: Path, record: Mapping[str, Any], first: int) -> Job:
    """Returns this SLURM job, of the array whose first job is number `first`. It may continue until its time is nearly up."""
    end_when_told(patience=warning(record["cluster"]["time_min"]) / 3)
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    log = Batch(batch).array(first) / f"{job}_0_log.err"
    return Job(job, log, first + int(task or 0), True, lambda: not time_is_up())


def requeue_if_signalled(record: dict[str, Any], index: int) -> None:
    """Puts a job back into the queue if a signal ended it because its time limit is near or another job preempts it.

    A job that reached its time limit `TRIES` times without claiming a run exits with `OUT_OF_TIME` instead.
    """
    if (
        time_is_up()
        and not has_claimed_a_run(record, index)
        and int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= TRIES
    ):
        print(
            "the time limit is near and no run has begun, again; a larger cluster.time_min is the cure", file=sys.stderr
        )
        sys.exit(OUT_OF_TIME)
    if time_is_up() or is_preempted():
        requeue()


def read_batch(batch: Path) -> dict[str, Any]:
    """Returns the batch's record. Raises SystemExit, with a sentence, if its file is damaged."""
    try:
        return dict(Batch(batch).record)
    except DamagedError as error:
        raise SystemExit(f"this process ends: {error}") from None


def execute(
    record: dict[str, Any], index: int, about: Mapping[str, Any], may_continue: Callable[[], bool]
) -> dict[str, str]:
    """Executes the runs of a job one after another, and returns how each ended. Raises SystemExit when a signal ends the process.

    `about`: what attempts write down about their job.
    """
    store = Store(Path(record["store"]))
    follow_mode(store.root)
    from mmprompt.execution.execute import execute

    outcome: dict[str, str] = {}
    for part in record["jobs"][index]:
        settings = parse(JobSettings, part["settings"])
        outcome |= execute(store, part["runs"], settings, about, None, may_continue, part["evaluations"])
    return outcome


def search(record: dict[str, Any], about: Mapping[str, Any], may_continue: Callable[[], bool]) -> dict[str, str]:
    """Works on a search, one run after another. Returns whether the search is "open" or "done" afterwards, by its name."""
    follow_mode(Path(record["store"]))
    from sweeps.search.worker import work_on

    is_open = work_on(record, about, may_continue)
    return {record["search"]["name"]: "open" if is_open else "done"}


def measure(record: dict[str, Any], about: Mapping[str, Any], may_continue: Callable[[], bool]) -> None:
    """Measures the costs of a sweep's rows. Raises SystemExit when a signal ends the process, or when it may not continue."""
    store = Path(record["store"])
    follow_mode(store)
    from mmprompt.execution.measurement import measure

    measure(Store(store), record["measure"], about, may_continue)


def about_job(record: Mapping[str, Any], job: str, log: Path) -> dict[str, Any]:
    """Returns what an attempt writes down about its job. `main` adds `execution`, the first line of the job's log."""
    return record["job"] | {"job": job, "log": str(log.resolve().relative_to(Path(record["store"]).resolve()))}


def has_claimed_a_run(record: dict[str, Any], index: int) -> bool:
    """Whether this process has claimed a run."""
    store = Store(Path(record["store"]))
    if "search" in record:
        from mmprompt.studies.study import runs_of

        runs = [store.run(run) for run in runs_of(store, record["search"]["name"])]
    else:
        runs = [store.run(run) for part in record["jobs"][index] for run in part["runs"]]
    return any(attempt.job["pid"] == os.getpid() for run in runs for attempt in [*run.readable_attempts()][-1:])


def failure_message(outcome: Mapping[str, str]) -> str | None:
    """Returns a sentence with the runs that failed; None if none did."""
    failed = [run for run, end in outcome.items() if end in ("failed", "damaged")]
    return f"{len(failed)} of {len(outcome)} runs failed: {', '.join(failed)}" if failed else None


def is_preempted() -> bool:
    """Whether SLURM is preempting this job. SLURM requeues a preempted job only if it has to kill it."""
    if signal.SIGTERM not in TOLD_TO_END:
        return False
    output = scontrol("show", "job", "-o", os.environ["SLURM_JOB_ID"])
    fields = dict(word.split("=", 1) for word in output.split() if "=" in word)
    return fields.get("PreemptTime", "None") not in ("None", "Unknown") and fields.get("JobState") == "RUNNING"


def requeue() -> None:
    """Has SLURM put this job back into the queue and end this process. If SLURM refuses, the next launch resumes the runs."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it at once; it must not disturb the end of this process
    signal.setitimer(signal.ITIMER_REAL, 0)
    scontrol("requeue", os.environ["SLURM_JOB_ID"])


def scontrol(*arguments: str) -> str:
    """Calls scontrol and returns its output. Problems are printed to the log."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"scontrol {' '.join(arguments)}: {error}", file=sys.stderr, flush=True)
        return ""
    if done.returncode != 0:
        print(f"scontrol {' '.join(arguments)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
    return done.stdout


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    finally:
        end_undisturbed()
