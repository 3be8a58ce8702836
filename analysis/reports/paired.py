"""The comparison of two rows of a sweep example by example: where they differ most, and how often each is ahead.

Both rows were evaluated on the same examples. The score of an example is its mean over the seeds of a row. The result describes
these runs on these examples; whether the rows differ in general, `analysis.statistics.compare` decides, which includes both
sources of error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from analysis import names
from analysis.records.frame import Sweep
from analysis.records.scenes import Scenes, scenes
from analysis.statistics.samples import Group, groups, plain
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.settings.spelling import nearest

SHOWN = 10  # examples that a notebook shows


@dataclass(frozen=True)
class Paired:
    """The scores of m examples of a split in two rows of a sweep."""

    names: tuple[str, str]  # names of the rows
    task: str
    split: str
    seeds: tuple[int, int]  # number of seeds of each row
    scores: np.ndarray  # 2 m: means over seeds, on the metric's scale
    scenes: Scenes | None  # None if the pictures are not available

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per example, the largest differences first.

        Columns: question and answer (if available), the score of each row, and difference (the first minus the second). The index
        is the example's number in its split.
        """
        first, second = self.scores
        frame = pd.DataFrame({self.names[0]: first, self.names[1]: second, "difference": first - second})
        if self.scenes is not None:
            m = len(frame)
            frame.insert(0, "question", self.scenes.questions[:m])
            frame.insert(1, "answer", [text or "(the box)" for text in self.scenes.answers[:m]])
        frame.index.name = "example"
        return frame.sort_values("difference", key=lambda column: -column.abs(), kind="stable")

    @property
    def summary(self) -> pd.Series:
        """The number of examples, how many of them each row is ahead on, how many are level, and the mean difference."""
        difference = self.frame["difference"]
        return pd.Series(
            {
                "examples": len(difference),
                f"{self.names[0]} ahead": int((difference > 0).sum()),
                f"{self.names[1]} ahead": int((difference < 0).sum()),
                "level": int((difference == 0).sum()),
                "mean difference": float(difference.mean()),
            }
        )

    def __repr__(self) -> str:
        summary = ", ".join(f"{key} {value:,.4g}" for key, value in self.summary.items())
        return f"<{self.names[0]} and {self.names[1]} on {names.task(self.task)}, {names.split(self.split, self.task)}: {summary}>"

    def _repr_html_(self) -> str:
        return self.html()

    def html(self, count: int = SHOWN) -> str:
        """The `count` examples that differ most, with their pictures, as HTML."""
        summary = "; ".join(f"{key} {value:,.4g}" for key, value in self.summary.items())
        n = " and ".join(dict.fromkeys(map(str, self.seeds)))
        where = f"{names.task(self.task)}, {names.split(self.split, self.task)}"
        caption = f"{where}: {summary}. Scores are means over n = {n} seeds; of these runs alone."
        first = self.frame.head(count)
        heads = ["example", *(["picture"] if self.scenes else []), *first.columns]
        body = "".join(self._line(example, values) for example, *values in first.itertuples(name=None))
        head = "".join(f"<th>{escape(text)}</th>" for text in heads)
        return f"<p>{escape(caption)}</p>\n<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _line(self, example: int, values: Sequence[Any]) -> str:
        cells = "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        return f"<tr><th>{example}</th>{self._picture(example)}{cells}</tr>"

    def _picture(self, example: int) -> str:
        if self.scenes is None:
            return ""
        return f'<td><img alt="the scene of example {example}" src="{self.scenes.data_uri(example)}"></td>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def paired(sweep: Sweep, first: str, second: str, task: str | None, split: str | None, at: Mapping[str, Any]) -> Paired:
    """Compares two rows example by example.

    `first`, `second`: the rows' names in a table. `task`: None for the sweep's first. `split`: None for the first that tables
    show. `at`: values of further axes, where a row's name alone matches several cells. Raises StoreError for a row, task or cell
    that does not exist, and if scores of single examples are not available.
    """
    name, task = sweep.manifest["sweep"], task or next(iter(sweep.tasks))
    shown_splits = [split for of, split in sweep.shown if of == task]
    if not shown_splits:
        raise StoreError(f"{name} has no task {task}{nearest(task, sweep.tasks)}; it has {', '.join(sweep.tasks)}")
    split = split or shown_splits[0]
    cells = [_cell(sweep, name, task, split, at) for name in (first, second)]
    scores = [cell.sample().examples for cell in cells]
    if scores[0] is None or scores[1] is None:
        raise StoreError(
            f"{sweep.manifest['sweep']}: the scores of single examples of {task}, {split}, are not available"
        )
    if len(scores[0]) != len(scores[1]):
        raise StoreError(f"{first} was asked {len(scores[0])} examples of {split}, {second} {len(scores[1])}")
    run = cells[0].rows["run"].iloc[0]
    pictures = None if sweep.store is None else scenes(sweep.store.run(run), split)
    seeds = len(cells[0].seeds), len(cells[1].seeds)
    return Paired((first, second), task, split, seeds, np.stack(scores), pictures)  # type: ignore[arg-type]


def _cell(sweep: Sweep, name: str, task: str, split: str, at: Mapping[str, Any]) -> Group:
    """The one cell of a row on this task and split. Raises StoreError if there is none or several."""
    candidates = [group for group in groups(sweep) if (group.label["task"], group.label["split"]) == (task, split)]
    candidates = [
        group
        for group in candidates
        if all(_is_same(group.rows[key].iloc[0], value) for key, value in at.items() if key in group.rows)
    ]
    labels = {_row_name(sweep, group): group for group in candidates}
    matching = [group for group in candidates if name in (_row_name(sweep, group), str(group.label[sweep.compare]))]
    if len(matching) == 1:
        return matching[0]
    where, row_names = f"{sweep.manifest['sweep']} on {task}, {split}:", ", ".join(labels)
    if not matching:
        raise StoreError(f"{where} there is no row {name!r}{nearest(name, labels)}; there are {row_names}")
    differing_labels = [key for key in matching[0].label if len({str(group.label[key]) for group in matching}) > 1]
    choices = "; ".join(
        f"{key}: {', '.join(as_text(plain(group.label[key])) for group in matching)}" for key in differing_labels
    )
    raise StoreError(f"{where} there are {len(matching)} cells of {name!r}; choose one by {choices}")


def _is_same(value: Any, expected: Any) -> bool:
    return bool(value == expected) or str(value) == str(expected)


def _row_name(sweep: Sweep, group: Group) -> str:
    return " ".join(str(value) for key, value in group.label.items() if key not in ("task", "split", sweep.over))
