"""A study on disk: the definition of a search, its trials, and the decisions about them.

    STORE/searches/NAME/study.json         the definition, frozen when the search is first asked for
    STORE/searches/NAME/trials/N.json      trial N: its settings, its runs by seed, and what the sampler knew
    STORE/searches/NAME/decisions/N.S.json whether trial N goes on after update S; N.seeds.json: whether it gets more seeds
    STORE/searches/NAME/confirmed.json     what is confirmed, on seeds that the search never used

Each file is written once and whole, by the first process that gets there, and never changed. A trial's state and values are
not in them: they are read from its runs (`mmprompt.studies.outcomes`). So nothing has to be kept in step, and there is no lock.
Part of the light half of the package: no torch, no Hydra, no Optuna.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter

from mmprompt.runs import records
from mmprompt.runs.files import StoreError, write_once
from mmprompt.runs.store import OF_SEARCH, Store
from mmprompt.settings.section import Section
from mmprompt.settings.spelling import nearest
from mmprompt.studies.schemas import Confirmation, Decision, Definition, Trial

TRIALS = "trials", r"(\d+)\.json"  # folder, and the names of its files
DECISIONS = "decisions", r"\d+\.(\d+|seeds)\.json"
SEEDS = "seeds"  # in the name of a decision on more seeds

Record = TypeVar("Record", bound=Section)


@dataclass(frozen=True)
class Study:
    store: Store
    name: str

    @property
    def folder(self) -> Path:
        return self.store.searches / self.name

    @property
    def file(self) -> Path:
        return self.folder / "study.json"

    @property
    def manifest(self) -> str:
        """The name of its manifest."""
        return f"{OF_SEARCH}{self.name}"

    @cached_property
    def definition(self) -> Definition:
        """study.json. Raises StoreError if there is no such study, or the file is damaged."""
        found = read(self.file, Definition)
        if found is None:
            names = self.store.studies()
            known = nearest(self.name, names) or f"; there are {', '.join(names) or 'none'}"
            raise StoreError(f"no search {self.name} was begun in {self.store.root}{known}")
        if found.name != self.name:
            raise StoreError(f"{self.file} is of search {found.name}, not of {self.name}; it belongs elsewhere")
        return found

    def trials(self, known: Mapping[str, Trial] = MappingProxyType({})) -> dict[str, Trial]:
        """The trials by the name of their files. Those in `known` are not read again: they never change.

        Raises StoreError, naming the file, for one that is damaged or does not belong there.
        """
        return {file.name: known.get(file.name) or self._trial(file) for file in self._files(*TRIALS)}

    def _trial(self, file: Path) -> Trial:
        trial, seeds = read(file, Trial), self.definition.seed_values[: self.definition.seeds.most]
        if trial is None or str(trial.number) != file.stem or not self.definition.has(trial, trial.group, seeds):
            raise StoreError(f"{file} is not trial {file.stem} of search {self.name}; remove it")
        return trial

    def decisions(self, known: Mapping[str, Decision] = MappingProxyType({})) -> dict[str, Decision]:
        """The decisions by the name of their files, as `trials`."""
        return {file.name: known.get(file.name) or self._decision(file) for file in self._files(*DECISIONS)}

    def _decision(self, file: Path) -> Decision:
        one = read(file, Decision)
        if one is None or file.name != f"{one.trial}.{one.step or SEEDS}.json":
            raise StoreError(f"{file} is not a decision of search {self.name}; remove it")
        return one

    def confirmation(self) -> Confirmation | None:
        """confirmed.json; None if there is none yet. Raises as `trials`."""
        file = self.folder / "confirmed.json"
        found = read(file, Confirmation)
        candidates = [(one, group.group) for group in found.groups for one in group.candidates] if found else []
        if found and not all(self.definition.has(one, group, found.seeds) for one, group in candidates):
            raise StoreError(f"{file} is not of search {self.name}; remove it if nothing can restore it")
        return found

    def _files(self, folder: str, name: str) -> list[Path]:
        try:
            files = [file for file in (self.folder / folder).iterdir() if not file.name.startswith(".")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.folder / folder} cannot be read: {error.strerror}") from None
        return sorted(file for file in files if re.fullmatch(name, file.name, re.ASCII))  # other files are not ours

    def damage(self) -> list[StoreError]:
        """An error for each of its files that cannot be used."""
        found: list[StoreError] = []

        def look(check: Callable[[], object]) -> None:
            try:
                check()
            except StoreError as error:
                found.append(error)

        look(lambda: self.definition)
        if found:
            return found
        checks: list[tuple[tuple[str, str], Callable[[Path], object]]]
        checks = [(TRIALS, self._trial), (DECISIONS, self._decision)]
        for files, check in checks:
            look(partial(self._files, *files))
            with contextlib.suppress(StoreError):
                for file in self._files(*files):
                    look(partial(check, file))
        look(self.confirmation)
        return found

    def define(self, definition: Definition) -> bool:
        """Writes study.json. Returns False if it existed."""
        return write_once(self.file, definition.model_dump_json(indent=1))

    def add(self, trial: Trial) -> bool:
        """Writes a trial. Returns False if another process wrote this number first."""
        return write_once(self.folder / "trials" / f"{trial.number}.json", trial.model_dump_json())

    def decide(self, decision: Decision) -> bool:
        name = f"{decision.trial}.{decision.step or SEEDS}.json"
        return write_once(self.folder / "decisions" / name, decision.model_dump_json())

    def confirm(self, confirmation: Confirmation) -> bool:
        return write_once(self.folder / "confirmed.json", confirmation.model_dump_json(indent=1))


@cache
def adapter(schema: type[Record]) -> TypeAdapter[Record]:
    return TypeAdapter(schema)


def read(file: Path, schema: type[Record]) -> Record | None:
    """A file of a study; None if it does not exist. Raises DamagedError if it is cut off or of another shape."""
    return records.read(file, adapter(schema), "remove it if nothing can restore it")


def runs_of(store: Store, name: str) -> list[str]:
    """The ids of all runs of a study: of its trials and its confirmation."""
    return list(evaluations_of(store, name))


def evaluations_of(store: Store, name: str) -> dict[str, list[dict[str, Any]]]:
    """The settings of the evaluations that each run of a study needs; empty if the study cannot be read."""
    study, found = Study(store, name), dict[str, list[dict[str, Any]]]()
    try:
        definition, confirmation = study.definition, study.confirmation()
        for trial in study.trials().values():
            task = definition.task_of(trial.settings, trial.group)
            asked = [{"split": definition.tasks[task]["validation"]}]
            found |= dict.fromkeys(trial.runs.values(), asked)
        for group in confirmation.groups if confirmation else []:
            for candidate in group.candidates:
                splits = definition.splits[definition.task_of(candidate.settings, group.group)]
                asked = [{"split": split} for split in splits]
                found |= dict.fromkeys(candidate.runs.values(), asked)
    except StoreError:
        return {}
    return found
