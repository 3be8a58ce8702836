"""Finetuning: everything trains."""

from __future__ import annotations

import torch

from mmprompt.models.ofa import OFA
from mmprompt.settings.finetune import Finetune


def install(settings: Finetune, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Lets all of the backbone train; the token embedding unless it is to stay frozen."""
    backbone.requires_grad_(True)
    backbone.embed.weight.requires_grad_(not settings.freeze_embedding)
