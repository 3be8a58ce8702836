"""The confirmation of a search: its best trials and the default, compared on fresh seeds.

Part of the light half of the package: no torch, no Hydra, no Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import DamagedError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.studies.intervals import Interval, paired, t_interval
from mmprompt.studies.outcomes import StudyProgress
from mmprompt.studies.schemas import Candidate, Group

FIRST_FRESH = 101  # the least seed that confirmation uses


def is_over(progress: StudyProgress) -> bool:
    """Whether the search is over: every run of the confirmation is done, or never will be, and no trial has lost its run."""
    if progress.confirmation is None or any(outcome.state == "open" for outcome in progress.outcomes):
        return False
    return all(
        is_settled(progress, group.group, candidate, run)
        for group in progress.confirmation.groups
        for candidate in group.candidates
        for run in candidate.runs.values()
    )


def is_settled(progress: StudyProgress, group: int, candidate: Candidate, run: str) -> bool:
    """Whether a run of the confirmation has all its scores, or will never have them."""
    definition = progress.definition
    task = definition.task_of(candidate.settings, group)
    folder = progress.reader.study.store.run(run)
    try:
        if folder.is_done([evaluation_id(run, {"split": split}) for split in definition.splits[task]]):
            return True
    except DamagedError:
        return True
    return progress.reader.run(run, task).state in ("diverged", "failed")


@dataclass(frozen=True)
class Confirmed:
    """A candidate on fresh seeds."""

    candidate: Candidate
    scores: Mapping[str, Mapping[int, float]]  # by split and seed
    intervals: Mapping[str, Interval]  # by split
    differences: Mapping[
        str, Interval
    ]  # from the default, paired by seed, by split; they hold together for all candidates


def confirmed(progress: StudyProgress, group: Group) -> list[Confirmed]:
    """Compares the candidates of a group on fresh seeds, by the scores in the store."""
    definition, store = progress.definition, progress.reader.study.store
    scores = []
    for candidate in group.candidates:
        task = definition.task_of(candidate.settings, group.group)
        metric = definition.tasks[task]["metric"]
        by_split: dict[str, dict[int, float]] = {split: {} for split in definition.splits[task]}
        for seed, run in candidate.runs.items():
            for split, values in by_split.items():
                value = evaluated(store.run(run), split, metric)
                if value is not None:
                    values[int(seed)] = value
        scores.append(by_split)
    return compared(group.candidates, scores)


def compared(candidates: Sequence[Candidate], scores: Sequence[Mapping[str, Mapping[int, float]]]) -> list[Confirmed]:
    """The default first, then by the mean on validation, where the choice is made.

    `scores`: of each candidate by split, validation first, and by seed. The best is chosen among several by the runs that
    are reported; so the intervals of their differences from the default hold for all of them at once (Bonferroni), and with
    that for the one that is chosen.
    """
    default, others = scores[0], max(1, len(candidates) - 1)
    found = []
    for number, (candidate, by_split) in enumerate(zip(candidates, scores, strict=True)):
        intervals = {split: t_interval(values.values()) for split, values in by_split.items()}
        differences = {split: paired(values, default[split], of=others) for split, values in by_split.items() if number}
        found.append(Confirmed(candidate, by_split, intervals, differences))
    return [found[0], *sorted(found[1:], key=_by_validation)]


def _by_validation(one: Confirmed) -> float:
    value = next(iter(one.intervals.values())).value
    return math.inf if math.isnan(value) else -value


def evaluated(folder: RunFolder, split: str, metric: str) -> float | None:
    """A finished run's score on a whole split without attack; None if it was not evaluated there, or the file is damaged."""
    try:
        result = folder.result()
        if result is None:
            return None
        if (value := result["metrics"].get(f"{split}/{metric}")) is not None:
            return value
        found = folder.evaluation(evaluation_id(folder.id, {"split": split}))
    except DamagedError:
        return None
    return None if found is None else found["metrics"].get(metric)
