"""A backbone and the prompts tuned on it: what a run trains, saves and evaluates.

B batch, C x h x w features, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.attention import Prefixes
from mmprompt.config import RunConfig
from mmprompt.loss import label_smoothed
from mmprompt.ofa import OFA, PAD, Encoded
from mmprompt.prompts import Prompts
from mmprompt.tasks import Batch

View = Callable[
    [np.ndarray], Tensor | Encoded
]  # indices of examples -> image features, or all the encoder says of them


@dataclass(frozen=True)
class Asked:
    """A batch of questions, encoded: what decoding starts from."""

    encoded: Encoded
    prefixes: Prefixes | None  # the decoder's


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where a forward computes in this precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


class Tuned(nn.Module):
    """Only the prompts train. In `eval` mode the backbone is a fixed function; in `train` mode its weights are fixed, but
    BatchNorm follows the batches and dropout and drop-path are live, as in the published code (facts 0.4)."""

    def __init__(self, config: RunConfig, backbone: OFA, generator: torch.Generator) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.prompts = Prompts(config.model, config.prompt, generator)
        self.live, self.precision = config.backbone.mode == "train", config.precision
        self.eval()

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.backbone.train(mode and self.live)
        return self

    def autocast(self) -> torch.autocast:
        return autocast(self.backbone.embed.weight.device, self.precision)

    def ask(self, source: Tensor, seen: Tensor | Encoded) -> Asked:
        """source B S; seen: image features B C h w, or what the encoder has said of source and image already."""
        encoder, decoder = self.prompts(len(source))
        if isinstance(seen, Encoded):
            return Asked(seen, decoder)
        return Asked(self.backbone.encode(source, seen, None, encoder), decoder)

    def loss(self, text: Batch, seen: Tensor | Encoded, smoothing: float) -> Tensor:
        """Label-smoothed loss summed over the answers' tokens. States and logits are made at these positions only."""
        answering = text.target != PAD
        with self.autocast():
            asked = self.ask(text.source, seen)
            states = self.backbone.decode_states(text.decoder, asked.encoded, asked.prefixes, answering)
            return label_smoothed(states, self.backbone.embed.weight, text.target[answering], smoothing)

    def tuned_state(self) -> dict[str, Tensor]:
        """What differs from the pretrained backbone: the prompts, and in `train` mode the BatchNorm statistics."""
        state = {f"prompts.{name}": value for name, value in self.prompts.state_dict().items()}
        if self.live:
            state |= {f"backbone.{name}": value for name, value in self.backbone.named_buffers()}
        return {name: value.detach().clone() for name, value in state.items()}

    def load_tuned_state(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict(keep_vars=True)
        expected = self.tuned_state().keys()
        if state.keys() != expected:
            raise ValueError(f"tuned weights do not fit this run: differing names {sorted(state.keys() ^ expected)}")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
