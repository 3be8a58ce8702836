"""Positions on the axes of figures: the scale of a compared axis, and the limits and ticks of a metric's axis."""

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

DIGIT = 0.053  # inches: width of a digit of a tick's label, including the space to its neighbour
BREAK = 0.16  # share of a logarithmic axis between 0 and the smallest other value
MARGIN = 0.05  # share of an axis that is left free on either side for the markers
LOG_FROM = 8  # ratio of the largest to the smallest value from which the axis of a number is logarithmic
TICK = 0.16  # inches: least distance between the ticks of a vertical axis
MOST_TICKS = 5
KEPT, COST, AVERAGE = "kept", "cost", "average"  # a share in percent, which may exceed 100; seconds; a mean over tasks
LEAST, LEAST_OF_OWN_SCALE = 2.0, 5.0  # least span of an axis, so that small differences look small


def metric_range(metric: str) -> tuple[float, float]:
    """The range of possible values in the units of scores: percent, and CIDEr-D times 100."""
    if metric == AVERAGE:
        return -math.inf, math.inf
    return 0.0, math.inf if metric in (KEPT, COST) else highest(metric)


def least_span(metric: str) -> float:
    """The least span of an axis of this metric."""
    if metric == COST:
        return 0.0
    return LEAST_OF_OWN_SCALE if names.has_own_scale(metric) else LEAST


def limits(
    values: Iterable[float], metric: str, is_difference: bool = False, least: float | None = None
) -> tuple[float, float]:
    """Returns the limits of an axis that shows all these values, with a margin for markers.

    The axis exceeds the metric's range by no more than this margin. `least`: its least span; None: the metric's (`LEAST`).
    """
    finite = [value for value in values if math.isfinite(value)]
    lowest, highest = (-math.inf, math.inf) if is_difference else metric_range(metric)
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    missing_span = max(0.0, (least_span(metric) if least is None else least) - (high - low)) / 2
    low, high = low - missing_span, high + missing_span
    shift = min(0.0, highest - high) + max(0.0, lowest - low)  # moves the widened span back into the range
    low, high = low + shift, high + shift
    margin = MARGIN * 1.4 * (high - low)
    return low - margin, high + margin


def ticks(
    low: float, high: float, inches: float, metric: str, is_difference: bool = False, across: bool = True
) -> list[float]:
    """Returns round numbers between two limits, none outside of the metric's range.

    There are as many as can be read on an axis of this many inches, side by side (`across`) or above each other.
    """
    lowest, highest = (-math.inf, math.inf) if is_difference else metric_range(metric)
    size = 10.0 ** math.floor(math.log10((high - low) / 10))
    numbers_in_range: list[float] = []
    for step in (each * size for each in (1, 2, 5, 10, 20, 50, 100)):
        numbers = np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step
        numbers_in_range = [round(float(number), 10) + 0.0 for number in numbers if lowest <= number <= highest]
        each = DIGIT * (max((len(f"{number:g}") for number in numbers_in_range), default=1) + 1.4) if across else TICK
        if (
            len(numbers_in_range) <= MOST_TICKS
            and (len(numbers_in_range) - 1) * each
            <= (numbers_in_range[-1] - numbers_in_range[0]) / (high - low) * inches
        ):
            return numbers_in_range
    return numbers_in_range


@dataclass(frozen=True)
class Scale:
    """The positions of values on the compared axis, from 0 to 1. Numbers keep their distances; words are evenly spaced."""

    places: dict[Any, float]
    line: str  # style of the line between values: "-" for numbers, "" for words, between which there is nothing
    apart: bool = False  # whether 0 is separate, to the left of the beginning of a logarithmic axis

    @staticmethod
    def of(values: Iterable[Any]) -> Scale:
        """The scale of these values: logarithmic if they are numbers that span a wide range."""
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
        """The least distance between two values, as a share of the axis."""
        places = sorted(self.places.values())
        return min((right - left for left, right in pairwise(places)), default=1.0)

    def named(self, names: Mapping[Any, str], inches: float, first: Sequence[Any] = ()) -> dict[Any, str]:
        """Returns the name of each tick, "" if there is no room for it beside the others.

        `first`: values whose names take precedence; then come the largest and the smallest value, powers of ten, and the rest.
        """
        order = sorted(self.places, key=self.places.__getitem__)
        tens = [value for value in order if are_numbers([value]) and f"{value:e}".startswith("1.000000e")]
        by_priority = [*first, order[-1], order[0], *tens, *order]
        named: list[Any] = []
        for value in dict.fromkeys(value for value in by_priority if value in self.places):
            half = {each: len(names[each]) * DIGIT / 2 for each in [*named, value]}
            if all(
                abs(self.places[value] - self.places[other]) * inches > half[value] + half[other] + DIGIT / 2
                for other in named
            ):
                named.append(value)
        return {value: names[value] if value in named else "" for value in order}


def are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
