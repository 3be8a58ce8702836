"""Turns deployment settings into the folders of this machine and into the settings of jobs.

Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from mmprompt.settings.deployment import NEEDS, Caching, Deployment, SpeedName, Tracking
from mmprompt.settings.needs import needs
from mmprompt.settings.parsing import parse
from mmprompt.settings.section import NotNegative, Positive, PositiveFloat, Section

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds conf/, mmprompt/, sweeps/


class JobSettings(Section):
    """What a job needs to know besides the settings of its runs; fixed at launch (batch.json)."""

    backbone: str  # checkpoint file
    data: str | None  # folder of the files that tasks name
    stage: bool
    gpus: NotNegative
    recompute: bool
    speed: SpeedName
    deterministic: bool
    checkpoint_every: Positive | None
    checkpoint_seconds: PositiveFloat
    cache: Caching
    tracking: Tracking

    @classmethod
    def of(cls, deployment: Deployment, backbone: Path | None = None) -> Self:
        """The job settings of a deployment. `backbone`: the file that nodes read, if it differs from the deployment's."""
        return cls(
            backbone=str(backbone or backbone_file(deployment)),
            data=data_folder(deployment),
            stage=deployment.data.stage,
            gpus=deployment.cluster.gpus,
            recompute=deployment.cluster.recompute,
            speed=deployment.cluster.speed,
            deterministic=deployment.cluster.deterministic,
            checkpoint_every=deployment.cluster.checkpoint_every,
            checkpoint_seconds=deployment.cluster.checkpoint_seconds,
            cache=deployment.cache,
            tracking=deployment.tracking,
        )


def store_folder(named: str | os.PathLike[str] | None) -> Path:
    """The absolute path of a store. `~` is the user's home, even if no shell has expanded it. None: the default store."""
    return default_store() if named is None else Path(os.path.expanduser(named)).absolute()


def default_store() -> Path:
    """The store if none is named: MMPROMPT_RUNS, else `runs` in the clone, whatever the working folder is."""
    return store_folder(os.environ.get("MMPROMPT_RUNS") or ROOT / "runs")


def deployment_of(composed: Mapping[str, Any]) -> Deployment:
    """The deployment of composed settings; what a job needs is that of the model where the settings leave it open.

    Raises ConfigError.
    """
    sections = {key: composed.get(key, {}) for key in Deployment.model_fields}
    if any(key in sections["cluster"] and sections["cluster"][key] is None for key in NEEDS):
        of_model = needs(composed)
        sections["cluster"] = {
            k: of_model[k] if k in NEEDS and v is None else v for k, v in sections["cluster"].items()
        }
    return parse(Deployment, sections)


def data_folder(deployment: Deployment) -> str | None:
    """The folder of the tasks' files; a relative path begins at the clone."""
    return None if deployment.paths.data is None else str(ROOT / deployment.paths.data)


def backbone_file(deployment: Deployment) -> Path:
    return ROOT / deployment.paths.backbone  # an absolute path is not changed
