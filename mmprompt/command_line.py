"""The command line of the core's programs: Hydra composes the settings, and a mistake in them is reported in one sentence."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import check_override
from mmprompt.settings.parsing import ConfigError

CONF = ROOT / "conf"


def run_program(function: Callable[[dict[str, Any]], None], config_name: str) -> None:
    """Calls `function` with the settings that Hydra composes of conf/CONFIG_NAME.yaml and the command line. Exits with one sentence
    if a setting is wrong or the store cannot be used."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def program(composed: DictConfig) -> None:
        values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        try:
            function(values)
        except (ConfigError, StoreError) as error:  # exit at once, because Hydra adds a line of its own to an exception
            sys.exit(f"mmprompt: {error}")

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises errors instead of printing them
    try:
        program()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"mmprompt: {' '.join(sys.argv[1:])}: {' '.join(str(error).split())}")


def check_overrides() -> None:
    """Exits with one sentence if an override of a run's settings has a key or a value that does not exist."""
    for argument in sys.argv[1:]:
        if "=" in argument and not argument.startswith("-"):
            key, value = argument.lstrip("+~").split("=", 1)
            try:
                check_override(key, value, CONF)
            except ConfigError as error:
                sys.exit(f"mmprompt: {error}")
