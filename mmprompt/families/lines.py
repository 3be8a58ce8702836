"""An example from a line of OFA's files: cleaned texts, an answer, and the right answers (facts 5.2 to 5.4, 5.7).

Each family has a reader: a function that makes an example of a line's texts and the size of its image. Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

AND = "&&"  # separates answers, captions, objects
NOT_SCORED = "a split without right answers belongs into evaluation.unscored"  # what a reader's message ends with
Texts = Mapping[str, str]  # the texts of a line, by column
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0 y0 x1 y1


class DataError(RuntimeError):
    """A file of examples is not valid. The message says which file and line, what came, and what was wanted."""


class FileSettings(Protocol):
    """The settings of a task's files that readers use (a part of `mmprompt.settings.task.Files`)."""

    @property
    def max_image_size(self) -> int | None:
        """Pixels of the resized image that location tokens span; None where there is no box."""

    @property
    def max_source_words(self) -> int:
        """Maximal number of words of each text that fills the template."""

    @property
    def max_target_words(self) -> int:
        """Maximal number of words of a caption that is trained on."""

    @property
    def confidence(self) -> bool:
        """Whether the loss of an answer is weighted by how many people gave it."""


@dataclass(frozen=True)
class Example:
    """The example of a line: an `Item` as `mmprompt.data.tasks` defines it."""

    fields: Mapping[str, str]
    answer: str
    box: Box | None
    extent: tuple[float, float]
    right: Mapping[str, float]
    weight: float


# Arguments: a line's texts; the size of its image; the side in pixels of the square to which the task resizes it; the settings of
# the files; whether the example is for training. In a family with a challenge, texts without the column of right answers give an
# example that has none. Raises DataError, which says what came and what was wanted.
Reader = Callable[[Texts, Size, int, FileSettings, bool], Example]


def normalise_text(text: str, words: int) -> str:
    """The first `words` words of a text, in lower case, without punctuation in front, with spaces for "-" and "/", and with
    "person" for "<person>"."""
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:words])


def example_of(fields: Mapping[str, str], answer: str, right: Mapping[str, float], weight: float) -> Example:
    """An example whose answer is a text, not a box."""
    return Example(fields, answer, None, (1.0, 1.0), right, weight)
