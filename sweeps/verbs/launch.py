"""A launch: freezes what sweeps ask for, submits the runs that are not done, follows them, and says how it ended.

A run that has its result and lacks an evaluation that a sweep wants is not done: the job that gets it evaluates it, no more.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from mmprompt.runs.config import ConfigError
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import provenance
from mmprompt.runs.records import DamagedError, ManifestRecord
from mmprompt.runs.store import TRIES, Attempt
from sweeps.display.live_table import LiveTable, confirm
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
from sweeps.verbs.status import StatusView, as_json
from sweeps.wording import count

UNSAID = ("kind", "checkpoint_every", "runs_per_job", "setup", "sbatch", "python")  # of what is asked of SLURM
SHOWN = 3  # runs of one reason for failing


def launch(
    names: Sequence[str], overrides: Sequence[str], wait: bool, retry: str | None, limit: int | None, json: bool
) -> int:
    """Submits what is not done, of several sweeps as one batch; local runs are waited for. With `json` all that it says goes to
    stderr, and at the end one JSON document, like that of `status`, to stdout.

    Returns 0 if all is well, 1 if a run failed or is not done, 130 if interrupted. Raises ConfigError for what is wrong
    with a sweep, an override or the cluster's settings.
    """
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        planned = look(names, overrides, retry, limit)
        code = carry_out(planned, wait, retry, limit)
    if json:
        print(as_json(StatusView(planned.launch.store, planned.launch.names, [])))
    return code


def carry_out(planned: LaunchPlan, wait: bool, retry: str | None, limit: int | None) -> int:
    planned = mended(planned, retry, limit)
    for damage in planned.batches.damaged:
        print(f"damaged: {damage}")
    busy = planned.to_do or planned.named("running", "queued")
    # Before anything is written: it may refuse.
    kind, why = slurm.choose(planned.launch.deployment.cluster.kind) if busy else ("local", "")
    about = provenance() | {"slurm_cluster": None}
    print(f"{', '.join(planned.launch.names)}: {planned}")
    if kind == "slurm" and planned.to_do:
        about["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
        print(f"{planned.what('slurm')} ({why}): {terms(planned)}\n{planned.cost}", flush=True)
        if not confirm(f"submit {len(planned.jobs)} jobs?"):
            print("nothing was submitted")
            return 1
    for sweep in planned.launch.sweeps:
        manifest.write(sweep, about)
    if not busy:
        return _report(planned, [], [])
    if kind == "local":
        return _launch_here(planned, about, why, retry, limit)
    return _launch_on_slurm(planned, about, wait, retry, limit)


def mended(planned: LaunchPlan, retry: str | None, limit: int | None) -> LaunchPlan:
    """The settings of runs are known here: where their file was damaged it is written anew."""
    configs, store = planned.launch.configs, planned.launch.store
    damaged = [(run, one.damage) for run, one in planned.states.items() if one.damage is not None]
    mendable = [(run, damage) for run, damage in damaged if damage.file == store.run(run).config_file]
    for run, damage in mendable:
        store.run(run).mend(configs[run])
        print(f"{damage.file} {damage.why}; it is written again")
    return launch_plan.of(planned.launch, retry, limit) if mendable else planned


def terms(planned: LaunchPlan) -> str:
    """What is asked of SLURM, on whose account."""
    cluster = planned.launch.deployment.cluster.model_dump(exclude_none=True)
    asked = {key: value for key, value in cluster.items() if key not in UNSAID and value not in (0, [], {})}
    return " ".join(f"{key}={value}" for key, value in asked.items())


def _launch_here(planned: LaunchPlan, about: Mapping[str, Any], why: str, retry: str | None, limit: int | None) -> int:
    batch = None
    while batch is None:
        runs = [*planned.to_do, *planned.named("running")]  # what another launch is at may be left to this one
        if not runs:
            return _report(planned, [], [])
        _prepare(planned)
        batch = freeze_batch(planned.launch, [runs], "local", about, planned.batches)
        if batch is None:  # another launch was faster
            planned = launch_plan.of(planned.launch, retry, limit)
    workers = Workers(batch, planned.places)
    print(f"{planned.what('local')} ({why}); logs in {batch.folder}", flush=True)
    return _follow(_watch(planned, about, runs, workers), planned)


def _launch_on_slurm(
    planned: LaunchPlan, about: Mapping[str, Any], wait: bool, retry: str | None, limit: int | None
) -> int:
    runs = [*planned.to_do, *planned.named("running", "queued", "lost?")]
    planned, _ = _submit(planned, about, retry, limit, _say)
    if wait:
        return _follow(_watch(planned, about, runs, None, Again(planned, about).submit), planned)
    if planned.problem:
        print(f"no information from SLURM: {planned.problem}")
    busy = planned.named("running", "queued")
    if busy:
        print("the jobs need nobody here; `status` says how far they are, the same command with --wait follows them")
    asked = wanted(planned.batches, busy)
    if short := [run for run in busy if planned.states[run].missing - asked[run]]:
        print(f"{count(short)} of a launch that wants fewer evaluations; once done, the same command makes the others")
    return _report(planned, [], [])


def _say(text: str) -> None:
    print(text, flush=True)


class Again:
    """Submits runs of a launch that waits again."""

    def __init__(self, planned: LaunchPlan, about: Mapping[str, Any]) -> None:
        self.launch, self.about = planned.launch, about
        self._full = jobs_of(planned) if planned.to_do else None  # jobs of ours in the queue when SLURM took no more

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


def jobs_of(planned: LaunchPlan) -> int:
    """How many SLURM has of this sweep."""
    return len({one.job.id for one in planned.states.values() if one.job})


def _submit(
    planned: LaunchPlan, about: Mapping[str, Any], retry: str | None, limit: int | None, say: Callable[[str], None]
) -> tuple[LaunchPlan, list[str]]:
    """Hands over what is to do. The sweep as it is afterwards, and the runs that SLURM took. Raises ConfigError if it refuses."""
    while planned.to_do:
        _prepare(planned)
        batch = freeze_batch(planned.launch, planned.jobs, "slurm", about, planned.batches)
        if batch is not None:
            handed = hand_over(batch, say)
            return launch_plan.of(planned.launch, None, None), handed
        wanted = set(planned.to_do)  # another launch was faster
        planned = launch_plan.of(planned.launch, retry, limit)
        planned = replace(planned, to_do=[run for run in planned.to_do if run in wanted])
    return planned, []


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


def _prepare(planned: LaunchPlan) -> None:
    """The folders of runs to do, and a word on attempts that ended without one."""
    for run in planned.to_do:
        planned.launch.store.run(run).create(planned.launch.configs[run])
        attempt = planned.states[run].attempt
        if attempt is not None and attempt.reason is None:
            mark_dead(attempt)


def _watch(
    planned: LaunchPlan,
    about: Mapping[str, Any],
    runs: Sequence[str],
    workers: Workers | None,
    submit: Submit | None = None,
) -> Watch:
    """Of the sweeps as this launch has frozen them, whatever others make of them meanwhile."""
    expanded = planned.launch
    sweeps = [
        LaunchedSweep(one.store, one.sweep.name, cast(ManifestRecord, manifest.manifest(one, about)))
        for one in expanded.sweeps
    ]
    return Watch(sweeps, expanded.labels, runs, workers, submit)


def _follow(watch: Watch, planned: LaunchPlan) -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(ending, signal.default_int_handler)  # as Ctrl-C
    try:
        with LiveTable() as screen:
            watch.follow(screen)
        if watch.workers:
            watch.workers.finish()
    except KeyboardInterrupt:
        return _interrupted(watch, planned)
    except StoreError:
        if watch.workers:
            watch.workers.stop()
        raise
    if watch.workers and watch.open:
        print(f"the workers ended before they were at every run; {watch.workers.last_words()}")
    failed = [run for run in watch.failed if not _is_done(planned, run)]  # another launch may have done it
    return _report(planned, failed, [*watch.open, *watch.abandoned])


def _interrupted(watch: Watch, planned: LaunchPlan) -> int:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # once is enough
    if watch.workers:
        print("interrupted: stopping the local processes", flush=True)
        watch.workers.stop()
    else:
        print("interrupted: the SLURM jobs go on")
    print(f"{_done(planned)} of {len(planned.states)} runs are done; the same command goes on from here")
    return 130


def _report(planned: LaunchPlan, failed: Sequence[str], not_done: Sequence[str]) -> int:
    """Says how the launch ended, failures grouped by their reason. Returns the exit code; to diverge is no failure, but what a
    search for a learning rate finds out."""
    diverged = [*planned.diverged, *(run for run in failed if planned.launch.store.run(run).attempts()[-1].diverged)]
    failed = [run for run in failed if run not in diverged]
    left_alone = [run for run in planned.left_alone if run not in diverged]
    if diverged:
        print(f"{count(diverged)} diverged, and would again: tables say so; only --retry diverged tries again")
        _say_why(planned, diverged)
    if failed:
        print(f"{count(failed)} failed; the same command tries again")
        _say_why(planned, failed)
    if left_alone:
        print(f"{count(left_alone)} failed {TRIES} times without getting further; only --retry tries again")
        _say_why(planned, left_alone)
    if not_done:
        print(f"{count(not_done)} not done; the same command goes on from here")
        _say_why(planned, not_done)
    lost = [run for run in planned.named("lost?") if run not in planned.to_do]
    if lost:
        print(f"{count(lost)} may be at work where nobody can be asked now; --retry starts them again")
    damaged = planned.named("damaged")
    if damaged:
        print(f"{count(damaged)} damaged, and left alone:")
        for run in damaged:
            print(f"  {planned.states[run].damage}")
    if _done(planned) == len(planned.states):
        already = " already" if len(planned.named("done")) == len(planned.states) else ""
        print(f"all {len(planned.states)} runs are done{already}")
    return 1 if failed or left_alone or not_done or lost or damaged else 0


def _say_why(planned: LaunchPlan, runs: Sequence[str]) -> None:
    grouped: dict[str, list[Attempt]] = {}
    for run in runs:
        for attempt in planned.launch.store.run(run).attempts()[-1:]:
            if (why := attempt.reason) is not None:
                grouped.setdefault(why.message, []).append(attempt)
    for reason, attempts in grouped.items():
        print(f"  {reason}")
        for attempt in attempts[:SHOWN]:
            print(f"    {planned.launch.labels[attempt.run.id]}")
            print(f"      {attempt.error_text}\n      {log_of(attempt) or 'started by hand'}")
        if len(attempts) > SHOWN:
            print(f"    and {len(attempts) - SHOWN} more")


def _done(planned: LaunchPlan) -> int:
    return sum(_is_done(planned, run) for run in planned.states)


def _is_done(planned: LaunchPlan, run: str) -> bool:
    try:
        return planned.launch.store.run(run).is_done(planned.launch.wanted[run])
    except DamagedError:
        return False
