"""The driver of a search: `StudyDriver.advance` reads the study, writes what can be decided, and returns the work to do next.

It is idempotent, and every worker calls it at any time: if a worker is killed between two lines, the next call continues. If two
workers call it at once, each trial is made by only one of them. Between calls a worker keeps only what cannot change.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from mmprompt.runs.identity import run_id
from mmprompt.runs.records import DamagedError
from mmprompt.studies.confirmation import FIRST_FRESH, is_over, is_settled
from mmprompt.studies.outcomes import RunOutcome, StudyProgress, StudyReader, next_rung
from mmprompt.studies.schemas import VERSION, Candidate, Confirmation, Group, Knew, Origin, Settings, Trial
from mmprompt.studies.study import Study
from sweeps.search import halving
from sweeps.search.budget import is_spent
from sweeps.search.definition import default
from sweeps.search.manifest import manifest
from sweeps.search.ongoing_runs import OngoingRuns
from sweeps.search.settings import Composition

IDLE = 600.0  # seconds that an idle worker on SLURM waits for others at least
RECORD = 10.0  # seconds between two versions of the manifest while the search makes trials


@dataclass(frozen=True)
class Work:
    """A run that a worker can take now."""

    run: str
    source: Trial | Candidate  # that the run belongs to
    group: int
    seed: int
    until: int | None  # the update at which the run is paused; None: it is trained to its end
    evaluations: list[dict[str, Any]]

    @property
    def base(self) -> int:
        return self.source.base


@dataclass(frozen=True)
class Step:
    """What a worker does next: it takes the first free run of `work`, or waits for other workers, or the study is over."""

    work: list[Work]
    is_over: bool
    waits: bool  # for a worker that is at work, after which there may be more to do


@dataclass
class Limits:
    """What the workers of a batch may do."""

    trials: int | None = None  # trials of all groups, existing and new; None: as many as the budget allows
    retry: frozenset[str] = frozenset()  # runs to be tried again although they failed too often
    batch: str = ""  # id of the batch that tries them again


@dataclass
class StudyDriver:
    """Advances a study, in one of the processes that work on it."""

    study: Study
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.reader = StudyReader(self.study)
        self.composition = Composition(self.study.definition)
        self._ongoing = OngoingRuns(self.study.store)
        self._manifest_version: tuple[int, int, bool] | None = None  # of the progress that the manifest shows
        self._manifest_written = -RECORD  # when

    def advance(self) -> Step:
        """Writes all decisions and trials that can be made now, and returns what a worker does next.

        Raises StoreError if the study's folder cannot be read or written.
        """
        progress = self.reader.read()
        if progress.confirmation is None:
            while True:
                self.write_manifest(progress)
                progress = self._decide(progress)
                work, is_at_work = self._work_on_trials(progress)
                if work or not self._make_trial(progress):
                    break
                progress = self.reader.read()  # the runs of a new trial may be done already
            if work or is_at_work or self._may_make_trials(progress):
                return Step(work or self._work_ahead(progress), False, is_at_work)
            if self.limits.trials is not None and not self._is_spent(progress):
                return Step([], False, False)  # this batch has made its trials, but the budget allows more
            if progress.damage:
                return Step([], False, False)  # the best are chosen once, when every trial can be read
            self._confirm(progress)
            progress = self.reader.read()
        self.write_manifest(progress)
        work, is_at_work = self._work_on_confirmation(progress)
        lost, is_lost_at_work = self._work_on_trials(progress)  # their runs were removed since
        return Step(work + lost, is_over(progress) and not work, is_at_work or is_lost_at_work)

    def patience(self) -> float:
        """The seconds that a worker may wait for others: as long as one of their runs is likely to take."""
        outcomes = self.reader.read().outcomes
        spans = [run.spans for outcome in outcomes for run in outcome.runs.values() if run.state == "done"]
        seconds = [sum(end - begin for begin, end in of_run) for of_run in spans]
        return max(IDLE, 1.5 * median(seconds)) if seconds else IDLE

    # Decisions

    def _decide(self, progress: StudyProgress) -> StudyProgress:
        """Writes every decision that can be made, until none follows from them, and returns the progress with all of them."""
        while True:
            decisions = [
                decision
                for group in range(len(progress.definition.groups))
                if not any(outcome.damage for outcome in progress.of(group))  # what is decided stays decided
                for decision in halving.decisions(progress, group, not is_spent(progress, group))
            ]
            for decision in decisions:
                self.study.decide(decision)
            if not decisions:
                return progress
            progress = self.reader.read()

    # Work that can be done now

    def _work_on_trials(self, progress: StudyProgress) -> tuple[list[Work], bool]:
        """The free runs of trials, those at the highest rung first; and whether a worker is at work on another run of a trial."""
        definition = progress.definition
        ranked: list[tuple[int, int, Work, RunOutcome]] = []
        for outcome in progress.outcomes:
            if outcome.state not in ("open", "failed"):
                continue
            trial = outcome.trial
            rung = next_rung(definition, trial, progress.decisions)
            task = definition.task_of(trial.settings, trial.group)
            evaluations = [{"split": definition.tasks[task]["validation"]}]
            for position, (seed, run) in enumerate(outcome.runs.items()):
                is_further_seed = position >= definition.seeds.first  # runs of further seeds are trained to their end
                until = None if is_further_seed else rung
                if run.state in ("done", "diverged") or (until is not None and until in run.scores):
                    continue
                work = Work(trial.runs[str(seed)], trial, trial.group, seed, until, evaluations)
                order = len(definition.rungs) if rung is None else definition.rungs.index(rung)
                ranked.append((-order, trial.number, work, run))
        ranked.sort(key=lambda entry: entry[:2])
        return self._free_work([(work, run) for _, _, work, run in ranked])

    def _work_ahead(self, progress: StudyProgress) -> list[Work]:
        """Work for an idle worker while others finish the last trials: the default on fresh seeds, which is always confirmed."""
        if not self._is_spent(progress):
            return []
        unsettled: list[tuple[Work, RunOutcome]] = []
        for outcome in progress.outcomes:
            trial = outcome.trial
            if trial.origin == "default":
                candidate = self._candidate(trial.group, fresh_seeds(progress), "default", None, trial.settings, None)
                unsettled += self._unsettled(progress, trial.group, candidate)
        return self._free_work(unsettled)[0]

    def _unsettled(self, progress: StudyProgress, group: int, candidate: Candidate) -> list[tuple[Work, RunOutcome]]:
        """The runs of a candidate that are not settled, or are to be tried again."""
        definition = progress.definition
        task = definition.task_of(candidate.settings, group)
        evaluations = [{"split": split} for split in definition.splits[task]]
        runs = {
            int(seed): run
            for seed, run in candidate.runs.items()
            if not is_settled(progress, group, candidate, run) or run in self.limits.retry
        }
        works = [Work(run, candidate, group, seed, None, evaluations) for seed, run in runs.items()]
        return [(work, self.reader.run(work.run, task)) for work in works]

    def _work_on_confirmation(self, progress: StudyProgress) -> tuple[list[Work], bool]:
        """The free runs of the confirmation, and whether a worker is at work on another run of it."""
        assert progress.confirmation is not None
        groups = progress.confirmation.groups
        unsettled = [
            self._unsettled(progress, group.group, candidate) for group in groups for candidate in group.candidates
        ]
        return self._free_work([*itertools.chain(*unsettled)])

    def _free_work(self, unsettled: Sequence[tuple[Work, RunOutcome]]) -> tuple[list[Work], bool]:
        """The runs among these that a worker can take, and whether a worker is at work on any of the others.

        Attempts whose process is gone are marked as ended.
        """
        busy = self._ongoing.among([work.run for work, _ in unsettled])
        free = [(work, outcome) for work, outcome in unsettled if work.run not in busy]
        return [work for work, outcome in free if outcome.state != "failed" or self._may_retry(work.run)], bool(busy)

    def _may_retry(self, run: str) -> bool:
        """Whether a run that failed too often may be tried once more: it was named, and this batch has not tried it yet."""
        attempts = self.study.store.run(run).attempts()
        return run in self.limits.retry and bool(attempts) and attempts[-1].job["batch"] != self.limits.batch

    def restore(self, work: Work) -> bool:
        """Writes config.json of a run again if it is damaged, or if the run's folder was removed, as a launch does.

        Returns False if that cannot be done: an older version has made the trial, and the run's settings are lost.
        """
        return self._restore(work.run, work.source.settings, work.group, work.seed)

    def restore_all(self, progress: StudyProgress) -> None:
        """Writes damaged config.json again, of every run of the study that has a folder, whether it is done or not."""
        sources: list[tuple[Trial | Candidate, int]] = [(one.trial, one.trial.group) for one in progress.outcomes]
        for group in progress.confirmation.groups if progress.confirmation else []:
            sources += [(candidate, group.group) for candidate in group.candidates]
        for source, number in sources:
            for seed, run in source.runs.items():
                if self.study.store.run(run).path.exists():
                    self._restore(run, source.settings, number, int(seed))

    def _restore(self, run: str, settings: Settings, group: int, seed: int) -> bool:
        folder = self.study.store.run(run)
        try:
            folder.settings()
        except DamagedError:
            config = self.composition.config(settings, group, seed)
            if run_id(config) != run:
                return False
            folder.mend(config)
        return True

    # New trials

    def _may_make_trials(self, progress: StudyProgress) -> bool:
        return not self._is_capped(progress) and not self._is_spent(progress)

    def _is_capped(self, progress: StudyProgress) -> bool:
        """Whether this batch may make no more trials."""
        return self.limits.trials is not None and len(progress.outcomes) >= self.limits.trials

    @staticmethod
    def _is_spent(progress: StudyProgress) -> bool:
        """Whether the budgets of all groups are spent."""
        return all(is_spent(progress, group) for group in range(len(progress.definition.groups)))

    def _make_trial(self, progress: StudyProgress) -> bool:
        """Makes the next trial, for the group with the fewest trials. Returns False if the budget or the limit is reached."""
        open_groups = [group for group in range(len(progress.definition.groups)) if not is_spent(progress, group)]
        if not open_groups or self._is_capped(progress):
            return False
        group = min(open_groups, key=lambda group: len(progress.of(group)))
        existing = {outcome.trial.number // len(progress.definition.groups) for outcome in progress.of(group)}
        # The number of a removed trial comes first: that trial is made again.
        index = next(index for index in itertools.count() if index not in existing)
        trial = self.propose(progress, group, index)
        for seed, run in trial.runs.items():
            config = self.composition.config(trial.settings, group, int(seed))
            assert run_id(config) == run
            self.study.store.run(run).create(config)
        self.study.add(trial)  # if another process was faster, its trial is the one that counts
        return True

    def propose(self, progress: StudyProgress, group: int, index: int, knew: Knew | None = None) -> Trial:
        """Trial `index` of a group: the default settings, or those that the sampler proposes.

        `knew`: the part of the study that the sampler is told of; None: all that is known now.
        """
        definition = progress.definition
        number = index * len(definition.groups) + group
        if index == 0:
            origin: Origin = "default"
            settings, knew = default(definition, self.composition, group), Knew.nothing()
        else:
            from mmprompt.studies import sampler

            knew = Knew.nothing() if sampler.is_blind(definition.sampler) else knew or progress.knew(group)
            tried = [one.trial.settings for one in progress.of(group) if one.trial.number < number]
            told = [] if sampler.is_blind(definition.sampler) else progress.told(group, number, knew)
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

    def _confirm(self, progress: StudyProgress) -> None:
        """Writes the candidates of the confirmation, which are trained on seeds that the search never used: the default and the
        best trials of each group."""
        seeds = fresh_seeds(progress)
        groups = [self._candidates(progress, group, seeds) for group in range(len(progress.definition.groups))]
        self.study.confirm(Confirmation(version=VERSION, seeds=seeds, groups=groups))

    def _candidates(self, progress: StudyProgress, group: int, seeds: Sequence[int]) -> Group:
        outcomes = progress.of(group)
        default = next(outcome for outcome in outcomes if outcome.trial.origin == "default")
        values = list(default.values) if default.values is not None else None
        candidates = [self._candidate(group, seeds, "default", default.trial.number, default.trial.settings, values)]
        best = [one for one in progress.best(group) if one.settings != default.trial.settings]
        top = progress.definition.confirm.top
        for one in spread(best, top, len(progress.definition.objective) > 1):
            origin = "warm" if one.trial is None else "best"
            candidates.append(self._candidate(group, seeds, origin, one.trial, one.settings, list(one.values)))
        chosen = [candidate.settings for candidate in candidates]
        stopped = [one for one in outcomes if one.state == "stopped" and one.trial.settings not in chosen]
        stopped.sort(key=lambda one: (-max(one.rungs), -one.rungs[max(one.rungs)], one.trial.number))
        # If too few trials were trained to their end, those that got furthest are confirmed as well.
        missing = max(0, top + 1 - len(candidates))
        for one in stopped[:missing]:
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

    # Manifest

    def write_manifest(self, progress: StudyProgress) -> None:
        """Writes the manifest, which `analysis` and other commands read; again if another process has added a trial meanwhile."""
        while (version := self._version(progress)) != self._manifest_version and progress.outcomes:
            if progress.confirmation is None and time.monotonic() - self._manifest_written < RECORD:
                return
            self._manifest_written = time.monotonic()
            text = manifest(self.study, progress)
            self.study.store.put_manifest(self.study.manifest, text)
            self._manifest_version = version
            progress = self.reader.read()

    @staticmethod
    def _version(progress: StudyProgress) -> tuple[int, int, bool]:
        return len(progress.outcomes), len(progress.decisions), progress.confirmation is not None


def fresh_seeds(progress: StudyProgress) -> list[int]:
    """The seeds of the confirmation, which no trial and no warm run has."""
    used = {*progress.definition.seed_values, *(int(seed) for warm in progress.definition.warm for seed in warm.runs)}
    fresh: list[int] = []
    seed = FIRST_FRESH
    while len(fresh) < progress.definition.confirm.seeds:
        if seed not in used:
            fresh.append(seed)
        seed += 1
    return fresh


def spread(best: Sequence[Any], count: int, is_front: bool) -> list[Any]:
    """The first `count` of the best trials; of a front, `count` that are spread evenly from one end to the other."""
    if not is_front or len(best) <= count or count == 1:
        return list(best[:count])
    return [best[round(place * (len(best) - 1) / (count - 1))] for place in range(count)]
