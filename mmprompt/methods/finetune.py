"""Finetuning: the whole backbone trains."""

from __future__ import annotations

import torch

from mmprompt.models.ofa import OFA
from mmprompt.settings.finetune import Finetune


def install(settings: Finetune, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Makes the whole backbone trainable, except for the token embedding if `freeze_embedding` is set."""
    backbone.requires_grad_(True)
    backbone.embed.weight.requires_grad_(not settings.freeze_embedding)
