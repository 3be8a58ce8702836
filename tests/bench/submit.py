"""Many trivial runs through SLURM, on the test cluster: our launch, submitit's own submissions, and SLURM alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from measure import Section, Skipped, Timing, in_turns, timed

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from sweeps.jobs.batch import batches

RUNS, ROUNDS, PER_JOB = 200, 3, 25
CLUSTER = Path(__file__).parents[1] / "slurm" / "cluster.py"
TRIVIAL = ["task=micro_grounding", "prompt.length=4", "optim.steps=1", "optim.validate_every=1", "tracking=disabled"]
TRIVIAL += ["task.data.train=8", "task.data.val=8", "task.data.test=8", "optim.batch_size=4", "optim.micro_batch=4"]
SUBMITIT = """
import sys, time
from submitit import SlurmExecutor
folder, name, runs, is_array = sys.argv[1:]
executor = SlurmExecutor(folder)
executor.update_parameters(job_name=name, time=5, mem="200MB", array_parallelism=int(runs))
if is_array == "yes":
    executor.map_array(time.sleep, [0] * int(runs))
else:
    for _ in range(int(runs)):
        executor.submit(time.sleep, 0)
"""
Whole = tuple[Timing, Timing]  # until all is handed over; until all is over


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """The cluster of SLURM_CONF, else the test cluster, brought up for it if need be. Gives why there is none, or ""."""
    before, problem, is_ours = os.environ.get("SLURM_CONF"), "", False
    if before is None:
        is_ours = act("status").returncode != 0
        up = act("up")
        problem = up.stderr.strip()
        for setting in shlex.split(act("env").stdout)[1:] if not problem else []:
            name, value = setting.split("=", 1)
            os.environ[name] = value
    try:
        yield problem
    finally:
        if is_ours and not problem:
            act("down")


def act(verb: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CLUSTER), verb], capture_output=True, text=True)


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def through(submit: Callable[[], Iterable[str]]) -> Whole:
    """`submit` hands over jobs and says how they are called. CPU is that of our processes and, by sacct, of the jobs'."""
    names: list[str] = []
    began = time.perf_counter()
    handed = timed(lambda: names.extend(submit()))
    while output("squeue", "-h", f"--name={','.join(names)}"):
        time.sleep(0.2)
    wall = time.perf_counter() - began
    deadline = time.monotonic() + 60  # the accounts are behind
    while True:
        lines = output("sacct", "-n", "-P", f"--name={','.join(names)}", "-o", "JobID,State,TotalCPU").splitlines()
        ends = [
            line.split("|") for line in lines if "." not in line.split("|")[0]
        ]  # not their steps, without which (-X) it is 0
        if ends and {state for _, state, _ in ends} == {"COMPLETED"}:
            return handed, Timing(wall, handed.cpu + sum(seconds(cpu) for _, _, cpu in ends))
        assert time.monotonic() < deadline, f"sacct says {lines}"
        time.sleep(0.5)


def seconds(text: str) -> float:
    """Of sacct's [[DAYS-]HOURS:]MINUTES:SECONDS."""
    days, rest = text.split("-") if "-" in text else ("0", text)
    total = 0.0
    for part in rest.split(":"):
        total = 60 * total + float(part)
    return 86_400 * int(days) + total


def launched(store: Path, *overrides: str) -> list[str]:
    """`python -m sweeps launch`; the names of its arrays."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(store)}
    command = [sys.executable, "-m", "sweeps", "launch", "length", *overrides, "cluster=slurm"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return [name for batch in batches(Store(store)) for name in batch.arrays.values()]


def raw(runs: int) -> Whole:
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name
        words = ["sbatch", f"--job-name={name}", f"--array=0-{runs - 1}", "--output=/dev/null", "--time=5", "--mem=200"]

        def submit() -> list[str]:
            output(*words, "--wrap=true")
            return [name]

        return through(submit)


def by_submitit(is_array: str, runs: int) -> Whole:
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name

        def submit() -> list[str]:
            output(sys.executable, "-c", SUBMITIT, folder, name, str(runs), is_array)
            return [name]

        return through(submit)


def ours(runs: int) -> Whole:
    with tempfile.TemporaryDirectory() as folder:
        settings = [*TRIVIAL, f"seed=range(1,{runs + 1})", f"cluster.runs_per_job={PER_JOB}", "cluster.mem_gb=1"]
        whole = through(lambda: launched(Path(folder), *settings))
        assert len(list(Path(folder).glob("run/*/result.json"))) == runs
        return whole


def sections(runs: int = RUNS) -> Iterator[Section | Skipped]:
    title = f"{runs} trivial runs through SLURM"
    with cluster() as problem:
        if problem:
            yield Skipped(title, problem)
            return
        variants = {
            f"{runs} times submitit's `submit`": partial(by_submitit, "no", runs),
            f"submitit's `map_array` of {runs}": partial(by_submitit, "yes", runs),
            f"one raw `sbatch --array` of {runs} `true`": partial(raw, runs),
            f"`python -m sweeps launch`, {-(-runs // PER_JOB)} jobs": partial(ours, runs),
        }
        measured = in_turns(variants, ROUNDS)
    setting = "The test cluster: four nodes of 4 CPUs on this machine. submitit's jobs sleep for 0 s; ours import torch, read the "
    setting += f"backbone and train one step each: {' '.join(TRIVIAL)}"
    handed = {name: [whole[0] for whole in wholes] for name, wholes in measured.items()}
    yield Section(f"{title}: handed over", setting, handed, by_wall=True)  # submitit sleeps between two submissions
    finished = {name: [whole[1] for whole in wholes] for name, wholes in measured.items()}
    yield Section(f"{title}: handed over and finished", "The same; CPU includes the jobs'", finished)
