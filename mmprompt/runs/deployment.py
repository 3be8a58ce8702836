"""Where and how visibly runs are executed: cluster, W&B, caches, paths, limits. It changes no number, so it is in no id.

Like everything that is configured (`mmprompt.runs.config`), without defaults: those live in `conf/`. Light: no torch, no Hydra.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import model_validator

from mmprompt.runs.config import parse
from mmprompt.runs.secret import secret
from mmprompt.settings.section import NotNegative, NotNegativeFloat, Positive, PositiveFloat, Section

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds conf/, mmprompt/, sweeps/


class Cluster(Section):
    """Where jobs run, and what a job may use. What is null is left to the cluster."""

    kind: Literal["auto", "local", "slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None  # nodes
    gres: str | None  # as sbatch reads it, `gpu:a100:1`; null: gpu:GPUS
    gpus: NotNegative  # per job
    cpus: Positive  # per job
    mem_gb: PositiveFloat
    time_min: Positive
    max_parallel: Positive | None  # jobs at once, here those of all launches; null: as the cores allow, on SLURM all
    checkpoint_every: Positive  # updates between two checkpoints of a run
    runs_per_job: Positive | None  # null: chosen so that the jobs are even and imports are paid once
    python: str | None  # the interpreter on the nodes, as a shell reads it; null: the one that launches
    setup: list[str]  # lines of shell before it; the first that fails ends the job
    sbatch: dict[str, str | int | bool]  # whatever else sbatch knows, `{mail-user: me@there}`

    @model_validator(mode="after")
    def _settings_go_into_files(self) -> Self:
        if self.gres is not None and not self.gpus:
            raise ValueError(f"cluster.gres={self.gres} needs cluster.gpus, the number that a run uses; it is 0")
        for key in self.sbatch:
            if key.replace("_", "-") in OWN_SBATCH:
                raise ValueError(f"cluster.sbatch has {key}, which is set by {OWN_SBATCH[key.replace('_', '-')]}")
        for setting, text in self._written():
            if found := secret(text):
                raise ValueError(
                    f"cluster.{setting}={found.shown!r} would write a secret into files that others can read; {found.cure}"
                )
        return self

    def _written(self) -> Iterator[tuple[str, str]]:
        """All texts, each with its key: they are kept with the jobs, and stand in their scripts."""
        for key, value in self:
            if isinstance(value, str):
                yield key, value
        yield from (("setup", line) for line in self.setup)
        yield from (("sbatch", f"{key}={value}") for key, value in self.sbatch.items())


OWN_SBATCH = {
    **{
        key: f"cluster.{key}" for key in ("partition", "account", "qos", "constraint", "reservation", "exclude", "gres")
    },
    **{"time": "cluster.time_min", "mem": "cluster.mem_gb", "cpus-per-task": "cluster.cpus", "gpus": "cluster.gpus"},
    **dict.fromkeys(
        ("array", "job-name", "output", "error", "open-mode", "signal", "requeue", "no-requeue"), "a launch"
    ),
    **dict.fromkeys(("dependency", "ntasks", "nodes", "wckey"), "a launch"),
}


class Tracking(Section):
    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


class Caching(Section):
    """What becomes of what a frozen backbone makes of an example (`mmprompt.training.frozen_features`). It changes no bit."""

    frozen: Literal["auto", "on"]  # auto: kept on a CPU in mode eval; on: on a GPU too, and mode train is refused
    max_gb: NotNegativeFloat  # of all that is kept in STORE/cache; 0: nothing is kept


class Staging(Section):
    stage: bool  # what runs read is copied to $TMPDIR, once per node


class Paths(Section):
    runs: str | None  # the store; null: MMPROMPT_RUNS, or runs/ in the clone
    backbone: str  # checkpoint file; relative: to the folder that holds conf/
    data: str | None  # folder of the files that the task names; relative: to the folder that holds conf/


class Limits(Section):
    points: Positive  # of a sweep, or runs of a search


class Deployment(Section):
    cluster: Cluster
    tracking: Tracking
    cache: Caching
    data: Staging
    paths: Paths
    limits: Limits


class JobSettings(Section):
    """What a job needs to know besides the settings of its runs; fixed at launch (batch.json)."""

    backbone: str  # checkpoint file
    data: str | None  # folder of the files that tasks name
    stage: bool
    gpus: NotNegative
    checkpoint_every: Positive
    cache: Caching
    tracking: Tracking

    @classmethod
    def of(cls, deployment: Deployment, backbone: Path | None = None) -> Self:
        """`backbone`: the file that nodes read, if it is another than here."""
        return cls(
            backbone=str(backbone or backbone_file(deployment)),
            data=data_folder(deployment),
            stage=deployment.data.stage,
            gpus=deployment.cluster.gpus,
            checkpoint_every=deployment.cluster.checkpoint_every,
            cache=deployment.cache,
            tracking=deployment.tracking,
        )


def store_folder(named: str | os.PathLike[str] | None) -> Path:
    """The folder that a person means; `~` is his home, also where no shell has expanded it. None: the default."""
    return default_store() if named is None else Path(os.path.expanduser(named)).absolute()


def default_store() -> Path:
    """Where no other is named: MMPROMPT_RUNS, else `runs` in the clone, whatever folder one is in."""
    return store_folder(os.environ.get("MMPROMPT_RUNS") or ROOT / "runs")


def deployment_of(composed: Mapping[str, Any]) -> Deployment:
    return parse(Deployment, {key: composed.get(key, {}) for key in Deployment.model_fields})


def data_folder(deployment: Deployment) -> str | None:
    """An absolute path stays itself."""
    return None if deployment.paths.data is None else str(ROOT / deployment.paths.data)


def backbone_file(deployment: Deployment) -> Path:
    return ROOT / deployment.paths.backbone  # an absolute path stays itself
