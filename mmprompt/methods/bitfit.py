"""BitFit: only biases train (Ben Zaken et al. 2022; facts 1.5)."""

from __future__ import annotations

import torch

from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import official_name
from mmprompt.settings.bitfit import BitFit


def install(settings: BitFit, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Makes those biases trainable that the rule selects."""
    for name, parameter in backbone.named_parameters():
        if name.endswith(".bias") and (settings.rule == "all" or is_published_bias(name)):
            parameter.requires_grad_(True)


def is_published_bias(name: str) -> bool:
    """Whether the published code trains this bias. Its rule looks at the official name, which must contain layer_norm or fc.

    So the norms that are called layernorm (after attention, inside the FFN, of embeddings) and the biases of attention stay frozen.
    """
    official = official_name(name)
    return "layer_norm" in official or "fc" in official
