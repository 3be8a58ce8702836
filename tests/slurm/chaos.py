"""`make chaos`: a sweep on the real test cluster under a random sequence of faults ends in the tables of an undisturbed one.

    python tests/slurm/chaos.py --faults 50 --seed 0 --runs 12

Two stores get the same sweep. Nobody touches the first. On the second `launch --wait` follows, and faults come one after another
until there were enough; then the sweep is brought to its end. Tables (md, tex, csv) must be equal byte for byte, each run published
once, and nothing left at work. Prints the faults with their times, the attempts of each run, and a verdict; the exit code is 1
if it is bad. The seed decides which faults come in which order; whom they hit depends on who is at work then.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import DEFAULT_FOLDER, Cluster, ClusterError
from faults import Sweep, damage, hosts, is_alive, litter, step_daemon
from outcome import tables

from mmprompt.run import Attempt

EVERY = 5.0  # seconds between two faults
OTHERS = "mmprompt-chaos"  # the name of jobs that preempt ours
AGAIN = 3.0  # seconds after which somebody follows again
LATE = 900.0  # seconds; a sweep that has not ended so long after the last fault hangs


class Chaos:
    def __init__(self, sweep: Sweep, seed: int) -> None:
        self.sweep, self.cluster, self.chance = sweep, sweep.cluster, random.Random(seed)
        self.began = time.monotonic()
        self.follower: subprocess.Popen[str] | None = None
        self.followed = -AGAIN  # when it was started
        self.debts: list[tuple[float, str, Callable[[], object]]] = []  # when, what, how: what a fault took comes back
        self.happened: Counter[str] = Counter()
        self.faults: dict[str, Callable[[], str | None]] = {
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

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    # The run of it

    def disturb(self, count: int) -> None:
        """Faults one after another, each kind about as often as the others."""
        rounds = -(-count // len(self.faults))
        names = [name for _ in range(rounds) for name in self.chance.sample(list(self.faults), len(self.faults))]
        for name in names[:count]:
            self.attend(self.chance.uniform(0.5, 1.5) * EVERY)
            deadline = time.monotonic() + 60
            while (hit := self.faults[name]()) is None:  # nobody is there whom it could hit
                if time.monotonic() > deadline or self.is_done():
                    hit = self.litter() if name != "stale files" else ""
                    self.say(f"{name}: hits nobody any more; stale files instead")
                    name = "stale files"
                    break
                self.attend(1.0)
            self.happened[name] += 1
            self.say(f"{sum(self.happened.values()):3}/{count}  {name}: {hit}")

    def attend(self, seconds: float) -> None:
        """Time passes: what is due comes back, and somebody follows the sweep."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pay(time.monotonic())
            self.follow()
            time.sleep(0.2)

    def pay(self, now: float) -> None:
        for debt in [debt for debt in self.debts if debt[0] <= now]:
            self.debts.remove(debt)
            self.say(debt[1])
            debt[2]()

    def follow(self) -> None:
        if self.follower is not None and self.follower.poll() is not None:
            self.follower = None
        now = time.monotonic()
        if self.follower is None and now - self.followed > AGAIN and not self.is_done():
            self.followed, self.follower = now, self.launch("--wait")

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        with (self.sweep.folder / "launches.txt").open("a") as output:
            command = self.sweep.command("launch", *arguments)
            place = {"cwd": self.sweep.folder, "env": self.sweep.env, "start_new_session": True}
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, **place)  # type: ignore[call-overload]

    def finish(self) -> bool:
        """Everything that was taken is back, and the sweep is launched until it is done."""
        self.pay(float("inf"))
        deadline = time.monotonic() + LATE
        while not self.is_done() and time.monotonic() < deadline:
            self.attend(1.0)
            if self.sweep.store.manifest("length").exists() and self.gave_up():
                self.say("a run failed too often without getting further: launch --retry")
                self.launch("--retry").wait()
        if self.follower is not None:
            self.follower.wait(timeout=120)
        return self.is_done()

    def gave_up(self) -> bool:
        runs = [self.sweep[seed] for seed in self.sweep.seeds]
        return any(
            run.result() is None and run.tries() >= 3 and not self.is_at_work(run.attempts()[-1]) for run in runs
        )

    def is_done(self) -> bool:
        if not self.sweep.store.manifest("length").exists():
            return False
        return all(self.sweep[seed].result() is not None for seed in self.sweep.seeds)

    # Whom a fault can hit

    def is_at_work(self, attempt: Attempt) -> bool:
        return attempt.error is None and is_alive(attempt)

    def at_work(self) -> list[Attempt]:
        if not self.sweep.store.manifest("length").exists():
            return []
        newest = [run.attempts()[-1:] for run in map(self.sweep.__getitem__, self.sweep.seeds) if run.result() is None]
        return [attempt for attempt in itertools.chain(*newest) if self.is_at_work(attempt)]

    def victim(self) -> Attempt | None:
        there = self.at_work()
        return self.chance.choice(there) if there else None

    def victim_with_checkpoint(self) -> Attempt | None:
        there = [attempt for attempt in self.at_work() if attempt.checkpoint_steps]
        return self.chance.choice(there) if there else None

    def name(self, attempt: Attempt) -> str:
        seed = next(seed for seed in self.sweep.seeds if self.sweep[seed].id == attempt.run.id)
        return f"seed {seed}, attempt {attempt.number}, job {attempt.job['job']}"

    def control(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.sweep.env, capture_output=True, text=True)
        return done.returncode == 0

    def node_of(self, attempt: Attempt) -> str:
        command = ["squeue", "-h", "-j", attempt.job["job"], "-o", "%N"]
        return subprocess.run(command, env=self.sweep.env, capture_output=True, text=True).stdout.strip()

    # Faults. Each says whom it hit, or None if there is nobody.

    def requeue(self) -> str | None:
        attempt = self.victim()
        return self.name(attempt) if attempt and self.control("scontrol", "requeue", attempt.job["job"]) else None

    def scancel(self) -> str | None:
        attempt = self.victim()
        if attempt is None or not self.control("scancel", attempt.job["job"]):
            return None
        self.relaunch()
        return self.name(attempt)

    def relaunch(self) -> None:
        """Who waits does not submit what was cancelled; whoever cancelled it launches later."""
        self.owe(self.chance.uniform(5, 15), "launched again", self.launch)

    def scancel_waiting(self) -> str | None:
        waiting = [job for jobs in self.sweep.queue().values() for job, word in jobs if word == "PENDING"]
        job = self.chance.choice(sorted(waiting)) if waiting else None
        if job is None or not self.control("scancel", job):
            return None
        self.relaunch()
        return f"job {job}"

    def kill_process(self) -> str | None:
        attempt = self.victim()
        if attempt is None:
            return None
        os.kill(attempt.job["pid"], signal.SIGKILL)
        return self.name(attempt)

    def kill_step_daemon(self) -> str | None:
        attempt = self.victim()
        daemon = step_daemon(attempt) if attempt else None
        if attempt is None or daemon is None:
            return None
        daemon.kill()
        job = attempt.job["job"]  # SLURM does not notice: somebody cancels the job
        self.owe(self.chance.uniform(5, 20), f"{job} is cancelled", lambda: self.control("scancel", job))
        self.owe(25, "launched again", self.launch)
        return self.name(attempt)

    def preempt(self) -> str | None:
        attempt = self.victim()
        node = self.node_of(attempt) if attempt else ""
        wanted = ["-p", "high", "-w", node, "-N", "1", "-n", "4", f"--job-name={OTHERS}", "--output=/dev/null"]
        wanted.append("--wrap=sleep 3")
        return f"{self.name(attempt)} on {node}" if attempt and node and self.control("sbatch", *wanted) else None

    def suspend(self) -> str | None:
        attempt = self.victim()
        if attempt is None or not self.control("scontrol", "suspend", attempt.job["job"]):
            return None
        job = attempt.job["job"]
        self.owe(self.chance.uniform(3, 15), f"{job} is resumed", lambda: self.control("scontrol", "resume", job))
        return self.name(attempt)

    def time_limit(self) -> str | None:
        attempt = self.victim()
        if attempt is None:
            return None
        limit = ["scontrol", "update", f"JobId={attempt.job['job']}"]
        if not self.control(*limit, "TimeLimit=1"):
            return None
        self.owe(45, f"{attempt.job['job']} has an hour again", lambda: self.control(*limit, "TimeLimit=60"))
        return f"{self.name(attempt)}: a minute from its start"

    def slurmd(self) -> str | None:
        node = self.chance.choice(self.cluster.nodes)
        if f"slurmd.{node}" not in self.cluster.running():
            return None
        self.cluster.kill(f"slurmd.{node}")
        self.cluster.start(f"slurmd.{node}")
        return node

    def lose_node(self) -> str | None:
        if any("slurmd" in what for _, what, _ in self.debts):
            return None  # one at a time
        attempt = self.victim()
        node = self.node_of(attempt) if attempt else ""
        if attempt is None or f"slurmd.{node}" not in self.cluster.running():
            return None
        self.cluster.kill(f"slurmd.{node}")
        back = self.chance.uniform(30, 60)
        self.owe(back, f"slurmd of {node} is back", lambda: self.cluster.start(f"slurmd.{node}"))
        return f"{node}, with {self.name(attempt)}"

    def slurmctld(self) -> str:
        return self.interrupt("slurmctld", self.chance.uniform(1, 8))

    def slurmdbd(self) -> str:
        return self.interrupt("slurmdbd", self.chance.uniform(1, 20))

    def interrupt(self, daemon: str, seconds: float) -> str:
        self.cluster.kill(daemon)
        if daemon == "slurmctld":  # without it no other fault can be made
            time.sleep(seconds)
            self.cluster.start(daemon)
        else:
            self.owe(seconds, f"{daemon} is back", lambda: self.cluster.start(daemon))
        return f"for {seconds:.0f} s"

    def kill_launch(self) -> str:
        """The one that follows, and one that is at its work for a moment."""
        if self.follower is not None:
            self.follower.kill()
            self.follower.wait()
        moment, launch = self.chance.uniform(0.2, 2.5), self.launch()
        time.sleep(moment)
        ended = launch.poll() is not None
        launch.kill()
        launch.wait()
        return f"who waits, and another after {moment:.1f} s{' (it had ended)' if ended else ''}"

    def two_launches(self) -> str:
        both = [self.launch(), self.launch()]
        return f"exit codes {[launch.wait(timeout=180) for launch in both]}"

    def damage(self) -> str | None:
        attempt = self.victim_with_checkpoint()
        if attempt is None:
            return None
        os.kill(attempt.job["pid"], signal.SIGKILL)
        try:
            return f"{self.name(attempt)}: {damage(attempt).name}, and kill -9"
        except (FileNotFoundError, IndexError):  # it was done with it at that moment
            return f"{self.name(attempt)}: kill -9"

    def litter(self) -> str:
        name, folders = litter(self.sweep.store.jobs, self.chance), sorted(self.sweep.store.jobs.glob("[0-9]*/[0-9]*"))
        for folder in folders[-1:]:
            for job in range(1, 4):
                (folder / f"{self.chance.randint(1, 99)}_{job}_0_result.pkl.save_tmp").write_bytes(b"\x80\x04")
        return ", ".join(name)

    def owe(self, seconds: float, what: str, how: Callable[[], object]) -> None:
        self.debts.append((time.monotonic() + seconds, what, how))


def verdict(sweep: Sweep, undisturbed: Sweep) -> list[str]:
    """What is not as it should be."""
    ours, theirs = (tables(one.store, "length", one.folder / "out") for one in (sweep, undisturbed))
    wrong: list[str] = []
    if not ours or ours.keys() != theirs.keys():
        return [f"tables {sorted(ours)}, wanted {sorted(theirs)}"]
    wrong += [f"{name} differs" for name in ours if ours[name] != theirs[name]]
    for seed in sweep.seeds:
        a, b = sweep[seed].result(), undisturbed[seed].result()
        if a is None or b is None or any(a[key] != b[key] for key in ("metrics", "best_step", "steps", "evaluations")):
            wrong.append(f"seed {seed}: {a and a['metrics']}, wanted {b and b['metrics']}")
        elif len(list(sweep[seed].path.rglob("weights.safetensors"))) != 1:
            wrong.append(f"seed {seed} has the weights of more than one attempt")
    held = sweep.queue()
    deadline = time.monotonic() + 60
    while held and time.monotonic() < deadline:  # jobs that find nothing left to do
        time.sleep(1)
        held = sweep.queue()
    return wrong + [f"SLURM has jobs of {run} still: {jobs}" for run, jobs in held.items()]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1500, help="of a run; 1000 are 15 s on one core (%(default)s)")
    parser.add_argument("--cluster", type=Path, default=DEFAULT_FOLDER, help="folder of the test cluster (%(default)s)")
    parser.add_argument("--keep", type=Path, help="an empty folder for both stores, which then stay")
    asked = parser.parse_args(arguments)
    cluster = Cluster(asked.cluster)
    was_up = bool(cluster.running())
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="mmprompt-chaos-"))
    settings = (f"optim.steps={asked.steps}", "cluster.checkpoint_every=25", "optim.validate_every=500")
    seeds = range(1, asked.runs + 1)
    undisturbed = Sweep(folder / "undisturbed", cluster, (*settings, "cluster.runs_per_job=4"), seeds)
    where = hosts(folder)
    sweep = Sweep(folder / "disturbed", cluster, (*settings, *where, "cluster.max_parallel=6"), seeds)
    sweep.folder.mkdir(parents=True)
    chaos = Chaos(sweep, asked.seed)
    try:
        cluster.up()
        chaos.say(f"the undisturbed sweep: {asked.runs} runs of {asked.steps} steps")
        code, output = undisturbed.run("launch", "--wait", patience=3600)
        if code != 0:
            print(output)
            return 1
        chaos.say(f"done; now {asked.faults} faults")
        chaos.disturb(asked.faults)
        chaos.say("no more faults")
        ended = chaos.finish()
        chaos.say("all runs are done" if ended else f"not all runs are done {LATE:g} s later")
        wrong = verdict(sweep, undisturbed) if ended else ["the sweep did not end"]
    except ClusterError as error:
        wrong = [str(error)]
    finally:
        if chaos.follower is not None:
            chaos.follower.kill()
        cluster.up()
        chaos.control("scancel", f"--name={OTHERS}")
        sweep.close()
        if not was_up:
            cluster.down()
    attempts = {seed: len(sweep[seed].attempts()) for seed in sweep.seeds}
    print(
        f"{sum(chaos.happened.values())} faults: {', '.join(f'{n} {name}' for name, n in chaos.happened.most_common())}"
    )
    print(f"attempts per run: {', '.join(f'seed {seed}: {count}' for seed, count in attempts.items())}")
    print(f"launches that submitted: {len(sweep.batches())}; seconds: {time.monotonic() - chaos.began:.0f}")
    for line in wrong:
        print(f"WRONG: {line}")
    print(
        "the tables differ from those of the undisturbed sweep" if wrong else "tables equal byte for byte: md, tex, csv"
    )
    if wrong or asked.keep:
        print(f"stores, and what launches said: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
