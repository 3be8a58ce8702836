"""What a task asks of the model, as token ids (facts 5.3 to 5.6): instruction in, answer out.

B batch, S source tokens, T decoder tokens.

    source    <s> instruction </s>
    decoder   <s> [instruction, if prompt_type is prev_output; with its </s>, if it is src] answer
    target              <pad> under the repeated instruction,  answer </s>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmprompt.data.tokenizer import Vocabulary
from mmprompt.models.ofa import BOS, EOS, PAD


class Item(Protocol):
    """What is said about one image, whatever it comes from."""

    @property
    def fields(self) -> Mapping[str, str]:
        """The texts for a template."""

    @property
    def answer(self) -> str:
        """What is trained on; nothing if it is the box."""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """x0 y0 x1 y1 in pixels of the image as it came."""

    @property
    def extent(self) -> tuple[float, float]:
        """Pixels that location tokens span, across and down."""

    @property
    def right(self) -> Mapping[str, float]:
        """Answers that score, and how much: 1 is full marks."""

    @property
    def weight(self) -> float:
        """Of its loss."""


@dataclass(frozen=True)
class Sample:
    source: list[int]
    start: list[int]  # what the decoder reads before it answers
    answer: list[int]  # without </s>
    text: str  # the answer as text
    weight: float  # of its loss


@dataclass(frozen=True)
class Batch:
    source: Tensor  # B S
    start: Tensor  # B .
    decoder: Tensor  # B T
    target: Tensor  # B T
    weight: Tensor | None  # B, of each example's loss; None: all the same

    @property
    def answer_tokens(self) -> int:
        """Tokens the loss is taken over."""
        return int((self.target != PAD).sum())

    def to(self, device: torch.device) -> Batch:
        weight = None if self.weight is None else self.weight.to(device)
        source, start, decoder, target = (
            part.to(device) for part in (self.source, self.start, self.decoder, self.target)
        )
        return Batch(source, start, decoder, target, weight)


def encode(item: Item, template: str, prompt_type: str, tokenizer: Vocabulary) -> Sample:
    """Fills the template with the item's words. A box becomes four location tokens: the answer, or the {region} asked about."""
    fields, answer = dict(item.fields), item.answer
    if item.box is not None:
        bins = " ".join(map(tokenizer.bin, item.box, item.extent * 2))
        fields = fields | {"region": bins}
        answer = answer or bins
    instruction = tokenizer.encode(template.format(**fields))
    source = [BOS, *instruction, EOS]
    start = {"none": [BOS], "src": source, "prev_output": source[:-1]}[prompt_type]
    return Sample(source, start, tokenizer.encode(answer), answer, item.weight)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as one tensor, padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


def collate(samples: Sequence[Sample]) -> Batch:
    weights = [sample.weight for sample in samples]
    return Batch(
        weight=None if set(weights) == {1.0} else torch.tensor(weights),
        source=pad([sample.source for sample in samples]),
        start=pad([sample.start for sample in samples]),
        decoder=pad([[*sample.start, *sample.answer] for sample in samples]),
        target=pad([[*[PAD] * (len(sample.start) - 1), *sample.answer, EOS] for sample in samples]),
    )


def preprocess(images: Tensor, size: int) -> Tensor:
    """Raw pixels B S S 3 uint8 to B 3 size size: resized without regard to aspect, mean 0.5, deviation 0.5 (facts 5.5)."""
    pixels = images.permute(0, 3, 1, 2).float() / 255  # those of files have this size already; then nothing is resized
    resized = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return ((resized - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
