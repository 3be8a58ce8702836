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
from functools import partial
from typing import Any

import pandas as pd

from analysis.sources import Tracked
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import RunFolder
from mmprompt.runs.wandb_server import find, server

ROWS = 10_000  # of a curve, in one call


@dataclass(frozen=True)
class OnServer:
    attempts: Mapping[str, Mapping[int, Any]]  # by run and number

    def published(self, folder: RunFolder, result: Mapping[str, Any] | None, notes: list[str]) -> Tracked | None:
        found = self.attempts.get(folder.id, {})
        if result is not None:
            run = found.get(result["attempt"])
        else:
            trained = {number: run for number, run in sorted(found.items()) if not _only_evaluated(run)}
            finished = [number for number, run in trained.items() if run.state == "finished"]
            run = trained[finished[0] if finished else max(trained)] if trained else None
            if finished:
                notes.append("where no result.json says which attempt was published, the first that finished is taken")
        return None if run is None else _tracked(run)

    def evaluated(
        self, folder: RunFolder, said: Mapping[str, Mapping[str, Any] | None], notes: list[str]
    ) -> dict[str, Tracked]:
        found = {number: _tracked(run) for number, run in sorted(self.attempts.get(folder.id, {}).items())}
        values = {}
        for one, file in said.items():
            numbers = found if file is None else [file["attempt"]]
            asked = (found[number] for number in numbers if number in found)
            made = next((tracked for tracked in asked if f"evaluation/{one}" in tracked.summary), None)
            if made is not None:
                values[one] = made
        return values


@contextmanager
def on_server(manifest: Mapping[str, Any], project: str | None) -> Iterator[OnServer]:
    """Where `analysis.reading` finds the records of this sweep. `project`: PROJECT or ENTITY/PROJECT; None: as launched.

    Raises ServerError when the server cannot be had, also later in the block.
    """
    entity, project = place_of(manifest, project)
    runs = list(dict.fromkeys(point["run"] for point in manifest["points"]))
    with server() as api:
        attempts: defaultdict[str, dict[int, Any]] = defaultdict(dict)
        for run in find(api, project, entity, "config.run_id", runs, lazy=False):
            attempts[run.config["run_id"]][run.config["attempt"]] = run
        yield OnServer(attempts)


def place_of(manifest: Mapping[str, Any], project: str | None) -> tuple[str, str]:
    """Entity, empty for the account's own, and project."""
    if project is not None:
        entity, _, name = project.rpartition("/")
        return entity, name
    if "tracking" not in manifest:
        raise StoreError(f"sweep {manifest['sweep']} was launched before manifests named a W&B project; give --project")
    return manifest["tracking"]["entity"] or "", manifest["tracking"]["project"]


def _tracked(run: Any) -> Tracked:
    return Tracked(run.state, dict(run.config), _summary(run), partial(_history, run), run.historyLineCount)


def _only_evaluated(run: Any) -> bool:
    """Whether this attempt asked finished weights, and trained none."""
    return run.config.get("work") == "evaluate"


def _summary(run: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(run.summary).items() if not key.startswith("_")}


def _history(run: Any) -> pd.DataFrame:
    """A row per logged step. A server that was sent a row twice may have it twice."""
    rows = pd.DataFrame(list(run.scan_history(page_size=ROWS, use_cache=False)))
    return rows.drop_duplicates("_step", keep="last", ignore_index=True) if len(rows) else rows
