"""BitFit (Ben Zaken et al. 2022; facts 1.5): its settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mmprompt.settings.method import MethodSettings


class BitFit(MethodSettings):
    """Biases alone train."""

    label = "BitFit"
    is_published = True

    rule: Literal["published", "all"] = Field(
        title="BitFit rule",
        description="which biases; published: of norms before attention and FFN, of the stacks, of the FFN's two layers",
    )

    def in_words(self) -> str:
        return self.rule
