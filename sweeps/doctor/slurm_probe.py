"""The probe as a SLURM job: submits it, waits for it, and reports why it was refused, did not start, or ended early."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Sequence

from mmprompt.settings.parsing import ConfigError
from sweeps.doctor import node_checks
from sweeps.doctor.findings import bad, good, mine, note
from sweeps.doctor.node_checks import MARK
from sweeps.doctor.probe_job import LATE, SHARED, ProbeJob
from sweeps.jobs import slurm, submission

# Time limit of the probe, which takes seconds, or a minute or two where torch loads from a slow file system.
MINUTES = 5
PATIENCE = 600.0  # seconds that the job may be pending
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 15.0  # seconds between two calls of squeue
PAUSE_GROWTH = 1.3  # how many times longer each pause is than the one before
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
