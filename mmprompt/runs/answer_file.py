"""The answers of an evaluation as text, evaluations/ID.answers.jsonl: one line for each example, in the order of its split.

A line is `{"id": "79459", "answer": "no"}`; the id is the example's in the task's file. Only evaluations of tasks with files that a
challenge scores have answers (`mmprompt.families.challenge`). The evaluation's record has the file's sha256.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmprompt.runs.records import DamagedError

SUFFIX = ".answers.jsonl"


@dataclass(frozen=True)
class Answers:
    """The answers to n examples."""

    ids: Sequence[str]  # n
    texts: Sequence[str]  # n

    @property
    def content(self) -> bytes:
        """The content of their file."""
        lines = (
            json.dumps({"id": id, "answer": text}, ensure_ascii=False)
            for id, text in zip(self.ids, self.texts, strict=True)
        )
        return "".join(f"{line}\n" for line in lines).encode()


def answer_file(evaluation_file: Path) -> Path:
    """The file of answers beside an evaluation's record."""
    return evaluation_file.with_suffix(SUFFIX)


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_answers(file: Path, expected: str) -> Answers:
    """Reads a file of answers. `expected`: its sha256 as the evaluation's record has it.

    Raises DamagedError if the file is missing, or is not the one that was written.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DamagedError(file, f"cannot be read: {error.strerror}") from None
    if (found := checksum(content)) != expected:
        raise DamagedError(
            file, f"is damaged: its sha256 is {found}, that in {file.name.removesuffix(SUFFIX)}.json {expected}"
        )
    lines = [json.loads(line) for line in content.decode().split("\n") if line]
    return Answers([line["id"] for line in lines], [line["answer"] for line in lines])
