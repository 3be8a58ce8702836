"""What a line of OFA's files says: cleaned texts, an answer, and what is right (facts 5.2 to 5.4, 5.7).

A family's reader is a function of a line's texts, by column, and the size of its image. Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

AND = "&&"  # between answers, captions, objects
Texts = Mapping[str, str]  # of a line, by column
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0 y0 x1 y1


class DataError(RuntimeError):
    """A file is not what it should be. The message says which file and line, what came, and what was wanted."""


class FileSettings(Protocol):
    """What readers ask of the settings of a task's files (`mmprompt.settings.task.Files`)."""

    @property
    def max_image_size(self) -> int | None:
        """Pixels of the resized image that location tokens span; None where there is no box."""

    @property
    def max_source_words(self) -> int:
        """Of each text that fills the template."""

    @property
    def max_target_words(self) -> int:
        """Of a caption that is trained on."""

    @property
    def confidence(self) -> bool:
        """Whether the loss of an answer is weighted by how many people gave it."""


@dataclass(frozen=True)
class Example:
    """An `Item` of `mmprompt.data.tasks`."""

    fields: Mapping[str, str]
    answer: str
    box: Box | None
    extent: tuple[float, float]
    right: Mapping[str, float]
    weight: float


# A line's texts, the size of its image, and that which the task makes of it (pixels, a square's side); the settings of the files;
# whether it is trained on. Raises DataError, which says what came and what was wanted.
Reader = Callable[[Texts, Size, int, FileSettings, bool], Example]


def normalise_text(text: str, words: int) -> str:
    """Lower case, no punctuation in front, "-" and "/" as spaces, a person as such; the first so many words."""
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:words])


def example_of(fields: Mapping[str, str], answer: str, right: Mapping[str, float], weight: float) -> Example:
    """One that has no box."""
    return Example(fields, answer, None, (1.0, 1.0), right, weight)
