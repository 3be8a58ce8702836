"""What SLURM knows about jobs that have ended: from its accounting, and for some minutes from its controller."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sweeps.jobs.arrays import array_of, comma_lists, jobs_of
from sweeps.jobs.batch import Batch
from sweeps.jobs.slurm import ask

NOT_OVER = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED")  # or the record is out of date


@dataclass(frozen=True)
class EndedJob:
    """The last execution of a job, with the values that SLURM reports."""

    state: str  # COMPLETED, FAILED, TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED, "CANCELLED by 1000", ...
    exit: str  # "1:0": exit code, signal; "" where only the controller knows the job
    start: str


def ended_jobs(jobs: Mapping[str, Batch]) -> dict[str, EndedJob]:
    """Returns the last execution of those of these jobs that have ended, by id.

    Asks sacct once, and then squeue once about the jobs that sacct does not know. Neither lists a task that was cancelled, alone
    of its array, before it began: it gets the state "" if another task of its array is listed.
    """
    arrays = {array_of(identity): batch for identity, batch in jobs.items()}
    executions = dict(records(sacct_lines(arrays), arrays))
    unknown = {job for job in jobs if job not in executions or executions[job].state in NOT_OVER}
    from_squeue = records(squeue_lines(map(array_of, unknown)), arrays)
    executions |= {job: last for job, last in from_squeue if job in unknown or job not in executions}
    known_arrays = set(map(array_of, executions))
    unlisted = {job: EndedJob("", "", "") for job in jobs if job not in executions and array_of(job) in known_arrays}
    return {job: last for job, last in (executions | unlisted).items() if job in jobs and last.state not in NOT_OVER}


def sacct_lines(arrays: Iterable[str]) -> Iterator[str]:
    """Yields the lines that sacct prints about these arrays."""
    for ids in comma_lists(arrays):
        for script in (",SubmitLine", ""):  # sacct does not know SubmitLine before SLURM 20.11
            fields = f"JobID,State,ExitCode,Start,JobName{script}"
            output, problem = ask("sacct", "-n", "-X", "-P", "-D", "-o", fields, "-j", ids)
            if "Invalid field" not in problem:
                break
        yield from (output or "").splitlines()


def squeue_lines(arrays: Iterable[str]) -> Iterator[str]:
    """Yields the lines that squeue prints about these arrays, from the controller's memory, with the same fields as sacct's."""
    for ids in comma_lists(arrays):
        output, _ = ask("squeue", "-h", "-t", "all", "-o", "%i|%T||%S|%j|%o", "-j", ids)
        yield from (output or "").splitlines()


def records(lines: Iterable[str], arrays: Mapping[str, Batch]) -> Iterator[tuple[str, EndedJob]]:
    """Yields each job id with its execution, from lines of job, state, exit code, start, and then name and script.

    Tasks that never began share one line, with an id like `300_[0-2,5%4]`. Lines of any other form are left out. So are jobs of
    other batches or users: a new cluster counts its jobs from 1 again, so an id alone is no proof.
    """
    for fields in (line.split("|", 4) for line in lines):
        batch = arrays.get(array_of(fields[0]))
        if batch and len(fields) == 5 and belongs_to(batch, fields[4]):
            for job, _ in jobs_of(fields[0], len(batch.record["jobs"])):
                yield job, EndedJob(*fields[1:4])


def belongs_to(batch: Batch, name_and_script: str) -> bool:
    """Whether a job belongs to this batch: its name says so, or, if it was renamed, the path of its script."""
    folder = f"{batch.record['store']}/jobs/{batch.id}/"
    return name_and_script.startswith(f"{batch.job_name}.") or folder in name_and_script
