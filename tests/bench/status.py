"""Status: the whole command on sweeps of 1,000 and 10,000 runs, against a loop that reads what each run left."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Section, Timing, interleaved

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store

ROUNDS = 5
SIZES = (1000, 10000)
FAILED = 20  # one run of so many
TASKS, LENGTHS = ("micro_grounding", "micro_entailment"), (4, 10, 16, 30, 64)
METRIC = {"family": "grounding", "metric": "acc@0.5"}
LOOP = """
import json, sys
from pathlib import Path
store = Path(sys.argv[1])
for point in json.loads((store / "sweeps/length.json").read_text())["points"]:
    folder = store / "run" / point["run"]
    result, job = folder / "result.json", folder / "attempts/1/job.json"
    said = json.loads(result.read_text()) if result.exists() else {}
    print(point["run"], point["values"], said.get("metrics"), json.loads(job.read_text())["job"])
"""


def fill(store: Store, runs: int) -> None:
    """A sweep on local processes as a launch leaves it: most runs are done, some failed."""
    seeds = range(runs // len(TASKS) // len(LENGTHS))
    points = []
    for number, (task, length, seed) in enumerate(itertools.product(TASKS, LENGTHS, seeds)):
        run = f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"
        points.append({"values": {"task": task, "prompt.length": length, "seed": seed}, "run": run})
        leave(store, run, number)
    axes = {"task": TASKS, "prompt.length": LENGTHS, "seed": list(seeds)}
    manifest = {"sweep": "length", "command": "make sweep-length", "axes": axes, "points": points}
    write(store.manifest("length"), manifest | {"tasks": dict.fromkeys(TASKS, METRIC)})
    parts = [{"settings": {}, "runs": [point["run"] for point in points]}]
    launcher = this_process() | {"pid": 2**22 + 1}  # nobody has it
    batch = {
        "job": {"scheduler": "local"},
        "job_name": "mmprompt-1-abc",
        "launcher": launcher,
        "user": "",
        "jobs": [[parts[0]]],
    }
    write(
        store.jobs / "1" / "batch.json",
        batch | {"slurm_cluster": None, "overrides": [], "cluster": {"mem_gb": 2.0, "time_min": 60}},
    )


def leave(store: Store, run: str, number: int) -> None:
    folder = store.run(run).path
    job = {"batch": "1", "job": str(number % 8), "log": f"jobs/1/{number % 8}_0_log.err", "scheduler": "local"}
    write(folder / "attempts/1/job.json", job | {"host": "elsewhere", "pid": 1, "started": 0.0})
    if number % FAILED == 0:
        reason = f'Traceback (most recent call last):\n  File "a.py", line 1, in update\n    x\nValueError: {number}\n'
        (folder / "attempts/1/error.txt").write_text(reason)
    else:
        said = {"metrics": {"val/acc@0.5": 77.0, "test/acc@0.5": 76.0}, "steps": 300, "seconds": 14.2}
        write(folder / "result.json", said | {"run": run, "attempt": 1, "evaluations": {"val": run, "test": run}})


def write(file: Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, indent=1))


def command(*arguments: str) -> Callable[[], object]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return lambda: subprocess.run([sys.executable, *arguments], env=environment, capture_output=True)


def sections() -> Iterator[Section]:
    with tempfile.TemporaryDirectory() as folder:
        stores = {runs: f"{folder}/{runs}" for runs in SIZES}
        for runs, store in stores.items():
            fill(Store(Path(store)), runs)
            done = subprocess.run(
                [sys.executable, "-m", "sweeps", "status", "--runs", store, "--json"],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            counts = json.loads(done.stdout)["sweeps"][0]["counts"]
            assert (counts["done"], counts["failed"]) == (runs - runs // FAILED, runs // FAILED), done.stderr
        most = max(SIZES)
        variants = {f"a loop over result.json and job.json, {most:,} runs": (most, command("-c", LOOP, stores[most]))}
        for runs, store in stores.items():
            status = ("-m", "sweeps", "status", "--runs", store)
            variants[f"`status`, {runs:,} runs"] = runs, command(*status)
            variants[f"`status --json`, {runs:,} runs"] = runs, command(*status, "--json")
        timings = interleaved({name: call for name, (_, call) in variants.items()}, ROUNDS)
    rows = {}
    for name, (runs, _) in variants.items():
        whole = sorted(timing.wall for timing in timings[name])[ROUNDS // 2]
        rows[f"{name}: {whole:.1f} s"] = [Timing(1000 * t.wall / runs, 1000 * t.cpu / runs) for t in timings[name]]
    setting = f"One of {FAILED} runs failed, the others are done; no SLURM; the store is a local disk, warm"
    yield Section("`python -m sweeps status`, the whole command", setting, rows, unit="1,000 runs")
