"""Composes the run of a trial from what study.json has frozen, so that nodes need no `conf/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import config_as_written, on_files
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.schemas import Base, Definition
from sweeps.grid.compose import Composed


class Composition:
    """Composes runs of a study from the settings and the seed of a trial."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._composed: dict[tuple[int, frozenset[str]], Composed] = {}

    def base(self, settings: Mapping[str, Any], group: int) -> int:
        """The number of the base, a composed choice of config groups, for these settings. Raises KeyError if there is none."""
        values = {**self.definition.fixed, **self.definition.groups[group], **settings}
        for number, base in enumerate(self.definition.bases):
            if all(values.get(key, choice) == choice for key, choice in base.choices.items()):
                return number
        raise KeyError(f"no base for {values}")

    def config(self, settings: Mapping[str, Any], group: int, seed: int) -> RunConfig:
        """The configuration of the run with these settings and this seed. Raises ConfigError for settings that no run can have."""
        number = self.base(settings, group)
        base = self.definition.bases[number]
        values = {**self.definition.fixed, **self.definition.groups[group], **settings, "seed": seed}
        return run_config(base, self._compose(number, base, {k: v for k, v in values.items() if k not in base.choices}))

    def _compose(self, number: int, base: Base, leaves: dict[str, Any]) -> dict[str, Any]:
        """A base with these values of single settings."""
        name = number, frozenset(leaves)
        if name not in self._composed:
            self._composed[name] = Composed(OmegaConf.create(base.settings), leaves)
        return self._composed[name].with_leaves(leaves)


def run_config(base: Base, composed: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from a composed base, with the fingerprints of its files."""
    if composed["precision"] == "auto":  # the base has the one that `auto` meant
        raise ConfigError(
            "precision=auto is not allowed in a search, whose workers may differ; wanted: float32, bfloat16"
        )
    config = config_as_written(composed, base.checksum)
    return config if base.fingerprint is None else on_files(config, base.fingerprint)


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None if a section on the way to it is null."""
    value: Any = values
    for part in key.split("."):
        value = value[part] if value is not None else None
    return value
