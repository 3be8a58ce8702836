"""The checks of a store after all faults, compared with a store that was not disturbed."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from calls import Calls, raised
from fault_context import FaultContext
from outcome import same
from subject import Subject, record

from mmprompt.studies.outcomes import StudyReader
from mmprompt.studies.study import Study

# Keys of a result that must be equal. Its evaluations may differ: either of two sweeps that share a run may train it.
EQUAL = ("weights", "best_step", "steps")
DAY = 86_400.0
LOOSE = 5.0  # seconds by which two clocks of one machine may appear to differ

# The last lines of the only tracebacks that a job's log or an attempt's error.txt may contain, by the fault that explains them.
# Signals and damaged files explain none, and a command that a user types may never print one.
OF_THE_DISK = r"TrackingError: .* cannot be written to|(StoreError|OSError|PermissionError)\b.*"
EARNED = {
    "the disk is full": OF_THE_DISK + r"No space left on device|^cut off$",
    "no inodes are left": OF_THE_DISK + r"No space left on device",
    "the disk is read-only": OF_THE_DISK + r"Read-only file system",
    # The store also holds the code that jobs import, and python does not find it without permissions.
    "permissions are taken": OF_THE_DISK
    + r"Permission denied|ModuleNotFoundError: No module named '(mmprompt|sweeps)\b",
    "error.txt": r"^cut off$",
    "a run's folder is removed": r"(StoreError|GoneError)\b.*run/[0-9a-f]{16}",
}
# scancel also ends W&B's own process, and its client reports that when python exits; only the log of a job may show this
OF_WANDB = r"ConnectionResetError: Connection lost"


def checked(context: FaultContext, undisturbed: Subject, happened: Mapping[str, int], out: Path) -> list[str]:
    """What is wrong, once all works are done and no process should be at work any more."""
    subject, ended = context.subject, time.time()
    wrong = [*left_at_work(subject), *of_drafts(context, ended), *of_tables(subject, undisturbed, out)]
    for run in sorted(subject.runs):
        wrong += [f"run {run}: {what}" for what in of_run(context, undisturbed, run)]
    wrong += of_searches(subject, undisturbed)
    folders = [folder for folder in (subject.store.root / "run").iterdir() if folder.is_dir()]
    wrong += [f"{folder} has no config.json" for folder in folders if not (folder / "config.json").is_file()]
    return [*wrong, *of_tracebacks(subject, happened)]


def left_at_work(subject: Subject) -> Iterator[str]:
    """Jobs and processes that still exist after a minute, in which jobs that find nothing to do can end."""
    deadline = time.monotonic() + 60
    while (jobs := subject.jobs()) and time.monotonic() < deadline:
        time.sleep(1)
    yield from (f"SLURM still has job {job}, {word}" for job, word in jobs.items())
    yield from (f"process {one.pid} still works: {' '.join(one.info['cmdline'])}" for one in subject.processes())


def of_drafts(context: FaultContext, ended: float) -> Iterator[str]:
    """Half-written files that `clean` does not delete although they are two days old."""
    store = context.subject.store.root
    for file in drafts(store):
        os.utime(file, (ended - 2 * DAY, ended - 2 * DAY), follow_symlinks=False)
    call = context.calls.start(["sweeps", "clean", "--days", "1"])
    context.calls.end(120)
    if call.code != 0:
        yield f"{call} ended with {call.code}; see {call.out}"
    yield from (f"{file} was half written, and `clean` leaves it" for file in drafts(store))


def drafts(store: Path) -> list[Path]:
    """Files and folders whose names begin with a dot, without the contents of such folders."""
    found: list[Path] = []
    for folder, folders, files in os.walk(store):
        found += [Path(folder, name) for name in (*folders, *files) if name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
    return found


def tables(subject: Subject, calls: Calls, out: Path) -> tuple[dict[str, str], list[str]]:
    """The files that `analysis tables` writes, by name, and what went wrong."""
    wrong = []
    for work in subject.works:
        words = ["analysis", "tables", work.manifest, "--runs", str(subject.store.root), "--out", str(out)]
        call = calls.start(words)
        calls.end(300)
        if call.code != 0:
            wrong.append(f"{call} ended with {call.code}: {call.printed}")
    made = sorted((out / "tables").iterdir()) if (out / "tables").is_dir() else []
    return {file.name: same(file) for file in made}, wrong


def of_tables(subject: Subject, undisturbed: Subject, out: Path) -> list[str]:
    found = [
        tables(one, Calls(one, out / name / "said"), out / name) for name, one in (("a", subject), ("b", undisturbed))
    ]
    (ours, wrong), (theirs, more) = found
    wrong += more
    if not ours or ours.keys() != theirs.keys():
        return [*wrong, f"tables {sorted(ours)}, wanted {sorted(theirs)}"]
    return wrong + [f"table {name} differs; see {out}" for name in ours if ours[name] != theirs[name]]


def of_run(context: FaultContext, undisturbed: Subject, run: str) -> Iterator[str]:
    subject = context.subject
    result, wanted = subject.result(run), undisturbed.result(run)
    if result is None or wanted is None:
        yield "it has no result"
        return
    if different := [key for key in EQUAL if result[key] != wanted[key]]:
        yield f"{', '.join(different)}: {[result[key] for key in different]}, wanted {[wanted[key] for key in different]}"
    yield from of_evaluations(subject, undisturbed, run)
    weights = [file.parent.name for file in subject.run(run).path.rglob("weights.safetensors")]
    if weights != [str(result["attempt"])]:
        yield f"published by attempt {result['attempt']}, weights are there of {weights}"
    hours = result["device_hours"]
    if not 0 <= hours < 1:
        yield f"it took {hours} device hours, it says"
    yield from trained_again(context, run)


def of_evaluations(subject: Subject, undisturbed: Subject, run: str) -> Iterator[str]:
    for evaluation in sorted(undisturbed.evaluations(run)):
        ours, theirs = (
            list(one.run(run).path.rglob(f"evaluations/{evaluation}.json")) for one in (subject, undisturbed)
        )
        if len(ours) != 1:
            yield f"evaluation {evaluation} is there {len(ours)} times"
        elif record(ours[0]).get("metrics") != record(theirs[0]).get("metrics"):
            yield f"evaluation {evaluation} differs"
        elif ours[0].with_suffix(".npy").read_bytes() != theirs[0].with_suffix(".npy").read_bytes():
            yield f"the single scores of evaluation {evaluation} differ"


def trained_again(context: FaultContext, run: str) -> Iterator[str]:
    """Attempts that began to train although the run had its result, and the result was not away at that time."""
    published = context.subject.run(run).result_file.stat().st_mtime
    for attempt in context.subject.attempts(run):
        is_excused = any(
            since <= attempt.claimed <= (till or time.time()) + LOOSE for since, till in context.lost.get(run, [])
        )
        if not attempt.evaluates and attempt.claimed > published + LOOSE and not is_excused:
            yield f"attempt {attempt.number} began to train {attempt.claimed - published:.0f} s after the result was there"


def of_searches(subject: Subject, undisturbed: Subject) -> Iterator[str]:
    """Differences between the searches. The sampler's proposals do not depend on the workers, so there should be none."""
    for work in subject.works:
        if work.verb == "search":
            ours, theirs = (told(one, work.name) for one in (subject, undisturbed))
            yield from (f"search {work.name} has {one}" for one in sorted(ours - theirs))
            yield from (f"search {work.name} lacks {one}" for one in sorted(theirs - ours))


def told(subject: Subject, name: str) -> set[str]:
    progress = StudyReader(Study(subject.store, name)).read()
    found = {
        json.dumps([one.trial.number, one.trial.settings, one.state, one.values, sorted(one.rungs.items())])
        for one in progress.outcomes
    }
    assert progress.confirmation is not None
    return found | {
        json.dumps([one.settings, sorted(one.runs.items())])
        for group in progress.confirmation.groups
        for one in group.candidates
    }


def of_tracebacks(subject: Subject, happened: Mapping[str, int]) -> Iterator[str]:
    """Tracebacks in logs of jobs and in error.txt that none of the faults explains."""
    earned = [pattern for kind, pattern in EARNED.items() if happened.get(kind)]
    logs = [*subject.store.jobs.rglob("*.err"), *subject.store.jobs.rglob("*.out")]
    errors = subject.store.root.glob("run/*/attempts/*/error.txt")
    for file, patterns in [*((log, [*earned, OF_WANDB]) for log in logs), *((error, earned) for error in errors)]:
        for last in raised(file):
            if not any(re.search(pattern, last) for pattern in patterns):
                yield f"{file} has a traceback: {last}"
