"""The table of the runs behind a sweep's cells: a row per run and split, with everything needed to compute a cell again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.records.frame import Sweep
from mmprompt.runs.store import Store

ABOUT = ("attempt", "commit", "dirty", "device")
COLUMNS = ("task", "seed", "split", "metric", "value", "examples", "state", "conflict", "run", "evaluation")


def run_table(sweep: Sweep, store: Store) -> pd.DataFrame:
    """Returns a row per run and split, with the index of `Sweep.scores`.

    Columns: the sweep's axes, then task, seed, split, metric, value (at full precision), examples (their number; NaN if their
    scores are not available), state, conflict, run (its id), evaluation (its id), attempt, commit, dirty, device; record (the W&B
    file) and config, both relative to the store; weights (sha256 of the file).
    """
    scores = sweep.scores
    axes = [axis for axis in sweep.manifest["axes"] if axis not in ("task", "seed")]
    results = {run: _result(store, run) for run in scores["run"].unique()}
    readable = scores[["run", "evaluation"]].where(scores["conflict"].isna())  # with a conflict the file may be damaged
    examples = [sweep.examples(*ids) for ids in readable.itertuples(index=False, name=None)]
    frame = scores[axes].assign(
        **{key: scores.get(key) for key in COLUMNS if key != "examples"},
        examples=[len(one) if one is not None else float("nan") for one in examples],
        **{key: scores[key] for key in ABOUT},
        record=_words(scores, lambda run: _record(store, run, results[run])),
        config=[str(store.run(run).config_file.relative_to(store.root)) for run in scores["run"]],
        weights=_words(scores, lambda run: results[run].get("weights")),
    )
    return frame[[*axes, *COLUMNS, *ABOUT, "record", "config", "weights"]]


def _words(scores: pd.DataFrame, text_of: Callable[[str], str | None]) -> pd.Series:
    """A column of text computed from each row's run; a missing text is None, even if the whole column is missing."""
    return pd.Series([text_of(run) for run in scores["run"]], index=scores.index, dtype=object)


def _result(store: Store, run: str) -> Mapping[str, Any]:
    """The result of a run; empty if there is none or if it is damaged, which the column `conflict` reports."""
    return store.run(run).result_if_readable() or {}


def _record(store: Store, run: str, result: Mapping[str, Any]) -> str | None:
    file = result.get("wandb")
    return None if file is None else str((store.run(run).path / file).relative_to(store.root))
