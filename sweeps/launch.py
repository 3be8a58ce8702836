"""A launch: freezes what a sweep asks for, submits the runs that are not done, follows them, and says how it ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from typing import Any

from mmprompt.run import Attempt, StoreError, provenance
from sweeps import manifest, scheduler
from sweeps.batch import freeze, log_of, pack
from sweeps.outlook import Outlook, count, look
from sweeps.screen import Screen
from sweeps.state import TRIES, bury, last_line
from sweeps.watch import Watch
from sweeps.workers import Workers

SHOWN = 3  # runs of one reason for failing


def launch(name: str, overrides: Sequence[str], wait: bool, retry: bool) -> int:
    """Submits what is not done; local runs are waited for.

    Returns 0 if all is well, 1 if a run failed or is not done, 130 if interrupted. Raises ConfigError for what is wrong
    with the sweep, an override or the cluster's settings.
    """
    seen = look(name, overrides, retry)
    busy = seen.to_do or seen.named("running", "queued")
    # Before anything is written: it may refuse.
    kind, why = scheduler.choose(seen.expanded.place.cluster.kind) if busy else ("local", "")
    code = provenance()
    manifest.write(seen.expanded, code)
    print(f"{name}: {seen}")
    if not busy:
        return _report(seen, [], [])
    for run in seen.to_do:
        seen.expanded.store.run(run).create(seen.expanded.configs[run])
        attempt = seen.states[run].attempt
        if attempt is not None and attempt.error is None:
            bury(attempt)
    return _launch_here(seen, code, why) if kind == "local" else _launch_on_slurm(seen, code, why, wait)


def _launch_here(seen: Outlook, code: Mapping[str, Any], why: str) -> int:
    runs = [*seen.to_do, *seen.named("running")]  # what another launch is at may be left to this one
    if not runs:
        return _report(seen, [], [])
    workers = Workers(freeze(seen.expanded, [runs], "local", code), seen.places)
    print(f"{seen.jobs('local')} ({why}); logs in {workers.batch.folder}", flush=True)
    return _follow(Watch(seen.expanded, runs, workers), seen)


def _launch_on_slurm(seen: Outlook, code: Mapping[str, Any], why: str, wait: bool) -> int:
    if seen.to_do:
        jobs = pack(seen.to_do, seen.seconds, seen.expanded.place.cluster)
        batch = freeze(seen.expanded, jobs, "slurm", code)
        print(f"{seen.jobs('slurm')} ({why})")
        print(f"submitted as SLURM job {scheduler.submit(batch)}; logs in {batch.folder}", flush=True)
    if wait:
        return _follow(Watch(seen.expanded, [*seen.to_do, *seen.named("running", "queued")], None), seen)
    print("the jobs need nobody here; the same command says how far they are, and --wait follows them")
    return _report(seen, [], [])


def _follow(watch: Watch, seen: Outlook) -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(ending, signal.default_int_handler)  # as Ctrl-C
    try:
        with Screen() as screen:
            watch.follow(screen)
    except KeyboardInterrupt:
        return _interrupted(watch, seen)
    except StoreError:
        if watch.workers:
            watch.workers.stop()
        raise
    if watch.workers and watch.open:
        print(f"the workers ended before they were at every run; {watch.workers.last_words()}")
    failed = [run for run in watch.failed if watch.store.run(run).result() is None]  # another launch may have done it
    return _report(seen, failed, watch.open)


def _interrupted(watch: Watch, seen: Outlook) -> int:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # once is enough
    if watch.workers:
        print("interrupted: stopping the local processes", flush=True)
        watch.workers.stop()
    else:
        print("interrupted: the SLURM jobs go on")
    print(f"{_done(seen)} of {len(seen.states)} runs are done; the same command goes on from here")
    return 130


def _report(seen: Outlook, failed: Sequence[str], not_done: Sequence[str]) -> int:
    """Says how the launch ended, failures grouped by their reason. Returns the exit code."""
    if failed:
        print(f"{count(failed)} failed; the same command tries again")
        _say_why(seen, failed)
    if seen.left_alone:
        print(f"{count(seen.left_alone)} failed {TRIES} times without getting further; only --retry tries again")
        _say_why(seen, seen.left_alone)
    if not_done:
        print(f"{count(not_done)} not done; the same command goes on from here")
        _say_why(seen, not_done)
    lost = [run for run in seen.named("lost?") if run not in seen.to_do]
    if lost:
        print(f"{count(lost)} may be at work where nobody can be asked now; --retry starts them again")
    if _done(seen) == len(seen.states):
        already = " already" if len(seen.named("done")) == len(seen.states) else ""
        print(f"all {len(seen.states)} runs are done{already}")
    return 1 if failed or seen.left_alone or not_done or lost else 0


def _say_why(seen: Outlook, runs: Sequence[str]) -> None:
    grouped: dict[str, list[Attempt]] = {}
    for run in runs:
        for attempt in seen.expanded.store.run(run).attempts()[-1:]:
            if attempt.error is not None:
                grouped.setdefault(last_line(attempt.error), []).append(attempt)
    for reason, attempts in grouped.items():
        print(f"  {reason}")
        for attempt in attempts[:SHOWN]:
            print(f"    {seen.expanded.labels[attempt.run.id]}")
            print(f"      {attempt.path / 'error.txt'}\n      {log_of(attempt)}")
        if len(attempts) > SHOWN:
            print(f"    and {len(attempts) - SHOWN} more")


def _done(seen: Outlook) -> int:
    return sum(seen.expanded.store.run(run).result() is not None for run in seen.states)
