"""The ids of runs and evaluations: freezes composed settings and hashes them.

A run's id is the sha256 of its config.json, the canonical JSON of everything that decides its numbers. An evaluation's id is the
sha256 of the run's id and the evaluation's settings. So the same settings always give the same run and the same evaluation.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.families.registry import FAMILIES
from mmprompt.runs.config import METHODS, RunConfig
from mmprompt.runs.deployment import ROOT, backbone_file, deployment_of, store_folder
from mmprompt.runs.fingerprint import FOLDER, fingerprint, fingerprints
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.method import MethodSettings
from mmprompt.settings.parsing import ConfigError, parse
from mmprompt.settings.spelling import nearest
from mmprompt.settings.task import WORLD_VERSION, Task, check_name

# By precision. Raise one if the same settings begin to give other numbers: every run of that precision then gets a new id.
TRAINING_VERSIONS = {"float32": 2, "bfloat16": 3}
EVALUATION_VERSION = 1


def neutral_of(methods: Mapping[str, type[MethodSettings]]) -> dict[str, Any]:
    """The neutral values of methods: of fields that were added later, then of their sections. The section of a method is null
    if it is not the run's method, also if it was added after the run."""
    fields = {f"{name}.{key}": value for name, of in methods.items() for key, value in of.neutral.items()}
    return fields | dict.fromkeys(methods)


# key that was added later -> its neutral value, with which it is left out of the hash
NEUTRAL: dict[str, Any] = {
    "model.allow": [],
    "task.beam": None,
    "task.no_repeat_ngram": None,
    "precision": "float32",
    "optim.smoothing_over": "vocabulary",
    "optim.drop_worst": 0.0,
    "optim.drop_worst_after": 0,
    "optim.ema_decay": None,
    "optim.patience": None,
    **neutral_of(METHODS),
}
DECODING = ("beam", "no_repeat_ngram")  # settings of an evaluation that replace the task's
ABSENT = "(no such key)"  # instead of a value
UNSCORED = "evaluation.unscored"
SPLIT = re.compile(r"[A-Za-z0-9][\w-]*", re.ASCII)  # the name of an unscored split; it becomes part of a file's name
ID_LENGTH = 16  # hex digits: 64 bits


def canonical(values: Mapping[str, Any]) -> str:
    """The canonical JSON text of these values: sorted keys, no spaces, no NaN."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def frozen_text(config: RunConfig, neutral: Mapping[str, Any] | None = None) -> str:
    """The text of `config.json`, which is hashed: all settings except those that have their neutral value."""
    values = config.model_dump(mode="json")
    for key, value in (NEUTRAL if neutral is None else neutral).items():
        section, last = section_of(values, key)
        if section is not None and section[last] == value:
            del section[last]
    return canonical(values)


def section_of(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that holds a dotted key, None if it is null, and the key's name in it. Raises KeyError without one."""
    *path, last = key.split(".")
    section: dict[str, Any] | None = values
    for part in path:
        section = None if section is None else section[part]
    return section, last


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """Adds to frozen settings the neutral value of each key that was added later."""
    for key, value in reversed(NEUTRAL.items()):  # the section of a method comes before its fields
        section, last = section_of(values, key)
        if section is not None:
            section.setdefault(last, value)
    return values


def run_id(config: RunConfig) -> str:
    return digest(frozen_text(config))


def evaluation_id(run: str, settings: Mapping[str, Any]) -> str:
    """The id of an evaluation: one run's chosen weights on one split, under one decoding and one attack."""
    return digest(canonical({"run": run, "settings": settings, "evaluation_version": EVALUATION_VERSION}))


def freeze(composed: Mapping[str, Any]) -> tuple[RunConfig, Deployment]:
    """Splits a composed configuration (plain containers, interpolations resolved) into the run's settings and the deployment.

    Raises ConfigError for a wrong key, type or value, and for a missing backbone file.
    """
    deployment = deployment_of(composed)
    config = config_of(composed, checksum_of(deployment))
    check_gpus(config, deployment.cluster.gpus)
    return config, deployment


def check_gpus(config: RunConfig, gpus: int) -> None:
    """Raises ConfigError if some of this number of GPUs would have nothing to do in an update."""
    optim = config.optim
    if gpus > optim.parts:
        raise ConfigError(
            f"cluster.gpus={gpus} share the micro-batches of an update, and it has {optim.parts} "
            f"(optim.batch_size={optim.batch_size} / optim.micro_batch={optim.micro_batch}); wanted: cluster.gpus={optim.parts} or "
            "fewer, or a smaller optim.micro_batch"
        )


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every setting with its dotted key, such as `prompt.length`."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def setting(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a setting by its dotted key; the neutral value if the key was added later and is left out."""
    return settings[key] if key in settings else NEUTRAL.get(key, ABSENT)


def differing_keys(settings: Mapping[str, Any], others: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ."""
    keys = dict.fromkeys([*settings, *others])
    return [key for key in keys if setting(settings, key) != setting(others, key)]


def precision_of(composed: Mapping[str, Any]) -> str:
    """The precision of a run: `auto` is bfloat16 on a GPU, and float32 on a CPU, where bfloat16 is mostly slower.

    Raises ConfigError for any other word.
    """
    precision = composed["precision"]
    if precision == "auto":
        return "bfloat16" if composed["cluster"]["gpus"] else "float32"
    if precision not in [*TRAINING_VERSIONS]:
        raise ConfigError(f"precision={precision!r} is not allowed; wanted: auto, {', '.join(TRAINING_VERSIONS)}")
    return str(precision)


def config_as_written(composed: Mapping[str, Any], checksum: str) -> RunConfig:
    """A run's settings, except for the fingerprint of the task's files. Raises ConfigError.

    `tuned`, the learning rates that optim.lr refers to, and the settings of evaluations are not part of them.
    """
    others = {"tuned", *Questions.model_fields, *Deployment.model_fields}
    values = {key: value for key, value in composed.items() if key not in others}
    values["precision"] = precision_of(composed)
    values["backbone"] = dict(values["backbone"]) | {"checksum": checksum}
    data = dict(values["task"]["data"]) | {"fingerprint": f"digits-{WORLD_VERSION}"}
    values["task"] = dict(values["task"]) | {"data": data}
    return parse(RunConfig, values | {"training_version": TRAINING_VERSIONS[values["precision"]]})


def config_of(composed: Mapping[str, Any], checksum: str) -> RunConfig:
    """A run's settings. Raises ConfigError, also if a file of its task is missing."""
    config = config_as_written(composed, checksum)
    if config.task.files:
        config = on_files(
            config, data_checksum(config.task, composed["paths"]["data"], store_folder(composed["paths"]["runs"]))
        )
    if composed["cache"]["frozen"] == "on" and config.backbone.mode == "train":
        raise ConfigError(
            "cache.frozen=on does not go with backbone.mode=train, where BatchNorm follows the batches and nothing stays as it "
            "was computed; leave cache.frozen at auto, or freeze the backbone with backbone.mode=eval"
        )
    return config


def on_files(config: RunConfig, fingerprint: str) -> RunConfig:
    """The same settings with this fingerprint of the task's files."""
    data = config.task.data.model_copy(update={"fingerprint": fingerprint})
    return config.model_copy(update={"task": config.task.model_copy(update={"data": data})})


def checksum_of(deployment: Deployment) -> str:
    """Of the backbone's file."""
    file = backbone_file(deployment)
    if not file.is_file():
        raise ConfigError(
            f"paths.backbone={deployment.paths.backbone} is not a file; give the pretrained checkpoint of this model, "
            "for instance paths.backbone=/data/ofa_base.pt"
        )
    try:
        return fingerprint(file, store_folder(deployment.paths.runs) / FOLDER)
    except OSError as error:
        raise ConfigError(f"paths.backbone={deployment.paths.backbone} cannot be read: {error}") from None


def data_checksum(task: Task, folder: str | None, store: Path) -> str:
    """Of the task's files; of large ones kept in the store. Raises ConfigError if one is not there."""
    return files_checksum(f"task={task.name}", task.files, folder, store)


def files_checksum(who: str, names: Sequence[str], folder: str | None, store: Path) -> str:
    """As `data_checksum`, of these files in the folder. `who`: the setting that names them, for messages."""
    if folder is None:
        raise ConfigError(
            f"{who} reads files, and paths.data=null; give the folder that holds {names[0]} and the others, "
            "for instance paths.data=/data/ofa"
        )
    for name in names:
        if not (ROOT / folder / name).is_file():
            raise ConfigError(f"paths.data={folder} holds no file {name}, which {who} reads")
    try:
        return fingerprints([ROOT / folder / name for name in names], store / FOLDER)
    except OSError as error:
        raise ConfigError(f"paths.data={folder}: a file of {who} cannot be read: {error}") from None


def read_config(file: Path) -> RunConfig:
    """The frozen settings of a run. Raises ConfigError if their hash is not the name of the folder."""
    text = file.read_text(encoding="utf-8")
    if digest(text) != file.parent.name:
        raise ConfigError(
            f"{file} was changed after launch: its hash is {digest(text)}, its folder says {file.parent.name}"
        )
    return parse(RunConfig, completed(json.loads(text)))


def is_of_evaluations(key: str) -> bool:
    """Whether a key is a setting of evaluations. Other values of it make other evaluations, and no other runs."""
    return key.split(".")[0] in Questions.model_fields


def evaluations_of(composed: Mapping[str, Any], config: RunConfig) -> dict[str, dict[str, Any]]:
    """The settings of the evaluations that a composed configuration asks for, by split.

    They contain `split`, and only those settings that differ from the default evaluation: the whole split, decoded as the task
    says, without attack. So equal evaluations have equal settings. Of an unscored split, `unscored` has the files and their
    fingerprint. Raises ConfigError for wrong settings, and for a file that is not there.
    """
    asked = parse(Questions, {key: composed[key] for key in Questions.model_fields})
    evaluation, attack = asked.evaluation, asked.attack
    more: dict[str, Any] = {} if evaluation.examples is None else {"examples": evaluation.examples}
    decoding = {key: value for key in DECODING if (value := getattr(evaluation, key)) is not None}
    task = as_asked(config.task, decoding)
    more |= {key: value for key, value in decoding.items() if getattr(task, key) != getattr(config.task, key)}
    if attack.epsilon > 0:
        more["attack"] = attack.model_dump(exclude=set() if attack.kind == "pgd" else {"steps"})
    known = ("train", *config.task.splits)
    for split in evaluation.splits or ():
        if split not in known:
            of = f"task.name={config.task.name} has {', '.join(known)}"
            raise ConfigError(f"evaluation.splits={split} is not a split of the task{nearest(split, known)}; {of}")
    evaluations = {split: {"split": split} | more for split in evaluation.splits or config.task.splits}
    check_unscored(asked, config.task)
    for split, files in (evaluation.unscored or {}).items():
        checksum = files_checksum(UNSCORED, files, composed["paths"]["data"], store_folder(composed["paths"]["runs"]))
        evaluations[split] = {"split": split, "unscored": {"files": files, "fingerprint": checksum}} | more
    return evaluations


def check_unscored(asked: Questions, task: Task) -> None:
    """Raises ConfigError if the task cannot have these unscored splits."""
    unscored = asked.evaluation.unscored or {}
    if not unscored:
        return
    if FAMILIES[task.family].challenge is None:
        those = " and ".join(family.name for family in FAMILIES.values() if family.challenge is not None)
        raise ConfigError(
            f"{UNSCORED} is for a challenge, and task.family={task.family} has none; only those of {those} do"
        )
    if not task.files:
        raise ConfigError(f"{UNSCORED} names files, and task={task.name} reads none")
    if asked.attack.epsilon > 0:
        raise ConfigError(
            f"attack.epsilon={asked.attack.epsilon:g} does not go with {UNSCORED}: an attack makes the right answer unlikely, "
            "and there is none"
        )
    for split, files in unscored.items():
        if not SPLIT.fullmatch(split):
            raise ConfigError(f"{UNSCORED} names the split {split!r}; wanted: letters, digits, - and _")
        if split in task.data.splits:
            raise ConfigError(f"{UNSCORED} names {split}, which task={task.name} has and scores; give it another name")
        for name in files:
            try:
                check_name(name, f"{UNSCORED}.{split}")
            except ValueError as error:
                raise ConfigError(str(error)) from None


def default_evaluations(config: RunConfig) -> list[dict[str, Any]]:
    """The settings of the evaluations that a run has by default."""
    return [{"split": split} for split in config.task.splits]


def as_asked(task: Task, settings: Mapping[str, Any]) -> Task:
    """The task with the decoding of an evaluation with these settings."""
    changes = {key: settings[key] for key in DECODING if key in settings}
    return parse(Task, task.model_dump() | changes) if changes else task


def provenance() -> dict[str, Any]:
    """{"commit": sha or None, "dirty": whether packages or conf differ from it}. None where git has no commit to name."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=30)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", "mmprompt", "sweeps", "conf")
    return {"commit": git("rev-parse", "--verify", "HEAD"), "dirty": bool(changes)}
