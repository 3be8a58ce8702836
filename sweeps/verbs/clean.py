"""`python -m sweeps clean`: lists what is not needed any more with its size, asks for confirmation, and deletes it.

It never deletes settings, results, manifests, later evaluations, or files of a run's published attempt other than checkpoints.
It deletes nothing of a run that is queued, running or lost. `batch.json` stays, so that no batch's number is used twice.

A launch may begin at any time. All that it needs is newer than a day, except for a snapshot of the code that it uses again.
Therefore a snapshot is first renamed, and renamed back if a launch has begun to use it in this moment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.files import StoreError, draft_of, matching, remove, server_time
from mmprompt.runs.processes import is_running
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import OF_SEARCH, Store
from sweeps.display.live_table import confirm
from sweeps.grid.launched import readable, store_at
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, Batches, batches, evaluations_by_run
from sweeps.jobs.local import batch_folder, running_workers
from sweeps.states.state import OPEN, Queue, State, queue, states
from sweeps.wording import count, volume

DAY = 86_400.0  # seconds after which a draft is a leftover: no process is writing it any more
AT_ONCE = 16  # runs that are read at the same time
DRAFTS = "half-written files of processes that were killed"
ATTEMPTS = "checkpoints of finished runs, and files of attempts that were not published"
STOPPED = "checkpoints of trials that a search has stopped, now that it is over"
LOGS = "scripts and logs of batches whose runs are all done, older than {days} days"
CODE = "copies of our code that no open batch uses, not used for {days} days"
PROBES = "what the probes of `doctor` left, older than {days} days"
CACHE = "cached features, indices of files and decoded images"

UnneededPath = tuple[str, Path]  # the kind, one of the constants above, and a file or folder of it


@dataclass(frozen=True)
class Waste:
    """A file or folder that is not needed any more."""

    kind: str
    path: Path  # a file or a folder
    size: int  # bytes


def clean(runs: Path, days: int, cache: bool) -> int:
    """Prints what can be freed, asks for confirmation, and frees it; with `cache` also STORE/cache.

    `days`: the age from which logs and unused code are freed. Returns 1 if something could not be deleted.
    """
    store = store_at(runs)
    all_batches = batches(store)
    ids = sorted(store.runs() | {run for batch in all_batches for job in batch.jobs for run in job})
    queued = queue(store, ids)
    run_states = states(store, ids, queued, evaluations_by_run(all_batches, ids))
    open_batches = {batch.id for batch in all_batches if is_open(batch, run_states, queued)} | _batches_at_work(store)
    now = server_time(store.root)
    unneeded = [
        *of_runs(store, run_states, queued, now),
        *of_searches(store, run_states, queued),
        *of_batches(store, all_batches, open_batches, days, now),
    ]
    unneeded += of_code(store, all_batches, open_batches, days, now)
    unneeded += [(PROBES, folder) for folder in store.probes.glob("*") if is_older(folder, days * DAY, now)]
    unneeded += [(CACHE, file) for file in store.cache.glob("*")] if cache else []
    waste = [Waste(kind, path, size_of(path)) for kind, path in unneeded]
    _print(store, waste, days)
    damaged = (state.damage for state in run_states.values() if state.damage is not None)
    for damage in [*all_batches.damaged, *damaged]:
        print(f"damaged, so nothing that belongs to it is freed: {damage}")
    _print_unknown(queued)
    if not waste or not confirm(f"free {volume(sum(item.size for item in waste))}?"):
        return 0
    stayed = [item for item in waste if not free(item, days)]
    print(f"freed {volume(sum(item.size for item in waste) - sum(item.size for item in stayed))}")
    for item in stayed:
        print(f"  {item.path} stays: it is in use again, or another user's")
    return 1 if stayed else 0


def of_runs(store: Store, run_states: dict[str, State], queued: Queue, now: float) -> Iterator[UnneededPath]:
    """Unneeded files of runs; none of a run that a job may still hold, whether the run is done or not."""
    free = [run for run, state in run_states.items() if state.name in ("done", *OPEN) and run not in queued.jobs]

    def of_some(runs: Sequence[str]) -> list[UnneededPath]:
        return [path for run in runs for path in of_run(store.run(run), run_states[run], now)]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from itertools.chain(*pool.map(of_some, (free[i::AT_ONCE] for i in range(AT_ONCE))))


def of_run(folder: RunFolder, state: State, now: float) -> Iterator[UnneededPath]:
    """Unneeded files of a run: drafts, and if the run is done its checkpoints and the other files of unpublished attempts."""
    yield from drafts(now, folder.path, folder.path / "attempts", folder.evaluations)
    for attempt in folder.readable_attempts():
        is_published = state.result is not None and state.result["attempt"] == attempt.number
        if is_published or is_over(attempt):
            if not is_published:
                yield from drafts(now, attempt.path, attempt.evaluations)
            if state.result is not None:
                files = [attempt.checkpoint_file(step) for step in attempt.checkpoint_steps]
                files += [attempt.weights_file, *matching(attempt.evaluations, "[!.]*")] if not is_published else []
                yield from ((ATTEMPTS, file) for file in files if file.exists())


def of_searches(store: Store, run_states: dict[str, State], queued: Queue) -> Iterator[UnneededPath]:
    """Checkpoints of stopped trials whose search is over and whose runs no sweep has."""
    if not store.studies():
        return
    from mmprompt.studies.outcomes import StudyReader
    from mmprompt.studies.study import Study

    needed = {run for sweep in readable(store) if not sweep.name.startswith(OF_SEARCH) for run in sweep.runs}
    try:
        studies = [StudyReader(Study(store, name)).read() for name in store.studies()]
    except StoreError as error:
        print(f"damaged: {error}; checkpoints of trials stay")
        return
    for progress in studies:
        if progress.confirmation is None:  # its trials may go on yet
            needed |= {run for outcome in progress.outcomes for run in outcome.trial.runs.values()}
    stopped = [outcome.trial for progress in studies for outcome in progress.outcomes if outcome.state == "stopped"]
    for run in dict.fromkeys(run for trial in stopped for run in trial.runs.values()):
        if run not in needed and run not in queued.jobs and (run not in run_states or run_states[run].result is None):
            for attempt in filter(is_over, store.run(run).readable_attempts()):
                yield from ((STOPPED, attempt.checkpoint_file(step)) for step in attempt.checkpoint_steps)


def is_over(attempt: Attempt) -> bool:
    """Whether an attempt has ended, of a run that no SLURM job holds.

    A local process on another host cannot be checked from here, so its attempt does not count as ended.
    """
    if attempt.reason is not None or attempt.has_ended:
        return True
    lives = attempt.is_running()
    return lives is False or (lives is None and attempt.job["scheduler"] == "slurm")


def is_open(batch: Batch, run_states: dict[str, State], queued: Queue) -> bool:
    """Whether a job of the batch may still do something."""
    if batch.measured is not None:  # a measurement holds no runs: SLURM is queried for the job itself
        answer = slurm.jobs([batch] if batch.is_slurm else [])
        return is_running(batch.record["launcher"]) is True or bool(answer.jobs or answer.unknown)
    runs = [run for job in batch.jobs for run in job]
    is_held = any(held.batch == batch.id for run in runs if run in queued.jobs for held in queued.jobs[run])
    if batch.search is not None and not is_held and is_running(batch.record["launcher"]) is not True:
        return not search_is_over(batch)
    return (
        is_held or is_running(batch.record["launcher"]) is True or any(run_states[run].name != "done" for run in runs)
    )


def search_is_over(batch: Batch) -> bool:
    """Whether the search that the batch works on is over; then none of its stopped trials needs a worker."""
    from mmprompt.studies.confirmation import is_over as study_is_over
    from mmprompt.studies.outcomes import StudyReader
    from mmprompt.studies.study import Study

    study = Study(batch.store, str(batch.search))
    try:
        return study.file.exists() and study_is_over(StudyReader(study).read())
    except StoreError:
        return False


def _batches_at_work(store: Store) -> set[str]:
    """The ids of batches that have a local worker running on this machine."""
    return {batch_folder(worker).name for worker in running_workers(store)}


def of_batches(
    store: Store, all_batches: Iterable[Batch], open_batches: set[str], days: int, now: float
) -> Iterator[UnneededPath]:
    """Old files of batches that are not open, without the records of what was submitted: later launches read those, and count on
    from the batches' numbers."""
    yield from drafts(now, store.jobs, *map(store.costs, store.measured()))
    for batch in all_batches:
        if batch.id not in open_batches:
            files = [Path(folder, name) for folder, _, names in os.walk(batch.folder) for name in names]
            rest = [file for file in files if file.name not in ("batch.json", "submitted.json")]
            yield from ((LOGS, file) for file in rest if is_older(file, days * DAY, now))


def of_code(
    store: Store, all_batches: Batches, open_batches: set[str], days: int, now: float
) -> Iterator[UnneededPath]:
    """Snapshots of code that have not been used for `days` days.

    A snapshot of code with uncommitted changes stays, because results came from it. While a batch cannot be read all code stays.
    """
    kept = (batch.record for batch in all_batches if batch.id in open_batches or batch.record["job"].get("dirty", True))
    used = {Path(frozen["snapshot"]).name for frozen in kept if "snapshot" in frozen}
    yield from drafts(now, store.code)
    if all_batches.damaged:
        return
    for snapshot in store.code.glob("[!.]*"):
        if snapshot.name not in used and is_older(snapshot, days * DAY, now):
            yield CODE, snapshot


def drafts(now: float, *folders: Path) -> Iterator[UnneededPath]:
    """Half-written files: their names begin with a dot, and after a day no process is writing them any more."""
    for folder in folders:
        yield from ((DRAFTS, path) for path in matching(folder, ".*") if is_older(path, DAY, now))


def is_older(path: Path, seconds: float, now: float) -> bool:
    """Whether a path is older than this many seconds. `now`: seconds since 1970, by the clock that dates the store's files."""
    try:
        return now - path.lstat().st_mtime > seconds
    except FileNotFoundError:
        return False


def size_of(path: Path) -> int:
    """The bytes of a file, or of a folder with all that it holds."""
    total = 0
    for file in [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]:
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total


def free(waste: Waste, days: int) -> bool:
    """Deletes a file or folder. Returns whether it is gone."""
    path = waste.path
    if waste.kind == CODE:
        with contextlib.suppress(OSError):
            path = waste.path.rename(draft_of(waste.path))
            # A launch that uses a snapshot again sets its time first.
            if not is_older(path, days * DAY, server_time(path.parent)):
                path.rename(waste.path)
                return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(path)
    return not os.path.lexists(path)


def _print(store: Store, waste: Sequence[Waste], days: int) -> None:
    print(f"{store.root}: {volume(sum(item.size for item in waste)) if waste else 'nothing'} can be freed")
    for kind in (DRAFTS, ATTEMPTS, STOPPED, LOGS, CODE, PROBES, CACHE):
        sizes = [item.size for item in waste if item.kind == kind]
        if sizes:
            print(f"  {volume(sum(sizes)):>8}  {kind.format(days=days)} ({len(sizes)})")


def _print_unknown(queued: Queue) -> None:
    unknown = [run for run, jobs in queued.jobs.items() if any(held.job is None for held in jobs)]
    if unknown:
        print(
            f"SLURM gives no information about jobs that may hold {count(unknown)}: nothing that belongs to them is freed"
        )
