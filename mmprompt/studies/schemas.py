"""The schemas of a study's files: its definition, its trials, the decisions about them, and what is confirmed.

`mmprompt.studies.study` reads and writes these files. Part of the light half of the package: no torch, no Hydra, no Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import model_validator

from mmprompt.runs import records
from mmprompt.settings.section import NotNegative, Positive, PositiveFloat, Section

VERSION: Literal[1] = 1  # of the files
SCORE = "score"  # the objective that is the task's validation metric
DIRECTIONS = ("maximize", "minimize")

Direction = Literal["maximize", "minimize"]
Origin = Literal["default", "sampler"]  # of a trial
Settings = records.Settings  # of a trial: the searched keys that apply to it, and their values
Runs = dict[str, records.Name]  # ids by seed


class Parameter(Section):
    """A searched key and its values."""

    key: str
    kind: Literal["float", "int", "choice"]
    low: float | int | None  # of a number
    high: float | int | None
    log: bool
    step: int | None  # of an int
    choices: list[Any] | None
    when: dict[str, list[Any]]  # it applies only if each of these keys has one of these values

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
    """For each group. The limit that is reached first ends the making of trials; null: no limit."""

    trials: Positive | None
    device_hours: PositiveFloat | None  # with room for the confirmation
    hours: PositiveFloat | None  # of wall time with at least one process at work, with room for the confirmation


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
    """Settings in the space that finished runs of the store had when the study was made, with all their seeds."""

    group: NotNegative
    settings: Settings
    runs: Runs
    values: list[float]  # of each objective, mean over seeds


class Definition(Section):
    """study.json."""

    version: Literal[1]
    name: str
    claim: str
    command: str  # for people: make, the target and the overrides
    target: str | None = None  # of make; None of a study from before it was kept
    overrides: list[str] | None = None
    objective: dict[str, Direction]
    fixed: dict[str, Any]
    space: list[Parameter]
    each: list[str]  # keys; a group of trials for each combination of their values
    groups: list[dict[str, Any]]  # the combinations; one empty group without `each`
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
    left_out: list[str]  # why finished runs near the space do not count
    threads: Positive
    training_version: Positive
    header: dict[str, Any]  # what all runs have in common, for captions
    tracking: dict[str, str | None]
    commit: str | None
    dirty: bool
    created: str

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if not self.seeds.first <= self.seeds.most <= len(self.seed_values):
            raise ValueError(
                f"it has {len(self.seed_values)} seeds for trials of {self.seeds.first} to {self.seeds.most}"
            )
        for task, about in self.tasks.items():
            if missing := {"family", "metric", "validation"} - about.keys():
                raise ValueError(f"task {task} has no {sorted(missing)[0]}")
            if not self.splits.get(task):
                raise ValueError(f"task {task} has no splits")
        if any(one.group >= len(self.groups) for one in self.warm):
            raise ValueError("a finished run that it knows is of no group")
        return self

    @property
    def directions(self) -> list[Direction]:
        return list(self.objective.values())

    def task_of(self, settings: Mapping[str, Any], group: int) -> str:
        known = {**self.fixed, **self.groups[group], **settings}
        return str(known["task"]) if "task" in known else next(iter(self.tasks))

    def has(self, one: Trial | Candidate, group: int, seeds: Sequence[int]) -> bool:
        """Whether a trial or candidate can belong to this study: its group, base and task exist, and its runs have these seeds."""
        return (
            group < len(self.groups)
            and one.base < len(self.bases)
            and self.task_of(one.settings, group) in self.tasks
            and {str(seed) for seed in seeds} <= one.runs.keys()
        )

    def label(self, group: int) -> str:
        """The name of a group, `method=prompt`; empty if there is one group."""
        return " ".join(f"{key}={value}" for key, value in self.groups[group].items())

    def parameters(self, settings: Mapping[str, Any]) -> Settings:
        """Of these values those that the space asks for, given the others."""
        found: Settings = {}
        for parameter in self.space:
            if parameter.key in settings and parameter.applies({**self.fixed, **settings, **found}):
                found[parameter.key] = settings[parameter.key]
        return found

    def contains(self, settings: Mapping[str, Any], group: int) -> bool:
        """Whether a sampler could have proposed these settings."""
        known = {**self.fixed, **self.groups[group]}
        for parameter in self.space:
            if parameter.applies(known):
                if parameter.key not in settings or not parameter.contains(settings[parameter.key]):
                    return False
                known[parameter.key] = settings[parameter.key]
        return True


class Knew(Section):
    """What was known when the sampler was asked: earlier trials of the group that were neither done with the first seeds alone
    nor diverged. Together with the results of runs, which never change, the same question can be asked again."""

    running: list[int]
    failed: list[int]
    stopped: dict[str, int]  # at which update
    seeds: dict[str, int]  # of done trials, how many where they had more than the first

    @classmethod
    def nothing(cls) -> Self:
        """For a trial that needs no knowledge of others."""
        return cls(running=[], failed=[], stopped={}, seeds={})


class Trial(Section):
    """trials/N.json."""

    version: Literal[1]
    number: NotNegative
    group: NotNegative
    origin: Origin
    settings: Settings
    base: NotNegative
    runs: Runs  # `most` of them
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
    found: list[float] | None  # its values in the search; null if it was not finished there
    runs: Runs  # seeds that the search never used


class Group(Section):
    """The candidates of a group: the default, then the best trials of the search, the best first."""

    group: NotNegative
    candidates: list[Candidate]


class Confirmation(Section):
    """confirmed.json."""

    version: Literal[1]
    seeds: list[NotNegative]
    groups: list[Group]
