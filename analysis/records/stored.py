"""The readers of a run's files other than W&B records: JSON, and the files of evaluations.

A damaged file raises an exception that names the file and says what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from mmprompt.runs import records
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.records import DamagedError, EvaluationRecord, Record
from mmprompt.runs.run_folder import RunFolder


class Unreadable(Exception):
    """A file is damaged. The message names the file and says what is wrong with it."""


def read(file: Path, schema: TypeAdapter[Record]) -> Record | None:
    """Reads a JSON file; None if it does not exist. Raises Unreadable if it is damaged."""
    try:
        return records.read(file, schema)
    except DamagedError as error:
        raise Unreadable(f"{_displayed_path(file)} {error.why}") from None


ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(records.Settings)


def read_scores(file: Path) -> np.ndarray | None:
    """Reads the scores of an evaluation's examples, shape (m,); None if there is no such file. Raises Unreadable."""
    try:
        with file.open("rb") as stream:
            scores = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{_displayed_path(file)} cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise Unreadable(f"{_displayed_path(file)} is cut off or damaged: {str(error).splitlines()[0]}") from None
    if scores.ndim != 1 or scores.dtype.kind != "f" or not len(scores):
        raise Unreadable(f"{_displayed_path(file)} is damaged: it holds {scores.dtype} of shape {scores.shape}")
    return scores.astype(np.float64)


def _displayed_path(file: Path) -> str:
    """A file's path as messages show it: `result.json`, `evaluations/ID.json`."""
    return f"{file.parent.name}/{file.name}" if file.parent.name == "evaluations" else file.name


@dataclass(frozen=True)
class EvaluationFiles:
    """The content of an evaluation's files; None for a file that does not exist."""

    about: EvaluationRecord | None  # the content of ID.json
    scores: np.ndarray | None  # the scores of single examples, shape (m,)


def evaluation_files(folder: RunFolder, attempt: int, evaluation: str) -> tuple[Path, Path]:
    """The two possible files of an evaluation: with the published attempt, and among the later evaluations."""
    return Attempt(folder, attempt).evaluation_file(evaluation), folder.evaluations / f"{evaluation}.json"


def read_evaluation(folder: RunFolder, attempt: int, evaluation: str) -> EvaluationFiles:
    """Reads an evaluation's files: the published attempt's, otherwise a later one's. Raises Unreadable."""
    for file in evaluation_files(folder, attempt, evaluation):
        record = read(file, records.EVALUATION)
        if record is not None:
            return EvaluationFiles(record, read_scores(file.with_suffix(".npy")))
    return EvaluationFiles(None, None)


def unfinished_state(folder: RunFolder) -> str | None:
    """The state of a run without a result by its newest attempt: diverged, failed or not done. None without an attempt."""
    try:
        attempts = folder.attempts()
        if not attempts:
            return None
        return "diverged" if attempts[-1].diverged else "failed" if attempts[-1].has_failed else "not done"
    except DamagedError:
        return "not done"
