"""Where W&B records are read: a `Source` gives those of a run. In the store they are files; for a server see `analysis.server`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from analysis.records import RecordError, read_ends, read_record
from mmprompt.runs.store import RunFolder
from mmprompt.runs.wandb_record import record_files


@dataclass(frozen=True)
class Tracked:
    """The W&B record of one attempt, wherever it was read."""

    state: str  # W&B's word for how it ended
    config: dict[str, Any]
    summary: dict[str, Any]
    history: Callable[[], pd.DataFrame]  # a row per logged step, as `analysis.records` reads it
    rows: int | None  # how many that should be; None: as many as there are


class Source(Protocol):
    """Where W&B records are read. What does not fit goes into the notes."""

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        """The record of a run whose result is given."""

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Tracked]:
        """By evaluation: the record of the attempt that made it. `said`: what its file says, None without one."""


@dataclass(frozen=True)
class InStore:
    """The records in the store. `whole`: all of each file is read, so that damage anywhere in it is noted."""

    whole: bool = False

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        if result is None:
            return self._finished(folder)
        if result["wandb"] is None:
            return None
        return self._read(folder, result["wandb"], notes)

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Tracked]:
        files = {one: file["wandb"] for one, file in said.items() if file is not None and file["wandb"] is not None}
        read = {file: self._read(folder, file, notes) for file in sorted(set(files.values()))}
        return {one: tracked for one, file in files.items() if (tracked := read[file]) is not None}

    def _finished(self, folder: RunFolder) -> Tracked | None:
        """Of a run without a result: the record of its first attempt that trained to the end; None if none did."""
        for attempt in folder.attempts():
            for file in record_files(attempt.path):
                tracked = self._read(folder, str(file.relative_to(folder.path)), [])
                if tracked is not None and tracked.state == "finished" and tracked.config.get("work") != "evaluate":
                    return tracked
        return None

    def _read(self, folder: RunFolder, place: str, notes: list[str]) -> Tracked | None:
        file = folder.path / place
        try:
            record = read_record(file, history=False) if self.whole else read_ends(file)
        except RecordError as error:
            notes.append(f"run {folder.id}: {error}")
            return None
        notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
        history = partial(_history, file)
        return Tracked(record.state, record.config, record.summary, history, None)


in_store = InStore()


def _history(file: Path) -> pd.DataFrame:
    return read_record(file, history=True).history
