"""The settings of where and how visibly runs are executed. They change no number, so they are in no id."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Self

from pydantic import Field, model_validator

from mmprompt.settings.secret import secret
from mmprompt.settings.section import NotNegative, NotNegativeFloat, Positive, PositiveFloat, Section

NEEDS = ("mem_gb", "cpus", "time_min")  # keys that differ from model to model (`mmprompt.settings.needs`)


SpeedName = Literal["eager", "graph", "compile"]


class Cluster(Section):
    """Where jobs run, and what each may use. What is null is left to the cluster."""

    kind: Literal["auto", "local", "slurm"] = Field(
        description="slurm, or local for processes on this machine; auto: slurm where sinfo answers"
    )
    partition: str | None = Field(description="SLURM partition")
    account: str | None = Field(description="SLURM account that is charged")
    qos: str | None = Field(description="SLURM quality of service")
    constraint: str | None = Field(description="features that nodes must have, as sbatch reads them")
    reservation: str | None = Field(description="SLURM reservation")
    exclude: str | None = Field(description="nodes to leave out")
    gres: str | None = Field(description="GPUs as sbatch reads them, gpu:a100:1; null: gpu:GPUS")
    gpus: NotNegative = Field(description="GPUs per job")
    cpus: Positive = Field(description="CPU cores per job; null: as the data need")
    mem_gb: PositiveFloat = Field(description="memory per job, in GB; null: as the model needs")
    time_min: Positive = Field(
        description="time limit of a job, in minutes; a run that needs longer continues in the next job; null: by the model"
    )
    max_parallel: Positive | None = Field(
        description="jobs at once, on this machine those of all launches together; null: as many as the cores allow, on SLURM all"
    )
    checkpoint_every: Positive | None = Field(
        description="updates between two checkpoints of a run; null: it goes by the time, checkpoint_seconds"
    )
    checkpoint_seconds: PositiveFloat = Field(
        description="seconds between two checkpoints of a run; more if saving one takes more than a twentieth of that"
    )
    recompute: bool = Field(
        description="compute the encoder's layers again in the backward pass instead of keeping what they computed: less memory, "
        "about a third more time, the same bits"
    )
    speed: SpeedName = Field(
        description="how updates execute the layers; eager: one operation after another; compile: compiled, with texts padded to a "
        "few lengths; graph: the same, replayed as CUDA graphs. The last bits differ, and the record says which it was; where it "
        "cannot be done, the run goes on as eager"
    )
    deterministic: bool = Field(
        description="true: only kernels that give the same bits each time, so that a run that was killed has the bits of one that "
        "was not, on the same kind of GPU too; slower. On a CPU this holds without it"
    )
    runs_per_job: Positive | None = Field(
        description="runs in a job, one after the other; null: chosen so that jobs are even and start-up is paid seldom"
    )
    python: str | None = Field(
        description="the interpreter on the nodes, as a shell reads it; null: the one that launches"
    )
    setup: list[str] = Field(
        description="shell lines before the interpreter starts, [module load cuda]; the first that fails ends the job"
    )
    sbatch: dict[str, str | int | bool] = Field(description="further options of sbatch, {mail-user: me@there}")

    @model_validator(mode="after")
    def _settings_go_into_files(self) -> Self:
        if self.speed == "graph" and self.recompute:
            raise ValueError(
                "cluster.speed='graph' and cluster.recompute=true do not go together: a CUDA graph keeps its own memory; choose "
                "cluster.speed=compile or eager, or cluster.recompute=false"
            )
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
    """What becomes of the W&B record of a run."""

    mode: Literal["offline", "online", "disabled"] = Field(
        description="offline: on disk, `sync` sends it later; online: also to the server while the run trains"
    )
    project: str = Field(description="W&B project")
    entity: str | None = Field(description="W&B user or team; null: the default of the account")


class Caching(Section):
    """Keeping what a frozen backbone computes of an example (`mmprompt.training.frozen_features`), and, where that is not kept, the
    decoded images of files (`mmprompt.data.decoded_images`). It changes no bit."""

    frozen: Literal["auto", "on"] = Field(
        description="auto: keep it on a CPU with backbone.mode eval; on: on a GPU too, and backbone.mode=train is refused"
    )
    max_gb: NotNegativeFloat = Field(description="largest size of STORE/cache, in GB; 0: keep nothing")


class Staging(Section):
    """Where jobs read data from."""

    stage: bool = Field(description="copy what runs read to $TMPDIR, once per node")


class Paths(Section):
    """Folders and files of this machine."""

    runs: str | None = Field(description="the store; null: MMPROMPT_RUNS, or runs/ in the clone")
    backbone: str = Field(description="the checkpoint file; a relative path begins at the folder that holds conf/")
    data: str | None = Field(
        description="the folder of the files that the task names; a relative path begins at the folder that holds conf/"
    )


class Limits(Section):
    """Sizes beyond which a command is refused."""

    points: Positive = Field(description="runs of a sweep, or of a search")


class Deployment(Section):
    """Everything about a run that changes no number."""

    cluster: Cluster
    tracking: Tracking
    cache: Caching
    data: Staging
    paths: Paths
    limits: Limits

    def joined(self, other: Self) -> Self:
        """This deployment, with jobs that have room for the runs of the other too: the more memory, cores and time of both."""
        most = {key: max(getattr(self.cluster, key), getattr(other.cluster, key)) for key in NEEDS}
        return self.model_copy(update={"cluster": self.cluster.model_copy(update=most)})
