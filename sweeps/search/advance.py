"""The whole driver of a search: `advance` reads what there is, writes what can be decided, and says what is to be done next.

It is idempotent, and every worker calls it, at any time: if one is killed between two lines, the next call goes on. Of two
callers one makes each trial. Between calls a worker remembers only what cannot change.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mmprompt.runs.failures import silent
from mmprompt.runs.files import write_over
from mmprompt.runs.identity import run_id
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import Attempt
from mmprompt.studies.confirmation import is_over, is_settled
from mmprompt.studies.outcomes import Picture, Reader, RunOutcome, next_rung
from mmprompt.studies.study import (
    FIRST_FRESH,
    VERSION,
    Candidate,
    Confirmation,
    Group,
    Knew,
    Origin,
    Settings,
    Study,
    Trial,
)
from sweeps.jobs import slurm
from sweeps.jobs.batch import batches
from sweeps.search import halving
from sweeps.search.manifest import manifest
from sweeps.search.settings import Composition
from sweeps.search.space import default

IDLE = 600.0  # seconds that a worker on SLURM keeps its place at least while there is nothing that it could do
RECORD = 10.0  # seconds between two versions of the manifest, while trials come
ALIVE = 30.0  # seconds for which a process that was seen at work elsewhere is not asked about again


@dataclass(frozen=True)
class Work:
    """A run that somebody can take now."""

    run: str
    of: Trial | Candidate
    group: int
    seed: int
    until: int | None  # the update at which it is paused
    evaluations: list[dict[str, Any]]

    @property
    def base(self) -> int:
        return self.of.base


@dataclass(frozen=True)
class Step:
    """What a worker does next: one of these, in this order; or it waits for others; or the study is over."""

    work: list[Work]
    is_over: bool
    waits: bool  # for somebody who is at work, after whom there may be more to do


@dataclass
class Limits:
    """What a call of the search allows its workers."""

    trials: int | None = None  # of all groups, there already or new; null: as the budget says
    retry: frozenset[str] = frozenset()  # runs to be tried again although they failed too often
    batch: str = ""  # that tries them


@dataclass
class Desk:
    """A study as one process works on it."""

    study: Study
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.reader = Reader(self.study)
        self.composition = Composition(self.study.definition)
        self._alive: dict[tuple[str, int], float] = {}  # attempts that were seen at work, and when
        self._known: tuple[int, int, bool] | None = None  # what the manifest was written from,
        self._recorded = -RECORD  # and when

    def advance(self) -> Step:
        """Raises StoreError if the study's folder cannot be read or written."""
        picture = self.reader.look()
        if picture.confirmation is None:
            while True:
                self.record(picture)
                picture = self._decided(picture)
                work, at_work = self._of_trials(picture)
                if work or not self._ask(picture):
                    break
                picture = self.reader.look()  # the runs of a new trial may be done already
            if work or at_work or self._is_asked_for(picture):
                return Step(work or self._ahead(picture), False, at_work)
            if self.limits.trials is not None and not self._is_spent(picture):
                return Step([], False, False)  # as many as were asked for; there will be more
            self._confirm(picture)
            picture = self.reader.look()
        self.record(picture)
        work, at_work = self._of_confirmation(picture)
        return Step(work, is_over(picture) and not work, at_work)

    def patience(self) -> float:
        """Seconds that a worker may wait for others: as long as one of their runs is likely to take."""
        spans = [run.spans for one in self.reader.look().outcomes for run in one.runs.values() if run.state == "done"]
        took = [sum(end - begin for begin, end in some) for some in spans]
        return max(IDLE, 1.5 * median(took)) if took else IDLE

    # Decisions

    def _decided(self, picture: Picture) -> Picture:
        """With every decision written that can be made; one may lead to the next."""
        while True:
            wanted = [
                decision
                for group in range(len(picture.definition.groups))
                for decision in halving.decisions(picture, group, not is_spent(picture, group))
            ]
            for decision in wanted:
                self.study.decide(decision)
            if not wanted:
                return picture
            picture = self.reader.look()

    # What can be done now

    def _of_trials(self, picture: Picture) -> tuple[list[Work], bool]:
        """The runs that are free, those that went on furthest first; and whether any other is at work."""
        definition = picture.definition
        found: list[tuple[int, int, Work, RunOutcome]] = []
        for one in picture.outcomes:
            if one.state not in ("open", "failed"):
                continue
            rung = next_rung(definition, one.trial, picture.decisions)
            task = definition.task_of(one.trial.settings, one.trial.group)
            evaluations = [{"split": definition.tasks[task]["validation"]}]
            for position, (seed, run) in enumerate(one.runs.items()):
                is_more = position >= definition.seeds.first  # they are trained to their end
                until = None if is_more else rung
                if run.state in ("done", "diverged") or (until is not None and until in run.scores):
                    continue
                trained = one.trial.runs[str(seed)]
                work = Work(trained, one.trial, one.trial.group, seed, until, evaluations)
                order = len(definition.rungs) if rung is None else definition.rungs.index(rung)
                found.append((-order, one.trial.number, work, run))
        found.sort(key=lambda one: one[:2])
        return self._free([(work, run) for _, _, work, run in found])

    def _ahead(self, picture: Picture) -> list[Work]:
        """While others bring the search to its end: the default on fresh seeds, which will be wanted whatever comes out."""
        if not self._is_spent(picture):
            return []
        found: list[tuple[Work, RunOutcome]] = []
        for one in picture.outcomes:
            if one.trial.origin == "default":
                candidate = self._candidate(
                    one.trial.group, fresh_seeds(picture), "default", None, one.trial.settings, None
                )
                found += self._missing(picture, one.trial.group, candidate)
        return self._free(found)[0]

    def _missing(self, picture: Picture, group: int, candidate: Candidate) -> list[tuple[Work, RunOutcome]]:
        """The runs of a candidate that are not settled."""
        definition = picture.definition
        task = definition.task_of(candidate.settings, group)
        evaluations = [{"split": split} for split in definition.splits[task]]
        left = {
            int(seed): run
            for seed, run in candidate.runs.items()
            if not is_settled(picture, group, candidate, run) or run in self.limits.retry
        }
        works = [Work(run, candidate, group, seed, None, evaluations) for seed, run in left.items()]
        return [(work, self.reader.run(work.run, task)) for work in works]

    def _of_confirmation(self, picture: Picture) -> tuple[list[Work], bool]:
        assert picture.confirmation is not None
        groups = picture.confirmation.groups
        missing = [self._missing(picture, group.group, one) for group in groups for one in group.candidates]
        return self._free([*itertools.chain(*missing)])

    def _free(self, found: Sequence[tuple[Work, RunOutcome]]) -> tuple[list[Work], bool]:
        """Of these what can be taken; what is said to be at work and is not, is put down as ended."""
        busy = self.at_work([work.run for work, _ in found])
        free = [(work, outcome) for work, outcome in found if work.run not in busy]
        return [work for work, outcome in free if outcome.state != "failed" or self._may_retry(work.run)], bool(busy)

    def _may_retry(self, run: str) -> bool:
        attempts = self.study.store.run(run).attempts()
        return run in self.limits.retry and bool(attempts) and attempts[-1].job["batch"] != self.limits.batch

    def at_work(self, runs: Collection[str]) -> set[str]:
        """Those that a process works on, or may work on where that cannot be known.

        Attempts whose process is gone are put down as ended, so that everybody can see it.
        """
        busy: set[str] = set()
        elsewhere: list[Attempt] = []
        for run in runs:
            folder = self.study.store.run(run)
            attempts = folder.current_attempts(folder.result())
            if not attempts or attempts[-1].reason is not None:
                continue
            lives, own = attempts[-1].is_running(), os.environ.get("SLURM_JOB_ID")
            if lives:
                busy.add(run)
            elif (
                own is not None and attempts[-1].job.get("scheduler_job") == own
            ):  # SLURM has started this very job again
                attempts[-1].fail(silent(True))
            elif lives is None:
                elsewhere.append(attempts[-1])
            else:
                attempts[-1].fail(silent(False, "killed, cancelled, or out of memory"))
        return busy | self._elsewhere(elsewhere)

    def _elsewhere(self, attempts: Sequence[Attempt]) -> set[str]:
        """On other hosts: SLURM knows. It is asked after the attempts were read, so that a job that has just begun is known."""
        now = time.monotonic()
        fresh = {one for one in attempts if now - self._alive.get((one.run.id, one.number), -ALIVE) < ALIVE}
        unknown = [one for one in attempts if one not in fresh]
        busy = {one.run.id for one in fresh}
        if not unknown:
            return busy
        on_slurm = [one for one in unknown if one.job["scheduler"] == "slurm"]
        busy |= {one.run.id for one in unknown if one not in on_slurm}
        there = {batch.id: batch for batch in batches(self.study.store)}
        held = {one.job["batch"]: there[one.job["batch"]] for one in on_slurm if one.job["batch"] in there}
        answer = slurm.jobs(list(held.values()))
        words = {job.id: job.state for job in answer.jobs.values()}
        for one in on_slurm:
            word = words.get(str(one.job.get("job")))
            if held.get(one.job["batch"]) in answer.unknown or word not in (None, "PENDING"):
                busy.add(one.run.id)
                self._alive[one.run.id, one.number] = now
            else:  # a job that waits to be started again has not failed
                one.fail(silent(interrupted=bool(word)))
        return busy

    def restore(self, work: Work) -> None:
        """The settings of a run whose folder somebody has removed, or whose config.json is damaged, as a launch does it."""
        self._restore(work.run, work.of.settings, work.group, work.seed)

    def restore_all(self, picture: Picture) -> None:
        """The same of every run that has a folder, whatever is left to do of it."""
        known: list[tuple[Trial | Candidate, int]] = [(one.trial, one.trial.group) for one in picture.outcomes]
        for group in picture.confirmation.groups if picture.confirmation else []:
            known += [(candidate, group.group) for candidate in group.candidates]
        for one, number in known:
            for seed, run in one.runs.items():
                if self.study.store.run(run).path.exists():
                    self._restore(run, one.settings, number, int(seed))

    def _restore(self, run: str, settings: Settings, group: int, seed: int) -> None:
        folder = self.study.store.run(run)
        try:
            folder.settings()
        except DamagedError:
            config = self.composition.config(settings, group, seed)
            if run_id(config) == run:  # else an older version has made the trial
                folder.mend(config)

    # New trials

    def _is_asked_for(self, picture: Picture) -> bool:
        """May there be more trials?"""
        return not self._is_capped(picture) and not self._is_spent(picture)

    def _is_capped(self, picture: Picture) -> bool:
        return self.limits.trials is not None and len(picture.outcomes) >= self.limits.trials

    @staticmethod
    def _is_spent(picture: Picture) -> bool:
        return all(is_spent(picture, group) for group in range(len(picture.definition.groups)))

    def _ask(self, picture: Picture) -> bool:
        """Makes the next trial, of the group that has the fewest. False if the budget is spent."""
        open_groups = [group for group in range(len(picture.definition.groups)) if not is_spent(picture, group)]
        if not open_groups or self._is_capped(picture):
            return False
        group = min(open_groups, key=lambda group: len(picture.of(group)))
        there = {one.trial.number // len(picture.definition.groups) for one in picture.of(group)}
        index = next(index for index in itertools.count() if index not in there)  # that of a removed trial first
        trial = self.proposed(picture, group, index)
        for seed, run in trial.runs.items():
            config = self.composition.config(trial.settings, group, int(seed))
            assert run_id(config) == run
            self.study.store.run(run).create(config)
        self.study.add(trial)  # if another process was faster, it is that one's that counts
        return True

    def proposed(self, picture: Picture, group: int, index: int, knew: Knew | None = None) -> Trial:
        """Trial `index` of a group: the default, or what the sampler says who knows what there is, or `knew`."""
        definition = picture.definition
        number = index * len(definition.groups) + group
        if index == 0:
            origin: Origin = "default"
            settings, knew = default(definition, self.composition, group), Knew.nothing()
        else:
            from mmprompt.studies import sampler

            knew = Knew.nothing() if sampler.is_blind(definition.sampler) else knew or picture.knew(group)
            tried = [one.trial.settings for one in picture.of(group) if one.trial.number < number]
            told = [] if sampler.is_blind(definition.sampler) else picture.told(group, number, knew)
            settings, origin = sampler.ask(definition, group, number, told, tried), "sampler"
        runs = {str(seed): run_id(self.composition.config(settings, group, seed)) for seed in definition.seed_values}
        base = self.composition.base(settings, group)
        return Trial(
            version=VERSION,
            number=number,
            group=group,
            origin=origin,
            settings=settings,
            base=base,
            runs=runs,
            knew=knew,
        )

    # Confirmation

    def _confirm(self, picture: Picture) -> None:
        """Freezes what is trained on seeds that the search never used: the default, and the best of each group."""
        seeds = fresh_seeds(picture)
        groups = [self._candidates(picture, group, seeds) for group in range(len(picture.definition.groups))]
        self.study.confirm(Confirmation(version=VERSION, seeds=seeds, groups=groups))

    def _candidates(self, picture: Picture, group: int, seeds: Sequence[int]) -> Group:
        there = picture.of(group)
        usual = next(one for one in there if one.trial.origin == "default")
        found = list(usual.values) if usual.values is not None else None
        candidates = [self._candidate(group, seeds, "default", usual.trial.number, usual.trial.settings, found)]
        best = [one for one in picture.best(group) if one.settings != usual.trial.settings]
        top = picture.definition.confirm.top
        for one in spread(best, top, len(picture.definition.objective) > 1):
            origin = "warm" if one.trial is None else "best"
            candidates.append(self._candidate(group, seeds, origin, one.trial, one.settings, list(one.values)))
        known = [candidate.settings for candidate in candidates]
        stopped = [one for one in there if one.state == "stopped" and one.trial.settings not in known]
        stopped.sort(key=lambda one: (-max(one.rungs), -one.rungs[max(one.rungs)], one.trial.number))
        for one in stopped[
            : max(0, top + 1 - len(candidates))
        ]:  # where fewer came to their end, those that got furthest
            candidates.append(self._candidate(group, seeds, "best", one.trial.number, one.trial.settings, None))
        return Group(group=group, candidates=candidates)

    def _candidate(
        self,
        group: int,
        seeds: Sequence[int],
        origin: Any,
        trial: int | None,
        settings: Settings,
        found: list[float] | None,
    ) -> Candidate:
        runs = {}
        for seed in seeds:
            config = self.composition.config(settings, group, seed)
            runs[str(seed)] = run_id(config)
            self.study.store.run(runs[str(seed)]).create(config)
        base = self.composition.base(settings, group)
        return Candidate(trial=trial, origin=origin, settings=settings, base=base, found=found, runs=runs)

    # What others read

    def record(self, picture: Picture) -> None:
        """The manifest, as `analysis` and the other verbs read it; again if somebody has added a trial meanwhile."""
        while (known := self._version(picture)) != self._known and picture.outcomes:
            if picture.confirmation is None and time.monotonic() - self._recorded < RECORD:
                return
            self._recorded = time.monotonic()
            text = manifest(self.study, picture)
            write_over(self.study.store.manifest(self.study.manifest), text)
            self._known = known
            picture = self.reader.look()

    @staticmethod
    def _version(picture: Picture) -> tuple[int, int, bool]:
        return len(picture.outcomes), len(picture.decisions), picture.confirmation is not None


def fresh_seeds(picture: Picture) -> list[int]:
    """Seeds that no trial and no warm run has."""
    used = {*picture.definition.seed_values, *(int(seed) for warm in picture.definition.warm for seed in warm.runs)}
    found: list[int] = []
    seed = FIRST_FRESH
    while len(found) < picture.definition.confirm.seeds:
        if seed not in used:
            found.append(seed)
        seed += 1
    return found


def spread(best: Sequence[Any], count: int, is_front: bool) -> list[Any]:
    """The first `count`; of a front as many, from one end to the other."""
    if not is_front or len(best) <= count or count == 1:
        return list(best[:count])
    return [best[round(place * (len(best) - 1) / (count - 1))] for place in range(count)]


# Budget


def is_spent(picture: Picture, group: int) -> bool:
    """Whether a group gets no more trials. What is at work counts as if it were done, and the confirmation has to fit."""
    budget, there = picture.definition.budget, picture.of(group)
    if budget.trials is not None and len(there) >= budget.trials:
        return True
    if not there:
        return False
    hours = run_hours(picture, group)
    if budget.device_hours is not None:
        ahead = sum(max(hours - one.device_hours, 0.0) for one in there if one.state == "open") if hours else 0.0
        ahead += (hours or 0.0) * halving.steps_ahead(picture, group, picture.definition.steps)
        spent = sum(one.device_hours for one in there) + ahead
        if spent + (hours or 0.0) * (1 + confirmed_runs(picture, group)) > budget.device_hours:
            return True
    if budget.hours is not None:
        spans = [span for one in there for run in one.runs.values() for span in run.spans]
        at_work = wall(spans)
        at_once = max(1.0, sum(end - begin for begin, end in spans) / at_work) if at_work else 1.0
        took = [
            sum(end - begin for begin, end in run.spans)
            for one in there
            for run in one.runs.values()
            if run.state == "done"
        ]
        runs = confirmed_runs(picture, group) + halving.steps_ahead(picture, group, picture.definition.steps)
        ahead = median(took) * runs / at_once if took else 0.0
        if (at_work + ahead) / 3600 >= budget.hours:
            return True
    return False


def confirmed_runs(picture: Picture, group: int) -> int:
    return (picture.definition.confirm.top + 1) * picture.definition.confirm.seeds


def run_hours(picture: Picture, group: int) -> float | None:
    """Device hours of a whole run, the median of those that are done; None if none is."""
    took = [run.device_hours for one in picture.of(group) for run in one.runs.values() if run.state == "done"]
    return median(took) if took else None


def wall(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that at least one of these lasted."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
