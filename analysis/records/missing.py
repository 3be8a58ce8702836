"""The runs of a sweep that lack a value: why, the command that completes them, and the time that should take."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.records.frame import Sweep
from mmprompt.runs.attempt import TRIES
from mmprompt.runs.store import Store

DONE = "done"
COLUMNS = ["run", "state", "why", "command", "seconds"]


def missing(sweep: Sweep) -> pd.DataFrame:
    """Returns a row per run that is not done or lacks an evaluation of the sweep.

    Columns: the axes, run, state, why (the message of its last attempt; empty if nothing went wrong), command, seconds (the
    median that finished runs of its task took; NaN if none is finished, and if only evaluations are missing).
    """
    rows, finished = (sweep.frame[(sweep.frame["state"] == DONE) == is_done] for is_done in (False, True))
    median_seconds: dict[Any, float] = finished.groupby("task")["seconds"].median().to_dict() if len(finished) else {}
    axes = list(sweep.manifest["axes"])
    table_rows = []
    for _, row in rows.drop_duplicates("run").iterrows():
        seconds = median_seconds.get(row["task"], math.nan) if pd.isna(row["attempt"]) else math.nan
        columns_of_run = {
            "run": row["run"],
            "state": row["state"],
            "why": _why(sweep.store, row),
            "command": _command(sweep, row),
        }
        table_rows.append({axis: row[axis] for axis in axes} | columns_of_run | {"seconds": seconds})
    return pd.DataFrame(table_rows, columns=[*axes, *COLUMNS])


def _why(store: Store | None, row: pd.Series) -> str:
    conflicts = [text for key, text in row.items() if str(key).endswith("/conflict") and isinstance(text, str)]
    if conflicts:
        return conflicts[0]
    attempts = [] if store is None else store.run(row["run"]).attempts()
    reason = attempts[-1].reason if attempts else None
    return reason.message if reason else ""


def _command(sweep: Sweep, row: pd.Series) -> str:
    """The sweep's command; with `--retry` where the command alone would skip the run."""
    command, failed = str(sweep.manifest["command"]), row["state"] == "failed"
    has_failed_often = failed and sweep.store is not None and sweep.store.run(row["run"]).tries() >= TRIES
    if row["state"] != "diverged" and not has_failed_often:
        return command
    option = "--retry" if failed else "--retry diverged"
    return f'{command[:-1]} {option}"' if command.endswith('"') else f'{command} ARGS="{option}"'
