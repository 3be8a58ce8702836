"""`python -m sweeps launch`: freezes sweeps, submits the runs that are not done, follows them, and reports how they ended.

A run that has its result but lacks an evaluation that a sweep wants is not done; its job then makes only this evaluation.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from mmprompt.runs.attempt import TRIES, Attempt
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import provenance
from mmprompt.runs.records import DamagedError, ManifestRecord
from mmprompt.settings.parsing import ConfigError
from sweeps.display.live_table import LiveTable, confirm
from sweeps.display.watch import Submit, Watch
from sweeps.grid import manifest
from sweeps.grid.launched import LaunchedSweep
from sweeps.jobs import slurm
from sweeps.jobs.batch import Batch, evaluations_by_run, freeze_batch, log_of
from sweeps.jobs.local import Workers
from sweeps.jobs.submission import NoAnswerError
from sweeps.planning import launch_plan
from sweeps.planning.launch_plan import LaunchPlan, plan_launch
from sweeps.states.state import mark_dead
from sweeps.verbs.status import StatusView, as_json
from sweeps.wording import count

# Cluster settings left out of `terms`.
NOT_SHOWN = (
    *("kind", "recompute", "speed", "deterministic", "checkpoint_every", "checkpoint_seconds", "runs_per_job"),
    *("setup", "sbatch", "python"),
)
SHOWN = 3  # how many runs are listed for each reason of failing


def launch(
    names: Sequence[str], overrides: Sequence[str], wait: bool, retry: str | None, limit: int | None, json: bool
) -> int:
    """Submits the runs that are not done, those of several sweeps as one batch, and waits for local runs.

    With `json` all messages go to stderr, and at the end one JSON document, like that of `status`, goes to stdout. Returns 0 if
    all is well, 1 if a run failed or is not done, 130 if interrupted. Raises ConfigError for a fault in a sweep, an override or
    the cluster settings.
    """
    with contextlib.redirect_stdout(sys.stderr) if json else contextlib.nullcontext():
        planned = plan_launch(names, overrides, retry, limit)
        code = carry_out(planned, wait, retry, limit)
    if json:
        print(as_json(StatusView(planned.launch.store, planned.launch.names, [])))
    return code


def carry_out(planned: LaunchPlan, wait: bool, retry: str | None, limit: int | None) -> int:
    """Carries out a launch plan. Returns the exit code."""
    planned = repair_settings(planned, retry, limit)
    for damage in planned.batches.damaged:
        print(f"damaged: {damage}")
    busy = planned.to_do or planned.runs_in_state("running", "queued")
    # Chosen before anything is written, because it may raise ConfigError.
    kind, why = slurm.choose(planned.launch.deployment.cluster.kind) if busy else ("local", "")
    facts = provenance() | {"slurm_cluster": None}
    print(f"{', '.join(planned.launch.names)}: {planned}")
    if kind == "slurm" and planned.to_do:
        facts["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
        print(f"{planned.submission('slurm')} ({why}): {terms(planned)}\n{planned.cost}", flush=True)
        if not confirm(f"submit {len(planned.jobs)} jobs?"):
            print("nothing was submitted")
            return 1
    for sweep in planned.launch.sweeps:
        manifest.write(sweep, facts)
    if not busy:
        return _report(planned, [], [])
    if kind == "local":
        return _launch_here(planned, facts, why, retry, limit)
    return _launch_on_slurm(planned, facts, wait, retry, limit)


def repair_settings(planned: LaunchPlan, retry: str | None, limit: int | None) -> LaunchPlan:
    """Writes config.json of runs again if it is damaged, which a launch can because it has composed them. Returns the new plan."""
    configs, store = planned.launch.configs, planned.launch.store
    damaged = [(run, one.damage) for run, one in planned.states.items() if one.damage is not None]
    mendable = [(run, damage) for run, damage in damaged if damage.file == store.run(run).config_file]
    for run, damage in mendable:
        store.run(run).mend(configs[run])
        print(f"{damage.file} {damage.why}; it is written again")
    return launch_plan.plan_for(planned.launch, retry, limit) if mendable else planned


def terms(planned: LaunchPlan) -> str:
    """The cluster settings that SLURM is asked for, as `key=value`."""
    cluster = planned.launch.deployment.cluster.model_dump(exclude_none=True)
    shown = {key: value for key, value in cluster.items() if key not in NOT_SHOWN and value not in (0, [], {})}
    return " ".join(f"{key}={value}" for key, value in shown.items())


def _launch_here(planned: LaunchPlan, facts: Mapping[str, Any], why: str, retry: str | None, limit: int | None) -> int:
    batch = None
    while batch is None:
        runs = [
            *planned.to_do,
            *planned.runs_in_state("running"),
        ]  # another launch may leave its running runs unfinished
        if not runs:
            return _report(planned, [], [])
        _create_folders(planned)
        batch = freeze_batch(planned.launch, [runs], "local", facts, planned.batches)
        if batch is None:  # another launch was faster
            planned = launch_plan.plan_for(planned.launch, retry, limit)
    _mark_dead_attempts(planned)
    workers = Workers(batch, planned.local_workers)
    print(f"{planned.submission('local')} ({why}); logs in {batch.folder}", flush=True)
    return _follow(_watch(planned, facts, runs, workers), planned)


def _launch_on_slurm(
    planned: LaunchPlan, facts: Mapping[str, Any], wait: bool, retry: str | None, limit: int | None
) -> int:
    runs = [*planned.to_do, *planned.runs_in_state("running", "queued", "lost?")]
    planned, _ = _submit(planned, facts, retry, limit, _say)
    if wait:
        return _follow(_watch(planned, facts, runs, None, Resubmitter(planned, facts).submit), planned)
    if planned.problem:
        print(f"no information from SLURM: {planned.problem}")
    busy = planned.runs_in_state("running", "queued")
    if busy:
        print(
            "the jobs go on without this command; `status` says how far they are, the same command with --wait follows them"
        )
    evaluations = evaluations_by_run(planned.batches, busy)
    if short := [run for run in busy if planned.states[run].missing - evaluations[run]]:
        print(f"{count(short)} of a launch that wants fewer evaluations; once done, the same command makes the others")
    return _report(planned, [], [])


def _say(text: str) -> None:
    print(text, flush=True)


class Resubmitter:
    """Submits runs again, for a launch that waits."""

    def __init__(self, planned: LaunchPlan, facts: Mapping[str, Any]) -> None:
        self.launch, self.facts = planned.launch, facts
        # How many of our jobs were in the queue when SLURM took no more; None if it took all.
        self._queue_limit = job_count(planned) if planned.to_do else None

    def submit(self, runs: Sequence[str], say: Callable[[str], None]) -> list[str]:
        """Submits those of the runs that are to do, and returns the runs that SLURM took.

        If SLURM limits the jobs in its queue, it submits only as many jobs as have ended since.
        """
        now = launch_plan.plan_for(self.launch, None, None)
        now = replace(now, to_do=[run for run in now.to_do if run in runs])
        queued = job_count(now)
        if self._queue_limit is not None and queued:
            fit = now.jobs[: max(0, self._queue_limit - queued)]
            now = replace(now, to_do=[run for job in fit for run in job])
        try:
            then, handed = _submit(now, self.facts, None, None, say)
        except (ConfigError, StoreError) as error:
            say(str(error))
            return []
        is_limited = len(handed) < len(now.to_do)
        self._queue_limit = job_count(then) if is_limited else self._queue_limit if queued else None
        return handed


def job_count(planned: LaunchPlan) -> int:
    """How many jobs SLURM has of this launch's sweeps."""
    return len({state.job.id for state in planned.states.values() if state.job})


def _submit(
    planned: LaunchPlan, facts: Mapping[str, Any], retry: str | None, limit: int | None, say: Callable[[str], None]
) -> tuple[LaunchPlan, list[str]]:
    """Submits the runs that are to do. Returns a new plan, and the runs that SLURM took. Raises ConfigError if SLURM refuses."""
    while planned.to_do:
        _create_folders(planned)
        batch = freeze_batch(planned.launch, planned.jobs, "slurm", facts, planned.batches)
        if batch is not None:
            _mark_dead_attempts(planned)
            handed = hand_over(batch, say)
            return launch_plan.plan_for(planned.launch, None, None), handed
        wanted = set(planned.to_do)  # another launch was faster
        planned = launch_plan.plan_for(planned.launch, retry, limit)
        planned = replace(planned, to_do=[run for run in planned.to_do if run in wanted])
    return planned, []


def hand_over(batch: Batch, say: Callable[[str], None]) -> list[str]:
    """Submits a batch to SLURM, and prints the outcome. Returns the runs that SLURM took.

    Raises ConfigError if SLURM refuses, and StoreError if SLURM does not answer or its answer could not be written to the store.
    """
    try:
        slurm.submit(batch)
    except NoAnswerError as error:
        raise StoreError(
            f"SLURM did not say whether it took the jobs of {batch.folder} ({error}); nothing is lost: the same command finds "
            "those that it took, and submits the others"
        ) from None
    except slurm.UnwrittenError as error:
        later = (
            "the same command finds them, and submits the others"
            if batch.measured is None
            else "they go on without this command"
        )
        raise StoreError(
            f"{error}. SLURM has the jobs all the same, as {job_names(error.taken)}; nothing is lost: {later}"
        ) from None
    ids = sorted({identity.split("_")[0] for identity in batch.job_ids.values()}, key=int)
    if ids:
        say(f"submitted as SLURM {job_names(ids)}; logs in {batch.folder}")
    end = batch.end
    if end and end["waiting"]:
        why = f"SLURM takes no more now ({end['why']})"
        say(f"{end['waiting']} of {len(batch.jobs)} jobs wait: {why}; the same command goes on")
    return [run for number in batch.job_ids for run in batch.jobs[number]]


def job_names(ids: Sequence[str]) -> str:
    """Jobs by SLURM's ids, in words: `job 7`, `jobs 7, 8`."""
    return f"jobs {', '.join(ids)}" if len(ids) > 1 else f"job {ids[0]}"


def _create_folders(planned: LaunchPlan) -> None:
    """Creates the folders of the runs to do."""
    for run in planned.to_do:
        planned.launch.store.run(run).create(planned.launch.configs[run])


def _mark_dead_attempts(planned: LaunchPlan) -> None:
    """Marks attempts of the runs to do as ended whose process died without recording it.

    After this launch's batch was put in place, before its jobs begin. Until then another launch may have been faster: an attempt
    that seems dead may be at work in a job of a batch that was not there when the batches were read.
    """
    for run in planned.to_do:
        attempt = planned.states[run].attempt
        if attempt is not None and attempt.reason is None:
            mark_dead(attempt)


def _watch(
    planned: LaunchPlan,
    facts: Mapping[str, Any],
    runs: Sequence[str],
    workers: Workers | None,
    submit: Submit | None = None,
) -> Watch:
    """A watch on the sweeps as this launch has frozen them, even if other launches change them meanwhile."""
    launch = planned.launch
    sweeps = [
        LaunchedSweep(sweep.store, sweep.sweep.name, cast(ManifestRecord, manifest.manifest(sweep, facts)))
        for sweep in launch.sweeps
    ]
    return Watch(sweeps, launch.labels, runs, workers, submit)


def _follow(watch: Watch, planned: LaunchPlan) -> int:
    """Follows the runs to their end, or until Ctrl-C, and reports. Returns the exit code."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, signal.default_int_handler)  # as for Ctrl-C
    try:
        with LiveTable() as table:
            watch.follow(table)
        if watch.workers:
            watch.workers.finish()
    except KeyboardInterrupt:
        return _interrupted(watch, planned)
    except StoreError:
        if watch.workers:
            watch.workers.stop()
        raise
    if watch.workers and watch.open:
        print(f"the workers ended before they had begun every run; {watch.workers.last_words()}")
    failed = [run for run in watch.failed if not _is_done(planned, run)]  # another launch may have finished it
    return _report(planned, failed, [*watch.open, *watch.abandoned])


def _interrupted(watch: Watch, planned: LaunchPlan) -> int:
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stopping
    if watch.workers:
        print("interrupted: stopping the local processes", flush=True)
        watch.workers.stop()
    else:
        print("interrupted: the SLURM jobs go on")
    print(f"{_done_count(planned)} of {len(planned.states)} runs are done; the same command goes on from here")
    return 130


def _report(planned: LaunchPlan, failed: Sequence[str], not_done: Sequence[str]) -> int:
    """Prints how the launch ended, with failures grouped by their reason. Returns the exit code.

    Divergence is not a failure: it is an outcome of a sweep over learning rates.
    """
    diverged = [*planned.diverged, *(run for run in failed if planned.launch.store.run(run).attempts()[-1].diverged)]
    failed = [run for run in failed if run not in diverged]
    left_alone = [run for run in planned.left_alone if run not in diverged]
    if diverged:
        print(f"{count(diverged)} diverged, and would again: tables say so; only --retry diverged tries again")
        _print_reasons(planned, diverged)
    if failed:
        print(f"{count(failed)} failed; the same command tries again")
        _print_reasons(planned, failed)
    if left_alone:
        print(f"{count(left_alone)} failed {TRIES} times without getting further; only --retry tries again")
        _print_reasons(planned, left_alone)
    if not_done:
        print(f"{count(not_done)} not done; the same command goes on from here")
        _print_reasons(planned, not_done)
    lost = [run for run in planned.runs_in_state("lost?") if run not in planned.to_do]
    if lost:
        print(f"{count(lost)} may be running where this cannot be checked now; --retry starts them again")
    damaged = planned.runs_in_state("damaged")
    if damaged:
        print(f"{count(damaged)} damaged, and left alone:")
        for run in damaged:
            print(f"  {planned.states[run].damage}")
    if _done_count(planned) == len(planned.states):
        already = " already" if len(planned.runs_in_state("done")) == len(planned.states) else ""
        print(f"all {len(planned.states)} runs are done{already}")
    return 1 if failed or left_alone or not_done or lost or damaged else 0


def _print_reasons(planned: LaunchPlan, runs: Sequence[str]) -> None:
    """Prints why the newest attempts of these runs ended: each reason once, with the first few runs."""
    grouped: dict[str, list[Attempt]] = {}
    for run in runs:
        for attempt in planned.launch.store.run(run).attempts()[-1:]:
            if (failure := attempt.reason) is not None:
                grouped.setdefault(failure.message, []).append(attempt)
    for reason, attempts in grouped.items():
        print(f"  {reason}")
        for attempt in attempts[:SHOWN]:
            print(f"    {planned.launch.labels[attempt.run.id]}")
            print(f"      {attempt.error_text}\n      {log_of(attempt) or 'started by hand'}")
        if len(attempts) > SHOWN:
            print(f"    and {len(attempts) - SHOWN} more")


def _done_count(planned: LaunchPlan) -> int:
    return sum(_is_done(planned, run) for run in planned.states)


def _is_done(planned: LaunchPlan, run: str) -> bool:
    try:
        return planned.launch.store.run(run).is_done(planned.launch.evaluations[run])
    except DamagedError:
        return False
