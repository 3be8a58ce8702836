"""Chooses between SLURM and local processes, submits batches, and calls sinfo, scontrol, squeue and scancel.

The module `submission` calls sbatch. A program that fails or does not answer gives no information; it never gives a state. A job
executes `python -m sweeps.node`, which needs nothing but the files written before submission.

Our jobs are recognised by their name, which no other job has. A renamed job is recognised by its script together with the id that
was recorded at submission. An id alone is no proof, since a new cluster counts its jobs from 1 again.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import psutil

from mmprompt.runs.files import StoreError, is_number, server_time, write_once
from mmprompt.runs.processes import is_running, who
from mmprompt.runs.records import as_json
from mmprompt.settings.parsing import ConfigError
from sweeps.jobs.arrays import argument_lists, jobs_of
from sweeps.jobs.batch import Batch, Kind
from sweeps.jobs.submission import NO_ANSWER, LimitError, NoAnswerError, executor, sbatch

PATIENCE = 30.0  # seconds; the commands themselves give up after MessageTimeout, 10 to 20 s
SUBMITS = 600.0  # seconds after which a launch on another host is assumed to have ended its submission
DEFAULT_ARRAY = 1001  # SLURM's default of MaxArraySize, used if the cluster's value is unknown
SHOWN = "%i|%T|%N|%L|%u|%r|%j|%o"  # squeue's fields of a job; the last two, name and script, may contain any character


class NoSlurmError(ConfigError):
    """The settings ask for SLURM, or it is installed, and it does not answer. `problem`: why not."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"cluster.kind={kind}, but {problem}; cluster=local runs everything here")
        self.problem = problem


class UnwrittenError(StoreError):
    """SLURM accepted the arrays with the ids `taken`, but writing that into the store failed. The message says why."""

    def __init__(self, taken: Sequence[str], why: StoreError) -> None:
        super().__init__(str(why))
        self.taken = taken


@dataclass(frozen=True)
class Job:
    """A job that SLURM lists, or that a launch is about to submit."""

    id: str  # "300_4" for a task of an array, "300" for a single job
    state: str  # SLURM's: PENDING, RUNNING, COMPLETING, SUSPENDED, ...; ours: SUBMITTING, while a launch submits it
    node: str
    reason: str  # why it is pending
    left: str  # time left before its time limit, "1:02:03"
    user: str


def choose(kind: Literal["auto", "local", "slurm"]) -> tuple[Kind, str]:
    """Returns "local" or "slurm", and the reason for the choice.

    Raises NoSlurmError if SLURM does not answer although `kind` is "slurm" or SLURM is installed.
    """
    if kind == "local":
        return "local", "cluster.kind=local"
    inside = os.environ.get("SLURM_JOB_ID") if kind == "auto" else None
    if inside is not None and is_on_node_of_its_job():
        return "local", f"cluster.kind=auto: this is inside SLURM job {inside}"
    answer = call("sinfo", "-h")
    if answer.output is not None:
        return "slurm", f"cluster.kind={kind}{'' if kind == 'slurm' else f': {why_not_on_node(inside)}'}"
    if kind == "slurm" or answer.is_silent:  # this may be a login node, where nothing should be trained
        raise NoSlurmError(kind, answer.problem)
    return "local", f"cluster.kind=auto: {answer.problem}"


def is_on_node_of_its_job() -> bool:
    """Whether this process, which belongs to a SLURM job, runs on a node of that job.

    A shell that salloc started belongs to a job and may still run on the machine where salloc was typed.
    """
    if "SLURMD_NODENAME" in os.environ:
        return True
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    names, _ = ask("scontrol", "show", "hostnames", nodes) if nodes else (None, "")
    host = socket.gethostname()
    return bool({host, host.split(".")[0]}.intersection((names or "").split()))


def why_not_on_node(job: str | None) -> str:
    """Returns the reason why jobs are submitted from this shell. `job`: the SLURM job that the shell belongs to, if any."""
    if job is None:
        return "sinfo answers"
    return f"this shell holds SLURM job {job} but is where salloc was typed, on none of its nodes; `srun --pty bash` goes there"


@cache
def config() -> dict[str, str] | None:
    """Returns the output of `scontrol show config`, value by key. None: no information."""
    answer, _ = ask("scontrol", "show", "config")
    if answer is None:
        return None
    pairs = (line.split("=", 1) for line in answer.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def max_array() -> int:
    """Returns the largest number of jobs that an array may have on this cluster."""
    value = (config() or {}).get("MaxArraySize", "")
    return int(value) if is_number(value) else DEFAULT_ARRAY


# Submitting


def submit(batch: Batch) -> None:
    """Submits the jobs of a batch, as many as SLURM accepts, and writes down how the submission ended.

    Raises ConfigError if SLURM refuses the jobs, NoAnswerError if it is unknown which jobs it accepted, UnwrittenError if it
    accepted jobs and writing that down failed, and StoreError if it accepted none because their script could not be written.
    """
    ids: list[str] = []
    try:
        _submit(batch, ids)
    except StoreError as error:
        if ids:
            raise UnwrittenError(ids, error) from error
        raise


def _submit(batch: Batch, ids: list[str]) -> None:
    """Submits the batch's arrays one after another. The id of each array that SLURM accepts is appended to `ids`."""
    cluster, total = batch.record["cluster"], len(batch.jobs)
    size, first, reason = min(max_array(), total), 0, ""
    while first < total and size:
        count = min(size, total - first)
        before = ids[-1] if ids and cluster["max_parallel"] else None  # one array at a time, so the limit holds for all
        try:
            ids.append(_submit_array(batch, first, count, before))
        except LimitError as error:
            size, reason = count // 2, str(error)
            continue
        except (ConfigError, NoAnswerError) as error:  # jobs that it accepted without an answer are found by name
            write_once(batch.end_file, _end(total - first, str(error)))
            raise
        batch.record_submission(first, ids[-1], count)
        first += count
    write_once(batch.end_file, _end(total - first, reason))


def _submit_array(batch: Batch, first: int, count: int, after: str | None) -> str:
    cluster = batch.record["cluster"]
    folder, code = batch.array(first), Path(batch.record["snapshot"])
    job_executor = executor(folder, batch.array_name(first), cluster, batch.environment, code)
    command = f"sweeps.node {shlex.quote(str(batch.folder))} {first}"
    try:
        return sbatch(job_executor, code, command, count, cluster["max_parallel"], after)
    except (LimitError, ConfigError):
        shutil.rmtree(folder, ignore_errors=True)  # SLURM accepted no job of it
        raise


def _end(waiting: int, why: str) -> str:
    return as_json({"waiting": waiting, "why": why})


# Asking


@dataclass(frozen=True)
class Answer:
    """The jobs of some batches that SLURM lists."""

    jobs: Mapping[tuple[Batch, int], Job]  # by batch and number
    unknown: frozenset[Batch]  # batches about which there is no information
    problem: str  # the reason why there is none, as a sentence for users


def jobs(batches: Sequence[Batch]) -> Answer:
    """Returns the jobs of these batches that are in the queue, from a single call of squeue."""
    find_jobs = job_finder(batches)
    unknown, problem = _without_information(batches)
    if find_jobs is None:
        return Answer({}, unknown, problem)
    # Not with -r: then squeue leaves out the last of waiting tasks that have a step between them, such as 0-12:2.
    output, failure = ask("squeue", "-h", *_of_users(batches), "-o", SHOWN)
    if output is None:
        return Answer({}, frozenset(batches), failure)
    listed = {}
    for row in squeue_rows(output):
        pending = row.reason if row.state == "PENDING" and row.reason != "None" else ""
        for identity, place in find_jobs(row):
            listed[place] = Job(identity, row.state, row.node, pending, row.left, row.user)
    return Answer(listed, unknown, problem)


Place = tuple[Batch, int]  # a job's batch, and its number there


class Row(NamedTuple):
    """A line of squeue with the fields of SHOWN: one job, or the waiting tasks of an array."""

    id: str  # "300_[0-2,5%4]"
    state: str
    node: str
    left: str
    user: str
    reason: str
    named: str  # "name|script"


def squeue_rows(output: str) -> Iterator[Row]:
    """Yields the rows in squeue's output. Lines of any other form are left out."""
    for line in output.splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7:
            yield Row(*fields)


def job_finder(batches: Sequence[Batch]) -> Callable[[Row], Iterator[tuple[str, Place]]] | None:
    """Returns a function that yields the id and the place of each job of these batches that a row shows.

    It yields nothing for rows of other jobs. Returns None if no job of these batches was ever submitted to SLURM.
    """
    arrays = [(batch, first, name) for batch in batches for first, name in batch.arrays.items()]
    names = {name: (batch, first) for batch, first, name in arrays}
    scripts = {
        f"{batch.record.get('store', batch.store.root)}/jobs/{batch.id}/{first}": (batch, first)
        for batch, first, _ in arrays
    }
    recorded_ids = cache(lambda batch: batch.job_ids)  # read only if a job was renamed

    def find_jobs(row: Row) -> Iterator[tuple[str, Place]]:
        name, *_ = parts = row.named.split("|")
        folders = (os.path.dirname("|".join(parts[i:])) for i in range(1, len(parts)))  # the name may contain | too
        array = names.get(name) or next((scripts[folder] for folder in folders if folder in scripts), None)
        if array is None:
            return
        batch, first = array
        is_renamed = name not in names
        if is_renamed and row.user != batch.record["user"]:
            return
        for identity, task in jobs_of(row.id, len(batch.record["jobs"]) - first):
            if not is_renamed or recorded_ids(batch).get(first + task) == identity:
                yield identity, (batch, first + task)

    return find_jobs if arrays else None


def _of_users(batches: Iterable[Batch]) -> list[str]:
    """Returns squeue's option for the users who launched these batches.

    Empty, for the jobs of all users, if this machine does not know one of them: squeue would leave out that user's jobs.
    """
    users = {batch.record["user"] for batch in batches}
    # root may submit in another user's name
    users |= {str(batch.record["cluster"].get("sbatch", {}).get("uid", batch.record["user"])) for batch in batches}
    try:
        for user in users:
            pwd.getpwnam(user)
    except KeyError:
        return []
    return ["-u", ",".join(sorted(users))]


def _without_information(batches: Iterable[Batch]) -> tuple[frozenset[Batch], str]:
    """Returns the batches whose jobs squeue on this machine would not show even if they exist, and the reason."""
    hidden, problem = set(), ""
    for batch in batches:
        cluster, is_mine = batch.record["slurm_cluster"], batch.record["user"] == who()
        settings = config() if cluster is not None or not is_mine else {}
        if settings is None:
            hidden.add(batch)
            problem = "scontrol does not say which cluster this is"
        elif cluster is not None and settings.get("ClusterName") != cluster:
            hidden.add(batch)
            problem = f"jobs were submitted to cluster {cluster}, and this is {settings.get('ClusterName')}"
        elif not is_mine and "jobs" in settings.get("PrivateData", ""):
            hidden.add(batch)
            problem = f"this cluster hides the jobs of {batch.record['user']} (PrivateData)"
    return frozenset(hidden), problem


def is_submitting(batch: Batch) -> bool:
    """Whether the batch's launch may still submit jobs. A launch that died may have left an sbatch process that goes on alone."""
    if batch.end is not None:
        return False
    launcher_is_running = is_running(batch.record["launcher"])
    if launcher_is_running is None:
        return server_time(batch.folder) - batch.file.stat().st_mtime < SUBMITS
    return launcher_is_running or any(
        process.info["cmdline"]
        and process.info["name"] == "sbatch"
        and str(batch.folder) in process.info["cmdline"][-1]
        for process in psutil.process_iter(["name", "cmdline"])
    )


def cancel(ids: Sequence[str]) -> list[tuple[str, str]]:
    """Cancels jobs and returns the ids that SLURM refuses to cancel, each with SLURM's reason.

    An id may stand for several jobs, "94_[0-1,5]". Many ids go to one scancel, since a sweep may have hundreds of arrays. If SLURM
    refuses any of them, each is cancelled by itself, to get its own reason. Cancelling a job twice is no error.
    """
    refused = []
    for arguments in argument_lists(ids):
        if ask("scancel", *arguments)[0] is None:
            answers = [(identity, ask("scancel", identity)) for identity in arguments]
            refused += [(identity, problem) for identity, (output, problem) in answers if output is None]
    return refused


def command_environment() -> dict[str, str]:
    """Returns the environment for SLURM's commands.

    It lacks the variables that change their output. It has those that make them print lists of tasks in full, and, in a federation
    of clusters, show jobs that went to another cluster.
    """
    prefixes = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return environment | {"SLURM_BITSTR_LEN": "0", "SQUEUE_FEDERATION": "1", "SACCT_FEDERATION": "1"}


class Output(NamedTuple):
    """The outcome of calling one of SLURM's programs."""

    output: str | None
    problem: str = ""  # if there is no output: the reason, as a sentence for users
    is_silent: bool = False  # whether the reason is that the controller does not answer


def call(program: str, *arguments: str) -> Output:
    """Calls one of SLURM's programs. A program that is missing, fails or takes longer than `PATIENCE` gives no output."""
    if shutil.which(program) is None:
        return Output(None, f"there is no {program} here")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=PATIENCE, env=command_environment())
    except subprocess.TimeoutExpired:
        return Output(None, f"{program} did not answer within {PATIENCE:g} s", True)
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        problem = f"{program} fails ({reason.split(': ', 2)[-1]})"  # without its "sinfo: error: "
        return Output(None, problem, any(word in reason for word in NO_ANSWER))
    return Output(os.fsdecode(done.stdout))  # paths and names of jobs may be any bytes


def ask(program: str, *arguments: str) -> tuple[str | None, str]:
    """Calls one of SLURM's programs. Returns its output and "", or None and the problem."""
    answer = call(program, *arguments)
    return answer.output, answer.problem
