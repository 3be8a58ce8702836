"""The training curves of a sweep as one table: a row per logged step of each done run, with the run's value on every axis.

Nothing is smoothed, sampled or averaged here.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from analysis.records.manifest import point_values
from analysis.records.sources import AnyRecord, Source
from mmprompt.runs.files import StoreError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_record import RecordError

AT_ONCE = 8  # runs that are read in parallel; with more, a server answers "too many requests"
PATIENCE = 60.0  # seconds to wait for the curve of one run


def curves(store: Store, manifest: Mapping[str, Any], source: Source, notes: list[str]) -> pd.DataFrame:
    """Reads every logged step of a sweep's done runs. Problems of single runs are appended to `notes`.

    Columns: the axes, run, step, and every key that was logged, NaN where a step does not have it. Raises TimeoutError when a
    server stops answering.
    """
    points = {point["run"]: point_values(manifest, point) for point in reversed(manifest["points"])}
    done = {run: record for run in reversed(points) if (record := _record(store.run(run), source, notes))}
    missing = len(points) - len(done)
    if missing:
        notes.append(f"{missing} of {len(points)} runs have no curve")
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        futures = {run: pool.submit(_curve, source, record) for run, record in done.items()}
        curve_of = {}
        for run, future in futures.items():
            try:
                curve_of[run], problems = future.result(PATIENCE)
            except RecordError as error:  # the record was readable a moment ago
                problems = [f"run {run}: {error}"]
            notes.extend(problems)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    parts = [curve.assign(**points[run]) for run, curve in curve_of.items()]
    labels = list(dict.fromkeys([*manifest["axes"], "task", "run", "step"]))
    rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=labels)
    return rows[[*labels, *sorted(set(rows.columns) - set(labels))]]


def _record(folder: RunFolder, source: Source, notes: list[str]) -> AnyRecord | None:
    """The W&B record of a run; None if the run is not done."""
    try:
        result = folder.result()
    except StoreError as error:
        notes.append(str(error))
        return None
    record = source.published(folder, result, notes)
    return record if record and (result is not None or record.state == "finished") else None


def _curve(source: Source, record: AnyRecord) -> tuple[pd.DataFrame, list[str]]:
    """The curve of a run, and what contradicts it."""
    notes: list[str] = []
    history = source.history(record, notes)
    if not len(history):  # every part of it may be damaged
        return pd.DataFrame({"step": pd.Series(dtype="int64")}), notes
    logged = [key for key in history.columns if not key.startswith("_")]
    return history[logged].astype("float64").assign(step=history["_step"].astype("int64")), notes
