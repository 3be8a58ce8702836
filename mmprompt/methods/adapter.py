"""The adapter: a bottleneck with a residual of its own (Houlsby et al. 2019; as in OFA's code, facts 1.6).

B batch, T sequence, d width, r bottleneck.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """x + up(relu(down(x))), at the end of a feed-forward, before the layer's own residual. Not the identity at the start."""

    def __init__(self, dim: int, bottleneck: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))  # B T d
