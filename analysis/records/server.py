"""The records of a sweep on a W&B server, through its public Api: the same frames as from the store, in few calls.

Configuration and final values of all runs come in one call for every 500 runs that the sweep names, curves in three per run.
Of the attempts of a run, the one that `result.json` names is taken; where that file is not, as when nothing but the manifest
was copied, the first that finished. What was asked of finished weights is in the summaries of the attempts that asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from mmprompt.runs.files import StoreError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.wandb_server import find, server

ROWS = 10_000  # of a curve, in one call


@dataclass(frozen=True)
class ServerRecord:
    """A W&B record as a server has it, under the names of one in the store (`mmprompt.runs.wandb_record.WandbRecord`)."""

    run: Any  # of wandb's Api

    @property
    def state(self) -> str:
        """W&B's word: also running, crashed, killed."""
        return str(self.run.state)

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.run.config)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Without the client's own keys, which begin with _."""
        return {key: value for key, value in dict(self.run.summary).items() if not key.startswith("_")}


@dataclass(frozen=True)
class OnServer:
    attempts: Mapping[str, Mapping[int, ServerRecord]]  # by run and number

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> ServerRecord | None:
        found = self.attempts.get(folder.id, {})
        if result is not None:
            return found.get(result["attempt"])
        trained = {n: record for n, record in sorted(found.items()) if record.config.get("work") != "evaluate"}
        finished = [number for number, record in trained.items() if record.state == "finished"]
        if finished:
            notes.append("where no result.json says which attempt was published, the first that finished is taken")
        return trained[finished[0] if finished else max(trained)] if trained else None

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, ServerRecord]:
        found = dict(sorted(self.attempts.get(folder.id, {}).items()))
        records = {}
        for one, file in said.items():
            numbers = found if file is None else [file["attempt"]]
            asked = (found[number] for number in numbers if number in found)
            made = next((record for record in asked if f"evaluation/{one}" in record.summary), None)
            if made is not None:
                records[one] = made
        return records

    def history(self, record: ServerRecord, notes: list[str]) -> pd.DataFrame:
        """A server that was sent a row twice may have it twice."""
        rows = pd.DataFrame(list(record.run.scan_history(page_size=ROWS, use_cache=False)))
        steps = rows.drop_duplicates("_step", keep="last", ignore_index=True) if len(rows) else rows
        if record.run.historyLineCount != len(steps):
            held = record.run.historyLineCount
            notes.append(
                f"run {record.config['run_id']}: the server holds {held} rows, and {len(steps)} steps were read"
            )
        return steps


@contextmanager
def on_server(manifest: Mapping[str, Any], project: str | None) -> Iterator[OnServer]:
    """Where `analysis.records.reading` finds the records of this sweep. `project`: PROJECT or ENTITY/PROJECT; None: as launched.

    Raises ServerError if the server cannot be used, now or later in the block.
    """
    entity, project = place_of(manifest, project)
    runs = list(dict.fromkeys(point["run"] for point in manifest["points"]))
    with server() as api:
        attempts: defaultdict[str, dict[int, ServerRecord]] = defaultdict(dict)
        for run in find(api, project, entity, "config.run_id", runs, lazy=False):
            attempts[run.config["run_id"]][run.config["attempt"]] = ServerRecord(run)
        yield OnServer(attempts)


def place_of(manifest: Mapping[str, Any], project: str | None) -> tuple[str, str]:
    """Entity, empty for the account's own, and project."""
    if project is not None:
        entity, _, name = project.rpartition("/")
        return entity, name
    if "tracking" not in manifest:
        raise StoreError(f"sweep {manifest['sweep']} was launched before manifests named a W&B project; give --project")
    return manifest["tracking"]["entity"] or "", manifest["tracking"]["project"]
