"""The runs of a sweep as samples: for each table cell the scores by seed, and the scores of the examples behind them.

A reported score is uncertain for two reasons: the seed, and the test set, which is one sample of examples. They are kept separate
here and combined in `analysis.statistics.inference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.frame import WRONG, Sweep
from analysis.statistics.inference import Sample
from mmprompt.families.registry import PRIMARY_METRIC, highest
from mmprompt.runs.overrides import as_text

SEEDS_ALONE = "Intervals cover seeds alone: the scores of single examples are not available."
KEPT = "kept"  # the share of its own score that a run keeps, in percent


def metric_range(metric: str) -> tuple[float, float]:
    """The lowest and the highest possible value of a metric; facts of runs have no highest value."""
    return 0.0, highest(metric) if metric in PRIMARY_METRIC.values() else math.inf


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one table cell: a row, a task, a split."""

    label: dict[str, Any]  # keys: `Sweep.roles`, then task and split
    rows: pd.DataFrame  # rows of `Sweep.scores`, with the column `kept` if the sweep asks for it
    sweep: Sweep

    @property
    def metric(self) -> str:
        return str(self.rows["metric"].iloc[0])

    @property
    def family(self) -> str:
        """The family of the task."""
        return str(self.sweep.manifest["tasks"][self.label["task"]]["family"])

    @property
    def words(self) -> str:
        """The cell's name, as `analysis trace` reads it: `prompt.length=64 task=micro_vqa split=test`."""
        return " ".join(f"{key}={as_text(plain(value))}" for key, value in self.label.items())

    @property
    def is_in_doubt(self) -> bool:
        """Whether a run's score has a conflict. Then the cell has no scores at all: the mean of the rest would be selective."""
        return bool(self.rows["state"].isin(WRONG).any())

    @property
    def is_baseline(self) -> bool:
        return bool(self.rows["baseline"].all())

    @property
    def seeds(self) -> list[Any]:
        """The seeds that have a score."""
        return self.seeds_with("value")

    def seeds_with(self, column: str) -> list[Any]:
        """The seeds that have a value in this column: value or kept."""
        return list(self.rows.loc[self.rows[column].notna(), "seed"]) if "seed" in self.rows else []

    def sample(self, column: str = "value", seeds: Sequence[Any] | None = None) -> Sample:
        """Returns the cell's sample. `column`: value or kept. `seeds`: only these, in this order; None: all that have a value."""
        key = (column, None if seeds is None else tuple(seeds))
        if key not in self._samples:
            self._samples[key] = self._sample(column, seeds)
        return self._samples[key]

    @cached_property
    def _samples(self) -> dict[Any, Sample]:
        """A cache: table, differences, trend and claims of a cell need the same samples."""
        return {}

    def _sample(self, column: str, seeds: Sequence[Any] | None) -> Sample:
        rows = self.rows[self.rows[column].notna()]
        if seeds is not None:
            rows = rows.set_index("seed", drop=False).loc[list(seeds)]
        wholes = rows["whole_evaluation"] if column == KEPT else [None] * len(rows)
        examples = [self._examples(*ids) for ids in zip(rows["run"], rows["evaluation"], wholes, strict=True)]
        available = [one for one in examples if one is not None]
        is_complete = len(available) == len(rows) > 0 and len({len(one) for one in available}) == 1
        return Sample(rows[column].to_numpy(float), np.mean(available, axis=0) if is_complete else None)

    def _examples(self, run: str, evaluation: str, reference_evaluation: str | None) -> np.ndarray | None:
        """The scores of a run's examples, shape (m,), whose mean is its value.

        With `reference_evaluation`, the id of another evaluation, their mean is the value in percent of that evaluation's value.
        """
        own_scores = self.sweep.examples(run, evaluation)
        if reference_evaluation is None or own_scores is None:
            return own_scores
        reference = self.sweep.examples(run, reference_evaluation)
        if reference is None or len(reference) != len(own_scores) or not reference.mean():
            return None
        # The ratio of two means of the same examples. Each example counts by its influence on the ratio (delta method).
        share = own_scores.mean() / reference.mean()
        return 100 * (share + (own_scores - share * reference) / reference.mean())


@lru_cache(maxsize=4)  # a report needs them many times
def groups(sweep: Sweep) -> tuple[Group, ...]:
    """The group of every cell and split, in the order of the points."""
    scores = with_kept(sweep) if sweep.manifest["kept_from"] is not None else sweep.scores
    keys = [*sweep.roles, "task", "split"]
    return tuple(
        Group(dict(zip(keys, label, strict=True)), _without_conflicts(rows), sweep)
        for label, rows in scores.groupby(keys, sort=False)
    )


def plain(value: Any) -> Any:
    """Converts a NumPy scalar to a Python number."""
    return value.item() if isinstance(value, np.generic) else value


def has_examples(sweep: Sweep) -> bool:
    """Whether scores of single examples are available for any cell. They are not if a sweep is read from a server alone."""
    return any(group.sample().examples is not None for group in groups(sweep))


def _without_conflicts(rows: pd.DataFrame) -> pd.DataFrame:
    """A cell's scores; without any value if one has a conflict, as the mean of the rest would be selective."""
    if not rows["state"].isin(WRONG).any():
        return rows
    return rows.assign(**{what: math.nan for what in ("value", KEPT) if what in rows})


def with_kept(sweep: Sweep) -> pd.DataFrame:
    """Returns `Sweep.scores` with two more columns.

    `kept`: the score in percent of the same run's score at the manifest's value `kept_from` of the axis `over`.
    `whole_evaluation`: the evaluation of that other score.
    """
    over, scores = sweep.over, sweep.scores
    keys = [name for name in (*sweep.roles, "task", "split", "run") if name != over]
    reference_rows = scores[scores[over] == sweep.manifest["kept_from"]].drop_duplicates(keys).set_index(keys)
    row_keys = pd.MultiIndex.from_frame(scores[keys])
    reference_score = pd.Series(
        row_keys.map(reference_rows["value"].to_dict()), index=scores.index, dtype="float64"
    ).replace(0.0, np.nan)
    reference_evaluations = pd.Series(
        row_keys.map(reference_rows["evaluation"].to_dict()), index=scores.index, dtype=object
    )
    return scores.assign(kept=100 * scores["value"] / reference_score, whole_evaluation=reference_evaluations)


@dataclass(frozen=True)
class Row:
    """A row of a table over all of its columns, which claims compare as a whole."""

    label: dict[str, Any]  # keys: `Sweep.roles` without the axis `over`
    values: dict[str, Any]  # axis -> value, for every axis but task, seed and `over`
    samples: dict[str, Sample]  # by task; for several splits, or several values on the axis `over`, their mean
    is_baseline: bool


def rows(sweep: Sweep, quantity: str = "score") -> list[Row]:
    """Returns the rows of a sweep's table.

    `quantity`: score (on the splits that tables show), kept (its mean over all values of the axis `over` but the one it is kept
    from), or a fact that runs record.
    """
    labels = [name for name in sweep.roles if name != sweep.over]
    axes = [axis for axis in sweep.manifest["axes"] if axis not in ("task", "seed", sweep.over)]
    row_of: dict[tuple[Any, ...], Row] = {}
    for (*label, task), cells in _cells_of_rows(sweep, labels, quantity).items():
        point = sweep.frame.loc[cells[0].rows.iloc[0]["point"]]  # its own values, where a label has the name of an axis
        label_and_values = dict(zip(labels, label, strict=True)), {axis: point[axis] for axis in axes}
        row = row_of.setdefault(tuple(label), Row(*label_and_values, {}, cells[0].is_baseline))
        sample = (
            _fact_sample(cells[0], quantity) if quantity not in ("score", KEPT) else _mean_of_cells(cells, quantity)
        )
        if sample.n:
            row.samples[task] = sample
    return list(row_of.values())


def _cells_of_rows(sweep: Sweep, labels: list[str], quantity: str) -> dict[tuple[Any, ...], list[Group]]:
    """The cells that belong to one row and task, by the row's labels and the task."""
    cells: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups(sweep):
        task, split = group.label["task"], group.label["split"]
        is_whole = quantity == KEPT and group.label[str(sweep.over)] == sweep.manifest["kept_from"]
        if (task, split) in sweep.shown and not is_whole:
            cells.setdefault((*(group.label[name] for name in labels), task), []).append(group)
    return cells


def _fact_sample(group: Group, fact: str) -> Sample:
    runs = group.rows.drop_duplicates("run")
    return Sample(runs.loc[runs[fact].notna(), fact].to_numpy(float), None)


def _mean_of_cells(cells: list[Group], quantity: str) -> Sample:
    """The mean of several cells of the same runs, as a sample over the seeds that all of them have."""
    column = "value" if quantity == "score" else KEPT
    if len(cells) == 1:
        return cells[0].sample(column)
    seeds = [seed for seed in cells[0].seeds_with(column) if all(seed in group.seeds_with(column) for group in cells)]
    by_split: dict[str, list[Sample]] = {}
    for group in cells:
        by_split.setdefault(group.label["split"], []).append(group.sample(column, seeds))
    scores = np.mean([sample.scores for samples in by_split.values() for sample in samples], axis=0)
    of_splits = [_mean_over_cells([sample.examples for sample in samples]) for samples in by_split.values()]
    return Sample(scores, _joined_splits(of_splits))


def _mean_over_cells(examples: list[np.ndarray | None]) -> np.ndarray | None:
    """The mean of several arrays over the same examples, shape (m,); None if one is unknown or their lengths differ."""
    available = [scores for scores in examples if scores is not None]
    return (
        np.mean(available, axis=0)
        if len(available) == len(examples) and len({len(scores) for scores in available}) == 1
        else None
    )


def _joined_splits(examples: list[np.ndarray | None]) -> np.ndarray | None:
    """Joins the examples of K splits, m_k each and M in all, into one array of M examples for the mean of the splits' means.

    The array's mean is the mean of their means. Each deviation is scaled by M / (K m_k), so that the variance of the array's mean
    is that of the mean of means, sum(s_k^2 / m_k) / K^2. None if the examples of a split are unknown.
    """
    available = [scores for scores in examples if scores is not None]
    if len(available) < len(examples) or not available:
        return None
    mean, whole = np.mean([scores.mean() for scores in available]), sum(map(len, available))
    return np.concatenate(
        [mean + (scores - scores.mean()) * whole / (len(available) * len(scores)) for scores in available]
    )
