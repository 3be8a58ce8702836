"""Which trials go on after a rung: successive halving (Jamieson and Talwalkar 2016), or a pruner of Optuna's.

Halving lets every trial come to the first rung and pause there. When no more can come, the best share `keep` of them, rounded
up, goes on to the next. So which trials go on depends neither on their order nor on the number of workers. (Promoting while
others still come, as asynchronous halving does, lets about twice as many go on: any that is among the best of the first few.)
The default always goes on, and takes no other trial's place. A pruner decides at once, and for good. In the end the best
quarter gets more seeds, where the search has any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from mmprompt.runs.config import ConfigError, nearest
from mmprompt.studies.outcomes import Observation, Outcome, Picture, next_rung
from mmprompt.studies.study import VERSION, Decision, Definition, Named

DEFAULT = "the default, which others are compared with"
QUARTER = 0.25  # of the trials with their first seeds: these get more


def check_halving(stop: Named, several: bool) -> None:
    """Raises ConfigError."""
    for argument in stop.arguments:
        if argument != "keep":
            raise ConfigError(f"stop.halving.{argument} does not exist{nearest(argument, ['keep'])}; it takes keep")
    keep = stop.arguments.get("keep")
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise ConfigError(f"stop.halving.keep={keep} is not allowed; wanted: a share between 0 and 1, such as 0.34")
    if several:
        raise ConfigError("stop=halving compares one score, and there are several objectives; leave out stop and rungs")


def decisions(picture: Picture, group: int, is_asked_for: bool) -> Iterator[Decision]:
    """What can be decided of a group now and is not yet. `is_asked_for`: more trials may come."""
    found = list(_of_rungs(picture, group, is_asked_for))
    yield from found
    if not found and not is_asked_for:
        yield from _of_seeds(picture, group)


def _of_rungs(picture: Picture, group: int, is_asked_for: bool) -> Iterator[Decision]:
    stop = picture.definition.stop
    if stop is None:
        return
    open_below = is_asked_for  # may others still come to the rung at hand?
    for rung in picture.definition.rungs:
        there = [one for one in picture.of(group) if rung in one.rungs]
        waiting = [one for one in there if one.state == "stopped" and _at(picture, one) == rung]
        open_below = open_below or any(_may_come(picture, one, rung) for one in picture.of(group))
        if stop.name == "halving":
            found = list(_halved(there, waiting, rung, float(stop.arguments["keep"]), open_below))
        else:
            found = [
                _pruned(picture, group, one, rung)
                for one in waiting
                if (one.trial.number, rung) not in picture.decisions
            ]
        yield from found
        open_below = open_below or any(decision.goes_on for decision in found)


def _at(picture: Picture, outcome: Outcome) -> int | None:
    return next_rung(picture.definition, outcome.trial, picture.decisions)


def _may_come(picture: Picture, outcome: Outcome, rung: int) -> bool:
    """Whether a trial that is at work now may come to this rung without another decision."""
    until = _at(picture, outcome)
    return outcome.state == "open" and rung not in outcome.rungs and (until is None or until >= rung)


def _halved(
    there: Sequence[Outcome], waiting: Sequence[Outcome], rung: int, keep: float, is_open: bool
) -> Iterator[Decision]:
    """Of trials that wait at a rung those that go on. Nothing is written of the others."""
    yield from (_decision(one, rung, True, DEFAULT) for one in waiting if one.trial.origin == "default")
    if is_open:
        return
    others = [one for one in there if one.trial.origin != "default"]
    ranked = sorted(others, key=lambda one: (-one.rungs[rung], one.trial.number))
    for rank, one in enumerate(ranked[: math.ceil(keep * len(ranked))], 1):
        if one in waiting:
            yield _decision(one, rung, True, f"{rank} of {len(ranked)}")


def steps_ahead(picture: Picture, group: int, steps: int) -> float:
    """How many whole runs it takes to bring these trials through halving; 0 with a pruner, which cannot be foreseen."""
    definition = picture.definition
    if definition.stop is None or definition.stop.name != "halving":
        return 0.0
    keep, ends = float(definition.stop.arguments["keep"]), [*definition.rungs, steps]
    count, total = len(picture.of(group)), 0.0
    for here, there in pairwise(ends):
        count = math.ceil(keep * count)
        gone = sum((one.trial.number, here) in picture.decisions for one in picture.of(group))
        total += max(0, count - gone) * (there - here) / steps
    return total


def _pruned(picture: Picture, group: int, outcome: Outcome, rung: int) -> Decision:
    from mmprompt.studies import sampler

    trial = outcome.trial
    if trial.origin == "default":
        return _decision(outcome, rung, True, DEFAULT)
    after = picture.outcomes[-1].trial.number + 1
    others = [one for one in picture.told(group, after, picture.knew(group)) if one.number != trial.number]
    scores = {step: score for step, score in outcome.rungs.items() if step <= rung}
    ends = sampler.prunes(
        picture.definition, group, others, Observation(trial.settings, "running", rungs=scores, number=trial.number)
    )
    assert picture.definition.stop is not None
    return _decision(outcome, rung, not ends, picture.definition.stop.name)


def _decision(outcome: Outcome, rung: int | None, goes_on: bool, why: str) -> Decision:
    score = outcome.rungs[rung] if rung is not None else float((outcome.values or [0.0])[0])
    return Decision(version=VERSION, trial=outcome.trial.number, step=rung, goes_on=goes_on, score=score, why=why)


def _of_seeds(picture: Picture, group: int) -> Iterator[Decision]:
    """More seeds for the trials that the first ones put into the top quarter, once all have come to their end."""
    definition, there = picture.definition, picture.of(group)
    first = definition.seeds.first
    at_hand = [one for one in there if one.state == "open" and one.done < first]
    if first == definition.seeds.most or at_hand:
        return
    sign = 1 if definition.directions[0] == "maximize" else -1
    ended = [one for one in there if one.state != "diverged" and one.done >= first]
    ranked = sorted(ended, key=lambda one: (-sign * first_value(definition, one), one.trial.number))
    for rank, one in enumerate(ranked[: math.ceil(QUARTER * len(ranked))], 1):
        if (one.trial.number, None) not in picture.decisions:
            yield _decision(one, None, True, f"{rank} of {len(ranked)} by the first seeds")


def first_value(definition: Definition, outcome: Outcome) -> float:
    """The first objective's mean over the first seeds, which all trials have."""
    runs = list(outcome.runs.values())[: definition.seeds.first]
    objective = next(iter(definition.objective))
    return sum(run.values[objective] for run in runs) / len(runs)
