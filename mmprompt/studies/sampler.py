"""The sampler proposes the next trial: a function of the space, the trials so far and a seed. Only this module uses Optuna.

Optuna's study is made anew, in memory, from what the trials came to; nothing of it is kept. So every proposal is a function of
(study seed, trial number, what was known), and can be asked for again.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from mmprompt.studies.outcomes import Observation
from mmprompt.studies.schemas import Definition, Named, Parameter, Settings

DIGITS = 3  # of a float: readable, typed by hand, and equal to a grid's points where they meet
AGAIN = 16  # further proposals, if one has been tried before
RANDOM, SOBOL = "random", "sobol"
SHORT = {"tpe": "TPESampler", "gp": "GPSampler", "cmaes": "CmaEsSampler", "nsga2": "NSGAIISampler"}
NEEDS = {"GPSampler": "torch", "CmaEsSampler": "cmaes"}  # packages that Optuna does not install
STATEFUL = ("CmaEsSampler", "NSGAIISampler", "NSGAIIISampler")  # they keep their state in the study's trials
REFUSED = {
    "QMCSampler": "its place in the sequence is lost when a study is made anew; sobol is the same by trial number",
    "RandomSampler": "random draws by trial number",
    "GridSampler": "a grid is a sweep, conf/sweep/",
    "BruteForceSampler": "every point of a grid is a sweep, conf/sweep/",
    "PartialFixedSampler": "`fixed` says what is not searched",
}

FEWEST = 10  # done trials from which importances are computed
TOP, TOP_TRIALS = 0.1, 5  # the best trials: this share of all, and at least so many

optuna.logging.set_verbosity(optuna.logging.ERROR)


def is_blind(sampler: Named) -> bool:
    """Whether its proposals depend on the trial's number alone, and not on other trials."""
    return sampler.name in (RANDOM, SOBOL)


def full_name(sampler: Named) -> str:
    return SHORT.get(sampler.name.lower(), sampler.name)


# Checks, before anything is written


def check_sampler(named: Named, several: bool) -> None:
    """Raises ConfigError for a class or an argument that does not exist, or whose package is not installed."""
    if is_blind(named):
        if named.arguments:
            raise ConfigError(f"sampler={named.name} takes no arguments; it has {', '.join(named.arguments)}")
        return
    classes = {name for name in dir(optuna.samplers) if name.endswith("Sampler") and not name.startswith("Base")}
    name = full_name(named)
    allowed = [RANDOM, SOBOL, *sorted(classes - REFUSED.keys())]
    if name in REFUSED:
        raise ConfigError(f"sampler={name} is not used here: {REFUSED[name]}; choose one of {', '.join(allowed)}")
    if name not in classes:
        raise ConfigError(
            f"sampler={named.name} does not exist{nearest(named.name, allowed)}; choose one of {', '.join(allowed)}"
        )
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise ConfigError(f"sampler={name} needs the package {package}, which is not installed: pip install {package}")
    if several and name in ("CmaEsSampler", "GPSampler"):
        raise ConfigError(
            f"sampler={name} knows one objective, and there are several; choose TPESampler or NSGAIISampler"
        )
    _check_arguments("sampler", getattr(optuna.samplers, name), named, {"seed"})


def check_pruner(named: Named, several: bool) -> None:
    """Raises ConfigError for a class or an argument that does not exist, and with several objectives."""
    if several:
        raise ConfigError(
            f"stop={named.name} compares one score, and there are several objectives; leave out stop and rungs"
        )
    classes = [name for name in dir(optuna.pruners) if name.endswith("Pruner") and not name.startswith("Base")]
    if named.name not in classes:
        raise ConfigError(
            f"stop={named.name} does not exist{nearest(named.name, classes)}; choose one of halving, {', '.join(classes)}"
        )
    _check_arguments("stop", getattr(optuna.pruners, named.name), named, set())


def _check_arguments(what: str, cls: type, named: Named, ours: set[str]) -> None:
    known = [name for name in inspect.signature(cls).parameters if name not in ours]
    for argument in named.arguments:
        if argument not in known:
            reason = "is set by study_seed" if argument in ours else f"does not exist{nearest(argument, known)}"
            raise ConfigError(f"{what}.{named.name}.{argument} {reason}; it takes {', '.join(known)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cls(**named.arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}.{named.name} refuses {named.arguments}: {error}") from None


# Proposals


def ask(
    definition: Definition, group: int, number: int, told: Sequence[Observation], tried: Sequence[Settings]
) -> Settings:
    """Proposes the settings of trial `number`; different from those `tried`, if a few proposals suffice for that."""
    fixed = {**definition.fixed, **definition.groups[group]}
    settings: Settings = {}
    study = None
    if not is_blind(definition.sampler) and full_name(definition.sampler) not in STATEFUL:
        study = as_optuna(definition, group, told)
    for again in range(AGAIN):
        seed = (definition.study_seed, number, again)
        if definition.sampler.name == SOBOL:
            settings = _at(definition.space, _sobol(definition, number // len(definition.groups), again), fixed)
        if definition.sampler.name == RANDOM:
            settings = _at(definition.space, np.random.default_rng(seed).random(len(definition.space)), fixed)
        if not is_blind(definition.sampler):
            sampler = _sampler(definition.sampler, seed)
            settings = _optunas(definition, study or _replayed(definition, told, sampler), sampler, fixed)
        if settings not in tried:
            break
    return settings


def _sobol(definition: Definition, index: int, again: int) -> np.ndarray:
    """Point `index` of a scrambled sequence, in the unit cube."""
    from scipy.stats import qmc

    engine = qmc.Sobol(len(definition.space), seed=np.random.default_rng((definition.study_seed, again)))
    if index:  # fast_forward(0) is an error
        engine.fast_forward(index)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the number of points is no power of 2
        [point] = engine.random(1)
    return np.asarray(point)


def _at(space: Sequence[Parameter], place: np.ndarray, fixed: Mapping[str, Any]) -> Settings:
    """The settings at a point of the unit cube with one coordinate per parameter, without parameters that do not apply."""
    found: Settings = {}
    for parameter, share in zip(space, place.tolist(), strict=True):
        if parameter.applies({**fixed, **found}):
            found[parameter.key] = _value(parameter, share)
    return found


def _value(parameter: Parameter, share: float) -> Any:
    if parameter.kind == "choice":
        choices = parameter.choices or []
        return choices[min(int(share * len(choices)), len(choices) - 1)]
    low, high = float(parameter.low or 0), float(parameter.high or 0)
    if parameter.kind == "int":
        high += 1  # so that each number has an interval of the same size
    value = (
        math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        if parameter.log
        else low + share * (high - low)
    )
    if parameter.kind == "int":
        step = parameter.step or 1
        return min(int(low) + (int(value) - int(low)) // step * step, int(parameter.high or 0))
    return rounded(parameter, value)


def rounded(parameter: Parameter, value: float) -> float:
    """Rounds to three digits, within the range."""
    return min(max(float(f"{value:.{DIGITS}g}"), float(parameter.low or 0)), float(parameter.high or 0))


def _sampler(named: Named, seed: tuple[int, ...]) -> optuna.samplers.BaseSampler:
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of experimental arguments
        return getattr(optuna.samplers, full_name(named))(**named.arguments, seed=number)


def _optunas(
    definition: Definition, study: optuna.Study, sampler: optuna.samplers.BaseSampler, fixed: Mapping[str, Any]
) -> Settings:
    """Asks Optuna's sampler, parameter by parameter."""
    study.sampler = sampler
    trial = study.ask()
    found: Settings = {}
    for parameter in definition.space:
        if parameter.applies({**fixed, **found}):
            found[parameter.key] = _suggested(trial, parameter)
    study.tell(trial, state=TrialState.FAIL)  # so that it tells the next proposal nothing
    return found


def _replayed(
    definition: Definition, told: Sequence[Observation], sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """An Optuna study in which this sampler was asked for each trial, and then got the trial that was made."""
    study = optuna.create_study(directions=definition.directions, sampler=sampler)
    worst = _worst(definition, told)
    for one in told:
        frozen = _frozen(definition, one, worst, False)
        study.enqueue_trial(frozen.params)
        trial = study.ask()
        for parameter in definition.space:
            if parameter.key in one.settings:
                _suggested(trial, parameter)
        if frozen.state is not TrialState.RUNNING:
            values = frozen.values if frozen.state is TrialState.COMPLETE else None
            study.tell(trial, values, state=None if values else TrialState.FAIL)
    return study


def _suggested(trial: optuna.Trial, parameter: Parameter) -> Any:
    if parameter.kind == "choice":
        choices = parameter.choices or []
        return choices[trial.suggest_categorical(parameter.key, list(range(len(choices))))]
    low, high = parameter.low or 0, parameter.high or 0
    if parameter.kind == "int":
        return trial.suggest_int(parameter.key, int(low), int(high), step=parameter.step or 1, log=parameter.log)
    return rounded(parameter, trial.suggest_float(parameter.key, float(low), float(high), log=parameter.log))


# As Optuna sees it


def distribution(parameter: Parameter) -> BaseDistribution:
    """The value for Optuna; of a choice its index, because Optuna cannot tell lists and null apart."""
    if parameter.kind == "choice":
        return CategoricalDistribution(list(range(len(parameter.choices or []))))
    low, high = parameter.low or 0, parameter.high or 0
    if parameter.kind == "int":
        return IntDistribution(int(low), int(high), log=parameter.log, step=parameter.step or 1)
    return FloatDistribution(float(low), float(high), log=parameter.log)


def as_optuna(definition: Definition, group: int, told: Sequence[Observation], readable: bool = False) -> optuna.Study:
    """The trials of a group as an Optuna study. `readable`: with the values of choices instead of their indices."""
    study = optuna.create_study(
        study_name=" ".join([definition.name, definition.label(group)]).strip(), directions=definition.directions
    )
    worst = _worst(definition, told)
    study.add_trials([_frozen(definition, one, worst, readable) for one in told])
    return study


def _frozen(definition: Definition, told: Observation, worst: list[float] | None, readable: bool) -> FrozenTrial:
    space = {parameter.key: parameter for parameter in definition.space if parameter.key in told.settings}
    params, distributions = {}, {}
    for key, parameter in space.items():
        value, choices = told.settings[key], parameter.choices or []
        params[key] = choices.index(value) if parameter.kind == "choice" else value
        distributions[key] = distribution(parameter)
        if readable and parameter.kind == "choice":
            names = [value if isinstance(value, None | bool | int | float | str) else str(value) for value in choices]
            params[key], distributions[key] = names[params[key]], CategoricalDistribution(names)
    about: dict[str, Any] = {"params": params, "distributions": distributions, "user_attrs": {"state": told.state}}
    about["user_attrs"] |= {"trial": told.number} if told.number is not None else {"warm": True}
    is_tpe = full_name(definition.sampler) == "TPESampler"
    match told.state:
        case "done":
            return create_trial(values=list(told.values or ()), intermediate_values=dict(told.rungs), **about)
        case "stopped":
            return create_trial(state=TrialState.PRUNED, intermediate_values=dict(told.rungs), **about)
        # Divergence is an outcome, and a bad one. From a failed trial Optuna learns nothing.
        case "diverged" if is_tpe and len(definition.objective) == 1:
            return create_trial(state=TrialState.PRUNED, **about)  # ranks behind all others
        case "diverged" if worst is not None:
            return create_trial(values=worst, **about)  # other samplers use values alone
        case "diverged":
            return create_trial(state=TrialState.PRUNED, **about)
        case "running":
            return create_trial(state=TrialState.RUNNING, **about)
        case _:
            return create_trial(state=TrialState.FAIL, **about)


def _worst(definition: Definition, told: Sequence[Observation]) -> list[float] | None:
    """The worst value of each objective so far."""
    known = [one.values for one in told if one.values is not None]
    if not known:
        return None
    columns = zip(*known, strict=True)
    return [
        min(column) if to == "maximize" else max(column)
        for column, to in zip(columns, definition.directions, strict=True)
    ]


def prunes(definition: Definition, group: int, told: Sequence[Observation], trial: Observation) -> bool:
    """Whether Optuna's pruner `definition.stop` stops this trial at its last rung."""
    assert definition.stop is not None
    study = as_optuna(definition, group, told)
    running = _frozen(definition, Observation(trial.settings, "running", number=trial.number), None, False)
    running.intermediate_values = dict(trial.rungs)
    study.add_trial(running)
    pruner = getattr(optuna.pruners, definition.stop.name)(**definition.stop.arguments)
    return bool(pruner.prune(study, study.get_trials(deepcopy=False)[-1]))


def importances(definition: Definition, group: int, told: Sequence[Observation]) -> dict[str, dict[str, float | None]]:
    """Importances by objective and searched key: PED-ANOVA's shares of what sets the best trials apart; they add up to 1.

    Of done trials alone, warm ones among them. None for a key that not all of them have, and whose share is no answer to the
    same question. Nothing at all where fewer than `FEWEST` are done.
    """
    done = [one for one in told if one.state == "done"]
    if len(done) < FEWEST:
        return {}
    study = as_optuna(definition, group, done)
    keys = [parameter.key for parameter in definition.space if any(parameter.key in one.settings for one in done)]
    shared = [key for key in keys if all(key in one.settings for one in done)]
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=max(TOP, TOP_TRIALS / len(done)))
    found: dict[str, dict[str, float | None]] = {}
    for number, (objective, direction) in enumerate(definition.objective.items()):
        sign = -1 if direction == "maximize" else 1  # lower is better to the evaluator

        def target(trial: FrozenTrial, number: int = number, sign: int = sign) -> float:
            return sign * trial.values[number]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that lower is better
            raw = evaluator.evaluate(study, shared, target=target) if shared else {}
        total = sum(raw.values()) or 1.0
        found[objective] = {key: float(raw[key] / total) if key in raw else None for key in keys}
    return found


def export(definition: Definition, group: int, told: Sequence[Observation], storage: str) -> int:
    """Copies a group's trials into Optuna's storage: a journal file, or any URL that Optuna knows. Returns their number.
    Nothing is read back from there.

    Raises ConfigError if a study of that name is there already, or the storage refuses.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    there: Any = storage
    study = as_optuna(definition, group, told, readable=True)
    try:
        if "://" not in storage:
            there = JournalStorage(JournalFileBackend(storage, lock_obj=JournalFileOpenLock(storage)))
        copy = optuna.create_study(study_name=study.study_name, directions=definition.directions, storage=there)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that names are experimental
            copy.set_metric_names(list(definition.objective))
        copy.add_trials(study.get_trials(deepcopy=False))
    except optuna.exceptions.DuplicatedStudyError:
        raise ConfigError(f"{storage} has a study {study.study_name!r} already; name another file") from None
    except Exception as error:  # of whatever database driver
        raise ConfigError(f"{storage} cannot take the study: {error}") from None
    return len(study.trials)
