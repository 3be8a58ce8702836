"""Faults of jobs, of SLURM and of launches. Each returns what it hit, or None if there was nothing to hit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from fault_context import FaultContext
from faults import damage, litter, step_daemon
from subject import record

from mmprompt.runs.attempt import Attempt

OTHERS = "mmprompt-chaos"  # the name of jobs that preempt ours


class JobFaults:
    def __init__(self, context: FaultContext) -> None:
        self.context, self.subject, self.cluster = context, context.subject, context.subject.cluster
        self.kinds: dict[str, Callable[[], str | None]] = {
            "requeue": self.requeue,
            "scancel": self.scancel,
            "scancel of a waiting job": self.scancel_waiting,
            "kill -9 of a process": self.kill_process,
            "kill -9 of a step's daemon": self.kill_step_daemon,
            "preemption": self.preempt,
            "suspend": self.suspend,
            "time limit": self.time_limit,
            "slurmd dies and is back": self.slurmd,
            "node lost": self.lose_node,
            "slurmctld dies": self.slurmctld,
            "slurmdbd dies": self.slurmdbd,
            "launch is killed": self.kill_launch,
            "two launches": self.two_launches,
            "damaged checkpoint": self.damage,
            "stale files": self.litter,
        }

    def requeue(self) -> str | None:
        attempt = self.context.victim()
        job = job_of(attempt) if attempt else ""
        return name(attempt) if attempt and job and self.subject.control("scontrol", "requeue", job) else None

    def scancel(self) -> str | None:
        attempt = self.context.victim()
        if attempt is None or not job_of(attempt) or not self.subject.control("scancel", job_of(attempt)):
            return None
        self.context.relaunch(self.context.chance.uniform(5, 15))
        return name(attempt)

    def scancel_waiting(self) -> str | None:
        waiting = sorted(job for job, word in self.subject.jobs().items() if word == "PENDING")
        job = self.context.chance.choice(waiting) if waiting else None
        if job is None or not self.subject.control("scancel", job):
            return None
        self.context.relaunch(self.context.chance.uniform(5, 15))
        return f"job {job}"

    def kill_process(self) -> str | None:
        attempt = self.context.victim()
        return name(attempt) if attempt and kill(attempt) else None

    def kill_step_daemon(self) -> str | None:
        attempt = self.context.victim()
        daemon = step_daemon(attempt) if attempt else None
        if attempt is None or daemon is None or not (job := job_of(attempt)):
            return None
        daemon.kill()  # SLURM does not notice, so a user cancels the job
        seconds = self.context.chance.uniform(5, 20)
        self.context.repairs.add(seconds, f"{job} is cancelled", lambda: self.subject.control("scancel", job))
        self.context.relaunch(25)
        return name(attempt)

    def preempt(self) -> str | None:
        attempt = self.context.victim()
        node = self.node_of(attempt) if attempt else ""
        wanted = ["-p", "high", "-w", node, "-N", "1", "-n", "4", f"--job-name={OTHERS}", "--output=/dev/null"]
        is_done = node and self.subject.control("sbatch", *wanted, "--chdir=/", "--wrap=sleep 3")
        return f"{name(attempt)} on {node}" if attempt and is_done else None

    def suspend(self) -> str | None:
        attempt = self.context.victim()
        if attempt is None or not (job := job_of(attempt)) or not self.subject.control("scontrol", "suspend", job):
            return None
        seconds = self.context.chance.uniform(3, 15)
        self.context.repairs.add(seconds, f"{job} is resumed", lambda: self.subject.control("scontrol", "resume", job))
        return name(attempt)

    def time_limit(self) -> str | None:
        attempt = self.context.victim()
        if attempt is None or not (job := job_of(attempt)):
            return None
        limit = ["scontrol", "update", f"JobId={job}"]
        if not self.subject.control(*limit, "TimeLimit=1"):
            return None
        self.context.repairs.add(45, f"{job} has an hour again", lambda: self.subject.control(*limit, "TimeLimit=60"))
        return f"{name(attempt)}: a minute from its start"

    def slurmd(self) -> str | None:
        node = self.context.chance.choice(self.cluster.nodes)
        if f"slurmd.{node}" not in self.cluster.running():
            return None
        self.cluster.kill(f"slurmd.{node}")
        self.cluster.start("slurmctld", f"slurmd.{node}")  # slurmd needs slurmctld when it starts
        return node

    def lose_node(self) -> str | None:
        attempt = None if self.context.repairs.expects("slurmd") else self.context.victim()  # only one node at a time
        node = self.node_of(attempt) if attempt else ""
        if attempt is None or f"slurmd.{node}" not in self.cluster.running():
            return None
        self.cluster.kill(f"slurmd.{node}")
        seconds = self.context.chance.uniform(30, 60)
        self.context.repairs.add(
            seconds, f"slurmd.{node} is back", lambda: self.cluster.start("slurmctld", f"slurmd.{node}")
        )
        return f"{node}, with {name(attempt)}"

    def node_of(self, attempt: Attempt) -> str:
        return " ".join(self.subject.ask("squeue", "-h", "-j", job_of(attempt), "-o", "%N"))

    def slurmctld(self) -> str:
        seconds = self.context.chance.uniform(1, 5)
        self.cluster.kill("slurmctld")
        time.sleep(seconds)  # without slurmctld no other fault can be caused
        self.cluster.start("slurmctld")
        return f"for {seconds:.0f} s"

    def slurmdbd(self) -> str:
        seconds = self.context.chance.uniform(1, 20)
        self.cluster.kill("slurmdbd")
        self.context.repairs.add(seconds, "slurmdbd is back", lambda: self.cluster.start("slurmdbd"))
        return f"for {seconds:.0f} s"

    def kill_launch(self) -> str:
        """Kills the command that follows a work, and a new launch after a moment."""
        work = self.context.chance.choice(self.subject.works)
        if (call := self.context.following.get(work)) and call.code is None:
            call.kill()
        moment, other = self.context.chance.uniform(0.2, 2.5), self.context.launch(work)
        time.sleep(moment)
        ended = other.code is not None
        if not ended:
            other.kill()
        return f"who waits for {work.name}, and another after {moment:.1f} s{' (it had ended)' if ended else ''}"

    def two_launches(self) -> str:
        work = self.context.chance.choice(self.subject.works)
        self.context.launch(work), self.context.launch(work)
        return work.name

    def damage(self) -> str | None:
        attempt = self.context.victim(with_checkpoint=True)
        if attempt is None or not kill(attempt):
            return None
        try:
            return f"{name(attempt)}: {damage(attempt).name}, and kill -9"
        except (OSError, IndexError):  # the run has just been done
            return f"{name(attempt)}: kill -9"

    def litter(self) -> str | None:
        try:
            found = litter(self.subject.store.jobs, self.context.chance)
            for folder in sorted(self.subject.store.jobs.glob("[0-9]*/[0-9]*"))[-1:]:
                for job in range(1, 4):
                    (folder / f"{self.context.chance.randint(1, 99)}_{job}_0_result.pkl.save_tmp").write_bytes(
                        b"\x80\x04"
                    )
        except OSError:
            return None
        return ", ".join(found)


def job_of(attempt: Attempt) -> str:
    """SLURM's id of the attempt's job; empty if the record is damaged."""
    return str(record(attempt.path / "job.json").get("job") or "")


def name(attempt: Attempt) -> str:
    return f"{attempt.run.id[:6]}, attempt {attempt.number}, job {job_of(attempt)}"


def kill(attempt: Attempt) -> bool:
    """Kills the attempt's process; False if there is none any more."""
    pid = record(attempt.path / "job.json").get("pid")
    if not isinstance(pid, int) or pid < 2:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
