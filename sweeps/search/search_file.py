"""Reads `conf/search/NAME.yaml`, with changes from the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field
from yaml import YAMLError

from mmprompt.settings.parsing import ConfigError, parse
from mmprompt.settings.section import Section
from mmprompt.settings.spelling import nearest
from mmprompt.studies.schemas import Budget, Confirm, Seeds
from sweeps.grid import yaml_file


class Search(Section):
    """The content of `conf/search/NAME.yaml`, completed by conf/search/_defaults.yaml."""

    name: str
    claim: str
    paper: dict[str, str] = Field(default_factory=dict)
    command: str
    objective: dict[str, str]
    fixed: dict[str, Any] = Field(default_factory=dict)
    each: dict[str, list[Any]] = Field(default_factory=dict)
    space: dict[str, Any]
    sampler: str | dict[str, Any]
    rungs: list[int] = Field(default_factory=list)
    stop: str | dict[str, Any] | None = None
    seeds: int | Seeds
    budget: Budget
    confirm: Confirm
    warm: bool
    study_seed: int
    workers: int  # SLURM jobs at once; on this machine there are as many as the cores allow


def names(conf: Path) -> list[str]:
    """The names of the searches in conf/search/."""
    return sorted(file.stem for file in (conf / "search").glob("[!_]*.yaml"))


def read(name: str, changes: Mapping[str, str], conf: Path) -> Search:
    """The search with this name, with these changes to its own keys. Raises ConfigError that names the file and the key."""
    if name not in names(conf):
        raise ConfigError(f"there is no search {name}{nearest(name, names(conf))}; there are {', '.join(names(conf))}")
    try:
        content: dict[str, Any] = {}
        for stem in ("_defaults", name):
            part = yaml_file.read(conf / "search" / f"{stem}.yaml")
            if not isinstance(part, dict):
                raise ConfigError("a search is a list of KEY: VALUE lines")
            content |= part
        content = _changed(content, changes)
        for key in content:
            if key not in Search.model_fields or key == "name":
                raise ConfigError(f"{key} is not a key of a search{nearest(str(key), Search.model_fields)}")
        content["budget"] = dict.fromkeys(Budget.model_fields) | _table("budget", content.get("budget"))
        if isinstance(content.get("seeds"), int) and not isinstance(content["seeds"], bool):
            content["seeds"] = {"first": content["seeds"], "most": content["seeds"]}
        return parse(Search, content | {"name": name})
    except (ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"conf/search/{name}.yaml: {yaml_file.one_line(error)}") from None


def _changed(content: dict[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """The content of a file with values from the command line. A given budget replaces the whole budget, whatever its kind."""
    if any(key.startswith("budget.") for key in changes):
        content = content | {"budget": {}}
    for value in changes.values():
        yaml_file.check(f"- {value}")
    config = OmegaConf.create(content)
    config.merge_with_dotlist([f"{key}={value}" for key, value in changes.items()])
    changed: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return changed


def _table(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}={value!r} is not allowed; wanted: KEY: VALUE lines")
    return value


def is_of_search(key: str) -> bool:
    """Whether an override changes the search itself, as `budget.trials=20` does, and not its runs."""
    return key.split(".")[0] in Search.model_fields and key.split(".")[0] not in ("name", "space")
