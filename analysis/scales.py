"""Where values lie: of a compared axis, and the limits and ticks of a metric's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any

import numpy as np

from analysis import names
from mmprompt.families.registry import highest

DIGIT = 0.053  # inches: width of a digit of a tick's label, with room for its neighbour's
BREAK = 0.16  # of an axis, between 0 and the smallest other value on a logarithmic one
MARGIN = 0.05  # of an axis, on either side, for the markers
LOG_FROM = 8  # ratio of the largest to the smallest value from which the axis of a number is logarithmic
TICK = 0.16  # inches between the ticks of a metric that is drawn upward, at least
MOST_TICKS = 5
KEPT, COST, AVERAGE = (
    "kept",
    "cost",
    "average",
)  # a share in percent, which may be more than the whole; seconds; of tasks
LEAST, LEAST_OF_OWN_SCALE = 2.0, 5.0  # what an axis spans at least, so that what is small looks small


def metric_range(metric: str) -> tuple[float, float]:
    """Within which values can lie, as scores are written here: percent, and CIDEr-D times 100."""
    if metric == AVERAGE:
        return -math.inf, math.inf
    return 0.0, math.inf if metric in (KEPT, COST) else highest(metric)


def least_span(metric: str) -> float:
    if metric == COST:
        return 0.0
    return LEAST_OF_OWN_SCALE if names.has_own_scale(metric) else LEAST


def limits(
    values: Iterable[float], metric: str, is_difference: bool = False, least: float | None = None
) -> tuple[float, float]:
    """Of an axis that shows all of these, with a margin for markers and no further beyond the metric's range than that.

    `least`: how much it spans at least; None: what the metric says.
    """
    known = [value for value in values if math.isfinite(value)]
    lowest, highest = (-math.inf, math.inf) if is_difference else metric_range(metric)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    lack = max(0.0, (least_span(metric) if least is None else least) - (high - low)) / 2
    low, high = low - lack, high + lack
    shift = min(0.0, highest - high) + max(0.0, lowest - low)  # of what was widened beyond the range
    low, high = low + shift, high + shift
    margin = MARGIN * 1.4 * (high - low)
    return low - margin, high + margin


def ticks(
    low: float, high: float, inches: float, metric: str, is_difference: bool = False, across: bool = True
) -> list[float]:
    """Round numbers between two limits, as many as can be read side by side (`across`), or above each other, in so many
    inches; none where no value can be."""
    lowest, highest = (-math.inf, math.inf) if is_difference else metric_range(metric)
    size = 10.0 ** math.floor(math.log10((high - low) / 10))
    found: list[float] = []
    for step in (each * size for each in (1, 2, 5, 10, 20, 50, 100)):
        numbers = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
        found = [round(float(number), 10) + 0.0 for number in numbers if lowest <= number <= highest]
        each = DIGIT * (max((len(f"{number:g}") for number in found), default=1) + 1.4) if across else TICK
        if len(found) <= MOST_TICKS and (len(found) - 1) * each <= (found[-1] - found[0]) / (high - low) * inches:
            return found
    return found


@dataclass(frozen=True)
class Scale:
    """Where the values of the compared axis lie, from 0 to 1. Numbers keep their distances; words are evenly spaced."""

    places: dict[Any, float]
    line: str  # values of a number are joined by a line; between words there is nothing
    apart: bool = False  # whether 0 stands apart, left of where a logarithmic axis begins

    @staticmethod
    def of(values: Iterable[Any]) -> Scale:
        present = list(dict.fromkeys(values))
        if len(present) == 1 or not are_numbers(present):
            return Scale({value: (i + 0.5) / len(present) for i, value in enumerate(present)}, "")
        low, high = min(present), max(present)
        above = min(value for value in present if value > low)
        apart = low == 0 and high / above >= LOG_FROM
        first = above if apart else low
        stretch = math.log if first > 0 and high / first >= LOG_FROM else float
        begin = BREAK if apart else 0.0
        span = (stretch(high) - stretch(first)) / (1 - begin)
        places = {value: begin + (stretch(value) - stretch(first)) / span for value in present if value >= first}
        return Scale({value: places.get(value, 0.0) for value in present}, "-", apart)

    def at(self, values: Iterable[Any], shift: float = 0.0) -> list[float]:
        return [self.places[value] + shift for value in values]

    @property
    def nearest(self) -> float:
        """The least distance between two values, of the axis's length."""
        places = sorted(self.places.values())
        return min((right - left for left, right in pairwise(places)), default=1.0)

    def named(self, names: Mapping[Any, str], inches: float, first: Sequence[Any] = ()) -> dict[Any, str]:
        """Names of the ticks, "" where there is no room for one beside the others: those of `first`, of the smallest and the
        largest value, and of powers of ten come before the rest."""
        order = sorted(self.places, key=self.places.__getitem__)
        tens = [value for value in order if are_numbers([value]) and f"{value:e}".startswith("1.000000e")]
        wanted = [*first, order[-1], order[0], *tens, *order]
        kept: list[Any] = []
        for value in dict.fromkeys(value for value in wanted if value in self.places):
            half = {each: len(names[each]) * DIGIT / 2 for each in [*kept, value]}
            if all(
                abs(self.places[value] - self.places[other]) * inches > half[value] + half[other] + DIGIT / 2
                for other in kept
            ):
                kept.append(value)
        return {value: names[value] if value in kept else "" for value in order}


def are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
