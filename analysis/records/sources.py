"""Where W&B records are read: a `Source` gives those of a run. In the store they are files; for a server see
`analysis.records.server`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from analysis.records.histories import read_history
from analysis.records.server import ServerRecord
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.wandb_ends import read_ends
from mmprompt.runs.wandb_record import RecordError, WandbRecord, read_record, record_files

AnyRecord = WandbRecord | ServerRecord  # each has state, config and summary


class Source(Protocol):
    """Where W&B records are read. What does not fit goes into the notes."""

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> AnyRecord | None:
        """The record of a run whose result is given."""

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> Mapping[str, AnyRecord]:
        """By evaluation: the record of the attempt that made it. `said`: what its file says, None without one."""

    def history(self, record: Any, notes: list[str]) -> pd.DataFrame:
        """A row per logged step of a record that this source gave, a column per key. Raises RecordError if its file is gone."""


@dataclass(frozen=True)
class InStore:
    """The records in the store. `whole`: all of each file is read, so that damage anywhere in it is noted."""

    whole: bool = False

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> WandbRecord | None:
        if result is None:
            return self._finished(folder)
        if result["wandb"] is None:
            return None
        return self._read(folder, result["wandb"], notes)

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, WandbRecord]:
        files = {one: file["wandb"] for one, file in said.items() if file is not None and file["wandb"] is not None}
        read = {file: self._read(folder, file, notes) for file in sorted(set(files.values()))}
        return {one: record for one, file in files.items() if (record := read[file]) is not None}

    def history(self, record: WandbRecord, notes: list[str]) -> pd.DataFrame:
        return read_history(record.path)

    def _finished(self, folder: RunFolder) -> WandbRecord | None:
        """Of a run without a result: the record of its first attempt that trained to the end; None if none did."""
        for attempt in folder.attempts():
            for file in record_files(attempt.path):
                record = self._read(folder, str(file.relative_to(folder.path)), [])
                if record is not None and record.state == "finished" and record.config.get("work") != "evaluate":
                    return record
        return None

    def _read(self, folder: RunFolder, place: str, notes: list[str]) -> WandbRecord | None:
        file = folder.path / place
        try:
            record = read_record(file, history=False) if self.whole else read_ends(file)
        except RecordError as error:
            notes.append(f"run {folder.id}: {error}")
            return None
        notes.extend(f"run {folder.id}: its W&B record is damaged at {damage}" for damage in record.damage)
        return record


in_store = InStore()
