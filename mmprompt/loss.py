"""The training loss: cross entropy with smoothed labels, summed over tokens (facts 3.4).

V vocabulary, e the smoothing. The right token has weight 1 - e, every other one e / (V - 1):
    loss = (1 - e - e') nll + e' sum over the vocabulary of -log p,     e' = e / (V - 1)
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmprompt.ofa import PAD


def label_smoothed(logits: Tensor, targets: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Sum over the tokens that are not padding, and their count. logits ... V, targets ... ."""
    vocabulary = logits.shape[-1]
    spread = smoothing * vocabulary / (vocabulary - 1)  # torch spreads over all V tokens, the right one included
    total = F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=PAD, label_smoothing=spread, reduction="sum"
    )
    return total, (targets != PAD).sum()
