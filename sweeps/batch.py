"""A batch: what one launch hands to a scheduler. Frozen in STORE/jobs/ID/batch.json before anything is submitted.

A job is a list of runs, so that imports and backbone are paid once. Local worker processes share one list, and whoever
is free takes the next run; a SLURM job has a list of its own.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mmprompt.config import Cluster
from mmprompt.run import ROOT, Attempt, Store, this_process, write_once
from sweeps import snapshot
from sweeps.manifest import Expanded

Kind = Literal["local", "slurm"]
JOB_SECONDS = 600.0  # what a SLURM job lasts at least, where finished runs tell how long a run takes
UNKNOWN_JOBS, UNKNOWN_RUNS = 8, 4  # where none does: this many jobs, or more, so that none has more runs than that


@dataclass(frozen=True)
class Batch:
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "batch.json"

    @cached_property
    def frozen(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return values

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def job_name(self) -> str:
        """SLURM's name of its jobs: they can be found by it even if the launcher died while submitting."""
        return f"mmprompt-{self.id}"

    @property
    def is_slurm(self) -> bool:
        return bool(self.frozen["job"]["scheduler"] == "slurm")

    @property
    def jobs(self) -> list[list[str]]:
        """The runs of each job."""
        return [[run for part in parts for run in part["runs"]] for parts in self.frozen["jobs"]]

    @property
    def environment(self) -> dict[str, str]:
        """What must be set before a job's python starts: numpy reads it once."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return dict.fromkeys(names, str(self.frozen["threads"]))


def log_of(attempt: Attempt) -> Path:
    """What the job of an attempt printed; submitit names it by the scheduler's id of the job."""
    job = attempt.job
    return attempt.run.path.parent.parent / "jobs" / str(job["batch"]) / f"{job['job']}_0_log.err"


def batches(store: Store) -> list[Batch]:
    """All that was ever submitted from this store, oldest first."""
    return [Batch(file.parent) for file in sorted(store.jobs.glob("*/batch.json"))]


def pack(runs: Sequence[str], seconds: float | None, cluster: Cluster) -> list[list[str]]:
    """Runs shared out to SLURM jobs, evenly. `seconds`: what a run takes; None where no finished run tells."""
    if cluster.runs_per_job is not None:
        most = cluster.runs_per_job
    elif seconds is None:
        most = min(UNKNOWN_RUNS, math.ceil(len(runs) / UNKNOWN_JOBS))
    else:
        most = max(1, int(min(JOB_SECONDS, 30.0 * cluster.time_min) / seconds))  # at most half of the time limit
    jobs = math.ceil(len(runs) / most)
    return [list(runs[i * len(runs) // jobs : (i + 1) * len(runs) // jobs]) for i in range(jobs)]


def freeze(expanded: Expanded, jobs: Sequence[Sequence[str]], kind: Kind, code: Mapping[str, Any]) -> Batch:
    """Snapshot and batch.json, on disk; nothing is submitted yet. `code` says commit and dirty."""
    store, place = expanded.store, expanded.place
    copy = snapshot.take(ROOT, store)

    def parts(runs: Iterable[str]) -> Iterator[dict[str, Any]]:
        for backbone, group in itertools.groupby(runs, key=lambda run: expanded.backbones[run]):
            where = {"backbone": str(snapshot.inside(backbone, ROOT, copy)), "gpus": place.cluster.gpus}
            where |= {"checkpoint_every": place.cluster.checkpoint_every, "cache": place.cache.model_dump()}
            yield {"where": where | {"tracking": place.tracking.model_dump()}, "runs": list(group)}

    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    batch = Batch(store.jobs / f"{now}-{secrets.token_hex(3)}")
    frozen = {
        "sweep": expanded.sweep.name,
        "store": str(store.root),
        "snapshot": str(copy),
        "job": {"batch": batch.id, "scheduler": kind, "code": copy.name, **code},
        "driver": this_process() if kind == "local" else None,  # without it local workers end; SLURM's need nobody
        "threads": max(expanded.configs[run].threads for runs in jobs for run in runs),
        "cluster": place.cluster.model_dump(),
        "jobs": [list(parts(runs)) for runs in jobs],
    }
    write_once(batch.file, json.dumps(frozen, indent=1))
    return batch
