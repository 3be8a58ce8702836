"""`make chaos`: under random faults, sweeps and a search on the real test cluster give the same tables as without faults.

    python tests/chaos/run.py --faults 60 --seed 0
    python tests/chaos/run.py --only job.json "disk is full"     # kinds of faults whose names contain one of these
    python tests/chaos/run.py --list                             # all kinds

The harness launches the same work into two stores: a sweep, a sweep of attacks that shares runs with it, and a search. The
first store is left undisturbed. On the second, one `--wait` follows each piece of work while faults hit jobs, daemons,
launches, files and the disk; after each fault some verb is called. A file that was damaged is later mended as `status` advises.
When the faults are over, everything is launched until it is done. Then the tables (md, tex, csv) of both stores must be equal
byte for byte, each run must be published once, no job may be left, and no command may have printed a traceback or ended with
another code than 0, 1, 2 or 130 (`checks` lists all checks). The exit code is 1 if a check fails; both stores and all output
are then kept. The seed decides the order of the faults, and which of the runs at work each of them hits. As root, the store
lies on a file system in memory, which can be filled.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "slurm"))

import psutil
from calls import Calls
from checks import checked, of_tracebacks
from cluster import DEFAULT_FOLDER, Cluster, ClusterError
from disk_faults import Disk, DiskFaults
from fault_context import FaultContext
from file_faults import FileFaults
from job_faults import OTHERS, JobFaults
from observers import Observers
from subject import Subject, Work, python_on_nodes, record

from mmprompt.runs.attempt import TRIES

EVERY = 3.5  # seconds between two faults
PATIENCE = 10.0  # seconds to wait until a fault finds a target
RETRY = 15.0  # seconds that runs have after a launch with --retry before the next such launch
HARMLESS = "stale files"  # the fault that takes the place of one that finds no target
LATE = 1200.0  # works that are not done so many seconds after the last fault count as hung
REFUSED = 20  # if so many launches in a row fail although nothing is broken any more, the harness gives up
ASKS = 60.0  # seconds between two calls of `status` after the last fault


class Chaos:
    def __init__(self, subject: Subject, undisturbed: Subject, seed: int, disk: Disk | None, folder: Path) -> None:
        self.subject, self.undisturbed, self.seed = subject, undisturbed, seed
        self.began = time.monotonic()
        self.calls = Calls(subject, folder / "said")
        self.context = FaultContext(subject, self.calls, self.say)
        self.files = FileFaults(self.context, subject.folder / "kept")
        self.observers = Observers(self.context, self.files, folder / "out")
        self.faults = JobFaults(self.context).kinds | self.files.kinds | DiskFaults(self.context, disk).kinds
        self.happened: Counter[str] = Counter()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    def disturb(self, count: int, kinds: list[str]) -> None:
        """Causes `count` faults, each kind about equally often. A fault that finds no target is tried again later."""
        chance = random.Random(self.seed)
        rounds = -(-count // len(kinds))
        left = [name for _ in range(rounds) for name in chance.sample(kinds, len(kinds))][:count]
        for number in range(1, count + 1):
            self.context.chance = random.Random(f"{self.seed}, {number}")
            self.context.attend(self.context.chance.uniform(0.5, 1.5) * EVERY)
            name, hit = self.one(left)
            self.happened[name] += 1
            self.say(f"{number:3}/{count}  {name}: {hit}; {self.observers.one()}")

    def one(self, left: list[str]) -> tuple[str, str]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for name in dict.fromkeys(left):
                if (hit := self.faults[name]()) is not None:
                    left.remove(name)
                    return name, hit
            self.context.attend(1.0)
        name = left.pop(0)
        return HARMLESS, f"for {name}, which finds no target any more: {self.faults[HARMLESS]()}"

    @property
    def wrong(self) -> list[str]:
        """What has been found wrong so far."""
        return [*self.calls.wrong, *self.files.wrong]

    def finish(self) -> list[str]:
        """Repairs everything, and launches all works until they are done. Returns what did not end."""
        deadline, asked = time.monotonic() + LATE, 0.0
        while time.monotonic() < deadline:
            if time.monotonic() - asked > ASKS:
                asked = time.monotonic()
                self.context.ask_and_obey()
            self.context.repairs.carry_out(float("inf"))
            self.context.attend(1.0)
            quiet = not self.context.repairs.open and not self.files.damages
            if quiet and not self.subject.missing(self.undisturbed):
                return self.ended()
            if not quiet:
                self.context.refused.clear()
            if refused := [calls[-1] for calls in self.context.refused.values() if len(calls) > REFUSED]:
                return [
                    f"refused {REFUSED} times though nothing is broken: {call}:\n{call.printed}" for call in refused
                ]
            if quiet and (runs := self.given_up()):
                self.say(f"failed too often without getting further: {', '.join(runs)}; --retry")
                for call in [self.context.launch(work, "--retry") for work in self.subject.works]:
                    call.process.wait()
                self.context.attend(RETRY)
        missing = sorted(self.subject.missing(self.undisturbed))
        return [f"{LATE:g} s after the last fault runs are not done: {', '.join(missing)}"]

    def ended(self) -> list[str]:
        """All work is done: the commands that follow it must end, and the same commands, typed again, must say so."""
        self.calls.end(180)
        last = [self.context.launch(work, "--wait", waits=True) for work in self.subject.works]
        self.calls.end(180)
        return [f"{call} ended with {call.code} when all was done; see {call.out}" for call in last if call.code != 0]

    def given_up(self) -> list[str]:
        """Runs that a launch does not try again without --retry."""
        found = []
        at_work = {attempt.run.id for attempt in self.subject.at_work()}
        for run in self.subject.missing(self.undisturbed) - at_work:
            with contextlib.suppress(Exception):  # a damaged record may raise anything
                found += [run] if self.subject.run(run).tries() >= TRIES else []
        return sorted(found)

    def close(self) -> None:
        """Ends all processes and jobs that were started here. Raises ClusterError if jobs cannot be cancelled."""
        self.calls.kill()
        try:
            self.subject.cluster.up()
            self.subject.control("scancel", f"--name={OTHERS}")
            for job in self.subject.jobs():
                self.subject.control("scancel", job)
        finally:
            for process in list(self.subject.processes()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def works(runs: int, steps: int) -> list[Work]:
    """The sweeps and the search that are launched. Half of the attacked runs are also runs of the first sweep."""
    alike = ("task=micro_grounding", "prompt.length=4", "optim.batch_size=4", "optim.micro_batch=4", "tracking=offline")
    alike += ("task.data.train=8", "task.data.val=8", "task.data.test=8")
    length = (f"optim.steps={steps}", f"optim.validate_every={steps // 2}")
    first = max(1, runs - 2)
    attacks = ("method=prompt", "attack.epsilon=0,0.01,0.02,0.05", "evaluation.examples=8")
    trials = (f"optim.steps={steps}", f"optim.validate_every={steps // 6}", f"rungs=[{steps // 3},{steps // 3 * 2}]")
    trials += (
        f"budget.trials={max(4, runs // 2)}",
        "confirm.seeds=2",
        "confirm.top=1",
        "sampler=random",
        "workers=2",
        "warm=false",
    )
    return [
        Work("length", (*alike, *length, f"seed={seeds(1, runs)}")),
        Work("robustness", (*alike, *length, *attacks, f"seed={seeds(first, first + 4)}")),
        Work("learning_rate", (*alike, *trials), "search"),
    ]


def seeds(first: int, last: int) -> str:
    return ",".join(map(str, range(first, last + 1)))


def undisturbed_ones(subject: Subject, said: Path) -> frozenset[str]:
    """Executes all works without faults, and returns the done runs. Raises RuntimeError if a command fails."""
    calls = Calls(subject, said)
    started = [calls.start(subject.asked(work, work.verb, "--wait"), waits=True) for work in subject.works]
    try:
        calls.end(3600)
    finally:
        calls.kill()
    for call in started:
        if call.code != 0:
            raise RuntimeError(f"{call} was not disturbed, and ended with {call.code}:\n{call.printed}")
    return frozenset(run for run in subject.store.runs() if subject.result(run))


def runs_of_sweeps(subject: Subject) -> frozenset[str]:
    manifests = [record(subject.store.manifest(work.name)) for work in subject.works if work.verb == "launch"]
    return frozenset(point["run"] for manifest in manifests for point in manifest["points"])


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within this context SIGTERM and SIGHUP end the harness as Ctrl-C does."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    try:
        yield
    finally:
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)  # a second signal must not disturb the cleaning up


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, help="runs of the first sweep (one per eight faults, at least 3)")
    parser.add_argument(
        "--steps", type=int, default=900, help="steps of a run; 1000 take 15 s on one core (%(default)s)"
    )
    parser.add_argument("--only", nargs="+", metavar="WORDS", help="kinds of faults whose names contain one of these")
    parser.add_argument(
        "--but", nargs="+", metavar="WORDS", default=[], help="leave out those whose names contain these"
    )
    parser.add_argument("--list", action="store_true", help="print the kinds of faults, and do nothing else")
    parser.add_argument("--cluster", type=Path, default=DEFAULT_FOLDER, help="folder of the test cluster (%(default)s)")
    parser.add_argument("--port-base", type=int, help="the first of 1000 ports, for a separate cluster")
    parser.add_argument("--no-disk", action="store_true", help="no disk in memory, hence no faults of a disk")
    parser.add_argument("--keep", type=Path, help="an empty folder for both stores, which are kept there")
    return parser


def main(arguments: list[str]) -> int:
    asked = parser().parse_args(arguments)
    folder = asked.keep or Path(tempfile.mkdtemp(prefix="mmprompt-chaos-"))
    cluster = Cluster(asked.cluster, asked.port_base)
    disk = None if asked.no_disk or os.getuid() != 0 else Disk(folder / "disturbed")
    everything = works(asked.runs or max(3, asked.faults // 8), asked.steps)
    place = ("cluster=slurm", "cluster.mem_gb=0.9", "cluster.checkpoint_every=25")
    undisturbed = Subject(folder / "undisturbed", cluster, everything, (*place, "cluster.runs_per_job=4"))
    python = python_on_nodes(folder / "bin", asked.seed)
    here = (f"cluster.python='{python}'", "cluster.max_parallel=4", "cluster.runs_per_job=2")
    subject = Subject(folder / "disturbed", cluster, everything, (*place, *here))
    chaos = Chaos(subject, undisturbed, asked.seed, disk, folder)
    kinds = [kind for kind in chaos.faults if not asked.only or any(word in kind for word in asked.only)]
    kinds = [kind for kind in kinds if not any(word in kind for word in asked.but)]
    if asked.list or not kinds:
        print("\n".join(chaos.faults))
        shutil.rmtree(folder)
        return 0 if asked.list else 2
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_on(cluster))
        was_up = bool(cluster.running())
        wrong = ["the harness itself failed"]
        try:
            wrong = observed(chaos, disk, asked.faults, kinds, folder)
        finally:
            wrong = [*wrong, *closed(chaos, disk, was_up, keep=bool(wrong) or asked.keep is not None)]
    return report(chaos, wrong, folder, asked.keep is not None)


@contextlib.contextmanager
def alone_on(cluster: Cluster) -> Iterator[None]:
    """Exits if another harness is causing faults on this cluster."""
    with cluster.folder.with_suffix(".chaos").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(
                f"another `make chaos` is at work on {cluster.folder}; --cluster and --port-base name another cluster"
            )
        yield


def observed(chaos: Chaos, disk: Disk | None, faults: int, kinds: list[str], folder: Path) -> list[str]:
    """What is wrong, also if the harness fails or is interrupted."""
    try:
        with stopped_by_signals():
            return happened(chaos, disk, faults, kinds, folder)
    except (ClusterError, RuntimeError) as error:
        return [str(error), *chaos.wrong]
    except KeyboardInterrupt:
        return ["it was interrupted", *chaos.wrong]


def happened(chaos: Chaos, disk: Disk | None, faults: int, kinds: list[str], folder: Path) -> list[str]:
    """Executes the whole experiment, and returns what is wrong at its end."""
    subject, undisturbed = chaos.subject, chaos.undisturbed
    subject.cluster.up()
    if disk:
        disk.mount()
    chaos.say(f"seed {chaos.seed}; undisturbed: {', '.join(work.name for work in subject.works)}")
    subject.runs = undisturbed.runs = undisturbed_ones(undisturbed, folder / "said-undisturbed")
    subject.of_sweeps = runs_of_sweeps(undisturbed)
    chaos.say(f"{len(subject.runs)} runs are done; now {faults} faults of {len(kinds)} kinds")
    subject.store.root.mkdir(exist_ok=True)  # faults may come before the first launch has made it
    chaos.disturb(faults, kinds)
    chaos.say("no more faults")
    wrong = chaos.finish()
    chaos.say("it has not ended" if wrong else "all is done")
    wrong += (
        of_tracebacks(subject, chaos.happened)
        if wrong
        else checked(chaos.context, undisturbed, chaos.happened, folder / "out")
    )
    return [*wrong, *chaos.wrong]


def closed(chaos: Chaos, disk: Disk | None, was_up: bool, keep: bool) -> list[str]:
    """Ends everything that was started, and unmounts the disk in memory, whose files are copied first if they are to be kept.
    Returns what failed."""
    wrong = []
    try:
        chaos.close()
    except ClusterError as error:
        wrong.append(str(error))
    if not was_up:
        chaos.subject.cluster.down()
    if disk and disk.is_mounted:
        put_away(chaos, disk, keep or bool(wrong))
    return wrong


def put_away(chaos: Chaos, disk: Disk, keep: bool) -> None:
    here, copy = disk.folder, disk.folder.with_name("copy")
    if keep:
        subprocess.run(["cp", "-a", here, copy], check=False)
    disk.unmount()
    if keep:
        here.rmdir()
        copy.rename(here)


def report(chaos: Chaos, wrong: list[str], folder: Path, keep: bool) -> int:
    counted = ", ".join(f"{count} {name}" for name, count in chaos.happened.most_common())
    print(f"{sum(chaos.happened.values())} faults: {counted}")
    print(f"{chaos.calls.count} commands; seconds: {time.monotonic() - chaos.began:.0f}")
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"{len(wrong)} things are wrong" if wrong else "tables equal byte for byte: md, tex, csv; nothing is wrong")
    if wrong or keep:
        print(f"seed {chaos.seed}; stores, and what commands said: {folder}")
    else:
        shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
