"""What a sweep's scores are seen against besides its baseline: the backbone without tuning, and what guessing comes to.

Both are read off records. What is not known for certain, as it is of other examples or of another backbone, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from analysis.frame import Sweep
from analysis.reading import read_sweep
from analysis.stored import ANYTHING, Unreadable, read
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import canonical, evaluation_id
from mmprompt.runs.store import Store

ZERO_SHOT = "zero_shot"  # the sweep that evaluates the backbone without tuning
ALIKE = ("training_version", "precision", "model", "backbone", "task")  # settings that decide what it scores

References = Mapping[tuple[str, str], Mapping[str, float]]  # by task and split `zero_shot` and `chance`, where known
NO_REFERENCES: References = {}


@dataclass(frozen=True)
class Scored:
    """An evaluation of a run that is done."""

    task: str
    split: str
    value: float  # NaN without one
    constant: float  # what always the same answer scores on its examples; NaN where that is not recorded
    question: str | None  # what decides the score besides tuning; None: more than settings of the run, or not known
    is_tuned: bool


def references(store: Store, sweep: Sweep) -> References:
    """Of each task and split that the sweep asks, on the metric's scale:

    - `zero_shot`: the score in the store's sweep of that name, where this evaluated the same model and backbone on the same
      task, and both on the whole split, decoded as the task says, without attack;
    - `chance`: what the one answer scores that is the best to give always, of tasks whose answers are words.

    Absent where it is not known, or differs between the runs of a task and split. The sweep `zero_shot` has no line of itself.
    """
    own, untuned = list(_scored(store, sweep)), list(_untuned(store))
    found = {}
    for task, splits in sweep.asked.items():
        for split in splits:
            mine = [one for one in own if (one.task, one.split) == (task, split)]
            questions = {one.question for one in mine}
            same = [one for one in untuned if (one.task, one.split) == (task, split) and {one.question} == questions]
            known = {"chance": _agreed(one.constant for one in [*mine, *same])}
            if sweep.manifest["sweep"] != ZERO_SHOT:
                known["zero_shot"] = _agreed(one.value for one in same)
            found[task, split] = {name: value for name, value in known.items() if value is not None}
    return found


def _untuned(store: Store) -> Iterator[Scored]:
    """Evaluations of the backbone as it is, of which all is known; none where there is no such sweep."""
    try:
        sweep = read_sweep(store, ZERO_SHOT)
    except StoreError:
        return
    yield from (one for one in _scored(store, sweep) if one.question is not None and not one.is_tuned)


def _scored(store: Store, sweep: Sweep) -> Iterator[Scored]:
    scores = sweep.scores
    scores = scores[scores["attempt"].notna()]
    settings = {run: _settings(store, run) for run in scores["run"].unique()}
    for row in scores.to_dict("records"):
        run, split = row["run"], row["split"]
        is_whole = row["evaluation"] == evaluation_id(run, {"split": split})
        yield Scored(
            task=row["task"],
            split=split,
            value=row["value"],
            constant=row.get(f"{split}/constant_answer", math.nan),
            question=settings[run] if is_whole else None,
            is_tuned=row["trainable_parameters"] != 0,
        )


def _settings(store: Store, run: str) -> str | None:
    """Those of a run that decide what its backbone scores without tuning, as text; None if they cannot be read."""
    try:
        config = read(store.run(run).config_file, ANYTHING)
    except Unreadable:
        return None
    return None if config is None else canonical({key: config[key] for key in ALIKE if key in config})


def _agreed(values: Iterable[float]) -> float | None:
    """What all say that are known."""
    known = {value for value in values if not math.isnan(value)}
    return known.pop() if len(known) == 1 else None
