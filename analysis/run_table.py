"""The runs behind a table, one row per run and split: all that a reader needs to compute a cell again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from analysis.frame import Sweep
from mmprompt.runs.store import Store

ABOUT = ("attempt", "commit", "dirty", "device")
COLUMNS = ("task", "seed", "split", "metric", "value", "examples", "state", "conflict", "run", "evaluation")


def run_table(sweep: Sweep, store: Store) -> pd.DataFrame:
    """Columns: the sweep's axes, then task, seed, split, metric, value (at full precision), examples (of the split; NaN where
    their scores are not at hand), state, conflict, run (its id), evaluation (its id), attempt, commit, dirty, device; record (the
    W&B file) and config, below the store; weights (sha256 of the file). The index is that of `Sweep.scores`.
    """
    scores = sweep.scores
    axes = [axis for axis in sweep.manifest["axes"] if axis not in ("task", "seed")]
    results = {run: _result(store, run) for run in scores["run"].unique()}
    of = scores[["run", "evaluation"]].where(scores["conflict"].isna())  # else the file itself may be damaged
    examples = [sweep.examples(*one) for one in of.itertuples(index=False, name=None)]
    frame = scores[axes].assign(
        **{key: scores.get(key) for key in COLUMNS if key != "examples"},
        examples=[len(one) if one is not None else float("nan") for one in examples],
        **{key: scores[key] for key in ABOUT},
        record=_words(scores, lambda run: _record(store, run, results[run])),
        config=[str(store.run(run).config_file.relative_to(store.root)) for run in scores["run"]],
        weights=_words(scores, lambda run: results[run].get("weights")),
    )
    return frame[[*axes, *COLUMNS, *ABOUT, "record", "config", "weights"]]


def _words(scores: pd.DataFrame, of: Callable[[str], str | None]) -> pd.Series:
    """Of each row's run; None where there is none, also in a column that has nothing else."""
    return pd.Series([of(run) for run in scores["run"]], index=scores.index, dtype=object)


def _result(store: Store, run: str) -> Mapping[str, Any]:
    """Empty where there is none, or a damaged one: that stands in `conflict`."""
    return store.run(run).result_if_readable() or {}


def _record(store: Store, run: str, result: Mapping[str, Any]) -> str | None:
    file = result.get("wandb")
    return None if file is None else str((store.run(run).path / file).relative_to(store.root))
