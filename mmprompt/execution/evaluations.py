"""Evaluations of a run: made from the weights that are loaded, and put into files of their own.

By the attempt that trains, before it publishes; or, of a run that has its result, by one that trains nothing.
n examples.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_weights
from torch import Tensor

from mmprompt.evaluation.answers import Answered, attack_of, count, evaluate
from mmprompt.execution.progress import EvaluationProgress
from mmprompt.execution.run_context import RunContext
from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.runs.answer_file import answer_file, checksum
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import EVALUATION, DamagedError, ResultRecord, as_json, read
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.signals import leave, time_is_up
from mmprompt.training.frozen_features import Want

Settings = Mapping[str, Any]  # of an evaluation (`mmprompt.runs.identity.evaluations_of`)
ATTACK_INPUT: dict[str, Want] = {"embeddings": "features", "pixels": "pixels"}  # what an attack starts from


class WeightsError(RuntimeError):
    """A finished run cannot be evaluated. The message names the file, what is wrong with it, and the cure."""


@dataclass(frozen=True)
class NewEvaluation:
    """A new evaluation: the content of its files."""

    content: dict[str, Any]
    scores: np.ndarray | None  # of each example, under the primary metric; None: unscored
    answers: bytes | None = None  # the content of their file; None where no challenge asks for them

    @property
    def id(self) -> str:
        return str(self.content["evaluation"])

    @property
    def values(self) -> dict[str, float]:
        return recorded(self.content)

    @property
    def is_default(self) -> bool:
        return is_default(self.content["settings"])

    def put(self, attempt: Attempt, folder: Path) -> None:
        """Writes it into a folder of the run or of its attempt. An existing file stays: the first one wins."""
        file = folder / f"{self.id}.json"
        if self.scores is not None:
            buffer = io.BytesIO()
            np.save(buffer, self.scores.astype(np.float32))
            attempt.put(file.with_suffix(".npy"), buffer.getbuffer(), once=True)
        if self.answers is not None:
            attempt.put(answer_file(file), self.answers, once=True)
        attempt.put(file, as_json(self.content), once=True)


def is_default(settings: Settings) -> bool:
    """Whether these are the settings of a default evaluation: a whole split, decoded as the task says, without attack."""
    return settings.keys() == {"split"}


def make_evaluation(run: RunContext, settings: Settings, answered: Answered) -> NewEvaluation:
    """Evaluates the loaded weights once. The result has the same bits whatever was done before."""
    config, attack, began = run.config, attack_of(settings), time.monotonic()
    if run.ranks.leads:
        run.ranks.same(dict(settings))  # the run's other processes wait for it (`mmprompt.execution.followers`)
    split = run.asked_split(settings)
    seen = run.view(split, ATTACK_INPUT[attack.input] if attack else "encoded")
    torch.manual_seed(config.seed)
    scores = evaluate(config, run.tuned, split, seen, settings, answered, run.ranks)
    content = {
        "evaluation": evaluation_id(run.folder.id, settings),
        "run": run.folder.id,
        **run.origin,
        "settings": dict(settings),
        "n": scores.n,
        "metrics": scores.metrics,
        "seconds": round(time.monotonic() - began, 2),
        "wandb": run.attempt.wandb,
    }
    if not split.is_scored:
        content["score"] = f"none: evaluation.unscored says that the right answers of {split.name} are not here"
    if scores.answers is None:
        return NewEvaluation(content, scores.examples)
    answers = scores.answers.content
    content |= {"answers": checksum(answers), "of": len(split)}
    return NewEvaluation(content, scores.examples, answers)


def evaluate_finished_run(run: RunContext, evaluations: Sequence[Settings]) -> None:
    """Makes those of these evaluations that a finished run does not have, from its weights. Trains nothing.

    Raises WeightsError, and RuntimeError where there is no result.
    """
    folder, attempt = run.folder, run.attempt
    result = folder.result()
    if result is None:
        raise RuntimeError(
            f"run {folder.id} has no result that could be evaluated; `python -m sweeps launch` trains it"
        )
    missing = folder.missing([evaluation_id(folder.id, settings) for settings in evaluations], result)
    asked = [settings for settings in evaluations if evaluation_id(folder.id, settings) in missing]
    run.tuned.load_published_state(published_weights(folder, result))
    run.tuned.eval()
    began, record = time.monotonic(), run.record()
    made: list[NewEvaluation] = []
    progress = EvaluationProgress(attempt, sum(count(run.asked_split(settings), settings) for settings in asked))
    try:
        for settings in asked:
            if made:
                made[-1].put(attempt, folder.evaluations)
                progress.report(len(made))
            if time_is_up():
                leave()
            made.append(make_evaluation(run, settings, progress.answered))
            record.log(len(made), made[-1].values)
        # All evaluations made of this run since it was published, so that the newest record holds every value.
        there = [*readable(folder.evaluation_files(None)), *(one.content for one in made)]
        summary = {key: value for content in there for key, value in recorded(content).items()}
    except BaseException:
        record.finish({}, exit_code=1)
        raise
    record.finish(summary, exit_code=0)
    if made:
        made[-1].put(
            attempt, folder.evaluations
        )  # when the record is on disk: nobody comes again to one that has them all
        progress.report(len(made))
    seconds = round(time.monotonic() - began, 2)
    attempt.end({"evaluations": [one.id for one in made], "seconds": seconds, "wandb": attempt.wandb})
    folder.tidy(attempt)


def readable(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    """The evaluations whose files can be read."""
    for file in files:
        with contextlib.suppress(DamagedError):
            if (found := read(file, EVALUATION)) is not None:
                yield {"evaluation": file.stem, **found}


def published_weights(folder: RunFolder, result: ResultRecord) -> dict[str, Tensor]:
    """The weights that the published attempt trained. Raises WeightsError if they are missing or changed."""
    file = Attempt(folder, result["attempt"]).weights_file
    cure = f"remove {folder.path}, and `python -m sweeps launch` trains the run again"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise WeightsError(f"{file} cannot be read ({error.strerror}): {cure}") from error
    checksum = sha256(data).hexdigest()
    if result.get("weights", checksum) != checksum:  # results of long ago do not say it
        raise WeightsError(
            f"{file} is damaged, its sha256 is {checksum}, that of the result's {result['weights']}: {cure}"
        )
    try:
        return load_weights(data)
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged ({error}): {cure}") from error


def recorded(content: Mapping[str, Any]) -> dict[str, float]:
    """An evaluation's values in a W&B record: evaluation/ID is the primary metric, evaluation/ID/bleu4 another one."""
    named = {name: "" if name in PRIMARY_METRIC.values() else f"/{name}" for name in content["metrics"]}
    return {f"evaluation/{content['evaluation']}{end}": content["metrics"][name] for name, end in named.items()}


def results(made: Sequence[NewEvaluation]) -> dict[str, Any]:
    """The evaluations in a result: the values of the default ones by split, and the ids of all."""
    clean = {one.content["settings"]["split"]: one for one in made if one.is_default}
    values = {
        f"{split}/{metric}": value for split, one in clean.items() for metric, value in one.content["metrics"].items()
    }
    ids = {split: one.id for split, one in clean.items()}
    return {"metrics": values, "evaluations": ids, "evaluated": [one.id for one in made]}
