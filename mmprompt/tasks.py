"""What a task asks of the model, as token ids (facts 5.3 to 5.6): instruction in, answer out.

B batch, S source tokens, T decoder tokens.

    source    <s> instruction </s>
    decoder   <s> [instruction, if prompt_type is prev_output] answer
    target              <pad> under the repeated instruction,  answer </s>
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprompt.digits import S
from mmprompt.ofa import BOS, EOS, PAD
from mmprompt.tokens import Tokenizer
from mmprompt.world import Item


@dataclass(frozen=True)
class Sample:
    source: list[int]
    start: list[int]  # what the decoder reads before it answers
    answer: list[int]  # without </s>
    text: str  # the answer as text


@dataclass(frozen=True)
class Batch:
    source: Tensor  # B S
    start: Tensor  # B .
    decoder: Tensor  # B T
    target: Tensor  # B T

    @property
    def answer_tokens(self) -> int:
        """Tokens the loss is taken over."""
        return int((self.target != PAD).sum())

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def encode(item: Item, template: str, prompt_type: str, tokenizer: Tokenizer) -> Sample:
    """Fills the template with the item's words. A box becomes four location tokens: the answer, or the {region} asked about."""
    fields, answer = dict(item.fields), item.answer
    if item.box is not None:
        bins = " ".join(tokenizer.bin(coordinate, S) for coordinate in item.box)
        fields = fields | {"region": bins}
        answer = answer or bins
    instruction = tokenizer.encode(template.format(**fields))
    start = [BOS, *instruction] if prompt_type == "prev_output" else [BOS]
    return Sample([BOS, *instruction, EOS], start, tokenizer.encode(answer), answer)


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of ids as one tensor, padded on the right."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


def collate(samples: Sequence[Sample]) -> Batch:
    return Batch(
        source=pad([sample.source for sample in samples]),
        start=pad([sample.start for sample in samples]),
        decoder=pad([[*sample.start, *sample.answer] for sample in samples]),
        target=pad([[*[PAD] * (len(sample.start) - 1), *sample.answer, EOS] for sample in samples]),
    )


def preprocess(images: Tensor, size: int) -> Tensor:
    """Raw pixels B S S 3 uint8 to B 3 size size: resized without regard to aspect, mean 0.5, deviation 0.5 (facts 5.5)."""
    pixels = images.permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return ((resized - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
