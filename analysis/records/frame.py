"""A sweep as one tidy frame, with the views that tables and figures are made from. `analysis.records.reading` assembles it.

The states of a point are done, not evaluated (trained, but an evaluation is missing), failed, diverged, not done, conflict (files
or records contradict each other) and unreadable (a file is damaged). Whether a run is running, `sweeps` reports.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.manifest import UNSET, axis_value
from analysis.records.stored import Unreadable, read_evaluation
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

WRONG = ("conflict", "unreadable")  # states of points with no value to show
ABOUT = ("attempt", "best_step", "commit", "dirty", "device")  # columns that describe a run besides its facts


@dataclass(frozen=True, eq=False)
class Sweep:
    """A manifest, and its points as a frame.

    `frame` has a row per point. Columns: the axes, run, state, metric (the task's), source (wandb or result.json), the names in
    `ABOUT` and `FACTS`, and for each evaluated split `split/evaluation` (its id), `split/metric` (the value) and, where there is
    a conflict, `split/conflict` (the reason why there is no value). Further metrics (`Family.further`) have columns
    `split/metric` too, NaN where they were not computed.
    """

    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]  # sentences for the reader of the numbers, the conflicts first
    conflicts: tuple[str, ...] = ()  # the conflicts among the notes, a sentence each
    store: Store | None = None  # the store that holds its runs

    def examples(self, run: str, evaluation: str) -> np.ndarray | None:
        """The scores of an evaluation's examples, shape (m,), on the metric's scale; None if the store has no file of them.

        Raises StoreError if the file is damaged.
        """
        if self.store is None or math.isnan(attempt := self._attempts.get(run, math.nan)):
            return None
        try:
            return read_evaluation(self.store.run(run), int(attempt), evaluation).scores
        except Unreadable as error:
            raise StoreError(f"run {run}: {error}") from None

    @cached_property
    def _attempts(self) -> dict[str, float]:
        """The published attempt of each run."""
        return dict(zip(self.frame["run"], self.frame["attempt"].astype("float64"), strict=True))

    @cached_property
    def roles(self) -> dict[str, list[str]]:
        """The columns that together identify a row, in their order, each with the axes whose values it joins.

        The compared axes (`compare`) form one column, and so do the axes of `each`, if there are any.
        """
        each, compare, over = self.manifest["each"], self.manifest["compare"], self.over
        joined = [each, [compare] if isinstance(compare, str) else compare, [] if over is None else [over]]
        return {axes[0]: list(axes) for axes in [*joined, *([axis] for axis in self.extra_axes)] if axes}

    @property
    def compare(self) -> str:
        """The column of the compared axis: the rows of a table, the x axis of a figure."""
        compare = self.manifest["compare"]
        return compare if isinstance(compare, str) else str(compare[0])

    @property
    def over(self) -> str | None:
        """The axis along which a row has several values, such as the strength of an attack."""
        return self.manifest["over"]

    @cached_property
    def extra_axes(self) -> list[str]:
        """Axes without a role in the sweep's file that take several values: each combination is a row of its own."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() > 1]

    @property
    def settled_axes(self) -> list[str]:
        """Axes without a role in the sweep's file that take one value, which the caption states."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() == 1]

    @property
    def _other_axes(self) -> list[str]:
        compare = self.manifest["compare"]
        axes_with_role = {
            "task",
            "seed",
            self.over,
            *self.manifest["each"],
            *([compare] if isinstance(compare, str) else compare),
        }
        return [axis for axis in self.manifest["axes"] if axis not in axes_with_role]

    @property
    def tasks(self) -> dict[str, str]:
        """Each task and its metric, in the order of the manifest."""
        return {task: about["metric"] for task, about in self.manifest["tasks"].items()}

    @cached_property
    def evaluated_splits(self) -> dict[str, list[str]]:
        """The splits on which the runs of each task are evaluated."""
        splits: dict[str, list[str]] = {task: [] for task in self.tasks}
        for point in self.manifest["points"]:
            task = point["values"].get("task", next(iter(self.tasks)))
            splits[task] += [split for split in point["evaluations"] if split not in splits[task]]
        return splits

    @cached_property
    def splits(self) -> list[str]:
        """All evaluated splits, over all tasks."""
        return list(dict.fromkeys(split for splits in self.evaluated_splits.values() for split in splits))

    @property
    def validation(self) -> dict[str, str]:
        """The split of each task on which choices are made. Older manifests do not name it; there it is val."""
        return {task: about.get("validation", "val") for task, about in self.manifest["tasks"].items()}

    @cached_property
    def shown(self) -> list[tuple[str, str]]:
        """The (task, split) pairs that tables and figures show: the manifest's splits, otherwise all but validation. Validation is
        shown of a task that has scores on no other split, such as VQA."""
        named, validation = self.manifest["splits"], self.validation
        return [
            (task, split)
            for task, splits in self.evaluated_splits.items()
            for split in splits
            if (split in named if named is not None else split != validation[task] or splits == [split])
        ]

    @cached_property
    def named(self) -> pd.DataFrame:
        """`frame` with the label columns of its rows, `baseline`: whether it is the baseline, and `point`: its index in `frame`.

        A label joins the values of its axes: "bitfit all" where method and bitfit.rule are compared together. It has the name
        of the first of them and replaces its values, which `frame` still has.
        """
        labels = {name: joined(self.frame, axes) for name, axes in self.roles.items()}
        return self.frame.assign(**labels, baseline=self._is_baseline(), point=self.frame.index)

    def _is_baseline(self) -> pd.Series:
        """Whether each point belongs to the baseline, judged by the axes that its row's labels contain."""
        baseline = self.manifest["baseline"] or {}
        axes_of_baseline = [axis for axes in self.roles.values() for axis in axes if axis in baseline]
        is_baseline = pd.Series(bool(axes_of_baseline), index=self.frame.index)
        for axis in axes_of_baseline:
            is_baseline &= self.frame[axis] == axis_value(baseline, axis)
        return is_baseline

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The scores in long form: a row per point and split.

        Columns besides those of `named`: split; evaluation (its id); value (the task's metric on the split, NaN without one);
        conflict (why there is no value although there are numbers, otherwise None). `state` is the state of this evaluation.
        """
        named, tasks = self.named, self.evaluated_splits
        parts = []
        for split in self.splits:
            rows = named[named["task"].map({task: split in splits for task, splits in tasks.items()})]
            conflict = self._text_column(f"{split}/conflict").loc[rows.index]
            value = self._values(split).loc[rows.index]
            elsewhere = rows["state"].isin(WRONG) & conflict.isna()  # another split of the same run has the conflict
            state = (
                rows["state"].mask(elsewhere & value.notna(), "done").mask(elsewhere & value.isna(), "not evaluated")
            )
            evaluation = self._text_column(f"{split}/evaluation").loc[rows.index]
            parts.append(rows.assign(split=split, evaluation=evaluation, value=value, conflict=conflict, state=state))
        return pd.concat(parts, ignore_index=True)

    def _values(self, split: str) -> pd.Series:
        metrics = self.frame["metric"]
        values = pd.Series(math.nan, index=self.frame.index)
        for metric in metrics.unique():
            if (column := f"{split}/{metric}") in self.frame:
                values = values.mask(metrics == metric, self.frame[column].astype("float64"))
        return values

    def _text_column(self, column: str) -> pd.Series:
        """A column of text, with None where a row has none."""
        texts = self.frame.get(column, pd.Series(None, index=self.frame.index, dtype=object)).astype(object)
        return texts.where(texts.notna(), None)


def joined(frame: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """Returns a value per row: its value on the one axis, or the values it has on several axes, joined as text."""
    if len(axes) == 1:
        return frame[axes[0]]
    rows = frame[list(axes)].itertuples(index=False, name=None)
    texts = [" ".join(str(value) for value in row if value != UNSET) or UNSET for row in rows]
    return pd.Series(texts, index=frame.index, dtype=object)
