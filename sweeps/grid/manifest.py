"""The manifest: an expanded sweep, each point with the identity of its run and of its evaluations, as frozen at launch.

It is all that `analysis` knows of a sweep.
"""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.comparison import Comparison
from mmprompt.runs.config import ConfigError, Questions, RunConfig, Task
from mmprompt.runs.deployment import Deployment, backbone_file, deployment_of, store_folder
from mmprompt.runs.files import write_over
from mmprompt.runs.identity import checksum_of, config_of, evaluation_id, evaluations_of, run_id
from mmprompt.runs.records import as_json
from mmprompt.runs.store import Store
from sweeps.grid import sweep_file
from sweeps.grid.compose import Composer, parse
from sweeps.grid.launched import differences, label
from sweeps.grid.limits import points_allowed
from sweeps.grid.sweep_file import Point, Sweep

HEADER = ("model", "backbone.mode", "method", "optim.steps", "optim.batch_size")  # what a table's caption must say
Settings = Mapping[str, Any]  # of an evaluation


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep as runs. Several points may be one run: settings that mean the same have the same id, and axes of `attack` and
    `evaluation` make more evaluations of the same runs."""

    sweep: Sweep
    overrides: Sequence[str]  # from the command line
    points: list[tuple[str, Point]]  # with the id of its run
    asked: list[Mapping[str, Settings]]  # of each point, by split, the evaluations that it wants
    configs: dict[str, RunConfig]  # by run, in the order of the points
    backbones: dict[str, Path]  # by run
    deployment: Deployment
    tuned_seeds: list[int]  # those whose scores on validation chose the learning rates that it uses

    @property
    def store(self) -> Store:
        return Store(store_folder(self.deployment.paths.runs))

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Every axis with the values that its points have, in the order of the sweep's file."""
        used: dict[str, list[Any]] = {key: [] for key in self.sweep.axes}
        for _, point in self.points:
            for key, value in point.values.items():
                used.setdefault(key, []).append(value)
        return {key: sweep_file.distinct(values) for key, values in used.items()}

    @cached_property
    def wanted(self) -> dict[str, dict[str, Settings]]:
        """By run, the evaluations that its points want, by their ids."""
        found: dict[str, dict[str, Settings]] = {run: {} for run in self.configs}
        for (run, _), asked in zip(self.points, self.asked, strict=True):
            found[run] |= {evaluation_id(run, settings): settings for settings in asked.values()}
        return found

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        return differences([(run, point.values) for run, point in self.points], self.axes)

    @cached_property
    def labels(self) -> dict[str, str]:
        """What tells each run from the others, as text; no two have the same."""
        return {run: label(one) for run, one in self.differences.items()}


def expand(name: str, overrides: Sequence[str], conf: Path) -> ExpandedSweep:
    """Composes every point of a sweep. Raises ConfigError with one sentence for whatever is wrong with it."""
    most = points_allowed(overrides, conf)
    changes = dict(parse(text, conf, most) for text in overrides)
    sweep = sweep_file.with_overrides(sweep_file.read(name, conf, most), changes, most)
    composer = Composer(conf)
    points: list[tuple[str, Point]] = []
    asked: list[Mapping[str, Settings]] = []
    configs: dict[str, RunConfig] = {}
    backbones: dict[str, Path] = {}
    places: dict[str, tuple[Deployment, str]] = {}  # by what the settings say of it; with its backbone's checksum
    tuned_seeds: set[int] = set()
    known: dict[str, tuple[str, Mapping[str, Settings]]] = {}  # a point's values -> its run and its evaluations
    trained: dict[str, tuple[RunConfig, str]] = {}  # all settings but those of evaluations -> their run
    for point in sweep.points():
        composed = composer.compose(point.overrides)
        if "optim.lr" not in point.overrides:
            tuned_seeds |= {*composed.get("tuned", {}).get("seeds", ())}
        where = repr([composed.get(key) for key in Deployment.model_fields])
        if where not in places:
            deployment = deployment_of(composed)
            places[where] = deployment, checksum_of(deployment)
            _check_place(name, next(iter(places.values()))[0], deployment)
        deployment, checksum = places[where]
        rest = repr([checksum, *(value for key, value in composed.items() if key not in Questions.model_fields)])
        if rest not in trained:
            config = config_of(composed, checksum)
            trained[rest] = config, run_id(config)
        config, run = trained[rest]
        wants = evaluations_of(composed, config)
        # A table has tasks as columns and averages over seeds: every point says its own, axis or not.
        point = Point({"task": config.task.name, "seed": config.seed} | point.values, point.overrides)
        values = json.dumps(point.values, sort_keys=True)
        if values in known:
            if known[values] != (run, wants):
                what = "runs" if known[values][0] != run else "evaluations"
                raise ConfigError(f"sweep {name}: two blocks make different {what} of {values}; make an axis of it")
            continue
        known[values] = run, wants
        points.append((run, point))
        asked.append(wants)
        configs[run], backbones[run] = config, backbone_file(deployment)
    first, _ = next(iter(places.values()))
    return ExpandedSweep(sweep, overrides, points, asked, configs, backbones, first, sorted(tuned_seeds))


@dataclass(frozen=True)
class Launch:
    """Sweeps that are launched as one, or a single one: a run that several have is one run, with what any of them wants of it."""

    sweeps: Sequence[ExpandedSweep]

    @property
    def names(self) -> list[str]:
        return [one.sweep.name for one in self.sweeps]

    @property
    def deployment(self) -> Deployment:
        return self.sweeps[0].deployment

    @property
    def store(self) -> Store:
        return self.sweeps[0].store

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        return {run: config for one in self.sweeps for run, config in one.configs.items()}

    @cached_property
    def backbones(self) -> dict[str, Path]:
        return {run: file for one in self.sweeps for run, file in one.backbones.items()}

    @cached_property
    def wanted(self) -> dict[str, dict[str, Settings]]:
        """By run, the evaluations that any of the sweeps wants, by their ids."""
        found: dict[str, dict[str, Settings]] = {run: {} for run in self.configs}
        for one in self.sweeps:
            for run, evaluations in one.wanted.items():
                found[run] |= evaluations
        return found

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        """Among several sweeps also the first that has a run: only there its axes tell it from the others."""
        if len(self.sweeps) == 1:
            return self.sweeps[0].differences
        named = [(one.sweep.name, one.differences) for one in reversed(self.sweeps)]
        return {run: {"sweep": name} | axes for name, differences in named for run, axes in differences.items()}

    @cached_property
    def labels(self) -> dict[str, str]:
        """No two have the same."""
        if len(self.sweeps) == 1:
            return self.sweeps[0].labels
        named = [(one.sweep.name, one.labels) for one in reversed(self.sweeps)]
        return {run: f"{name}: {label}" for name, labels in named for run, label in labels.items()}


def join(names: Iterable[str], overrides: Sequence[str], conf: Path) -> Launch:
    """These sweeps, each with the overrides. Raises ConfigError, also if they are not to run in one place."""
    found = [expand(name, overrides, conf) for name in dict.fromkeys(names)]
    for one in found[1:]:
        _check_place(f"{found[0].sweep.name} and {one.sweep.name}", found[0].deployment, one.deployment)
    return Launch(found)


def _check_place(name: str, first: Deployment, other: Deployment) -> None:
    here, there = first.model_dump(), other.model_dump()
    for section, values in there.items():
        for key, value in values.items():
            if value != here[section][key] and key != "backbone":  # each model has its own
                both = f"{section}.{key} is {here[section][key]} and {value}"
                raise ConfigError(f"sweep {name}: {both}; what is launched together runs in one place")


def manifest(expanded: ExpandedSweep, code: Mapping[str, Any]) -> dict[str, Any]:
    """What is written to STORE/sweeps/NAME.json; `code` says commit and dirty."""
    sweep, configs = expanded.sweep, expanded.configs.values()
    asked = [text for text in expanded.overrides if text.split("=")[0].split(".")[0] not in Deployment.model_fields]
    tasks = {point.values["task"]: expanded.configs[run].task for run, point in expanded.points}
    header: dict[str, Any] = {}
    for key in HEADER:
        values = {_setting(config, key) for config in configs}
        if len(values) == 1:
            header[key] = values.pop()
    header |= _asked_alike([settings for asked in expanded.asked for settings in asked.values()])
    return {
        "sweep": sweep.name,
        "search": None,  # of which it is the manifest (`sweeps.search.manifest`)
        "claim": sweep.claim,
        "paper": sweep.paper,
        "command": sweep.command + (f' ARGS="{shlex.join(asked)}"' if asked else ""),
        "target": f"sweep-{sweep.name}",
        "overrides": asked,
        "axes": expanded.axes,
        "baseline": sweep.baseline,
        **sweep.model_dump(include=set(Comparison.model_fields)),
        "tuned_seeds": expanded.tuned_seeds,
        "tasks": {name: _task(task) for name, task in tasks.items()},
        "header": header,
        "tracking": {"project": expanded.deployment.tracking.project, "entity": expanded.deployment.tracking.entity},
        "points": [
            {
                "values": point.values,
                "fixed": {key: value for key, value in point.overrides.items() if key not in point.values},
                "run": run,
                "evaluations": {split: evaluation_id(run, settings) for split, settings in asked.items()},
            }
            for (run, point), asked in zip(expanded.points, expanded.asked, strict=True)
        ],
        **code,
        "launched": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _asked_alike(asked: Sequence[Settings]) -> dict[str, Any]:
    """What all evaluations have in common that is not as by default; of attacks, what all attacks have."""
    every = [{f"evaluation.{key}": one[key] for key in one if key not in ("split", "attack")} for one in asked]
    attacks = [{f"attack.{key}": value for key, value in one["attack"].items()} for one in asked if "attack" in one]
    if len(attacks) < len(asked):  # without a budget: it is not the same for all
        attacks = [{key: value for key, value in one.items() if key != "attack.epsilon"} for one in attacks]
    alike = [one.items() for one in every], [one.items() for one in attacks]
    return {key: value for rows in alike if rows for key, value in rows[0] if all((key, value) in row for row in rows)}


def _task(task: Task) -> dict[str, str]:
    return {"family": task.family, "metric": PRIMARY_METRIC[task.family], "validation": task.validation}


def write(expanded: ExpandedSweep, code: Mapping[str, Any]) -> Path:
    file = expanded.store.manifest(expanded.sweep.name)
    write_over(file, as_json(manifest(expanded, code)))
    return file


def _setting(config: RunConfig, key: str) -> Any:
    if key == "model":
        return config.model.name
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
