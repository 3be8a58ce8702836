"""Records: the JSON files of a store, with one definition for the code that writes them and the code that reads them.

A record is a dictionary. Its keys and types are checked once, when the file is read; later code relies on them. Keys that a
definition does not name are kept, because another version may have written them. `NotRequired` keys were not written by all
versions. The definitions of a study's files are in `mmprompt.studies.schemas`; `read` reads them too.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic wants it before Python 3.12

from mmprompt.runs.failures import Cause
from mmprompt.runs.files import StoreError

Record = TypeVar("Record")

Text = Annotated[str, Field(pattern=r"^[^\x00]*$", max_length=4000)]
Name = Annotated[str, Field(pattern=r"^[^\x00/]+$", max_length=200)]  # the name of a file or a folder
Count = Annotated[int, Field(ge=0, le=10**15)]
Number = Annotated[int, Field(ge=1, le=10**9)]  # the number of an attempt or a batch
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
OPEN = ConfigDict(extra="allow")
VERSION = 1  # the version of the records that this code writes, and the highest that it reads


def _finite(values: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        json.dumps(values, allow_nan=False)
    except ValueError:
        raise ValueError("one of its settings is NaN or infinite") from None
    return values


Settings = Annotated[dict[str, Any], AfterValidator(_finite)]  # their hash is an id, and NaN cannot be hashed


def _known(version: int) -> int:
    if version > VERSION:
        raise PydanticCustomError("newer_version", "version {version}", {"version": version})
    return version


class Versioned(TypedDict):
    """A file of the store. A file without a version is of version 1."""

    version: NotRequired[Annotated[int, AfterValidator(_known)]]


class DamagedError(StoreError):
    """A file of the store cannot be used. `why`: what is wrong with `file`, as the end of a sentence."""

    def __init__(self, file: Path, why: str, cure: str = "") -> None:
        super().__init__(f"{file} {why}{f'; {cure}' if cure else ''}")
        self.file, self.why = file, why

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DamagedError) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


@with_config(OPEN)
class Process(TypedDict):
    """A process as a record (`mmprompt.runs.processes`)."""

    host: Text
    pid: Annotated[int, Field(ge=1, lt=2**31)]
    started: Annotated[float, Field(allow_inf_nan=False)]  # seconds since 1970


@with_config(OPEN)
class JobRecord(Process, Versioned):
    """attempts/N/job.json: the job and the process that execute an attempt, or executed it."""

    batch: Name
    scheduler: Literal["local", "slurm", "by hand"]
    job: NotRequired[Text | None]  # SLURM's id, or a local worker's process id; none for a run by hand
    log: NotRequired[Text | None]  # relative to the store
    execution: NotRequired[Text]  # the line with which the job's execution begins in the log
    code: NotRequired[Text | None]  # the snapshot of our packages
    commit: NotRequired[Text | None]
    dirty: NotRequired[bool]
    work: NotRequired[Literal["train", "evaluate"]]
    gpus: NotRequired[Count]
    speed: NotRequired[Text]  # cluster.speed
    deterministic: NotRequired[bool]
    user: NotRequired[Text]
    scheduler_job: NotRequired[Text | None]  # SLURM_JOB_ID
    visible_gpus: NotRequired[Text | None]
    versions: NotRequired[dict[str, str]]


@with_config(OPEN)
class ErrorRecord(Versioned):
    """attempts/N/error.json: why an attempt ended before it had done its work (`mmprompt.runs.failures`)."""

    kind: Cause
    message: str
    traceback: str
    interrupted: bool
    signal: str | None


@with_config(OPEN)
class ProgressRecord(Versioned):
    """attempts/N/progress.json. If the attempt evaluates, its steps are examples."""

    step: Count
    steps: Annotated[int, Field(ge=1, le=10**15)]
    validation: list[tuple[Count, Annotated[float, Field(allow_inf_nan=False)]]]  # step and score
    seconds: Seconds  # the time of these steps, also of those made by earlier attempts
    evaluated: NotRequired[Count]  # the number of finished evaluations


@with_config(OPEN)
class SpeedRecord(TypedDict):
    """How an attempt executed the layers in updates."""

    asked: Text  # cluster.speed
    used: Text
    why: Text  # it was not as asked; else empty


@with_config(OPEN)
class ResultRecord(Versioned):
    """result.json: the published result."""

    attempt: Number
    metrics: dict[str, float]  # by split/metric
    evaluations: NotRequired[dict[str, Name]]  # by split
    steps: NotRequired[Count]
    seconds: NotRequired[Seconds]  # of training, without those of compilation
    compile_seconds: NotRequired[Seconds]
    speed: NotRequired[SpeedRecord]  # of this attempt
    run: NotRequired[Text]
    evaluated: NotRequired[list[Name]]
    best_step: NotRequired[Count]
    trainable_parameters: NotRequired[Count]
    device: NotRequired[Text]
    threads: NotRequired[Count]
    commit: NotRequired[Text | None]
    dirty: NotRequired[bool]
    code: NotRequired[Text | None]
    weights: NotRequired[Text | None]  # sha256
    wandb: NotRequired[Text | None]  # the W&B record, relative to the run's folder
    device_hours: NotRequired[float | None]
    device_hours_spent: NotRequired[float | None]
    peak_memory_mb: NotRequired[float | None]
    epochs: NotRequired[float | None]
    epochs_to_99: NotRequired[float | None]
    resumed_from: NotRequired[dict[str, int] | None]
    damaged_checkpoints: NotRequired[list[str]]


@with_config(OPEN)
class EvaluationRecord(Versioned):
    """evaluations/ID.json."""

    settings: Settings
    metrics: dict[str, float]
    attempt: Number
    wandb: Text | None
    evaluation: NotRequired[Text]
    run: NotRequired[Text]
    n: NotRequired[Count]
    seconds: NotRequired[Seconds]
    score: NotRequired[Text]  # why there is none
    answers: NotRequired[Text]  # sha256 of the file of answers (`mmprompt.runs.answer_file`)
    of: NotRequired[Count]  # the examples of the whole split, if there are answers


@with_config(OPEN)
class PointRecord(TypedDict):
    values: Settings  # by axis
    run: Name
    evaluations: dict[str, Name]  # by split
    unscored: NotRequired[dict[str, Name]]  # the evaluations without a score, by split
    fixed: NotRequired[Settings]


@with_config(OPEN)
class TaskRecord(TypedDict):
    metric: str
    family: NotRequired[str]
    validation: NotRequired[str]


@with_config(OPEN)
class ManifestRecord(Versioned):
    """sweeps/NAME.json, as far as the verbs after a launch need it; tables need more (`analysis.records.manifest`)."""

    command: Text
    target: NotRequired[Text]  # make's target
    overrides: NotRequired[list[Text]]
    axes: dict[str, list[Any]]
    tasks: dict[str, TaskRecord]
    points: list[PointRecord]
    sweep: NotRequired[str]
    header: NotRequired[dict[str, Any]]


@with_config(OPEN)
class PartRecord(TypedDict):
    """Runs of a job that have the same backbone and need the same evaluations."""

    runs: list[Name]
    settings: NotRequired[dict[str, Any]]  # job settings (`mmprompt.runs.deployment.JobSettings`)
    evaluations: NotRequired[list[Settings]]


@with_config(OPEN)
class BatchJob(TypedDict):
    scheduler: Literal["local", "slurm"]
    batch: NotRequired[Name]
    code: NotRequired[Text]
    commit: NotRequired[Text | None]
    dirty: NotRequired[bool]


@with_config(OPEN)
class ClusterRecord(TypedDict):
    """The cluster settings of a batch (conf/cluster), as far as they are read again."""

    mem_gb: Amount
    time_min: Count
    gpus: NotRequired[Count]
    max_parallel: NotRequired[Count | None]
    sbatch: NotRequired[dict[str, Any]]


@with_config(OPEN)
class SearchWork(TypedDict):
    name: Name
    manifest: Name
    settings: NotRequired[list[dict[str, Any]]]  # job settings, by the number of the trial's base
    trials: NotRequired[Count | None]
    retry: NotRequired[list[Name]]


@with_config(OPEN)
class MeasureWork(TypedDict):
    name: Name


@with_config(OPEN)
class BatchRecord(Versioned):
    """jobs/N/batch.json: what one launch hands to a scheduler."""

    job: BatchJob
    job_name: Name
    launcher: Process
    user: Text
    slurm_cluster: Text | None
    cluster: ClusterRecord
    jobs: list[list[PartRecord]]
    overrides: list[Text]
    store: NotRequired[Text]
    snapshot: NotRequired[Text]
    threads: NotRequired[Count]
    sweeps: NotRequired[dict[str, list[Name]]]  # the runs that each sweep needs
    sweep: NotRequired[Text]  # old batches belong to one sweep
    search: NotRequired[SearchWork]
    measure: NotRequired[MeasureWork]


@with_config(OPEN)
class QuantityRecord(TypedDict):
    """Medians over rounds, and ratios to the baseline in the same rounds; no ratios if there is no baseline."""

    median: Finite
    lowest: Finite
    highest: Finite
    ratio: Finite | None
    ratio_lowest: Finite | None
    ratio_highest: Finite | None
    rounds: Count


@with_config(OPEN)
class CostRow(TypedDict):
    task: str
    values: dict[str, Any]
    run: Name
    steps: Count
    devices: Count
    baseline: bool
    against: Annotated[int, Field(ge=0)] | None  # the index of its baseline among the rows
    quantities: dict[str, QuantityRecord]
    parameters: NotRequired[Count]


@with_config(OPEN)
class MissingRow(TypedDict):
    task: str
    values: dict[str, Any]


@with_config(OPEN)
class LoadRecord(TypedDict):
    before: Amount
    after: Amount


@with_config(OPEN)
class CostsRecord(Versioned):
    """costs/NAME/N.json: the measured costs of a sweep's rows."""

    batch: Name
    commit: Text | None
    dirty: bool
    when: Text
    device: Text
    threads: Count
    torch: Text
    cores: Count
    load: LoadRecord
    others: Count
    rounds: Count
    rows: list[CostRow]
    missing: list[MissingRow]


@with_config(OPEN)
class TakenRecord(Versioned):
    """jobs/N/F/submitted.json: SLURM has accepted an array."""

    job: Annotated[str, Field(pattern=r"^[0-9]{1,18}$")]
    count: Annotated[int, Field(ge=1, le=10**7)]


@with_config(OPEN)
class EndRecord(Versioned):
    """jobs/N/submitted.json: how the submission ended."""

    waiting: Count
    why: Text


def task_is_described(point: PointRecord, tasks: Mapping[str, Any]) -> None:
    """Raises ValueError if the manifest does not describe a point's task. A point without `task` is of the first task."""
    task = point["values"].get("task", next(iter(tasks), None))
    if not isinstance(task, str) or task not in tasks:
        raise ValueError(f"it lists run {point['run']} under task {task}, which it does not describe")


def _tasks_are_described(manifest: ManifestRecord) -> ManifestRecord:
    for point in manifest["points"]:
        task_is_described(point, manifest["tasks"])
    return manifest


def _baselines_are_there(costs: CostsRecord) -> CostsRecord:
    for row in costs["rows"]:
        if row["against"] is not None and row["against"] >= len(costs["rows"]):
            raise ValueError(f"a row is measured against row {row['against']} of {len(costs['rows'])}")
    return costs


JOB = TypeAdapter(JobRecord)
ERROR = TypeAdapter(ErrorRecord)
PROGRESS = TypeAdapter(ProgressRecord)
RESULT = TypeAdapter(ResultRecord)
EVALUATION = TypeAdapter(EvaluationRecord)
MANIFEST = TypeAdapter(Annotated[ManifestRecord, AfterValidator(_tasks_are_described)])
BATCH = TypeAdapter(BatchRecord)
COSTS = TypeAdapter(Annotated[CostsRecord, AfterValidator(_baselines_are_there)])
TAKEN = TypeAdapter(TakenRecord)
END = TypeAdapter(EndRecord)


def as_json(record: Mapping[str, Any]) -> str:
    """A record as the text of its file."""
    return json.dumps({"version": VERSION, **record}, indent=1)


def read(file: Path, schema: TypeAdapter[Record], cure: str = "") -> Record | None:
    """Reads a record; None if there is no such file. Raises DamagedError if it cannot be read, is cut off, or has wrong content.

    `cure`: what a user can do about it, as the end of a sentence.
    """
    try:
        return schema.validate_json(file.read_bytes(), strict=True)
    except FileNotFoundError:
        if file.is_symlink():
            raise DamagedError(file, "is a link to nothing", cure) from None
        return None
    except OSError as error:
        raise DamagedError(file, f"cannot be read: {error.strerror}", cure) from None
    except ValidationError as error:
        if error.errors()[0]["type"] == "newer_version":
            why = f"was written by a newer mmprompt ({error.errors()[0]['msg']} of its records; this one reads up to {VERSION})"
            raise DamagedError(file, why, "use that one") from None
        raise DamagedError(file, complaint(error), cure) from None


def complaint(error: ValidationError) -> str:
    """What is wrong with a record, as the end of a sentence."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    match first["type"]:
        case "json_invalid":
            return f"is cut off or damaged: {first['ctx']['error']}"
        case "missing":
            return f"is damaged: it has no {key}"
        case "value_error":
            return f"is damaged: {first['ctx']['error']}"
    came = str(first["input"])
    what = f"{key}={came[:40]!r}" if key else f"it holds {came[:20]!r}"
    return f"is damaged: {what}; {first['msg'][:1].lower()}{first['msg'][1:]}"
