"""Installs a method of tuning in a backbone: adds its modules, and decides exactly which tensors train (facts 1.5).

Each method has a module with its name in this package, whose function `install` does both.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

import torch

from mmprompt import methods
from mmprompt.models.ofa import OFA
from mmprompt.runs.config import RunConfig


class Installer(Protocol):
    """The type of a method's `install`. In the backbone that it gets nothing trains; new parameters train by default.

    `std`: the standard deviation with which the model's linear layers are initialised. The layers that a method adds are
    initialised with it too, which is what the published code does in effect.
    """

    def __call__(self, settings: Any, backbone: OFA, std: float, generator: torch.Generator, /) -> None: ...


def install(config: RunConfig, backbone: OFA, generator: torch.Generator) -> None:
    """Adds the method's modules to the backbone, and sets `requires_grad` to True where the method trains, to False elsewhere."""
    backbone.requires_grad_(False)
    installer(config.method)(config.method_settings, backbone, config.model.init_std, generator)


def installer(method: str) -> Installer:
    """The function `install` of the method with this name."""
    module = import_module(f"{methods.__name__}.{method}")
    function: Installer = module.install
    return function
