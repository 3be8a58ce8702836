"""What the programs of the core share: Hydra composes their settings, and what is mistyped gets one sentence."""

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
    """Calls `function` with the settings that conf/CONFIG_NAME.yaml and the command line make. Exits with one sentence for a
    wrong setting, and for a store that cannot be used."""

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def program(composed: DictConfig) -> None:
        values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        try:
            function(values)
        except (ConfigError, StoreError) as error:  # an exit, because Hydra adds a line of its own to every exception
            sys.exit(f"mmprompt: {error}")

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here
    try:
        program()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"mmprompt: {' '.join(sys.argv[1:])}: {' '.join(str(error).split())}")


def check_overrides() -> None:
    """Exits with one sentence for an override of a run that names no key, or a value that does not exist."""
    for word in sys.argv[1:]:
        if "=" in word and not word.startswith("-"):
            key, value = word.lstrip("+~").split("=", 1)
            try:
                check_override(key, value, CONF)
            except ConfigError as error:
                sys.exit(f"mmprompt: {error}")
