"""Adapters: a bottleneck with its own residual after each feed-forward (Houlsby et al. 2019; as in OFA's code, facts 1.6).

In the published code the adapter's flag alone still trains the backbone; here the backbone is frozen.

B batch, T sequence, d width, r bottleneck.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.models.ofa import OFA
from mmprompt.models.precision import Linear
from mmprompt.settings.adapter import Adapter


def install(settings: Adapter, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Adds a bottleneck to each layer of both stacks. Nothing else trains."""
    for layer in (*backbone.encoder.layers, *backbone.decoder.layers):
        layer.adapter = Bottleneck(backbone.embed.embedding_dim, settings.dim, std, generator)


class Bottleneck(nn.Module):
    """x + up(relu(down(x))), at the end of a feed-forward, before the layer's own residual. It does not start as the identity."""

    def __init__(self, dim: int, bottleneck: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.down = Linear(dim, bottleneck)
        self.up = Linear(bottleneck, dim)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=std, generator=generator)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.relu(self.down(x)))  # B T d
