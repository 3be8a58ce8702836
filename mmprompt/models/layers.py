"""One encoder layer and one decoder layer: pre-norm residual branches with OFA's extra norms (facts 4.7).

B batch, T sequence, R tokens read before, U encoder sequence, P prompt length, A positions whose output is needed, H heads,
Dh head width, d width.
The steps of each branch are norm, sublayer, norm (in the feed-forward branch inside the sublayer), dropout, adapter if there is
one (feed-forward branch only), drop-path, add.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.models.attention import Attention, KeyValue, Past
from mmprompt.models.precision import LayerNorm, Linear
from mmprompt.settings.model import Model


def gather_places(x: Tensor, places: Tensor) -> Tensor:
    """Gathers the rows of x (B T d) at `places` (B A). Returns B A d."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))


class DropPath(nn.Module):
    """In training, leaves out a whole branch for some examples. Draws from torch's global random stream, like nn.Dropout."""

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
        self.up = Linear(model.dim, model.ffn_dim)
        self.norm = LayerNorm(model.ffn_dim)
        self.down = Linear(model.ffn_dim, model.dim)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.norm(F.gelu(self.up(x))))
        return y  # B T d


class EncoderLayer(nn.Module):
    def __init__(self, model: Model, drop_path: float) -> None:
        super().__init__()
        self.self_norm = LayerNorm(model.dim)
        self.self_attention = Attention(model.dim, model.heads)
        self.self_out_norm = LayerNorm(model.dim)
        self.ffn_norm = LayerNorm(model.dim)
        self.ffn = FeedForward(model)
        self.adapter: nn.Module = nn.Identity()  # `mmprompt.methods.adapter` may put one there
        self.dropout = nn.Dropout(model.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, mask: Tensor, hidden: Tensor | None, prefix: KeyValue | None) -> Tensor:
        """x B T d; mask (B or 1) H T P+T; hidden B 1 1 T, -inf at padding; prefix B H P Dh. Returns B T d."""
        y: Tensor = self.self_norm(x)
        y = self.self_out_norm(self.self_attention(y, y, mask, prefix, hidden))
        x = x + self.drop_path(self.dropout(y))
        y = self.ffn(self.ffn_norm(x))
        x = x + self.drop_path(self.adapter(self.dropout(y)))
        return x


class DecoderLayer(nn.Module):
    def __init__(self, model: Model, drop_path: float) -> None:
        super().__init__()
        self.self_norm = LayerNorm(model.dim)
        self.self_attention = Attention(model.dim, model.heads)
        self.self_out_norm = LayerNorm(model.dim)
        self.cross_norm = LayerNorm(model.dim)
        self.cross_attention = Attention(model.dim, model.heads)
        self.cross_out_norm = LayerNorm(model.dim)
        self.ffn_norm = LayerNorm(model.dim)
        self.ffn = FeedForward(model)
        self.adapter: nn.Module = nn.Identity()  # `mmprompt.methods.adapter` may put one there
        self.dropout = nn.Dropout(model.dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        past: Past | None,
        memory: KeyValue,
        memory_mask: Tensor,
        wanted: Tensor | None,
    ) -> tuple[Tensor, Past]:
        """x B T d; past: keys and values of the prompt and of the tokens read before, P+R; memory B H U Dh.

        With `wanted` (B A) the layer computes its output at these positions of x only; keys and values are computed at all
        positions. mask B or 1, H A R+T; memory_mask B or 1, H A U. Returns the output B A d, and the past extended by x.
        """
        y: Tensor = self.self_norm(x)
        new = self.self_attention.key_value(y)
        past = Past(new, x.shape[1]) if past is None else past.append(new)
        mask = F.pad(mask, (past.length - mask.shape[3], 0))  # bias 0 on the prompt
        if wanted is not None:
            x, y = gather_places(x, wanted), gather_places(y, wanted)
        y = self.self_out_norm(self.self_attention.attend(y, past.key_value, mask))
        x = x + self.drop_path(self.dropout(y))
        y = self.cross_norm(x)
        y = self.cross_out_norm(self.cross_attention.attend(y, memory, memory_mask))
        x = x + self.drop_path(self.dropout(y))
        y = self.ffn(self.ffn_norm(x))
        x = x + self.drop_path(self.adapter(self.dropout(y)))
        return x, past
