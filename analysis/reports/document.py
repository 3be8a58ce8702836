"""A sweep or a search as one JSON document, for programs: the values of its tables, unrounded, with their notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.reports.report import SweepReport
from analysis.reports.search_report import SearchReport


def document(report: SweepReport | SearchReport, out: Path) -> dict[str, Any]:
    """Returns the document. `out`: the folder that tables and figures were written to. A missing value is null."""
    if isinstance(report, SearchReport):
        frame_of = {"trials": report.trials, "confirmation": report.confirmation, "importances": report.importances}
        sweep, notes = report.searched.sweep, report.notes
    else:
        frame_of = {"cells": report.cells, "facts": report.facts, "claims": report.claims, "averages": report.averages}
        sweep, notes = report.sweep, report.notes
    manifest = sweep.manifest
    manifest_part = {key: manifest[key] for key in ("sweep", "search", "claim", "header", "tasks", "baseline")}
    frames = {name: records(frame) for name, frame in frame_of.items() if frame is not None}
    return manifest_part | frames | {"notes": notes, "conflicts": list(sweep.conflicts), "folder": str(out)}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns a dictionary per row."""
    rows: list[dict[str, Any]] = json.loads(
        frame.reset_index(drop=frame.index.names == [None]).to_json(orient="records")
    )
    return rows
