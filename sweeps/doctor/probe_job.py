"""An examination: the probe where jobs run, as a SLURM job or in a process here, what it says, and why it did not come to its end.

The probe's log is what it reports in: a log is there even where the store is not seen.
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
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmprompt.runs.config import ConfigError, RunConfig
from mmprompt.runs.deployment import ROOT, Cluster, Deployment, backbone_file, data_folder
from mmprompt.runs.store import Store
from sweeps.doctor import probe
from sweeps.doctor.probe import MARK, Finding, bad, good, mine, note
from sweeps.jobs import slurm, snapshot, submission
from sweeps.jobs.batch import THREADS
from sweeps.jobs.local import gpus as gpus_here

WIDTH, NAMES = 80, 12  # columns; of the names
MINUTES = 5  # of the probe: it takes seconds, and a minute or two where a cold file system loads torch
PATIENCE = 600.0  # seconds that it may wait for a node
LATE = 20.0  # seconds after a job's end until its log is here, squeue has forgotten it and sacct knows
LOOK, LOOKS = 2.0, 15.0  # seconds between two squeues at first, and at last
AGAIN = 1.3  # how many times longer each pause is than the one before
SHARED = "export MMPROMPT_RUNS=a folder that you may write to, on login and compute nodes"
# Why a job is pending that will never start, in SLURM's words, which vary with its version; and the setting it is about.
NEVER = {
    r"TimeLimit|MaxWall": "time_min",
    r"M(ax|in)C(pu|PU)": "cpus",
    r"MaxMem": "mem_gb",
    r"M(ax|in)(GRES|TRES)": "gpus",
    r"Account": "account",
    r"QOS": "qos",
    r"BadConstraints": "constraint",
    r"Partition(Down|Inactive|NodeLimit)": "partition",
    r"JobHeld|Dependency": "sbatch",
}
PASSES = re.compile(r"Resources|Priority|ReqNodeNotAvail|Max(Jobs|Submit)|Grp|PerUser|PerAccount")
REFUSALS = {  # what sbatch says, and the findings of this machine that would have said it before
    "account": ("account", "partition"),
    "qos": ("qos",),
    "partition": ("partition",),
    "feature": ("constraint",),
    "reservation": ("reservation",),
    "node name": ("exclude",),
    "node configuration": ("gpus", "mem_gb", "cpus", "together", "constraint"),
    "time limit": ("time_min",),
    "memory": ("mem_gb",),
    "gres": ("gpus", "gres"),
}
# Ahead of the lines of the job's script: at its end it says at which line that was. What a trap executes is at line 1.
TRAPS = (
    "doctor_error= doctor_now=0 doctor_before=0",
    "trap 'doctor_before=$doctor_now doctor_now=$LINENO' DEBUG",
    "trap 'doctor_error=$LINENO' ERR",
    f'trap \'echo "{MARK}{{\\"status\\": $?, \\"line\\": '
    "${doctor_error:-$((doctor_now > 1 ? doctor_now : doctor_before))}}\"' EXIT",
)


@dataclass
class Findings:
    """What has been said so far."""

    grades: dict[str, str] = field(default_factory=dict)  # by name; FAIL if it failed once

    def heading(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    def remark(self, text: str) -> None:
        print(textwrap.fill(text, WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8), flush=True)

    def say(self, *findings: Finding) -> None:
        for finding in findings:
            if self.grades.get(finding.name) != "FAIL":
                self.grades[finding.name] = finding.grade
            head = f"  {finding.grade}  {finding.name:<{NAMES}}"
            text = textwrap.fill(
                finding.found, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
            )
            advice = [f"        -> {line}" for line in finding.advice]  # to be copied, so not wrapped
            print("\n".join([text, *advice]), flush=True)

    @property
    def failed(self) -> list[str]:
        return [name for name, grade in self.grades.items() if grade == "FAIL"]


@dataclass(frozen=True)
class LaunchSettings:
    """What a launch would go by."""

    deployment: Deployment
    store: Store
    config: RunConfig
    checksum: str | None  # of the backbone; None: it cannot be had
    problem: str  # with it


class ProbeJob(ABC):
    """Its log is read while it grows."""

    is_slurm: bool
    where: str

    def __init__(self, settings: LaunchSettings, folder: Path, report: Findings) -> None:
        self.settings, self.folder, self.report = settings, folder, report
        self.cluster: Cluster = settings.deployment.cluster
        self.begun = ""  # the check that the probe is at
        self.ended = False
        self.script_end: tuple[int, int] | None = None  # line of the script that it ended at, and its exit code
        self._heard = 0  # bytes

    def examine(self) -> None:
        """Raises StoreError if nothing can be put into the folder."""
        self.code = snapshot.take(ROOT, Store(self.folder))
        self.nonce = secrets.token_hex(8)
        try:
            probe.write(self.folder / "login", self.nonce)
            command = f"sweeps.doctor.probe {shlex.quote(json.dumps(self.asked()))}"
        except OSError as error:
            self.report.say(bad("store", f"{self.folder} cannot be written: {error.strerror}", SHARED))
            return
        self.probe(command)

    @abstractmethod
    def probe(self, command: str) -> None:
        """Has this command of python executed where jobs run, and says what comes of it."""

    def asked(self) -> dict[str, Any]:
        """What the probe needs to know."""
        deployment, config = self.settings.deployment, self.settings.config
        return {
            "folder": str(self.folder),
            "store": str(self.settings.store.root),
            "code": str(self.code),
            "nonce": self.nonce,
            "python": sys.executable,
            "host": socket.gethostname(),
            "slurm": self.is_slurm,
            "offset": probe.offset(self.folder),
            "packages": probe.versions(),
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
        """What must be set before python starts, as for a run."""
        return dict.fromkeys(THREADS, str(self.settings.config.threads))

    def listen(self) -> bool:
        """Says what has come since. True if the probe, or its script, has ended."""
        for log in self.folder.glob("*_log.out"):
            with log.open("rb") as stream:
                stream.seek(self._heard)
                for line in stream:
                    if not line.endswith(b"\n"):  # it is being written
                        break
                    self._heard += len(line)
                    text = line.decode(errors="replace")
                    if text.startswith(MARK):
                        self.hear(json.loads(text.removeprefix(MARK)))
        return self.ended or self.script_end is not None

    def hear(self, said: Mapping[str, Any]) -> None:
        if "begin" in said:
            if not self.begun:
                self.started()
            self.begun = said["begin"]
        elif "end" in said:
            self.ended = True
        elif "line" in said:
            self.script_end = said["line"], said["status"]
        else:
            self.report.say(Finding(said["grade"], said["name"], said["found"], tuple(said["advice"])))

    @abstractmethod
    def started(self) -> None:
        """Says where, when the probe has begun to look."""

    def words(self) -> list[str]:
        """What the job printed besides, the last line last. It printed something, or this says that it did not."""
        logs = [*self.folder.glob("*_log.out"), *self.folder.glob("*_log.err")]
        lines = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        own = [line for line in lines if line.strip() and not line.startswith((MARK, "srun: "))]
        return [re.sub(r"^(slurmstepd\S*: error: |\S*slurm_script: line \d+: )", "", line) for line in own] or [
            "no words"
        ]

    def settle(self) -> None:
        """After the probe: did its file arrive here?"""
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
    """In a local process."""

    is_slurm = False

    def probe(self, command: str) -> None:
        self.report.heading("In a process here, as cluster=local runs jobs")
        wanted, there = self.cluster.gpus, gpus_here()
        if len(there) < wanted and os.environ.get("MMPROMPT_FAKE_GPUS") != "1":
            found = f"cluster.gpus={wanted}, and this machine has {len(there)} NVIDIA devices"
            self.report.say(bad("gpus", found, mine(f"gpus: {len(there)}")))
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(there[:wanted])}
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
                self.listen()
                time.sleep(0.2)
        except KeyboardInterrupt:
            process.kill()
            process.wait()
            print("interrupted: the probe is stopped")
            raise
        self.listen()
        if not self.ended:
            found = f"the probe ended (exit code {process.returncode}) while it looked at this: {self.words()[-1]}"
            self.report.say(bad(self.begun or "python", found))
        self.settle()

    def started(self) -> None:
        pass  # it is here, as the heading said


class SlurmProbe(ProbeJob):
    """As a job with the user's settings, but for the time limit."""

    is_slurm = True
    job = ""

    def probe(self, command: str) -> None:
        settings = self.cluster.model_dump() | {"time_min": min(self.cluster.time_min, MINUTES)}
        name = f"mmprompt-doctor-{self.folder.name}"
        executor = submission.executor(self.folder, name, settings, self.threads, self.code)
        executor.parameters["setup"] = [*TRAPS, *executor.parameters["setup"]]
        try:
            self.job = submission.sbatch(executor, self.code, command, 1, None, None)
        except (ConfigError, submission.LimitError, submission.NoAnswerError) as error:
            self.refused(error)
            return
        self.report.heading(f"On a node: the probe is job {self.job}, of {settings['time_min']} minutes at most")
        try:
            if self.wait():
                self.conclude()
                self.settle()
                self.afterwards()
        except KeyboardInterrupt:
            self.give_up("interrupted")
            raise

    def refused(self, error: Exception) -> None:
        """By sbatch. Where this machine has said why before, that is the finding."""
        reason = error.reason if isinstance(error, submission.RefusedError) else str(error)
        reason = reason.rpartition("Batch job submission failed: ")[2]  # as sbatch begins some
        keys = next((keys for word, keys in REFUSALS.items() if word in reason.lower()), ())
        said = [key for key in keys if key in self.report.failed]
        self.report.heading("On a node")
        if not isinstance(error, ConfigError):
            self.report.say(bad("sbatch", f"takes no job of yours now: {reason}", "squeue --me  (what is there)"))
        elif said:
            self.report.say(note("sbatch", f"refuses the probe: {reason}; see {said[0]}"))
        else:
            self.report.say(bad("sbatch", f"refuses the probe: {reason}", *self.blamed(keys)))
        self.report.say(note("node", "not asked, for want of a job"))

    def blamed(self, keys: Sequence[str]) -> list[str]:
        """Advice: the settings that something is about, as they are."""
        values = self.cluster.model_dump()
        return [mine(f"{key}: {json.dumps(values[key])}  (as it is now)") for key in keys if key in values]

    def wait(self) -> bool:
        """Until the job has ended. False: it will not start, and was cancelled."""
        began, pause, next_look, gone, seen = time.monotonic(), LOOK, 0.0, 0.0, ""
        while not self.listen():
            time.sleep(0.3)
            now = time.monotonic()
            if now < next_look:
                continue
            next_look, pause = now + pause, min(AGAIN * pause, LOOKS)
            word, reason, start = self.look()
            if word == "GONE":
                gone = gone or now
                if now - gone > LATE / 2:  # its log is not coming
                    return True
            elif word in ("PENDING", ""):
                if reason == seen and blame(reason):  # it is not a passing one
                    return self.never(reason)
                if now - began > PATIENCE:
                    return self.too_long(reason)
                if reason not in ("", "None", seen):
                    when = f"; SLURM expects it to start at {start}" if start else ""
                    self.report.remark(f"it waits: {reason}{when}")
                seen = reason
        return True

    def never(self, reason: str) -> bool:
        self.give_up("it will never start")
        key, found = blame(reason), f"SLURM says why the job will never start: {reason}"
        said = key in self.report.failed
        self.report.say(note("queue", found) if said else bad("queue", found, *self.blamed([key])))
        return False

    def too_long(self, reason: str) -> bool:
        self.give_up(f"no node in {PATIENCE / 60:.0f} minutes")
        found = f"{reason or 'squeue gives no reason'}: ask for less or for another partition, or try again later"
        self.report.say(bad("queue", found, "sinfo -s  (how many nodes are idle)", "squeue --me --start"))
        return False

    def look(self) -> tuple[str, str, str]:
        """State, reason and expected start. GONE: squeue knows it no more; no state: no information."""
        answer, problem = slurm.ask("squeue", "-h", "-j", self.job, "-o", "%T|%r|%S")
        if answer is None:
            return ("GONE" if "Invalid job id" in problem else ""), "", ""
        if not answer.strip():
            return "GONE", "", ""
        word, reason, start = [*answer.splitlines()[0].split("|"), "", ""][:3]
        return word, reason, "" if start == "N/A" else start

    def give_up(self, why: str) -> None:
        """Cancels the probe, and nothing else."""
        problems = slurm.cancel([self.job])
        then = f"could not be cancelled ({problems[0][1]}): scancel {self.job}" if problems else "is cancelled"
        self.report.remark(f"{why}: the probe, job {self.job}, {then}")

    def started(self) -> None:
        count = len(self.cluster.setup)
        text = f"{count} line{'s' if count > 1 else ''} ran without an error" if count else "no lines (cluster.setup)"
        self.report.say(good("setup", text))

    def conclude(self) -> None:
        """Says why a probe did not come to its end."""
        if self.ended:
            return
        if self.begun:
            state, last = self.state(), self.words()[-1]
            more = [mine(f"mem_gb: {2 * self.cluster.mem_gb:g}")] if re.search("MEMORY|memory", state + last) else []
            slow = ["the packages lie on a slow file system: install them on another"] if "TIMEOUT" in state else []
            found = f"the job ended ({state}) while the probe looked at this: {last}"
            self.report.say(
                bad(self.begun, found, *(more or slow or ["call the doctor again: somebody may have ended it"]))
            )
        elif self.script_end is not None:
            self.before_the_probe(*self.script_end)
        elif any(self.folder.glob("*_log.*")):  # a trap of the setup lines has replaced ours
            found = f"the job ended ({self.state()}) before the probe began: {self.words()[-1]}"
            self.report.say(bad("setup", found, *self.blamed(["setup"])))
        else:  # SLURM could not write the log
            found = f"the job ended ({self.state()}) and left no log: the node does not see {self.folder}, or may not write to it"
            self.report.say(bad("store", found, SHARED))

    def before_the_probe(self, line: int, status: int) -> None:
        """A setup line failed, or the interpreter did not start, or did not find the probe."""
        [script] = self.folder.glob("*_submission.sh")
        text, words = script.read_text().splitlines()[line - 1].strip(), self.words()
        python, last = self.cluster.python or sys.executable, words[-1]
        lost = text.startswith("cd ") and text not in self.cluster.setup  # ours, the last one
        if not text.startswith("srun") and not lost:
            kept = [one for one in self.cluster.setup if one.strip() != text]
            found = f"this line failed with exit code {status}: {text} ({last})"
            self.report.say(bad("setup", found, mine(f"setup: {json.dumps(kept)}  (or with that line mended)")))
            return
        self.started()
        if lost or "No module named" in last:
            found = f"{python} does not see the packages that a launch puts into the store, {self.code}: {last}"
            self.report.say(bad("store", found, *probe.elsewhere(self.asked())))
        elif "SyntaxError" in last:
            self.report.say(bad("python", f"{python} is too old: {last}", mine(f"python: {sys.executable}")))
        else:
            reason = next((word for word in words if re.search("execve|No such file|not found|denied", word)), last)
            own = mine(f"python: {sys.executable}  (the one that launches, if nodes have it)")
            new = "make install VENV=/shared/venv  (where nodes see it)", mine("python: /shared/venv/bin/python")
            self.report.say(
                bad("python", f"{python} does not start: {reason}", *([own] if self.cluster.python else new))
            )

    def state(self) -> str:
        """How the job ended, as far as scontrol still knows it."""
        answer, _ = slurm.ask("scontrol", "show", "job", "-o", self.job)
        said = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", answer or ""))
        return said["JobState"] + f", exit code {said['ExitCode']}" if len(said) == 2 else "SLURM does not say how"

    def afterwards(self) -> None:
        """Do the programs that are asked of a job's end know of it?"""
        deadline = time.monotonic() + LATE
        while (word := self.look()[0]) not in ("GONE", "") and time.monotonic() < deadline:
            time.sleep(0.5)
        after = f"{LATE:.0f} s after its end"
        match word:
            case "GONE":
                self.report.say(good("squeue", "knows that the job has ended"))
            case "":
                self.report.say(note("squeue", "does not answer"))
            case _:
                self.report.say(note("squeue", f"says that the job is {word} {after}: `status` will be behind"))
        if "accounting" in self.report.grades or "sacct" in self.report.grades:  # there is none
            return
        answer: str | None = ""
        while answer is not None and ("Unknown" in answer or not answer.strip()) and time.monotonic() < deadline:
            answer, _ = slurm.ask("sacct", "-n", "-X", "-P", "-o", "State,End", "-j", self.job)
            time.sleep(0.2)
        if answer and "Unknown" not in answer:
            self.report.say(good("sacct", f"knows how the job has ended: {answer.split('|')[0]}"))
        else:
            self.report.say(
                note("sacct", f"does not know how the job ended {after}: fine, the store knows how runs did")
            )


def blame(reason: str) -> str:
    """The setting for which a job is pending for ever; nothing if the reason passes."""
    return "" if PASSES.search(reason) else next((key for words, key in NEVER.items() if re.search(words, reason)), "")
