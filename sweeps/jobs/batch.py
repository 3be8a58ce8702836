"""A batch: what one launch hands to a scheduler. Frozen in STORE/jobs/N/batch.json before anything is submitted.

A job is a list of runs, with the evaluations that they shall have, so that imports and backbone are paid once. Local worker
processes share one list, and whoever is free takes the next run; a SLURM job has a list of its own. SLURM's jobs go in arrays:
the one whose first job is number F has its script and logs in STORE/jobs/N/F/, and the name `NAME.F`, so that a job of it is
number F + its task.

Batches are numbered. A launch looks at all there are, decides, and puts its own in place as the next one: if another
launch was faster, that number is taken, and it looks again. So every decision knows those before it, and there are no locks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from mmprompt.runs.deployment import ROOT, Cluster, Deployment, JobSettings
from mmprompt.runs.files import StoreError, drafted, put_folder, write_once
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process, who
from mmprompt.runs.records import BATCH, END, TAKEN, BatchRecord, DamagedError, EndRecord, Record, as_json, read
from mmprompt.runs.store import Attempt, Store, is_number
from sweeps.jobs import snapshot

if TYPE_CHECKING:  # it brings Hydra, which the verbs after a launch do without
    from sweeps.grid.manifest import Launch, Settings

Kind = Literal["local", "slurm"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # variables
LOG = re.compile(r"\d+(_(?P<task>\d+))?_0_log\.err")  # as submitit names it
JOB_SECONDS = 600.0  # what a SLURM job lasts at least, where finished runs tell how long a run takes
UNKNOWN_JOBS, UNKNOWN_RUNS = 8, 4  # where none does: this many jobs, or more, so that none has more runs than that


@dataclass(frozen=True)
class Batch:
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "batch.json"

    @cached_property
    def record(self) -> BatchRecord:
        """Raises DamagedError, also if there is none."""
        cure = (
            f"restore it; if you cannot, cancel the jobs of that launch (`squeue --me` shows them as mmprompt-{self.id}-*) "
            f"and empty the folder {self.folder}"
        )
        found = read(self.file, BATCH, cure)
        if found is None:
            raise DamagedError(self.file, "is not there", cure)
        return found

    @property
    def damage(self) -> Iterator[DamagedError]:
        """Of its other records: jobs are found by their names all the same."""
        cure = "remove it: its jobs are found by their names"
        for first in self.arrays:
            yield from damage(self.array(first) / "submitted.json", TAKEN, cure)
        yield from damage(self.end_file, END, cure)

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def store(self) -> Store:
        return Store(self.folder.parent.parent)

    @property
    def job_name(self) -> str:
        """How the names of its SLURM jobs begin: they can be found by it even if the launcher died while submitting."""
        return self.record["job_name"]

    def runs_of(self, sweep: str) -> list[str]:
        """Those of its runs that this sweep asked for."""
        if "search" in self.record:
            return self.jobs[0] if self.jobs and sweep == self.record["search"]["manifest"] else []
        if "sweep" in self.record:  # long ago a batch was of one sweep
            return [run for job in self.jobs for run in job] if self.record["sweep"] == sweep else []
        return self.record.get("sweeps", {}).get(sweep, [])

    @property
    def is_slurm(self) -> bool:
        return self.record["job"]["scheduler"] == "slurm"

    @property
    def search(self) -> str | None:
        """The name of the study whose workers its jobs are: each of them takes whatever run of it is next."""
        return self.record["search"]["name"] if "search" in self.record else None

    @property
    def measured(self) -> str | None:
        """The sweep whose costs its one job measures (`sweeps.verbs.measure`): it is at no run."""
        return self.record["measure"]["name"] if "measure" in self.record else None

    @cached_property
    def jobs(self) -> list[list[str]]:
        """The runs of each job; of a worker of a search all that the study has now; of one that measures none."""
        if self.search is not None:
            from mmprompt.studies.study import runs_of

            return [runs_of(self.store, self.search)] * len(self.record["jobs"])
        return [[run for part in parts for run in part["runs"]] for parts in self.record["jobs"]]

    @cached_property
    def _asked(self) -> dict[str, list[dict[str, Any]]]:
        """By run, the settings of the evaluations that it shall have; batches of long ago do not say it."""
        if self.search is not None:
            from mmprompt.studies.study import evaluations_of

            return evaluations_of(self.store, self.search)
        parts = [part for parts in self.record["jobs"] for part in parts]
        return {run: part.get("evaluations", []) for part in parts for run in part["runs"]}

    def wanted(self, run: str) -> frozenset[str]:
        """The evaluations that its jobs see to of this run."""
        return frozenset(evaluation_id(run, settings) for settings in self._asked.get(run, ()))

    @property
    def arrays(self) -> dict[int, str]:
        """By the number of its first job: the name of each array that SLURM has been, or is about to be, asked for."""
        firsts = sorted(int(path.name) for path in self.folder.glob("[0-9]*") if is_number(path.name) and path.is_dir())
        return {first: self.array_name(first) for first in firsts}

    def array_name(self, first: int) -> str:
        return f"{self.job_name}.{first}"

    def array(self, first: int) -> Path:
        return self.folder / str(first)

    def note(self, first: int, job: str, count: int) -> None:
        """SLURM has taken an array of so many jobs, under this id."""
        write_once(self.array(first) / "submitted.json", as_json({"job": job, "count": count}))

    @property
    def job_ids(self) -> dict[int, str]:
        """SLURM's id of each job that is known to be handed over; one that is alone in its array has no task number."""
        found: dict[int, str] = {}
        for first in self.arrays:
            taken = _sound(self.array(first) / "submitted.json", TAKEN)
            if taken:
                job, count = taken["job"], taken["count"]
                found |= {first + task: f"{job}_{task}" if count > 1 else job for task in range(count)}
        return found

    def log(self, number: int) -> Path | None:
        """What that job printed as errors; None if it printed nothing yet."""
        first = max((first for first in self.arrays if first <= number), default=None)
        if first is None:
            return None
        logs = [(LOG.fullmatch(file.name), file) for file in self.array(first).glob("*_log.err")]
        return next((file for name, file in logs if name and int(name["task"] or 0) == number - first), None)

    def worker_log(self, number: int) -> Path:
        """What local worker `number` prints as errors."""
        return self.folder / f"{number}_0_log.err"

    @property
    def worker_logs(self) -> list[Path]:
        """What local workers printed as errors, the log that was written to last at the end."""
        found: dict[Path, float] = {}
        for log in self.folder.glob("*_log.err"):
            with contextlib.suppress(FileNotFoundError):
                found[log] = log.stat().st_mtime
        return sorted(found, key=found.__getitem__)

    @property
    def end_file(self) -> Path:
        return self.folder / "submitted.json"

    @property
    def end(self) -> EndRecord | None:
        """How submission ended: {"waiting": how many jobs were not taken, "why": sbatch's words}. None: it has not."""
        return _sound(self.end_file, END)

    @property
    def environment(self) -> dict[str, str]:
        """What must be set before a job's python starts: numpy reads it once."""
        return dict.fromkeys(THREADS, str(self.record["threads"]))


def _sound(file: Path, schema: TypeAdapter[Record]) -> Record | None:
    """None if it is not there, or damaged: then it is as if it had not been written."""
    with contextlib.suppress(DamagedError):
        return read(file, schema)
    return None


def damage(file: Path, schema: TypeAdapter[Record], cure: str) -> Iterator[DamagedError]:
    """Why a record cannot be used; nothing of one that can, or is not there."""
    try:
        read(file, schema, cure)
    except DamagedError as error:
        yield error


class Batches(list[Batch]):
    """Those of a store that can be read, oldest first; of the others why not. `next`: the number of one that is made now."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.damaged: list[DamagedError] = []
        try:
            names = os.listdir(store.jobs)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        numbers = sorted(int(name) for name in names if is_number(name))
        self.next = numbers[-1] + 1 if numbers else 1
        for number in numbers:
            batch = Batch(store.jobs / str(number))
            try:
                batch.record  # noqa: B018
                self.append(batch)
            except DamagedError as error:
                if not _is_empty(batch.folder):  # that is a number that was taken
                    self.damaged.append(error)


def _is_empty(folder: Path) -> bool:
    """Or no folder, or gone."""
    try:
        return not os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def wanted(batches: Iterable[Batch], runs: Iterable[str]) -> dict[str, frozenset[str]]:
    """By run, the evaluations that these batches see to."""
    found: dict[str, frozenset[str]] = dict.fromkeys(runs, frozenset())
    for batch in batches:
        found |= {run: found[run] | batch.wanted(run) for job in batch.jobs for run in job if run in found}
    return found


def log_of(attempt: Attempt) -> Path | None:
    """What the job of an attempt printed as errors; None of a run that was started by hand, or before that was written down."""
    log: str | None = attempt.job.get("log")
    return None if log is None else attempt.run.store.root / log


def batches(store: Store) -> Batches:
    """All that was ever submitted from this store, oldest first, as far as it can be read."""
    return Batches(store)


def pack(runs: Sequence[str], seconds: Mapping[str, float | None], cluster: Cluster) -> list[list[str]]:
    """Runs shared out to SLURM jobs, in their order. `seconds`: what each takes; None where no finished run tells."""
    if cluster.runs_per_job is not None:
        return _evenly(runs, cluster.runs_per_job)
    if any(seconds[run] is None for run in runs):
        return _evenly(runs, min(UNKNOWN_RUNS, math.ceil(len(runs) / UNKNOWN_JOBS)))
    wanted = min(JOB_SECONDS, 30.0 * cluster.time_min)  # at most half of the time limit
    takes = [seconds[run] or 0.0 for run in runs]
    total = sum(takes)
    count = math.ceil(total / wanted) or 1
    jobs: list[list[str]] = [[] for _ in range(count)]
    before = 0.0
    for run, took in zip(runs, takes, strict=True):
        jobs[int(count * (before + took / 2) / total) if total else 0].append(run)  # where the middle of it falls
        before += took
    return [job for job in jobs if job]


def _evenly(runs: Sequence[str], most: int) -> list[list[str]]:
    jobs = math.ceil(len(runs) / most)
    return [list(runs[i * len(runs) // jobs : (i + 1) * len(runs) // jobs]) for i in range(jobs)]


def freeze_batch(
    expanded: Launch, jobs: Sequence[Sequence[str]], kind: Kind, about: Mapping[str, Any], after: Batches
) -> Batch | None:
    """Snapshot and batch.json, on disk; nothing is submitted yet. None: another launch has put one in place `after` those that
    this one has looked at. `about` says commit, dirty, and SLURM's name of the cluster.

    Raises StoreError if it cannot be written.
    """
    store, deployment = expanded.store, expanded.deployment
    copy = snapshot.take(ROOT, store)

    def parts(runs: Iterable[str]) -> Iterator[dict[str, Any]]:
        def alike(run: str) -> tuple[Path, list[Settings]]:
            return expanded.backbones[run], list(expanded.evaluations[run].values())

        for (backbone, evaluations), group in itertools.groupby(runs, key=alike):
            yield {
                "settings": job_settings(deployment, backbone, copy),
                "runs": list(group),
                "evaluations": evaluations,
            }

    own = {
        "sweeps": {
            one.sweep.name: [run for runs in jobs for run in runs if run in one.configs] for one in expanded.sweeps
        },
        "overrides": list(expanded.sweeps[0].overrides),
        "threads": max(expanded.configs[run].threads for runs in jobs for run in runs),
        "jobs": [list(parts(runs)) for runs in jobs],
    }
    return put_batch(store, deployment, copy, kind, about, after, own)


def job_settings(deployment: Deployment, backbone: Path, copy: Path) -> dict[str, Any]:
    """As a batch keeps them. `copy`: the snapshot, which has the backbones of the repository in it."""
    return JobSettings.of(deployment, snapshot.inside(backbone, ROOT, copy)).model_dump(mode="json")


def put_batch(
    store: Store,
    deployment: Deployment,
    copy: Path,
    kind: Kind,
    about: Mapping[str, Any],
    after: Batches,
    own: Mapping[str, Any],
) -> Batch | None:
    """The next batch, with `own` besides what all batches say. None if another launch was faster. Raises StoreError."""
    number = after.next
    batch = Batch(store.jobs / str(number))
    code = {key: about[key] for key in ("commit", "dirty")}
    frozen = {
        **own,
        "store": str(store.root),
        "snapshot": str(copy),
        "job": {"batch": batch.id, "scheduler": kind, "code": copy.name, **code},
        "job_name": f"mmprompt-{number}-{secrets.token_hex(3)}",
        "launcher": this_process(),  # without it local workers end; SLURM's jobs need nobody once they are submitted
        "user": who(),
        "slurm_cluster": about["slurm_cluster"],
        "cluster": deployment.cluster.model_dump(),
    }
    try:
        with drafted(batch.folder) as draft:
            write_once(draft / "batch.json", as_json(frozen))
            return batch if put_folder(draft, batch.folder, "batch.json") else None
    except OSError as error:
        raise StoreError(f"{batch.folder} cannot be made: {error.strerror}") from error


GPUS = "MMPROMPT_GPUS"  # the variable that says which a local worker may use; others find it in its environment
