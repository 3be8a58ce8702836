"""The scheduler: which one takes the jobs, and SLURM's part: sinfo, scontrol, sbatch, squeue, scancel.

A program that fails or does not answer gives no information; it never gives a state. submitit writes the scripts and calls
sbatch; what a job executes is `python -m sweeps.node`, which needs nothing but what was on disk before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil

from mmprompt.config import ConfigError
from mmprompt.ending import warning
from mmprompt.files import make_folder, write_once
from mmprompt.processes import lives, who
from sweeps.batch import Batch, Kind

PATIENCE = 30.0  # seconds; the commands themselves give up after MessageTimeout, 10 to 20 s
SUBMITS = 600.0  # seconds after which a launch on another host is no longer believed to be submitting
DEFAULT_ARRAY = 1001  # SLURM's own MaxArraySize, where the cluster's cannot be had
LIMITS = (  # of jobs in the queue; sbatch says which
    "Job violates accounting",
    *("AssocMaxSubmitJob", "AssocGrpSubmitJobs", "QOSMaxSubmitJob", "QOSGrpSubmitJobs"),
    "temporarily unable to accept job",
)
SILENCE = (  # of the controller
    *("Unable to contact slurm controller", "Slurm backup controller in standby mode"),
    *("Socket timed out", "Zero Bytes were transmitted", "Connection refused", "Communication connection failure"),
    "Transport endpoint is not connected",
)


class NoAnswerError(RuntimeError):
    """SLURM's controller did not say whether it took the jobs. The message is its last word."""


class LimitError(RuntimeError):
    """SLURM takes no more, or not so many, jobs of this user now. The message is sbatch's reason."""


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
    """Local processes or SLURM, and why. Raises ConfigError if SLURM was asked for, or is there, and does not answer."""
    if kind == "local":
        return "local", "cluster.kind=local"
    if kind == "auto" and "SLURM_JOB_ID" in os.environ:
        return "local", f"cluster.kind=auto: this is inside SLURM job {os.environ['SLURM_JOB_ID']}"
    answer, problem = ask("sinfo", "-h")
    if answer is not None:
        return "slurm", "cluster.kind=slurm" if kind == "slurm" else "cluster.kind=auto: sinfo answers"
    is_silent = any(word in problem for word in (*SILENCE, "did not answer"))  # a login node is no place to train on
    if kind == "slurm" or is_silent:
        raise ConfigError(f"cluster.kind={kind}, but {problem}; cluster=local runs everything here")
    return "local", f"cluster.kind=auto: {problem}"


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
    return int((config() or {}).get("MaxArraySize", DEFAULT_ARRAY))


# Submitting


def executor(folder: Path, name: str, cluster: Mapping[str, Any], environment: Mapping[str, str], code: Path) -> Any:
    """submitit's executor for jobs with these settings (`cluster` as in conf/cluster) that import the packages in `code`."""
    from submitit import SlurmExecutor

    make_folder(folder)
    made = SlurmExecutor(folder, python=cluster["python"])
    named = {key: cluster[key] for key in ("partition", "account", "qos", "constraint", "exclude")}
    gres = cluster["gres"] or (f"gpu:{cluster['gpus']}" if cluster["gpus"] else None)
    other = {"requeue": True, "reservation": cluster["reservation"], **cluster["sbatch"]}
    exports = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    # Packages are found in both, whatever the setup lines did: the folder comes before the variable, containers may hide one.
    exports.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    exports.append(f"cd {shlex.quote(str(code))}")
    made.update_parameters(
        job_name=name,
        time=cluster["time_min"],
        mem=f"{int(cluster['mem_gb'] * 1024)}MB",
        cpus_per_task=cluster["cpus"],
        srun_args=[f"--cpus-per-task={cluster['cpus']}"],  # since SLURM 22.05 srun does not take it from sbatch
        signal_delay_s=warning(cluster["time_min"]),
        wckey=None,  # else submitit's own, which a cluster may not know
        setup=["set -e", *cluster["setup"], *exports],
        additional_parameters={key: value for key, value in other.items() if value is not None},
        **{key: value for key, value in (named | {"gres": gres}).items() if value is not None},
    )
    return made


def sbatch(executor: Any, command: str, count: int, at_once: int | None, after: str | None) -> str:
    """Hands over an array of `count` jobs, at most so many at a time, that begins when array `after` has ended. Its id.

    Raises ConfigError with sbatch's reason if it refuses, LimitError if it would take fewer, NoAnswerError if nobody knows.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if count > 1:
        executor.parameters |= {"map_count": count, "array_parallelism": at_once or count}
    if after is not None:
        executor.parameters["dependency"] = f"afterany:{after}"
    try:
        with own_settings(), contextlib.redirect_stderr(io.StringIO()):  # what sbatch says is in the exception
            return str(executor._submit_command(f"{executor.python} -u -m {command}").job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1].removeprefix("sbatch: error: ")
        if any(word in str(error) for word in SILENCE) or isinstance(error, FailedSubmissionError):
            raise NoAnswerError(reason) from None
        if any(word in str(error) for word in LIMITS):
            raise LimitError(reason) from None
        raise ConfigError(f"sbatch refused the jobs: {reason}") from None


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """For sbatch: what the settings say, and not the shell's SBATCH_* variables, nor those of a job that we are inside of."""
    hidden = {key for key in os.environ if key.startswith(("SBATCH_", "SLURM_", "SRUN_")) and key != "SLURM_CONF"}
    before = {key: os.environ.pop(key) for key in hidden}
    try:
        yield
    finally:
        os.environ.update(before)


def submit(batch: Batch) -> None:
    """Hands over the jobs of a batch, as many as SLURM takes, and writes down how that ended.

    Raises ConfigError if it refuses all of them, NoAnswerError if nobody knows what it has.
    """
    cluster, total = batch.frozen["cluster"], len(batch.jobs)
    size, first, reason, before = min(max_array(), total), 0, "", None
    while first < total and size:
        count = min(size, total - first)
        try:
            job = _submit_array(batch, first, count, before)
        except LimitError as error:
            size, reason = count // 2, str(error)
            continue
        except (ConfigError, NoAnswerError) as error:  # what it took without saying so will be found by its name
            write_once(batch.end_file, _end(total - first, str(error)))
            raise
        batch.note(first, job, count)
        before = job if cluster["max_parallel"] else None  # together they keep to it
        first += count
    write_once(batch.end_file, _end(total - first, reason))


def _submit_array(batch: Batch, first: int, count: int, after: str | None) -> str:
    cluster = batch.frozen["cluster"]
    folder, code = batch.array(first), Path(batch.frozen["snapshot"])
    made = executor(folder, batch.array_name(first), cluster, batch.environment, code)
    command = f"sweeps.node {shlex.quote(str(batch.folder))} {first}"
    try:
        return sbatch(made, command, count, cluster["max_parallel"], after)
    except (LimitError, ConfigError):
        shutil.rmtree(folder, ignore_errors=True)  # nothing of it was taken
        raise


def _end(waiting: int, why: str) -> str:
    return json.dumps({"waiting": waiting, "why": why})


# Asking


@dataclass(frozen=True)
class Answer:
    """What SLURM has of the jobs of some batches. `problem`: why there is no information about some, in words."""

    jobs: Mapping[tuple[Batch, int], Job]
    unknown: frozenset[Batch]
    problem: str


def jobs(batches: Sequence[Batch]) -> Answer:
    """Asks squeue once for all of them."""
    if not batches:
        return Answer({}, frozenset(), "")
    names = {name: (batch, first) for batch in batches for first, name in batch.arrays.items()}
    unknown, problem = _elsewhere(batches)
    if not names:
        return Answer({}, unknown, problem)
    output, failure = ask("squeue", "-h", "-r", f"--name={','.join(names)}", "-o", "%j|%i|%K|%T|%N|%L|%u|%r")
    if output is None:
        return Answer({}, frozenset(batches), failure)
    found = {}
    for line in output.splitlines():
        name, identity, task, word, node, left, user, reason = line.split("|", 7)
        batch, first = names[name]
        pending = reason if word == "PENDING" and reason != "None" else ""
        number = first + (int(task) if task.isdigit() else 0)
        found[batch, number] = Job(identity, word, node, pending, left, user)
    return Answer(found, unknown, problem)


def _elsewhere(batches: Iterable[Batch]) -> tuple[frozenset[Batch], str]:
    """Those of which squeue on this machine would know nothing though they may be there, and why."""
    found, problem = set(), ""
    for batch in batches:
        here, mine = batch.frozen["slurm_cluster"], batch.frozen["user"] == who()
        settings = config() if here is not None or not mine else {}
        if settings is None:
            found.add(batch)
            problem = "scontrol does not say which cluster this is"
        elif here is not None and settings.get("ClusterName") != here:
            found.add(batch)
            problem = f"jobs were submitted to cluster {here}, and this is {settings.get('ClusterName')}"
        elif not mine and "jobs" in settings.get("PrivateData", ""):
            found.add(batch)
            problem = f"this cluster hides the jobs of {batch.frozen['user']} (PrivateData)"
    return frozenset(found), problem


def is_submitting(batch: Batch) -> bool:
    """Whether its launch may still hand over jobs. One that died may have left its sbatch, which goes on alone."""
    if batch.end is not None:
        return False
    alive = lives(batch.frozen["launcher"])
    if alive is None:
        return time.time() - batch.file.stat().st_mtime < SUBMITS
    return alive or any(
        process.info["cmdline"]
        and process.info["name"] == "sbatch"
        and str(batch.folder) in process.info["cmdline"][-1]
        for process in psutil.process_iter(["name", "cmdline"])
    )


def cancel(ids: Iterable[str]) -> list[tuple[str, str]]:
    """Of those that SLURM refuses to cancel, the reason. An id may stand for several jobs, "94_[0-1,5]"."""
    answers = {identity: ask("scancel", identity) for identity in ids}
    return [(identity, problem) for identity, (output, problem) in answers.items() if output is None]


def plain() -> dict[str, str]:
    """The environment without what changes what SLURM's commands show."""
    prefixes = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "SLURM_CLUSTERS")
    return {key: value for key, value in os.environ.items() if not key.startswith(prefixes)}


def ask(program: str, *arguments: str) -> tuple[str | None, str]:
    """Its output, or None and what went wrong."""
    if shutil.which(program) is None:
        return None, f"there is no {program} here"
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE, env=plain())
    except subprocess.TimeoutExpired:
        return None, f"{program} did not answer within {PATIENCE:g} s"
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{program} fails ({reason.split(': ', 2)[-1]})"  # without its "sinfo: error: "
    return done.stdout, ""
