"""Checks that the data of a run agree with each other: its folder, its labels, its evaluations and their values.

Each check returns a sentence that says what is wrong, without the run's id, or None. The cheap checks are made whenever a sweep is
read (`analysis.records.reading.assemble`): all but those of `check_deeply`, and the search for damage in the middle of a W&B
record.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from analysis.records.stored import Unreadable, read, read_scores
from mmprompt.families.family import PERCENT
from mmprompt.families.registry import PRIMARY_METRIC, highest
from mmprompt.runs.answer_file import answer_file, read_answers
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import NEUTRAL, completed, digest, evaluation_id, frozen_text
from mmprompt.runs.records import EVALUATION, DamagedError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.settings.evaluation import Questions
from mmprompt.settings.parsing import ConfigError, parse

RECORD, RESULT, CONFIG = "its W&B record", "result.json", "config.json"
# Largest allowed distance of the metric from the examples' mean, as a share of the highest value. One of 7,500 examples counts for
# 130 times as much.
CLOSE = 1e-6
MISSING = object()


@dataclass(frozen=True)
class Finding:
    """The reason why a value is not shown. `text` follows "run ID: "; several runs may have the same text."""

    kind: Literal["conflict", "unreadable"]
    run: str
    text: str

    @property
    def sentence(self) -> str:
        return f"run {self.run}: {self.text}"


def sentences(findings: Iterable[Finding]) -> list[str]:
    """Returns a sentence for each distinct text, which names all of its runs."""
    runs: dict[str, list[str]] = {}
    for finding in findings:
        runs_of_text = runs.setdefault(finding.text, [])
        if finding.run not in runs_of_text:
            runs_of_text.append(finding.run)
    return [f"{_runs_in_words(run_ids)}: {text}" for text, run_ids in runs.items()]


def _runs_in_words(runs: Sequence[str]) -> str:
    if len(runs) == 1:
        return f"run {runs[0]}"
    return f"{len(runs)} runs ({', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''})"


# The run's folder


def check_folder(run: str, text: str | None, result: Mapping[str, Any] | None) -> str | None:
    """Checks that `config.json` and `result.json` belong to this run.

    `text`: the text of `config.json`, whose hash is the run's id. `result`: the content of `result.json`.
    """
    owner = run if result is None else result.get("run", run)
    actual = run if text is None else digest(text)
    if actual != run:
        if owner == actual:
            return f"its folder holds another run's files: {CONFIG} and {RESULT} are those of run {actual}"
        return f"{CONFIG} is not what was launched: its hash is {actual}, and the run's id {run} was expected"
    return f"{RESULT} is that of run {owner}" if owner != run else None


def check_record(
    run: str, attempt: int | None, logged: Mapping[str, Any], config: Mapping[str, Any] | None, whose: str = RECORD
) -> str | None:
    """Checks that a W&B record belongs to this run and attempt, and that its configuration is the run's.

    `logged`: the configuration in the record, which also names its run and attempt. `attempt`: the expected one; None: any.
    `config`: the run's configuration; None: unknown. `whose`: the name of the record in messages.
    """
    if not logged:
        return None  # the record lost its beginning, which a note reports as damage
    for key, expected in (("run_id", run), ("attempt", attempt)):
        if expected is not None and logged.get(key, expected) != expected:
            kind = "run" if key == "run_id" else "attempt"
            return f"{whose} is that of {kind} {logged[key]}, and {kind} {expected} was expected"
    if config is None:
        return None
    ours, theirs = flat(config), flat({key: logged[key] for key in RunConfig.model_fields if key in logged})
    if ours == theirs:
        return None
    key = next(key for key in {**ours, **theirs} if ours.get(key, MISSING) != theirs.get(key, MISSING))
    here, there = (_shown(one.get(key, MISSING)) for one in (ours, theirs))
    return f"{key} is {there} in the configuration of {whose}, and {here} in {CONFIG}"


def check_published(evaluations: Mapping[str, str], summary: Mapping[str, Any]) -> str | None:
    """Checks that `result.json` and the W&B record's final values name the same evaluation for each split."""
    for split, evaluation in evaluations.items():
        if (logged := summary.get(f"{split}/evaluation", evaluation)) != evaluation:
            return f"{split} is evaluation {logged} in {RECORD}; {evaluation} in {RESULT}"
    return None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings by dotted key, without neutral values, which the stored configuration leaves out too."""
    return {key: value for key, value in _leaves(config, "") if key not in NEUTRAL or NEUTRAL[key] != value}


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    return "missing" if value is MISSING else json.dumps(value) if not isinstance(value, str) else value


# The manifest's labels and header


def check_labels(values: Mapping[str, Any], config: Mapping[str, Any], run: str) -> str | None:
    """Checks a point's values against the run's configuration. Axes of evaluations and non-settings (`trial`) are ignored."""
    wrong = []
    for axis, value in values.items():
        if axis.split(".")[0] not in RunConfig.model_fields:
            continue
        actual = setting(config, axis)
        if actual is not MISSING and actual != value and not _gives_same_run(config, axis, value, run):
            wrong.append((axis, value, actual))
    if not wrong:
        return None
    expected = ", ".join(f"{axis} {_shown(value)}" for axis, value, _ in wrong)
    return f"the manifest says {expected}, its {CONFIG} {', '.join(_shown(actual) for *_, actual in wrong)}"


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Returns a setting's value in a run's configuration; for a group (`task=micro_vqa`) its name, MISSING if it has none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return NEUTRAL.get(key)  # the value before the key existed; None for a section of another method
        value = value[part]
    return value.get("name", MISSING) if isinstance(value, Mapping) else value


def _gives_same_run(config: Mapping[str, Any], axis: str, value: Any, run: str) -> bool:
    """Whether a value that is written differently gives the same run: layers in another order, a setting of another method."""
    values = copy.deepcopy(dict(config))
    *path, last = axis.split(".")
    try:
        section = completed(values)
        for part in path:
            if section.get(part) is None:
                section[part] = {}
            section = section[part]
        section[last] = value
        return digest(frozen_text(parse(RunConfig, values))) == run
    except (ConfigError, KeyError, TypeError, AttributeError):  # the run is older than the present schema
        return False


def check_header(header: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """Checks the settings of the manifest's header, which captions state for all runs, against a run's configuration."""
    for key, value in header.items():
        if key.split(".")[0] in RunConfig.model_fields and (actual := setting(config, key)) != value:
            return f"the manifest's header says {key} {_shown(value)}, its {CONFIG} {_shown(actual)}"
    return None


# Evaluations


def check_evaluation(
    run: str,
    evaluation: str,
    split: str,
    file: Mapping[str, Any],
    labels: Mapping[str, Any],
    config: Mapping[str, Any] | None,
) -> str | None:
    """Checks an evaluation's file, evaluations/ID.json, against the place where its value is shown.

    `file`: its content. `labels`: the point's values and the manifest's header. `config`: the run's configuration.
    """
    settings, place = file["settings"], f"evaluations/{evaluation}.json"
    if file.get("run", run) != run:
        return f"{place} is of run {file['run']}"
    if (actual := settings.get("split")) != split:
        return f"the manifest shows evaluation {evaluation} as {split}, and {place} says {actual}"
    if (expected_id := evaluation_id(run, settings)) != evaluation:
        return f"{place} is not what was asked: its settings make evaluation {expected_id}"
    for key, value in labels.items():
        actual = evaluation_setting(settings, key, config)
        if actual is not MISSING and actual != value:
            return f"the manifest says {key} {_shown(value)}, {place} {_shown(actual)}"
    return None


def evaluation_setting(settings: Mapping[str, Any], key: str, config: Mapping[str, Any] | None) -> Any:
    """The value of `attack.epsilon`, `evaluation.beam`, ... in an evaluation's settings; MISSING if they have none."""
    section, _, name = key.partition(".")
    if section not in Questions.model_fields or name in ("splits", "unscored"):
        return MISSING
    if section == "attack":
        attack = settings.get("attack", {"epsilon": 0.0})
        return attack.get(name, MISSING)
    if name in settings or name == "examples":
        return settings.get(name)
    value = None if config is None else setting(config, f"task.{name}")  # as the task decodes
    return MISSING if value is None else value


def check_values(
    key: str, metric: str, values: Mapping[str, float], evaluation: str, scores: np.ndarray | None
) -> str | None:
    """Checks that all places have the same value, that it is possible, and that it is the mean of the examples' scores.

    `key`: its name, `test/cider`. `values`: the value by place. `evaluation`: its id. `scores`: the scores of the examples, shape
    (m,); None: unknown.
    """
    top, place = highest(metric), f"evaluations/{evaluation}.npy"
    nan = [where for where, value in values.items() if math.isnan(value)]
    if nan:
        return f"{key} is NaN in {_listed(nan)}"
    first = next(iter(values.values()))
    differ = any(value != first for value in values.values())
    mean = None if scores is None else float(scores.mean())
    if differ or (mean is not None and not abs(mean - first) < CLOSE * top):
        by_value: dict[float, list[str]] = {}
        for where, value in values.items():
            by_value.setdefault(value, []).append(f"in {where}")
        if mean is not None:
            near = next((value for value in by_value if abs(value - mean) < CLOSE * top), mean)
            by_value.setdefault(near, []).append(f"as the mean of {place}")
        return f"{key} is {'; '.join(f'{_number(value)} {_listed(where)}' for value, where in by_value.items())}"
    if not 0 <= first <= top:
        return f"{key} is {_number(first)}, and {metric} lies between 0 and {top:g}"
    if scores is not None:
        low, high = float(scores.min()), float(scores.max())
        if low < 0 or high > top:
            return f"{place} has scores from {_number(low)} to {_number(high)}, and {metric} lies between 0 and {top:g}"
        if top == PERCENT and 0 < high <= 1:
            return f"{key} is {_number(first)} and no score in {place} is above 1: {metric} is in percent, 100 is right"
    return None


def check_count(file: Mapping[str, Any], evaluation: str, scores: np.ndarray | None) -> str | None:
    """Checks that an evaluation's file names the number of examples that have scores."""
    if scores is not None and file.get("n", len(scores)) != len(scores):
        return (
            f"evaluations/{evaluation}.json says {file['n']} examples, evaluations/{evaluation}.npy has {len(scores)}"
        )
    return None


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(value: float) -> str:
    return f"{value:.10g}"


# Slow checks


def check_deeply(folder: RunFolder, result: Mapping[str, Any] | None) -> Iterator[str]:
    """Checks the checksum of the weights, and every evaluation in the folder, shown or not; yields the problems.

    They change no number that is shown.
    """
    if result is not None:
        file, checksum = Attempt(folder, result["attempt"]).weights_file, result.get("weights")
        if checksum is not None:
            try:
                actual = hashlib.sha256(file.read_bytes()).hexdigest()
            except OSError as error:
                yield f"its weights cannot be read: {error.strerror}"
            else:
                if actual != checksum:
                    yield f"its weights are damaged: their sha256 is {actual}, {RESULT} says {checksum}"
    for file in sorted(folder.evaluation_files(None if result is None else result["attempt"])):
        try:
            record, scores = read(file, EVALUATION), read_scores(file.with_suffix(".npy"))
        except Unreadable as error:
            yield str(error)
            continue
        if record is None:
            continue
        evaluation, split = file.stem, str(record["settings"].get("split"))
        problem = check_evaluation(folder.id, evaluation, split, record, {}, None) or check_count(
            record, evaluation, scores
        )
        if problem:
            yield problem
            continue
        if "answers" in record:
            try:
                read_answers(answer_file(file), record["answers"])
            except DamagedError as error:
                yield f"evaluations/{error.file.name} {error.why}"
        if "unscored" in record["settings"]:
            continue
        metrics_of_task = [metric for metric in PRIMARY_METRIC.values() if metric in record["metrics"]]
        if not metrics_of_task:
            yield f"evaluations/{file.name} has no value of {' or '.join(PRIMARY_METRIC.values())}"
        for metric in metrics_of_task[:1]:
            values = {f"evaluations/{file.name}": record["metrics"][metric]}
            if problem := check_values(f"{split}/{metric}", metric, values, evaluation, scores):
                yield problem
