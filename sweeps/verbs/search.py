"""`python -m sweeps search NAME`: begins or continues a search; also `search plan` and `search promote`.

It freezes the study's definition, starts workers (`sweeps.search.worker`) on this machine or as SLURM jobs, and follows them. It
does not direct them: if it is killed at any moment, the same command continues.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import RETRIED
from mmprompt.runs.files import StoreError, follow_mode
from mmprompt.runs.identity import provenance
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.confirmation import is_over
from mmprompt.studies.outcomes import StudyProgress, StudyReader
from mmprompt.studies.schemas import Definition
from mmprompt.studies.study import Study
from sweeps.display.live_table import LiveTable, confirm
from sweeps.jobs import slurm, snapshot
from sweeps.jobs.batch import Batch, Kind, batches, job_settings, put_batch
from sweeps.jobs.local import Workers, capacity, running_workers
from sweeps.planning.checkpoints import check_checkpoints
from sweeps.search.advance import Limits, StudyDriver
from sweeps.search.definition import CheckedSearch, compose_search
from sweeps.search.plan import SearchPlan, differences, plan_lines
from sweeps.search.promote import promote
from sweeps.search.report import StudyStatus, StudyStatusReader, conclusion, events
from sweeps.search.warm import warm_start
from sweeps.states import causes
from sweeps.states.state import State
from sweeps.verbs.launch import hand_over
from sweeps.wording import plural

CONF = ROOT / "conf"
POLL = 1.0  # seconds between two readings of the study
Submit = Callable[[Callable[[str], None], bool], None]  # submits missing workers: (print a line, is it a repeated call)
RECONCILE = 60.0  # seconds between two checks for missing jobs


def search(
    name: str,
    overrides: Sequence[str],
    action: str | None,
    *,
    called: str | None,
    wait: bool,
    limit: int | None,
    retry: str | None,
    verify: bool,
    journal: str | None,
    force: bool,
) -> int:
    """Begins or continues a search; or plans it or promotes its outcome, as `action` says; or verifies or exports its trials.

    `called`: the study's name, if it is not that of the search; `limit`: the number of new trials. Returns 0 if all is well, 1 if
    trials failed or something is not done, 130 if interrupted. Raises ConfigError, StoreError.
    """
    facts = provenance()
    checked = compose_search(name, called or name, overrides, CONF, facts)
    follow_mode(checked.store.root)
    study = Study(checked.store, checked.definition.name)
    is_begun = study.file.exists()
    if is_begun:
        check_same(study, checked)
    if action in (None, "plan") and not verify and journal is None:
        check_checkpoints(checked.checkpoints(), checked.store)
    if action == "plan":
        print("\n".join(plan_lines(checked, study if is_begun else None)))
        return 0
    if action == "promote":
        return promote(require_begun(study, is_begun), checked, force, CONF)
    if verify:
        return verify_trials(require_begun(study, is_begun))
    if journal is not None:
        return export_trials(require_begun(study, is_begun), journal)
    return run(checked, study, is_begun, facts, wait, limit, retry)


def require_begun(study: Study, is_begun: bool) -> Study:
    """The study. Raises StoreError if it was not begun."""
    if not is_begun:
        raise StoreError(
            f"search {study.name} was not begun in {study.store.root}; `make search-{study.name}` begins it"
        )
    return study


def check_same(study: Study, requested: CheckedSearch) -> None:
    """Checks that an existing study has the requested definition. Raises ConfigError that shows the differences."""
    changes = differences(study.definition, requested.definition)
    if changes:
        shown = "\n".join(f"  {key}: {begun} there, {new} asked for" for key, (begun, new) in changes.items())
        raise ConfigError(
            f"search {study.name} was begun in {study.store.root} otherwise:\n{shown}\nnothing is changed; --as NAME makes a "
            "study of its own, which takes over all runs that are done"
        )


# ----------------------------------------------------------------------------------------------------------------- running


def run(
    search: CheckedSearch,
    study: Study,
    is_begun: bool,
    provenance: Mapping[str, Any],
    wait: bool,
    limit: int | None,
    retry: str | None,
) -> int:
    """Begins the study if it was not begun, and runs workers until it is over; on SLURM only with `wait`."""
    if not is_begun:
        warm, left_out = warm_start(search) if search.spec.warm else ([], [])
        definition = search.definition.model_copy(update={"warm": warm, "left_out": left_out})
    else:
        definition = study.definition
    plan = SearchPlan.of(search, definition, study if is_begun else None)
    if plan.progress is not None:
        StudyDriver(study).restore_all(plan.progress)
    if plan.progress is not None and is_over(plan.progress) and retry is None:
        print(f"search {study.name} is over already")
        StudyDriver(study).write_manifest(plan.progress)  # in case that it was lost
        return conclude(study, plan.progress)
    # Chosen before anything is written, because it may raise ConfigError.
    kind, why = slurm.choose(search.deployment.cluster.kind)
    facts: dict[str, Any] = {**provenance, "slurm_cluster": None}
    workers = search.deployment.cluster.max_parallel or search.spec.workers
    if kind == "slurm":
        facts["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
    print("\n".join(plan.lines(kind)), flush=True)
    retried = failed_runs(study, retry) if is_begun and retry is not None else []
    existing = plan.progress.outcomes if plan.progress else ()
    frozen: dict[str, Any] = {
        "search": {
            "name": study.name,
            "manifest": study.manifest,
            "trials": len(existing) + limit if limit is not None else None,
            "retry": retried,
        },
        "sweeps": {},
        "overrides": list(search.overrides),
        "threads": definition.threads,
    }
    if kind == "local":
        capacity(search.deployment.cluster, definition.threads)  # it may raise ConfigError
    elif not confirm(f"submit {workers} workers?"):
        print("nothing was submitted")
        return 1
    if not is_begun:
        study.define(definition)  # if two processes begin the study together, only one of them defines it
        check_same(study, search)
        # This makes trial 0, so that `status` has something to show.
        StudyDriver(study, Limits(frozen["search"]["trials"])).advance()
    if kind == "local":
        return run_here(search, study, frozen, facts, why)
    return run_on_slurm(search, study, frozen, facts, workers, wait)


def freeze(
    search: CheckedSearch,
    study: Study,
    frozen: Mapping[str, Any],
    facts: Mapping[str, Any],
    kind: Kind,
    workers: int,
) -> Batch:
    """Puts a batch of this many workers into the store. Raises StoreError."""
    copy = snapshot.take(ROOT, study.store)
    settings = [job_settings(search.deployment, backbone, copy) for backbone in search.backbones]
    content = {**frozen, "search": {**frozen["search"], "settings": settings}, "jobs": [[] for _ in range(workers)]}
    while True:  # until no other launch has taken the same number
        batch = put_batch(study.store, search.deployment, copy, kind, facts, batches(study.store), content)
        if batch is not None:
            return batch


def failed_runs(study: Study, retry: str) -> list[str]:
    """The ids of the study's runs, of trials and of the confirmation, that failed too often for this cause (or any, for `all`)."""
    reader = StudyReader(study)
    progress, failed = reader.read(), list[str]()
    for outcome in progress.outcomes:
        failed += [outcome.trial.runs[str(seed)] for seed, run in outcome.runs.items() if run.state == "failed"]
    for group in progress.confirmation.groups if progress.confirmation else []:
        for candidate in group.candidates:
            task = progress.definition.task_of(candidate.settings, group.group)
            failed += [run for run in candidate.runs.values() if reader.run(run, task).state == "failed"]
    if retry != "all":
        states = {run: State("failed", study.store.run(run).attempts()[-1], None, None) for run in failed}
        failures = causes.failures(study.store, failed, states)
        failed = [run for run in failed if run in failures and failures[run].cause == RETRIED[retry]]
    return failed


def run_here(search: CheckedSearch, study: Study, frozen: Mapping[str, Any], facts: Mapping[str, Any], why: str) -> int:
    """Runs the search with local processes, which live as long as it."""
    most = capacity(search.deployment.cluster, study.definition.threads)
    batch = freeze(search, study, frozen, facts, "local", 1)
    workers = Workers(batch, most)
    print(f"{most} worker{'s' if most > 1 else ''} here ({why}); logs in {batch.folder}", flush=True)
    return follow_to_end(study, workers, None)


def run_on_slurm(
    search: CheckedSearch,
    study: Study,
    frozen: Mapping[str, Any],
    facts: Mapping[str, Any],
    workers: int,
    wait: bool,
) -> int:
    """Submits workers to SLURM; with `wait` follows them, and submits workers again that were lost."""

    def submit(say: Callable[[str], None], is_repeated: bool) -> None:
        """Submits the missing workers, if SLURM tells how many exist. A repeated call prints nothing if none is missing."""
        of_search = [batch for batch in batches(study.store) if batch.search == study.name and batch.is_slurm]
        answer = slurm.jobs(of_search)
        if answer.unknown:
            say(f"no information from SLURM: {answer.problem}; no worker is submitted")
            return
        submitting = sum(len(batch.record["jobs"]) for batch in of_search if slurm.is_submitting(batch))
        missing = workers - len(answer.jobs) - submitting
        if missing <= 0:
            if not is_repeated:
                say(f"{plural(len(answer.jobs) + submitting, 'worker')} queued or at work already")
            return
        batch = freeze(search, study, frozen, facts, "slurm", missing)
        hand_over(batch, say)

    submit(print, False)
    if wait:
        return follow_to_end(study, None, submit)
    print(f"the workers go on by themselves; `python -m sweeps status {study.name}` says how far they are")
    return 0


def follow_to_end(study: Study, workers: Workers | None, submit: Submit | None) -> int:
    """Follows the study until it is over, no worker is left, or Ctrl-C, which stops local workers. Returns the exit code."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, signal.default_int_handler)  # as for Ctrl-C
    try:
        with LiveTable() as table:
            progress = follow(study, workers, submit, table)
        if workers:
            workers.finish()
    except KeyboardInterrupt:
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stopping
        print(
            "interrupted: stopping the workers here" if workers else "interrupted: the workers on SLURM go on",
            flush=True,
        )
        if workers:
            workers.stop()
        print(f"{StudyStatus.of(study, StudyReader(study).read())}; the same command goes on from here")
        return 130
    except StoreError:
        if workers:
            workers.stop()
        raise
    return conclude(study, progress, workers)


def follow(study: Study, workers: Workers | None, submit: Submit | None, table: LiveTable) -> StudyProgress:
    """Shows the study as `status` does, until it is over or no worker is left. Returns how far it is then."""
    reader = StudyStatusReader(study.store)
    printed = {key for key, _ in events(reader.read_one(study).progress)}
    events_before = len(printed)
    reconciled = time.monotonic()
    while True:
        alive = workers.alive() if workers else 0  # before reading: the store then has all that dead workers wrote
        report = reader.read_one(study)
        for key, line in events(report.progress):
            if key not in printed:
                printed.add(key)
                table.print_line(line)
        if report.is_over:
            return report.progress
        if workers:
            if not start_missing(study, workers, alive, len(printed) - events_before):
                return report.progress
        elif submit and time.monotonic() - reconciled > RECONCILE:
            reconciled = time.monotonic()
            submit(table.print_line, True)
        table.show(report.drawn, str(report))
        time.sleep(POLL)


def start_missing(study: Study, workers: Workers, alive: int, new_events: int) -> bool:
    """Starts the workers that are missing, as far as this machine has room. Returns False if none is running or worth starting.

    Workers may die before they do anything, so it starts a few more in all than can run at once, and one more for each new event.
    """
    if workers.any_ended_well:  # that worker found nothing more to do, so another one would not either
        return alive > 0
    may_start = workers.most + new_events + TRIES - workers.started
    missing = min(workers.most - alive, may_start)
    if missing <= 0:
        return alive > 0
    running = running_workers(study.store)
    return bool(workers.start(missing, running) or running or alive)


def conclude(study: Study, progress: StudyProgress, workers: Workers | None = None) -> int:
    """Prints the status of the study and the outcome of its confirmation. Returns the exit code."""
    print(StudyStatus.of(study, progress))
    print("\n".join(conclusion(progress)), end="\n" if is_over(progress) else "")
    for damage in progress.damage:
        print(f"damaged: {damage}")
    failed = [outcome for outcome in progress.outcomes if outcome.state == "failed" and not outcome.damage]
    if failed:
        print(
            f"{plural(len(failed), 'trial')} failed for reasons that do not lie in their settings; --retry tries again"
        )
    if not is_over(progress):
        if workers is not None and workers.started and not workers.any_ended_well:
            print(f"the workers ended before the search was over; {workers.last_words()}")
        print("the same command goes on from here")
    return 0 if is_over(progress) and not failed and not progress.damage else 1


# ------------------------------------------------------------------------------------------------------------ verify, export


def verify_trials(study: Study) -> int:
    """Proposes each trial again, from what was known when it was made. Returns 1 if one comes out different, else 0."""
    driver, progress = StudyDriver(study, Limits()), StudyReader(study).read()
    wrong = []
    for outcome in progress.outcomes:
        trial = outcome.trial
        again = driver.propose(progress, trial.group, trial.number // len(progress.definition.groups), trial.knew)
        if again.settings != trial.settings or again.runs != trial.runs:
            wrong.append(f"trial {trial.number}: {trial.settings} on record, {again.settings} when proposed again")
    for line in wrong:
        print(line)
    print(
        f"{len(progress.outcomes) - len(wrong)} of {len(progress.outcomes)} trials come out the same when they are proposed again"
    )
    return 1 if wrong else 0


def export_trials(study: Study, journal: str) -> int:
    """Copies the trials into Optuna's storage, a journal file or a URL, for optuna-dashboard and other readers. Returns 0.

    Raises ConfigError if the file exists.
    """
    from mmprompt.studies import sampler

    progress = StudyReader(study).read()
    definition: Definition = progress.definition
    total = 0
    if "://" not in journal and Path(journal).exists():
        raise ConfigError(f"--journal {journal} is there already; nothing is overwritten: name another file")
    for group in range(len(definition.groups)):
        after = progress.outcomes[-1].trial.number + 1 if progress.outcomes else 0
        total += sampler.export(definition, group, progress.told(group, after, progress.knew(group)), journal)
    print(f"{total} trials, as they are now, copied to {journal}; nothing is read back from there")
    if "://" not in journal:
        print(f"look at them: optuna-dashboard {journal}")
    return 0
