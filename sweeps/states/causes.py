"""Finds out why runs stopped.

The sources are, in this order: the reason that the attempt wrote into its folder; SLURM's accounting; the end of the job's log,
which needs no accounting. If none of them gives a reason, the cause is "killed", because a killed process writes nothing. A wrong
cause would be worse, because users act on it.
"""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.failures import DISK, SILENT, Cause, from_text, silent
from mmprompt.runs.processes import is_running
from mmprompt.runs.store import Store
from sweeps.jobs.accounting import EndedJob, ended_jobs
from sweeps.jobs.batch import Batch, batches, log_of
from sweeps.jobs.job_log import BEGINS, OUT_OF_TIME, end_stamps, tail, timestamp, zone_of
from sweeps.states.state import AT_ONCE, OPEN, State

# By SLURM's state. FAILED is not among them: kill -9 and, without cgroups, too much memory end a job in this state too.
ACCOUNTED: dict[str, Cause] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "CANCELLED": "cancelled",  # "CANCELLED by 1000"
}
# The beginnings of SLURM's own lines in a log, in versions up to 25.11.
OF_SLURM = re.compile(r"(slurmstepd|srun)\b[^:]*:|\[[\d.T:-]+\] error:")
MARKS: tuple[tuple[re.Pattern[str], Cause], ...] = (  # messages of slurmstepd and srun in a log
    (re.compile(r"xceeded (\w+ )?memory limit(?! at some point)|oom[-_]kill event|: Out Of Memory$"), "out of memory"),
    (re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT|task \d+: User defined signal 2$"), "time limit"),
    (re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION"), "preempted"),
    (re.compile(r"CANCELLED AT \S+ DUE TO NODE FAILURE|Node failure on \S+$"), "node lost"),
    # Only for a JOB: for a STEP this message follows any signal.
    (re.compile(r"JOB \d+ ON \S+ CANCELLED AT \S+ (DUE to SIGNAL .*)?\*\*\*"), "cancelled"),
    (re.compile(r"task \d+: (Segmentation fault|Bus error|Aborted|Illegal instruction)"), "error"),
)
# Up to two digits: after a signal the exit code is 128 or more.
EXITED = re.compile(r"srun: error: .*: Exited with exit code (\d\d?)$")
UNWRITTEN = "0:53"  # the exit code of a job whose log SLURM could not open
CLOCKS = 5.0  # seconds by which the clocks of two machines may differ
# Time stamps that are further apart, in seconds, are of two executions. One end leaves several, KillWait seconds apart.
APART = 60.0


@dataclass(frozen=True)
class RunFailure:
    """Why one run stopped."""

    run: str
    cause: Cause
    reason: str  # one line: the last line of the traceback or of the log, or SLURM's state
    attempt: Attempt | None  # None: the job ended before it claimed any run
    log: Path | None  # the job's log, if there is one
    batch: Batch | None  # the batch that the job belongs to


@dataclass(frozen=True)
class End:
    """The end of a run's last job, from what is in the store."""

    failure: RunFailure
    is_known: bool  # whether the store tells why the job ended
    job: str | None  # SLURM's id; None for a local process


def failures(
    store: Store, runs: Sequence[str], states: Mapping[str, State], known: Sequence[Batch] | None = None
) -> dict[str, RunFailure]:
    """Returns why runs stopped: runs that failed, and runs to do whose attempt or job has ended. Other runs are left out.

    `known`: the store's batches, if they have been read already.
    """
    stopped = [run for run in runs if states[run].name in OPEN]
    submitted = SubmittedJobs(store, stopped, known if known is not None else batches(store) if stopped else ())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        all_ends = pool.map(lambda run: submitted.ends(run, states[run].attempt), stopped)
        ends_of = dict(zip(stopped, all_ends, strict=True))
    unexplained = [end for ends in ends_of.values() for end in ends if not end.is_known]
    accounted = ended_jobs({end.job: end.failure.batch for end in unexplained if end.job and end.failure.batch})
    logs = Logs()
    failures = {}
    for run, ends in ends_of.items():
        explained = (explain(end, accounted.get(end.job or ""), logs) for end in ends)
        failure = next((failure for failure in explained if failure is not None), None)
        if failure is not None:
            failures[run] = failure
    return failures


class SubmittedJobs:
    """The last jobs of these runs, and how they ended according to the store."""

    def __init__(self, store: Store, runs: Sequence[str], known: Sequence[Batch]) -> None:
        self.store = store
        self._batches = {batch.id: batch for batch in known}
        self._last: dict[str, tuple[Batch, int]] = {}  # by run: the last batch that contains it, and its job there
        self._jobs: dict[Batch, dict[int, str]] = {}  # SLURM's ids
        self._begun: dict[tuple[Batch, int], bool] = {}  # whether a job claimed a run
        stopped = set(runs)
        for batch in known:  # oldest first
            places = {run: (batch, number) for number, job in enumerate(batch.jobs) for run in stopped & set(job)}
            if places:
                self._last |= places
                self._jobs[batch] = batch.job_ids if batch.is_slurm else {}

    def ends(self, run: str, attempt: Attempt | None) -> list[End]:
        """Returns the possible ends of the run's last job, the newest first; empty for a run that no job ever had.

        `attempt`: the run's newest attempt.
        """
        facts = attempt.job if attempt else None
        last = self._last.get(run)
        ends = []
        if last and not (facts and facts["batch"] == last[0].id) and not self._is_begun(*last):
            ends += self._not_begun(run, *last)
        if attempt and facts:
            is_slurm = facts["scheduler"] == "slurm"
            reason = attempt.reason or silent(interrupted=False)
            is_known = reason.kind != "killed"
            # Outside SLURM a signal means Ctrl-C. SLURM sends signals for many reasons.
            cause = "cancelled" if reason.signal and not is_slurm else reason.kind
            message = reason.message if is_known or reason.signal else SILENT
            failure = RunFailure(run, cause, message, attempt, log_of(attempt), self._batches.get(facts["batch"]))
            ends.append(End(failure, is_known, facts.get("job") if is_slurm else None))
        return ends

    def _not_begun(self, run: str, batch: Batch, number: int) -> list[End]:
        """Returns the end of a job that ended before it claimed a run; empty if there is no sign that the job ever started."""
        if batch.is_slurm:
            job = self._jobs[batch].get(number)
            if job is None:  # a submit limit kept the job out, or its launch was killed
                return []
            log = batch.array(max(first for first in batch.arrays if first <= number)) / f"{job}_0_log.err"
            return [End(RunFailure(run, "not begun", SILENT, None, log, batch), False, job)]
        logs = batch.worker_logs
        is_alive = is_running(batch.record["launcher"]) is not False
        if is_alive or not logs or not says_why(tail(logs[-1]).splitlines()):
            return []  # the launch still runs, or a user ended it
        return [End(RunFailure(run, "not begun", SILENT, None, logs[-1], batch), False, None)]

    def _is_begun(self, batch: Batch, number: int) -> bool:
        """Whether this job claimed any of its runs."""
        key = batch, number
        if key not in self._begun:
            attempts = (attempt for run in batch.jobs[number] for attempt in self.store.run(run).readable_attempts())
            self._begun[key] = any(attempt.job["batch"] == batch.id for attempt in attempts)
        return self._begun[key]


class Logs:
    """The last lines of logs; each log is read once."""

    def __init__(self) -> None:
        self._lines: dict[Path, list[str]] = {}

    def of_last_execution(self, log: Path, began: str) -> list[str]:
        """Returns the lines of a job's last execution. SLURM may have started the job several times, all writing into one log.

        The position in the file separates the executions, so the clocks of different machines need not agree. `began`: when the
        last execution began according to SLURM's accounting, "" if unknown. It is needed because an execution that ended before
        Python started has no first line, and may have written nothing at all.
        """
        if log not in self._lines:
            self._lines[log] = tail(log).splitlines()
        lines = self._lines[log]
        first = max((i for i, line in enumerate(lines) if line.startswith(BEGINS)), default=-1)
        stamps = end_stamps(lines, zone_of(lines))
        old = [i for i, at in stamps.items() if i > first and abs(at - stamps[max(stamps)]) > APART]
        if first >= 0:  # else Python never started, and the time zone of the stamps is unknown
            old += [i for i, at in stamps.items() if at < timestamp(began) - CLOCKS]
        return lines[max([first, *old]) + 1 :]


def explain(end: End, accounted: EndedJob | None, logs: Logs) -> RunFailure | None:
    """Returns the failure with the cause that SLURM's accounting and the job's log give. None: the job did not fail."""
    if end.is_known:
        return end.failure
    start = accounted.start if accounted else ""
    lines = logs.of_last_execution(end.failure.log, start) if end.failure.log else []
    state = accounted.state if accounted else ""
    accounted_cause = ACCOUNTED.get(state.split(" ")[0].rstrip("+"))
    cause, reason = cause_in_log(lines)
    # SLURM cancels a script that takes too much memory.
    is_memory = (accounted_cause, cause) == ("cancelled", "out of memory")
    if accounted_cause is not None and cause != accounted_cause and not is_memory:
        cause, reason = accounted_cause, f"SLURM says {state}"
    if cause == "cancelled" and " by " in state:
        reason = f"cancelled by {user_name(state.split()[-1])}"
    if cause is not None:
        return replace(end.failure, cause=cause, reason=reason)
    return explain_from_output(end.failure, lines, accounted)


def cause_in_log(lines: Sequence[str]) -> tuple[Cause | None, str]:
    """Returns the cause and the reason that SLURM's own lines in a log give; None and "" if they give none.

    The first line with a cause counts: later ones report its consequences.
    """
    slurm = [line for line in lines if OF_SLURM.match(line)]
    causes = ((cause, slurm_message(line)) for line in slurm for mark, cause in MARKS if mark.search(line))
    return next(causes, (None, ""))


def explain_from_output(failure: RunFailure, lines: Sequence[str], accounted: EndedJob | None) -> RunFailure | None:
    """Returns the failure with the cause that the process printed last, if it printed any and was not killed."""
    own = [line for line in lines if line.strip() and not OF_SLURM.match(line)]
    has_exited = any(EXITED.match(line) for line in lines)
    if failure.attempt is None:
        return not_begun(failure, lines, own, accounted)
    is_local = failure.batch is not None and not failure.batch.is_slurm
    if failure.reason == SILENT and own and (has_exited or (is_local and says_why(own))):
        printed = from_text("\n".join(own))
        return replace(failure, cause=printed.kind, reason=printed.message)
    return failure


def not_begun(
    failure: RunFailure, lines: Sequence[str], own: Sequence[str], accounted: EndedJob | None
) -> RunFailure | None:
    """Returns the failure of a job that claimed no run; None if it did not fail. `own`: the lines that SLURM did not write."""
    if any(exited and int(exited[1]) == OUT_OF_TIME for exited in map(EXITED.match, lines)):
        return replace(failure, cause="time limit", reason=(own or ["no reason given"])[-1].strip())
    if own:
        printed = from_text("\n".join(own))
        return replace(failure, cause="not begun" if printed.kind == "error" else printed.kind, reason=printed.message)
    if accounted and accounted.state == "COMPLETED":
        return None  # other processes had claimed its runs
    refused = [slurm_message(line) for line in lines if OF_SLURM.match(line) and not line.startswith("srun:")]
    if refused:
        return replace(failure, reason=refused[0])
    if accounted and not accounted.state:
        return replace(failure, cause="cancelled", reason="cancelled before it began")
    end = f"SLURM says {accounted.state}, exit code {accounted.exit}" if accounted else "SLURM no longer knows the job"
    hint = ""
    if accounted and accounted.exit == UNWRITTEN and failure.log:
        hint = f": the node could not write into {failure.log.parent}"
    return replace(failure, reason=f"its job left no log; {end}{hint}")


def says_why(lines: Sequence[str]) -> bool:
    """Whether a process's output ends with a traceback or with a message about a full disk."""
    if lines and DISK.search(lines[-1]):
        return True
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return bool(starts) and all(line.startswith("  ") for line in lines[starts[-1] + 1 : -1])


def slurm_message(line: str) -> str:
    """Returns a line of SLURM's without its prefix."""
    return OF_SLURM.sub("", line).removeprefix(" error:").strip(" *")


def user_name(number: str) -> str:
    """Returns the name of the user with the uid that sacct prints."""
    with contextlib.suppress(KeyError, ValueError):
        return pwd.getpwuid(int(number)).pw_name
    return f"uid {number}"
