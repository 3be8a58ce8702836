"""LoRA: a linear layer whose frozen weight gets a trained update of low rank (Hu et al. 2021, section 4.1).

r rank, d_in and d_out widths:  y = W x + b + alpha / r * U D x,  with D r x d_in random and U d_out x r zero at the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.models.attention import Attention
from mmprompt.models.ofa import OFA
from mmprompt.models.precision import Linear
from mmprompt.settings.lora import LoRA


def install(settings: LoRA, backbone: OFA, std: float, generator: torch.Generator) -> None:
    """Adds a low-rank update to the chosen projections of each attention, self- and cross-attention. Nothing else trains."""
    for attention in [module for module in backbone.modules() if isinstance(module, Attention)]:
        for target in settings.targets:
            linear: nn.Linear = getattr(attention, target)
            setattr(attention, target, LowRank(linear, settings.rank, settings.alpha, std, generator))


class LowRank(Linear):
    """Replaces a linear layer, and keeps its weight and bias under their names."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, std: float, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, alpha / rank
        device = linear.weight.device
        self.lora_down = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        nn.init.normal_(self.lora_down, std=std, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.lora_down.to(x.dtype), self.lora_up.to(x.dtype)
        return super().forward(x) + self.scale * F.linear(F.linear(x, down), up)
