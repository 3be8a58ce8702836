"""`python -m sweeps search NAME`: begins or goes on with a search; `search plan`, `search promote`.

It freezes the study, starts workers (`sweeps.search.worker`) here or as SLURM jobs, and follows them. It directs none of them:
killed at any moment, it is called again and goes on.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.config import ConfigError
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import RETRIED
from mmprompt.runs.files import StoreError, follow_mode
from mmprompt.runs.identity import provenance
from mmprompt.runs.store import TRIES
from mmprompt.studies.confirmation import is_over
from mmprompt.studies.outcomes import Picture, Reader
from mmprompt.studies.study import Definition, Study
from sweeps.display.live_table import LiveTable, confirm
from sweeps.jobs import slurm, snapshot
from sweeps.jobs.batch import Batch, Kind, batches, job_settings, put_batch
from sweeps.jobs.local import Workers, at_work, capacity
from sweeps.search.advance import Desk, Limits
from sweeps.search.plan import SearchPlan, differences, plan_lines
from sweeps.search.promote import promote
from sweeps.search.report import StudyReader, StudyStatus, conclusion, settled
from sweeps.search.space import Asked, asked
from sweeps.search.warm import warm_start
from sweeps.states import causes
from sweeps.states.state import State
from sweeps.verbs.launch import hand_over
from sweeps.wording import plural

CONF = ROOT / "conf"
POLL = 1.0  # seconds between two looks
Submit = Callable[[Callable[[str], None], bool], None]  # missing workers: where to say so; whether it was asked before
RECONCILE = 60.0  # seconds between two looks whether jobs are missing


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
    """Begins a search or goes on with it; with an `action` plans it, or promotes its outcome.

    Returns 0 if all is well, 1 if runs failed or something is not done, 130 if interrupted. Raises ConfigError, StoreError.
    """
    about = provenance()
    one = asked(name, called or name, overrides, CONF, about)
    follow_mode(one.store.root)
    study = Study(one.store, one.definition.name)
    is_there = study.file.exists()
    if is_there:
        check_same(study, one)
    if action == "plan":
        print("\n".join(plan_lines(one, study if is_there else None)))
        return 0
    if action == "promote":
        return promote(began(study, is_there), one, force, CONF)
    if verify:
        return verified(began(study, is_there))
    if journal is not None:
        return exported(began(study, is_there), journal)
    return run(one, study, is_there, about, wait, limit, retry)


def began(study: Study, is_there: bool) -> Study:
    if not is_there:
        raise StoreError(
            f"search {study.name} was not begun in {study.store.root}; `make search-{study.name}` begins it"
        )
    return study


def check_same(study: Study, one: Asked) -> None:
    """A study of that name is what is asked for. Raises ConfigError that shows the difference, and changes nothing."""
    found = differences(study.definition, one.definition)
    if found:
        shown = "\n".join(f"  {key}: {there} there, {here} asked for" for key, (there, here) in found.items())
        raise ConfigError(
            f"search {study.name} was begun in {study.store.root} otherwise:\n{shown}\nnothing is changed; --as NAME makes a "
            "study of its own, which takes over all runs that are done"
        )


# ----------------------------------------------------------------------------------------------------------------- running


def run(
    one: Asked, study: Study, is_there: bool, about: Mapping[str, Any], wait: bool, limit: int | None, retry: str | None
) -> int:
    if not is_there:
        warm, left_out = warm_start(one) if one.search.warm else ([], [])
        definition = one.definition.model_copy(update={"warm": warm, "left_out": left_out})
    else:
        definition = study.definition
    outlook = SearchPlan.of(one, definition, study if is_there else None)
    if outlook.picture is not None:
        Desk(study).restore_all(outlook.picture)
    if outlook.picture is not None and is_over(outlook.picture) and retry is None:
        print(f"search {study.name} is over already")
        Desk(study).record(outlook.picture)  # the manifest, if it was lost
        return ended(study, outlook.picture)
    # Before anything is written: it may refuse.
    kind, why = slurm.choose(one.deployment.cluster.kind)
    facts: dict[str, Any] = {**about, "slurm_cluster": None}
    workers = one.deployment.cluster.max_parallel or one.search.workers
    if kind == "slurm":
        facts["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
    print("\n".join(outlook.lines(kind)), flush=True)
    retried = failed_runs(study, retry) if is_there and retry is not None else []
    there = outlook.picture.outcomes if outlook.picture else ()
    frozen: dict[str, Any] = {
        "search": {
            "name": study.name,
            "manifest": study.manifest,
            "trials": len(there) + limit if limit is not None else None,
            "retry": retried,
        },
        "sweeps": {},
        "overrides": list(one.overrides),
        "threads": definition.threads,
    }
    if kind == "local":
        capacity(one.deployment.cluster, definition.threads)  # it may refuse
    elif not confirm(f"submit {workers} workers?"):
        print("nothing was submitted")
        return 1
    if not is_there:
        study.define(definition)  # of two that begin it together one does
        check_same(study, one)
        Desk(study, Limits(frozen["search"]["trials"])).advance()  # trial 0: from now on there is something to look at
    if kind == "local":
        return here(one, study, frozen, facts, why)
    return on_slurm(one, study, frozen, facts, workers, wait)


def freeze(
    one: Asked, study: Study, frozen: Mapping[str, Any], facts: Mapping[str, Any], kind: Kind, workers: int
) -> Batch:
    """The batch of so many workers, in place. Raises StoreError."""
    copy = snapshot.take(ROOT, study.store)
    at = [job_settings(one.deployment, backbone, copy) for backbone in one.backbones]
    own = {**frozen, "search": {**frozen["search"], "settings": at}, "jobs": [[] for _ in range(workers)]}
    while True:  # until no other launch was faster
        batch = put_batch(study.store, one.deployment, copy, kind, facts, batches(study.store), own)
        if batch is not None:
            return batch


def failed_runs(study: Study, retry: str) -> list[str]:
    """Of the study's runs those that failed too often, of this cause: of trials, and of what confirms."""
    reader = Reader(study)
    picture, found = reader.look(), list[str]()
    for outcome in picture.outcomes:
        found += [outcome.trial.runs[str(seed)] for seed, run in outcome.runs.items() if run.state == "failed"]
    for group in picture.confirmation.groups if picture.confirmation else []:
        for candidate in group.candidates:
            task = picture.definition.task_of(candidate.settings, group.group)
            found += [run for run in candidate.runs.values() if reader.run(run, task).state == "failed"]
    if retry != "all":
        states = {run: State("failed", study.store.run(run).attempts()[-1], None, None) for run in found}
        why = causes.failures(study.store, found, states)
        found = [run for run in found if run in why and why[run].cause == RETRIED[retry]]
    return found


def here(one: Asked, study: Study, frozen: Mapping[str, Any], facts: Mapping[str, Any], why: str) -> int:
    """With local processes that live as long as the search."""
    most = capacity(one.deployment.cluster, study.definition.threads)
    batch = freeze(one, study, frozen, facts, "local", 1)
    workers = Workers(batch, most)
    print(f"{most} worker{'s' if most > 1 else ''} here ({why}); logs in {batch.folder}", flush=True)
    return followed(study, workers, None)


def on_slurm(
    one: Asked, study: Study, frozen: Mapping[str, Any], facts: Mapping[str, Any], workers: int, wait: bool
) -> int:
    def submit(say: Callable[[str], None], again: bool) -> None:
        """The workers that are missing, if SLURM says how many are there. `again`: nothing is said where none is."""
        known = [batch for batch in batches(study.store) if batch.search == study.name and batch.is_slurm]
        answer = slurm.jobs(known)
        if answer.unknown:
            say(f"no information from SLURM: {answer.problem}; no worker is submitted")
            return
        submitting = sum(len(batch.record["jobs"]) for batch in known if slurm.is_submitting(batch))
        missing = workers - len(answer.jobs) - submitting
        if missing <= 0:
            if not again:
                say(f"{plural(len(answer.jobs) + submitting, 'worker')} queued or at work already")
            return
        batch = freeze(one, study, frozen, facts, "slurm", missing)
        hand_over(batch, say)

    submit(print, False)
    if wait:
        return followed(study, None, submit)
    print(f"the workers go on by themselves; `python -m sweeps status {study.name}` says how far they are")
    return 0


def followed(study: Study, workers: Workers | None, submit: Submit | None) -> int:
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(ending, signal.default_int_handler)  # as Ctrl-C
    try:
        with LiveTable() as screen:
            picture = follow(study, workers, submit, screen)
        if workers:
            workers.finish()
    except KeyboardInterrupt:
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)  # once is enough
        print(
            "interrupted: stopping the workers here" if workers else "interrupted: the workers on SLURM go on",
            flush=True,
        )
        if workers:
            workers.stop()
        print(f"{StudyStatus.of(study, Reader(study).look())}; the same command goes on from here")
        return 130
    except StoreError:
        if workers:
            workers.stop()
        raise
    return ended(study, picture, workers)


def follow(study: Study, workers: Workers | None, submit: Submit | None, screen: LiveTable) -> Picture:
    """Until the study is over, or no worker is left. What it shows is what `status` does."""
    looks = StudyReader(study.store)
    said = {key for key, _ in settled(looks.at(study).picture)}
    began = len(said)
    reconciled = time.monotonic()
    while True:
        alive = workers.alive() if workers else 0  # before the store: what the dead did is there
        report = looks.at(study)
        for key, line in settled(report.picture):
            if key not in said:
                said.add(key)
                screen.print_line(line)
        if report.is_over:
            return report.picture
        if workers:
            if not start_missing(study, workers, alive, len(said) - began):
                return report.picture
        elif submit and time.monotonic() - reconciled > RECONCILE:
            reconciled = time.monotonic()
            submit(screen.print_line, True)
        screen.show(report.drawn, str(report))
        time.sleep(POLL)


def start_missing(study: Study, workers: Workers, alive: int, happened: int) -> bool:
    """Starts the workers that are missing and have a place. False: none is at work, and none is worth starting.

    One more than there are places for each thing that has `happened`, and a few: some die before they work.
    """
    if workers.any_ended_well:  # it found nothing more to do, nor would another
        return alive > 0
    left = workers.most + happened + TRIES - workers.started
    missing = min(workers.most - alive, left)
    if missing <= 0:
        return alive > 0
    there = at_work(study.store)
    return bool(workers.start(missing, there) or there or alive)


def ended(study: Study, picture: Picture, workers: Workers | None = None) -> int:
    """Says how it stands, and what was confirmed. Returns the exit code."""
    print(StudyStatus.of(study, picture))
    print("\n".join(conclusion(picture)), end="\n" if is_over(picture) else "")
    failed = [one for one in picture.outcomes if one.state == "failed"]
    if failed:
        print(
            f"{plural(len(failed), 'trial')} failed for reasons that do not lie in their settings; --retry tries again"
        )
    if not is_over(picture):
        if workers is not None and workers.started and not workers.any_ended_well:
            print(f"the workers ended before the search was over; {workers.last_words()}")
        print("the same command goes on from here")
    return 0 if is_over(picture) and not failed else 1


# ------------------------------------------------------------------------------------------------------------ verify, export


def verified(study: Study) -> int:
    """Asks for each trial again, knowing what was known then. Returns 1 if one comes out otherwise."""
    desk, picture = Desk(study, Limits()), Reader(study).look()
    wrong = []
    for outcome in picture.outcomes:
        trial = outcome.trial
        again = desk.proposed(picture, trial.group, trial.number // len(picture.definition.groups), trial.knew)
        if again.settings != trial.settings or again.runs != trial.runs:
            wrong.append(f"trial {trial.number}: {trial.settings} on record, {again.settings} when asked again")
    for line in wrong:
        print(line)
    print(
        f"{len(picture.outcomes) - len(wrong)} of {len(picture.outcomes)} trials come out the same when they are asked for again"
    )
    return 1 if wrong else 0


def exported(study: Study, journal: str) -> int:
    """A copy for optuna-dashboard, or whatever reads Optuna's storage."""
    from mmprompt.studies import sampler

    picture = Reader(study).look()
    definition: Definition = picture.definition
    total = 0
    if "://" not in journal and Path(journal).exists():
        raise ConfigError(f"--journal {journal} is there already; nothing is overwritten: name another file")
    for group in range(len(definition.groups)):
        after = picture.outcomes[-1].trial.number + 1 if picture.outcomes else 0
        total += sampler.export(definition, group, picture.told(group, after, picture.knew(group)), journal)
    print(f"{total} trials, as they are now, copied to {journal}; nothing is read back from there")
    if "://" not in journal:
        print(f"look at them: optuna-dashboard {journal}")
    return 0
