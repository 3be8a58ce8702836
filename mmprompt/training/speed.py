"""How the layers of a model are executed in a run's updates: one operation after another, or compiled (`cluster.speed`).

    eager     one operation after another; everything else is compared with it
    compile   each layer is compiled by torch.compile (inductor): fewer and larger kernels
    graph     the same, and each compiled layer is replayed as a CUDA graph, for which the CPU launches nothing

Compiled code is made for fixed shapes. So the texts of an update are padded to multiples of STEP tokens, and few shapes occur.
Padding is masked; sums have another order, so the last bits of losses and gradients differ from those of eager. Dropout draws for
the padded texts, and so other numbers; its operations are the same at all speeds. Evaluations stay eager, also because the keys and
values of beam search grow with each token: the same weights have the same scores at every speed.

torch's own backend `cudagraphs` is not used: it copies all frozen weights of a layer at each replay (torch 2.13 takes none of its
inputs to be fixed).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.layers import DecoderLayer, EncoderLayer
from mmprompt.settings.deployment import SpeedName

# The arguments of torch.compile. fallback_random: random numbers are drawn as eager draws them.
HOW: dict[str, dict[str, Any]] = {
    "compile": {"options": {"fallback_random": True}},
    "graph": {"options": {"fallback_random": True, "triton.cudagraphs": True}},
}
# So many variants of a layer are compiled before torch gives up, silently: one for each shape, and for each rate of drop-path.
VARIANTS = 256


class Speed:
    """How a process executes the layers in updates. A context: within it, the time of compilations is known."""

    def __init__(self, asked: SpeedName, device: torch.device) -> None:
        self.asked, self.used, self.why = asked, asked, ""
        self.seconds = 0.0  # of compilations so far
        self._began, self._listens = 0.0, False
        if asked == "graph" and device.type != "cuda":
            self.give_up(f"CUDA graphs need a GPU, and this run is on the {device.type.upper()}")
        if self.is_compiled:
            import torch._dynamo  # takes a second, which other runs need not wait for

            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = VARIANTS
            how: dict[str, Any] = {"dynamic": False} | HOW[asked]
            self._encoder: Callable[..., Any] = torch.compile(EncoderLayer.forward, **how)
            self._decoder: Callable[..., Any] = torch.compile(DecoderLayer.forward, **how)

    @property
    def is_compiled(self) -> bool:
        return self.used != "eager"

    @property
    def facts(self) -> Mapping[str, str]:
        """The speed of this attempt for its record."""
        return {"asked": self.asked, "used": self.used, "why": self.why}

    def give_up(self, why: str) -> None:
        """Goes on as eager."""
        self.used, self.why = "eager", why
        print(f"cluster.speed={self.asked}: {why}; the run goes on with cluster.speed=eager", flush=True)

    @contextmanager
    def layers_of(self, tuned: Tuned) -> Iterator[None]:
        """A context in which both stacks execute their layers at this speed."""
        encoder, decoder = tuned.backbone.encoder, tuned.backbone.decoder
        usual = encoder.run, decoder.run
        if self.is_compiled:
            encoder.run, decoder.run = self._encoder, self._decoder
        try:
            yield
        finally:
            encoder.run, decoder.run = usual

    def begins(self, trained: Iterable[nn.Parameter]) -> None:
        """Is called before each micro-batch. What graphs have returned so far is overwritten when they are replayed, so gradients
        of earlier micro-batches are copied."""
        if self.used == "graph":
            for parameter in trained:
                parameter.grad = None if parameter.grad is None else parameter.grad.clone()
            torch.compiler.cudagraph_mark_step_begin()

    def is_to_blame(self, error: RuntimeError) -> bool:
        """Whether this is a fault of compilation or of CUDA graphs, and not of what is executed."""
        from torch._dynamo.exc import TorchDynamoException

        return isinstance(error, TorchDynamoException) or "CUDAGraphs" in str(error)

    def __enter__(self) -> Speed:
        if self.is_compiled:
            from torch._dynamo.callback import callback_handler

            self._listens = True
            callback_handler.register_start_callback(self._starts)
            callback_handler.register_end_callback(self._ends)
        return self

    def __exit__(self, *of: object) -> None:
        if not self._listens:
            return
        from torch._dynamo.callback import callback_handler

        callback_handler.remove_start_callback(self._starts)
        callback_handler.remove_end_callback(self._ends)
        self._listens = False
        if self.asked == "graph":
            torch.compiler.reset()  # graphs keep the memory of this run's tensors

    def _starts(self, *of: object) -> None:
        self._began = time.monotonic()

    def _ends(self, *of: object) -> None:
        self.seconds += time.monotonic() - self._began


EAGER = Speed("eager", torch.device("cpu"))
