"""`python -m sweeps` as a user calls it, on sweeps that take seconds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from patience import printed_by, until

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store

TINY = [
    "task=micro_grounding",
    "prompt.length=4",
    "optim.batch_size=4",
    "optim.micro_batch=4",
    "optim.validate_every=2",
]
TINY += ["task.data.train=8", "task.data.val=8", "task.data.test=8", "cluster=local", "tracking=disabled"]
TINY += ["cluster.max_parallel=1"]  # a second process takes longer to import torch than to train such runs


@dataclass
class Launcher:
    """`python -m sweeps` as a user calls it, from a folder that is not the repository."""

    folder: Path
    root: Path = ROOT
    environment: dict[str, str] = field(default_factory=dict)
    nohup: bool = False
    latest: subprocess.Popen[str] | None = None  # the process started last

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs")

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        self.latest = subprocess.Popen(
            [sys.executable, "-m", "sweeps", verb, "length", *TINY, *arguments],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": str(self.root),
                "MMPROMPT_RUNS": str(self.folder / "runs"),
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=self.take_signals,
        )
        return self.latest

    def take_signals(self) -> None:
        """Restores the default actions: a process that a shell runs in the background ignores Ctrl-C, and children inherit that."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if self.nohup else signal.SIG_DFL)

    def run(self, verb: str, *arguments: str) -> tuple[int, str]:
        process = self.start(verb, *arguments)
        printed = printed_by(process)
        return process.returncode, printed

    def manifest(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.store.manifest("length").read_text())
        return values

    def attempts(self) -> dict[str, list[dict[str, Any]]]:
        """The job.json of each attempt, by run."""
        folders = [self.store.run(point["run"]) for point in self.manifest()["points"]]
        return {folder.id: [attempt.job for attempt in folder.attempts()] for folder in folders}

    def worker(self) -> psutil.Process:
        """Waits for a worker that has claimed a run, and returns it."""

        def at_work() -> psutil.Process | None:
            if self.store.manifest("length").exists():
                for jobs in self.attempts().values():
                    with contextlib.suppress(IndexError, psutil.NoSuchProcess):
                        return psutil.Process(jobs[-1]["pid"])
            return None

        worker: psutil.Process = until(at_work, "a worker takes a run", self.latest, often=True)  # it may soon be done
        return worker

    def processes(self) -> list[psutil.Process]:
        """All processes that still run for this store."""
        return [p for p in psutil.process_iter(["cmdline"]) if str(self.folder) in " ".join(p.info["cmdline"] or [])]
