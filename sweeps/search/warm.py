"""Warm start: finished runs of the store that lie in the space of a search, as trials that it knows from the beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mmprompt.runs.identity import completed, run_id
from mmprompt.runs.records import DamagedError, ResultRecord
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.outcomes import objectives
from mmprompt.studies.schemas import Definition, Settings, Warm
from sweeps.search.definition import CheckedSearch
from sweeps.search.settings import Composition, value_at


def warm_start(search: CheckedSearch) -> tuple[list[Warm], list[str]]:
    """The finished runs of the store that lie in the space, one warm trial for all seeds of the same settings; and lines that say
    why other runs, which are similar, do not lie in it.

    A run lies in the space if the study's settings, together with the run's values of the searched keys, result in the run's id.
    """
    definition, composition = search.definition, search.composition
    # By group and settings, then by seed: the run's id and its objectives.
    runs_by_settings: dict[tuple[int, str], dict[int, tuple[str, dict[str, float]]]] = {}
    settings_of: dict[tuple[int, str], Settings] = {}
    reasons: Counter[str] = Counter()
    for folder, config, result in _finished(search.store, {*definition.tasks}):
        fits = [_fit(definition, composition, group, folder.id, config) for group in range(len(definition.groups))]
        inside = [(group, fit) for group, fit in enumerate(fits) if isinstance(fit, dict)]
        if not inside:
            reason = next((fit for fit in fits if isinstance(fit, str) and fit), "")  # of the first group that has one
            reasons[reason] += bool(reason)
            continue
        group, settings = inside[0]
        values = objectives(result, definition, config["task"]["name"])
        if values is None:
            reasons["not evaluated on validation"] += 1
            continue
        name = group, repr(sorted(settings.items()))
        settings_of[name] = settings
        runs_by_settings.setdefault(name, {})[config["seed"]] = folder.id, values
    warm = [
        Warm(
            group=name[0],
            settings=settings_of[name],
            runs={str(seed): run for seed, (run, _) in sorted(runs.items())},
            values=[sum(values[metric] for _, values in runs.values()) / len(runs) for metric in definition.objective],
        )
        for name, runs in sorted(runs_by_settings.items())
    ]
    return warm, [
        f"{count} run{'s' if count > 1 else ''}: {reason}" for reason, count in reasons.most_common() if reason
    ]


def _finished(store: Store, tasks: set[str]) -> Iterator[tuple[RunFolder, dict[str, Any], ResultRecord]]:
    """The finished runs of these tasks, each with its configuration and its result."""
    for run in sorted(store.runs()):
        folder = store.run(run)
        try:
            result = folder.result()
            if result is not None:
                config = completed(folder.settings())
                if config["task"]["name"] in tasks:
                    yield folder, config, result
        except (DamagedError, KeyError):
            continue  # damaged, or of a version with other settings: it cannot be a run of this study


def _fit(
    definition: Definition, composition: Composition, group: int, run: str, config: dict[str, Any]
) -> Settings | str:
    """The run's values of the searched keys, if the study makes this very run with them. Else the reason why it does not, or an
    empty text if the run is not similar enough for a reason."""
    fixed = {**definition.fixed, **definition.groups[group]}
    of_run = {key: value_at(config, key) if key != "task" and key != "model" else config[key]["name"] for key in fixed}
    if any(of_run[key] != value for key, value in fixed.items() if key in ("task", "model", "method")):
        return ""
    settings: Settings = {}
    for parameter in definition.space:
        if parameter.applies({**fixed, **settings}):
            value = config["model"]["name"] if parameter.key == "model" else value_at(config, parameter.key)
            if not parameter.contains(value):
                return f"{parameter.key}={value} is outside {parameter}" if value is not None else ""
            settings[parameter.key] = value
    try:
        ours = composition.config(settings, group, config["seed"])
    except (ConfigError, KeyError):
        return ""
    if run_id(ours) == run:
        return settings
    return _difference(ours.model_dump(mode="json"), config)


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> str:
    """The first setting in which two runs differ, in words."""
    for key, value in ours.items():
        other = theirs.get(key) if isinstance(theirs, Mapping) else None
        if isinstance(value, dict) and isinstance(other, dict):
            if below := _difference(value, other, f"{prefix}{key}."):
                return below
        elif value != other:
            return f"{prefix}{key}={other}, and the study has {value}"
    return ""
