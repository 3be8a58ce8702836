"""SLURM or local processes: which of them takes the jobs; and sinfo, scontrol, squeue and scancel. `submission` calls sbatch.

A program that fails or does not answer gives no information; it never gives a state. What a job executes is
`python -m sweeps.node`, which needs nothing but what was on disk before.

Jobs are ours by their name, which no other job has, or, where somebody has renamed them, by an id that we noted together with the
script that they were made from: an id alone is no proof, since a new cluster counts from 1 again.
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

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import StoreError, server_time, write_once
from mmprompt.runs.processes import is_running, who
from mmprompt.runs.records import as_json
from mmprompt.runs.store import is_number
from sweeps.jobs.arrays import commands, each
from sweeps.jobs.batch import Batch, Kind
from sweeps.jobs.submission import SILENCE, LimitError, NoAnswerError, executor, sbatch

PATIENCE = 30.0  # seconds; the commands themselves give up after MessageTimeout, 10 to 20 s
SUBMITS = 600.0  # seconds after which a launch on another host is no longer believed to be submitting
DEFAULT_ARRAY = 1001  # SLURM's own MaxArraySize, where the cluster's cannot be had
SHOWN = "%i|%T|%N|%L|%u|%r|%j|%o"  # of a job; the last two, name and script, may contain anything


class NoSlurmError(ConfigError):
    """SLURM was asked for, or is there, and does not answer. `problem` is why."""

    def __init__(self, kind: str, problem: str) -> None:
        super().__init__(f"cluster.kind={kind}, but {problem}; cluster=local runs everything here")
        self.problem = problem


class UnwrittenError(StoreError):
    """SLURM has taken the jobs with these ids, and the store could not be told. The message says why not."""

    def __init__(self, taken: Sequence[str], why: StoreError) -> None:
        super().__init__(str(why))
        self.taken = taken


@dataclass(frozen=True)
class Job:
    """A job that SLURM has, or is about to get."""

    id: str  # "300_4", of a task of an array; "300"
    word: str  # PENDING, RUNNING, COMPLETING, SUSPENDED, ...; SUBMITTING: a launch is handing it over
    node: str
    reason: str  # why it is pending
    left: str  # of its time limit, "1:02:03"
    user: str


def choose(kind: Literal["auto", "local", "slurm"]) -> tuple[Kind, str]:
    """Local processes or SLURM, and why. Raises NoSlurmError if SLURM was asked for, or is there, and does not answer."""
    if kind == "local":
        return "local", "cluster.kind=local"
    inside = os.environ.get("SLURM_JOB_ID") if kind == "auto" else None
    if inside is not None and is_on_a_node():
        return "local", f"cluster.kind=auto: this is inside SLURM job {inside}"
    answer = call("sinfo", "-h")
    if answer.output is not None:
        return "slurm", f"cluster.kind={kind}{'' if kind == 'slurm' else f': {login(inside)}'}"
    if kind == "slurm" or answer.is_silent:  # a login node is no place to train on
        raise NoSlurmError(kind, answer.problem)
    return "local", f"cluster.kind=auto: {answer.problem}"


def is_on_a_node() -> bool:
    """Of a shell inside of a job: does it run on a node of the job? That of salloc may still sit where salloc was typed."""
    if "SLURMD_NODENAME" in os.environ:
        return True
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    names, _ = ask("scontrol", "show", "hostnames", nodes) if nodes else (None, "")
    host = socket.gethostname()
    return bool({host, host.split(".")[0]}.intersection((names or "").split()))


def login(job: str | None) -> str:
    """Why a shell is a place to submit from, though it may hold a job."""
    if job is None:
        return "sinfo answers"
    return f"this shell holds SLURM job {job} but is where salloc was typed, on none of its nodes; `srun --pty bash` goes there"


@cache
def config() -> dict[str, str] | None:
    """What `scontrol show config` says. None: no information."""
    answer, _ = ask("scontrol", "show", "config")
    if answer is None:
        return None
    pairs = (line.split("=", 1) for line in answer.splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def max_array() -> int:
    """How many jobs an array may have here."""
    said = (config() or {}).get("MaxArraySize", "")
    return int(said) if is_number(said) else DEFAULT_ARRAY


# Submitting


def submit(batch: Batch) -> None:
    """Hands over the jobs of a batch, as many as SLURM takes, and writes down how that ended.

    Raises ConfigError if it refuses all of them, NoAnswerError if nobody knows what it has, UnwrittenError if it has jobs and that
    could not be written down, StoreError if it has none and their script could not be written.
    """
    ids: list[str] = []
    try:
        _submit(batch, ids)
    except StoreError as error:
        if ids:
            raise UnwrittenError(ids, error) from error
        raise


def _submit(batch: Batch, ids: list[str]) -> None:
    """`ids` gets the id of each array that SLURM takes."""
    cluster, total = batch.record["cluster"], len(batch.jobs)
    size, first, reason = min(max_array(), total), 0, ""
    while first < total and size:
        count = min(size, total - first)
        before = ids[-1] if ids and cluster["max_parallel"] else None  # together they keep to it
        try:
            ids.append(_submit_array(batch, first, count, before))
        except LimitError as error:
            size, reason = count // 2, str(error)
            continue
        except (ConfigError, NoAnswerError) as error:  # what it took without saying so will be found by its name
            write_once(batch.end_file, _end(total - first, str(error)))
            raise
        batch.note(first, ids[-1], count)
        first += count
    write_once(batch.end_file, _end(total - first, reason))


def _submit_array(batch: Batch, first: int, count: int, after: str | None) -> str:
    cluster = batch.record["cluster"]
    folder, code = batch.array(first), Path(batch.record["snapshot"])
    made = executor(folder, batch.array_name(first), cluster, batch.environment, code)
    command = f"sweeps.node {shlex.quote(str(batch.folder))} {first}"
    try:
        return sbatch(made, code, command, count, cluster["max_parallel"], after)
    except (LimitError, ConfigError):
        shutil.rmtree(folder, ignore_errors=True)  # nothing of it was taken
        raise


def _end(waiting: int, why: str) -> str:
    return as_json({"waiting": waiting, "why": why})


# Asking


@dataclass(frozen=True)
class Answer:
    """What SLURM has of the jobs of some batches. `problem`: why there is no information about some, in words."""

    jobs: Mapping[tuple[Batch, int], Job]
    unknown: frozenset[Batch]
    problem: str


def jobs(batches: Sequence[Batch]) -> Answer:
    """Asks squeue once for all of them."""
    whose = owner(batches)
    unknown, problem = _elsewhere(batches)
    if whose is None:
        return Answer({}, unknown, problem)
    # Without -r: of tasks that wait with a step between them, 0-12:2, it leaves out the last.
    output, failure = ask("squeue", "-h", *_of_users(batches), "-o", SHOWN)
    if output is None:
        return Answer({}, frozenset(batches), failure)
    found = {}
    for row in rows(output):
        pending = row.reason if row.word == "PENDING" and row.reason != "None" else ""
        for identity, place in whose(row):
            found[place] = Job(identity, row.word, row.node, pending, row.left, row.user)
    return Answer(found, unknown, problem)


Place = tuple[Batch, int]  # where a job is: its batch, and its number there


class Row(NamedTuple):
    """What squeue shows of a job, or of tasks of an array that wait, as SHOWN."""

    id: str  # "300_[0-2,5%4]"
    word: str
    node: str
    left: str
    user: str
    reason: str
    named: str  # "name|script"


def rows(output: str) -> Iterator[Row]:
    """Lines that are not as expected are left out."""
    for line in output.splitlines():
        fields = line.split("|", 6)
        if len(fields) == 7:
            yield Row(*fields)


def owner(batches: Sequence[Batch]) -> Callable[[Row], Iterator[tuple[str, Place]]] | None:
    """What tells which of our jobs a row shows, by their ids; none if it shows a stranger's. None if SLURM was never asked for
    a job of these batches."""
    arrays = [(batch, first, name) for batch in batches for first, name in batch.arrays.items()]
    names = {name: (batch, first) for batch, first, name in arrays}
    scripts = {
        f"{batch.record.get('store', batch.store.root)}/jobs/{batch.id}/{first}": (batch, first)
        for batch, first, _ in arrays
    }
    noted = cache(lambda batch: batch.job_ids)  # read only if a job was renamed

    def whose(row: Row) -> Iterator[tuple[str, Place]]:
        name, *_ = words = row.named.split("|")
        folders = (os.path.dirname("|".join(words[i:])) for i in range(1, len(words)))  # the name may hold some as well
        array = names.get(name) or next((scripts[folder] for folder in folders if folder in scripts), None)
        if array is None:
            return
        batch, first = array
        is_renamed = name not in names
        if is_renamed and row.user != batch.record["user"]:
            return
        for identity, task in each(row.id, len(batch.record["jobs"]) - first):
            if not is_renamed or noted(batch).get(first + task) == identity:
                yield identity, (batch, first + task)

    return whose if arrays else None


def _of_users(batches: Iterable[Batch]) -> list[str]:
    """For squeue: who launched them. If this machine does not know one, whom squeue would leave out, it shows everybody's jobs."""
    users = {batch.record["user"] for batch in batches}
    # root may submit in another's name
    users |= {str(batch.record["cluster"].get("sbatch", {}).get("uid", batch.record["user"])) for batch in batches}
    try:
        for user in users:
            pwd.getpwnam(user)
    except KeyError:
        return []
    return ["-u", ",".join(sorted(users))]


def _elsewhere(batches: Iterable[Batch]) -> tuple[frozenset[Batch], str]:
    """Those of which squeue on this machine would know nothing though they may be there, and why."""
    found, problem = set(), ""
    for batch in batches:
        here, mine = batch.record["slurm_cluster"], batch.record["user"] == who()
        settings = config() if here is not None or not mine else {}
        if settings is None:
            found.add(batch)
            problem = "scontrol does not say which cluster this is"
        elif here is not None and settings.get("ClusterName") != here:
            found.add(batch)
            problem = f"jobs were submitted to cluster {here}, and this is {settings.get('ClusterName')}"
        elif not mine and "jobs" in settings.get("PrivateData", ""):
            found.add(batch)
            problem = f"this cluster hides the jobs of {batch.record['user']} (PrivateData)"
    return frozenset(found), problem


def is_submitting(batch: Batch) -> bool:
    """Whether its launch may still hand over jobs. One that died may have left its sbatch, which goes on alone."""
    if batch.end is not None:
        return False
    alive = is_running(batch.record["launcher"])
    if alive is None:
        return server_time(batch.folder) - batch.file.stat().st_mtime < SUBMITS
    return alive or any(
        process.info["cmdline"]
        and process.info["name"] == "sbatch"
        and str(batch.folder) in process.info["cmdline"][-1]
        for process in psutil.process_iter(["name", "cmdline"])
    )


def cancel(ids: Sequence[str]) -> list[tuple[str, str]]:
    """Of those that SLURM refuses to cancel, the reason. An id may stand for several jobs, "94_[0-1,5]".

    Many at once, since a sweep may have hundreds of arrays; where SLURM refuses any, each by itself, for a reason of its own.
    What is cancelled already it cancels again without a word.
    """
    refused = []
    for some in commands(ids):
        if ask("scancel", *some)[0] is None:
            answers = [(identity, ask("scancel", identity)) for identity in some]
            refused += [(identity, problem) for identity, (output, problem) in answers if output is None]
    return refused


def plain() -> dict[str, str]:
    """The environment without what changes what SLURM's commands show; with what makes them show lists of tasks whole, however
    long, and, where clusters are federated, the jobs that went to another one."""
    prefixes = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS")
    left = {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}
    return left | {"SLURM_BITSTR_LEN": "0", "SQUEUE_FEDERATION": "1", "SACCT_FEDERATION": "1"}


class Output(NamedTuple):
    """What came of calling one of SLURM's programs."""

    output: str | None
    problem: str = ""  # where there is no output: why not, in words
    is_silent: bool = False  # because the controller does not answer


def call(program: str, *arguments: str) -> Output:
    if shutil.which(program) is None:
        return Output(None, f"there is no {program} here")
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=PATIENCE, env=plain())
    except subprocess.TimeoutExpired:
        return Output(None, f"{program} did not answer within {PATIENCE:g} s", True)
    if done.returncode != 0:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        problem = f"{program} fails ({reason.split(': ', 2)[-1]})"  # without its "sinfo: error: "
        return Output(None, problem, any(word in reason for word in SILENCE))
    return Output(os.fsdecode(done.stdout))  # paths and names of jobs may be any bytes


def ask(program: str, *arguments: str) -> tuple[str | None, str]:
    """Its output, or None and what went wrong."""
    said = call(program, *arguments)
    return said.output, said.problem
