"""BitFit: biases alone train (Ben Zaken et al. 2022; facts 1.5)."""

from __future__ import annotations

import torch

from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import official_name
from mmprompt.settings.bitfit import BitFit


def install(settings: BitFit, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Lets the biases train that the rule finds."""
    for name, parameter in backbone.named_parameters():
        if name.endswith(".bias") and (settings.rule == "all" or is_published_bias(name)):
            parameter.requires_grad_(True)


def is_published_bias(name: str) -> bool:
    """The rule of the published code, which goes by official names: a bias of something called layer_norm or fc.

    So norms that are called layernorm (after attention, inside the FFN, of embeddings) and attention's biases stay frozen.
    """
    official = official_name(name)
    return "layer_norm" in official or "fc" in official
