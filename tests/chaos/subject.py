"""The subject of the faults: a store on the test cluster, its sweeps and its search, and the jobs and processes at work on them.

Every file that is read here may be damaged at that moment; a file that cannot be read counts as missing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clocks
import psutil
from cluster import Cluster

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import OF_SEARCH, Store
from sweeps.display.report import HELD

# capabilities by which root ignores permissions; the harness's commands give them up
POWERS = "-dac_override,-dac_read_search"
OBEDIENT = ["setpriv", "--bounding-set", POWERS, "--inh-caps", POWERS] if os.getuid() == 0 else []
OF_A_BATCH = re.compile(r"(mmprompt-\d+-[0-9a-f]{6})\.\d+")  # a job's name, which begins with its batch's


@dataclass(frozen=True)
class Work:
    """A sweep or a search that is launched, with its settings."""

    name: str
    settings: tuple[str, ...]
    verb: str = "launch"

    @property
    def manifest(self) -> str:
        return f"{OF_SEARCH}{self.name}" if self.verb == "search" else self.name


@dataclass
class Subject:
    folder: Path
    cluster: Cluster
    works: Sequence[Work]
    place: tuple[str, ...]  # settings of where and how its jobs run
    runs: frozenset[str] = frozenset()  # the runs that must be done at the end
    of_sweeps: frozenset[str] = frozenset()  # those of them that belong to a sweep, not only to a search
    names: set[str] = field(default_factory=set)  # the job names of its batches, also of damaged ones

    @property
    def store(self) -> Store:
        return Store(self.folder / "runs")

    @property
    def env(self) -> dict[str, str]:
        ours = {"SLURM_CONF": str(self.cluster.conf), "MMPROMPT_FAKE_GPUS": "1", "PYTHONPATH": str(ROOT), "YES": "1"}
        return {**os.environ, **ours, "MMPROMPT_RUNS": str(self.store.root)}

    def asked(self, work: Work, verb: str, *arguments: str) -> list[str]:
        """The words after `python -m` that call a verb on this sweep or search."""
        verbs = ["search", "plan"] if (work.verb, verb) == ("search", "plan") else [verb]
        return ["sweeps", *verbs, work.name, *work.settings, *self.place, *arguments]

    def command(self, *words: str) -> list[str]:
        return [*OBEDIENT, sys.executable, "-m", *words]

    # Runs and attempts

    def run(self, run: str) -> RunFolder:
        return self.store.run(run)

    def result(self, run: str) -> dict[str, Any] | None:
        """The run's result; None if there is none, or if the file is another run's."""
        found = record(self.run(run).result_file)
        return found if found.get("run") == run else None

    def evaluations(self, run: str) -> set[str]:
        """The ids of the run's evaluations, in whichever folder they lie."""
        return {file.stem for file in self.run(run).path.rglob("evaluations/[!.]*.json") if record(file)}

    def attempts(self, run: str) -> list[Attempt]:
        """The run's attempts whose process is known, oldest first."""
        with contextlib.suppress(OSError):
            return [one for one in self.run(run).attempts() if "pid" in record(one.path / "job.json")]
        return []

    def at_work(self) -> list[Attempt]:
        newest = [attempt for run in sorted(self.runs) for attempt in self.attempts(run)[-1:]]
        return [attempt for attempt in newest if self.is_at_work(attempt)]

    def is_at_work(self, attempt: Attempt) -> bool:
        over = [attempt.path / "error.txt", attempt.end_file]
        over += [] if record(attempt.path / "job.json").get("work") == "evaluate" else [attempt.run.result_file]
        return not any(file.exists() for file in over) and lives(attempt)

    def missing(self, undisturbed: Subject) -> set[str]:
        """The runs that lack their result, or an evaluation that the undisturbed store has."""
        return {
            run for run in self.runs if self.result(run) is None or undisturbed.evaluations(run) - self.evaluations(run)
        }

    # SLURM

    def control(self, *command: str) -> bool:
        done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.returncode == 0

    def ask(self, *command: str) -> list[str]:
        """The lines that a command prints; none if it fails."""
        done = subprocess.run(command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        return done.stdout.splitlines() if done.returncode == 0 else []

    def jobs(self) -> dict[str, str]:
        """The state of each job of this store, by SLURM's id."""
        return {job: word for job, word, _ in self._jobs()}

    def held(self) -> list[str]:
        """The jobs of this store that SLURM holds until they are released."""
        return [job for job, _, reason in self._jobs() if reason in HELD]

    def _jobs(self) -> Iterator[tuple[str, str, str]]:
        """SLURM's id, state and reason of each job of this store."""
        self.names |= {record(file).get("job_name", "") for file in self.store.jobs.glob("*/batch.json")}
        for line in self.ask("squeue", "-h", "-r", "-o", "%i|%T|%r|%j"):
            job, word, reason, name = line.split("|", maxsplit=3)
            if (batch := OF_A_BATCH.fullmatch(name)) and batch[1] in self.names:
                yield job, word, reason

    def drained(self) -> list[str]:
        """Nodes that SLURM does not use until they are resumed."""
        said = dict(line.split() for line in self.ask("sinfo", "-h", "-N", "-o", "%N %T"))
        return sorted(node for node, word in said.items() if word.startswith("drain"))

    def processes(self) -> Iterator[psutil.Process]:
        """The python processes with this store on their command line. An srun whose step's daemon was killed does not count."""
        for process in psutil.process_iter(["cmdline", "status", "name"]):
            words = process.info["cmdline"] or []
            works = process.info["status"] != psutil.STATUS_ZOMBIE and process.info["name"].startswith("python")
            if works and any(str(self.store.root) in word for word in words):
                yield process


def record(file: Path) -> dict[str, Any]:
    """A file's values; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def lives(attempt: Attempt) -> bool:
    """Whether the attempt's process exists; all nodes are this machine, whatever host name the record holds."""
    job = record(attempt.path / "job.json")
    with contextlib.suppress(psutil.NoSuchProcess, KeyError):
        process = psutil.Process(job["pid"])
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - job["started"]) < 2
    return False


def python_on_nodes(folder: Path, seed: int) -> Path:
    """Writes a program that jobs call instead of python. It gives each node its own host name, as real nodes have; a clock that is
    right, an hour early or an hour late, depending on the job's number; and permissions that hold for root too."""
    unshare = next(
        (words for words in UNSHARE if subprocess.run([*words, "true"], capture_output=True).returncode == 0), []
    )
    library = clocks.library()
    names = [*unshare, "sh", "-c", '\'hostname "$SLURMD_NODENAME"; exec "$@"\'', "sh"] if unshare else []
    program = folder / "python-on-node"
    late = f"LD_PRELOAD='{library}' PYTHONPATH={folder}:$PYTHONPATH"
    by_job = [
        f"case $(( (${{SLURM_JOB_ID:-0}} + {seed}) % 3 )) in",
        f"  1) export FAKETIME=-3600 {late} ;;",
        f"  2) export FAKETIME=+3600 {late} ;;",
        "esac",
        "export NO_FAKE_STAT=1 FAKETIME_DONT_FAKE_MONOTONIC=1  # the file server's and the kernel's clocks are right",
    ]
    lines = ["#!/bin/sh", *(by_job if library else []), " ".join(["exec", *names, *OBEDIENT, sys.executable, '"$@"'])]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLEEP)
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    return program


# faketime shifts the moment until which the kernel is asked to sleep, although that moment is given on a clock that it leaves alone
SLEEP = """import select
import time

time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
UNSHARE = (["unshare", "--uts"], ["unshare", "--user", "--map-root-user", "--uts"])
