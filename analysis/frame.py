"""A sweep as one tidy frame, and the views of it that tables and figures are made of. `analysis.reading` puts it together.

States of a point are done, not evaluated (trained, but not asked all), failed, diverged, not done, conflict (what is there does
not belong together) and unreadable (a file is damaged); whether a run is running is for `sweeps` to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.manifest import UNSET, axis_value
from analysis.stored import Unreadable, read_evaluation
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

WRONG = ("conflict", "unreadable")  # states of points with no value to show
ABOUT = ("attempt", "best_step", "commit", "dirty", "device")  # what else is said of a run


@dataclass(frozen=True, eq=False)
class Sweep:
    """A manifest, and its points as a frame.

    `frame` has a row per point: a column per axis, then run, state, metric (the task's), source (wandb or result.json), what
    `ABOUT` and `FACTS` name, and for each split that is asked `split/evaluation` (its id), `split/metric` for each value found,
    `split/conflict` where there is one: why there is no value. Further metrics (`Family.further`) have columns of the kind too,
    NaN where they were not computed.
    """

    manifest: dict[str, Any]
    frame: pd.DataFrame
    notes: tuple[str, ...]  # what a reader of the numbers has to know; what does not belong together comes first
    conflicts: tuple[str, ...] = ()  # of these the latter: a sentence for each thing that is wrong
    store: Store | None = None  # where its runs are

    def examples(self, run: str, evaluation: str) -> np.ndarray | None:
        """The score of each example, shape (m,), on the metric's scale; None where the store does not have the file.

        Raises StoreError if that is damaged.
        """
        if self.store is None or math.isnan(attempt := self._attempts.get(run, math.nan)):
            return None
        try:
            return read_evaluation(self.store.run(run), int(attempt), evaluation).scores
        except Unreadable as error:
            raise StoreError(f"run {run}: {error}") from None

    @cached_property
    def _attempts(self) -> dict[str, float]:
        """Of each run the one whose files are its."""
        return dict(zip(self.frame["run"], self.frame["attempt"].astype("float64"), strict=True))

    @cached_property
    def roles(self) -> dict[str, list[str]]:
        """The columns that together name a row, in their order, and the axes whose values each of them joins.

        The axes that are compared are one of them, as are those that it is done for each of, where there are any.
        """
        each, compare, over = self.manifest["each"], self.manifest["compare"], self.over
        joined = [each, [compare] if isinstance(compare, str) else compare, [] if over is None else [over]]
        return {axes[0]: list(axes) for axes in [*joined, *([axis] for axis in self.extra_axes)] if axes}

    @property
    def compare(self) -> str:
        """The column of what is compared: a table's rows, a figure's x."""
        compare = self.manifest["compare"]
        return compare if isinstance(compare, str) else str(compare[0])

    @property
    def over(self) -> str | None:
        """The axis along which each row is followed."""
        return self.manifest["over"]

    @cached_property
    def extra_axes(self) -> list[str]:
        """Axes of which a sweep says nothing and that take several values: each combination is a row of its own."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() > 1]

    @property
    def settled_axes(self) -> list[str]:
        """Those that take one value, which a caption says."""
        return [axis for axis in self._other_axes if self.frame[axis].nunique() == 1]

    @property
    def _other_axes(self) -> list[str]:
        compare = self.manifest["compare"]
        known = {
            "task",
            "seed",
            self.over,
            *self.manifest["each"],
            *([compare] if isinstance(compare, str) else compare),
        }
        return [axis for axis in self.manifest["axes"] if axis not in known]

    @property
    def tasks(self) -> dict[str, str]:
        """Each task and its metric, in the order of the manifest."""
        return {task: about["metric"] for task, about in self.manifest["tasks"].items()}

    @cached_property
    def asked(self) -> dict[str, list[str]]:
        """The splits that each task is asked."""
        splits: dict[str, list[str]] = {task: [] for task in self.tasks}
        for point in self.manifest["points"]:
            task = point["values"].get("task", next(iter(self.tasks)))
            splits[task] += [split for split in point["evaluations"] if split not in splits[task]]
        return splits

    @cached_property
    def splits(self) -> list[str]:
        """All that the sweep asks for."""
        return list(dict.fromkeys(split for splits in self.asked.values() for split in splits))

    @property
    def validation(self) -> dict[str, str]:
        """Of each task the split on which choices are made; val where the manifest is older than tasks that call it otherwise."""
        return {task: about.get("validation", "val") for task, about in self.manifest["tasks"].items()}

    @cached_property
    def shown(self) -> list[tuple[str, str]]:
        """Task and split of what tables and figures show: the splits that the manifest names, else all but validation."""
        named, validation = self.manifest["splits"], self.validation
        return [
            (task, split)
            for task, splits in self.asked.items()
            for split in splits
            if (split in named if named is not None else split != validation[task])
        ]

    @cached_property
    def named(self) -> pd.DataFrame:
        """`frame` with the columns that name its rows, "bitfit all" where method and bitfit.rule are compared together, and
        whether they are the baseline's.
        """
        labels = {name: joined(self.frame, axes) for name, axes in self.roles.items()}
        return self.frame.assign(**labels, baseline=self._of_baseline())

    def _of_baseline(self) -> pd.Series:
        """Which points are what the sweep is measured against, as far as their rows' labels say it."""
        baseline = self.manifest["baseline"] or {}
        wanted = [axis for axes in self.roles.values() for axis in axes if axis in baseline]
        found = pd.Series(bool(wanted), index=self.frame.index)
        for axis in wanted:
            found &= self.frame[axis] == axis_value(baseline, axis)
        return found

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Long form: a row per point and split.

        Columns besides those of `named`: split; evaluation, its id; value, the task's metric there, NaN without one; conflict,
        why there is none though there are numbers, else None. `state` is that of this evaluation.
        """
        named, tasks = self.named, self.asked
        parts = []
        for split in self.splits:
            rows = named[named["task"].map({task: split in splits for task, splits in tasks.items()})]
            conflict = self._told(f"{split}/conflict").loc[rows.index]
            value = self._values(split).loc[rows.index]
            elsewhere = rows["state"].isin(WRONG) & conflict.isna()  # of another split of the same run
            state = (
                rows["state"].mask(elsewhere & value.notna(), "done").mask(elsewhere & value.isna(), "not evaluated")
            )
            evaluation = self._told(f"{split}/evaluation").loc[rows.index]
            parts.append(rows.assign(split=split, evaluation=evaluation, value=value, conflict=conflict, state=state))
        return pd.concat(parts, ignore_index=True)

    def _values(self, split: str) -> pd.Series:
        metrics = self.frame["metric"]
        found = pd.Series(math.nan, index=self.frame.index)
        for metric in metrics.unique():
            if (column := f"{split}/{metric}") in self.frame:
                found = found.mask(metrics == metric, self.frame[column].astype("float64"))
        return found

    def _told(self, column: str) -> pd.Series:
        """A column of text, None where there is none."""
        texts = self.frame.get(column, pd.Series(None, index=self.frame.index, dtype=object)).astype(object)
        return texts.where(texts.notna(), None)


def joined(frame: pd.DataFrame, axes: Sequence[str]) -> pd.Series:
    """A value per row: that on the axis; on several axes all that the row has, as text."""
    if len(axes) == 1:
        return frame[axes[0]]
    rows = frame[list(axes)].itertuples(index=False, name=None)
    texts = [" ".join(str(value) for value in row if value != UNSET) or UNSET for row in rows]
    return pd.Series(texts, index=frame.index, dtype=object)
