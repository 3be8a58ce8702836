"""A batch: the jobs that one launch hands to SLURM or to local processes, stored in STORE/jobs/N/batch.json before submission.

A job is a list of runs with the evaluations that they need, so imports and backbone are loaded once for all of them. Local
workers share one list, and each takes the next run when it is free; a SLURM job has a list of its own. SLURM jobs are submitted
as arrays. The array whose first job is number F has its script and logs in STORE/jobs/N/F/ and the name `NAME.F`; its task T is
job F + T of the batch.

Batches are numbered. A launch reads all existing batches, decides what to submit, and puts its own batch in place under the next
number. If another launch took that number first, it reads the batches again and decides anew. So each decision takes all earlier
ones into account, without locks.
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

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT, JobSettings
from mmprompt.runs.files import StoreError, drafted, is_number, put_folder, write_once
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process, who
from mmprompt.runs.records import BATCH, END, TAKEN, BatchRecord, DamagedError, EndRecord, Record, as_json, read
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster, Deployment
from sweeps.jobs import snapshot

if TYPE_CHECKING:  # this module imports Hydra, which the verbs after a launch do without
    from sweeps.grid.manifest import Launch, Settings

Kind = Literal["local", "slurm"]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # environment variables
LOG = re.compile(r"\d+(_(?P<task>\d+))?_0_log\.err")  # submitit's names of logs
JOB_SECONDS = 600.0  # the length of a SLURM job to aim at, if finished runs show how long a run takes
# Otherwise the runs are divided into 8 jobs, or into more, so that no job has more than 4 runs.
UNKNOWN_JOBS, UNKNOWN_RUNS = 8, 4


@dataclass(frozen=True)
class Batch:
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "batch.json"

    @cached_property
    def record(self) -> BatchRecord:
        """The content of batch.json. Raises DamagedError if it cannot be used, or does not exist."""
        cure = (
            f"restore it; if you cannot, cancel the jobs of that launch (`squeue --me` shows them as mmprompt-{self.id}-*) "
            f"and empty the folder {self.folder}"
        )
        record = read(self.file, BATCH, cure)
        if record is None:
            raise DamagedError(self.file, "is not there", cure)
        return record

    @property
    def damage(self) -> Iterator[DamagedError]:
        """Yields an error for each damaged record besides batch.json. Its jobs are still found, by their names."""
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
        """The beginning of the names of its SLURM jobs. It finds them even if the launcher died while submitting."""
        return self.record["job_name"]

    def runs_of(self, sweep: str) -> list[str]:
        """The batch's runs that belong to this sweep."""
        if "search" in self.record:
            return self.jobs[0] if self.jobs and sweep == self.record["search"]["manifest"] else []
        if "sweep" in self.record:  # old batches belong to a single sweep
            return [run for job in self.jobs for run in job] if self.record["sweep"] == sweep else []
        return self.record.get("sweeps", {}).get(sweep, [])

    @property
    def is_slurm(self) -> bool:
        return self.record["job"]["scheduler"] == "slurm"

    @property
    def search(self) -> str | None:
        """The name of the study that its jobs work on, each taking the study's next run; None if it is not a search's batch."""
        return self.record["search"]["name"] if "search" in self.record else None

    @property
    def measured(self) -> str | None:
        """The sweep whose costs its only job measures (`sweeps.verbs.measure`); None otherwise. Such a job executes no run."""
        return self.record["measure"]["name"] if "measure" in self.record else None

    @cached_property
    def jobs(self) -> list[list[str]]:
        """The runs of each job. A worker of a search has all runs that the study has now; a job that measures costs has none."""
        if self.search is not None:
            from mmprompt.studies.study import runs_of

            return [runs_of(self.store, self.search)] * len(self.record["jobs"])
        return [[run for part in parts for run in part["runs"]] for parts in self.record["jobs"]]

    @cached_property
    def _evaluation_settings(self) -> dict[str, list[dict[str, Any]]]:
        """The settings of the evaluations that the jobs make, by run; empty lists in old batches, which do not store them."""
        if self.search is not None:
            from mmprompt.studies.study import evaluations_of

            return evaluations_of(self.store, self.search)
        parts = [part for parts in self.record["jobs"] for part in parts]
        return {run: part.get("evaluations", []) for part in parts for run in part["runs"]}

    def evaluations_of(self, run: str) -> frozenset[str]:
        """The ids of the evaluations that the batch's jobs make of this run."""
        return frozenset(evaluation_id(run, settings) for settings in self._evaluation_settings.get(run, ()))

    @property
    def arrays(self) -> dict[int, str]:
        """The names of the arrays that were submitted or are about to be, by the number of their first job."""
        firsts = sorted(int(path.name) for path in self.folder.glob("[0-9]*") if is_number(path.name) and path.is_dir())
        return {first: self.array_name(first) for first in firsts}

    def array_name(self, first: int) -> str:
        """The name of the array whose first job is number `first`."""
        return f"{self.job_name}.{first}"

    def array(self, first: int) -> Path:
        """The folder of the array whose first job is number `first`."""
        return self.folder / str(first)

    def record_submission(self, first: int, job: str, count: int) -> None:
        """Writes down that SLURM accepted an array of `count` jobs, the first of them number `first`, under the id `job`."""
        write_once(self.array(first) / "submitted.json", as_json({"job": job, "count": count}))

    @property
    def job_ids(self) -> dict[int, str]:
        """SLURM's ids of the jobs that were recorded as submitted, by job number. A job alone in its array has no task number."""
        ids: dict[int, str] = {}
        for first in self.arrays:
            submitted = _read_if_usable(self.array(first) / "submitted.json", TAKEN)
            if submitted:
                job, count = submitted["job"], submitted["count"]
                ids |= {first + task: f"{job}_{task}" if count > 1 else job for task in range(count)}
        return ids

    def log(self, number: int) -> Path | None:
        """The file that receives the stderr of SLURM job `number`; None if it does not exist yet."""
        first = max((first for first in self.arrays if first <= number), default=None)
        if first is None:
            return None
        logs = [(LOG.fullmatch(file.name), file) for file in self.array(first).glob("*_log.err")]
        return next((file for name, file in logs if name and int(name["task"] or 0) == number - first), None)

    def worker_log(self, number: int) -> Path:
        """The file that receives the stderr of local worker `number`."""
        return self.folder / f"{number}_0_log.err"

    @property
    def worker_logs(self) -> list[Path]:
        """The logs of its local workers, the most recently written one last."""
        changed: dict[Path, float] = {}
        for log in self.folder.glob("*_log.err"):
            with contextlib.suppress(FileNotFoundError):
                changed[log] = log.stat().st_mtime
        return sorted(changed, key=changed.__getitem__)

    @property
    def end_file(self) -> Path:
        return self.folder / "submitted.json"

    @property
    def end(self) -> EndRecord | None:
        """How submission ended: {"waiting": number of jobs that SLURM did not accept, "why": sbatch's reason}. None: it has not."""
        return _read_if_usable(self.end_file, END)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that must be set before a job's Python starts: NumPy reads them only once."""
        return dict.fromkeys(THREADS, str(self.record["threads"]))


def _read_if_usable(file: Path, schema: TypeAdapter[Record]) -> Record | None:
    """Returns a record; None if it does not exist or is damaged. A damaged record is treated as if it had not been written."""
    with contextlib.suppress(DamagedError):
        return read(file, schema)
    return None


def damage(file: Path, schema: TypeAdapter[Record], cure: str) -> Iterator[DamagedError]:
    """Yields an error if a record exists and cannot be used."""
    try:
        read(file, schema, cure)
    except DamagedError as error:
        yield error


class Batches(list[Batch]):
    """The batches of a store that can be read, oldest first. `damaged`: errors of the others. `next`: the next batch's number."""

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
                if not _is_empty(batch.folder):  # an empty folder only reserves its number
                    self.damaged.append(error)


def _is_empty(folder: Path) -> bool:
    """Whether a folder is empty, is not a folder, or does not exist."""
    try:
        return not os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False


def evaluations_by_run(batches: Iterable[Batch], runs: Iterable[str]) -> dict[str, frozenset[str]]:
    """Returns the ids of the evaluations that these batches make, by run."""
    evaluations: dict[str, frozenset[str]] = dict.fromkeys(runs, frozenset())
    for batch in batches:
        runs_of_batch = (run for job in batch.jobs for run in job if run in evaluations)
        evaluations |= {run: evaluations[run] | batch.evaluations_of(run) for run in runs_of_batch}
    return evaluations


def log_of(attempt: Attempt) -> Path | None:
    """Returns the file with the stderr of an attempt's job.

    None if the attempt was started by hand, or is older than the key `log` in job.json.
    """
    log: str | None = attempt.job.get("log")
    return None if log is None else attempt.run.root / log


def batches(store: Store) -> Batches:
    """Returns every readable batch of this store, oldest first."""
    return Batches(store)


def pack(runs: Sequence[str], seconds: Mapping[str, float | None], cluster: Cluster) -> list[list[str]]:
    """Distributes runs to SLURM jobs, in their order. `seconds`: the time of each run; None if no finished run shows it."""
    if cluster.runs_per_job is not None:
        return _evenly(runs, cluster.runs_per_job)
    if any(seconds[run] is None for run in runs):
        return _evenly(runs, min(UNKNOWN_RUNS, math.ceil(len(runs) / UNKNOWN_JOBS)))
    target = min(JOB_SECONDS, 30.0 * cluster.time_min)  # seconds per job: at most half of the time limit
    takes = [seconds[run] or 0.0 for run in runs]
    total = sum(takes)
    count = math.ceil(total / target) or 1
    jobs: list[list[str]] = [[] for _ in range(count)]
    before = 0.0
    for run, took in zip(runs, takes, strict=True):
        jobs[int(count * (before + took / 2) / total) if total else 0].append(
            run
        )  # the job in which the run's middle falls
        before += took
    return [job for job in jobs if job]


def _evenly(runs: Sequence[str], most: int) -> list[list[str]]:
    jobs = math.ceil(len(runs) / most)
    return [list(runs[i * len(runs) // jobs : (i + 1) * len(runs) // jobs]) for i in range(jobs)]


def freeze_batch(
    launch: Launch, jobs: Sequence[Sequence[str]], kind: Kind, about: Mapping[str, Any], after: Batches
) -> Batch | None:
    """Writes the snapshot and batch.json, and returns the batch; nothing is submitted yet.

    `about`: the keys `commit`, `dirty`, and `slurm_cluster`, SLURM's name of the cluster. `after`: the batches that this launch has
    read. Returns None if another launch has put a batch in place since then. Raises StoreError if the files cannot be written.
    """
    store, deployment = launch.store, launch.deployment
    snapshot_folder = snapshot.take(ROOT, store)

    def parts(runs: Iterable[str]) -> Iterator[dict[str, Any]]:
        def needs(run: str) -> tuple[Path, list[Settings]]:
            return launch.backbones[run], list(launch.evaluations[run].values())

        for (backbone, evaluations), group in itertools.groupby(runs, key=needs):
            yield {
                "settings": job_settings(deployment, backbone, snapshot_folder),
                "runs": list(group),
                "evaluations": evaluations,
            }

    content = {
        "sweeps": {
            expanded.sweep.name: [run for runs in jobs for run in runs if run in expanded.configs]
            for expanded in launch.sweeps
        },
        "overrides": list(launch.sweeps[0].overrides),
        "threads": max(launch.configs[run].threads for runs in jobs for run in runs),
        "jobs": [list(parts(runs)) for runs in jobs],
    }
    return put_batch(store, deployment, snapshot_folder, kind, about, after, content)


def job_settings(deployment: Deployment, backbone: Path, copy: Path) -> dict[str, Any]:
    """Returns the job settings as a batch stores them. `copy`: the snapshot, which contains the repository's own backbones."""
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
    """Puts the next batch in place, with `own` in addition to the keys that every batch has, and returns it.

    Returns None if another launch was faster, and raises StoreError if the batch cannot be written. `copy`: the snapshot.
    """
    number = after.next
    batch = Batch(store.jobs / str(number))
    code = {key: about[key] for key in ("commit", "dirty")}
    record = {
        **own,
        "store": str(store.root),
        "snapshot": str(copy),
        "job": {"batch": batch.id, "scheduler": kind, "code": copy.name, **code},
        "job_name": f"mmprompt-{number}-{secrets.token_hex(3)}",
        "launcher": this_process(),  # when it ends, local workers end; submitted SLURM jobs go on
        "user": who(),
        "slurm_cluster": about["slurm_cluster"],
        "cluster": deployment.cluster.model_dump(),
    }
    try:
        with drafted(batch.folder) as draft:
            write_once(draft / "batch.json", as_json(record))
            return batch if put_folder(draft, batch.folder, "batch.json") else None
    except OSError as error:
        raise StoreError(f"{batch.folder} cannot be made: {error.strerror}") from error


GPUS = "MMPROMPT_GPUS"  # environment variable with a local worker's GPUs; other launches read it there
