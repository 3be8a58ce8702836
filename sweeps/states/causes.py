"""Why runs stopped.

What an attempt said of itself comes first, then what SLURM's accounting knows, then the end of the job's log, which needs no
accounting. Where none of them tells, the cause is "killed": a process that is killed says nothing. A wrong cause is worse than
that, because somebody will act on it.
"""

from __future__ import annotations

import contextlib
import pwd
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from mmprompt.runs.failures import DISK, SILENT, Cause, from_text, silent
from mmprompt.runs.processes import is_running
from mmprompt.runs.store import Attempt, Store
from sweeps.jobs.accounting import EndedJob, ended_jobs
from sweeps.jobs.batch import Batch, batches, log_of
from sweeps.jobs.job_log import BEGINS, OUT_OF_TIME, end_stamps, tail, timestamp, zone_of
from sweeps.states.state import AT_ONCE, OPEN, State

# SLURM's states. FAILED says no cause: kill -9 and, without cgroups, too much memory end so.
ACCOUNTED: dict[str, Cause] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "CANCELLED": "cancelled",  # "CANCELLED by 1000"
}
OF_SLURM = re.compile(r"(slurmstepd|srun)\b[^:]*:|\[[\d.T:-]+\] error:")  # how its lines in a log begin, up to 25.11
MARKS: tuple[tuple[re.Pattern[str], Cause], ...] = (  # what slurmstepd and srun say there
    (re.compile(r"xceeded (\w+ )?memory limit(?! at some point)|oom[-_]kill event|: Out Of Memory$"), "out of memory"),
    (re.compile(r"CANCELLED AT \S+ DUE TO TIME LIMIT|task \d+: User defined signal 2$"), "time limit"),
    (re.compile(r"CANCELLED AT \S+ DUE TO PREEMPTION"), "preempted"),
    (re.compile(r"CANCELLED AT \S+ DUE TO NODE FAILURE|Node failure on \S+$"), "node lost"),
    (re.compile(r"JOB \d+ ON \S+ CANCELLED AT \S+ (DUE to SIGNAL .*)?\*\*\*"), "cancelled"),  # of a STEP: by any signal
    (re.compile(r"task \d+: (Segmentation fault|Bus error|Aborted|Illegal instruction)"), "error"),
)
EXITED = re.compile(r"srun: error: .*: Exited with exit code (\d\d?)$")  # by itself: 128 and more are signals
UNWRITTEN = "0:53"  # the exit code of a job whose log SLURM could not open
CLOCKS = 5.0  # seconds by which those of two machines may differ
APART = 60.0  # seconds between two stamps in a log that are not of one end; at the end of a job there are several, KillWait apart


@dataclass(frozen=True)
class RunFailure:
    run: str
    cause: Cause
    reason: str  # one line: the last of the traceback or of the log, or SLURM's word
    attempt: Attempt | None  # None: its job ended before it began any run
    log: Path | None  # of the job, where there is one
    batch: Batch | None  # that the job belongs to


@dataclass(frozen=True)
class End:
    """The end of a run's last job, as far as the store tells."""

    failure: RunFailure
    is_known: bool  # why it ended
    job: str | None  # SLURM's id; None of a local process


def failures(
    store: Store, runs: Sequence[str], states: Mapping[str, State], known: Sequence[Batch] | None = None
) -> dict[str, RunFailure]:
    """Why these runs stopped: those that failed, and those to do whose attempt or job has ended. The others are not in it.

    `known`: the batches there are.
    """
    stopped = [run for run in runs if states[run].name in OPEN]
    handed = HandedOver(store, stopped, known if known is not None else batches(store) if stopped else ())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(stopped, pool.map(lambda run: handed.ends(run, states[run].attempt), stopped), strict=True))
    silent = [end for ends in found.values() for end in ends if not end.is_known]
    accounted = ended_jobs({end.job: end.failure.batch for end in silent if end.job and end.failure.batch})
    logs = Logs()
    causes = {}
    for run, ends in found.items():
        whys = (why(end, accounted.get(end.job or ""), logs) for end in ends)
        failure = next((failure for failure in whys if failure is not None), None)
        if failure is not None:
            causes[run] = failure
    return causes


class HandedOver:
    """What was handed over of these runs, and how it ended as far as the store tells."""

    def __init__(self, store: Store, runs: Sequence[str], known: Sequence[Batch]) -> None:
        self.store = store
        self._batches = {batch.id: batch for batch in known}
        self._last: dict[str, tuple[Batch, int]] = {}  # by run: where it was submitted last
        self._jobs: dict[Batch, dict[int, str]] = {}  # SLURM's ids
        self._begun: dict[tuple[Batch, int], bool] = {}
        wanted = set(runs)
        for batch in known:  # oldest first
            places = {run: (batch, number) for number, job in enumerate(batch.jobs) for run in wanted & set(job)}
            if places:
                self._last |= places
                self._jobs[batch] = batch.job_ids if batch.is_slurm else {}

    def ends(self, run: str, attempt: Attempt | None) -> list[End]:
        """The ends that its last job may have come to, the newest first; empty of a run that nobody was ever at."""
        facts = attempt.job if attempt else None
        last = self._last.get(run)
        ends = []
        if last and not (facts and facts["batch"] == last[0].id) and not self._is_begun(*last):
            ends += self._not_begun(run, *last)
        if attempt and facts:
            is_slurm = facts["scheduler"] == "slurm"
            reason = attempt.reason or silent(interrupted=False)
            is_known = reason.kind != "killed"
            # A signal is Ctrl-C; but SLURM sends it for many reasons.
            cause = "cancelled" if reason.signal and not is_slurm else reason.kind
            message = reason.message if is_known or reason.signal else SILENT
            failure = RunFailure(run, cause, message, attempt, log_of(attempt), self._batches.get(facts["batch"]))
            ends.append(End(failure, is_known, facts.get("job") if is_slurm else None))
        return ends

    def _not_begun(self, run: str, batch: Batch, number: int) -> list[End]:
        """The end of a job that died before it claimed a run; empty if nothing says that there was one."""
        if batch.is_slurm:
            job = self._jobs[batch].get(number)
            if job is None:  # it did not fit under a submit limit, or its launch was killed
                return []
            log = batch.array(max(first for first in batch.arrays if first <= number)) / f"{job}_0_log.err"
            return [End(RunFailure(run, "not begun", SILENT, None, log, batch), False, job)]
        logs = batch.worker_logs
        is_alive = is_running(batch.record["launcher"]) is not False
        if is_alive or not logs or not says_why(tail(logs[-1]).splitlines()):
            return []  # the launch goes on, or somebody ended it
        return [End(RunFailure(run, "not begun", SILENT, None, logs[-1], batch), False, None)]

    def _is_begun(self, batch: Batch, number: int) -> bool:
        """Did this job claim any of its runs?"""
        key = batch, number
        if key not in self._begun:
            attempts = (attempt for run in batch.jobs[number] for attempt in self.store.run(run).readable_attempts())
            self._begun[key] = any(attempt.job["batch"] == batch.id for attempt in attempts)
        return self._begun[key]


class Logs:
    """The ends of logs, each read once."""

    def __init__(self) -> None:
        self._lines: dict[Path, list[str]] = {}

    def last(self, log: Path, began: str) -> list[str]:
        """The lines of a job's last execution: SLURM may have started it several times, and all of them write there.

        Their place in the file tells, and not whose clock says what. `began`: when SLURM's accounting says that it did, if it
        does: one that ended before python began has no first line, and may have written nothing at all.
        """
        if log not in self._lines:
            self._lines[log] = tail(log).splitlines()
        lines = self._lines[log]
        first = max((i for i, line in enumerate(lines) if line.startswith(BEGINS)), default=-1)
        stamps = end_stamps(lines, zone_of(lines))
        old = [i for i, at in stamps.items() if i > first and abs(at - stamps[max(stamps)]) > APART]
        if first >= 0:  # else python never began, and nobody knows the time zone of the stamps
            old += [i for i, at in stamps.items() if at < timestamp(began) - CLOCKS]
        return lines[max([first, *old]) + 1 :]


def why(end: End, accounted: EndedJob | None, logs: Logs) -> RunFailure | None:
    """The failure, with what SLURM's accounting and the log know of it. None: this job ended well."""
    if end.is_known:
        return end.failure
    lines = logs.last(end.failure.log, accounted.start if accounted else "") if end.failure.log else []
    state = accounted.state if accounted else ""
    known = ACCOUNTED.get(state.split(" ")[0].rstrip("+"))
    cause, reason = marked(lines)
    is_slurms_own = (known, cause) == ("cancelled", "out of memory")  # so it ends a script that takes too much
    if known is not None and cause != known and not is_slurms_own:
        cause, reason = known, f"SLURM says {state}"
    if cause == "cancelled" and " by " in state:
        reason = f"cancelled by {user(state.split()[-1])}"
    if cause is not None:
        return replace(end.failure, cause=cause, reason=reason)
    return without_mark(end.failure, lines, accounted)


def marked(lines: Sequence[str]) -> tuple[Cause | None, str]:
    """What SLURM's own lines in the log give as the cause: the first that does, what follows from it comes later."""
    slurm = [line for line in lines if OF_SLURM.match(line)]
    marks = ((cause, said_by_slurm(line)) for line in slurm for mark, cause in MARKS if mark.search(line))
    return next(marks, (None, ""))


def without_mark(failure: RunFailure, lines: Sequence[str], accounted: EndedJob | None) -> RunFailure | None:
    """Then the last words of the process tell, if it had any and was not killed."""
    own = [line for line in lines if line.strip() and not OF_SLURM.match(line)]
    has_exited = any(EXITED.match(line) for line in lines)
    if failure.attempt is None:
        return not_begun(failure, lines, own, accounted)
    is_local = failure.batch is not None and not failure.batch.is_slurm
    if failure.reason == SILENT and own and (has_exited or (is_local and says_why(own))):
        told = from_text("\n".join(own))
        return replace(failure, cause=told.kind, reason=told.message)
    return failure


def not_begun(
    failure: RunFailure, lines: Sequence[str], own: Sequence[str], accounted: EndedJob | None
) -> RunFailure | None:
    """Of a job that claimed no run."""
    if any(exited and int(exited[1]) == OUT_OF_TIME for exited in map(EXITED.match, lines)):
        return replace(failure, cause="time limit", reason=(own or ["no reason given"])[-1].strip())
    if own:
        told = from_text("\n".join(own))
        return replace(failure, cause="not begun" if told.kind == "error" else told.kind, reason=told.message)
    if accounted and accounted.state == "COMPLETED":
        return None  # somebody else was at its runs
    refused = [said_by_slurm(line) for line in lines if OF_SLURM.match(line) and not line.startswith("srun:")]
    if refused:
        return replace(failure, reason=refused[0])
    if accounted and not accounted.state:
        return replace(failure, cause="cancelled", reason="cancelled before it began")
    ended_jobs = (
        f"SLURM says {accounted.state}, exit code {accounted.exit}" if accounted else "SLURM does not know it any more"
    )
    why = ""
    if accounted and accounted.exit == UNWRITTEN and failure.log:
        why = f": the node could not write into {failure.log.parent}"
    return replace(failure, reason=f"its job left no log; {ended_jobs}{why}")


def says_why(lines: Sequence[str]) -> bool:
    """Do they end with a traceback, or with the word that a process has for a full disk?"""
    if lines and DISK.search(lines[-1]):
        return True
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    return bool(starts) and all(line.startswith("  ") for line in lines[starts[-1] + 1 : -1])


def said_by_slurm(line: str) -> str:
    return OF_SLURM.sub("", line).removeprefix(" error:").strip(" *")


def user(number: str) -> str:
    """The name of a user, by the number that sacct gives."""
    with contextlib.suppress(KeyError, ValueError):
        return pwd.getpwuid(int(number)).pw_name
    return f"uid {number}"
