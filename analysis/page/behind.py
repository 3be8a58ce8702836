"""The data of the page's runs: the settings they share, and each run's other settings, origin and command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.reports.report import SweepReport
from analysis.reports.run import Run
from analysis.statistics.samples import plain
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import setting


def run_data(reports: Sequence[SweepReport]) -> dict[str, Any]:
    """Returns the data of all runs of these reports.

    `common`: the settings that all of them share. `runs`: by id, each run's other settings, metrics, origin and attempts.
    `sweeps`: by id, the first sweep that has the run.
    """
    points: dict[str, tuple[SweepReport, Mapping[str, Any]]] = {}
    for report in reports:
        for point in report.sweep.manifest["points"]:
            points.setdefault(point["run"], (report, point))
    runs = {run: Run(report.store.run(run), point) for run, (report, point) in points.items()}
    settings = {}
    for name, run in runs.items():
        try:
            settings[name] = run.config
        except StoreError:
            settings[name] = {}  # a warning on the page gives the reason
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    first = next((values for values in settings.values() if values), {})
    common = {
        key: first[key]
        for key in keys
        if key in first and all(not values or setting(values, key) == first[key] for values in settings.values())
    }
    return {
        "common": common,
        "runs": {name: _run(run, settings[name], common) for name, run in runs.items()},
        "sweeps": {name: report.name for name, (report, _) in points.items()},
    }


def _run(run: Run, settings: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    try:
        result, attempts = run.result, run.attempts
    except (StoreError, ValueError, OSError):
        return {"state": "damaged", "settings": {}, "metrics": {}, "attempts": []}
    return {
        "state": run.state,
        "settings": {key: value for key, value in settings.items() if key not in common},
        "metrics": run.metrics,
        "commit": run.commit,
        "dirty": run.dirty,
        "device": run.device,
        "weights": result.get("weights"),
        "record": None if result.get("wandb") is None else f"run/{run.id}/{result['wandb']}",
        "command": run.command,
        "attempts": [
            {
                "number": int(row["number"]),
                "work": row["work"],
                "host": row["host"],
                "began": "" if pd.isna(row["began"]) else row["began"].isoformat(sep=" "),
                "published": bool(row["published"]),
                "resumed_from": plain(row["resumed_from"]),
                "error": row["error"],
            }
            for row in attempts.to_dict("records")
        ],
    }
