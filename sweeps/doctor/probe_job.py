"""A job that runs the doctor's probe: reads its log and reports its findings; and the job as a local process.

The probe reports through the log of its job, because a log arrives here even if the probe does not see the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT, backbone_file, data_folder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster, Deployment
from sweeps.doctor import node_checks, training_checks
from sweeps.doctor.findings import Finding, Findings, bad, good, mine
from sweeps.doctor.node_checks import MARK
from sweeps.jobs import snapshot
from sweeps.jobs.batch import THREADS
from sweeps.jobs.local import gpus as gpus_here

LATE = 20.0  # seconds after a job's end within which its log arrives, squeue forgets it, and sacct knows how it ended
SHARED = "export MMPROMPT_RUNS=a folder that you may write to, on login and compute nodes"


@dataclass(frozen=True)
class LaunchSettings:
    """The settings that a launch would use."""

    deployment: Deployment
    store: Store
    config: RunConfig
    checksum: str | None  # of the backbone; None: it cannot be read
    problem: str  # why the backbone cannot be read


class ProbeJob(ABC):
    """A job that runs the probe; its log is read while it grows."""

    is_slurm: bool

    def __init__(self, settings: LaunchSettings, folder: Path, report: Findings) -> None:
        self.settings, self.folder, self.report = settings, folder, report
        self.cluster: Cluster = settings.deployment.cluster
        self.current_check = ""  # the check that the probe has begun last
        self.ended = False
        self.script_end: tuple[int, int] | None = None  # the line at which the job's script ended, and its exit code
        self._bytes_read = 0  # of the log

    def run(self) -> None:
        """Runs the probe and reports its findings. Raises StoreError if nothing can be written to the folder."""
        self.code = snapshot.take(ROOT, Store(self.folder))
        self.nonce = secrets.token_hex(8)
        try:
            node_checks.write(self.folder / "login", self.nonce)
            command = f"sweeps.doctor.node_checks {shlex.quote(json.dumps(self.request()))}"
        except OSError as error:
            self.report.say(bad("store", f"{self.folder} cannot be written: {error.strerror}", SHARED))
            return
        self.execute(command)

    @abstractmethod
    def execute(self, command: str) -> None:
        """Has `python -m COMMAND` executed where jobs run, and reports the outcome."""

    def request(self) -> dict[str, Any]:
        """What the probe needs to know, as JSON values."""
        deployment, config = self.settings.deployment, self.settings.config
        return {
            "folder": str(self.folder),
            "store": str(self.settings.store.root),
            "code": str(self.code),
            "nonce": self.nonce,
            "python": sys.executable,
            "host": socket.gethostname(),
            "slurm": self.is_slurm,
            "offset": node_checks.offset(self.folder),
            "packages": training_checks.versions(),
            "cluster": deployment.cluster.model_dump(),
            "tracking": deployment.tracking.model_dump(),
            "data": data_folder(deployment),
            "stage": deployment.data.stage,
            "backbone": str(snapshot.inside(backbone_file(deployment), ROOT, self.code)),
            "checksum": self.settings.checksum,
            "config": config.model_dump(mode="json"),
        }

    @property
    def threads(self) -> dict[str, str]:
        """Environment variables that must be set before python starts, as for a run."""
        return dict.fromkeys(THREADS, str(self.settings.config.threads))

    def read_log(self) -> bool:
        """Reports what is new in the log. Returns True if the probe, or the script of the job, has ended."""
        for log in self.folder.glob("*_log.out"):
            with log.open("rb") as stream:
                stream.seek(self._bytes_read)
                for line in stream:
                    if not line.endswith(b"\n"):  # it is still being written
                        break
                    self._bytes_read += len(line)
                    text = line.decode(errors="replace")
                    if text.startswith(MARK):
                        self.handle(json.loads(text.removeprefix(MARK)))
        return self.ended or self.script_end is not None

    def handle(self, message: Mapping[str, Any]) -> None:
        """Takes in a line of JSON: from the probe the begin of a check, a finding, or the end; or from the script its end."""
        if "begin" in message:
            if not self.current_check:
                self.started()
            self.current_check = message["begin"]
        elif "end" in message:
            self.ended = True
        elif "line" in message:
            self.script_end = message["line"], message["status"]
        else:
            self.report.say(Finding(message["grade"], message["name"], message["found"], tuple(message["advice"])))

    @abstractmethod
    def started(self) -> None:
        """Called when the probe has begun: reports what that shows."""

    def other_lines(self) -> list[str]:
        """The lines that the job printed besides those of the probe, at least one: `no words` if there are none."""
        logs = [*self.folder.glob("*_log.out"), *self.folder.glob("*_log.err")]
        lines = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        own = [line for line in lines if line.strip() and not line.startswith((MARK, "srun: "))]
        return [re.sub(r"^(slurmstepd\S*: error: |\S*slurm_script: line \d+: )", "", line) for line in own] or [
            "no words"
        ]

    def check_file_of_probe(self) -> None:
        """Checks, after the probe has ended, that the file that it wrote to the store arrives on this machine."""
        if self.report.grades.get("store") == "FAIL" or not self.ended:
            return
        deadline = time.monotonic() + LATE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if (self.folder / "node").read_text() == self.nonce[::-1]:
                    self.report.say(good("back", "what the probe wrote to the store is seen here"))
                    return
            time.sleep(0.5)
        found = f"what the probe wrote to {self.folder} is not seen here {LATE:.0f} s later"
        self.report.say(bad("back", found, SHARED))


class LocalProbe(ProbeJob):
    """The probe in a local process."""

    is_slurm = False

    def execute(self, command: str) -> None:
        self.report.heading("In a process here, as cluster=local runs jobs")
        wanted, available = self.cluster.gpus, gpus_here()
        if len(available) < wanted and os.environ.get("MMPROMPT_FAKE_GPUS") != "1":
            found = f"cluster.gpus={wanted}, and this machine has {len(available)} NVIDIA devices"
            self.report.say(bad("gpus", found, mine(f"gpus: {len(available)}")))
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(available[:wanted])}
        with (self.folder / "0_log.out").open("w") as out, (self.folder / "0_log.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", *shlex.split(command)],
                cwd=self.code,
                env=os.environ | self.threads | visible,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        try:
            while process.poll() is None:
                self.read_log()
                time.sleep(0.2)
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            print("interrupted: the probe is stopped")
            raise
        self.read_log()
        if not self.ended:
            found = (
                f"the probe ended (exit code {process.returncode}) while it looked at this: {self.other_lines()[-1]}"
            )
            self.report.say(bad(self.current_check or "python", found))
        self.check_file_of_probe()

    def started(self) -> None:
        pass  # nothing to report: the heading says that the probe runs here
