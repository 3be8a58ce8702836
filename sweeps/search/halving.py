"""Decides which trials go on after a rung: by successive halving (Jamieson and Talwalkar 2016) or a pruner of Optuna.

With halving every trial is trained to the first rung and paused there. When no more trials can reach the rung, the best share
`keep` of them, rounded up, goes on to the next. So the decision depends neither on the order of the trials nor on the number of
workers. (Asynchronous halving, which decides while trials are still arriving, lets about twice as many go on: any trial that is
among the best of the first few.) The default always goes on, and does not count towards the share. A pruner decides about a trial
at once and for good. At the end the best quarter of the trials gets further seeds, if the search has any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.spelling import nearest
from mmprompt.studies.outcomes import Observation, Outcome, StudyProgress, next_rung
from mmprompt.studies.schemas import VERSION, Decision, Definition, Named

DEFAULT = "the default, which others are compared with"
QUARTER = 0.25  # share of the trials, ranked by their first seeds, that gets further seeds


def check_halving(stop: Named, several: bool) -> None:
    """Checks the arguments of halving. `several`: there are several objectives. Raises ConfigError."""
    for argument in stop.arguments:
        if argument != "keep":
            raise ConfigError(f"stop.halving.{argument} does not exist{nearest(argument, ['keep'])}; it takes keep")
    keep = stop.arguments.get("keep")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise ConfigError(f"stop.halving.keep={keep} is not allowed; wanted: a share between 0 and 1, such as 0.34")
    if several:
        raise ConfigError("stop=halving compares one score, and there are several objectives; leave out stop and rungs")


def decisions(progress: StudyProgress, group: int, more_trials: bool) -> Iterator[Decision]:
    """The decisions about a group's trials that can be made now and were not made yet.

    `more_trials`: the group may get more trials.
    """
    at_rungs = list(_decisions_at_rungs(progress, group, more_trials))
    yield from at_rungs
    if not at_rungs and not more_trials:
        yield from _decisions_on_seeds(progress, group)


def _decisions_at_rungs(progress: StudyProgress, group: int, more_trials: bool) -> Iterator[Decision]:
    stop = progress.definition.stop
    if stop is None:
        return
    may_arrive = more_trials  # whether other trials may still reach the rung
    for rung in progress.definition.rungs:
        reached = [outcome for outcome in progress.of(group) if rung in outcome.rungs]
        waiting = [one for one in reached if one.state == "stopped" and _next_rung(progress, one) == rung]
        may_arrive = may_arrive or any(_may_reach(progress, outcome, rung) for outcome in progress.of(group))
        if stop.name == "halving":
            decided = list(_halve(reached, waiting, rung, float(stop.arguments["keep"]), may_arrive))
        else:
            decided = [
                _prune(progress, group, outcome, rung)
                for outcome in waiting
                if (outcome.trial.number, rung) not in progress.decisions
            ]
        yield from decided
        may_arrive = may_arrive or any(decision.goes_on for decision in decided)


def _next_rung(progress: StudyProgress, outcome: Outcome) -> int | None:
    return next_rung(progress.definition, outcome.trial, progress.decisions)


def _may_reach(progress: StudyProgress, outcome: Outcome, rung: int) -> bool:
    """Whether a trial whose runs are open may reach this rung without another decision."""
    until = _next_rung(progress, outcome)
    return outcome.state == "open" and rung not in outcome.rungs and (until is None or until >= rung)


def _halve(
    reached: Sequence[Outcome], waiting: Sequence[Outcome], rung: int, keep: float, may_arrive: bool
) -> Iterator[Decision]:
    """The decisions for those trials waiting at a rung that go on. No decision is written for the others.

    `reached`: all trials that have reached the rung; `may_arrive`: others may still reach it, so that only the default goes on.
    """
    yield from (_decision(one, rung, True, DEFAULT) for one in waiting if one.trial.origin == "default")
    if may_arrive:
        return
    others = [outcome for outcome in reached if outcome.trial.origin != "default"]
    ranked = sorted(others, key=lambda one: (-one.rungs[rung], one.trial.number))
    for rank, one in enumerate(ranked[: math.ceil(keep * len(ranked))], 1):
        if one in waiting:
            yield _decision(one, rung, True, f"{rank} of {len(ranked)}")


def steps_ahead(progress: StudyProgress, group: int, steps: int) -> float:
    """The training that halving will still give the group's trials, in whole runs; 0 with a pruner, which cannot be foreseen.

    `steps`: the updates of a whole run.
    """
    definition = progress.definition
    if definition.stop is None or definition.stop.name != "halving":
        return 0.0
    keep, ends = float(definition.stop.arguments["keep"]), [*definition.rungs, steps]
    count, total = len(progress.of(group)), 0.0
    for rung, next_end in pairwise(ends):
        count = math.ceil(keep * count)
        gone_on = sum((outcome.trial.number, rung) in progress.decisions for outcome in progress.of(group))
        total += max(0, count - gone_on) * (next_end - rung) / steps
    return total


def _prune(progress: StudyProgress, group: int, outcome: Outcome, rung: int) -> Decision:
    """The decision of a pruner about a trial at a rung."""
    from mmprompt.studies import sampler

    trial = outcome.trial
    if trial.origin == "default":
        return _decision(outcome, rung, True, DEFAULT)
    after = progress.outcomes[-1].trial.number + 1
    others = [one for one in progress.told(group, after, progress.knew(group)) if one.number != trial.number]
    scores = {step: score for step, score in outcome.rungs.items() if step <= rung}
    ends = sampler.prunes(
        progress.definition, group, others, Observation(trial.settings, "running", rungs=scores, number=trial.number)
    )
    assert progress.definition.stop is not None
    return _decision(outcome, rung, not ends, progress.definition.stop.name)


def _decision(outcome: Outcome, rung: int | None, goes_on: bool, why: str) -> Decision:
    score = outcome.rungs[rung] if rung is not None else float((outcome.values or [0.0])[0])
    return Decision(version=VERSION, trial=outcome.trial.number, step=rung, goes_on=goes_on, score=score, why=why)


def _decisions_on_seeds(progress: StudyProgress, group: int) -> Iterator[Decision]:
    """The decisions that give further seeds to the top quarter of the trials, once all trials are done with their first seeds."""
    definition, outcomes = progress.definition, progress.of(group)
    first = definition.seeds.first
    unfinished = [outcome for outcome in outcomes if outcome.state == "open" and outcome.done < first]
    if first == definition.seeds.most or unfinished:
        return
    sign = 1 if definition.directions[0] == "maximize" else -1
    ended = [outcome for outcome in outcomes if outcome.state != "diverged" and outcome.done >= first]
    ranked = sorted(ended, key=lambda one: (-sign * first_value(definition, one), one.trial.number))
    for rank, one in enumerate(ranked[: math.ceil(QUARTER * len(ranked))], 1):
        if (one.trial.number, None) not in progress.decisions:
            yield _decision(one, None, True, f"{rank} of {len(ranked)} by the first seeds")


def first_value(definition: Definition, outcome: Outcome) -> float:
    """The mean of the first objective over the first seeds, which every trial has."""
    runs = list(outcome.runs.values())[: definition.seeds.first]
    objective = next(iter(definition.objective))
    return sum(run.values[objective] for run in runs) / len(runs)
