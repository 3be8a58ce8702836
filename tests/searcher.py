"""`python -m sweeps search learning_rate` as a user calls it, on runs that take a second."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.studies.outcomes import StudyProgress, StudyReader
from mmprompt.studies.study import Study

TINY = [
    *("prompt.length=4", "optim.batch_size=4", "optim.micro_batch=4", "optim.validate_every=2", "optim.steps=8"),
    *("task.data.train=8", "task.data.val=8", "task.data.test=8", "tracking=disabled"),
    *("rungs=[2,4]", "budget.trials=6", "confirm.seeds=2", "confirm.top=1"),
]


@dataclass
class Searcher:
    folder: Path
    name: str = "learning_rate"

    @property
    def study(self) -> Study:
        return Study(Store(self.folder / "runs"), self.name)

    def read(self) -> StudyProgress:
        return StudyReader(self.study).read()

    def start(self, *arguments: str, verb: str = "search") -> subprocess.Popen[str]:
        own = [*TINY, "cluster=local", "cluster.max_parallel=1"] if verb == "search" else []
        name = [] if verb != "search" else ["learning_rate"]
        return subprocess.Popen(
            [sys.executable, "-m", "sweeps", verb, *name, *own, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(self.folder / "runs"), "YES": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, verb: str = "search") -> tuple[int, str]:
        process = self.start(*arguments, verb=verb)
        output, _ = process.communicate()
        return process.returncode, output

    def processes(self) -> list[psutil.Process]:
        """All processes that still run for this store."""
        return [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(p.info["cmdline"] or [])]
