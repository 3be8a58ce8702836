"""Composed settings: Hydra's Compose API and override grammar, once per choice of groups.

A choice of groups (`task=micro_vqa`) decides which files of `conf/` are read; that is the expensive part. A leaf
(`prompt.length=10`) is set on the composed configuration before its interpolations are resolved, as Hydra itself does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmprompt.config import ConfigError, check_override, nearest

NOT_SETTINGS = ("sweep", "search")  # folders of conf/ that name what to do, not how


def groups(conf: Path) -> dict[str, list[str]]:
    """The config groups of `conf/` and their options."""
    folders = [path for path in conf.iterdir() if path.is_dir() and path.name not in NOT_SETTINGS]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def parse(text: str, conf: Path) -> tuple[str, list[Any]]:
    """`key=value` or `key=a,b` (also `range(...)`, `glob(...)`, quoted) as the key and its values, in Hydra's grammar.

    Raises ConfigError for what Hydra cannot read, and for an unknown key or group option.
    """
    try:
        override = OverridesParser.create().parse_override(text)
        values = _values(override, text, groups(conf))
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(
            f"{text!r} cannot be read ({reason}); write KEY=VALUE or KEY=A,B, and quote a value with special characters"
        ) from None
    for value in values:
        check(override.key_or_group, value, conf)
    return override.key_or_group, values


def _values(override: Override, text: str, options: Mapping[str, list[str]]) -> list[Any]:
    key = override.key_or_group
    if override.type is not OverrideType.CHANGE or override.package is not None:
        raise ConfigError(f"{text!r} is not KEY=VALUE; values of conf/ can be replaced, not added or deleted")
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_interval_sweep():
        raise ConfigError(f"{text!r}: an interval has no list of values; write range(start, stop, step) or KEY=A,B")
    glob: object = override.value()
    if isinstance(glob, Glob):
        if key not in options:
            raise ConfigError(f"{text!r}: glob chooses among the files of a group; groups are {', '.join(options)}")
        chosen: list[Any] = glob.filter(options[key])
        if not chosen:
            raise ConfigError(f"{text!r} matches nothing; allowed: {', '.join(options[key])}")
        return chosen
    return [Override._convert_value(value) for value in override.sweep_iterator()]


def check(key: str, value: Any, conf: Path) -> None:
    """Raises ConfigError if no configuration has this key, or its group no such file."""
    if key in NOT_SETTINGS:
        raise ConfigError(f"there is no key {key}")
    check_override(key, value if isinstance(value, str) else str(value), conf)


@dataclass
class Composed:
    """One choice of groups, composed once: its unresolved configuration, flat by dotted keys."""

    config: DictConfig
    flat: dict[str, Any]
    interpolated: set[str]

    def with_leaves(self, leaves: Mapping[str, Any]) -> dict[str, Any]:
        """Plain, resolved containers. Changes `config` in place: callers set the same keys each time."""
        for key, value in leaves.items():
            if key not in self.flat:
                raise ConfigError(f"there is no key {key}{nearest(key, self.flat)}")
            OmegaConf.update(self.config, key, value)
        interpolated = self.interpolated | {key for key, value in leaves.items() if "${" in str(value)}
        resolved = {key: _resolved(OmegaConf.select(self.config, key)) for key in interpolated}
        return _nested(self.flat | dict(leaves) | resolved)


class Composer:
    """Composes points of a sweep. Hydra works once per choice of groups, and per set of leaf keys that is set on it."""

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.options = groups(conf)
        self._composed: dict[tuple[Any, ...], Composed] = {}

    def compose(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The whole configuration under these overrides as plain containers, interpolations resolved.

        Raises ConfigError for unknown keys and options, and for what Hydra and OmegaConf refuse.
        """
        choices = {key: value for key, value in overrides.items() if key in self.options}
        leaves = _flat({key: value for key, value in overrides.items() if key not in self.options})
        try:
            return self._choice(choices, frozenset(leaves)).with_leaves(leaves)
        except (HydraException, OmegaConfBaseException) as error:
            given = " ".join(f"{key}={value}" for key, value in overrides.items())
            raise ConfigError(f"{given}: {str(error).strip().splitlines()[0]}") from None

    def _choice(self, choices: Mapping[str, Any], keys: frozenset[str]) -> Composed:
        name = (*sorted(choices.items()), keys)  # by keys, too: then each point overwrites all that the last one set
        if name not in self._composed:
            with initialize_config_dir(str(self.conf), version_base="1.3"):
                config = compose("config", [f"{key}={value}" for key, value in choices.items()])
            flat = _flat(cast(dict[str, Any], OmegaConf.to_container(config, resolve=False)))
            interpolated = {key for key, value in flat.items() if "${" in str(value)}
            self._composed[name] = Composed(config, flat, interpolated)
        return self._composed[name]


def _resolved(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}. Lists are values; an empty section stays one."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return nested
