"""Submits a job array: writes its script, calls sbatch and interprets sbatch's answer.

submitit only composes the script. Its own submission is not used: it takes `%` in a path for a pattern, and takes anything in
sbatch's output that looks like a job id for the id.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.runs.files import write_once
from mmprompt.runs.signals import warning
from mmprompt.settings.parsing import ConfigError

AUTHENTICATION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_")  # prefixes of environment variables
SCRIPT = "array_submission.sh"
# The output of `sbatch --parsable`: the job's id and, in a federation, the cluster.
JOB_ID = re.compile(r"(\d+)(;\S+)?", re.ASCII)
LIMITS = (  # parts of sbatch's messages when a limit on jobs in the queue is reached
    "Job violates accounting",
    *("AssocMaxSubmitJob", "AssocGrpSubmitJobs", "QOSMaxSubmitJob", "QOSGrpSubmitJobs"),
    "temporarily unable to accept job",
)
NO_ANSWER = (  # parts of the messages of SLURM's programs when the controller does not answer
    *("Unable to contact slurm controller", "Slurm backup controller in standby mode"),
    *("Socket timed out", "Zero Bytes were transmitted", "Connection refused", "Communication connection failure"),
    "Transport endpoint is not connected",
)


class NoAnswerError(RuntimeError):
    """It is unknown whether SLURM's controller accepted the jobs. The message is the last line of sbatch's output."""


class LimitError(RuntimeError):
    """SLURM accepts no more jobs of this user now, or not as many. The message is sbatch's reason."""


class RefusedError(ConfigError):
    """sbatch refused the jobs. `reason` is sbatch's message."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"sbatch refused the jobs: {reason}")
        self.reason = reason


def executor(folder: Path, name: str, cluster: Mapping[str, Any], environment: Mapping[str, str], code: Path) -> Any:
    """Returns submitit's executor for jobs that import the packages in folder `code`. `cluster`: settings as in conf/cluster."""
    from submitit import SlurmExecutor

    made = SlurmExecutor(folder, python=cluster["python"])
    named = {key: cluster[key] for key in ("partition", "account", "qos", "constraint", "exclude")}
    gres = cluster["gres"] or (f"gpu:{cluster['gpus']}" if cluster["gpus"] else None)
    options = {"requeue": True, "reservation": cluster["reservation"], **cluster["sbatch"]}
    exports = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    # Both the working folder and PYTHONPATH lead to the packages, whatever the setup lines do: a container may hide one of them.
    # Python looks into the working folder first.
    exports.append(f'export PYTHONPATH={shlex.quote(str(code))}"${{PYTHONPATH:+:$PYTHONPATH}}"')
    exports.append(f"cd {shlex.quote(str(code))}")
    made.update_parameters(
        job_name=name,
        time=cluster["time_min"],
        mem=f"{int(cluster['mem_gb'] * 1024)}MB",
        cpus_per_task=cluster["cpus"],
        signal_delay_s=warning(cluster["time_min"]),
        wckey=None,  # without this, submitit sets its own, which a cluster may not know
        setup=["set -e", *cluster["setup"], *exports],
        additional_parameters={key: value for key, value in options.items() if value is not None},
        **{key: value for key, value in (named | {"gres": gres}).items() if value is not None},
    )
    return made


def sbatch(executor: Any, code: Path, command: str, count: int, at_once: int | None, after: str | None) -> str:
    """Submits an array of `count` jobs and returns its id. The command starts in the folder `code`.

    `at_once`: how many of its jobs run at a time at most. `after`: the id of an array that must end before this one begins.

    Raises RefusedError with sbatch's reason if sbatch refuses the jobs, ConfigError if sbatch cannot be called, LimitError if SLURM
    would accept fewer jobs, NoAnswerError if it is unknown whether SLURM accepted them, and StoreError if the script cannot be
    written.
    """
    if count > 1:
        executor.parameters |= {"map_count": count, "array_parallelism": at_once or count}
    if after is not None:
        executor.parameters["dependency"] = f"afterany:{after}"
    script = Path(executor.folder) / SCRIPT
    job = "%A_%a" if count > 1 else "%j"
    write_once(script, script_text(executor, code, f"{executor.python} -u -m {command}", job))
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, env=sbatch_environment())
    except OSError as error:
        raise ConfigError(f"sbatch cannot be called: {error.strerror}") from error
    if done.returncode != 0:
        raise submission_error(done.stderr.decode(errors="replace"))
    return submitted_id(done.stdout.decode(errors="replace"))


def script_text(executor: Any, code: Path, command: str, job: str) -> str:
    """Returns the script that submitit makes of its parameters, with our own paths of the logs.

    submitit and SLURM take `%` in a path for a pattern. sbatch reads `%%` as a plain `%`. With srun, srun itself and the node may
    both replace patterns, so srun gets a path relative to the folder in which it starts. `job`: the pattern for a job's id.
    """
    logs, relative = str(executor.folder).replace("%", "%%"), os.path.relpath(executor.folder, code)
    of_job = {"output": f"{logs}/{job}_0_log.out", "error": f"{logs}/{job}_0_log.err"}
    of_task = [f"--output={relative}/{job}_%t_log.out", f"--error={relative}/{job}_%t_log.err"]
    # Since SLURM 22.05 srun does not inherit the number of CPUs from sbatch.
    srun = ["srun", "--unbuffered", *of_task, f"--cpus-per-task={executor.parameters['cpus_per_task']}"]
    executor.parameters["use_srun"] = False  # the command below contains srun already
    executor.parameters["additional_parameters"] = of_job | executor.parameters["additional_parameters"]
    return str(executor._make_submission_file_text(f"{shlex.join(srun)} {command}", ""))


def sbatch_environment() -> dict[str, str]:
    """Returns the environment for sbatch, without variables that would override the settings.

    Those are the shell's SBATCH_* variables, and the SLURM_* and SRUN_* variables of a job that this process runs in.
    """
    hidden = {key for key in os.environ if key.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    hidden -= {key for key in hidden if key.startswith(AUTHENTICATION)}
    return {key: value for key, value in os.environ.items() if key not in hidden}


def submission_error(stderr: str) -> Exception:
    """Returns the exception for what sbatch printed when it failed."""
    reason = ([line for line in stderr.splitlines() if line.strip()] or ["no reason given"])[-1]
    reason = reason.removeprefix("sbatch: error: ")
    if any(text in stderr for text in NO_ANSWER):
        return NoAnswerError(reason)
    if any(text in stderr for text in LIMITS):
        return LimitError(reason)
    return RefusedError(reason)


def submitted_id(output: str) -> str:
    """Returns the job id in sbatch's output. A program around sbatch may have printed more lines.

    Raises NoAnswerError if there is no id.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ids = [match[1] for line in lines if (match := JOB_ID.fullmatch(line))]
    if not ids:
        raise NoAnswerError(
            f"sbatch printed no job id, its last line is {lines[-1]!r}" if lines else "sbatch printed nothing"
        )
    return ids[-1]
