"""A study on disk: what a search looks for, its trials, and what their runs came to.

    STORE/searches/NAME/study.json         the definition, frozen when the search is first asked for
    STORE/searches/NAME/trials/N.json      trial N: its settings, its runs by seed, and what the sampler knew
    STORE/searches/NAME/decisions/N.S.json whether trial N goes on after update S; N.seeds.json: whether it gets more seeds
    STORE/searches/NAME/confirmed.json     what is confirmed, on seeds that the search never used

Each file is written once and whole, by whoever comes first; none is ever changed. A trial's state and values are not in them:
they are read from its runs. So nothing has to be kept in step, and there is no lock.
Part of the light half of the package: no torch, no Hydra, no Optuna.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar

from pydantic import ValidationError

from mmprompt.config import NotNegative, Positive, PositiveFloat, Section, nearest, sentence
from mmprompt.files import StoreError, write_once
from mmprompt.identity import evaluation_id
from mmprompt.intervals import Interval, paired, t_interval
from mmprompt.run import OF_SEARCH, TRIES, RunFolder, Store, spent

VERSION: Literal[1] = 1  # of the files
SCORE = "score"  # the objective that is the task's validation metric
SEEDS = "seeds"  # in the name of a decision on more seeds
FIRST_FRESH = 101  # the least seed that confirmation uses
DIRECTIONS = ("maximize", "minimize")

Direction = Literal["maximize", "minimize"]
Origin = Literal["default", "sampler"]  # of a trial
Settings = dict[str, Any]  # of a trial: the searched keys that apply to it, and their values


# ----------------------------------------------------------------------------------------------------------- what is on disk


class Parameter(Section):
    """A searched key and its values."""

    key: str
    kind: Literal["float", "int", "choice"]
    low: float | int | None  # of a number
    high: float | int | None
    log: bool
    step: int | None  # of an int
    choices: list[Any] | None
    when: dict[str, list[Any]]  # it applies where each of these keys has one of these values

    def applies(self, settings: Mapping[str, Any]) -> bool:
        return all(key in settings and settings[key] in values for key, values in self.when.items())

    def contains(self, value: Any) -> bool:
        if self.kind == "choice":
            return value in (self.choices or [])
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        assert self.low is not None and self.high is not None
        if self.kind == "int" and (value != int(value) or (self.step and (value - self.low) % self.step)):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"[{', '.join(as_yaml(choice) for choice in self.choices or [])}]"
        step = f" in steps of {self.step}" if self.step and self.step > 1 else ""
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}{step}"


def as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Named(Section):
    """A class and its arguments."""

    name: str
    arguments: dict[str, Any]


class Seeds(Section):
    first: Positive  # of every trial
    most: Positive  # of those whose first seeds are in the top quarter


class Budget(Section):
    """Of each group. What is reached first ends the search for new trials; null: no limit."""

    trials: Positive | None
    device_hours: PositiveFloat | None  # with room for the confirmation
    hours: PositiveFloat | None  # during which somebody was at work on it, with room for the confirmation


class Confirm(Section):
    top: Positive  # trials
    seeds: Positive


class Base(Section):
    """A composed configuration under one choice of config groups, interpolations unresolved: nodes have no `conf/`."""

    choices: dict[str, str]
    settings: dict[str, Any]
    checksum: str  # of the backbone
    fingerprint: str | None  # of the task's files


class Warm(Section):
    """Finished runs of the store that lie in the space, when the study was made: all seeds of one setting."""

    group: NotNegative
    settings: Settings
    runs: dict[str, str]  # by seed
    values: list[float]  # of each objective, mean over seeds


class Definition(Section):
    """study.json."""

    version: Literal[1]
    name: str
    claim: str
    command: str
    objective: dict[str, Direction]
    fixed: dict[str, Any]
    space: list[Parameter]
    each: list[str]  # keys: a study of its own for each combination of their values
    groups: list[dict[str, Any]]  # these combinations; one empty one without `each`
    sampler: Named
    stop: Named | None
    rungs: list[Positive]  # updates at which trials are compared
    steps: Positive  # updates of a whole run, as configured
    seeds: Seeds
    seed_values: list[NotNegative]  # of the trials, `most` of them
    budget: Budget
    confirm: Confirm
    study_seed: NotNegative
    tasks: dict[str, dict[str, str]]  # by name: family, metric, validation
    splits: dict[str, list[str]]  # of each task, validation first
    bases: list[Base]
    warm: list[Warm]
    left_out: list[str]  # of finished runs that are near, why they do not count
    threads: Positive
    training_version: Positive
    header: dict[str, Any]  # what all runs have in common, for captions
    tracking: dict[str, str | None]
    commit: str | None
    dirty: bool
    created: str

    @property
    def directions(self) -> list[Direction]:
        return list(self.objective.values())

    @property
    def trains_in_parts(self) -> bool:
        return bool(self.rungs)

    def task_of(self, settings: Mapping[str, Any], group: int) -> str:
        known = {**self.fixed, **self.groups[group], **settings}
        return str(known["task"]) if "task" in known else next(iter(self.tasks))

    def label(self, group: int) -> str:
        """`method=prompt`; nothing where there is one group."""
        return " ".join(f"{key}={value}" for key, value in self.groups[group].items())

    def parameters(self, settings: Mapping[str, Any]) -> Settings:
        """Of these values those that the space asks for, given the others."""
        found: Settings = {}
        for parameter in self.space:
            if parameter.key in settings and parameter.applies({**self.fixed, **settings, **found}):
                found[parameter.key] = settings[parameter.key]
        return found

    def contains(self, settings: Mapping[str, Any], group: int) -> bool:
        """Whether a sampler could have proposed them."""
        known = {**self.fixed, **self.groups[group]}
        for parameter in self.space:
            if parameter.applies(known):
                if parameter.key not in settings or not parameter.contains(settings[parameter.key]):
                    return False
                known[parameter.key] = settings[parameter.key]
        return True


class Knew(Section):
    """What the sampler was told when it was asked: of the trials before this one in its group those that were not done, with
    the first seeds alone, nor diverged. With the results of their runs, which never change, it can be asked the same again."""

    running: list[int]
    failed: list[int]
    stopped: dict[str, int]  # at which update
    seeds: dict[str, int]  # of done trials, how many where they had more than the first

    @classmethod
    def nothing(cls) -> Self:
        """Of a trial that nothing had to be known for."""
        return cls(running=[], failed=[], stopped={}, seeds={})


class Trial(Section):
    """trials/N.json."""

    version: Literal[1]
    number: NotNegative
    group: NotNegative
    origin: Origin
    settings: Settings
    base: NotNegative
    runs: dict[str, str]  # by seed, `most` of them
    knew: Knew


class Decision(Section):
    """decisions/N.S.json, or N.seeds.json."""

    version: Literal[1]
    trial: NotNegative
    step: Positive | None  # null: on more seeds
    goes_on: bool
    score: float
    why: str


class Candidate(Section):
    trial: int | None  # null: a warm one
    origin: Literal["default", "best", "warm"]
    settings: Settings
    base: NotNegative
    found: list[float] | None  # its values in the search; null of one that did not come to its end there
    runs: dict[str, str]  # by fresh seed


class Group(Section):
    """What is confirmed of a group: the default, first, and the best of the search, the best one first."""

    group: NotNegative
    candidates: list[Candidate]


class Confirmation(Section):
    """confirmed.json."""

    version: Literal[1]
    seeds: list[NotNegative]
    groups: list[Group]


Record = TypeVar("Record", bound=Section)


# ------------------------------------------------------------------------------------------------------------ reading and writing


@dataclass(frozen=True)
class Study:
    store: Store
    name: str

    @property
    def folder(self) -> Path:
        return self.store.searches / self.name

    @property
    def file(self) -> Path:
        return self.folder / "study.json"

    @property
    def manifest(self) -> str:
        """The name under which sweeps and tables know it."""
        return f"{OF_SEARCH}{self.name}"

    @cached_property
    def definition(self) -> Definition:
        """Raises StoreError if there is no such study, or its file is damaged."""
        found = read(self.file, Definition)
        if found is None:
            names = self.store.studies()
            known = nearest(self.name, names) or f"; there are {', '.join(names) or 'none'}"
            raise StoreError(f"no search {self.name} was begun in {self.store.root}{known}")
        if found.name != self.name:
            raise StoreError(f"{self.file} is of search {found.name}, not of {self.name}; it belongs elsewhere")
        return found

    def trials(self, known: Mapping[str, Trial] = MappingProxyType({})) -> dict[str, Trial]:
        """By the name of their files. Those that are `known` are not read again: they never change.

        Raises StoreError, naming the file, for one that is damaged or does not belong there.
        """
        found = {}
        for file in self._files("trials", r"(\d+)\.json"):
            trial = known.get(file.name) or read(file, Trial)
            if trial is None or str(trial.number) != file.stem or trial.group >= len(self.definition.groups):
                raise StoreError(f"{file} is not trial {file.stem} of search {self.name}; remove it")
            found[file.name] = trial
        return found

    def decisions(self, known: Mapping[str, Decision] = MappingProxyType({})) -> dict[str, Decision]:
        """As `trials`."""
        found = {}
        for file in self._files("decisions", r"\d+\.(\d+|seeds)\.json"):
            one = known.get(file.name) or read(file, Decision)
            if one is None or file.name != f"{one.trial}.{one.step or SEEDS}.json":
                raise StoreError(f"{file} is not a decision of search {self.name}; remove it")
            found[file.name] = one
        return found

    def confirmation(self) -> Confirmation | None:
        return read(self.folder / "confirmed.json", Confirmation)

    def _files(self, folder: str, name: str) -> list[Path]:
        try:
            files = [file for file in (self.folder / folder).iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            return []
        for file in files:
            if not re.fullmatch(name, file.name, re.ASCII):
                raise StoreError(f"{file} does not belong to search {self.name}; remove it")
        return files

    def define(self, definition: Definition) -> bool:
        """False if the study was there before."""
        return write_once(self.file, definition.model_dump_json(indent=1))

    def add(self, trial: Trial) -> bool:
        """False if another process made this trial first."""
        return write_once(self.folder / "trials" / f"{trial.number}.json", trial.model_dump_json())

    def decide(self, decision: Decision) -> bool:
        name = f"{decision.trial}.{decision.step or SEEDS}.json"
        return write_once(self.folder / "decisions" / name, decision.model_dump_json())

    def confirm(self, confirmation: Confirmation) -> bool:
        return write_once(self.folder / "confirmed.json", confirmation.model_dump_json(indent=1))


def read(file: Path, schema: type[Record]) -> Record | None:
    """None if it is not there. Raises StoreError for a file that is cut off, or of another shape."""
    try:
        return schema.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        reason = "it is cut off, or no JSON" if error.errors()[0]["type"] == "json_invalid" else sentence(error, schema)
        raise StoreError(f"{file} is damaged ({reason}); remove it if nothing can restore it") from None


def runs_of(store: Store, name: str) -> list[str]:
    """The runs of a study's trials and of its confirmation."""
    return list(evaluations_of(store, name))


def evaluations_of(store: Store, name: str) -> dict[str, list[dict[str, Any]]]:
    """By run of a study, the settings of the evaluations that it shall have; empty of a study that cannot be read."""
    study, found = Study(store, name), dict[str, list[dict[str, Any]]]()
    try:
        definition, confirmation = study.definition, study.confirmation()
        for trial in study.trials().values():
            task = definition.task_of(trial.settings, trial.group)
            asked = [{"split": definition.tasks[task]["validation"]}]
            found |= dict.fromkeys(trial.runs.values(), asked)
        for group in confirmation.groups if confirmation else []:
            for candidate in group.candidates:
                splits = definition.splits[definition.task_of(candidate.settings, group.group)]
                asked = [{"split": split} for split in splits]
                found |= dict.fromkeys(candidate.runs.values(), asked)
    except StoreError:
        return {}
    return found


# ------------------------------------------------------------------------------------------------------------ what runs came to


@dataclass(frozen=True)
class RunOutcome:
    state: Literal[
        "done", "diverged", "failed", "open"
    ]  # failed: too often, for reasons that do not lie in its settings
    values: Mapping[str, float]  # of a done run, by objective
    scores: Mapping[int, float]  # on validation while training, by update
    device_hours: float
    spans: Sequence[
        tuple[float, float]
    ]  # begin and last sign of its attempts, seconds since 1970 by the file server's clock

    @property
    def is_final(self) -> bool:
        return self.state in ("done", "diverged")


@dataclass(frozen=True)
class Outcome:
    """What a trial came to, over the seeds that it is to have."""

    trial: Trial
    state: Literal["done", "stopped", "diverged", "failed", "open"]
    seeds: Sequence[int]  # that it is to have
    runs: Mapping[int, RunOutcome]  # of these
    values: Sequence[float] | None  # of a done trial, of each objective the mean over seeds
    rungs: Mapping[int, float]  # the mean score at each rung that all seeds have reached
    device_hours: float

    @property
    def done(self) -> int:
        """How many of its seeds are done, of those before the first that is not."""
        states = [run.state == "done" for run in self.runs.values()]
        return states.index(False) if False in states else len(states)

    @property
    def stopped_at(self) -> int | None:
        return max(self.rungs, default=None) if self.state == "stopped" else None


@dataclass(frozen=True)
class Told:
    """What a sampler is told of a trial."""

    settings: Settings
    state: Literal["done", "stopped", "diverged", "failed", "running"]
    values: Sequence[float] | None = None
    rungs: Mapping[int, float] = field(default_factory=dict)
    number: int | None = None  # None: a warm one


class Reader:
    """Reads what the runs of a study came to; what cannot change any more is read once."""

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

    def look(self) -> Picture:
        """Raises StoreError for a damaged or a foreign file in the study's folder."""
        definition = self.study.definition
        self._trials, self._decisions = self.study.trials(self._trials), self.study.decisions(self._decisions)
        trials = sorted(self._trials.values(), key=lambda trial: trial.number)
        decisions = {(one.trial, one.step): one for one in self._decisions.values()}
        outcomes = [self._outcome(definition, trial, decisions) for trial in trials]
        return Picture(self, definition, outcomes, decisions, self.study.confirmation())

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
    attempts, result = folder.attempts(), folder.result()
    spans = [(attempt.claimed, attempt.last_sign) for attempt in attempts]
    if result is not None and (values := objectives(result, definition, task)) is not None:
        return RunOutcome("done", values, folder.validation, result["device_hours"], spans)
    devices = max([attempt.job.get("gpus") or definition.threads for attempt in attempts], default=1)
    hours = spent(attempts) * devices / 3600
    state: Literal["diverged", "failed", "open"] = "open"
    if attempts and attempts[-1].diverged:
        state = "diverged"
    elif attempts and attempts[-1].has_failed and folder.tries() >= TRIES:
        state = "failed"
    return RunOutcome(state, {}, folder.validation, hours, spans)


def objectives(result: Mapping[str, Any], definition: Definition, task: str) -> dict[str, float] | None:
    """The objectives' values; None if the run was not asked for its score on validation yet."""
    found = {}
    for objective in definition.objective:
        if objective == SCORE:
            about = definition.tasks[task]
            value = result["metrics"].get(f"{about['validation']}/{about['metric']}")
        else:
            value = result.get(objective)
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
    first = list(runs.values())[: definition.seeds.first]  # more seeds are trained to their end, and compared there
    rungs = {
        rung: mean(run.scores[rung] for run in first)
        for rung in definition.rungs
        if all(rung in run.scores for run in first)
    }
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
    """The first rung at which nobody has decided that the trial goes on; None: it goes to its end."""
    for rung in definition.rungs:
        decision = decisions.get((trial.number, rung))
        if decision is None or not decision.goes_on:
            return rung
    return None


@dataclass(frozen=True)
class Picture:
    """A study at one moment."""

    reader: Reader
    definition: Definition
    outcomes: Sequence[Outcome]  # by number
    decisions: Mapping[tuple[int, int | None], Decision]
    confirmation: Confirmation | None

    def of(self, group: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.trial.group == group]

    def knew(self, group: int) -> Knew:
        """Of the trials of a group as they are."""
        first = self.definition.seeds.first
        done = {one.trial.number: one.done for one in self.of(group) if one.state != "diverged" and one.done >= first}
        there = [one for one in self.of(group) if one.trial.number not in done]
        return Knew(
            running=[one.trial.number for one in there if one.state == "open"],
            failed=[one.trial.number for one in there if one.state == "failed"],
            stopped={str(one.trial.number): max(one.rungs) for one in there if one.state == "stopped"},
            seeds={str(number): count for number, count in done.items() if count > first},
        )

    def told(self, group: int, before: int, knew: Knew) -> list[Told]:
        """What a sampler is told who is asked for trial number `before`, and knew this: warm trials first, then by number.

        Of the default only if it lies in the space.
        """
        warm = [Told(one.settings, "done", one.values) for one in self.definition.warm if one.group == group]
        there = [one for one in self.of(group) if one.trial.number < before]
        inside = [one for one in there if self.definition.contains(one.trial.settings, group)]
        return [*warm, *(self._told(one, knew) for one in inside)]

    def _told(self, outcome: Outcome, knew: Knew) -> Told:
        trial, number = outcome.trial, str(outcome.trial.number)
        if trial.number in knew.running:
            return Told(trial.settings, "running", number=trial.number)
        if trial.number in knew.failed:
            return Told(trial.settings, "failed", number=trial.number)
        if number in knew.stopped:
            rungs = {rung: score for rung, score in outcome.rungs.items() if rung <= knew.stopped[number]}
            return Told(trial.settings, "stopped", rungs=rungs, number=trial.number)
        count = knew.seeds.get(number, self.definition.seeds.first)
        runs = {seed: outcome.runs[seed] for seed in list(outcome.runs)[:count]}
        then = trial_outcome(self.definition, trial, runs, self.decisions)
        state: Literal["done", "diverged"] = "diverged" if then.state == "diverged" else "done"
        return Told(trial.settings, state, then.values, then.rungs, trial.number)

    def best(self, group: int) -> list[Found]:
        """What was found, the best first: done trials and warm ones, each setting once.

        With several objectives those that no other is better than in all of them, the first objective's best first.
        """
        found = [
            Found(one.trial.number, one.trial.settings, tuple(one.values), len(one.seeds), one.trial.runs)
            for one in self.of(group)
            if one.values is not None
        ]
        known = [one.settings for one in found]
        found += [
            Found(None, one.settings, tuple(one.values), len(one.runs), one.runs)
            for one in self.definition.warm
            if one.group == group and one.settings not in known
        ]
        signs = [1 if direction == "maximize" else -1 for direction in self.definition.directions]
        if len(signs) > 1:
            found = front(found, signs)
        most = self.definition.seeds.most
        if self.definition.seeds.first < most and any(one.count >= most for one in found):
            found = [one for one in found if one.count >= most]  # of one seed the best is a lucky one
        order = {id(one): at for at, one in enumerate(found)}
        return sorted(found, key=lambda one: (-signs[0] * one.values[0], order[id(one)]))


@dataclass(frozen=True)
class Found:
    """A setting with its values in the search."""

    trial: int | None  # None: a warm one
    settings: Settings
    values: Sequence[float]
    count: int  # seeds
    runs: Mapping[str, str]


def front(found: Iterable[Found], signs: Sequence[int]) -> list[Found]:
    """Those that no other is at least as good as in all objectives and better than in one."""
    points = [(one, [sign * value for sign, value in zip(signs, one.values, strict=True)]) for one in found]

    def is_beaten(mine: Sequence[float]) -> bool:
        return any(
            all(other >= own for other, own in zip(theirs, mine, strict=True)) and list(theirs) != list(mine)
            for _, theirs in points
        )

    return [one for one, values in points if not is_beaten(values)]


# ------------------------------------------------------------------------------------------------------------ confirmation


def is_over(picture: Picture) -> bool:
    """Whether nothing is left to do: every run of the confirmation is done, or will never be."""
    return picture.confirmation is not None and all(
        is_settled(picture, group.group, candidate, run)
        for group in picture.confirmation.groups
        for candidate in group.candidates
        for run in candidate.runs.values()
    )


def is_settled(picture: Picture, group: int, candidate: Candidate, run: str) -> bool:
    """Whether a run of the confirmation has all its scores, or will never have them."""
    definition = picture.definition
    task = definition.task_of(candidate.settings, group)
    folder = picture.reader.study.store.run(run)
    if folder.is_done([evaluation_id(run, {"split": split}) for split in definition.splits[task]]):
        return True
    return picture.reader.run(run, task).state in ("diverged", "failed")


@dataclass(frozen=True)
class Confirmed:
    """A candidate on fresh seeds."""

    candidate: Candidate
    scores: Mapping[str, Mapping[int, float]]  # by split and seed
    intervals: Mapping[str, Interval]  # by split
    differences: Mapping[
        str, Interval
    ]  # from the default, paired by seed, by split; they hold together for all candidates


def confirmed(picture: Picture, group: Group) -> list[Confirmed]:
    """What the fresh seeds say, as the store has it: `compared` of the scores of a group's candidates."""
    definition, store = picture.definition, picture.reader.study.store
    scores = []
    for candidate in group.candidates:
        task = definition.task_of(candidate.settings, group.group)
        metric = definition.tasks[task]["metric"]
        by_split: dict[str, dict[int, float]] = {split: {} for split in definition.splits[task]}
        for seed, run in candidate.runs.items():
            for split, values in by_split.items():
                value = evaluated(store.run(run), split, metric)
                if value is not None:
                    values[int(seed)] = value
        scores.append(by_split)
    return compared(group.candidates, scores)


def compared(candidates: Sequence[Candidate], scores: Sequence[Mapping[str, Mapping[int, float]]]) -> list[Confirmed]:
    """The default first, then by the mean on validation, where the choice is made.

    `scores`: of each candidate by split, validation first, and by seed. The best is chosen among several by the runs that
    are reported; so the intervals of their differences from the default hold for all of them at once (Bonferroni), and with
    that for the one that is chosen.
    """
    default, others = scores[0], max(1, len(candidates) - 1)
    found = []
    for number, (candidate, by_split) in enumerate(zip(candidates, scores, strict=True)):
        intervals = {split: t_interval(values.values()) for split, values in by_split.items()}
        differences = {split: paired(values, default[split], of=others) for split, values in by_split.items() if number}
        found.append(Confirmed(candidate, by_split, intervals, differences))
    return [found[0], *sorted(found[1:], key=_by_validation)]


def _by_validation(one: Confirmed) -> float:
    value = next(iter(one.intervals.values())).value
    return math.inf if math.isnan(value) else -value


def evaluated(folder: RunFolder, split: str, metric: str) -> float | None:
    """The score of a done run on a whole split, as it is without attack; None if it was not asked."""
    result = folder.result()
    if result is None:
        return None
    if (value := result["metrics"].get(f"{split}/{metric}")) is not None:
        return float(value)
    try:
        text = folder.evaluation_file(evaluation_id(folder.id, {"split": split})).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return float(json.loads(text)["metrics"][metric])
