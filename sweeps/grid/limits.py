"""How many points a sweep may have: they are counted by multiplication, and too many are refused before one of them is made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from hydra.core.override_parser.types import RangeSweep

from mmprompt.runs.config import ConfigError, parse
from mmprompt.runs.deployment import Limits
from sweeps.grid import yaml_file

POINTS = "limits.points"
COUNTABLE = 10**15  # above it nobody reads the digits


def points_allowed(overrides: Iterable[str], conf: Path) -> int:
    """The limit: the last that the overrides give, else that of conf/. Raises ConfigError for what is no number from 1 on."""
    asked = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == POINTS]
    if asked:
        if not re.fullmatch("[1-9][0-9]{0,15}", asked[-1]):
            raise ConfigError(f"{POINTS}={asked[-1]} is not allowed; wanted: a number from 1 on")
        return int(asked[-1])
    try:
        return parse(Limits, yaml_file.read(conf / "config.yaml")["limits"]).points
    except ConfigError as error:
        raise ConfigError(f"conf/config.yaml: {error}") from None


def check_points(what: str, count: int, most: int, of: str = "points", cure: str = "narrow an axis") -> None:
    """Raises ConfigError if `what` has more than it may have."""
    if count > most:
        raise ConfigError(f"{what} has {in_digits(count)} {of}; limit is {most:,} ({POINTS}); {cure} or raise {POINTS}")


def check_range(what: str, values: RangeSweep, most: int) -> None:
    """The same of an axis that is given as a range. Raises ConfigError also for one that has no end."""
    ends: Sequence[float] = [values.start or 0, values.stop or 0, values.step]
    if not all(map(math.isfinite, ends)) or not values.step:
        raise ConfigError(f"{what} has no end; wanted: range(START, STOP, STEP) with numbers, and a STEP that is not 0")
    start, stop, step = map(Fraction, ends)
    check_points(what, max(0, math.ceil((stop - start) / step)), most)


def in_digits(count: int) -> str:
    return f"{count:,}" if count < COUNTABLE else f"more than {COUNTABLE:,}"
