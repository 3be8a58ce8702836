"""Finished runs of the store that a search knows of from the beginning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mmprompt.runs.config import ConfigError
from mmprompt.runs.identity import completed, run_id
from mmprompt.runs.records import DamagedError, ResultRecord
from mmprompt.runs.store import RunFolder, Store
from mmprompt.studies.outcomes import objectives
from mmprompt.studies.study import Definition, Settings, Warm
from sweeps.search.settings import Composition, at
from sweeps.search.space import Asked


def warm_start(asked: Asked) -> tuple[list[Warm], list[str]]:
    """Finished runs of the store that lie in the space, all seeds of one setting as one; and why others that are near do not.

    Whether a run lies in the space is decided by its identity: the study's settings with the run's own values make its id.
    """
    definition, composition = asked.definition, asked.composition
    found: dict[tuple[int, str], dict[int, tuple[str, dict[str, float]]]] = {}
    settings_of: dict[tuple[int, str], Settings] = {}
    reasons: Counter[str] = Counter()
    for folder, config, result in _finished(asked.store, {*definition.tasks}):
        fits = [_fit(definition, composition, group, folder.id, config) for group in range(len(definition.groups))]
        inside = [(group, fit) for group, fit in enumerate(fits) if isinstance(fit, dict)]
        if not inside:
            reason = next(
                (fit for fit in fits if isinstance(fit, str) and fit), ""
            )  # of the group that it is nearest to
            reasons[reason] += bool(reason)
            continue
        group, settings = inside[0]
        values = objectives(result, definition, config["task"]["name"])
        if values is None:
            reasons["not evaluated on validation"] += 1
            continue
        name = group, repr(sorted(settings.items()))
        settings_of[name] = settings
        found.setdefault(name, {})[config["seed"]] = folder.id, values
    warm = [
        Warm(
            group=name[0],
            settings=settings_of[name],
            runs={str(seed): run for seed, (run, _) in sorted(runs.items())},
            values=[sum(v[one] for _, v in runs.values()) / len(runs) for one in definition.objective],
        )
        for name, runs in sorted(found.items())
    ]
    return warm, [
        f"{count} run{'s' if count > 1 else ''}: {reason}" for reason, count in reasons.most_common() if reason
    ]


def _finished(store: Store, tasks: set[str]) -> Iterator[tuple[RunFolder, dict[str, Any], ResultRecord]]:
    for run in sorted(store.runs()):
        folder = store.run(run)
        try:
            result = folder.result()
            if result is not None:
                config = completed(folder.settings())
                if config["task"]["name"] in tasks:
                    yield folder, config, result
        except (DamagedError, KeyError):
            continue  # damaged, or of a version whose settings are others: it cannot be one of ours


def _fit(
    definition: Definition, composition: Composition, group: int, run: str, config: dict[str, Any]
) -> Settings | str:
    """The run's values of the searched keys, if with these the study makes this very run; else why not, or nothing to say."""
    known = {**definition.fixed, **definition.groups[group]}
    fixed = {key: at(config, key) if key != "task" and key != "model" else config[key]["name"] for key in known}
    if any(fixed[key] != value for key, value in known.items() if key in ("task", "model", "method")):
        return ""
    settings: Settings = {}
    for parameter in definition.space:
        if parameter.applies({**known, **settings}):
            value = config["model"]["name"] if parameter.key == "model" else at(config, parameter.key)
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
    """The first setting in which two runs differ."""
    for key, value in ours.items():
        other = theirs.get(key) if isinstance(theirs, Mapping) else None
        if isinstance(value, dict) and isinstance(other, dict):
            if below := _difference(value, other, f"{prefix}{key}."):
                return below
        elif value != other:
            return f"{prefix}{key}={other}, and the study has {value}"
    return ""
