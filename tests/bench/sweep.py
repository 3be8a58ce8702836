"""A sweep of short runs: launched as one, against a process for each run; on SLURM in few jobs, against a job for each run."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from measure import Section, Skipped, Timing, in_turns, interleaved
from submit import cluster, launched, through

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from sweeps.jobs.batch import batches

ROUNDS = 1
RUNS = 48  # on SLURM
AXES = {"task": ["micro_grounding", "micro_entailment"], "prompt.length": [4, 16, 64], "seed": [1, 2, 3, 4]}
SHORT = ["optim.steps=20", "optim.validate_every=20", "task.data.train=640", "task.data.val=200", "task.data.test=200"]
POINTS = [[f"{k}={v}" for k, v in zip(AXES, row, strict=True)] for row in itertools.product(*AXES.values())]
BECOME_PARENT = 36  # PR_SET_CHILD_SUBREAPER: of all that our processes leave behind (man 2 prctl)
BY_HAND = 6  # of the runs are executed in a process each, evenly chosen, to save time


def all_ended() -> None:
    """Waits for what our processes started and left behind, workers and W&B's: else their seconds are nobody's."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def python(*arguments: str, store: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(store)}
    subprocess.run([sys.executable, "-m", *arguments], env=environment, check=True, capture_output=True)


def launch() -> None:
    axes = [f"{key}={','.join(map(str, values))}" for key, values in AXES.items()]
    with tempfile.TemporaryDirectory() as folder:
        python("sweeps", "launch", "length", *axes, *SHORT, "cluster=local", store=Path(folder))
        all_ended()
        assert len(list(Path(folder).glob("run/*/result.json"))) == len(POINTS)


def by_hand(at_once: int) -> None:
    points = POINTS[:: len(POINTS) // BY_HAND]
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda point: python("mmprompt", *point, *SHORT, store=Path(folder)), points))
        all_ended()
        assert len(list(Path(folder).glob("run/*/result.json"))) == BY_HAND


def on_slurm(runs: int, *settings: str) -> tuple[int, Timing]:
    """In how many jobs it was, and what that took. The store is a fresh one, so that nothing tells how long a run takes."""
    axes = ["task=micro_grounding,micro_entailment", "prompt.length=4,16,64", f"seed=range(1,{runs // 6 + 1})"]
    with tempfile.TemporaryDirectory() as folder:
        _, timing = through(lambda: launched(Path(folder), *axes, *SHORT, *settings))
        assert len(list(Path(folder).glob("run/*/result.json"))) == runs
        [batch] = batches(Store(Path(folder)))
        return len(batch.jobs), timing


def sections(runs: int = RUNS) -> Iterator[Section | Skipped]:
    """`runs`: on SLURM, a multiple of 6."""
    yield here()
    title = f"{runs} short runs through SLURM"
    with cluster() as problem:
        if problem:
            yield Skipped(title, problem)
            return
        packings = {"a job per run": ("cluster.runs_per_job=1",), "packed by `python -m sweeps launch`": ()}
        measured = in_turns({name: partial(on_slurm, runs, *words) for name, words in packings.items()}, ROUNDS)
    rows = {f"{name}: {some[0][0]} jobs": [timing for _, timing in some] for name, some in measured.items()}
    setting = "The embedded default, W&B offline, a fresh store; the test cluster's four nodes, on the cores of this machine: "
    yield Section(title, setting + " ".join(SHORT), rows)


def here() -> Section:
    ctypes.CDLL(None).prctl(BECOME_PARENT, 1)
    cores = len(os.sched_getaffinity(0))
    variants = {
        "a process per run, one after another": (BY_HAND, lambda: by_hand(1)),
        f"a process per run, {cores} at once": (BY_HAND, lambda: by_hand(cores)),
        "`python -m sweeps launch`": (len(POINTS), launch),
    }
    timings = interleaved({name: call for name, (_, call) in variants.items()}, ROUNDS, warm_up=False)
    rows = {}
    for name, (runs, _) in variants.items():
        each = [Timing(t.wall / runs, t.cpu / runs) for t in timings[name]]
        rows[f"{name}: {60 / statistics.median(t.wall for t in each):.1f} runs a minute"] = each
    setting = f"{len(POINTS)} runs of the embedded default, W&B offline, each with a fresh store: {' '.join(SHORT)}"
    return Section("A sweep of short runs", setting, rows, unit="run")
