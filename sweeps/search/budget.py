"""The budget of a search: whether it allows a group another trial, with room for the confirmation."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from mmprompt.studies.outcomes import StudyProgress
from sweeps.search import halving


def is_spent(progress: StudyProgress, group: int) -> bool:
    """Whether the budget allows a group no more trials.

    Trials that are running count with what they are expected to take in the end, and the confirmation has to fit as well.
    """
    budget, outcomes = progress.definition.budget, progress.of(group)
    if budget.trials is not None and len(outcomes) >= budget.trials:
        return True
    if not outcomes:
        return False
    hours = run_hours(progress, group)
    if budget.device_hours is not None:
        ahead = sum(max(hours - one.device_hours, 0.0) for one in outcomes if one.state == "open") if hours else 0.0
        ahead += (hours or 0.0) * halving.steps_ahead(progress, group, progress.definition.steps)
        spent = sum(one.device_hours for one in outcomes) + ahead
        if spent + (hours or 0.0) * (1 + confirmed_runs(progress, group)) > budget.device_hours:
            return True
    if budget.hours is not None:
        spans = [span for one in outcomes for run in one.runs.values() for span in run.spans]
        at_work = wall(spans)
        at_once = max(1.0, sum(end - begin for begin, end in spans) / at_work) if at_work else 1.0
        seconds = [
            sum(end - begin for begin, end in run.spans)
            for one in outcomes
            for run in one.runs.values()
            if run.state == "done"
        ]
        runs = confirmed_runs(progress, group) + halving.steps_ahead(progress, group, progress.definition.steps)
        ahead = median(seconds) * runs / at_once if seconds else 0.0
        if (at_work + ahead) / 3600 >= budget.hours:
            return True
    return False


def confirmed_runs(progress: StudyProgress, group: int) -> int:
    """How many runs the confirmation of a group will have."""
    return (progress.definition.confirm.top + 1) * progress.definition.confirm.seeds


def run_hours(progress: StudyProgress, group: int) -> float | None:
    """The median device hours of the runs of a group that are done; None if none is."""
    hours = [run.device_hours for one in progress.of(group) for run in one.runs.values() if run.state == "done"]
    return median(hours) if hours else None


def wall(spans: Sequence[tuple[float, float]]) -> float:
    """The seconds during which at least one of these spans, (begin, end) each, lasted."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total
