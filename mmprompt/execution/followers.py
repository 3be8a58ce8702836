"""The other processes of a run with several GPUs: started by the one that writes the run's files, and ended by it.

    python -m mmprompt.execution.followers    the program of a follower; its request, as JSON, comes on the standard input

A follower goes through the same training and evaluations as the leader, with its own share of the examples
(`mmprompt.data.ranks`). It writes nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from mmprompt.data.ranks import Ranks, join_group, leave_group
from mmprompt.execution.determinism import deterministic
from mmprompt.execution.evaluations import make_evaluation, published_weights
from mmprompt.execution.run_context import RunContext, load_run
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT, JobSettings
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.signals import end_when_told
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import parse
from mmprompt.training.checkpoints import Checkpoints
from mmprompt.training.train import Paused, train

DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
PATIENCE = 10.0  # seconds that a follower has after SIGTERM
MOMENT = 3.0  # seconds from the end of a follower's connections to its own end, at most


class FollowerError(RuntimeError):
    """A process of a run has ended before the others. The message says which, and the last line that it wrote."""


@contextmanager
def followers(folder: RunFolder, attempt: Attempt, settings: JobSettings, until: int | None) -> Iterator[Path | None]:
    """A context in which the followers of this process are alive; without several GPUs there are none, and it gives None.

    It gives the file where they meet (`meet`). Raises FollowerError if the block failed after one of them had.
    """
    if settings.gpus < 2:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mmprompt-ranks-") as place:
        meeting, logs = Path(place, "meeting"), [Path(place, f"{rank}.log") for rank in range(1, settings.gpus)]
        request = {
            "store": str(folder.root),
            "run": folder.id,
            "attempt": attempt.number,
            "settings": settings.model_dump(mode="json"),
            "until": until,
            "meeting": str(meeting),
        }
        processes = [start(log, request | {"rank": rank}) for rank, log in enumerate(logs, start=1)]
        try:
            yield meeting
        except RuntimeError as error:
            if type(error) is RuntimeError or isinstance(
                error, distributed.DistError
            ):  # not of ours, nor out of memory
                for rank, (process, log) in enumerate(zip(processes, logs, strict=True), start=1):
                    if has_failed(process):
                        text = log.read_text(errors="replace").strip() or f"exit code {process.returncode}"
                        print(text, file=sys.stderr, flush=True)
                        last = text.splitlines()[-1]
                        raise FollowerError(f"process {rank} of 0 to {settings.gpus - 1} ended: {last}") from error
            raise
        finally:
            end(processes)
            leave_group()


def start(log: Path, request: dict[str, Any]) -> subprocess.Popen[str]:
    """Starts a follower, which writes to this file. It dies with this process."""
    parent = os.getpid()

    def prepare() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the leader saves the state when SLURM sends this one
        ctypes.CDLL(None).prctl(DEATH_OF_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | ON_THIS_NODE,
            preexec_fn=prepare,
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    return process


# The processes talk through this node's own network device.
ON_THIS_NODE = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def meet(run: RunContext, meeting: Path | None) -> None:
    """Waits until all processes of the run are there."""
    if meeting is not None:
        os.environ.update(ON_THIS_NODE)
        join_group(run.ranks, str(meeting), run.device)


def has_failed(process: subprocess.Popen[str]) -> bool:
    """Whether a follower has failed. Its connections are closed a moment before it has ended."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(MOMENT) != 0
    return False


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def follow(request: dict[str, Any]) -> None:
    """The program of a follower."""
    folder = Store(Path(request["store"])).run(request["run"])
    attempt, settings = Attempt(folder, request["attempt"]), parse(JobSettings, request["settings"])
    run = load_run(folder, attempt, settings, Ranks(request["rank"], settings.gpus))
    meet(run, Path(request["meeting"]))
    config, tuned = run.config, run.tuned
    if attempt.evaluates:
        result = folder.result()
        assert result is not None
        tuned.load_published_state(published_weights(folder, result))
        tuned.eval()
    else:
        splits = {name: run.data.split(name) for name in ("train", *config.task.splits)}
        views = {name: run.view(split) for name, split in splits.items()}
        torch.manual_seed(config.seed)
        checkpoints = Checkpoints(attempt, None)  # of which a follower uses none
        try:
            train(config, tuned, splits, views, checkpoints, nothing, nothing, request["until"], run.ranks, run.speed)
        except Paused:
            return
    while (wanted := run.ranks.same(None)) is not None:
        make_evaluation(run, wanted, nothing)


def nothing(*of: object) -> None:
    """Logs and reports nothing: the leader does."""


if __name__ == "__main__":
    end_when_told()
    request = json.load(sys.stdin)
    with deterministic(request["settings"]["deterministic"]):
        follow(request)
    leave_group()
