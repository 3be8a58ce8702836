"""The data of a task: its vocabulary, its closed set of answers, its splits. Each is read when it is first asked for, and kept."""

from __future__ import annotations

import io
import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt.data.bpe import BPE
from mmprompt.data.splits import Split, lines, scenes
from mmprompt.data.task_files import TaskFiles
from mmprompt.data.tokenizer import Tokenizer, Vocabulary
from mmprompt.families.lines import DataError
from mmprompt.settings.model import Model
from mmprompt.settings.task import Digits, Task

KEPT = 2  # tasks


class TaskData:
    """The data of one task, as a model of this vocabulary reads it. `files`: where they are (`mmprompt.data.task_files.locate`)."""

    def __init__(self, task: Task, model: Model, files: TaskFiles) -> None:
        self.task, self.model, self.files = task, model, files
        self._splits: dict[str, Split] = {}

    @cached_property
    def words(self) -> Vocabulary:
        """The small world's words, or OFA's vocabulary from the task's files. Raises ConfigError if these are not sound."""
        data, model = self.task.data, self.model
        if isinstance(data, Digits):
            return Tokenizer(model.vocab_size, model.num_bins)
        encoder, merges, dictionary = (self.files.paths[name] for name in (data.encoder, data.merges, data.dictionary))
        return BPE(encoder, merges, dictionary, model.vocab_size, model.num_bins)

    @cached_property
    def answers(self) -> list[str]:
        """The closed set of answers; empty where text is generated. Raises DataError if their file is not as it should be."""
        if isinstance(self.task.answers, str):
            return read_answers(self.files.paths[self.task.answers])
        return self.task.answers or []

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """The closed set of answers as token ids."""
        return [self.words.encode(answer) for answer in self.answers]

    def split(self, name: str) -> Split:
        """Raises DataError if a file is not as it should be."""
        if name not in self._splits:
            self._splits[name] = self._read(name)
        return self._splits[name]

    def _read(self, name: str) -> Split:
        if isinstance(self.task.data, Digits):
            return scenes(self.task, self.task.data, self.words, name)
        return lines(self.task, self.task.data, self.files, self.words, frozenset(self.answers), name)


class RecentTasks:
    """The data of the last tasks that were asked for: the runs of a job mostly share theirs."""

    def __init__(self) -> None:
        self._recent: list[TaskData] = []  # the last asked for first

    def get(self, task: Task, model: Model, files: TaskFiles) -> TaskData:
        asked = (task, model, files)
        same = [data for data in self._recent if (data.task, data.model, data.files) == asked]
        data = same[0] if same else TaskData(*asked)
        self._recent = [data, *(other for other in self._recent if other is not data)][:KEPT]
        return data


class NoClasses(pickle.Unpickler):
    """Numbers, texts, lists and tables: what a stranger's pickle may hold. Anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_answers(file: Path) -> list[str]:
    """One on each line; or, of a .pkl, OFA's table from answers to numbers. Raises DataError."""
    if file.suffix != ".pkl":
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        try:
            table = NoClasses(io.BytesIO(file.read_bytes())).load()
            found = sorted(table, key=table.__getitem__)
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not a pickled table from answers to numbers: {error}") from None
    if not found or not all(isinstance(answer, str) for answer in found) or len(set(found)) < len(found):
        raise DataError(f"{file} has {len(found)} answers; wanted: texts, no two the same, one at least")
    return found
