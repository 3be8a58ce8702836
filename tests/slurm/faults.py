"""A sweep in a store of its own on the test cluster, and the faults that can hit its jobs, each as a function.

For a fault in the middle of a run, the run is held: its process is stopped (SIGSTOP) as soon as it has written a checkpoint. This
works under any load of the machine, and a held run uses no CPU time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from attempts import error_of
from cluster import Cluster

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `make chaos`; pytest has it already

import patience
from patience import printed_by

from analysis.records.histories import history_frame
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_record import read_record

STEPS = 60  # a second on one core
SETTINGS = [
    "task=micro_grounding",
    "prompt.length=4",
    "optim.batch_size=4",
    "optim.micro_batch=4",
    f"optim.steps={STEPS}",
]
SETTINGS += ["task.data.train=8", "task.data.val=8", "task.data.test=8", "optim.validate_every=20", "tracking=offline"]
PLACE = ["cluster=slurm", "cluster.mem_gb=0.9", "cluster.checkpoint_every=5", "cluster.runs_per_job=1"]
HELD = "cluster.partition=later"  # jobs wait there until `let_go`
CLOCK = ["_timestamp", "_runtime"]  # columns of a W&B history that no two runs share


OVER = threading.Event()  # the tests are over, and every wait fails


def until(condition: Callable[[], Any], what: str, of: subprocess.Popen[Any] | None = None, often: bool = False) -> Any:
    """As `patience.until`; fails as well when the tests are over."""
    return patience.until(condition, what, of, OVER.is_set, often)


@dataclass
class Sweep:
    """`python -m sweeps` on one store, as a user calls it from another folder."""

    folder: Path
    cluster: Cluster
    settings: Sequence[str] = ()  # beside SETTINGS and PLACE
    seeds: Sequence[int] = (1,)
    root: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs")

    @property
    def env(self) -> dict[str, str]:
        ours = {"SLURM_CONF": str(self.cluster.conf), "MMPROMPT_FAKE_GPUS": "1", "PYTHONPATH": str(self.root)}
        return {**os.environ, **ours, "MMPROMPT_RUNS": str(self.store.root), "YES": "1", **self.environment}

    def command(self, verb: str, *arguments: str) -> list[str]:
        sweep = ["length", *SETTINGS, *PLACE, f"seed={','.join(map(str, self.seeds))}", *self.settings]
        program = [sys.executable, "-m", "sweeps", verb]
        return [*program, *(sweep if verb in ("plan", "launch") else []), *arguments]

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        return self.started(self.command(verb, *arguments))

    def started(self, command: Sequence[str]) -> subprocess.Popen[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, verb: str, *arguments: str) -> tuple[int, str]:
        process = self.start(verb, *arguments)
        printed = printed_by(process)
        return process.returncode, printed

    def launch(self, *arguments: str) -> str:
        """A launch that must exit with 0; returns its output."""
        code, output = self.run("launch", *arguments)
        assert code == 0, output
        return output

    def rows(self) -> dict[str, dict[str, Any]]:
        """What `status --json` says about each run."""
        _, output = self.run("status", "--json")
        return {row["run"]: row for sweep in json.loads(output)["sweeps"] for row in sweep["runs"]}

    def row(self, seed: int = 1) -> dict[str, Any]:
        return self.rows()[self[seed].id]

    @property
    def manifest(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.store.manifest("length").read_text())
        return values

    def __getitem__(self, seed: int) -> RunFolder:
        """The run of this seed."""
        [run] = {point["run"] for point in self.manifest["points"] if point["values"]["seed"] == seed}
        return self.store.run(run)

    # SLURM

    def slurm(self, *command: str) -> str:
        """What one of SLURM's commands prints. The command must succeed."""
        done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def batches(self) -> list[dict[str, Any]]:
        """What each launch froze, oldest first."""
        files = [file for file in self.store.jobs.glob("*/batch.json") if file.parent.name.isdigit()]
        return [json.loads(file.read_text()) for file in sorted(files, key=lambda file: int(file.parent.name))]

    def queue(self) -> dict[str, list[tuple[str, str]]]:
        """The jobs that hold each run, as SLURM's id and state, from the store's batches and squeue."""
        held: dict[str, list[tuple[str, str]]] = {}
        for batch in self.batches():
            lists = [[run for part in parts for run in part["runs"]] for parts in batch["jobs"]]
            for line in self.slurm("squeue", "-h", "-r", "-o", "%i %j %K %T").splitlines():
                job, name, task, word = line.split()
                if found := re.fullmatch(re.escape(batch["job_name"]) + r"\.(\d+)", name):
                    for run in lists[int(found[1]) + (int(task) if task.isdigit() else 0)]:
                        held.setdefault(run, []).append((job, word))
        return held

    def job(self, seed: int = 1) -> str:
        """SLURM's id of the one job that holds this run; waits until there is one."""
        [(job, _)] = until(lambda: self.queue().get(self[seed].id), "SLURM has a job for the run")
        return job

    def let_go(self, job: str) -> None:
        """Lets a job begin that was submitted as HELD."""
        self.change(job, "Partition=main")

    def change(self, job: str, setting: str) -> None:
        """Changes a setting of a job. A controller that has just started refuses that for a moment; waits until it
        accepts."""
        command = ["scontrol", "update", f"JobId={job}", setting]

        def accepted() -> bool:
            done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if "try again" in done.stderr:
                return False
            assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
            return True

        until(accepted, f"SLURM sets {setting} of job {job}")

    def word(self, job: str) -> str:
        """SLURM's state of a job; empty if SLURM does not have it any more."""
        done = subprocess.run(
            ["squeue", "-h", "-r", "-j", job, "-o", "%T"], env=self.env, capture_output=True, text=True
        )
        return done.stdout.strip()

    def waits_again(self, job: str) -> bool:
        """Whether SLURM has put a job back into its queue. Fails if SLURM does not have the job any more."""
        word = self.word(job)
        assert word, f"SLURM has no job {job} any more"
        return word == "PENDING"

    def accounts(self, job: str) -> list[str]:
        """sacct's state of each execution of a job, oldest first. Waits until all have ended, since sacct lags behind."""

        def ended() -> list[str]:
            lines = self.slurm("sacct", "-n", "-X", "-D", "-P", "-o", "State", "-j", job).splitlines()
            return lines if lines and not {"PENDING", "RUNNING", "SUSPENDED"} & set(lines) else []

        words: list[str] = until(ended, f"sacct knows the end of job {job}")
        return words

    # Runs at work

    def hold(self, seed: int = 1, number: int = 1) -> Attempt:
        """Stops an attempt's process as soon as it has written a checkpoint."""
        [attempt] = self.hold_all([seed], number)
        return attempt

    def hold_all(self, seeds: Sequence[int], number: int = 1) -> list[Attempt]:
        """Stops an attempt of each seed as soon as it has written a checkpoint, in whichever order they do: one that is not looked
        at while another is waited for may end."""
        attempts, held = [Attempt(self[seed], number) for seed in seeds], list[Attempt]()

        def are_held() -> bool:
            for attempt in attempts:
                if attempt not in held and attempt.path.exists() and attempt.checkpoint_steps:
                    os.kill(attempt.job["pid"], signal.SIGSTOP)
                    held.append(attempt)
            return len(held) == len(attempts)

        what = f"attempts {number} of seeds {', '.join(map(str, seeds))} are at work"
        until(are_held, what, often=True)  # before they have ended
        return attempts

    def done(self, seed: int = 1) -> dict[str, Any]:
        """Waits for the run's result, and returns it."""
        result: dict[str, Any] = until(self[seed].result, f"the run of seed {seed} is done")
        return result

    def errors(self, seed: int = 1) -> list[str | None]:
        """The last line of each attempt's error; None for an attempt that succeeded or wrote no error."""
        texts = [error_of(attempt) for attempt in self[seed].attempts()]
        return [text if text is None else text.strip().splitlines()[-1] for text in texts]

    def close(self) -> None:
        """Cancels all jobs and kills all processes of this sweep, however the test ended."""
        with contextlib.suppress(AssertionError, FileNotFoundError):
            jobs = {job for jobs in self.queue().values() for job, _ in jobs}
            for job in jobs:
                subprocess.run(["scancel", job], env=self.env, capture_output=True)
        for run in self.store.runs():
            for attempt in self.store.run(run).attempts():
                if is_alive(attempt):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(attempt.job["pid"], signal.SIGKILL)


def is_alive(attempt: Attempt) -> bool:
    """Whether the attempt's process exists; all nodes are this machine, whatever host name the record holds."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(attempt.job["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - attempt.job["started"]) < 2
    return False


def hosts(folder: Path) -> list[str]:
    """Settings that give each node of the test cluster its own host name, as real nodes have; none if that is not allowed.

    Processes on another host cannot be seen; only SLURM knows whether they still run.
    """
    program = folder / "python-on-node"
    for unshare in ("unshare --uts", "unshare --user --map-root-user --uts"):
        if subprocess.run([*unshare.split(), "hostname", "gn1"], capture_output=True).returncode == 0:
            folder.mkdir(parents=True, exist_ok=True)
            inside = f'hostname "$SLURMD_NODENAME"; exec {sys.executable} "$@"'
            program.write_text(f"#!/bin/sh\nexec {unshare} sh -c '{inside}' sh \"$@\"\n")
            program.chmod(0o755)
            return [f"cluster.python='{program}'"]
    return []


def told(attempt: Attempt) -> bool:
    """Whether the signal that its time is up (SIGUSR2) is pending for an attempt that is held."""
    try:
        status = Path(f"/proc/{attempt.job['pid']}/status").read_text()
    except OSError:
        return False
    pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask & 1 << signal.SIGUSR2 - 1 for mask in pending)


def release(attempt: Attempt) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(attempt.job["pid"], signal.SIGCONT)


@contextlib.contextmanager
def slow(attempt: Attempt, share: float) -> Iterator[None]:
    """Lets a held attempt go on at a fraction of its speed, so that time passes while little is done."""
    ended = threading.Event()

    def turns() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not ended.wait(0.2 * (1 - share)):
                os.kill(attempt.job["pid"], signal.SIGCONT)
                ended.wait(0.2 * share)
                if not ended.is_set():
                    os.kill(attempt.job["pid"], signal.SIGSTOP)

    thread = threading.Thread(target=turns, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        release(attempt)


def damage(attempt: Attempt) -> Path:
    """Cuts off the end of the newest checkpoint, as a disk may that reported data as written and lost it."""
    file = attempt.checkpoint_file(attempt.checkpoint_steps[-1])
    file.write_bytes(file.read_bytes()[:-100])
    return file


def step_daemon(attempt: Attempt) -> psutil.Process | None:
    """The slurmstepd above an attempt's process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(attempt.job["pid"]).parents():
            if "slurmstepd" in process.name():
                return process
    return None


def litter(folder: Path, chance: random.Random) -> list[str]:
    """Adds what other versions, killed processes and users leave behind in STORE/jobs."""
    pieces = {
        "notes.txt": "mine\n",
        ".7.abc123/batch.json": '{"sweep": "len',
        "20250101-000000-abcdef/batch.json": "{}",
        f"{chance.randint(50, 90)}_0_result.pkl.save_tmp": "\x80\x04",
    }
    for name, text in pieces.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return list(pieces)


def assert_same(run: RunFolder, undisturbed: RunFolder, steps: int = STEPS) -> None:
    """The published attempt's numbers, weights and W&B record equal those of an undisturbed run."""
    ours, theirs = run.result(), undisturbed.result()
    assert ours is not None and theirs is not None
    for key in ("run", "metrics", "evaluations", "best_step", "steps"):
        assert ours[key] == theirs[key], key
    assert run.weights_file.read_bytes() == undisturbed.weights_file.read_bytes()
    a, b = (read_record(folder.path / folder.result()["wandb"], history=True) for folder in (run, undisturbed))
    assert Path(ours["wandb"]).is_relative_to(f"attempts/{ours['attempt']}")
    assert a.state == b.state == "finished" and a.damage == b.damage == ()
    assert list(history_frame(a)["_step"]) == list(range(1, steps + 1))
    assert history_frame(a).drop(columns=CLOCK).equals(history_frame(b).drop(columns=CLOCK))
