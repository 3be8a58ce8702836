"""Layers that compute in the precision of their input, whatever the precision in which their weights are held.

A frozen weight is held in the precision of the forward pass, and so is never cast again. A trained weight stays float32, because
small updates would be lost in bfloat16; it is cast where it is used. Norms compute their statistics in float32 on every device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Precision = Literal["float32", "bfloat16"]


def dtype_of(precision: Precision) -> torch.dtype:
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Conv2d(nn.Conv2d):
    """A convolution without bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.to(x.dtype), None)


def hold_frozen(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Casts the frozen parameters of these modules, in place. BatchNorm keeps its own in float32, like its running statistics."""
    for part in modules:
        for module in part.modules():
            if not isinstance(module, nn.BatchNorm2d):
                for parameter in module.parameters(recurse=False):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.to(dtype)
