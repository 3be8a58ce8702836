"""The scheduler: which one takes the jobs, and SLURM's part: sinfo, sbatch, squeue.

A program that fails or does not answer gives no information; it never gives a state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Literal

from mmprompt.config import ConfigError
from sweeps.batch import Batch, Kind
from sweeps.node import work

PATIENCE = 20.0  # seconds; the commands themselves wait about as long for a controller


def choose(kind: Literal["auto", "local", "slurm"]) -> tuple[Kind, str]:
    """Local processes or SLURM, and why. Raises ConfigError if SLURM was asked for and does not answer."""
    if kind == "local":
        return "local", "cluster.kind=local"
    if kind == "auto" and "SLURM_JOB_ID" in os.environ:
        return "local", f"cluster.kind=auto: this is inside SLURM job {os.environ['SLURM_JOB_ID']}"
    answer, problem = _ask("sinfo", "-h")
    if answer is not None:
        return "slurm", "cluster.kind=slurm" if kind == "slurm" else "cluster.kind=auto: sinfo answers"
    if kind == "slurm":
        raise ConfigError(f"cluster.kind=slurm, but {problem}; cluster=local runs everything here")
    return "local", f"cluster.kind=auto: {problem}"


def submit(batch: Batch) -> str:
    """All jobs of the batch as one array; SLURM's id of it. Raises ConfigError with sbatch's reason if it refuses."""
    from submitit import SlurmExecutor
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    cluster, count = batch.frozen["cluster"], len(batch.jobs)
    executor = SlurmExecutor(batch.folder)
    executor.update_parameters(
        job_name=batch.job_name,
        time=cluster["time_min"],
        mem=f"{int(cluster['mem_gb'] * 1024)}MB",
        cpus_per_task=cluster["cpus"],
        srun_args=[f"--cpus-per-task={cluster['cpus']}"],  # since SLURM 22.05 srun does not take it from sbatch
        array_parallelism=cluster["max_parallel"] or count,
        setup=["set -e", *(f"export {name}={value}" for name, value in batch.environment.items())],
        **{key: cluster[key] for key in ("partition", "account", "qos") if cluster[key] is not None},
        **({"gres": f"gpu:{cluster['gpus']}"} if cluster["gpus"] else {}),
    )
    try:
        with contextlib.chdir(batch.frozen["snapshot"]):  # `python -m` imports from the folder it starts in
            jobs = executor.map_array(work, [str(batch.folder)] * count, range(count))
    except (FailedJobError, FailedSubmissionError) as error:
        reason = [line for line in str(error).splitlines() if line.strip()][-1]
        raise ConfigError(f"sbatch refused the jobs: {reason}") from None
    return str(jobs[0].job_id).split("_")[0]


def jobs(batches: Sequence[Batch]) -> dict[tuple[Batch, int], str] | None:
    """The jobs of these batches that SLURM has: (batch, number) -> PENDING, RUNNING, ...; None: no information."""
    if not batches:
        return {}
    names = {batch.job_name: batch for batch in batches}
    answer, _ = _ask("squeue", "-h", "-r", f"--name={','.join(names)}", "-o", "%j %K %T")
    if answer is None:
        return None
    found = {}
    for line in answer.splitlines():
        name, index, state = line.split()
        found[names[name], int(index) if index.isdigit() else 0] = state  # submitit makes no array of a single job
    return found


def _ask(program: str, *arguments: str) -> tuple[str | None, str]:
    """Its output, or None and what went wrong."""
    if shutil.which(program) is None:
        return None, f"there is no {program} here"
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return None, f"{program} did not answer within {PATIENCE:g} s"
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return None, f"{program} fails ({reason.split(': ', 2)[-1]})"  # without its "sinfo: error: "
    return done.stdout, ""
