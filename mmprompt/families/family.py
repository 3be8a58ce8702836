"""What defines a family of tasks: the texts of its questions, its right answers, its metrics, and its reader of OFA's files.

A metric is one object: its name, its names in tables, and the function that computes it. Scores are on the paper's scale: 100 is
right, 0 is wrong; CIDEr-D is multiplied by 100 (facts 5.7).
n examples. Light: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from mmprompt.families.challenge import Challenge
from mmprompt.families.lines import Reader

Answer = TypeVar("Answer")  # the model's answer to an example: a text, or a box
Right = TypeVar("Right")  # the right answer: texts with their scores, or a box

PERCENT = 100.0


@dataclass(frozen=True)
class PrimaryMetric(Generic[Answer, Right]):
    """The metric by which weights are chosen and rows compared. It is the mean of the examples' scores."""

    name: str  # as in `test/acc@0.5`
    label: str  # full name in tables and figures
    short: str  # name as the head of a column
    scores: Callable[[Sequence[Answer], Sequence[Right]], list[float]]  # n, each from 0 to `highest`
    highest: float = PERCENT
    unit: str = "percent"  # the unit that tables state


@dataclass(frozen=True)
class FurtherMetric(Generic[Answer, Right]):
    """A metric that is recorded and shown beside the primary one. No statistical test uses it."""

    name: str
    label: str
    short: str
    value: Callable[[Sequence[Answer], Sequence[Right]], float | None]  # of all answers; None: cannot be computed here
    unit: str = "percent"  # the unit that tables state


@dataclass(frozen=True)
class ReferenceMetric(Generic[Right]):
    """A number that scores are compared with. It depends on the examples only, not on the answers of a run."""

    name: str
    value: Callable[[Sequence[Right]], float]  # on the primary metric's scale


@dataclass(frozen=True)
class Family(Generic[Answer, Right]):
    """A family of tasks. Its name is `task.family` in a run's settings."""

    name: str
    texts: tuple[str, ...]  # columns of OFA's files that a template may use
    truth: str  # the column of OFA's files with the right answer
    read: Reader  # reads a line of OFA's files
    # A text is compared with texts that have scores; a box with a box, both x0 y0 x1 y1 in pixels of the original image.
    answers: Literal["text", "box"]
    primary: PrimaryMetric[Answer, Right]
    further: tuple[FurtherMetric[Answer, Right], ...] = ()
    references: tuple[ReferenceMetric[Right], ...] = ()
    normalise: Callable[[str], str] = str  # is applied to an answer's text before it is compared
    has_confidence: bool = False  # several people answered, and the loss may be weighted by how many gave an answer
    challenge: Challenge | None = None  # to which answers on OFA's files can be sent

    @property
    def shown(self) -> tuple[PrimaryMetric[Answer, Right] | FurtherMetric[Answer, Right], ...]:
        """The metrics that have columns in tables, the primary one first."""
        return (self.primary, *self.further)

    @property
    def other_metric_names(self) -> tuple[str, ...]:
        """The names of all further and reference metrics, whether they can be computed here or not."""
        return (*(metric.name for metric in self.further), *(metric.name for metric in self.references))

    def other_metrics(self, predicted: Sequence[Answer], right: Sequence[Right]) -> dict[str, float]:
        """The values, by name, of the reference metrics and of those further metrics that can be computed here."""
        values = {metric.name: metric.value(predicted, right) for metric in self.further}
        values |= {metric.name: metric.value(right) for metric in self.references}
        return {name: value for name, value in values.items() if value is not None}
