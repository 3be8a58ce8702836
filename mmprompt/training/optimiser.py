"""torch's AdamW, without importing torch's compiler.

torch wraps the optimiser's methods so that they are not compiled. At the first call the wrappers import the compiler, which takes
2 s of CPU in every process that trains, more than a small run takes. Nothing is compiled here, so the wrappers are removed. In a
version of torch without such wrappers, the methods stay as they are.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


def unwrapped(method: Any) -> Any:
    """A method without torch's wrappers."""
    return inspect.unwrap(method)


class AdamW(torch.optim.AdamW):
    add_param_group = unwrapped(torch.optim.AdamW.add_param_group)
    zero_grad = unwrapped(torch.optim.AdamW.zero_grad)
    state_dict = unwrapped(torch.optim.AdamW.state_dict)
    load_state_dict = unwrapped(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(unwrapped(torch.optim.AdamW.step))
