"""torch's AdamW, without the compiler that torch imports for it.

Its methods import torch's compiler the first time, so that it leaves them alone: 2 s of CPU in every process that trains, more
than a small run takes. Nothing here is compiled. Where torch does not wrap its methods so, they are what they are.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


def plain(method: Any) -> Any:
    """A method without the wrappers that torch puts around it."""
    return inspect.unwrap(method)


class AdamW(torch.optim.AdamW):
    add_param_group = plain(torch.optim.AdamW.add_param_group)
    zero_grad = plain(torch.optim.AdamW.zero_grad)
    state_dict = plain(torch.optim.AdamW.state_dict)
    load_state_dict = plain(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(plain(torch.optim.AdamW.step))
