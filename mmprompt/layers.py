"""One encoder layer and one decoder layer: pre-norm residual branches with OFA's extra norms (facts 4.7).

B batch, T sequence, U encoder sequence, P prompt length, H heads, d width.
Each branch: norm, sublayer, norm (inside the feed-forward for the last), dropout, drop-path, add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.attention import Attention, KeyValue, attention_mask
from mmprompt.config import Model


class DropPath(nn.Module):
    """While training, leaves out a whole branch for some examples. Draws from the global stream, like nn.Dropout."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:  # B T d
        if not self.training or self.rate == 0:
            return branch
        keep = torch.empty(len(branch), 1, 1, dtype=branch.dtype, device=branch.device).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)


class FeedForward(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.up = nn.Linear(model.dim, model.ffn_dim)
        self.norm = nn.LayerNorm(model.ffn_dim)
        self.down = nn.Linear(model.ffn_dim, model.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.norm(F.gelu(self.up(x))))
        return y  # B T d


class EncoderLayer(nn.Module):
    def __init__(self, model: Model, drop_path: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(model.dim)
        self.self_attention = Attention(model.dim, model.heads)
        self.self_out_norm = nn.LayerNorm(model.dim)
        self.ffn_norm = nn.LayerNorm(model.dim)
        self.ffn = FeedForward(model)
        self.dropout = nn.Dropout(model.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None, prefix: KeyValue | None) -> Tensor:
        """x B T d; bias H T T; padding B T; prefix B H P Dh."""
        mask = attention_mask(bias, padding, prefix)
        y: Tensor = self.self_norm(x)
        y = self.self_out_norm(self.self_attention(y, y, mask, prefix))
        x = x + self.drop_path(self.dropout(y))
        y = self.ffn(self.ffn_norm(x))
        x = x + self.drop_path(self.dropout(y))
        return x


class DecoderLayer(nn.Module):
    def __init__(self, model: Model, drop_path: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(model.dim)
        self.self_attention = Attention(model.dim, model.heads)
        self.self_out_norm = nn.LayerNorm(model.dim)
        self.cross_norm = nn.LayerNorm(model.dim)
        self.cross_attention = Attention(model.dim, model.heads)
        self.cross_out_norm = nn.LayerNorm(model.dim)
        self.ffn_norm = nn.LayerNorm(model.dim)
        self.ffn = FeedForward(model)
        self.dropout = nn.Dropout(model.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        padding: Tensor | None,
        prefix: KeyValue | None,
        memory: Tensor,
        memory_mask: Tensor,
    ) -> Tensor:
        """x B T d; bias H T T, causal; padding B T; prefix B H P Dh; memory B U d; memory_mask (B or 1) H T U."""
        mask = attention_mask(bias, padding, prefix)
        y: Tensor = self.self_norm(x)
        y = self.self_out_norm(self.self_attention(y, y, mask, prefix))
        x = x + self.drop_path(self.dropout(y))
        y = self.cross_norm(x)
        y = self.cross_out_norm(self.cross_attention(y, memory, memory_mask, None))
        x = x + self.drop_path(self.dropout(y))
        y = self.ffn(self.ffn_norm(x))
        x = x + self.drop_path(self.dropout(y))
        return x
