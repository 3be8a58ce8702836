"""The reference scores of a sweep besides its baseline: the backbone without tuning, and chance.

Both are read from records. A reference that may not be comparable, with other examples or another backbone, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from analysis.records.frame import Sweep
from analysis.records.reading import read_sweep
from analysis.records.stored import ANYTHING, Unreadable, read
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import canonical, evaluation_id
from mmprompt.runs.store import Store

ZERO_SHOT = "zero_shot"  # the sweep that evaluates the backbone without tuning
ALIKE = (
    "training_version",
    "precision",
    "model",
    "backbone",
    "task",
)  # settings that decide the untuned backbone's score

References = Mapping[
    tuple[str, str], Mapping[str, float]
]  # (task, split) -> the known ones of `zero_shot` and `chance`
NO_REFERENCES: References = {}


@dataclass(frozen=True)
class Scored:
    """An evaluation of a done run."""

    task: str
    split: str
    value: float  # the score; NaN if there is none
    constant: float  # the score of always giving the same answer on its examples; NaN if that is not recorded
    settings: str | None  # those that decide the untuned score; None: unknown, or not the default evaluation
    is_tuned: bool


def references(store: Store, sweep: Sweep) -> References:
    """Returns the references of each task and split that the sweep evaluates, on the metric's scale:

    - `zero_shot`: the score in the store's sweep of that name, if that sweep evaluated the same model and backbone on the same
      task, and both are default evaluations (whole split, decoded as the task says, without attack);
    - `chance`: the score of the best constant answer, for tasks whose answers are words.

    A reference is absent if it is unknown or differs between the runs of a task and split. The sweep `zero_shot` is no reference
    of itself.
    """
    scored, untuned = list(_scored_evaluations(store, sweep)), list(_untuned_evaluations(store))
    references_of = {}
    for task, splits in sweep.evaluated_splits.items():
        for split in splits:
            of_sweep = [one for one in scored if (one.task, one.split) == (task, split)]
            settings = {one.settings for one in of_sweep}
            same = [one for one in untuned if (one.task, one.split) == (task, split) and {one.settings} == settings]
            values = {"chance": _common_value(one.constant for one in [*of_sweep, *same])}
            if sweep.manifest["sweep"] != ZERO_SHOT:
                values["zero_shot"] = _common_value(one.value for one in same)
            references_of[task, split] = {name: value for name, value in values.items() if value is not None}
    return references_of


def _untuned_evaluations(store: Store) -> Iterator[Scored]:
    """Yields the default evaluations of the untuned backbone with known settings; none if there is no such sweep."""
    try:
        sweep = read_sweep(store, ZERO_SHOT)
    except StoreError:
        return
    yield from (
        scored for scored in _scored_evaluations(store, sweep) if scored.settings is not None and not scored.is_tuned
    )


def _scored_evaluations(store: Store, sweep: Sweep) -> Iterator[Scored]:
    scores = sweep.scores
    scores = scores[scores["attempt"].notna()]
    settings = {run: _settings(store, run) for run in scores["run"].unique()}
    for row in scores.to_dict("records"):
        run, split = row["run"], row["split"]
        is_default = row["evaluation"] == evaluation_id(run, {"split": split})
        yield Scored(
            task=row["task"],
            split=split,
            value=row["value"],
            constant=row.get(f"{split}/constant_answer", math.nan),
            settings=settings[run] if is_default else None,
            is_tuned=row["trainable_parameters"] != 0,
        )


def _settings(store: Store, run: str) -> str | None:
    """A run's settings that decide its backbone's score without tuning, as text; None if they cannot be read."""
    try:
        config = read(store.run(run).config_file, ANYTHING)
    except Unreadable:
        return None
    return None if config is None else canonical({key: config[key] for key in ALIKE if key in config})


def _common_value(values: Iterable[float]) -> float | None:
    """The value that all have in common, NaN aside; None if they differ or there is none."""
    distinct = {value for value in values if not math.isnan(value)}
    return distinct.pop() if len(distinct) == 1 else None
