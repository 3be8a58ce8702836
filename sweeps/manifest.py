"""The manifest: an expanded sweep, each point with the identity of its run, as frozen at launch.

It is all that `analysis` knows of a sweep.
"""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt.config import PRIMARY_METRIC, ConfigError, Place, RunConfig
from mmprompt.run import (
    Store,
    backbone_file,
    checksum_of,
    config_of,
    default_store,
    evaluation_id,
    place_of,
    run_id,
    write_over,
)
from sweeps import grid
from sweeps.compose import Composer, parse
from sweeps.grid import Point, Sweep
from sweeps.launched import differences, label

SPLITS = ("val", "test")
HEADER = ("model", "backbone.mode", "method", "optim.steps", "optim.batch_size")  # what a table's caption must say


@dataclass(frozen=True)
class Expanded:
    """A sweep as runs. Several points may be one run: settings that mean the same have the same id."""

    sweep: Sweep
    overrides: Sequence[str]  # from the command line
    points: list[tuple[str, Point]]  # with the id of its run
    configs: dict[str, RunConfig]  # by run, in the order of the points
    backbones: dict[str, Path]  # by run
    place: Place

    @property
    def store(self) -> Store:
        runs = self.place.paths.runs
        return Store(default_store() if runs is None else Path(runs).absolute())

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Every axis with the values that its points have, in the order of the sweep's file."""
        used: dict[str, list[Any]] = {key: [] for key in self.sweep.axes}
        for _, point in self.points:
            for key, value in point.values.items():
                used.setdefault(key, []).append(value)
        return {key: grid.distinct(values) for key, values in used.items()}

    @cached_property
    def differences(self) -> dict[str, dict[str, str]]:
        return differences([(run, point.values) for run, point in self.points], self.axes)

    @cached_property
    def labels(self) -> dict[str, str]:
        """What tells each run from the others, as text; no two have the same."""
        return {run: label(one) for run, one in self.differences.items()}


def expand(name: str, overrides: Sequence[str], conf: Path) -> Expanded:
    """Composes every point of a sweep. Raises ConfigError with one sentence for whatever is wrong with it."""
    sweep = grid.with_overrides(grid.read(name, conf), dict(parse(text, conf) for text in overrides))
    composer = Composer(conf)
    points: list[tuple[str, Point]] = []
    configs: dict[str, RunConfig] = {}
    backbones: dict[str, Path] = {}
    places: dict[str, tuple[Place, str]] = {}  # by what the settings say of it; with its backbone's checksum
    known: dict[str, str] = {}  # a point's values -> its run
    for point in sweep.points():
        composed = composer.compose(point.overrides)
        where = repr([composed.get(key) for key in Place.model_fields])
        if where not in places:
            place = place_of(composed)
            places[where] = place, checksum_of(place)
            _check_place(name, next(iter(places.values()))[0], place)
        place, checksum = places[where]
        config = config_of(composed, checksum)
        run = run_id(config)
        # A table has tasks as columns and averages over seeds: every point says its own, axis or not.
        point = Point({"task": config.task.name, "seed": config.seed} | point.values, point.overrides)
        values = json.dumps(point.values, sort_keys=True)
        if values in known:
            if known[values] != run:
                raise ConfigError(f"sweep {name}: two blocks make different runs of {values}; make an axis of it")
            continue
        known[values] = run
        points.append((run, point))
        configs[run], backbones[run] = config, backbone_file(place)
    first, _ = next(iter(places.values()))
    return Expanded(sweep, overrides, points, configs, backbones, first)


def _check_place(name: str, first: Place, other: Place) -> None:
    here, there = first.model_dump(), other.model_dump()
    for section, values in there.items():
        for key, value in values.items():
            if value != here[section][key] and key != "backbone":  # each model has its own
                both = f"{section}.{key} is {here[section][key]} and {value}"
                raise ConfigError(f"sweep {name}: {both}; a sweep runs in one place")


def manifest(expanded: Expanded, code: Mapping[str, Any]) -> dict[str, Any]:
    """What is written to STORE/sweeps/NAME.json; `code` says commit and dirty."""
    sweep, configs = expanded.sweep, expanded.configs.values()
    asked = [text for text in expanded.overrides if text.split("=")[0].split(".")[0] not in Place.model_fields]
    tasks = {point.values["task"]: expanded.configs[run].task for run, point in expanded.points}
    header: dict[str, Any] = {}
    for key in HEADER:
        values = {_setting(config, key) for config in configs}
        if len(values) == 1:
            header[key] = values.pop()
    return {
        "sweep": sweep.name,
        "claim": sweep.claim,
        "paper": sweep.paper,
        "command": sweep.command + (f' ARGS="{shlex.join(asked)}"' if asked else ""),
        "axes": expanded.axes,
        "baseline": sweep.baseline,
        "compare": sweep.compare,
        "tasks": {name: {"family": task.family, "metric": PRIMARY_METRIC[task.family]} for name, task in tasks.items()},
        "header": header,
        "tracking": {"project": expanded.place.tracking.project, "entity": expanded.place.tracking.entity},
        "points": [
            {"values": point.values, "run": run, "evaluations": {s: evaluation_id(run, {"split": s}) for s in SPLITS}}
            for run, point in expanded.points
        ],
        **code,
        "launched": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def write(expanded: Expanded, code: Mapping[str, Any]) -> Path:
    file = expanded.store.manifest(expanded.sweep.name)
    write_over(file, json.dumps(manifest(expanded, code), indent=1))
    return file


def _setting(config: RunConfig, key: str) -> Any:
    if key == "model":
        return config.model.name
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
