"""The definition of a study: composed from a search's file and checked, before anything is written."""

from __future__ import annotations

import datetime
import functools
import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.comparison import RECORDED
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import backbone_file, deployment_of, store_folder
from mmprompt.runs.identity import checksum_of, config_as_written, data_checksum, precision_of
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from mmprompt.studies.sampler import check_pruner, check_sampler
from mmprompt.studies.schemas import (
    DIRECTIONS,
    SCORE,
    Base,
    Budget,
    Definition,
    Named,
    Parameter,
    Seeds,
    Settings,
)
from sweeps.grid import compose
from sweeps.grid.compose import Composer
from sweeps.grid.limits import check_points, points_allowed
from sweeps.search.halving import check_halving
from sweeps.search.parameters import check_conditions, check_key, read_parameter
from sweeps.search.search_file import Search, is_of_search, read
from sweeps.search.settings import Composition, run_config, value_at

HEADER = ("model.name", "backbone.mode", "method", "optim.steps", "optim.batch_size")  # settings that captions name


@dataclass(frozen=True)
class CheckedSearch:
    """A search as requested, with overrides applied, checked and composed."""

    spec: Search  # the file's content, with overrides
    definition: Definition  # without warm trials
    deployment: Deployment
    backbones: list[Path]  # the file of each base
    composition: Composition
    overrides: Sequence[str]

    @property
    def store(self) -> Store:
        return Store(store_folder(self.deployment.paths.runs))

    def checkpoints(self) -> Iterator[tuple[Path, str, Model]]:
        """The file of each base, its fingerprint, and the model that it must fit."""
        for file, base in zip(self.backbones, self.definition.bases, strict=True):
            yield file, base.checksum, run_config(base, compose_base(base, self.spec.fixed)).model


def compose_search(
    name: str, called: str, overrides: Sequence[str], conf: Path, provenance: Mapping[str, Any]
) -> CheckedSearch:
    """A search with everything that it needs, checked and composed.

    `called`: the study's name; `provenance`: `commit` and `dirty` of the code. Raises ConfigError, with one sentence, for a fault.
    """
    own = [text for text in overrides if "=" in text and is_of_search(text.split("=", 1)[0])]
    search = read(name, dict(text.split("=", 1) for text in own), conf)
    allowed = points_allowed(overrides, conf)
    deployment_values: dict[str, Any] = {}
    fixed = dict(search.fixed)
    for text in overrides:
        if text in own:
            continue
        key, values = compose.parse(text, conf, allowed)
        if len(values) != 1:
            raise ConfigError(f"{text!r} has several values; a search has one for what it does not search")
        if key.split(".")[0] in Deployment.model_fields:
            deployment_values[key] = values[0]
        elif key in search.space or key in search.each:
            raise ConfigError(f"{text!r}: search {name} looks for {key}; a search of your own in conf/search/ need not")
        else:
            fixed[key] = values[0]
    try:
        _check_size(search, allowed)
        changed = search.model_copy(update={"fixed": fixed})
        return _compose(changed, called, deployment_values, overrides, conf, provenance)
    except ConfigError as error:
        raise ConfigError(f"search {name}: {error}") from None


def _check_size(search: Search, most: int) -> None:
    """Refuses a search with more runs or workers than `most`, before they are composed one by one."""
    seeds: Seeds = search.seeds  # type: ignore[assignment]
    of_each = (search.budget.trials or 1) * seeds.most + (search.confirm.top + 1) * search.confirm.seeds
    runs = of_each * math.prod(map(len, search.each.values()))
    check_points("the search", max(runs, search.workers), most, "runs or workers", "ask for fewer")


def _compose(
    search: Search,
    called: str,
    deployment_values: Mapping[str, Any],
    overrides: Sequence[str],
    conf: Path,
    provenance: Mapping[str, Any],
) -> CheckedSearch:
    for key, value in [
        *search.fixed.items(),
        *((key, value) for key, values in search.each.items() for value in values),
    ]:
        if key == "seed":
            raise ConfigError("fixed.seed cannot be: seeds says how many seeds a trial has, from the default on")
        check_key(f"{key}={value}", key, [value], conf)
    space = [read_parameter(key, value, conf) for key, value in search.space.items()]
    if not space:
        raise ConfigError("space has no keys")
    check_conditions(space, search.fixed, search.each)
    groups = [dict(zip(search.each, values, strict=True)) for values in itertools.product(*search.each.values())]
    sampler = _named("sampler", search.sampler)
    several = len(search.objective) > 1
    check_sampler(sampler, several)
    stop = None if search.stop is None else _named("stop", search.stop)
    composer = Composer(conf)
    bases, deployments = _bases(search, space, groups, deployment_values, composer)
    defaults = [run_config(base, compose_base(base, search.fixed)) for base in bases]
    _check_objective(search.objective, defaults)
    _check_rungs(search, stop, space, defaults, several)
    if search.seeds.most < search.seeds.first:  # type: ignore[union-attr]
        raise ConfigError(f"seeds={search.seeds} is not allowed; most must be at least first")
    if all(value is None for value in search.budget.model_dump().values()):
        raise ConfigError(f"budget has no limit; wanted: one of {', '.join(Budget.model_fields)}")
    seeds: Seeds = search.seeds  # type: ignore[assignment]
    tasks = {config.task.name: config.task for config in defaults}
    arguments = _arguments(search, called, overrides)
    definition = Definition(
        version=1,
        name=called,
        claim=search.claim,
        command=search.command + (f' ARGS="{shlex.join(arguments)}"' if arguments else ""),
        target=f"search-{search.name}",
        overrides=arguments,
        objective=search.objective,  # type: ignore[arg-type]
        fixed=search.fixed,
        space=space,
        each=list(search.each),
        groups=groups,
        sampler=sampler,
        stop=stop,
        rungs=search.rungs,
        steps=defaults[0].optim.steps,
        seeds=seeds,
        seed_values=[defaults[0].seed + number for number in range(seeds.most)],
        budget=search.budget,
        confirm=search.confirm,
        study_seed=search.study_seed,
        tasks={
            name: {"family": task.family, "metric": PRIMARY_METRIC[task.family], "validation": task.validation}
            for name, task in tasks.items()
        },
        splits={name: task.splits for name, task in tasks.items()},
        bases=bases,
        warm=[],
        left_out=[],
        threads=max(config.threads for config in defaults),
        training_version=defaults[0].training_version,
        header=_header(defaults, space),
        tracking={"project": deployments[0].tracking.project, "entity": deployments[0].tracking.entity},
        commit=provenance["commit"],
        dirty=provenance["dirty"],
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    composition = Composition(definition)
    _check_values(definition, composition)
    return CheckedSearch(
        search,
        definition,
        functools.reduce(Deployment.joined, deployments),
        [backbone_file(deployment) for deployment in deployments],
        composition,
        overrides,
    )


def _arguments(search: Search, called: str, overrides: Sequence[str]) -> list[str]:
    """The arguments that a user types after the make target to get this study."""
    own = [text for text in overrides if text.split("=")[0].split(".")[0] not in Deployment.model_fields]
    return [*own, *(["--as", called] if called != search.name else [])]


def compose_base(base: Base, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a base with the fixed values; searched keys keep their configured values."""
    leaves = {key: value for key, value in fixed.items() if key not in base.choices}
    return compose.Composed(OmegaConf.create(base.settings), leaves).with_leaves(leaves)


def _named(what: str, value: str | dict[str, Any]) -> Named:
    if isinstance(value, str):
        return Named(name=value, arguments={})
    if len(value) != 1:
        raise ConfigError(f"{what}={value} is not allowed; wanted: a NAME, or NAME: {{ARGUMENT: VALUE}}")
    [(name, arguments)] = value.items()
    if not isinstance(arguments, dict | None):
        raise ConfigError(f"{what}.{name}={arguments!r} is not allowed; wanted: {{ARGUMENT: VALUE}}")
    return Named(name=name, arguments=arguments or {})


# -------------------------------------------------------------------------------------------------------------------- space


def _check_values(definition: Definition, composition: Composition) -> None:
    """Checks that a run can have both ends of each range and every choice, in each group where the key applies."""
    for group in range(len(definition.groups)):
        defaults = default(definition, composition, group)
        for parameter in definition.space:
            values = parameter.choices if parameter.kind == "choice" else [parameter.low, parameter.high]
            for value in values or []:
                settings = _reaching(definition, parameter, defaults, group)
                if settings is not None:
                    try:
                        composition.config(definition.parameters({**settings, parameter.key: value}), group, 1)
                    except ConfigError as error:
                        raise ConfigError(f"space.{parameter.key}: with {value}, {error}") from None


def _reaching(
    definition: Definition, parameter: Parameter, start: Mapping[str, Any], group: int
) -> dict[str, Any] | None:
    """The settings `start`, changed so that the parameter applies; None if it cannot apply in this group."""
    known = {**definition.fixed, **definition.groups[group]}
    settings = dict(start)
    for key, values in parameter.when.items():
        if key in known:
            if known[key] not in values:
                return None
        elif settings.get(key) not in values:
            condition = next(one for one in definition.space if one.key == key)
            reached = _reaching(definition, condition, settings, group)
            if reached is None:
                return None
            settings = {**reached, key: values[0]}
    return settings


def default(definition: Definition, composition: Composition, group: int) -> Settings:
    """The configured values of the searched keys: the settings of trial 0 of the group."""
    fixed = {**definition.fixed, **definition.groups[group]}
    settings: Settings = {}
    for parameter in definition.space:
        if parameter.applies({**fixed, **settings}):
            base = definition.bases[composition.base(settings, group)]
            if parameter.key in base.choices:
                settings[parameter.key] = base.choices[parameter.key]
            else:
                config = composition.config(settings, group, 1).model_dump(mode="json")
                settings[parameter.key] = value_at(config, parameter.key)
    return settings


def _bases(
    search: Search,
    space: Sequence[Parameter],
    groups: Sequence[Mapping[str, Any]],
    deployment_values: Mapping[str, Any],
    composer: Composer,
) -> tuple[list[Base], list[Deployment]]:
    """The composed configuration and the deployment of every choice of config groups; the defaults of conf/ come first."""
    searched = {one.key: one.choices or [] for one in space if one.key in composer.options}
    for parameter in space:
        if parameter.key in searched and parameter.kind != "choice":
            raise ConfigError(
                f"space.{parameter.key} is a choice of files; wanted: a list of {', '.join(composer.options[parameter.key])}"
            )
    defaults = composer.compose({})
    for key, values in searched.items():
        configured = defaults[key] if isinstance(defaults[key], str) else defaults[key].get("name")
        if configured in values:
            searched[key] = [configured, *(value for value in values if value != configured)]
    bases: list[Base] = []
    deployments: list[Deployment] = []
    composed_choices: list[dict[str, str]] = []
    for group in groups:
        for combination in itertools.product(*searched.values()):
            chosen = {**search.fixed, **group, **dict(zip(searched, combination, strict=True))}
            choices = {key: str(value) for key, value in chosen.items() if key in composer.options}
            if choices in composed_choices:
                continue
            composed_choices.append(choices)
            composed = composer.compose(
                {**choices, **deployment_values, **{k: v for k, v in search.fixed.items() if k not in choices}}
            )
            deployment = deployment_of(composed)
            whole = (deployments or [deployment])[0].joined(deployment)
            if deployment.joined(whole).model_copy(update={"paths": whole.paths}) != whole:
                raise ConfigError(
                    f"{choices} and {composed_choices[0]} have different deployments (cluster, tracking, cache); all runs of a "
                    "search need the same"
                )
            checksum = checksum_of(deployment)
            task = config_as_written(composed, checksum).task
            fingerprint = (
                data_checksum(task, composed["paths"]["data"], store_folder(deployment.paths.runs))
                if task.files
                else None
            )
            settings = composer.unresolved(choices)
            kept = {
                key: value
                for key, value in settings.items()
                if key not in {*Deployment.model_fields, *Questions.model_fields}
            }
            if kept["precision"] == "auto":  # workers on other machines need the same
                kept["precision"] = precision_of(composed)
            bases.append(Base(choices=choices, settings=kept, checksum=checksum, fingerprint=fingerprint))
            deployments.append(deployment)
    return bases, deployments


# ---------------------------------------------------------------------------------------------------- objective, rungs, header


def _check_objective(objective: Mapping[str, str], configs: Sequence[RunConfig]) -> None:
    if not objective:
        raise ConfigError(f"objective names no metric; wanted: {SCORE}: maximize")
    for metric, direction in objective.items():
        if direction not in DIRECTIONS:
            raise ConfigError(
                f"objective.{metric}={direction} is no direction{nearest(direction, DIRECTIONS)}; choose maximize or minimize"
            )
        if metric == SCORE or metric in RECORDED:
            if metric == SCORE and direction == "minimize":
                raise ConfigError(f"objective.{metric}=minimize: a higher score is better; wanted: maximize")
            continue
        if metric.startswith(("test", "train/")) or "/" in metric:
            logged = ", ".join({f"{config.task.validation}/{PRIMARY_METRIC[config.task.family]}" for config in configs})
            raise ConfigError(
                f"objective.{metric} is not what a search may look at; wanted: {SCORE}, the task's score on validation "
                f"({logged}), or one of {', '.join(RECORDED)}"
            )
        existing = [SCORE, *RECORDED]
        raise ConfigError(
            f"objective.{metric} is logged by no run{nearest(metric, existing)}; there are {', '.join(existing)}"
        )


def _check_rungs(
    search: Search, stop: Named | None, space: Sequence[Parameter], configs: Sequence[RunConfig], several: bool
) -> None:
    if stop is not None:
        if stop.name == "halving":
            check_halving(stop, several)
        else:
            check_pruner(stop, several)
    if bool(search.rungs) != (stop is not None):
        lacks = "stop, which says who goes on" if search.rungs else "rungs, the updates at which it compares"
        raise ConfigError(f"{'rungs' if search.rungs else 'stop'} is given without {lacks}")
    if not search.rungs:
        return
    if list(search.objective) != [SCORE]:
        raise ConfigError(
            f"rungs compare the score on validation, and the objective is {', '.join(search.objective)}; wanted: {SCORE}"
        )
    for key in ("optim.steps", "optim.validate_every", "optim.validate_examples"):
        if any(parameter.key == key for parameter in space):
            raise ConfigError(f"space.{key} and rungs do not go together: trials would be compared at different stages")
    if sorted(set(search.rungs)) != search.rungs:
        raise ConfigError(f"rungs={search.rungs} is not allowed; wanted: updates in rising order, each once")
    for config in configs:
        every, steps = config.optim.validate_every, config.optim.steps
        for rung in search.rungs:
            if rung % every or not 0 < rung < steps:
                raise ConfigError(
                    f"rungs={rung} is no step at which a run of {steps} updates is validated; wanted: multiples of "
                    f"optim.validate_every={every} below {steps}"
                )


def _header(configs: Sequence[RunConfig], space: Sequence[Parameter]) -> dict[str, Any]:
    searched = {parameter.key for parameter in space}
    dumps = [config.model_dump(mode="json") for config in configs]
    header = {}
    for key in HEADER:
        values = {value_at(dump, key) for dump in dumps}
        if len(values) == 1 and key not in searched and key.removesuffix(".name") not in searched:
            header[key.removesuffix(".name")] = values.pop()
    return header
