"""Accounts: what SLURM remembers of jobs that ended. Its accounting does so for ever, its controller for some minutes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sweeps.batch import Batch
from sweeps.scheduler import ask

NOT_OVER = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED")  # or a record that is behind


@dataclass(frozen=True)
class Ended:
    """The last execution of a job, in SLURM's words."""

    state: str  # COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED, "CANCELLED by 1000", ...
    exit: str  # "1:0": exit code, signal; nothing where only the controller knows it
    start: str


def ended(jobs: Mapping[str, Batch]) -> dict[str, Ended]:
    """What is known of these jobs, by id: asks sacct once, and squeue once about those that it does not know.

    A task that was cancelled before it began, alone out of its array, is remembered by neither: it has no state, "", if others
    of its array are. A job is ours by its name: a new cluster counts from 1 again.
    """
    arrays = {identity.split("_")[0]: batch for identity, batch in jobs.items()}
    if not arrays:
        return {}
    fields = "JobID,JobName,State,ExitCode,Start"
    output, _ = ask("sacct", "-n", "-X", "-P", "-D", "-o", fields, "-j", ",".join(sorted(arrays)))
    said = dict(records(output or "", arrays))
    unknown = {job for job in jobs if job not in said or said[job].state in NOT_OVER}
    if unknown:
        asked = ",".join(sorted({job.split("_")[0] for job in unknown}))
        output, _ = ask("squeue", "-h", "-r", "-t", "all", "-o", "%i|%j|%T||%S", "-j", asked)
        said |= {job: one for job, one in records(output or "", arrays) if job in unknown or job not in said}
    known = {job.split("_")[0] for job in said}
    forgotten = {job: Ended("", "", "") for job in jobs if job not in said and job.split("_")[0] in known}
    return {job: one for job, one in (said | forgotten).items() if job in jobs and one.state not in NOT_OVER}


def records(output: str, arrays: Mapping[str, Batch]) -> Iterator[tuple[str, Ended]]:
    """Lines of job, name, state, exit code and start; tasks that never began are one line, `300_[0-2,5%4]`."""
    for line in output.splitlines():
        identity, name, *rest = line.split("|")
        array, _, tasks = identity.partition("_")
        if array in arrays and name.startswith(f"{arrays[array].job_name}."):
            state, code, start = rest
            for task in numbers(tasks.strip("[]").split("%")[0]) if tasks else [""]:
                yield f"{array}_{task}" if task else array, Ended(state, code, start)


def numbers(tasks: str) -> Iterator[str]:
    """`0-2,5` as numbers."""
    for part in tasks.split(","):
        first, _, last = part.partition("-")
        yield from map(str, range(int(first), int(last or first) + 1))
