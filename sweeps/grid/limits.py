"""The limit on a sweep's points. They are counted by multiplication, so too many are refused before the first one is made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from hydra.core.override_parser.types import RangeSweep

from mmprompt.settings.deployment import Limits
from mmprompt.settings.parsing import ConfigError, parse
from sweeps.grid import yaml_file

POINTS = "limits.points"
COUNTABLE = 10**15  # a larger count is shown as "more than" this


def points_allowed(overrides: Iterable[str], conf: Path) -> int:
    """Returns the limit from the last override that sets it, else from conf/config.yaml.

    Raises ConfigError if it is not a whole number of at least 1.
    """
    given = [text.partition("=")[2] for text in overrides if text.partition("=")[0] == POINTS]
    if given:
        if not re.fullmatch("[1-9][0-9]{0,15}", given[-1]):
            raise ConfigError(f"{POINTS}={given[-1]} is not allowed; wanted: a whole number of at least 1")
        return int(given[-1])
    try:
        return parse(Limits, yaml_file.read(conf / "config.yaml")["limits"]).points
    except ConfigError as error:
        raise ConfigError(f"conf/config.yaml: {error}") from None


def check_points(what: str, count: int, most: int, of: str = "points", cure: str = "narrow an axis") -> None:
    """Raises ConfigError if `count` is more than `most`. The message says that `what` has `count` `of`, and names the `cure`."""
    if count > most:
        raise ConfigError(f"{what} has {in_digits(count)} {of}; limit is {most:,} ({POINTS}); {cure} or raise {POINTS}")


def check_range(what: str, values: RangeSweep, most: int) -> None:
    """Raises ConfigError if a range has more than `most` values, or has no end. `what` names the override in the message."""
    ends: Sequence[float] = [values.start or 0, values.stop or 0, values.step]
    if not all(map(math.isfinite, ends)) or not values.step:
        raise ConfigError(f"{what} has no end; wanted: range(START, STOP, STEP) with numbers, and a STEP that is not 0")
    start, stop, step = map(Fraction, ends)
    check_points(what, max(0, math.ceil((stop - start) / step)), most)


def in_digits(count: int) -> str:
    """Returns the count with commas between thousands, or "more than" `COUNTABLE`."""
    return f"{count:,}" if count < COUNTABLE else f"more than {COUNTABLE:,}"
