"""What a sweep lacks: runs without a value, why, the command that fills them, and what that should take."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.frame import Sweep
from mmprompt.runs.store import TRIES, Store

DONE = "done"
COLUMNS = ["run", "state", "why", "command", "seconds"]


def missing(sweep: Sweep) -> pd.DataFrame:
    """A row per run that is not done, or was not asked all that the sweep wants to know.

    Columns: the axes, run, state, why (what its last attempt said; empty where nothing ever went wrong), command, seconds (that
    finished runs of its task took, their median; NaN where none is finished, and where the run is there and only questions are
    missing).
    """
    rows, finished = (sweep.frame[(sweep.frame["state"] == DONE) == is_done] for is_done in (False, True))
    typical: dict[Any, float] = finished.groupby("task")["seconds"].median().to_dict() if len(finished) else {}
    axes = list(sweep.manifest["axes"])
    found = []
    for _, row in rows.drop_duplicates("run").iterrows():
        seconds = typical.get(row["task"], math.nan) if pd.isna(row["attempt"]) else math.nan
        about = {
            "run": row["run"],
            "state": row["state"],
            "why": _why(sweep.store, row),
            "command": _command(sweep, row),
        }
        found.append({axis: row[axis] for axis in axes} | about | {"seconds": seconds})
    return pd.DataFrame(found, columns=[*axes, *COLUMNS])


def _why(store: Store | None, row: pd.Series) -> str:
    conflicts = [text for key, text in row.items() if str(key).endswith("/conflict") and isinstance(text, str)]
    if conflicts:
        return conflicts[0]
    attempts = [] if store is None else store.run(row["run"]).attempts()
    reason = attempts[-1].reason if attempts else None
    return reason.message if reason else ""


def _command(sweep: Sweep, row: pd.Series) -> str:
    """That of the sweep; where it would leave a run alone, what is to be told besides."""
    command, failed = str(sweep.manifest["command"]), row["state"] == "failed"
    has_failed_often = failed and sweep.store is not None and sweep.store.run(row["run"]).tries() >= TRIES
    if row["state"] != "diverged" and not has_failed_often:
        return command
    more = "--retry" if failed else "--retry diverged"
    return f'{command[:-1]} {more}"' if command.endswith('"') else f'{command} ARGS="{more}"'
