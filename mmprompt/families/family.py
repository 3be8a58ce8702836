"""What a family of tasks is: the texts it asks with, what is right, its metrics, and how it reads a line of OFA's files.

A metric is one object: its name, what tables call it, and the function that computes it. Scores are on the paper's scale: 100 is
right, 0 is wrong; CIDEr-D times 100 (facts 5.7).
n examples. Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from mmprompt.families.lines import Reader

Answer = TypeVar("Answer")  # what the model says of an example: a text, or a box
Right = TypeVar("Right")  # what is right of it: texts with their scores, or a box

PERCENT = 100.0


@dataclass(frozen=True)
class PrimaryMetric(Generic[Answer, Right]):
    """The metric that weights are chosen by and rows are compared under: each example has a score, whose mean it is."""

    name: str  # as in `test/acc@0.5`
    label: str  # in full,
    short: str  # and as the head of a column
    scores: Callable[[Sequence[Answer], Sequence[Right]], list[float]]  # n, each from 0 to `highest`
    highest: float = PERCENT
    unit: str = "percent"  # or what a table says its numbers are in


@dataclass(frozen=True)
class FurtherMetric(Generic[Answer, Right]):
    """A metric that is recorded and shown beside the primary one, and compared under no test."""

    name: str
    label: str
    short: str
    value: Callable[[Sequence[Answer], Sequence[Right]], float | None]  # of all answers; None: it cannot be had here
    unit: str = "percent"  # or what a table says its numbers are in


@dataclass(frozen=True)
class ReferenceMetric(Generic[Right]):
    """What scores are compared with, of the questions alone: the same whatever a run answers."""

    name: str
    value: Callable[[Sequence[Right]], float]  # on the primary metric's scale


@dataclass(frozen=True)
class Family(Generic[Answer, Right]):
    """A family of tasks. Its name is `task.family` in a run's settings."""

    name: str
    texts: tuple[str, ...]  # that a template may ask for, of OFA's files
    truth: str  # the column of OFA's files that answers are made of
    read: Reader  # a line of OFA's files
    # A text is compared with texts that score; a box with a box, both x0 y0 x1 y1 in pixels of the image as it came.
    answers: Literal["text", "box"]
    primary: PrimaryMetric[Answer, Right]
    further: tuple[FurtherMetric[Answer, Right], ...] = ()
    references: tuple[ReferenceMetric[Right], ...] = ()
    spell: Callable[[str], str] = str  # a text as it is compared
    has_confidence: bool = False  # people gave several answers, and the loss may be weighted by how many gave one

    @property
    def shown(self) -> tuple[PrimaryMetric[Answer, Right] | FurtherMetric[Answer, Right], ...]:
        """The metrics that tables have columns of, the primary one first."""
        return (self.primary, *self.further)

    @property
    def names_beside(self) -> tuple[str, ...]:
        """Of what `values_beside` can hold."""
        return (*(metric.name for metric in self.further), *(metric.name for metric in self.references))

    def values_beside(self, predicted: Sequence[Answer], right: Sequence[Right]) -> dict[str, float]:
        """By name, the further metrics that can be had here, and what scores are compared with."""
        values = {metric.name: metric.value(predicted, right) for metric in self.further}
        values |= {metric.name: metric.value(right) for metric in self.references}
        return {name: value for name, value in values.items() if value is not None}
