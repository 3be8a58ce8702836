"""The runs of a sweep as samples: of each table cell the scores by seed, and the scores of the examples behind them.

Two things make a reported score uncertain: the seed, and that the test set is one sample of examples. Both are kept apart
here and put together in `analysis.inference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import WRONG, Sweep
from analysis.inference import Sample
from mmprompt.families.registry import PRIMARY_METRIC, highest
from mmprompt.runs.overrides import as_text

SEEDS_ALONE = "Intervals cover seeds alone: the scores of single examples are not at hand."
KEPT = "kept"  # the share of its own score that a run keeps, in percent


def metric_range(metric: str) -> tuple[float, float]:
    """The lowest and the highest value that a metric can have; what runs took has no highest."""
    return 0.0, highest(metric) if metric in PRIMARY_METRIC.values() else math.inf


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one table cell: a row, a task, a split."""

    label: dict[str, Any]  # by `Sweep.roles`, then task and split
    rows: pd.DataFrame  # of `Sweep.scores`, with the column `kept` where the sweep asks for it
    sweep: Sweep

    @property
    def metric(self) -> str:
        return str(self.rows["metric"].iloc[0])

    @property
    def family(self) -> str:
        """The task's."""
        return str(self.sweep.manifest["tasks"][self.label["task"]]["family"])

    @property
    def words(self) -> str:
        """What names it, as `analysis trace` reads it: `prompt.length=64 task=micro_vqa split=test`."""
        return " ".join(f"{key}={as_text(plain(value))}" for key, value in self.label.items())

    @property
    def is_in_doubt(self) -> bool:
        """Whether a score is: then there are none, as the mean of the others would be that of a choice."""
        return bool(self.rows["state"].isin(WRONG).any())

    @property
    def is_baseline(self) -> bool:
        return bool(self.rows["baseline"].all())

    @property
    def seeds(self) -> list[Any]:
        """Those that have a score."""
        return list(self.rows.loc[self.rows["value"].notna(), "seed"]) if "seed" in self.rows else []

    def sample(self, what: str = "value", seeds: Sequence[Any] | None = None) -> Sample:
        """`what`: value, or kept. `seeds`: these alone, in this order; None: all that have a value."""
        key = (what, None if seeds is None else tuple(seeds))
        if key not in self._samples:
            self._samples[key] = self._sample(what, seeds)
        return self._samples[key]

    @cached_property
    def _samples(self) -> dict[Any, Sample]:
        """Those that were asked for: of one cell, by its table, its differences, its trend and its claims."""
        return {}

    def _sample(self, what: str, seeds: Sequence[Any] | None) -> Sample:
        rows = self.rows[self.rows[what].notna()]
        if seeds is not None:
            rows = rows.set_index("seed", drop=False).loc[list(seeds)]
        wholes = rows["whole_evaluation"] if what == KEPT else [None] * len(rows)
        examples = [self._examples(*of) for of in zip(rows["run"], rows["evaluation"], wholes, strict=True)]
        known = [one for one in examples if one is not None]
        whole = len(known) == len(rows) > 0 and len({len(one) for one in known}) == 1
        return Sample(rows[what].to_numpy(float), np.mean(known, axis=0) if whole else None)

    def _examples(self, run: str, evaluation: str, of_whole: str | None) -> np.ndarray | None:
        """Of one run, an array of m whose mean is its value; or the share of that of `of_whole`, an evaluation, in percent."""
        now = self.sweep.examples(run, evaluation)
        if of_whole is None or now is None:
            return now
        whole = self.sweep.examples(run, of_whole)
        if whole is None or len(whole) != len(now) or not whole.mean():
            return None
        # A ratio of two means of the same examples: each example as far as it moves the ratio (delta method).
        share = now.mean() / whole.mean()
        return 100 * (share + (now - share * whole) / whole.mean())


@lru_cache(maxsize=4)  # a report asks for them again and again
def groups(sweep: Sweep) -> tuple[Group, ...]:
    """Of every cell and split, in the order of the points."""
    scores = with_kept(sweep) if sweep.manifest["kept_from"] is not None else sweep.scores
    keys = [*sweep.roles, "task", "split"]
    return tuple(
        Group(dict(zip(keys, label, strict=True)), _sound(rows), sweep)
        for label, rows in scores.groupby(keys, sort=False)
    )


def plain(value: Any) -> Any:
    """A number of numpy's as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def has_examples(sweep: Sweep) -> bool:
    """Whether the scores of single examples are at hand for any cell; not where a sweep is read from a server alone."""
    return any(group.sample().examples is not None for group in groups(sweep))


def _sound(rows: pd.DataFrame) -> pd.DataFrame:
    """A cell's scores; none of them where one is in doubt: the mean of the others would be that of a choice."""
    if not rows["state"].isin(WRONG).any():
        return rows
    return rows.assign(**{what: math.nan for what in ("value", KEPT) if what in rows})


def with_kept(sweep: Sweep) -> pd.DataFrame:
    """`Sweep.scores` with `kept`, the percent of the score that the same run has at the value of `over` that the manifest
    names, and `whole_evaluation`, the evaluation of that score."""
    over, scores = sweep.over, sweep.scores
    keys = [name for name in (*sweep.roles, "task", "split", "run") if name != over]
    at = scores[scores[over] == sweep.manifest["kept_from"]].drop_duplicates(keys).set_index(keys)
    place = pd.MultiIndex.from_frame(scores[keys])
    whole = pd.Series(place.map(at["value"].to_dict()), index=scores.index, dtype="float64").replace(0.0, np.nan)
    evaluations = pd.Series(place.map(at["evaluation"].to_dict()), index=scores.index, dtype=object)
    return scores.assign(kept=100 * scores["value"] / whole, whole_evaluation=evaluations)


@dataclass(frozen=True)
class Row:
    """A row of a table with all of its columns: what is compared as a whole."""

    label: dict[str, Any]  # by `Sweep.roles`, without the axis that rows are followed over
    values: dict[str, Any]  # of every axis but task, seed and that one
    samples: dict[str, Sample]  # by task; of several splits, or of several values of that axis, their mean
    is_baseline: bool


def rows(sweep: Sweep, quantity: str = "score") -> list[Row]:
    """`quantity`: score (on what tables show), kept (its mean over what is above the value it is kept from), or a fact that
    runs record."""
    labels = [name for name in sweep.roles if name != sweep.over]
    axes = [axis for axis in sweep.manifest["axes"] if axis not in ("task", "seed", sweep.over)]
    found: dict[tuple[Any, ...], Row] = {}
    for (*label, task), those in _by_row(sweep, labels, quantity).items():
        first = those[0].rows.iloc[0]
        known = dict(zip(labels, label, strict=True)), {axis: first[axis] for axis in axes}
        row = found.setdefault(tuple(label), Row(*known, {}, those[0].is_baseline))
        sample = _of_fact(those[0], quantity) if quantity not in ("score", KEPT) else _together(those, quantity)
        if sample.n:
            row.samples[task] = sample
    return list(found.values())


def _by_row(sweep: Sweep, labels: list[str], quantity: str) -> dict[tuple[Any, ...], list[Group]]:
    """By the labels and the task, the cells that are taken together."""
    cells: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups(sweep):
        task, split = group.label["task"], group.label["split"]
        is_whole = quantity == KEPT and group.label[str(sweep.over)] == sweep.manifest["kept_from"]
        if (task, split) in sweep.shown and not is_whole:
            cells.setdefault((*(group.label[name] for name in labels), task), []).append(group)
    return cells


def _of_fact(group: Group, fact: str) -> Sample:
    runs = group.rows.drop_duplicates("run")
    return Sample(runs.loc[runs[fact].notna(), fact].to_numpy(float), None)


def _together(those: list[Group], quantity: str) -> Sample:
    """The mean of several cells of the same runs, as a sample over the seeds that all of them have."""
    what = "value" if quantity == "score" else KEPT
    if len(those) == 1:
        return those[0].sample(what)
    seeds = [seed for seed in those[0].seeds if all(seed in group.seeds for group in those)]
    by_split: dict[str, list[Sample]] = {}
    for group in those:
        by_split.setdefault(group.label["split"], []).append(group.sample(what, seeds))
    scores = np.mean([sample.scores for samples in by_split.values() for sample in samples], axis=0)
    of_splits = [_mean_of([sample.examples for sample in samples]) for samples in by_split.values()]
    return Sample(scores, _side_by_side(of_splits))


def _mean_of(examples: list[np.ndarray | None]) -> np.ndarray | None:
    """Of the same examples, several times."""
    known = [one for one in examples if one is not None]
    return np.mean(known, axis=0) if len(known) == len(examples) and len({len(one) for one in known}) == 1 else None


def _side_by_side(examples: list[np.ndarray | None]) -> np.ndarray | None:
    """Of K splits of m_k examples, M in all, an array of M with the mean of their means, and the variance of that mean.

    Each deviation is stretched by M / (K m_k), so that sum(s_k^2 / m_k) / K^2 is what M examples of it have.
    """
    known = [one for one in examples if one is not None]
    if len(known) < len(examples) or not known:
        return None
    mean, whole = np.mean([one.mean() for one in known]), sum(map(len, known))
    return np.concatenate([mean + (one - one.mean()) * whole / (len(known) * len(one)) for one in known])
