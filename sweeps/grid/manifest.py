"""Expands a sweep and writes its manifest: every point with the ids of its run and of its evaluations, as fixed at launch.

The manifest is all that `analysis` reads of a sweep.
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
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import backbone_file, deployment_of, store_folder
from mmprompt.runs.identity import check_gpus, checksum_of, config_of, evaluation_id, evaluations_of, run_id
from mmprompt.runs.records import as_json
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.task import Task
from sweeps.grid import sweep_file
from sweeps.grid.compose import Composer, parse
from sweeps.grid.launched import differences, label
from sweeps.grid.limits import points_allowed
from sweeps.grid.sweep_file import Point, Sweep

HEADER = ("model", "backbone.mode", "method", "optim.steps", "optim.batch_size")  # a table's caption shows these
Settings = Mapping[str, Any]  # the settings of one evaluation


@dataclass(frozen=True)
class ExpandedSweep:
    """A sweep whose points have been turned into runs.

    Several points may share one run: settings that mean the same have the same id, and axes of `attack` and `evaluation` add
    evaluations to the same runs.
    """

    sweep: Sweep
    overrides: Sequence[str]  # from the command line
    points: list[tuple[str, Point]]  # the id of its run, and the point
    point_evaluations: list[Mapping[str, Settings]]  # for each point: its evaluations, by split
    configs: dict[str, RunConfig]  # by run, in the order of the points
    backbones: dict[str, Path]  # by run: the file of its backbone's weights
    deployment: Deployment
    tuned_seeds: list[int]  # seeds whose validation scores chose the learning rates that the runs use

    @property
    def store(self) -> Store:
        return Store(store_folder(self.deployment.paths.runs))

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Every axis with the values that occur at its points, in the order of the sweep's file."""
        used: dict[str, list[Any]] = {key: [] for key in self.sweep.axes}
        for _, point in self.points:
            for key, value in point.values.items():
                used.setdefault(key, []).append(value)
        return {key: sweep_file.distinct(values) for key, values in used.items()}

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Settings]]:
        """The evaluations that the sweep's points need: by run, their settings by evaluation id."""
        evaluations: dict[str, dict[str, Settings]] = {run: {} for run in self.configs}
        for (run, _), by_split in zip(self.points, self.point_evaluations, strict=True):
            evaluations[run] |= {evaluation_id(run, settings): settings for settings in by_split.values()}
        return evaluations

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        """The values that distinguish each run from the sweep's other runs, by run and axis."""
        return differences([(run, point.values) for run, point in self.points], self.axes)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The values that distinguish each run from the others, as text, by run. No two runs have the same label."""
        return {run: label(values) for run, values in self.differences.items()}


def expand(name: str, overrides: Sequence[str], conf: Path) -> ExpandedSweep:
    """Composes every point of a sweep. Raises ConfigError, with one sentence, for anything that is wrong with the sweep."""
    limit = points_allowed(overrides, conf)
    changes = dict(parse(text, conf, limit) for text in overrides)
    sweep = sweep_file.with_overrides(sweep_file.read(name, conf, limit), changes, limit)
    composer = Composer(conf)
    points: list[tuple[str, Point]] = []
    point_evaluations: list[Mapping[str, Settings]] = []
    configs: dict[str, RunConfig] = {}
    backbones: dict[str, Path] = {}
    deployments: dict[str, tuple[Deployment, str]] = {}  # by composed sections: deployment, checksum of its backbone
    first: Deployment | None = None  # that of the first point, with room for the runs of all
    tuned_seeds: set[int] = set()
    by_values: dict[str, tuple[str, Mapping[str, Settings]]] = {}  # by a point's values: its run and its evaluations
    runs: dict[
        str, tuple[RunConfig, str]
    ] = {}  # by all settings but those of evaluations: the configuration and its id
    for point in sweep.points():
        composed = composer.compose(point.overrides)
        if "optim.lr" not in point.overrides:
            tuned_seeds |= {*composed.get("tuned", {}).get("seeds", ())}
        deployment_key = repr(
            [
                *(composed.get(key) for key in (*Deployment.model_fields, "model", "method")),
                "files" in composed["task"]["data"],
            ]
        )
        if deployment_key not in deployments:
            deployment = deployment_of(composed)
            deployments[deployment_key] = deployment, checksum_of(deployment)
            first = joined(name, first or deployment, deployment)
        deployment, checksum = deployments[deployment_key]
        training_key = repr(
            [checksum, *(value for key, value in composed.items() if key not in Questions.model_fields)]
        )
        if training_key not in runs:
            config = config_of(composed, checksum)
            check_gpus(config, deployment.cluster.gpus)
            runs[training_key] = config, run_id(config)
        config, run = runs[training_key]
        evaluations = evaluations_of(composed, config)
        # Tables have tasks as columns and average over seeds, so each point gets both, even where they are not axes.
        point = Point({"task": config.task.name, "seed": config.seed} | point.values, point.overrides)
        values = json.dumps(point.values, sort_keys=True)
        if values in by_values:
            if by_values[values] != (run, evaluations):
                differing = "runs" if by_values[values][0] != run else "evaluations"
                raise ConfigError(
                    f"sweep {name}: two blocks make different {differing} of {values}; make an axis of it"
                )
            continue
        by_values[values] = run, evaluations
        points.append((run, point))
        point_evaluations.append(evaluations)
        configs[run], backbones[run] = config, backbone_file(deployment)
    assert first is not None
    return ExpandedSweep(sweep, overrides, points, point_evaluations, configs, backbones, first, sorted(tuned_seeds))


@dataclass(frozen=True)
class Launch:
    """One or several sweeps that are launched together. A run that several of them contain is trained once, and gets the
    evaluations that any of them needs."""

    sweeps: Sequence[ExpandedSweep]

    @property
    def names(self) -> list[str]:
        return [expanded.sweep.name for expanded in self.sweeps]

    @cached_property
    def deployment(self) -> Deployment:
        """That of the first sweep, with room for the runs of all. Raises ConfigError if the others differ in more than that."""
        first, *others = self.sweeps
        whole = first.deployment
        for other in others:
            whole = joined(f"{first.sweep.name} and {other.sweep.name}", whole, other.deployment)
        return whole

    @property
    def store(self) -> Store:
        return self.sweeps[0].store

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        return {run: config for expanded in self.sweeps for run, config in expanded.configs.items()}

    @cached_property
    def backbones(self) -> dict[str, Path]:
        return {run: file for expanded in self.sweeps for run, file in expanded.backbones.items()}

    @cached_property
    def evaluations(self) -> dict[str, dict[str, Settings]]:
        """The evaluations that any of the sweeps needs: by run, their settings by evaluation id."""
        evaluations: dict[str, dict[str, Settings]] = {run: {} for run in self.configs}
        for expanded in self.sweeps:
            for run, of_sweep in expanded.evaluations.items():
                evaluations[run] |= of_sweep
        return evaluations

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        """The values that distinguish each run from the others, by run and axis.

        With several sweeps they include, as `sweep`, the first sweep that contains the run: a run's axes distinguish it only
        within its sweep.
        """
        if len(self.sweeps) == 1:
            return self.sweeps[0].differences
        by_sweep = [(expanded.sweep.name, expanded.differences) for expanded in reversed(self.sweeps)]
        return {run: {"sweep": name} | axes for name, differences in by_sweep for run, axes in differences.items()}

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each run, by run; with several sweeps as `SWEEP: LABEL`. No two runs have the same label."""
        if len(self.sweeps) == 1:
            return self.sweeps[0].labels
        by_sweep = [(expanded.sweep.name, expanded.labels) for expanded in reversed(self.sweeps)]
        return {run: f"{name}: {label}" for name, labels in by_sweep for run, label in labels.items()}


def join(names: Iterable[str], overrides: Sequence[str], conf: Path) -> Launch:
    """Expands these sweeps, each with the overrides, into one launch.

    Raises ConfigError, also if the sweeps do not have the same deployment.
    """
    launch = Launch([expand(name, overrides, conf) for name in dict.fromkeys(names)])
    launch.deployment  # noqa: B018
    return launch


def joined(name: str, first: Deployment, other: Deployment) -> Deployment:
    """The first deployment, with room for the runs of both.

    Raises ConfigError if they differ in more than that and the backbone's file, which each model has of its own.
    """
    whole = first.joined(other)
    expected = whole.model_dump()
    for section, values in other.joined(first).model_dump().items():
        for key, value in values.items():
            if value != expected[section][key] and key != "backbone":
                both = f"{section}.{key} is {expected[section][key]} and {value}"
                raise ConfigError(f"sweep {name}: {both}; all runs of a launch need the same value")
    return whole


def manifest(expanded: ExpandedSweep, code: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of STORE/sweeps/NAME.json. `code`: the keys `commit` and `dirty`."""
    sweep, configs = expanded.sweep, expanded.configs.values()
    overrides = [text for text in expanded.overrides if text.split("=")[0].split(".")[0] not in Deployment.model_fields]
    tasks = {point.values["task"]: expanded.configs[run].task for run, point in expanded.points}
    header: dict[str, Any] = {}
    for key in HEADER:
        values = {_setting(config, key) for config in configs}
        if len(values) == 1:
            header[key] = values.pop()
    header |= _common_settings(
        [
            settings
            for by_split in expanded.point_evaluations
            for settings in by_split.values()
            if "unscored" not in settings
        ]
    )
    return {
        "sweep": sweep.name,
        "search": None,  # the name of a search only in manifests of searches (`sweeps.search.manifest`)
        "claim": sweep.claim,
        "paper": sweep.paper,
        "command": sweep.command + (f' ARGS="{shlex.join(overrides)}"' if overrides else ""),
        "target": f"sweep-{sweep.name}",
        "overrides": overrides,
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
                **_evaluations(run, by_split),
            }
            for (run, point), by_split in zip(expanded.points, expanded.point_evaluations, strict=True)
        ],
        **code,
        "launched": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _evaluations(run: str, by_split: Mapping[str, Settings]) -> dict[str, dict[str, str]]:
    """The ids of a point's evaluations by split: those of `evaluations` have scores, those of `unscored`, if any, have none."""
    ids = {split: evaluation_id(run, settings) for split, settings in by_split.items()}
    unscored = {split: ids.pop(split) for split, settings in by_split.items() if "unscored" in settings}
    return {"evaluations": ids} | ({"unscored": unscored} if unscored else {})


def _common_settings(evaluations: Sequence[Settings]) -> dict[str, Any]:
    """Returns the settings, beyond the defaults, that all evaluations share, and the attack settings that all attacks share."""
    decoding = [
        {f"evaluation.{key}": settings[key] for key in settings if key not in ("split", "attack")}
        for settings in evaluations
    ]
    attacks = [
        {f"attack.{key}": value for key, value in settings["attack"].items()}
        for settings in evaluations
        if "attack" in settings
    ]
    if len(attacks) < len(evaluations):  # some evaluations are not attacked, so they do not share the attacks' budget
        attacks = [{key: value for key, value in attack.items() if key != "attack.epsilon"} for attack in attacks]
    groups = [settings.items() for settings in decoding], [settings.items() for settings in attacks]
    return {key: value for rows in groups if rows for key, value in rows[0] if all((key, value) in row for row in rows)}


def _task(task: Task) -> dict[str, str]:
    return {"family": task.family, "metric": PRIMARY_METRIC[task.family], "validation": task.validation}


def write(expanded: ExpandedSweep, code: Mapping[str, Any]) -> Path:
    """Writes the manifest into the store, over an older one, and returns its file. `code`: the keys `commit` and `dirty`."""
    return expanded.store.put_manifest(expanded.sweep.name, as_json(manifest(expanded, code)))


def _setting(config: RunConfig, key: str) -> Any:
    """Returns the value of a dotted key; for `model` the model's name."""
    if key == "model":
        return config.model.name
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
