"""Text to ids and back: the interface of a vocabulary, and the small world's own. OFA's vocabulary is in `mmprompt.data.bpe`.

As in OFA, <s> <pad> </s> <unk> come first and the location tokens <bin_0> ... last (facts 4.2). Between them are the words of the
small world. A larger vocabulary leaves the other ids unused, so that an OFA of any size can learn the small tasks.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmprompt.models.ofa import BOS, EOS, PAD
from mmprompt.settings.parsing import ConfigError

UNK = 3
# The order is that of the small backbone's embeddings: words for objects, words of questions about them, punctuation.
WORDS = tuple(
    """
    zero one two three four five six seven eight nine red green blue yellow cyan magenta small large digit digits
    which region does the text describe image what many are there how color number size side high is left right top
    bottom leftmost rightmost topmost bottommost and yes no maybe of above below find can imply tell larger not a in
    from to say it every thing on where
    ? : , . " !
    """.split()
)
PIECE = re.compile(r"<bin_\d+>|\w+|[^\w\s]")


class Vocabulary(ABC):
    """Converts text to ids and back. Its last ids are the location tokens."""

    vocab_size: int
    num_bins: int

    @property
    def first_bin(self) -> int:
        return self.vocab_size - self.num_bins

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of the text, without <s> and </s>."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text up to the first </s>."""

    def bin(self, coordinate: float, extent: float) -> str:
        """The location token of a coordinate in [0, extent]; a coordinate outside is moved to the border (facts 5.4)."""
        return f"<bin_{round(min(max(coordinate / extent, 0), 1) * (self.num_bins - 1))}>"

    def coordinates(self, ids: Sequence[int], extent: float) -> list[float] | None:
        """The box x0 y0 x1 y1, in units of `extent`, that the first four ids stand for; None if one is no location token."""
        if len(ids) < 4 or any(i < self.first_bin for i in ids[:4]):
            return None
        return [(i - self.first_bin) / (self.num_bins - 1) * extent for i in ids[:4]]


@dataclass(frozen=True)
class Tokenizer(Vocabulary):
    """The small world's vocabulary: whole words and punctuation marks."""

    vocab_size: int
    num_bins: int
    ids: dict[str, int] = field(init=False, repr=False)
    texts: dict[int, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if 4 + len(WORDS) > self.first_bin:
            raise ConfigError(
                f"model.vocab_size={self.vocab_size} is too small: {4 + len(WORDS)} words and model.num_bins={self.num_bins}"
            )
        ids = {word: 4 + i for i, word in enumerate(WORDS)}
        ids |= {f"<bin_{i}>": self.first_bin + i for i in range(self.num_bins)}
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "texts", {i: word for word, i in ids.items()})

    def encode(self, text: str) -> list[int]:
        """Ids of the text, in lower case, without <s> and </s>. Unknown words become <unk>."""
        return [self.ids.get(piece, UNK) for piece in PIECE.findall(text.lower())]

    def decode(self, ids: Sequence[int]) -> str:
        words = []
        for i in ids:
            if i == EOS:
                break
            if i not in (BOS, PAD):
                words.append(self.texts.get(i, "<unk>"))
        return " ".join(words)
