"""Accounts: what SLURM remembers of jobs that ended. Its accounting does so for ever, its controller for some minutes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sweeps.jobs.arrays import array_of, each, lists
from sweeps.jobs.batch import Batch
from sweeps.jobs.slurm import ask

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
    of its array are.
    """
    arrays = {array_of(identity): batch for identity, batch in jobs.items()}
    said = dict(records(accounted(arrays), arrays))
    unknown = {job for job in jobs if job not in said or said[job].state in NOT_OVER}
    now = records(remembered(map(array_of, unknown)), arrays)
    said |= {job: one for job, one in now if job in unknown or job not in said}
    known = set(map(array_of, said))
    forgotten = {job: Ended("", "", "") for job in jobs if job not in said and array_of(job) in known}
    return {job: one for job, one in (said | forgotten).items() if job in jobs and one.state not in NOT_OVER}


def accounted(arrays: Iterable[str]) -> Iterator[str]:
    """What sacct says of them."""
    for some in lists(arrays):
        for script in (",SubmitLine", ""):  # which it cannot show before SLURM 20.11
            fields = f"JobID,State,ExitCode,Start,JobName{script}"
            output, problem = ask("sacct", "-n", "-X", "-P", "-D", "-o", fields, "-j", some)
            if "Invalid field" not in problem:
                break
        yield from (output or "").splitlines()


def remembered(arrays: Iterable[str]) -> Iterator[str]:
    """What the controller does."""
    for some in lists(arrays):
        output, _ = ask("squeue", "-h", "-t", "all", "-o", "%i|%T||%S|%j|%o", "-j", some)
        yield from (output or "").splitlines()


def records(lines: Iterable[str], arrays: Mapping[str, Batch]) -> Iterator[tuple[str, Ended]]:
    """Lines of job, state, exit code, start, and then name and script; tasks that never began are one line, `300_[0-2,5%4]`.

    What is not as expected is left out, and so are strangers' jobs: a new cluster counts from 1 again.
    """
    for fields in (line.split("|", 4) for line in lines):
        batch = arrays.get(array_of(fields[0]))
        if batch and len(fields) == 5 and is_of(batch, fields[4]):
            for job, _ in each(fields[0], len(batch.record["jobs"])):
                yield job, Ended(*fields[1:4])


def is_of(batch: Batch, named: str) -> bool:
    """Whether a job is of this batch, by its name; by its script, should somebody have renamed it."""
    return named.startswith(f"{batch.job_name}.") or f"{batch.record['store']}/jobs/{batch.id}/" in named
