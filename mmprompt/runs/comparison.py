"""How a sweep's runs are compared and shown: the part of a sweep's file that its manifest keeps and `analysis` reads.

`sweeps.grid.sweep_file.Sweep` has these fields, the manifest stores them, and tables and figures follow them. If a manifest was
written before a field existed, the field has its default.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from mmprompt.settings.section import Section

Fact = Literal[  # what runs record besides scores
    "trainable_parameters",
    "epochs",
    "epochs_to_99",
    "seconds",
    "device_hours",
    "device_hours_spent",
    "seconds_per_100",
    "peak_memory_mb",
]
FACTS: tuple[str, ...] = get_args(Fact)
RECORDED = tuple(fact for fact in FACTS if fact != "seconds_per_100")  # by every run
Margin = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Claim(Section):
    """What a sweep should show: a contrast with a direction, declared before anyone has seen results.

    It is the score of one row minus that of another; or, over the values of the compared axis, the slope per doubling or the
    curvature, which shows a turning point.
    """

    claim: str
    paper: str | None = None  # where the paper says it
    row: dict[str, Any] = Field(default_factory=dict)  # values of the axes that are compared
    than: dict[str, Any] = Field(default_factory=dict)
    trend: Literal["slope", "curvature"] | None = None
    expect: Literal["higher", "lower", "equivalent"]
    quantity: str = "score"  # or kept, or a fact that runs record
    tasks: Literal["each", "average"] = "each"


class Comparison(Section):
    """A table with a row per value of `compare` and a column per task; a figure with that axis on x and a panel per task."""

    compare: str | list[str]  # the axis that is compared; several: what they say together ("bitfit all") is
    each: list[str] = Field(
        default_factory=list, description="axes; compared apart for each: rows of their own, lines of the figure"
    )
    over: str | None = Field(
        default=None,
        description="the axis along which each row is followed: columns of the table, x of lines in the figure",
    )
    kept_from: Any = Field(
        default=None, description="a value of `over`: a second table says which share of the score there is kept"
    )
    curves: bool = Field(default=False, description="the figure shows learning curves")
    facts: list[Fact] = Field(default_factory=list, description="what runs took, as columns")
    splits: list[str] | None = Field(
        default=None, description="of the table and the figure; null: all that were evaluated but val"
    )
    # How its rows are compared (docs/statistics.md).
    family: Literal["table", "task"] = Field(
        default="table", description="the comparisons that are corrected together: all, or those of each task"
    )
    paired: bool = Field(
        default=False, description="the same seed makes two rows alike, so that differences are taken seed by seed"
    )
    margin: dict[str, Margin] = Field(
        default_factory=dict, description="by metric, or percent, or kept: differences that do not matter"
    )
    claims: list[Claim] = Field(default_factory=list)

    @property
    def compared(self) -> list[str]:
        return [self.compare] if isinstance(self.compare, str) else self.compare
