"""Adapters (Houlsby et al. 2019; facts 1.6): their settings."""

from __future__ import annotations

from pydantic import Field

from mmprompt.settings.method import MethodSettings
from mmprompt.settings.section import Positive


class Adapter(MethodSettings):
    """A bottleneck after each feed-forward."""

    label = "Adapter"
    is_published = True

    dim: Positive = Field(title="Adapter width", description="r, the width of the bottleneck")

    def in_words(self) -> str:
        return f"r={self.dim}"
