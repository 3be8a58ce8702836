"""The settings of a trial as a run: composed from what study.json has frozen, so that nodes need no `conf/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import config_as_written, on_files
from mmprompt.studies.study import Base, Definition
from sweeps.grid.compose import Composed


class Composition:
    """Runs of a study by trial settings and seed."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        self._composed: dict[tuple[int, frozenset[str]], Composed] = {}

    def base(self, settings: Mapping[str, Any], group: int) -> int:
        """The number of the composed configuration that these settings choose. Raises KeyError if the study has none."""
        known = {**self.definition.fixed, **self.definition.groups[group], **settings}
        for number, base in enumerate(self.definition.bases):
            if all(known.get(key, choice) == choice for key, choice in base.choices.items()):
                return number
        raise KeyError(f"no base for {known}")

    def config(self, settings: Mapping[str, Any], group: int, seed: int) -> RunConfig:
        """Raises ConfigError for settings that no run can have."""
        number = self.base(settings, group)
        base = self.definition.bases[number]
        asked = {**self.definition.fixed, **self.definition.groups[group], **settings, "seed": seed}
        return run_config(base, self._at(number, base, {k: v for k, v in asked.items() if k not in base.choices}))

    def _at(self, number: int, base: Base, leaves: dict[str, Any]) -> dict[str, Any]:
        name = number, frozenset(leaves)
        if name not in self._composed:
            self._composed[name] = Composed(OmegaConf.create(base.settings), leaves)
        return self._composed[name].with_leaves(leaves)


def run_config(base: Base, composed: Mapping[str, Any]) -> RunConfig:
    config = config_as_written(composed, base.checksum)
    return config if base.fingerprint is None else on_files(config, base.fingerprint)


def at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None where a section on the way is null."""
    found: Any = values
    for part in key.split("."):
        found = found[part] if found is not None else None
    return found
