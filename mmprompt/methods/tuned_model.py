"""A tuned model: a backbone with what a method adds and trains. A run trains, saves and evaluates one.

B batch, S source tokens, C x h x w features, T decoder tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.data.tasks import Batch, Sample
from mmprompt.methods.install import install
from mmprompt.methods.prompt import Prompts
from mmprompt.models.attention import Prefixes
from mmprompt.models.decoding import Trie
from mmprompt.models.loss import label_smoothed, label_smoothed_over, token_losses
from mmprompt.models.ofa import OFA, Encoded
from mmprompt.models.precision import dtype_of
from mmprompt.models.shapes import shapes_only
from mmprompt.runs.config import RunConfig
from mmprompt.settings.optim import Optim
from mmprompt.settings.prompt import Prompt

# From indices of examples to the model's input for them: image features, or the encoder's output where that is fixed.
View = Callable[[np.ndarray], Tensor | Encoded]


@dataclass(frozen=True)
class TwoSteps:
    """A view whose first step needs no device, so that another thread can read ahead of the second."""

    read: Callable[[np.ndarray], Tensor]  # the images of these examples, B S S 3 uint8
    compute: Callable[[Tensor], Tensor | Encoded]

    def __call__(self, index: np.ndarray) -> Tensor | Encoded:
        return self.compute(self.read(index))


class AnswerError(ValueError):
    """The right answer of a training example is not in the task's closed set of answers."""

    def __init__(self, task: str) -> None:
        super().__init__(
            f"optim.smoothing_over=allowed, and a training example of task.name={task} has an answer that is not among "
            "task.answers; add it there, or train with optim.smoothing_over=vocabulary"
        )


@dataclass(frozen=True)
class EncodedBatch:
    """A batch of encoded questions, from which the decoder starts."""

    encoded: Encoded
    prefixes: Prefixes | None  # the decoder's


def tokens_in_loss(tokens: int, dropped: float) -> int:
    """How many of `tokens` tokens remain in the loss if the share `dropped` is left out, as published (facts 3.4). At least one."""
    return max(1, int(tokens * (1 - dropped)))


def outline(config: RunConfig) -> Tuned:
    """The tuned model of a run on torch's meta device: it has names and shapes but no weights, so that any size fits into
    memory."""
    with shapes_only():
        return Tuned(config, OFA(config.model), torch.Generator(), [])


class Tuned(nn.Module):
    """A backbone with what the run's method adds. Only what the method trains is trained; the rest is frozen.

    With backbone.mode=eval the frozen part is a fixed function. With backbone.mode=train BatchNorm uses the batches' statistics
    and dropout and drop-path are active, as in the published code (facts 1.5).
    """

    def __init__(
        self, config: RunConfig, backbone: OFA, generator: torch.Generator, closed: Sequence[list[int]]
    ) -> None:
        """Copies `backbone`, and adds the method's parameters to the copy.

        `closed`: the task's closed set of answers, as token ids; empty where text is generated.
        """
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.backbone_names = frozenset(name for name, _ in backbone.named_parameters())  # the method added all others
        install(config, self.backbone, generator)
        self.backbone.compute_in(dtype_of(config.precision))
        self.prompts = Prompts(config.model, config.settings_of(Prompt), generator)
        self.config, self.closed, self.live = config, closed, config.backbone.mode == "train"
        self.eval()

    def train(self, mode: bool = True) -> Tuned:
        super().train(mode)
        self.backbone.train(mode and self.live)
        return self

    @cached_property  # to list them takes milliseconds, and each update asks for them twice
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser changes, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @property
    def resnet_is_fixed(self) -> bool:
        """Whether the features of an image never change."""
        return not self.live and not any(name.startswith("backbone.encoder.resnet.") for name in self.trained)

    @property
    def encoder_is_fixed(self) -> bool:
        """Whether the encoder's output for an image and a text never changes."""
        encoder_parts = ("backbone.embed.", "backbone.encoder.", "prompts.encoder.")
        return not self.live and not any(name.startswith(encoder_parts) for name in self.trained)

    @cached_property
    def trie(self) -> Trie:
        """The prefix tree of the closed set of answers."""
        return Trie.of(self.closed, self.backbone.embed.weight.device)

    def prefixes(self, batch: int) -> tuple[Prefixes | None, Prefixes | None]:
        """The prefixes of encoder and decoder for this many examples, in the precision of the forward pass."""
        prefixes: tuple[Prefixes | None, Prefixes | None] = self.prompts(batch, dtype_of(self.config.precision))
        return prefixes

    def encode(self, text: Batch, inputs: Tensor | Encoded) -> EncodedBatch:
        """Encodes the sources of a batch. inputs: image features B C h w, or the encoder's output for these sources and images."""
        encoder, decoder = self.prefixes(len(text.source))
        if isinstance(inputs, Encoded):
            return EncodedBatch(inputs, decoder)
        return EncodedBatch(self.backbone.encode(text.source, inputs, None, encoder, text.padded), decoder)

    def loss(self, text: Batch, inputs: Tensor | Encoded, optim: Optim, dropped: float) -> Tensor:
        """The loss summed over the answers' tokens, without the share `dropped` of the tokens that has the largest losses.

        States and logits are computed at the answers' positions only. `inputs`: as for `encode`. With smoothing over the allowed
        words all right answers must be in the closed set (`check_answers`). No number is read back from a GPU.
        """
        targets, embedding = text.answers.of_rows(text.target), self.backbone.embed.weight
        weights = None if text.weight is None else text.answers.of_rows(text.weight[:, None].expand_as(text.target))
        most = tokens_in_loss(text.answer_tokens, dropped)
        questions = self.encode(text, inputs)
        states = self.backbone.decode_states(text.decoder, questions.encoded, questions.prefixes, text.answers)
        if optim.smoothing_over == "allowed":
            allowed, words = self.trie.allowed(text.target), self.trie.words
            allowed = allowed.flatten(0, 1).index_select(0, text.answers.places)
            losses = label_smoothed_over(allowed, words, states, embedding, targets, optim.label_smoothing)
            losses = losses if weights is None else losses * weights
            return losses.topk(most, largest=False, sorted=False).values.sum()
        if most < len(targets):
            losses = token_losses(states, embedding, targets, optim.label_smoothing)
            losses = losses if weights is None else losses * weights
            least = losses.topk(most, largest=False, sorted=False).indices
            states, targets = states[least], targets[least]
            weights = None if weights is None else weights[least]
        return label_smoothed(states, embedding, targets, optim.label_smoothing, weights)

    def check_answers(self, samples: Iterable[Sample], optim: Optim) -> None:
        """Raises AnswerError if labels are smoothed over the allowed words, and a right answer is not in the closed set."""
        if optim.smoothing_over == "allowed" and not self.answers.issuperset(tuple(one.answer) for one in samples):
            raise AnswerError(self.config.task.name)

    @cached_property
    def answers(self) -> frozenset[tuple[int, ...]]:
        """The closed set of answers."""
        return frozenset(map(tuple, self.closed))

    def tuned_state(self) -> dict[str, Tensor]:
        """A copy of everything that may differ from the pretrained backbone: the trained parameters, and with backbone.mode=train
        the BatchNorm statistics."""
        state: dict[str, Tensor] = dict(self.trained)
        if self.live:
            state |= {f"backbone.{name}": value for name, value in self.backbone.named_buffers()}
        # Contiguous, because safetensors stores no other memory layout.
        return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}

    def published_state(self) -> dict[str, Tensor]:
        """The tuned state that a finished run stores: with the prompts' computed tables, without the MLPs."""
        self.collapse()
        return self.tuned_state()

    def load_published_state(self, state: dict[str, Tensor]) -> None:
        """Loads the tuned state of a finished run, with or without an MLP: older runs stored the MLP of their prompts."""
        if state.keys() != self.tuned_state().keys():
            self.collapse()
        self.load_tuned_state(state)

    def collapse(self) -> None:
        """Replaces the prompts' MLPs by the tables that they compute. Training cannot continue as before after this."""
        self.prompts = self.prompts.collapsed()
        self.__dict__.pop("trained", None)

    def load_tuned_state(self, state: dict[str, Tensor]) -> None:
        """Copies a tuned state into the model. Raises ValueError if its names are not this run's."""
        own = self.state_dict(keep_vars=True)
        expected = self.tuned_state().keys()
        if state.keys() != expected:
            raise ValueError(f"tuned weights do not fit this run: differing names {sorted(state.keys() ^ expected)}")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
