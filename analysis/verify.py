"""Does what is read of a run belong together? Checks of its folder, its labels, its evaluations and their values.

Each check says what is wrong in a sentence without the run's id, or None. What is cheap is checked whenever a sweep is read
(`analysis.reading.assemble`): all but what `deeply` looks at, and damage in the middle of a W&B record.
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

from analysis.stored import Unreadable, read, read_scores
from mmprompt.families.family import PERCENT
from mmprompt.families.registry import PRIMARY_METRIC, highest
from mmprompt.runs.config import ConfigError, Questions, RunConfig, parse
from mmprompt.runs.identity import NEUTRAL, completed, digest, evaluation_id, frozen_text
from mmprompt.runs.records import EVALUATION
from mmprompt.runs.store import Attempt, RunFolder

RECORD, RESULT, CONFIG = "its W&B record", "result.json", "config.json"
# Of a metric's highest value: so far the mean of the examples may be from the metric. An example of 7,500 is 130 times that.
CLOSE = 1e-6
MISSING = object()


@dataclass(frozen=True)
class Finding:
    """Why a value is not shown. `text` follows "run ID: "; several runs may have the same."""

    kind: Literal["conflict", "unreadable"]
    run: str
    text: str

    @property
    def sentence(self) -> str:
        return f"run {self.run}: {self.text}"


def sentences(findings: Iterable[Finding]) -> list[str]:
    """One for each thing that is wrong, however many runs it is said of."""
    runs: dict[str, list[str]] = {}
    for one in findings:
        known = runs.setdefault(one.text, [])
        if one.run not in known:
            known.append(one.run)
    return [f"{_named(those)}: {text}" for text, those in runs.items()]


def _named(runs: Sequence[str]) -> str:
    if len(runs) == 1:
        return f"run {runs[0]}"
    return f"{len(runs)} runs ({', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''})"


# The run's folder


def of_folder(run: str, text: str | None, result: Mapping[str, Any] | None) -> str | None:
    """`text`: what `config.json` holds, whose hash is the run's id; `result`: what `result.json` says."""
    owner = run if result is None else result.get("run", run)
    found = run if text is None else digest(text)
    if found != run:
        if owner == found:
            return f"its folder holds another run's files: {CONFIG} and {RESULT} are those of run {found}"
        return f"{CONFIG} is not what was launched: its hash is {found}, and the run's id {run} was expected"
    return f"{RESULT} is that of run {owner}" if owner != run else None


def of_record(
    run: str, attempt: int | None, said: Mapping[str, Any], config: Mapping[str, Any] | None, whose: str = RECORD
) -> str | None:
    """`said`: the configuration in a W&B record, which also says of which run and attempt it is; `attempt`: the expected one."""
    if not said:
        return None  # it lost its beginning, which is noted as damage
    for key, expected in (("run_id", run), ("attempt", attempt)):
        if expected is not None and said.get(key, expected) != expected:
            what = "run" if key == "run_id" else "attempt"
            return f"{whose} is that of {what} {said[key]}, and {what} {expected} was expected"
    if config is None:
        return None
    ours, theirs = flat(config), flat({key: said[key] for key in RunConfig.model_fields if key in said})
    if ours == theirs:
        return None
    key = next(key for key in {**ours, **theirs} if ours.get(key, MISSING) != theirs.get(key, MISSING))
    here, there = (_shown(one.get(key, MISSING)) for one in (ours, theirs))
    return f"{key} is {there} in the configuration of {whose}, and {here} in {CONFIG}"


def of_published(evaluations: Mapping[str, str], summary: Mapping[str, Any]) -> str | None:
    """Evaluations by split, as `result.json` names them, against the final values of the W&B record."""
    for split, one in evaluations.items():
        if (found := summary.get(f"{split}/evaluation", one)) != one:
            return f"{split} is evaluation {found} in {RECORD}; {one} in {RESULT}"
    return None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, without those at their neutral value, which a frozen configuration does not have either."""
    return {key: value for key, value in _leaves(config, "") if key not in NEUTRAL or NEUTRAL[key] != value}


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: Any) -> str:
    return "missing" if value is MISSING else json.dumps(value) if not isinstance(value, str) else value


# What the manifest says of it


def of_labels(values: Mapping[str, Any], config: Mapping[str, Any], run: str) -> str | None:
    """A point's values against the run's configuration. Axes of evaluations, and what is no setting (`trial`), are left out."""
    wrong = []
    for axis, value in values.items():
        if axis.split(".")[0] not in RunConfig.model_fields:
            continue
        found = setting(config, axis)
        if found is not MISSING and found != value and not _means(config, axis, value, run):
            wrong.append((axis, value, found))
    if not wrong:
        return None
    said = ", ".join(f"{axis} {_shown(value)}" for axis, value, _ in wrong)
    return f"the manifest says {said}, its {CONFIG} {', '.join(_shown(found) for *_, found in wrong)}"


def setting(config: Mapping[str, Any], key: str) -> Any:
    """Its value in a frozen configuration; of a group (`task=micro_vqa`) its name; MISSING where a group has none."""
    found: Any = config
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return NEUTRAL.get(key)  # the value for the time before the key; a section of another method has no values
        found = found[part]
    return found.get("name", MISSING) if isinstance(found, Mapping) else found


def _means(config: Mapping[str, Any], axis: str, value: Any, run: str) -> bool:
    """Whether a value that is spelt otherwise makes the same run: layers in another order, a setting of another method."""
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
    except (ConfigError, KeyError, TypeError, AttributeError):  # of a run from before today's schema
        return False


def of_header(header: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """What the caption says of all runs."""
    for key, value in header.items():
        if key.split(".")[0] in RunConfig.model_fields and (found := setting(config, key)) != value:
            return f"the manifest's header says {key} {_shown(value)}, its {CONFIG} {_shown(found)}"
    return None


# Evaluations


def of_evaluation(
    run: str, one: str, split: str, file: Mapping[str, Any], labels: Mapping[str, Any], config: Mapping[str, Any] | None
) -> str | None:
    """An evaluation's file, evaluations/ID.json, against where its value is shown.

    `labels`: the point's values and the manifest's header. `config`: the run's.
    """
    settings, place = file["settings"], f"evaluations/{one}.json"
    if file.get("run", run) != run:
        return f"{place} is of run {file['run']}"
    if (found := settings.get("split")) != split:
        return f"the manifest shows evaluation {one} as {split}, and {place} says {found}"
    if (follows := evaluation_id(run, settings)) != one:
        return f"{place} is not what was asked: its settings make evaluation {follows}"
    for key, value in labels.items():
        found = asked(settings, key, config)
        if found is not MISSING and found != value:
            return f"the manifest says {key} {_shown(value)}, {place} {_shown(found)}"
    return None


def asked(settings: Mapping[str, Any], key: str, config: Mapping[str, Any] | None) -> Any:
    """The value of `attack.epsilon`, `evaluation.beam`, ... in an evaluation's settings; MISSING where they have none."""
    section, _, name = key.partition(".")
    if section not in Questions.model_fields or name == "splits":
        return MISSING
    if section == "attack":
        attack = settings.get("attack", {"epsilon": 0.0})
        return attack.get(name, MISSING)
    if name in settings or name == "examples":
        return settings.get(name)
    found = None if config is None else setting(config, f"task.{name}")  # as the task decodes
    return MISSING if found is None else found


def of_values(key: str, metric: str, values: Mapping[str, float], one: str, scores: np.ndarray | None) -> str | None:
    """What several places say is one number, a possible one, and the mean of the scores of single examples, if these are there.

    `key`: what it is called, `test/cider`. `values`: by place. `one`: the evaluation.
    """
    top, place = highest(metric), f"evaluations/{one}.npy"
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


def of_count(file: Mapping[str, Any], one: str, scores: np.ndarray | None) -> str | None:
    if scores is not None and file.get("n", len(scores)) != len(scores):
        return f"evaluations/{one}.json says {file['n']} examples, evaluations/{one}.npy has {len(scores)}"
    return None


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _number(value: float) -> str:
    return f"{value:.10g}"


# What takes longer


def deeply(folder: RunFolder, result: Mapping[str, Any] | None) -> Iterator[str]:
    """What is only asked for: the checksum of the weights, and every evaluation that lies there, shown or not.

    Nothing that it finds changes a number that is shown.
    """
    if result is not None:
        file, checksum = Attempt(folder, result["attempt"]).weights_file, result.get("weights")
        if checksum is not None:
            try:
                found = hashlib.sha256(file.read_bytes()).hexdigest()
            except OSError as error:
                yield f"its weights cannot be read: {error.strerror}"
            else:
                if found != checksum:
                    yield f"its weights are damaged: their sha256 is {found}, {RESULT} says {checksum}"
    for file in sorted(folder.evaluation_files(None if result is None else result["attempt"])):
        try:
            about, scores = read(file, EVALUATION), read_scores(file.with_suffix(".npy"))
        except Unreadable as error:
            yield str(error)
            continue
        if about is None:
            continue
        one, split = file.stem, str(about["settings"].get("split"))
        said = of_evaluation(folder.id, one, split, about, {}, None) or of_count(about, one, scores)
        if said:
            yield said
            continue
        of_task = [metric for metric in PRIMARY_METRIC.values() if metric in about["metrics"]]
        if not of_task:
            yield f"evaluations/{file.name} has no value of {' or '.join(PRIMARY_METRIC.values())}"
        for metric in of_task[:1]:
            values = {f"evaluations/{file.name}": about["metrics"][metric]}
            if said := of_values(f"{split}/{metric}", metric, values, one, scores):
                yield said
