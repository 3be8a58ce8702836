"""What the verbs after a launch to SLURM cost: of 2,000 and 10,000 queued runs, in one batch and in many.

SLURM itself is not measured: a few lines of shell stand in for its commands. They take what they are given, and never start it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from measure import Section, Timing, interleaved

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from sweeps.jobs.batch import batches

ROUNDS, SIZES = 3, (2000, 10000)
PER_JOB, PER_BATCH = 4, 20  # runs
SWEEP = ["length", "task=micro_grounding", "prompt.length=4"]
SLURM = {
    "sinfo": "",
    "sacct": "",
    "scontrol": 'echo "MaxArraySize = 20001"',
    "scancel": 'touch "$QUEUE.cancelled"',
    "sbatch": r"""
        # sbatch --parsable SCRIPT
        array=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$2")
        id=$(($(wc -l < "$QUEUE") + 1))
        echo "$id $array $(sed -n 's/^#SBATCH --job-name=//p' "$2")" >> "$QUEUE"
        echo "$id" """,
    "squeue": r"""
        test -e "$QUEUE.cancelled" || awk -v user="$(id -un)" '{
            print $1 "_[0-" $2 "]|PENDING||1:00:00|" user "|Priority|" $3 "|job.sh"
        }' "$QUEUE" """,
}


@dataclass(frozen=True)
class Site:
    """A store, and a queue that knows of nothing else."""

    folder: Path
    runs: int

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def queue(self) -> Path:
        return self.folder / "queue"

    def launch(self) -> None:
        """All runs, in one batch."""
        (self.folder / "bin").mkdir(parents=True)
        for name, body in SLURM.items():
            (self.folder / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.folder / "bin" / name).chmod(0o755)
        self.queue.touch()
        self.verb("launch")

    def spread(self) -> None:
        """The jobs of its one batch, shared out to many, as many launches would have left them."""
        [whole] = batches(Store(self.store))
        frozen, jobs, of_each = whole.record, whole.record["jobs"], PER_BATCH // PER_JOB
        shutil.rmtree(whole.folder)
        lines = []
        for number in range(1, len(jobs) // of_each + 1):
            some = jobs[(number - 1) * of_each : number * of_each]
            folder, name = self.store / "jobs" / str(number), f"mmprompt-{number}-bench"
            runs = [run for job in some for part in job for run in part["runs"]]
            write(folder / "batch.json", frozen | {"jobs": some, "job_name": name, "sweeps": {"length": runs}})
            write(folder / "0" / "submitted.json", {"job": str(number), "count": len(some)})
            write(folder / "submitted.json", {"waiting": 0, "why": ""})
            lines.append(f"{number} {len(some) - 1} {name}.0\n")
        self.queue.write_text("".join(lines))

    def verb(self, verb: str) -> str:
        """The whole command; what it printed. What it cancels is in the queue again before the next one."""
        (self.folder / "queue.cancelled").unlink(missing_ok=True)
        composes = verb in ("plan", "launch")
        settings = [*SWEEP[1:], f"seed=range({self.runs})", "cluster=slurm", f"cluster.runs_per_job={PER_JOB}"]
        words = [verb, *(SWEEP[:1] if verb != "clean" else []), *(settings if composes else [])]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(self.store), "YES": "1"}
        environment |= {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "QUEUE": str(self.queue)}
        command = [sys.executable, "-m", "sweeps", *words]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


VERBS = {  # what each says of all runs: that it did what is measured
    "plan": "{0} runs: {0} queued",
    "launch": "{0} runs: {0} queued",
    "status": "{0} runs: {0} queued",
    "cancel": "{0} of {0} runs cancelled",
    "clean": "can be freed",
}


def write(file: Path, values: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


def sections() -> Iterator[Section]:
    with tempfile.TemporaryDirectory() as folder:
        few, many = (Site(Path(folder) / str(runs), runs) for runs in SIZES)
        spread = Site(Path(folder) / "spread", many.runs)
        for site in (few, many, spread):
            site.launch()
        spread.spread()
        sites = {
            f"{few.runs:,} runs, one batch": few,
            f"{many.runs:,} runs, one batch": many,
            f"{many.runs:,} runs, {many.runs // PER_BATCH} batches": spread,
        }
        for verb, said in VERBS.items():
            for site in sites.values():
                assert said.format(site.runs) in site.verb(verb)
            yield section(verb, sites)


def section(verb: str, sites: dict[str, Site]) -> Section:
    calls: dict[str, Callable[[], object]] = {name: partial(site.verb, verb) for name, site in sites.items()}
    timings = interleaved(calls, ROUNDS, warm_up=False)
    rows = {
        name: [Timing(1000 * t.wall / site.runs, 1000 * t.cpu / site.runs) for t in timings[name]]
        for name, site in sites.items()
    }
    title = f"`python -m sweeps {verb}`{' again' if verb == 'launch' else ''}, the whole command"
    setting = f"All runs are queued, {PER_JOB} a job; a stand-in for SLURM; the store is a local disk, warm"
    return Section(title, setting, rows, unit="1,000 runs")
