"""`python -m sweeps clean`: what nobody needs any more, and its size; after one question it is gone.

Never: settings, results, manifests, what the published attempt of a run made besides checkpoints, evaluations that were made
later; anything of a run that is queued, at work, or of which nobody can tell; `batch.json`, so that no batch's number comes twice.
A launch may come at any time. What it needs is there already and newer than a day, but for a copy of our code that it
chooses to use again: such a copy is first put aside, and put back if that has just happened.
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

from mmprompt.runs.files import StoreError, draft_of, remove, server_time
from mmprompt.runs.processes import is_running
from mmprompt.runs.store import OF_SEARCH, Attempt, RunFolder, Store
from sweeps.display.live_table import confirmed
from sweeps.grid.launched import readable, store_at
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, Batches, batches, evaluations_by_run
from sweeps.jobs.local import batch_folder, running_workers
from sweeps.states.state import OPEN, Queue, State, queue, states
from sweeps.wording import count, volume

DAY = 86_400.0  # seconds after which what was being written belongs to nobody
AT_ONCE = 16  # runs that are looked at together
DRAFTS = "half written, by processes that were killed"
ATTEMPTS = "checkpoints of finished runs, and what attempts made that another was faster than"
STOPPED = "checkpoints of trials that a search has stopped, now that it is over"
LOGS = "scripts and logs of batches whose runs are all done, older than {days} days"
CODE = "copies of our code that no open batch uses, not used for {days} days"
PROBES = "what the probes of `doctor` left, older than {days} days"
CACHE = "what frozen backbones made of examples"

Found = tuple[str, Path]


@dataclass(frozen=True)
class Waste:
    kind: str
    path: Path  # a file or a folder
    size: int  # bytes


def clean(runs: Path, days: int, cache: bool) -> int:
    """Says what can be freed, asks, and frees it. With `cache` also STORE/cache. Returns 1 if something stayed."""
    store = store_at(runs)
    known = batches(store)
    ids = sorted(store.runs() | {run for batch in known for job in batch.jobs for run in job})
    queued = queue(store, ids)
    seen = states(store, ids, queued, evaluations_by_run(known, ids))
    open_batches = {batch.id for batch in known if is_open(batch, seen, queued)} | _of_workers(store)
    now = server_time(store.root)
    found = [
        *of_runs(store, seen, queued, now),
        *of_searches(store, seen, queued),
        *of_batches(store, known, open_batches, days, now),
    ]
    found += of_code(store, known, open_batches, days, now)
    found += [(PROBES, folder) for folder in store.probes.glob("*") if is_older(folder, days * DAY, now)]
    found += [(CACHE, file) for file in store.cache.glob("*")] if cache else []
    waste = [Waste(kind, path, size_of(path)) for kind, path in found]
    _print(store, waste, days)
    for damage in [*known.damaged, *(one.damage for one in seen.values() if one.damage is not None)]:
        print(f"damaged, and all that is theirs stays: {damage}")
    _print_unknown(queued)
    if not waste or not confirmed(f"free {volume(sum(one.size for one in waste))}?"):
        return 0
    stayed = [one for one in waste if not free(one, days)]
    print(f"freed {volume(sum(one.size for one in waste) - sum(one.size for one in stayed))}")
    for one in stayed:
        print(f"  {one.path} stays: it is in use again, or another user's")
    return 1 if stayed else 0


def of_runs(store: Store, seen: dict[str, State], queued: Queue, now: float) -> Iterator[Found]:
    """Nothing of a run that a job may still hold, be it done or not."""
    free = [run for run, state in seen.items() if state.name in ("done", *OPEN) and run not in queued.jobs]

    def some(runs: Sequence[str]) -> list[Found]:
        return [one for run in runs for one in of_run(store.run(run), seen[run], now)]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from itertools.chain(*pool.map(some, (free[i::AT_ONCE] for i in range(AT_ONCE))))


def of_run(folder: RunFolder, seen: State, now: float) -> Iterator[Found]:
    yield from drafts(now, folder.path, folder.path / "attempts", folder.evaluations)
    for attempt in folder.readable_attempts():
        is_published = seen.result is not None and seen.result["attempt"] == attempt.number
        if is_published or is_over(attempt):
            if not is_published:
                yield from drafts(now, attempt.path, attempt.evaluations)
            if seen.result is not None:
                files = [attempt.checkpoint_file(step) for step in attempt.checkpoint_steps]
                files += [attempt.weights_file, *attempt.evaluations.glob("[!.]*")] if not is_published else []
                yield from ((ATTEMPTS, file) for file in files if file.exists())


def of_searches(store: Store, seen: dict[str, State], queued: Queue) -> Iterator[Found]:
    """Of trials that were stopped and that no sweep asks for."""
    if not store.studies():
        return
    from mmprompt.studies.outcomes import Reader
    from mmprompt.studies.study import Study

    asked = {run for one in readable(store) if not one.name.startswith(OF_SEARCH) for run in one.runs}
    try:
        pictures = [Reader(Study(store, name)).look() for name in store.studies()]
    except StoreError as error:
        print(f"damaged: {error}; checkpoints of trials stay")
        return
    for picture in pictures:
        if picture.confirmation is None:  # its trials may go on yet
            asked |= {run for one in picture.outcomes for run in one.trial.runs.values()}
    stopped = [one.trial for picture in pictures for one in picture.outcomes if one.state == "stopped"]
    for run in dict.fromkeys(run for trial in stopped for run in trial.runs.values()):
        if run not in asked and run not in queued.jobs and (run not in seen or seen[run].result is None):
            for attempt in filter(is_over, store.run(run).readable_attempts()):
                yield from ((STOPPED, attempt.checkpoint_file(step)) for step in attempt.checkpoint_steps)


def is_over(attempt: Attempt) -> bool:
    """Of a run that no job of SLURM holds. Whether a process lives on another host, nobody here can tell."""
    if attempt.reason is not None or attempt.has_ended:
        return True
    lives = attempt.is_running()
    return lives is False or (lives is None and attempt.job["scheduler"] == "slurm")


def is_open(batch: Batch, seen: dict[str, State], queued: Queue) -> bool:
    """May some job of it still do something?"""
    if batch.measured is not None:  # it holds no run: SLURM is asked for the job itself
        answer = slurm.jobs([batch] if batch.is_slurm else [])
        return is_running(batch.record["launcher"]) is True or bool(answer.jobs or answer.unknown)
    runs = [run for job in batch.jobs for run in job]
    is_held = any(held.batch == batch.id for run in runs if run in queued.jobs for held in queued.jobs[run])
    if batch.search is not None and not is_held and is_running(batch.record["launcher"]) is not True:
        return not search_is_over(batch)
    return is_held or is_running(batch.record["launcher"]) is True or any(seen[run].name != "done" for run in runs)


def search_is_over(batch: Batch) -> bool:
    """Of the search that its jobs work on: then stopped trials need no worker."""
    from mmprompt.studies.confirmation import is_over as study_is_over
    from mmprompt.studies.outcomes import Reader
    from mmprompt.studies.study import Study

    study = Study(batch.store, str(batch.search))
    try:
        return study.file.exists() and study_is_over(Reader(study).look())
    except StoreError:
        return False


def _of_workers(store: Store) -> set[str]:
    return {batch_folder(worker).name for worker in running_workers(store)}


def of_batches(store: Store, known: Iterable[Batch], open_batches: set[str], days: int, now: float) -> Iterator[Found]:
    """All but what says what was submitted: later launches look at it, and count on from its number."""
    yield from drafts(now, store.jobs, *map(store.costs, store.measured()))
    for batch in known:
        if batch.id not in open_batches:
            files = [Path(folder, name) for folder, _, names in os.walk(batch.folder) for name in names]
            rest = [file for file in files if file.name not in ("batch.json", "submitted.json")]
            yield from ((LOGS, file) for file in rest if is_older(file, days * DAY, now))


def of_code(store: Store, known: Batches, open_batches: set[str], days: int, now: float) -> Iterator[Found]:
    """Code that is in no commit stays, because it made results. While a batch cannot be read, all code stays."""
    kept = (batch.record for batch in known if batch.id in open_batches or batch.record["job"].get("dirty", True))
    used = {Path(frozen["snapshot"]).name for frozen in kept if "snapshot" in frozen}
    yield from drafts(now, store.code)
    if known.damaged:
        return
    for snapshot in store.code.glob("[!.]*"):
        if snapshot.name not in used and is_older(snapshot, days * DAY, now):
            yield CODE, snapshot


def drafts(now: float, *folders: Path) -> Iterator[Found]:
    """What begins with a dot is not finished, and after a day it never will be."""
    for folder in folders:
        yield from ((DRAFTS, path) for path in folder.glob(".*") if is_older(path, DAY, now))


def is_older(path: Path, seconds: float, now: float) -> bool:
    """`now`: by the clock that dates the store's files."""
    try:
        return now - path.lstat().st_mtime > seconds
    except FileNotFoundError:
        return False


def size_of(path: Path) -> int:
    total = 0
    for file in [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]:
        with contextlib.suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total


def free(waste: Waste, days: int) -> bool:
    """Whether it is gone."""
    path = waste.path
    if waste.kind == CODE:
        with contextlib.suppress(OSError):
            path = waste.path.rename(draft_of(waste.path))
            if not is_older(
                path, days * DAY, server_time(path.parent)
            ):  # a launch that uses a copy again touches it first
                path.rename(waste.path)
                return False
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        remove(path)
    return not os.path.lexists(path)


def _print(store: Store, waste: Sequence[Waste], days: int) -> None:
    print(f"{store.root}: {volume(sum(one.size for one in waste)) if waste else 'nothing'} can be freed")
    for kind in (DRAFTS, ATTEMPTS, STOPPED, LOGS, CODE, PROBES, CACHE):
        sizes = [one.size for one in waste if one.kind == kind]
        if sizes:
            print(f"  {volume(sum(sizes)):>8}  {kind.format(days=days)} ({len(sizes)})")


def _print_unknown(queued: Queue) -> None:
    unknown = [run for run, jobs in queued.jobs.items() if any(held.job is None for held in jobs)]
    if unknown:
        print(f"SLURM gives no information about jobs that may hold {count(unknown)}: all that is theirs stays")
