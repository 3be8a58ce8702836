"""LoRA (Hu et al. 2021, section 4): its settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmprompt.settings.method import MethodSettings
from mmprompt.settings.section import Positive, PositiveFloat


class LoRA(MethodSettings):
    """Low-rank updates of attention projections."""

    label = "LoRA"

    rank: Positive = Field(title="LoRA rank", description="r of the update")
    alpha: PositiveFloat = Field(description="the update is scaled by alpha / rank")
    targets: Annotated[list[Literal["query", "key", "value", "out"]], Field(min_length=1)] = Field(
        description="which projections of every attention"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_per_meaning(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(targets := values.get("targets"), list):
            return values | {"targets": sorted(set(targets), key=str)}
        return values

    def in_words(self) -> str:
        return f"r={self.rank}"
