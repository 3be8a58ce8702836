"""Multi-head attention as in OFA, with room for a prefix (facts 1.2, 4.7).

B batch, T queries, U keys, P prompt length, H heads, Dh head width, d width.
Per head, with c the learned head scale:
    scores = q k' / sqrt(2 Dh) + bias        over [prefix ; keys], bias 0 on the prefix
    output = c softmax(scores) [prefix values ; values]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]  # B H P Dh each
Prefixes = Sequence[KeyValue | None]  # one per layer of a stack; None: that layer has no prompt


def attention_mask(bias: Tensor, padding: Tensor | None, prefix: KeyValue | None) -> Tensor:
    """What is added to the scores: the bias, 0 before it for the prefix, -inf on padded keys."""
    mask = bias[None]  # 1 H T U
    if padding is not None:  # B U
        mask = mask.masked_fill(padding[:, None, None, :], float("-inf"))  # B H T U
    if prefix is not None:
        mask = F.pad(mask, (prefix[0].shape[2], 0))  # . H T P+U
    return mask


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (2 * dim // heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.head_scale = nn.Parameter(torch.ones(heads))

    def split(self, x: Tensor) -> Tensor:  # B T d
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # B H T Dh

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor, prefix: KeyValue | None) -> Tensor:
        """`x` (B T d) looks at `memory` (B U d) under `mask` (B or 1, H T P+U)."""
        query = self.split(self.query(x))
        key, value = self.split(self.key(memory)), self.split(self.value(memory))
        if prefix is not None:
            key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)  # B H P+U Dh
        heads = F.scaled_dot_product_attention(query, key, value, mask, scale=self.scale)  # B H T Dh
        heads = heads * self.head_scale[:, None, None]
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out  # B T d
