"""A backbone and what a method tunes of it: what a run trains, saves and evaluates.

B batch, C x h x w features, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.data.tasks import Batch
from mmprompt.methods.install import install
from mmprompt.methods.prompt import Prompts
from mmprompt.models.attention import Prefixes
from mmprompt.models.decoding import Trie
from mmprompt.models.loss import label_smoothed, label_smoothed_over, token_losses
from mmprompt.models.ofa import OFA, PAD, Encoded
from mmprompt.runs.config import RunConfig
from mmprompt.settings.optim import Optim
from mmprompt.settings.prompt import Prompt

View = Callable[
    [np.ndarray], Tensor | Encoded
]  # indices of examples -> image features, or all the encoder says of them


class AnswerError(ValueError):
    """A right answer is not among those that are allowed."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"optim.smoothing_over=allowed, and a training example of task.name={task} has an answer that is not among "
            "task.answers; add it there, or train with optim.smoothing_over=vocabulary"
        )


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of questions, encoded: what decoding starts from."""

    encoded: Encoded
    prefixes: Prefixes | None  # the decoder's


def tokens_in_loss(tokens: int, dropped: float) -> int:
    """How many of so many tokens the loss is taken over, as published (facts 3.4), but one at least."""
    return max(1, int(tokens * (1 - dropped)))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Where a forward computes in this precision; weights stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def outline(config: RunConfig) -> Tuned:
    """Names and shapes of what a run has and trains, on torch's meta device: no weights, whatever the size."""
    with torch.device("meta"):
        return Tuned(config, OFA(config.model), torch.Generator(), [])


class Tuned(nn.Module):
    """What the run's method trains, trains; all else is frozen. In `eval` mode the rest of the backbone is a fixed function; in
    `train` mode BatchNorm follows the batches and dropout and drop-path are live, as in the published code (facts 1.5)."""

    def __init__(
        self, config: RunConfig, backbone: OFA, generator: torch.Generator, closed: Sequence[list[int]]
    ) -> None:
        """Has a copy of `backbone`, with what the method adds to it.

        `closed`: the task's closed set of answers, as token ids; empty where text is generated.
        """
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.backbone_names = frozenset(name for name, _ in backbone.named_parameters())  # all others were added
        install(config, self.backbone, generator)
        self.prompts = Prompts(config.model, config.settings_of(Prompt), generator)
        self.config, self.closed, self.live = config, closed, config.backbone.mode == "train"
        self.eval()

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.backbone.train(mode and self.live)
        return self

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Exactly what the optimiser changes."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def resnet_is_fixed(self) -> bool:
        """Whether an image always has the same features."""
        return not self.live and not any(name.startswith("backbone.encoder.resnet.") for name in self.trained)

    @property
    def encoder_is_fixed(self) -> bool:
        """Whether the encoder always says the same of an image and a text."""
        reaching = ("backbone.embed.", "backbone.encoder.", "prompts.encoder.")
        return not self.live and not any(name.startswith(reaching) for name in self.trained)

    @cached_property
    def trie(self) -> Trie:
        """The closed set as the beginnings of its answers."""
        return Trie.of(self.closed, self.backbone.embed.weight.device)

    def autocast(self) -> torch.autocast:
        return autocast(self.backbone.embed.weight.device, self.config.precision)

    def encode(self, source: Tensor, seen: Tensor | Encoded) -> EncodedBatch:
        """source B S; seen: image features B C h w, or what the encoder has said of source and image already."""
        encoder, decoder = self.prompts(len(source))
        if isinstance(seen, Encoded):
            return EncodedBatch(seen, decoder)
        return EncodedBatch(self.backbone.encode(source, seen, None, encoder), decoder)

    def loss(self, text: Batch, seen: Tensor | Encoded, optim: Optim, dropped: float) -> Tensor:
        """The loss summed over the answers' tokens, less the share `dropped` that has the largest. States and logits are made
        at these positions only."""
        answering = text.target != PAD
        targets, embedding = text.target[answering], self.backbone.embed.weight
        weights = None if text.weight is None else text.weight[:, None].expand_as(text.target)[answering]
        most = tokens_in_loss(len(targets), dropped)
        with self.autocast():
            asked = self.encode(text.source, seen)
            states = self.backbone.decode_states(text.decoder, asked.encoded, asked.prefixes, answering)
            if optim.smoothing_over == "allowed":
                allowed, known = self.trie.allowed(text.target)
                if not known.all():
                    raise AnswerError(self.config.task.name)
                words = self.trie.words
                losses = label_smoothed_over(
                    allowed[answering], words, states, embedding, targets, optim.label_smoothing
                )
                losses = losses if weights is None else losses * weights
                return losses.topk(most, largest=False, sorted=False).values.sum()
            if most < len(targets):
                losses = token_losses(states, embedding, targets, optim.label_smoothing)
                losses = losses if weights is None else losses * weights
                least = losses.topk(most, largest=False, sorted=False).indices
                states, targets = states[least], targets[least]
                weights = None if weights is None else weights[least]
            return label_smoothed(states, embedding, targets, optim.label_smoothing, weights)

    def tuned_state(self) -> dict[str, Tensor]:
        """What differs from the pretrained backbone: what was trained, and in `train` mode the BatchNorm statistics."""
        state: dict[str, Tensor] = dict(self.trained)
        if self.live:
            state |= {f"backbone.{name}": value for name, value in self.backbone.named_buffers()}
        # Contiguous, because safetensors keeps no other order of a tensor's numbers.
        return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def published_state(self) -> dict[str, Tensor]:
        """The tuned state as a finished run keeps it: prompts as plain tables, whatever computed them."""
        self.collapse()
        return self.tuned_state()

    def load_published_state(self, state: dict[str, Tensor]) -> None:
        """Of a finished run. Runs that published before prompts were collapsed kept the MLP."""
        if state.keys() != self.tuned_state().keys():
            self.collapse()
        self.load_tuned_state(state)

    def collapse(self) -> None:
        """Leaves the prompts as plain tables: they cannot be trained on as they were before."""
        with self.autocast():  # as in training and evaluation: of the same precision they have the same bits
            self.prompts = self.prompts.collapsed()

    def load_tuned_state(self, state: dict[str, Tensor]) -> None:
        own = self.state_dict(keep_vars=True)
        expected = self.tuned_state().keys()
        if state.keys() != expected:
            raise ValueError(f"tuned weights do not fit this run: differing names {sorted(state.keys() ^ expected)}")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
