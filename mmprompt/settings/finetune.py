"""Finetuning: its settings."""

from __future__ import annotations

from pydantic import Field

from mmprompt.settings.method import MethodSettings


class Finetune(MethodSettings):
    """Everything trains."""

    label = "Finetuning"
    is_published = True

    freeze_embedding: bool = Field(
        description="the token embedding, which is also the output projection, stays as it is; so in the published "
        "caption and VQA"
    )
