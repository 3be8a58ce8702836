"""Reads `conf/sweep/NAME.yaml` and makes the sweep's points: a union of blocks, minus the points that `exclude` names.

Each block is a product of axes times the rows of a zip. Overrides from the command line replace the values of an axis, fix an
axis, or add one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import Field

from mmprompt.runs.comparison import Claim, Comparison, Fact
from mmprompt.settings.parsing import ConfigError, parse
from mmprompt.settings.section import Section
from mmprompt.settings.spelling import nearest
from sweeps.grid import yaml_file
from sweeps.grid.compose import check
from sweeps.grid.limits import POINTS, check_points


class Block(Section):
    """A part of the grid: axes with their values. A key that the sweep's file leaves out is empty."""

    product: dict[str, list[Any]] = Field(default_factory=dict)
    zip: dict[str, list[Any]] = Field(default_factory=dict)
    fixed: dict[str, Any] = Field(default_factory=dict)  # one value each, for this block's points; not axes

    @property
    def axes(self) -> dict[str, list[Any]]:
        return self.product | self.zip

    @property
    def size(self) -> int:
        """The number of the block's points, computed without making them."""
        rows = max((len(values) for values in self.zip.values()), default=1)
        return rows * math.prod(map(len, self.product.values()))

    def points(self, fixed: Mapping[str, Any]) -> Iterator[Point]:
        rows = list(zip(*self.zip.values(), strict=True)) or [()]
        keys = list(self.axes)
        for values in itertools.product(*self.product.values()):
            for row in rows:
                point = dict(zip(keys, (*values, *row), strict=True))
                yield Point(point, {**fixed, **self.fixed, **point})


class Sweep(Comparison):
    """The content of `conf/sweep/NAME.yaml`: the points, and how their runs are compared."""

    name: str
    claim: str
    paper: dict[str, str]  # the table and figure of the paper that the sweep reproduces
    command: str
    fixed: dict[str, Any] = Field(default_factory=dict)
    grid: list[Block]
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    baseline: dict[str, Any] | None = None  # the point whose row the others are measured against

    @property
    def axes(self) -> dict[str, list[Any]]:
        """Every axis with its values in all blocks."""
        axes: dict[str, list[Any]] = {}
        for block in self.grid:
            for key, values in block.axes.items():
                axes[key] = distinct([*axes.get(key, []), *values])
        return axes

    @property
    def size(self) -> int:
        """The number of the grid's points, excluded ones included, computed without making them."""
        return sum(block.size for block in self.grid)

    def all_points(self) -> list[Point]:
        """The points of the grid, excluded ones included, in the order of the file."""
        return [point for block in self.grid for point in block.points(self.fixed)]

    def points(self) -> list[Point]:
        """The points that are not excluded, in the order of the file."""
        return [point for point in self.all_points() if not any(point.matches(row) for row in self.exclude)]

    def lacks_baseline(self) -> bool:
        return self.baseline is not None and not any(point.matches(self.baseline) for point in self.points())

    def lacks(self, claim: Claim) -> bool:
        """Whether the grid lacks a row that the claim names, or has fewer than three values for the claim's trend."""
        rows = [row for row in (claim.row, claim.than) if row]
        is_too_short = claim.trend is not None and len(self.axes.get(self.compared[0], ())) < 3
        return is_too_short or not all(any(point.matches(row) for point in self.points()) for row in rows)

    def lacks_kept_from(self) -> bool:
        return self.over is not None and self.kept_from is not None and self.kept_from not in self.axes[self.over]


@dataclass(frozen=True)
class Point:
    """One combination of values on the axes."""

    values: dict[str, Any]  # by axis
    overrides: dict[
        str, Any
    ]  # these values and the fixed ones: everything in which the point differs from conf/'s defaults

    def matches(self, row: Mapping[str, Any]) -> bool:
        """Whether the point has all values of the row."""
        return all(key in self.overrides and self.overrides[key] == value for key, value in row.items())


def distinct(values: Sequence[Any]) -> list[Any]:
    """Returns each value once, in the order in which the values first occur."""
    first: dict[Hashable, Any] = {}
    for value in values:
        first.setdefault(hashable(value), value)
    return list(first.values())


def hashable(value: Any) -> Hashable:
    """Returns a hashable stand-in, equal for equal values. Lists and sections cannot be hashed themselves."""
    if isinstance(value, list):
        return tuple(map(hashable, value))
    if isinstance(value, dict):
        return frozenset((key, hashable(item)) for key, item in value.items())
    return value


def names(conf: Path) -> list[str]:
    """The names of the sweeps in conf/, in alphabetical order."""
    return sorted(file.stem for file in (conf / "sweep").glob("*.yaml"))


def read(name: str, conf: Path, most: int) -> Sweep:
    """Reads and checks the sweep of this name.

    Raises ConfigError, with file and key, for a mistake in the file and for more than `most` points.
    """
    if name not in names(conf):
        raise ConfigError(f"there is no sweep {name}{nearest(name, names(conf))}; there are {', '.join(names(conf))}")
    try:
        sweep = _sweep(name, yaml_file.read(conf / "sweep" / f"{name}.yaml"))
        _check(sweep, conf, most)
    except ConfigError as error:
        raise ConfigError(f"conf/sweep/{name}.yaml: {yaml_file.one_line(error)}") from None
    return sweep


def _sweep(name: str, content: Any) -> Sweep:
    if not isinstance(content, dict):
        raise ConfigError("a sweep is a list of KEY: VALUE lines")
    _check_keys("a sweep", content, Sweep)
    for block in content["grid"] if isinstance(content.get("grid"), list) else []:
        _check_keys("a block of the grid", block if isinstance(block, dict) else {}, Block)
    return parse(Sweep, content | {"name": name})


def _check_keys(owner: str, content: Mapping[str, Any], schema: type[Section]) -> None:
    for key in content:
        if key not in schema.model_fields or key == "name":
            raise ConfigError(f"{key} is not a key of {owner}{nearest(str(key), schema.model_fields)}")


def _check(sweep: Sweep, conf: Path, most: int) -> None:
    """Raises ConfigError for the first mistake in a sweep."""
    if not sweep.grid:
        raise ConfigError("grid has no blocks")
    check_points("grid", sweep.size, most)
    for block in sweep.grid:
        _check_block(block)
        for key, values in block.axes.items():
            check(key, values, conf)
    for fixed in (sweep.fixed, *(block.fixed for block in sweep.grid)):
        for key, value in fixed.items():
            check(key, [value], conf)
    keys = [*sweep.axes, *sweep.fixed, *(key for block in sweep.grid for key in block.fixed)]
    if any(key in (POINTS, POINTS.split(".")[0]) for key in keys):
        raise ConfigError(f"{POINTS} is not a setting of a sweep; give it on the command line, or in conf/config.yaml")
    _check_shown(sweep)
    for row in sweep.exclude:
        if not any(point.matches(row) for point in sweep.all_points()):
            raise ConfigError(f"exclude {_text(row)} matches no point of the grid")
    if not sweep.points():
        raise ConfigError("exclude leaves no point of the grid")
    if sweep.lacks_baseline():
        raise ConfigError(f"baseline {_text(sweep.baseline or {})} matches no point of the grid")
    for claim in sweep.claims:
        _check_claim(sweep, claim)


def _check_claim(sweep: Sweep, claim: Claim) -> None:
    """Raises ConfigError if the claim cannot be computed from the sweep's runs."""
    subject = f"claims: {claim.claim!r}"
    if (claim.trend is None) != bool(claim.row and claim.than):
        raise ConfigError(f"{subject} needs either row and than, or trend")
    for row in (claim.row, claim.than):
        if other := next((axis for axis in row if axis not in sweep.compared), None):
            raise ConfigError(f"{subject} names {other}, which is not compared; compare is {', '.join(sweep.compared)}")
    if claim.trend is not None and not (
        len(sweep.compared) == 1 and all(_is_positive(value) for value in sweep.axes[sweep.compared[0]])
    ):
        raise ConfigError(f"{subject} has trend={claim.trend}, which needs one compared axis of numbers above 0")
    if sweep.lacks(claim):
        raise ConfigError(f"{subject} is about rows that the grid does not have")
    quantities = ["score", *(["kept"] if sweep.kept_from is not None else []), *get_args(Fact)]
    if claim.quantity not in quantities:
        raise ConfigError(
            f"{subject} has quantity={claim.quantity}{nearest(claim.quantity, quantities)}; wanted {', '.join(quantities)}"
        )
    if claim.quantity in get_args(Fact) and claim.quantity not in sweep.facts:
        raise ConfigError(f"{subject} has quantity={claim.quantity}, which is not among the sweep's facts")
    if claim.expect == "equivalent" and not sweep.margin:
        raise ConfigError(f"{subject} expects equivalent, and the sweep declares no margin")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _check_shown(sweep: Sweep) -> None:
    """Raises ConfigError if the table and the figure cannot show what the sweep's file asks for."""
    roles = {"compare": sweep.compared, "each": sweep.each, "over": [sweep.over] if sweep.over is not None else []}
    used: dict[str, str] = {"task": "always a column", "seed": "always averaged over"}
    for role, axes in roles.items():
        for axis in axes:
            if axis not in sweep.axes:
                raise ConfigError(f"{role}={axis} is not an axis of the grid{nearest(axis, sweep.axes)}")
            if axis in used and (axis, role) != ("seed", "compare"):
                raise ConfigError(f"{role}={axis} is not allowed: {axis} is {used[axis]}")
            used[axis] = f"in {role}"
    if not sweep.compared:
        raise ConfigError("compare names no axis")
    if sweep.over is None and sweep.kept_from is not None:
        raise ConfigError(f"kept_from={sweep.kept_from} is a value of `over`, which is missing")
    if sweep.over is not None and sweep.curves:
        raise ConfigError(f"curves=true and over={sweep.over} both want the figure; there is one per sweep")
    if sweep.lacks_kept_from():
        raise ConfigError(f"kept_from={sweep.kept_from} is not a value of {sweep.over}")


def _check_block(block: Block) -> None:
    """Raises ConfigError for axes of a block that are missing, empty, given twice, or of unequal length in a zip."""
    if not block.axes:
        raise ConfigError("a block of the grid has no axes; give it product, zip or both")
    for key, values in block.axes.items():
        if not values:
            raise ConfigError(f"axis {key} has no values")
        seen: set[Hashable] = set()
        for value in values:
            if hashable(value) in seen:
                raise ConfigError(f"axis {key} has the value {value} twice")
            seen.add(hashable(value))
    if shared := set(block.product) & set(block.zip):
        raise ConfigError(f"axis {shared.pop()} is in product and in zip of one block")
    lengths = {key: len(values) for key, values in block.zip.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} has {count} values" for key, count in lengths.items())
        raise ConfigError(f"the axes of a zip need equally many values: {counts}")


def with_overrides(sweep: Sweep, changes: Mapping[str, Sequence[Any]], most: int) -> Sweep:
    """Returns the sweep with other values on these axes, in every block. A new key becomes an axis, or is fixed by a single value.

    Where blocks have different values on an axis (such as `method`) and the new values are among the old ones, the new values
    select points instead. Exclusions, a baseline, a `kept_from`, claims, and axes in compare and each are dropped where the
    changed grid lacks them. Raises ConfigError if the changed sweep is not valid or has more than `most` points.
    """
    chosen = {key: list(values) for key, values in changes.items() if _chooses(sweep, key, values)}
    blocks = [rest for block in sweep.grid if (rest := _chosen(block, chosen)) is not None]
    changes = {key: values for key, values in changes.items() if key not in chosen}
    axes = {key: list(values) for key, values in changes.items() if key in sweep.axes or len(values) > 1}
    fixed = {key: values[0] for key, values in changes.items() if key not in axes}
    changed = sweep.model_copy(
        update={
            "grid": [_changed(block, axes, fixed) for block in blocks],
            "fixed": {key: value for key, value in sweep.fixed.items() if key not in changes} | fixed,
        }
    )
    check_points(f"sweep {sweep.name}", changed.size, most)
    for block in changed.grid:
        _check_block(block)
    points = changed.all_points()
    exclude = [row for row in sweep.exclude if any(point.matches(row) for point in points)]
    changed = changed.model_copy(update={"exclude": exclude})
    if not changed.points():
        raise ConfigError(f"sweep {sweep.name}: with these overrides no point of the grid is left")
    remaining = changed.axes
    compared = [axis for axis in changed.compared if axis in remaining]
    if not compared:
        missing = ", ".join(changed.compared)
        raise ConfigError(f"sweep {sweep.name}: with these overrides no point has {missing}, which it compares")
    shown: dict[str, Any] = {"each": [axis for axis in changed.each if axis in remaining]}
    if len(compared) < len(changed.compared):
        shown["compare"] = compared
    if changed.claims:
        shown["claims"] = [claim for claim in changed.claims if not changed.lacks(claim)]
    lost = {"baseline": changed.lacks_baseline(), "kept_from": changed.lacks_kept_from()}
    return changed.model_copy(update=shown | {key: None for key, is_lost in lost.items() if is_lost})


def _chooses(sweep: Sweep, key: str, values: Sequence[Any]) -> bool:
    """Whether an override selects among existing points: blocks differ on this axis and have all of the override's values."""
    differ = any(block.axes.get(key) != sweep.grid[0].axes.get(key) for block in sweep.grid)
    return differ and {hashable(value) for value in values} <= {hashable(value) for value in sweep.axes[key]}


def _chosen(block: Block, chosen: Mapping[str, list[Any]]) -> Block | None:
    """Returns the block with only the chosen values; None if no point is left.

    A block that does not vary a chosen axis stays, unless it fixes the axis to a value that was not chosen.
    """
    if any(block.fixed[key] not in values for key, values in chosen.items() if key in block.fixed):
        return None
    allowed = {key: {hashable(value) for value in values} for key, values in chosen.items()}

    def is_chosen(key: str, value: Any) -> bool:
        return key not in allowed or hashable(value) in allowed[key]

    product = {key: [value for value in values if is_chosen(key, value)] for key, values in block.product.items()}
    keys = list(block.zip)
    rows = [row for row in zip(*block.zip.values(), strict=True) if all(map(is_chosen, keys, row))]
    if (keys and not rows) or not all(product.values()):
        return None
    zipped = {key: [row[place] for row in rows] for place, key in enumerate(keys)}
    return Block(product=product, zip=zipped, fixed=block.fixed)


def _changed(block: Block, axes: Mapping[str, list[Any]], fixed: Mapping[str, Any]) -> Block:
    zipped = {key: axes.get(key, values) for key, values in block.zip.items() if key not in axes or len(axes[key]) > 1}
    rest = {key: values for key, values in axes.items() if key not in zipped}
    own = {key: value for key, value in block.fixed.items() if key not in axes and key not in fixed}
    return Block(product=block.product | rest, zip=zipped, fixed=own)


def _text(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in row.items())
