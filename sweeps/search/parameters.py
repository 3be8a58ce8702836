"""Reads the searched keys in a search's file, their values and conditions, and refuses faulty ones with one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.settings.deployment import Deployment
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from mmprompt.studies.schemas import Parameter
from sweeps.grid import compose
from sweeps.grid.sweep_file import distinct

KINDS = ("float", "log", "int", "choices")
OPTIONS = {"float": ("when",), "log": ("when",), "int": ("log", "step", "when"), "choices": ("when",)}
NOT_SEARCHED = {  # keys that cannot be searched, and why
    "seed": "seeds says how many seeds a trial has",
    "task": "scores of different tasks cannot be compared; `each: {task: [...]}` searches for each of them",
}


def read_parameter(key: str, value: Any, conf: Path) -> Parameter:
    """The parameter for a searched key, from its value in the file: `[a, b]`, `{float: [low, high]}`, `{log: [low, high]}`,
    `{int: [low, high], log: true, step: 8}` or `{choices: [a, b]}`; all but the first may have `when: {KEY: VALUE or [VALUES]}`.

    Raises ConfigError.
    """
    name = f"space.{key}"
    if key in NOT_SEARCHED:
        raise ConfigError(f"{name} cannot be searched: {NOT_SEARCHED[key]}")
    if isinstance(value, list):
        value = {"choices": value}
    kinds = [kind for kind in KINDS if isinstance(value, dict) and kind in value]
    if kinds == ["log", "int"]:
        kinds = ["int"]
    if not isinstance(value, dict) or len(kinds) != 1:
        raise ConfigError(
            f"{name}={value} is not allowed; wanted: a list of values, or one of {{float: [LOW, HIGH]}}, {{log: [LOW, HIGH]}}, "
            f"{{int: [LOW, HIGH]}}, {{choices: [...]}}"
        )
    [kind] = kinds
    for option in value:
        if option != kind and option not in OPTIONS[kind]:
            raise ConfigError(
                f"{name}.{option} does not exist{nearest(option, OPTIONS[kind])}; {kind} takes {', '.join(OPTIONS[kind])}"
            )
    when = _when(name, value.get("when"))
    if kind == "choices":
        choices = value["choices"]
        if not isinstance(choices, list) or not choices:
            raise ConfigError(f"{name}={choices!r} is not allowed; wanted: a list of values")
        if len(distinct(choices)) < len(choices):
            raise ConfigError(f"{name}={choices} has a value twice")
        check_key(name, key, choices, conf)
        return Parameter(key=key, kind="choice", low=None, high=None, log=False, step=None, choices=choices, when=when)
    check_key(name, key, value[kind] if isinstance(value[kind], list) else [value[kind]], conf)
    low, high = _range(name, kind, value[kind])
    log = kind == "log" or value.get("log", False)
    step = value.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{name}.log={log!r} is not allowed; wanted: true or false")
    if log and low <= 0:
        raise ConfigError(f"{name}: a logarithmic range cannot begin at {low}; wanted: a number above 0")
    if step is not None and (not isinstance(step, int) or isinstance(step, bool) or step < 1 or log):
        raise ConfigError(f"{name}.step={step!r} is not allowed; wanted: a whole number from 1 on, and no log")
    if step is not None and (high - low) % step:
        raise ConfigError(f"{name}.step={step} does not lead from {low} to {high}; wanted: a divisor of {high - low}")
    whole = kind == "int"
    return Parameter(
        key=key, kind="int" if whole else "float", low=low, high=high, log=log, step=step, choices=None, when=when
    )


def _range(name: str, kind: str, value: Any) -> tuple[Any, Any]:
    number = int if kind == "int" else int | float
    is_pair = isinstance(value, list) and len(value) == 2
    if not is_pair or not all(isinstance(end, number) and not isinstance(end, bool) for end in value):
        wanted = "two whole numbers" if kind == "int" else "two numbers"
        raise ConfigError(f"{name}.{kind}={value} is not allowed; wanted: [LOW, HIGH], {wanted}")
    low, high = value if kind == "int" else (float(value[0]), float(value[1]))
    if not low < high:
        how = "empty" if low == high else "reversed"
        raise ConfigError(f"{name}.{kind}={value} is {how}; wanted: [LOW, HIGH] with LOW below HIGH")
    if low != low or high in (float("inf"), float("-inf")) or low == float("-inf"):
        raise ConfigError(f"{name}.{kind}={value} is not finite")
    return low, high


def _when(name: str, value: Any) -> dict[str, list[Any]]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{name}.when={value!r} is not allowed; wanted: {{KEY: VALUE}} or {{KEY: [VALUES]}}")
    return {key: values if isinstance(values, list) else [values] for key, values in value.items()}


def check_conditions(space: Sequence[Parameter], fixed: Mapping[str, Any], each: Mapping[str, Sequence[Any]]) -> None:
    """Checks that each `when` names keys that are decided before, and values that these can have. Raises ConfigError."""
    before: dict[str, Parameter] = {}
    for parameter in space:
        for key, values in parameter.when.items():
            name = f"space.{parameter.key}.when.{key}"
            if key in before:
                possible = [value for value in values if before[key].contains(value)]
                possible_text = f"{key} is searched in {before[key]}"
            elif key in each:
                possible = [value for value in values if value in each[key]]
                possible_text = f"{key} is one of {', '.join(map(str, each[key]))}"
            elif key in fixed:
                possible = [value for value in values if value == fixed[key]]
                possible_text = f"{key} is fixed at {fixed[key]}"
            else:
                later = any(other.key == key for other in space)
                why = "comes later in the space; put it before" if later else "is neither searched nor fixed"
                raise ConfigError(f"{name}: {key} {why}{nearest(key, [*before, *each, *fixed]) if not later else ''}")
            if len(possible) < len(values):
                wrong = next(value for value in values if value not in possible)
                raise ConfigError(f"{name}={wrong} can never hold: {possible_text}")
        if parameter.key in before or parameter.key in fixed or parameter.key in each:
            raise ConfigError(f"space.{parameter.key} is in fixed or in each as well; it can be in one of them")
        before[parameter.key] = parameter


def check_key(name: str, key: str, values: Sequence[Any], conf: Path) -> None:
    """Checks that a search may set this key to these values. `name`: how messages name the setting. Raises ConfigError."""
    top = key.split(".")[0]
    if top in Deployment.model_fields and key != "data":
        raise ConfigError(f"{name}: {key} says where runs are made, and changes no score; give it on the command line")
    if top in Questions.model_fields:
        raise ConfigError(f"{name}: {key} is asked of finished runs; a search looks at validation as the task says")
    compose.check(key, values, conf)
