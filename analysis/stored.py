"""What lies in a store beside W&B records, read with care: JSON, and the files of evaluations. A damaged file is an exception
that says which, and what is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from mmprompt.runs import records
from mmprompt.runs.records import DamagedError, EvaluationRecord, Record
from mmprompt.runs.store import Attempt, RunFolder


class Unreadable(Exception):
    """A file is damaged. The message says which, and what is wrong with it."""


def read(file: Path, schema: TypeAdapter[Record]) -> Record | None:
    """None if there is no such file. Raises Unreadable."""
    try:
        return records.read(file, schema)
    except DamagedError as error:
        raise Unreadable(f"{_place(file)} {error.why}") from None


ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(records.Settings)


def read_scores(file: Path) -> np.ndarray | None:
    """Of each example, shape (m,). None if there is no such file. Raises Unreadable."""
    try:
        with file.open("rb") as stream:
            found = np.lib.format.read_array(stream, allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(f"{_place(file)} cannot be read: {error.strerror}") from None
    except (ValueError, EOFError) as error:
        raise Unreadable(f"{_place(file)} is cut off or damaged: {str(error).splitlines()[0]}") from None
    if found.ndim != 1 or found.dtype.kind != "f" or not len(found):
        raise Unreadable(f"{_place(file)} is damaged: it holds {found.dtype} of shape {found.shape}")
    return found.astype(np.float64)


def _place(file: Path) -> str:
    """As it is said: `result.json`, `evaluations/ID.json`."""
    return f"{file.parent.name}/{file.name}" if file.parent.name == "evaluations" else file.name


@dataclass(frozen=True)
class Files:
    """What lies there of an evaluation; None is what does not."""

    about: EvaluationRecord | None  # what its file says
    scores: np.ndarray | None  # of single examples, shape (m,)


def evaluation_files(folder: RunFolder, attempt: int, one: str) -> tuple[Path, Path]:
    """Where an evaluation lies: with the published attempt, else where later ones are."""
    return Attempt(folder, attempt).evaluation_file(one), folder.evaluations / f"{one}.json"


def read_evaluation(folder: RunFolder, attempt: int, one: str) -> Files:
    """Of an evaluation: the published attempt's, else a later one's. Raises Unreadable."""
    for file in evaluation_files(folder, attempt, one):
        about = read(file, records.EVALUATION)
        if about is not None:
            return Files(about, read_scores(file.with_suffix(".npy")))
    return Files(None, None)


def unfinished(folder: RunFolder) -> str | None:
    """What the newest attempt of a run without a result came to: diverged, failed or not done. None if there was none."""
    try:
        attempts = folder.attempts()
        if not attempts:
            return None
        return "diverged" if attempts[-1].diverged else "failed" if attempts[-1].has_failed else "not done"
    except DamagedError:
        return "not done"
