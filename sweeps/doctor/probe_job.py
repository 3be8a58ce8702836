"""Runs the doctor's probe where jobs run, as a SLURM job or in a local process, and reports its findings or why it ended early.

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
import textwrap
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT, backbone_file, data_folder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster, Deployment
from mmprompt.settings.parsing import ConfigError
from sweeps.doctor import node_checks
from sweeps.doctor.node_checks import MARK, Finding, bad, good, mine, note
from sweeps.jobs import slurm, snapshot, submission
from sweeps.jobs.batch import THREADS
from sweeps.jobs.local import gpus as gpus_here

WIDTH, NAMES = 80, 12  # columns of a line; columns of the names of checks
# Time limit of the probe, which takes seconds, or a minute or two where torch loads from a slow file system.
MINUTES = 5
PATIENCE = 600.0  # seconds that the job may be pending
LATE = 20.0  # seconds after a job's end within which its log arrives, squeue forgets it, and sacct knows how it ended
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 15.0  # seconds between two calls of squeue
PAUSE_GROWTH = 1.3  # how many times longer each pause is than the one before
SHARED = "export MMPROMPT_RUNS=a folder that you may write to, on login and compute nodes"
# SLURM's reasons for a pending job that will never start, which vary with its version; and the setting that is the cause.
NEVER_STARTS = {
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
# Reasons that pass by themselves.
PASSES = re.compile(r"Resources|Priority|ReqNodeNotAvail|Max(Jobs|Submit)|Grp|PerUser|PerAccount")
REFUSALS = {  # words in a refusal of sbatch, and the checks on this machine that find the same fault
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
# These lines come first in the job's script. When the script ends they print the line at which it ended, and its exit code.
# For bash, the commands of a trap are at line 1.
TRAPS = (
    "doctor_error= doctor_now=0 doctor_before=0",
    "trap 'doctor_before=$doctor_now doctor_now=$LINENO' DEBUG",
    "trap 'doctor_error=$LINENO' ERR",
    f'trap \'echo "{MARK}{{\\"status\\": $?, \\"line\\": '
    "${doctor_error:-$((doctor_now > 1 ? doctor_now : doctor_before))}}\"' EXIT",
)


@dataclass
class Findings:
    """Prints findings, and remembers the grade of each check."""

    grades: dict[str, str] = field(default_factory=dict)  # by check; FAIL if one of its findings failed

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
            advice = [f"        -> {line}" for line in finding.advice]  # not wrapped, so that they can be copied
            print("\n".join([text, *advice]), flush=True)

    @property
    def failed(self) -> list[str]:
        return [name for name, grade in self.grades.items() if grade == "FAIL"]


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
    where: str

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
            "packages": node_checks.versions(),
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


class SlurmProbe(ProbeJob):
    """The probe as a SLURM job with the user's settings, except for the time limit."""

    is_slurm = True
    job = ""

    def execute(self, command: str) -> None:
        settings = self.cluster.model_dump() | {"time_min": min(self.cluster.time_min, MINUTES)}
        name = f"mmprompt-doctor-{self.folder.name}"
        executor = submission.executor(self.folder, name, settings, self.threads, self.code)
        executor.parameters["setup"] = [*TRAPS, *executor.parameters["setup"]]
        try:
            self.job = submission.sbatch(executor, self.code, command, 1, None, None)
        except (ConfigError, submission.LimitError, submission.NoAnswerError) as error:
            self.report_refusal(error)
            return
        self.report.heading(f"On a node: the probe is job {self.job}, of {settings['time_min']} minutes at most")
        try:
            if self.wait():
                self.report_early_end()
                self.check_file_of_probe()
                self.check_queue_and_accounting()
        except KeyboardInterrupt:
            self.cancel("interrupted")
            raise

    def report_refusal(self, error: Exception) -> None:
        """Reports that sbatch refuses the job. If a check on this machine has found the fault before, it refers to that finding."""
        reason = error.reason if isinstance(error, submission.RefusedError) else str(error)
        reason = reason.rpartition("Batch job submission failed: ")[2]  # some messages of sbatch begin with it
        keys = next((keys for word, keys in REFUSALS.items() if word in reason.lower()), ())
        failed = [key for key in keys if key in self.report.failed]
        self.report.heading("On a node")
        if not isinstance(error, ConfigError):
            self.report.say(bad("sbatch", f"takes no job of yours now: {reason}", "squeue --me  (what is there)"))
        elif failed:
            self.report.say(note("sbatch", f"refuses the probe: {reason}; see {failed[0]}"))
        else:
            self.report.say(bad("sbatch", f"refuses the probe: {reason}", *self.present_values(keys)))
        self.report.say(note("node", "not checked, because SLURM took no job"))

    def present_values(self, keys: Sequence[str]) -> list[str]:
        """Advice: lines with the present values of these cluster settings."""
        values = self.cluster.model_dump()
        return [mine(f"{key}: {json.dumps(values[key])}  (as it is now)") for key in keys if key in values]

    def wait(self) -> bool:
        """Waits until the job has ended, and returns True. Returns False if the job will not start; then it was cancelled."""
        began, pause, next_query, gone, last_reason = time.monotonic(), FIRST_PAUSE, 0.0, 0.0, ""
        while not self.read_log():
            time.sleep(0.3)
            now = time.monotonic()
            if now < next_query:
                continue
            next_query, pause = now + pause, min(PAUSE_GROWTH * pause, LONGEST_PAUSE)
            state, reason, start = self.query_queue()
            if state == "GONE":
                gone = gone or now
                if now - gone > LATE / 2:  # its log will not arrive any more
                    return True
            elif state in ("PENDING", ""):
                if reason == last_reason and setting_to_blame(reason):  # it was given twice: it does not pass
                    return self.report_never_starting(reason)
                if now - began > PATIENCE:
                    return self.report_long_wait(reason)
                if reason not in ("", "None", last_reason):
                    when = f"; SLURM expects it to start at {start}" if start else ""
                    self.report.remark(f"it waits: {reason}{when}")
                last_reason = reason
        return True

    def report_never_starting(self, reason: str) -> bool:
        self.cancel("it will never start")
        key, found = setting_to_blame(reason), f"SLURM says why the job will never start: {reason}"
        is_known = key in self.report.failed
        self.report.say(note("queue", found) if is_known else bad("queue", found, *self.present_values([key])))
        return False

    def report_long_wait(self, reason: str) -> bool:
        self.cancel(f"no node in {PATIENCE / 60:.0f} minutes")
        found = f"{reason or 'squeue gives no reason'}: ask for less or for another partition, or try again later"
        self.report.say(bad("queue", found, "sinfo -s  (how many nodes are idle)", "squeue --me --start"))
        return False

    def query_queue(self) -> tuple[str, str, str]:
        """The job's state, reason and expected start. State GONE: squeue no longer knows the job; empty: no information."""
        answer, problem = slurm.ask("squeue", "-h", "-j", self.job, "-o", "%T|%r|%S")
        if answer is None:
            return ("GONE" if "Invalid job id" in problem else ""), "", ""
        if not answer.strip():
            return "GONE", "", ""
        state, reason, start = [*answer.splitlines()[0].split("|"), "", ""][:3]
        return state, reason, "" if start == "N/A" else start

    def cancel(self, why: str) -> None:
        """Cancels the probe's job, and nothing else."""
        problems = slurm.cancel([self.job])
        outcome = f"could not be cancelled ({problems[0][1]}): scancel {self.job}" if problems else "is cancelled"
        self.report.remark(f"{why}: the probe, job {self.job}, {outcome}")

    def started(self) -> None:
        count = len(self.cluster.setup)
        text = f"{count} line{'s' if count > 1 else ''} ran without an error" if count else "no lines (cluster.setup)"
        self.report.say(good("setup", text))

    def report_early_end(self) -> None:
        """Reports why the probe ended early, if it did."""
        if self.ended:
            return
        if self.current_check:
            state, last = self.end_state(), self.other_lines()[-1]
            more = [mine(f"mem_gb: {2 * self.cluster.mem_gb:g}")] if re.search("MEMORY|memory", state + last) else []
            slow = ["the packages lie on a slow file system: install them on another"] if "TIMEOUT" in state else []
            found = f"the job ended ({state}) while the probe looked at this: {last}"
            self.report.say(
                bad(self.current_check, found, *(more or slow or ["call the doctor again: somebody may have ended it"]))
            )
        elif self.script_end is not None:
            self.report_failed_script(*self.script_end)
        elif any(self.folder.glob("*_log.*")):  # a trap of the setup lines has replaced TRAPS
            found = f"the job ended ({self.end_state()}) before the probe began: {self.other_lines()[-1]}"
            self.report.say(bad("setup", found, *self.present_values(["setup"])))
        else:  # SLURM could not write the log
            found = (
                f"the job ended ({self.end_state()}) and left no log: "
                f"the node does not see {self.folder}, or may not write to it"
            )
            self.report.say(bad("store", found, SHARED))

    def report_failed_script(self, line: int, status: int) -> None:
        """Reports why the script ended before the probe began: a setup line failed, or the interpreter did not start or did not
        find the probe. `line`, `status`: where the script ended, and its exit code."""
        [script] = self.folder.glob("*_submission.sh")
        text, lines = script.read_text().splitlines()[line - 1].strip(), self.other_lines()
        python, last = self.cluster.python or sys.executable, lines[-1]
        # `cd` is the last line before srun, and ours: the folder does not exist on the node.
        lost = text.startswith("cd ") and text not in self.cluster.setup
        if not text.startswith("srun") and not lost:
            kept = [setup_line for setup_line in self.cluster.setup if setup_line.strip() != text]
            found = f"this line failed with exit code {status}: {text} ({last})"
            self.report.say(bad("setup", found, mine(f"setup: {json.dumps(kept)}  (or with that line mended)")))
            return
        self.started()
        if lost or "No module named" in last:
            found = f"{python} does not see the packages that a launch puts into the store, {self.code}: {last}"
            self.report.say(bad("store", found, *node_checks.advice_on_store(self.request())))
        elif "SyntaxError" in last:
            self.report.say(bad("python", f"{python} is too old: {last}", mine(f"python: {sys.executable}")))
        else:
            reason = next((text for text in lines if re.search("execve|No such file|not found|denied", text)), last)
            own = mine(f"python: {sys.executable}  (the one that launches, if nodes have it)")
            new = "make install VENV=/shared/venv  (where nodes see it)", mine("python: /shared/venv/bin/python")
            self.report.say(
                bad("python", f"{python} does not start: {reason}", *([own] if self.cluster.python else new))
            )

    def end_state(self) -> str:
        """How the job ended, if scontrol still knows it."""
        answer, _ = slurm.ask("scontrol", "show", "job", "-o", self.job)
        fields = dict(re.findall(r"\b(JobState|ExitCode)=(\S+)", answer or ""))
        return (
            fields["JobState"] + f", exit code {fields['ExitCode']}" if len(fields) == 2 else "SLURM does not say how"
        )

    def check_queue_and_accounting(self) -> None:
        """Checks that squeue and sacct, which tell how jobs ended, know of the probe's end."""
        deadline = time.monotonic() + LATE
        while (state := self.query_queue()[0]) not in ("GONE", "") and time.monotonic() < deadline:
            time.sleep(0.5)
        after = f"{LATE:.0f} s after its end"
        match state:
            case "GONE":
                self.report.say(good("squeue", "knows that the job has ended"))
            case "":
                self.report.say(note("squeue", "does not answer"))
            case _:
                self.report.say(note("squeue", f"says that the job is {state} {after}: `status` will be behind"))
        if "accounting" in self.report.grades or "sacct" in self.report.grades:  # this cluster has no accounting
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


def setting_to_blame(reason: str) -> str:
    """The cluster setting because of which a pending job will never start; empty if the reason passes by itself."""
    return (
        ""
        if PASSES.search(reason)
        else next((key for words, key in NEVER_STARTS.items() if re.search(words, reason)), "")
    )
