"""Outcomes of a study: the state and values of each trial, and the observations that a sampler gets.

They are read from the runs each time and not stored (what is stored is in `studies.schemas`).
Part of the light half of the package: no torch, no Hydra, no Optuna.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Literal

from mmprompt.runs.attempt import TRIES, seconds_at_work
from mmprompt.runs.records import DamagedError, ResultRecord
from mmprompt.runs.run_folder import RunFolder
from mmprompt.studies.schemas import SCORE, Confirmation, Decision, Definition, Knew, Settings, Trial
from mmprompt.studies.study import Study


@dataclass(frozen=True)
class RunOutcome:
    state: Literal["done", "diverged", "failed", "open"]  # failed: too often, for reasons other than its settings
    values: Mapping[str, float]  # by objective; empty unless done
    scores: Mapping[int, float]  # on validation while training, by update
    device_hours: float
    spans: Sequence[
        tuple[float, float]
    ]  # begin and last sign of its attempts, seconds since 1970 by the file server's clock
    damage: str = ""  # which file is damaged, and what to do; until then the run counts as failed

    @property
    def is_final(self) -> bool:
        return self.state in ("done", "diverged")

    def score_at(self, rung: int) -> float | None:
        """The score at a rung; None before it. A run whose patience ended before the rung stays where it was."""
        if rung in self.scores or self.state != "done":
            return self.scores.get(rung)
        earlier = [step for step in self.scores if step < rung]
        return self.scores[max(earlier)] if earlier else None


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial over its seeds."""

    trial: Trial
    state: Literal["done", "stopped", "diverged", "failed", "open"]
    seeds: Sequence[int]  # planned
    runs: Mapping[int, RunOutcome]  # by seed
    values: Sequence[float] | None  # mean over seeds of each objective; None unless done
    rungs: Mapping[int, float]  # the mean score at each rung that all seeds have reached
    device_hours: float

    @property
    def damage(self) -> list[str]:
        """The damaged files of its runs, each with what to do."""
        return [run.damage for run in self.runs.values() if run.damage]

    @property
    def done(self) -> int:
        """How many seeds are done, counted up to the first one that is not."""
        states = [run.state == "done" for run in self.runs.values()]
        return states.index(False) if False in states else len(states)


@dataclass(frozen=True)
class Observation:
    """What a sampler learns of a trial."""

    settings: Settings
    state: Literal["done", "stopped", "diverged", "failed", "running"]
    values: Sequence[float] | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
    number: int | None = None  # None: a warm trial


class StudyReader:
    """Reads the outcomes of a study. Final outcomes are read once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._final: dict[str, RunOutcome] = {}
        self._trials: dict[str, Trial] = {}
        self._decisions: dict[str, Decision] = {}

    def run(self, run: str, task: str) -> RunOutcome:
        if run not in self._final:
            outcome = run_outcome(self.study.store.run(run), self.study.definition, task)
            if not outcome.is_final:
                return outcome
            self._final[run] = outcome
        return self._final[run]

    def read(self) -> StudyProgress:
        """Reads the study as it is now. Raises StoreError for a damaged file in its folder."""
        definition = self.study.definition
        self._trials, self._decisions = self.study.trials(self._trials), self.study.decisions(self._decisions)
        trials = sorted(self._trials.values(), key=lambda trial: trial.number)
        decisions = {(one.trial, one.step): one for one in self._decisions.values()}
        outcomes = [self._outcome(definition, trial, decisions) for trial in trials]
        return StudyProgress(self, definition, outcomes, decisions, self.study.confirmation())

    def _outcome(
        self, definition: Definition, trial: Trial, decisions: Mapping[tuple[int, int | None], Decision]
    ) -> Outcome:
        seeds = definition.seed_values[: definition.seeds.first]
        if (more := decisions.get((trial.number, None))) and more.goes_on:
            seeds = definition.seed_values
        task = definition.task_of(trial.settings, trial.group)
        runs = {seed: self.run(trial.runs[str(seed)], task) for seed in seeds}
        return trial_outcome(definition, trial, runs, decisions)


def run_outcome(folder: RunFolder, definition: Definition, task: str) -> RunOutcome:
    try:
        return _run_outcome(folder, definition, task)
    except DamagedError as error:
        return RunOutcome("failed", {}, {}, 0.0, [], str(error))


def _run_outcome(folder: RunFolder, definition: Definition, task: str) -> RunOutcome:
    attempts, result = folder.attempts(), folder.result()
    spans = [(attempt.claimed, attempt.last_sign) for attempt in attempts]
    if result is not None and (values := objectives(result, definition, task)) is not None:
        return RunOutcome("done", values, folder.validation, result.get("device_hours") or 0.0, spans)
    devices = max([attempt.job.get("gpus") or definition.threads for attempt in attempts], default=1)
    hours = seconds_at_work(attempts) * devices / 3600
    state: Literal["diverged", "failed", "open"] = "open"
    if attempts and attempts[-1].diverged:
        state = "diverged"
    elif attempts and attempts[-1].has_failed and folder.tries() >= TRIES:
        state = "failed"
    return RunOutcome(state, {}, folder.validation, hours, spans)


def objectives(result: ResultRecord, definition: Definition, task: str) -> dict[str, float] | None:
    """The values of the objectives; None if the run has not been evaluated on validation yet."""
    found = {}
    for objective in definition.objective:
        if objective == SCORE:
            about = definition.tasks[task]
            value = result["metrics"].get(f"{about['validation']}/{about['metric']}")
        else:
            value = result.get(objective)  # type: ignore[assignment]
        if value is None:
            return None
        found[objective] = float(value)
    return found


def trial_outcome(
    definition: Definition,
    trial: Trial,
    runs: Mapping[int, RunOutcome],
    decisions: Mapping[tuple[int, int | None], Decision],
) -> Outcome:
    first = list(runs.values())[: definition.seeds.first]  # further seeds are trained to the end and compared there
    at_rungs = {
        rung: [score for run in first if (score := run.score_at(rung)) is not None] for rung in definition.rungs
    }
    rungs = {rung: mean(scores) for rung, scores in at_rungs.items() if len(scores) == len(first)}
    states = {run.state for run in runs.values()}
    state: Literal["done", "stopped", "diverged", "failed", "open"] = "open"
    values = None
    if "diverged" in states:
        state = "diverged"
    elif states == {"done"}:
        state = "done"
        values = [mean(run.values[one] for run in runs.values()) for one in definition.objective]
    elif "failed" in states:
        state = "failed"
    elif (last := next_rung(definition, trial, decisions)) is not None and last in rungs:
        state = "stopped"
    hours = sum(run.device_hours for run in runs.values())
    return Outcome(trial, state, list(runs), runs, values, rungs, hours)


def next_rung(definition: Definition, trial: Trial, decisions: Mapping[tuple[int, int | None], Decision]) -> int | None:
    """The first rung at which no decision lets the trial continue; None if it runs to the end."""
    for rung in definition.rungs:
        decision = decisions.get((trial.number, rung))
        if decision is None or not decision.goes_on:
            return rung
    return None


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is: its trials, their outcomes and the decisions about them, as read at one moment."""

    reader: StudyReader
    definition: Definition
    outcomes: Sequence[Outcome]  # by number
    decisions: Mapping[tuple[int, int | None], Decision]
    confirmation: Confirmation | None

    def of(self, group: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.trial.group == group]

    @property
    def damage(self) -> list[str]:
        """The damaged files of its trials' runs, each with what to do."""
        return [damage for outcome in self.outcomes for damage in outcome.damage]

    def knew(self, group: int) -> Knew:
        """What is known of the unfinished trials of a group at this moment."""
        first = self.definition.seeds.first
        done = {one.trial.number: one.done for one in self.of(group) if one.state != "diverged" and one.done >= first}
        there = [one for one in self.of(group) if one.trial.number not in done]
        return Knew(
            running=[one.trial.number for one in there if one.state == "open"],
            failed=[one.trial.number for one in there if one.state == "failed"],
            stopped={str(one.trial.number): max(one.rungs) for one in there if one.state == "stopped"},
            seeds={str(number): count for number, count in done.items() if count > first},
        )

    def told(self, group: int, before: int, knew: Knew) -> list[Observation]:
        """The observations a sampler gets before it proposes trial number `before`: warm trials first, then by number.

        `knew` says what was known of unfinished trials then. The default is included only if it lies in the space.
        """
        warm = [Observation(one.settings, "done", one.values) for one in self.definition.warm if one.group == group]
        there = [one for one in self.of(group) if one.trial.number < before]
        inside = [one for one in there if self.definition.contains(one.trial.settings, group)]
        return [*warm, *(self._told(one, knew) for one in inside)]

    def _told(self, outcome: Outcome, knew: Knew) -> Observation:
        trial, number = outcome.trial, str(outcome.trial.number)
        if trial.number in knew.running:
            return Observation(trial.settings, "running", number=trial.number)
        if trial.number in knew.failed:
            return Observation(trial.settings, "failed", number=trial.number)
        if number in knew.stopped:
            rungs = {rung: score for rung, score in outcome.rungs.items() if rung <= knew.stopped[number]}
            return Observation(trial.settings, "stopped", rungs=rungs, number=trial.number)
        count = knew.seeds.get(number, self.definition.seeds.first)
        runs = {seed: outcome.runs[seed] for seed in list(outcome.runs)[:count]}
        then = trial_outcome(self.definition, trial, runs, self.decisions)
        state: Literal["done", "diverged"] = "diverged" if then.state == "diverged" else "done"
        return Observation(trial.settings, state, then.values, then.rungs, trial.number)

    def best(self, group: int) -> list[BestTrial]:
        """Done trials and warm trials, the best first, each setting once.

        With several objectives these are the trials on the Pareto front, ordered by the first objective.
        """
        found = [
            BestTrial(one.trial.number, one.trial.settings, tuple(one.values), len(one.seeds), one.trial.runs)
            for one in self.of(group)
            if one.values is not None
        ]
        known = [one.settings for one in found]
        found += [
            BestTrial(None, one.settings, tuple(one.values), len(one.runs), one.runs)
            for one in self.definition.warm
            if one.group == group and one.settings not in known
        ]
        signs = [1 if direction == "maximize" else -1 for direction in self.definition.directions]
        if len(signs) > 1:
            found = front(found, signs)
        most = self.definition.seeds.most
        if self.definition.seeds.first < most and any(one.count >= most for one in found):
            found = [one for one in found if one.count >= most]  # the best of those with one seed is a lucky one
        order = {id(one): at for at, one in enumerate(found)}
        return sorted(found, key=lambda one: (-signs[0] * one.values[0], order[id(one)]))


@dataclass(frozen=True)
class BestTrial:
    """Settings with their values in the search."""

    trial: int | None  # None: a warm trial
    settings: Settings
    values: Sequence[float]
    count: int  # seeds
    runs: Mapping[str, str]


def front(found: Iterable[BestTrial], signs: Sequence[int]) -> list[BestTrial]:
    """The Pareto front: trials that no other trial dominates."""
    points = [(one, [sign * value for sign, value in zip(signs, one.values, strict=True)]) for one in found]

    def is_beaten(mine: Sequence[float]) -> bool:
        return any(
            all(other >= own for other, own in zip(theirs, mine, strict=True)) and list(theirs) != list(mine)
            for _, theirs in points
        )

    return [one for one, values in points if not is_beaten(values)]
