"""The data of a task: its vocabulary, its closed set of answers, its splits. Each is read when it is first used, and kept."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmprompt.data.bpe import BPE
from mmprompt.data.splits import Split, file_split, small_world_split
from mmprompt.data.task_files import TaskFiles
from mmprompt.data.tokenizer import Tokenizer, Vocabulary
from mmprompt.families.lines import DataError
from mmprompt.settings.model import Model
from mmprompt.settings.task import Digits, Task

TASKS_KEPT = 2


class TaskData:
    """The data of one task, encoded for one model. `files`: where the task's files are (`mmprompt.data.task_files.locate`)."""

    def __init__(self, task: Task, model: Model, files: TaskFiles) -> None:
        self.task, self.model, self.files = task, model, files
        self._splits: dict[str, Split] = {}
        self._unscored: dict[tuple[str, tuple[str, ...], str], Split] = {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The small world's vocabulary, or OFA's from the task's files. Raises ConfigError if these are not valid."""
        data, model = self.task.data, self.model
        if isinstance(data, Digits):
            return Tokenizer(model.vocab_size, model.num_bins)
        encoder, merges, dictionary = (self.files.paths[name] for name in (data.encoder, data.merges, data.dictionary))
        return BPE(encoder, merges, dictionary, model.vocab_size, model.num_bins)

    @cached_property
    def answers(self) -> list[str]:
        """The closed set of answers; empty where text is generated. Raises DataError if the file of answers is not valid."""
        if isinstance(self.task.answers, str):
            return read_answers(self.files.paths[self.task.answers])
        return self.task.answers or []

    @cached_property
    def answer_ids(self) -> list[list[int]]:
        """The closed set of answers as token ids."""
        return [self.vocabulary.encode(answer) for answer in self.answers]

    def split(self, name: str) -> Split:
        """The split with this name. Raises DataError if one of its files is not valid."""
        if name not in self._splits:
            self._splits[name] = self._read(name)
        return self._splits[name]

    def unscored_split(self, name: str, files: Sequence[str], fingerprint: str) -> Split:
        """The split of `evaluation.unscored` with this name and these files, which have this fingerprint.

        Raises RuntimeError if a file is missing or has changed, DataError if one is not valid.
        """
        key = name, tuple(files), fingerprint
        if key not in self._unscored:
            found = self.files.of(f"evaluation.unscored, split {name},", files, fingerprint)
            self._unscored[key] = self._read_files(name, found, files)
        return self._unscored[key]

    def _read(self, name: str) -> Split:
        if isinstance(self.task.data, Digits):
            return small_world_split(self.task, self.task.data, self.vocabulary, name)
        return self._read_files(name, self.files)

    def _read_files(self, name: str, files: TaskFiles, unscored: Sequence[str] = ()) -> Split:
        assert not isinstance(self.task.data, Digits)
        closed = frozenset(self.answers)
        return file_split(self.task, self.task.data, files, self.vocabulary, closed, name, unscored)


class RecentTasks:
    """A cache of the data of the tasks used last: most runs of a job share their task."""

    def __init__(self) -> None:
        self._recent: list[TaskData] = []  # most recently used first

    def get(self, task: Task, model: Model, files: TaskFiles) -> TaskData:
        """The data of this task, from the cache if it is there."""
        key = (task, model, files)
        cached = [data for data in self._recent if (data.task, data.model, data.files) == key]
        data = cached[0] if cached else TaskData(*key)
        self._recent = [data, *(other for other in self._recent if other is not data)][:TASKS_KEPT]
        return data


class NoClasses(pickle.Unpickler):
    """Unpickles numbers, strings, lists and dicts only. Anything else in a pickle of unknown origin could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_answers(file: Path) -> list[str]:
    """Reads a closed set of answers: one on each line, or from a .pkl file OFA's table from answers to numbers.

    Raises DataError if the file is not valid, is empty, or has an answer twice.
    """
    if file.suffix != ".pkl":
        answers = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        try:
            table = NoClasses(io.BytesIO(file.read_bytes())).load()
            answers = sorted(table, key=table.__getitem__)
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file} is not a pickled table from answers to numbers: {error}") from None
    if not answers or not all(isinstance(answer, str) for answer in answers) or len(set(answers)) < len(answers):
        raise DataError(f"{file} has {len(answers)} answers; wanted: texts, no two the same, at least one")
    return answers
