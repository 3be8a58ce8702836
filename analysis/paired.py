"""Two rows of a sweep, example by example: where they differ most, and how often each is ahead.

Both were asked the same examples. The score of an example is its mean over the seeds of a row. What is seen here is of these
runs on these examples; whether the rows differ is for `analysis.compare` to say, which takes both sources of error in.
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
from analysis.frame import Sweep
from analysis.samples import Group, groups, plain
from analysis.scenes import Scenes, scenes
from mmprompt.runs.config import nearest
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text

SHOWN = 10  # examples that a notebook shows


@dataclass(frozen=True)
class Paired:
    """m examples of a split under two rows of a sweep."""

    names: tuple[str, str]  # of the rows
    task: str
    split: str
    seeds: tuple[int, int]  # of each row
    scores: np.ndarray  # 2 m: means over seeds, on the metric's scale
    asked: Scenes | None  # None where the pictures are not at hand

    @cached_property
    def frame(self) -> pd.DataFrame:
        """A row per example, those with the largest differences first. Columns: question and answer (where at hand), the score
        of each row, and difference, the first less the second. The index is the example's number in its split."""
        first, second = self.scores
        frame = pd.DataFrame({self.names[0]: first, self.names[1]: second, "difference": first - second})
        if self.asked is not None:
            m = len(frame)
            frame.insert(0, "question", self.asked.questions[:m])
            frame.insert(1, "answer", [text or "(the box)" for text in self.asked.answers[:m]])
        frame.index.name = "example"
        return frame.sort_values("difference", key=lambda column: -column.abs(), kind="stable")

    @property
    def summary(self) -> pd.Series:
        """examples, how many the first and the second is ahead on, on how many they are level, and the mean difference."""
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
        said = ", ".join(f"{key} {value:,.4g}" for key, value in self.summary.items())
        return f"<{self.names[0]} and {self.names[1]} on {names.task(self.task)}, {names.split(self.split, self.task)}: {said}>"

    def _repr_html_(self) -> str:
        return self.html()

    def html(self, count: int = SHOWN) -> str:
        """The examples that differ most, with their pictures."""
        said = "; ".join(f"{key} {value:,.4g}" for key, value in self.summary.items())
        n = " and ".join(dict.fromkeys(map(str, self.seeds)))
        where = f"{names.task(self.task)}, {names.split(self.split, self.task)}"
        caption = f"{where}: {said}. Scores are means over n = {n} seeds; of these runs alone."
        first = self.frame.head(count)
        heads = ["example", *(["picture"] if self.asked else []), *first.columns]
        body = "".join(self._line(example, values) for example, *values in first.itertuples(name=None))
        head = "".join(f"<th>{escape(text)}</th>" for text in heads)
        return f"<p>{escape(caption)}</p>\n<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _line(self, example: int, values: Sequence[Any]) -> str:
        cells = "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        return f"<tr><th>{example}</th>{self._picture(example)}{cells}</tr>"

    def _picture(self, example: int) -> str:
        if self.asked is None:
            return ""
        return f'<td><img alt="the scene of example {example}" src="{self.asked.data_uri(example)}"></td>'


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def paired(sweep: Sweep, first: str, second: str, task: str | None, split: str | None, at: Mapping[str, Any]) -> Paired:
    """Two rows, as a table calls them, on a task (the sweep's first unless given) and a split (the first that tables show).
    `at`: values of further axes, where rows alone leave several cells.

    Raises StoreError for what is not there, and where the scores of single examples are not at hand.
    """
    name, task = sweep.manifest["sweep"], task or next(iter(sweep.tasks))
    shown = [split for of, split in sweep.shown if of == task]
    if not shown:
        raise StoreError(f"{name} has no task {task}{nearest(task, sweep.tasks)}; it has {', '.join(sweep.tasks)}")
    split = split or shown[0]
    cells = [_cell(sweep, name, task, split, at) for name in (first, second)]
    scores = [cell.sample().examples for cell in cells]
    if scores[0] is None or scores[1] is None:
        raise StoreError(
            f"{sweep.manifest['sweep']}: the scores of single examples of {task}, {split}, are not at hand"
        )
    if len(scores[0]) != len(scores[1]):
        raise StoreError(f"{first} was asked {len(scores[0])} examples of {split}, {second} {len(scores[1])}")
    run = cells[0].rows["run"].iloc[0]
    asked = None if sweep.store is None else scenes(sweep.store.run(run), split)
    seeds = len(cells[0].seeds), len(cells[1].seeds)
    return Paired((first, second), task, split, seeds, np.stack(scores), asked)  # type: ignore[arg-type]


def _cell(sweep: Sweep, name: str, task: str, split: str, at: Mapping[str, Any]) -> Group:
    """The one cell of a row on this task and split."""
    there = [group for group in groups(sweep) if (group.label["task"], group.label["split"]) == (task, split)]
    there = [
        group
        for group in there
        if all(_is(group.rows[key].iloc[0], value) for key, value in at.items() if key in group.rows)
    ]
    labels = {_name(sweep, group): group for group in there}
    found = [group for group in there if name in (_name(sweep, group), str(group.label[sweep.compare]))]
    if len(found) == 1:
        return found[0]
    where, known = f"{sweep.manifest['sweep']} on {task}, {split}:", ", ".join(labels)
    if not found:
        raise StoreError(f"{where} there is no row {name!r}{nearest(name, labels)}; there are {known}")
    apart = [key for key in found[0].label if len({str(group.label[key]) for group in found}) > 1]
    said = "; ".join(f"{key}: {', '.join(as_text(plain(group.label[key])) for group in found)}" for key in apart)
    raise StoreError(f"{where} there are {len(found)} cells of {name!r}; choose one by {said}")


def _is(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) or str(value) == str(wanted)


def _name(sweep: Sweep, group: Group) -> str:
    return " ".join(str(value) for key, value in group.label.items() if key not in ("task", "split", sweep.over))
