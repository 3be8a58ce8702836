"""A launch: freezes what sweeps ask for, submits the runs that are not done, follows them, and says how it ended.

A run that has its result and lacks an evaluation that a sweep wants is not done: the job that gets it evaluates it, no more.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import provenance
from mmprompt.runs.records import DamagedError, ManifestRecord
from mmprompt.runs.store import TRIES, Attempt
from sweeps.display.live_table import LiveTable, confirmed
from sweeps.display.watch import Submit, Watch
from sweeps.grid import manifest
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, freeze_batch, log_of, wanted
from sweeps.jobs.local import Workers
from sweeps.jobs.submission import NoAnswerError
from sweeps.planning import launch_plan
from sweeps.planning.launch_plan import LaunchPlan, look
from sweeps.states.state import mark_dead
from sweeps.wording import count

UNSAID = ("kind", "checkpoint_every", "runs_per_job", "setup", "sbatch", "python")  # of what is asked of SLURM
SHOWN = 3  # runs of one reason for failing


def launch(names: Sequence[str], overrides: Sequence[str], wait: bool, retry: str | None, limit: int | None) -> int:
    """Submits what is not done, of several sweeps as one batch; local runs are waited for.

    Returns 0 if all is well, 1 if a run failed or is not done, 130 if interrupted. Raises ConfigError for what is wrong
    with a sweep, an override or the cluster's settings.
    """
    seen = mended(look(names, overrides, retry, limit), retry, limit)
    for damage in seen.batches.damaged:
        print(f"damaged: {damage}")
    busy = seen.to_do or seen.named("running", "queued")
    # Before anything is written: it may refuse.
    kind, why = slurm.choose(seen.launch.deployment.cluster.kind) if busy else ("local", "")
    about = provenance() | {"slurm_cluster": None}
    print(f"{', '.join(seen.launch.names)}: {seen}")
    if kind == "slurm" and seen.to_do:
        about["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
        print(f"{seen.what('slurm')} ({why}): {terms(seen)}\n{seen.cost}", flush=True)
        if not confirmed(f"submit {len(seen.jobs)} jobs?"):
            print("nothing was submitted")
            return 1
    for sweep in seen.launch.sweeps:
        manifest.write(sweep, about)
    if not busy:
        return _report(seen, [], [])
    if kind == "local":
        return _launch_here(seen, about, why, retry, limit)
    return _launch_on_slurm(seen, about, wait, retry, limit)


def mended(seen: LaunchPlan, retry: str | None, limit: int | None) -> LaunchPlan:
    """The settings of runs are known here: where their file was damaged it is written anew."""
    configs, store = seen.launch.configs, seen.launch.store
    damaged = [(run, one.damage) for run, one in seen.states.items() if one.damage is not None]
    mendable = [(run, damage) for run, damage in damaged if damage.file == store.run(run).config_file]
    for run, damage in mendable:
        store.run(run).mend(configs[run])
        print(f"{damage.file} {damage.why}; it is written again")
    return launch_plan.of(seen.launch, retry, limit) if mendable else seen


def terms(seen: LaunchPlan) -> str:
    """What is asked of SLURM, on whose account."""
    cluster = seen.launch.deployment.cluster.model_dump(exclude_none=True)
    asked = {key: value for key, value in cluster.items() if key not in UNSAID and value not in (0, [], {})}
    return " ".join(f"{key}={value}" for key, value in asked.items())


def _launch_here(seen: LaunchPlan, about: Mapping[str, Any], why: str, retry: str | None, limit: int | None) -> int:
    batch = None
    while batch is None:
        runs = [*seen.to_do, *seen.named("running")]  # what another launch is at may be left to this one
        if not runs:
            return _report(seen, [], [])
        _prepare(seen)
        batch = freeze_batch(seen.launch, [runs], "local", about, seen.batches)
        if batch is None:  # another launch was faster
            seen = launch_plan.of(seen.launch, retry, limit)
    workers = Workers(batch, seen.places)
    print(f"{seen.what('local')} ({why}); logs in {batch.folder}", flush=True)
    return _follow(_watch(seen, about, runs, workers), seen)


def _launch_on_slurm(
    seen: LaunchPlan, about: Mapping[str, Any], wait: bool, retry: str | None, limit: int | None
) -> int:
    runs = [*seen.to_do, *seen.named("running", "queued", "lost?")]
    seen, _ = _submit(seen, about, retry, limit, _say)
    if wait:
        return _follow(_watch(seen, about, runs, None, Again(seen, about).submit), seen)
    if seen.problem:
        print(f"no information from SLURM: {seen.problem}")
    busy = seen.named("running", "queued")
    if busy:
        print("the jobs need nobody here; `status` says how far they are, the same command with --wait follows them")
    asked = wanted(seen.batches, busy)
    if short := [run for run in busy if seen.states[run].missing - asked[run]]:
        print(f"{count(short)} of a launch that wants fewer evaluations; once done, the same command makes the others")
    return _report(seen, [], [])


def _say(text: str) -> None:
    print(text, flush=True)


class Again:
    """Submits runs of a launch that waits again."""

    def __init__(self, seen: LaunchPlan, about: Mapping[str, Any]) -> None:
        self.launch, self.about = seen.launch, about
        self._full = jobs_of(seen) if seen.to_do else None  # jobs of ours in the queue when SLURM took no more

    def submit(self, runs: Sequence[str], say: Callable[[str], None]) -> list[str]:
        """Those that were handed over: under a submit limit as many jobs as have ended since."""
        now = launch_plan.of(self.launch, None, None)
        now = replace(now, to_do=[run for run in now.to_do if run in runs])
        there = jobs_of(now)
        if self._full is not None and there:
            fit = now.jobs[: max(0, self._full - there)]
            now = replace(now, to_do=[run for job in fit for run in job])
        try:
            then, handed = _submit(now, self.about, None, None, say)
        except (ConfigError, StoreError) as error:
            say(str(error))
            return []
        self._full = jobs_of(then) if len(handed) < len(now.to_do) else self._full if there else None
        return handed


def jobs_of(seen: LaunchPlan) -> int:
    """How many SLURM has of this sweep."""
    return len({one.job.id for one in seen.states.values() if one.job})


def _submit(
    seen: LaunchPlan, about: Mapping[str, Any], retry: str | None, limit: int | None, say: Callable[[str], None]
) -> tuple[LaunchPlan, list[str]]:
    """Hands over what is to do. The sweep as it is afterwards, and the runs that SLURM took. Raises ConfigError if it refuses."""
    while seen.to_do:
        _prepare(seen)
        batch = freeze_batch(seen.launch, seen.jobs, "slurm", about, seen.batches)
        if batch is not None:
            handed = hand_over(batch, say)
            return launch_plan.of(seen.launch, None, None), handed
        wanted = set(seen.to_do)  # another launch was faster
        seen = launch_plan.of(seen.launch, retry, limit)
        seen = replace(seen, to_do=[run for run in seen.to_do if run in wanted])
    return seen, []


def hand_over(batch: Batch, say: Callable[[str], None]) -> list[str]:
    """Submits a batch, and says how that ended. The runs that SLURM took. Raises StoreError if it does not say, or if that could
    not be written down, ConfigError if it refuses."""
    try:
        slurm.submit(batch)
    except NoAnswerError as error:
        raise StoreError(
            f"SLURM did not say whether it took the jobs of {batch.folder} ({error}); nothing is lost: the same command finds "
            "those that it took, and submits the others"
        ) from None
    except slurm.UnwrittenError as error:
        later = "the same command finds them, and submits the others" if batch.measured is None else "they need nobody"
        raise StoreError(
            f"{error}. SLURM has the jobs all the same, as {named(error.taken)}; nothing is lost: {later}"
        ) from None
    ids = sorted({identity.split("_")[0] for identity in batch.job_ids.values()}, key=int)
    if ids:
        say(f"submitted as SLURM {named(ids)}; logs in {batch.folder}")
    end = batch.end
    if end and end["waiting"]:
        why = f"SLURM takes no more now ({end['why']})"
        say(f"{end['waiting']} of {len(batch.jobs)} jobs wait: {why}; the same command goes on")
    return [run for number in batch.job_ids for run in batch.jobs[number]]


def named(ids: Sequence[str]) -> str:
    """Jobs, by SLURM's ids, in words."""
    return f"jobs {', '.join(ids)}" if len(ids) > 1 else f"job {ids[0]}"


def _prepare(seen: LaunchPlan) -> None:
    """The folders of runs to do, and a word on attempts that ended without one."""
    for run in seen.to_do:
        seen.launch.store.run(run).create(seen.launch.configs[run])
        attempt = seen.states[run].attempt
        if attempt is not None and attempt.reason is None:
            mark_dead(attempt)


def _watch(
    seen: LaunchPlan,
    about: Mapping[str, Any],
    runs: Sequence[str],
    workers: Workers | None,
    submit: Submit | None = None,
) -> Watch:
    """Of the sweeps as this launch has frozen them, whatever others make of them meanwhile."""
    expanded = seen.launch
    sweeps = [
        LaunchedSweep(one.store, one.sweep.name, cast(ManifestRecord, manifest.manifest(one, about)))
        for one in expanded.sweeps
    ]
    return Watch(sweeps, expanded.labels, runs, workers, submit)


def _follow(watch: Watch, seen: LaunchPlan) -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(ending, signal.default_int_handler)  # as Ctrl-C
    try:
        with LiveTable() as screen:
            watch.follow(screen)
    except KeyboardInterrupt:
        return _interrupted(watch, seen)
    except StoreError:
        if watch.workers:
            watch.workers.stop()
        raise
    if watch.workers and watch.open:
        print(f"the workers ended before they were at every run; {watch.workers.last_words()}")
    failed = [run for run in watch.failed if not _is_done(seen, run)]  # another launch may have done it
    return _report(seen, failed, [*watch.open, *watch.left])


def _interrupted(watch: Watch, seen: LaunchPlan) -> int:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # once is enough
    if watch.workers:
        print("interrupted: stopping the local processes", flush=True)
        watch.workers.stop()
    else:
        print("interrupted: the SLURM jobs go on")
    print(f"{_done(seen)} of {len(seen.states)} runs are done; the same command goes on from here")
    return 130


def _report(seen: LaunchPlan, failed: Sequence[str], not_done: Sequence[str]) -> int:
    """Says how the launch ended, failures grouped by their reason. Returns the exit code; to diverge is no failure, but what a
    search for a learning rate finds out."""
    diverged = [*seen.diverged, *(run for run in failed if seen.launch.store.run(run).attempts()[-1].diverged)]
    failed = [run for run in failed if run not in diverged]
    left_alone = [run for run in seen.left_alone if run not in diverged]
    if diverged:
        print(f"{count(diverged)} diverged, and would again: tables say so; only --retry diverged tries again")
        _say_why(seen, diverged)
    if failed:
        print(f"{count(failed)} failed; the same command tries again")
        _say_why(seen, failed)
    if left_alone:
        print(f"{count(left_alone)} failed {TRIES} times without getting further; only --retry tries again")
        _say_why(seen, left_alone)
    if not_done:
        print(f"{count(not_done)} not done; the same command goes on from here")
        _say_why(seen, not_done)
    lost = [run for run in seen.named("lost?") if run not in seen.to_do]
    if lost:
        print(f"{count(lost)} may be at work where nobody can be asked now; --retry starts them again")
    damaged = seen.named("damaged")
    if damaged:
        print(f"{count(damaged)} damaged, and left alone:")
        for run in damaged:
            print(f"  {seen.states[run].damage}")
    if _done(seen) == len(seen.states):
        already = " already" if len(seen.named("done")) == len(seen.states) else ""
        print(f"all {len(seen.states)} runs are done{already}")
    return 1 if failed or left_alone or not_done or lost or damaged else 0


def _say_why(seen: LaunchPlan, runs: Sequence[str]) -> None:
    grouped: dict[str, list[Attempt]] = {}
    for run in runs:
        for attempt in seen.launch.store.run(run).attempts()[-1:]:
            if (why := attempt.reason) is not None:
                grouped.setdefault(why.message, []).append(attempt)
    for reason, attempts in grouped.items():
        print(f"  {reason}")
        for attempt in attempts[:SHOWN]:
            print(f"    {seen.launch.labels[attempt.run.id]}")
            print(f"      {attempt.error_text}\n      {log_of(attempt) or 'started by hand'}")
        if len(attempts) > SHOWN:
            print(f"    and {len(attempts) - SHOWN} more")


def _done(seen: LaunchPlan) -> int:
    return sum(_is_done(seen, run) for run in seen.states)


def _is_done(seen: LaunchPlan, run: str) -> bool:
    try:
        return seen.launch.store.run(run).is_done(seen.launch.wanted[run])
    except DamagedError:
        return False
