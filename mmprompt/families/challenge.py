"""A challenge: a server that scores answers to examples whose right answers it alone has, and the file of answers that it takes.

Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Challenge:
    """A challenge takes a JSON list with an object for each example: its number in the data set, and the answer."""

    name: str
    prefix: str  # of the file's name: PREFIX_SPLIT_ALG_results.json
    id_key: str
    answer_key: str
    id_column: int  # of OFA's files: the column with the number, counted from 0; task.data.columns.id names another

    def file_name(self, split: str, algorithm: str) -> str:
        """The name of the file with the answers of an algorithm to a split."""
        return f"{self.prefix}_{split}_{algorithm}_results.json"

    def entries(self, ids: Sequence[str], texts: Sequence[str]) -> list[dict[str, int | str]]:
        """The content of the file. `ids`: n, as OFA's file has them; `texts`: n, the answers.

        Raises ValueError if an id is no number, or if two are the same number. The message says which, and what was wanted.
        """
        numbers: dict[int, str] = {}
        for id in ids:
            if not (id.isascii() and id.isdecimal()):
                raise ValueError(f"{id!r} came as {self.id_key}; {self.name} wants a number")
            if int(id) in numbers:
                raise ValueError(f"{id!r} came twice as {self.id_key}; {self.name} wants each once")
            numbers[int(id)] = id
        return [{self.id_key: number, self.answer_key: text} for number, text in zip(numbers, texts, strict=True)]
