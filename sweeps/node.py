"""What runs on the node: one job of a batch, `python -m sweeps.node BATCH NUMBER`, on SLURM as well as in local processes.

It reads what was frozen at launch, and imports the packages of the snapshot.
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

from mmprompt.runs.config import parse
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.files import follow_mode
from mmprompt.runs.processes import is_running
from mmprompt.runs.records import DamagedError
from mmprompt.runs.signals import TOLD_TO_END, end_when_told, time_is_up, warning
from mmprompt.runs.store import TRIES, Store
from sweeps.jobs.batch import GPUS, Batch
from sweeps.jobs.job_log import OUT_OF_TIME, first_line

ASKS = 60.0  # seconds that SLURM's controller has for an answer


@dataclass(frozen=True)
class Job:
    """The job that this process executes."""

    id: str
    log: Path  # what it prints as errors
    index: int  # of its list of runs, in the batch
    is_slurm: bool
    goes_on: Callable[[], bool]  # whether it may begin another run


def main(batch: Path, number: int) -> None:
    """A local worker, number `number` of its batch; or a job of SLURM's, of the array whose first job has that number.

    A worker goes on as long as its launch lives. SLURM tells a job some time before its time limit: then it keeps its state and
    has itself started again. Exits with 1 if a run failed.
    """
    frozen = frozen_in(batch)
    job = (
        slurm_job(batch, frozen, number) if frozen["job"]["scheduler"] == "slurm" else local_job(batch, frozen, number)
    )
    execution = first_line(job.id)
    print(execution, file=sys.stderr, flush=True)
    about = about_job(frozen, job.id, job.log) | {"execution": execution}
    if "measure" in frozen:  # one that is told to end has nothing to keep, and would begin anew
        measure(frozen, about, job.goes_on)
        return
    try:
        is_search = "search" in frozen
        outcome = search(frozen, about, job.goes_on) if is_search else execute(frozen, job.index, about, job.goes_on)
    except SystemExit:
        if job.is_slurm:
            start_again_if_told(frozen, job.index)
        raise
    if "open" in outcome.values() and time_is_up():
        start_again()
    sys.exit(failures(outcome))


def local_job(batch: Path, frozen: Mapping[str, Any], number: int) -> Job:
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS]  # before anything could look
    launcher = frozen["launcher"]
    return Job(str(os.getpid()), Batch(batch).worker_log(number), 0, False, lambda: is_running(launcher) is True)


def slurm_job(batch: Path, frozen: Mapping[str, Any], first: int) -> Job:
    end_when_told(patience=warning(frozen["cluster"]["time_min"]) / 3)
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    log = Batch(batch).array(first) / f"{job}_0_log.err"
    return Job(job, log, first + int(task or 0), True, lambda: not time_is_up())


def start_again_if_told(frozen: dict[str, Any], index: int) -> None:
    """Of a job that was told to end: because its time limit is near, or for another's sake."""
    if time_is_up() and not has_begun(frozen, index) and int(os.environ.get("SLURM_RESTART_COUNT", "0")) >= TRIES:
        print(
            "the time limit is near and no run has begun, again; a larger cluster.time_min is the cure", file=sys.stderr
        )
        sys.exit(OUT_OF_TIME)
    if time_is_up() or is_preempted():
        start_again()


def frozen_in(batch: Path) -> dict[str, Any]:
    """What was frozen at launch. Raises SystemExit, with a sentence, if the file is damaged."""
    try:
        return dict(Batch(batch).record)
    except DamagedError as error:
        raise SystemExit(f"this process ends: {error}") from None


def execute(frozen: dict[str, Any], index: int, about: Mapping[str, Any], wanted: Callable[[], bool]) -> dict[str, str]:
    """The runs of a job, one after another, and how each ended. Raises SystemExit when told to end.

    `about`: what attempts write down of their job.
    """
    store = Store(Path(frozen["store"]))
    follow_mode(store.root)
    from mmprompt.execution.execute import execute

    outcome: dict[str, str] = {}
    for part in frozen["jobs"][index]:
        settings = parse(JobSettings, part["settings"])
        outcome |= execute(store, part["runs"], settings, about, None, wanted, part["evaluations"])
    return outcome


def search(frozen: dict[str, Any], about: Mapping[str, Any], wanted: Callable[[], bool]) -> dict[str, str]:
    """A worker of a search: takes one run of it after another. Whether the search is "open" when it ends, by its name."""
    follow_mode(Path(frozen["store"]))
    from sweeps.search.worker import work_on

    is_open = work_on(frozen, about, wanted)
    return {frozen["search"]["name"]: "open" if is_open else "done"}


def measure(frozen: dict[str, Any], about: Mapping[str, Any], wanted: Callable[[], bool]) -> None:
    """Measures what rows of a sweep take. Raises SystemExit when told to end, or not `wanted` any more."""
    store = Path(frozen["store"])
    follow_mode(store)
    from mmprompt.execution.measurement import measure

    measure(Store(store), frozen["measure"], about, wanted)


def about_job(frozen: Mapping[str, Any], job: str, log: Path) -> dict[str, Any]:
    """What an attempt writes down of its job; of one of SLURM's also its `execution`: the line that it wrote first."""
    return frozen["job"] | {"job": job, "log": str(log.resolve().relative_to(Path(frozen["store"]).resolve()))}


def has_begun(frozen: dict[str, Any], index: int) -> bool:
    """Whether this process has claimed a run."""
    store = Store(Path(frozen["store"]))
    if "search" in frozen:
        from mmprompt.studies.study import runs_of

        runs = [store.run(run) for run in runs_of(store, frozen["search"]["name"])]
    else:
        runs = [store.run(run) for part in frozen["jobs"][index] for run in part["runs"]]
    return any(attempt.job["pid"] == os.getpid() for run in runs for attempt in [*run.readable_attempts()][-1:])


def failures(outcome: Mapping[str, str]) -> str | None:
    failed = [run for run, end in outcome.items() if end in ("failed", "damaged")]
    return f"{len(failed)} of {len(outcome)} runs failed: {', '.join(failed)}" if failed else None


def is_preempted() -> bool:
    """Whether SLURM told this job to end for another's sake. It starts such a job again only if it has to kill it."""
    if signal.SIGTERM not in TOLD_TO_END:
        return False
    said = scontrol("show", "job", "-o", os.environ["SLURM_JOB_ID"])
    words = dict(word.split("=", 1) for word in said.split() if "=" in word)
    return words.get("PreemptTime", "None") not in ("None", "Unknown") and words.get("JobState") == "RUNNING"


def start_again() -> None:
    """Has SLURM put this job back into the queue; it will end this process. If it will not, the next launch goes on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes at once, and shall not disturb the end
    signal.setitimer(signal.ITIMER_REAL, 0)
    scontrol("requeue", os.environ["SLURM_JOB_ID"])


def scontrol(*arguments: str) -> str:
    """Its output; what went wrong goes to the log."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=ASKS)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"scontrol {' '.join(arguments)}: {error}", file=sys.stderr, flush=True)
        return ""
    if done.returncode != 0:
        print(f"scontrol {' '.join(arguments)}: {done.stderr.strip()}", file=sys.stderr, flush=True)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
