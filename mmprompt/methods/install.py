"""A method of tuning, put on a backbone: what it adds, and exactly which tensors train (facts 1.5).

The module of this package that is called as the method knows both, in its function `install`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import torch

from mmprompt import methods
from mmprompt.models.ofa import OFA
from mmprompt.runs.config import RunConfig


class Installer(Protocol):
    """A method's own `install`. It gets a backbone of which nothing trains; what it adds trains, as every new parameter does.

    `std` is that of every linear layer of the model at the start, which what is added starts with too: that is what the published
    code amounts to.
    """

    def __call__(self, settings: Any, backbone: OFA, std: float, generator: torch.Generator, /) -> None: ...


def install(config: RunConfig, backbone: OFA, generator: torch.Generator) -> None:
    """Adds what the method adds, and lets train what it trains: `requires_grad` is True there and nowhere else."""
    backbone.requires_grad_(False)
    installer(config.method)(config.method_settings, backbone, config.model.init_std, generator)


def installer(method: str) -> Installer:
    module = import_module(f"{methods.__name__}.{method}")
    found: Installer = module.install
    return found
