"""Examples of a task as token ids: the instruction is the encoder's input, the answer the decoder's output (facts 5.3 to 5.6).

B batch, S source tokens, T decoder tokens.

    source    <s> instruction </s>
    decoder   <s> [instruction, if prompt_type is prev_output; with its </s>, if it is src] answer
    target              <pad> under the repeated instruction,  answer </s>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmprompt.data.tokenizer import Vocabulary
from mmprompt.models.ofa import BOS, EOS, PAD, Wanted

Width = Callable[[int], int]  # from the length of a batch's longest text to the batch's width


class Item(Protocol):
    """One example: a question about an image and its answer, from the small world or from a file."""

    @property
    def fields(self) -> Mapping[str, str]:
        """The texts that fill the task's template."""

    @property
    def answer(self) -> str:
        """The answer to train on; empty if the answer is the box."""

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """x0 y0 x1 y1 in pixels of the original image, before it is resized."""

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height, in pixels, of the area that location tokens span."""

    @property
    def right(self) -> Mapping[str, float]:
        """The right answers and the score of each: 1 is full marks."""

    @property
    def weight(self) -> float:
        """The weight of the example's loss."""


@dataclass(frozen=True)
class Sample:
    source: list[int]
    start: list[int]  # the decoder's tokens before the answer
    answer: list[int]  # without </s>
    text: str  # the answer as text
    weight: float  # of the example's loss


@dataclass(frozen=True)
class Batch:
    source: Tensor  # B S
    start: Tensor  # B, and the tokens of the longest start
    decoder: Tensor  # B T
    target: Tensor  # B T
    weight: Tensor | None  # B, the weight of each example's loss; None: all are 1
    answers: Wanted  # the places in `target` that the loss is summed over
    padded: bool  # whether any source is shorter than the batch is wide

    @property
    def answer_tokens(self) -> int:
        """Number of tokens that the loss is summed over."""
        return len(self.answers.places)

    def to(self, device: torch.device) -> Batch:
        """The batch on this device. The copy to a GPU is not waited for, if the batch is pinned."""
        return self._each(lambda part: part.to(device, non_blocking=True), self.answers.to(device))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU can read by itself."""
        answers = Wanted(
            *(part.pin_memory() for part in (self.answers.columns, self.answers.chosen, self.answers.places))
        )
        return self._each(Tensor.pin_memory, answers)

    def _each(self, change: Callable[[Tensor], Tensor], answers: Wanted) -> Batch:
        source, start, decoder, target = map(change, (self.source, self.start, self.decoder, self.target))
        weight = None if self.weight is None else change(self.weight)
        return Batch(source, start, decoder, target, weight, answers, self.padded)


def encode(item: Item, template: str, prompt_type: str, tokenizer: Vocabulary) -> Sample:
    """Fills the template with the item's fields and encodes it and the answer.

    A box becomes four location tokens: they are the answer, or the {region} of the template if the item has another answer.
    """
    fields, answer = dict(item.fields), item.answer
    if item.box is not None:
        bins = " ".join(map(tokenizer.bin, item.box, item.extent * 2))
        fields = fields | {"region": bins}
        answer = answer or bins
    instruction = tokenizer.encode(template.format(**fields))
    source = [BOS, *instruction, EOS]
    start = {"none": [BOS], "src": source, "prev_output": source[:-1]}[prompt_type]
    return Sample(source, start, tokenizer.encode(answer), answer, item.weight)


def exact(length: int) -> int:
    """The width of a batch whose longest text has so many tokens: no wider than it has to be."""
    return length


def pad(rows: Sequence[Sequence[int]], width: Width = exact) -> Tensor:
    """Stacks rows of ids into one tensor, padded on the right."""
    longest = width(max(len(row) for row in rows))
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows])


def collate(samples: Sequence[Sample], width: Width = exact) -> Batch:
    """Stacks samples into a batch, padded on the right. `width`: the width for the longest of its texts; a wider batch has the same
    loss, but for the order of sums."""
    weights = [sample.weight for sample in samples]
    source = pad([sample.source for sample in samples], width)
    target = pad([[*[PAD] * (len(sample.start) - 1), *sample.answer, EOS] for sample in samples], width)
    return Batch(
        weight=None if set(weights) == {1.0} else torch.tensor(weights),
        source=source,
        start=pad([sample.start for sample in samples]),
        decoder=pad([[*sample.start, *sample.answer] for sample in samples], width),
        target=target,
        answers=Wanted.of(target != PAD, width),
        padded=any(len(sample.source) < source.shape[1] for sample in samples),
    )


def preprocess(images: Tensor, size: int) -> Tensor:
    """Raw pixels B h w 3 uint8 to B 3 size size: resized without keeping the aspect ratio, and normalised with mean 0.5 and
    standard deviation 0.5 (facts 5.5)."""
    pixels = images.permute(0, 3, 1, 2).float() / 255  # images of files have this size already; nothing is resized then
    resized = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bicubic", align_corners=False)
    return ((resized - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
