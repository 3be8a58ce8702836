"""Models of which only the names and shapes of the tensors exist: nothing is allocated and nothing is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

DRAWS = (torch.Tensor.normal_, torch.Tensor.uniform_)


class _NothingIsDrawn(TorchFunctionMode):
    """Random initialisation does nothing. On the meta device it would import torch's compiler, which takes seconds."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init" or function in DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules that are made inside have tensors on the meta device: with a shape and a type, without numbers."""
    with torch.device("meta"), _NothingIsDrawn():
        yield
