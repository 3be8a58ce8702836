"""A submission: the script of a job array, and what sbatch says to it.

submitit composes the script, and no more: it takes `%` in a path for a pattern, and for an id whatever looks like one in what is
printed around sbatch.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import write_once
from mmprompt.runs.signals import warning

AUTHENTICATION = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_")  # variables, by how they begin
SCRIPT = "array_submission.sh"
TAKEN = re.compile(r"(\d+)(;\S+)?", re.ASCII)  # what `sbatch --parsable` says: the id, and in a federation the cluster
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


class RefusedError(ConfigError):
    """sbatch refused the jobs. `reason` is its own word."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"sbatch refused the jobs: {reason}")
        self.reason = reason


def executor(folder: Path, name: str, cluster: Mapping[str, Any], environment: Mapping[str, str], code: Path) -> Any:
    """submitit's executor for jobs with these settings (`cluster` as in conf/cluster) that import the packages in `code`."""
    from submitit import SlurmExecutor

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
        signal_delay_s=warning(cluster["time_min"]),
        wckey=None,  # else submitit's own, which a cluster may not know
        setup=["set -e", *cluster["setup"], *exports],
        additional_parameters={key: value for key, value in other.items() if value is not None},
        **{key: value for key, value in (named | {"gres": gres}).items() if value is not None},
    )
    return made


def sbatch(executor: Any, code: Path, command: str, count: int, at_once: int | None, after: str | None) -> str:
    """Hands over an array of `count` jobs, at most so many at a time, that begins when array `after` has ended. Its id. The
    command starts in the folder `code`.

    Raises ConfigError with sbatch's reason if it refuses, LimitError if it would take fewer, NoAnswerError if nobody knows,
    StoreError if the script cannot be written.
    """
    if count > 1:
        executor.parameters |= {"map_count": count, "array_parallelism": at_once or count}
    if after is not None:
        executor.parameters["dependency"] = f"afterany:{after}"
    script = Path(executor.folder) / SCRIPT
    job = "%A_%a" if count > 1 else "%j"
    write_once(script, script_text(executor, code, f"{executor.python} -u -m {command}", job))
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, env=own_settings())
    except OSError as error:
        raise ConfigError(f"sbatch cannot be called: {error.strerror}") from error
    if done.returncode != 0:
        raise refusal(done.stderr.decode(errors="replace"))
    return taken(done.stdout.decode(errors="replace"))


def script_text(executor: Any, code: Path, command: str, job: str) -> str:
    """What submitit makes of its parameters, but for where the logs are: `%` in a path is a pattern to it and to SLURM.

    `job`: the pattern that stands for a job's id. To sbatch `%%` is a character; srun and the node may take turns at replacing
    it, so that srun hears only of the way from where it starts.
    """
    logs, way = str(executor.folder).replace("%", "%%"), os.path.relpath(executor.folder, code)
    of_job = {"output": f"{logs}/{job}_0_log.out", "error": f"{logs}/{job}_0_log.err"}
    of_task = [f"--output={way}/{job}_%t_log.out", f"--error={way}/{job}_%t_log.err"]
    # since SLURM 22.05 srun does not take the number of CPUs from sbatch
    srun = ["srun", "--unbuffered", *of_task, f"--cpus-per-task={executor.parameters['cpus_per_task']}"]
    executor.parameters["use_srun"] = False  # but this one
    executor.parameters["additional_parameters"] = of_job | executor.parameters["additional_parameters"]
    return str(executor._make_submission_file_text(f"{shlex.join(srun)} {command}", ""))


def own_settings() -> dict[str, str]:
    """The environment for sbatch: what the settings say, and not the shell's SBATCH_* variables, nor those of a job that we are
    inside of."""
    hidden = {key for key in os.environ if key.startswith(("SBATCH_", "SLURM_", "SRUN_"))}
    hidden -= {key for key in hidden if key.startswith(AUTHENTICATION)}
    return {key: value for key, value in os.environ.items() if key not in hidden}


def refusal(said: str) -> Exception:
    """The error that tells what sbatch said when it failed."""
    reason = ([line for line in said.splitlines() if line.strip()] or ["no reason given"])[-1]
    reason = reason.removeprefix("sbatch: error: ")
    if any(word in said for word in SILENCE):
        return NoAnswerError(reason)
    if any(word in said for word in LIMITS):
        return LimitError(reason)
    return RefusedError(reason)


def taken(said: str) -> str:
    """The id in what sbatch printed. A program around it may have printed more. Raises NoAnswerError if there is none."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    found = [match[1] for line in lines if (match := TAKEN.fullmatch(line))]
    if not found:
        raise NoAnswerError(
            f"sbatch printed no job id, its last line is {lines[-1]!r}" if lines else "sbatch printed nothing"
        )
    return found[-1]
