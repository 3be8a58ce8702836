"""A sweep or a search as one JSON document, for programs: what its tables show, unrounded, with what has to be known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import SweepReport
from analysis.search_report import SearchReport


def document(one: SweepReport | SearchReport, out: Path) -> dict[str, Any]:
    """`out`: the folder that tables and figures were written to. What has no value is null."""
    if isinstance(one, SearchReport):
        found = {"trials": one.trials, "confirmation": one.confirmation, "importances": one.importances}
        sweep, notes = one.searched.sweep, one.notes
    else:
        found = {"cells": one.cells, "facts": one.facts, "claims": one.claims, "averages": one.averages}
        sweep, notes = one.sweep, one.notes
    manifest = sweep.manifest
    about = {key: manifest[key] for key in ("sweep", "search", "claim", "header", "tasks", "baseline")}
    frames = {name: records(frame) for name, frame in found.items() if frame is not None}
    return about | frames | {"notes": notes, "conflicts": list(sweep.conflicts), "folder": str(out)}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A dictionary for each row."""
    rows: list[dict[str, Any]] = json.loads(
        frame.reset_index(drop=frame.index.names == [None]).to_json(orient="records")
    )
    return rows
