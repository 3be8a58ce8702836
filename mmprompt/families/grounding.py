"""Grounding: the model finds the box of the object that a phrase describes (facts 5.4, 5.7)."""

from __future__ import annotations

from collections.abc import Sequence

from mmprompt.families.family import Family, PrimaryMetric
from mmprompt.families.lines import Box, DataError, Example, FileSettings, Size, Texts, normalise_text

Predicted = Sequence[float] | None  # x0 y0 x1 y1; None: the answer was no box


def read(texts: Texts, size: Size, image_size: int, data: FileSettings, trained: bool) -> Example:
    """Reads a line. Raises DataError if its box is not valid.

    Location tokens span max_image_size pixels of the resized image, even if it has fewer: the bins beyond its last pixel are then
    never right (facts 5.4).
    """
    try:
        x0, y0, x1, y1 = (float(number) for number in texts["box"].split(","))
    except ValueError:
        raise DataError(f"the box {texts['box']!r} came; wanted: x0,y0,x1,y1 in pixels") from None
    if not (x0 < x1 and y0 < y1):
        raise DataError(f"the box {texts['box']!r} came; wanted: its top left corner, then its bottom right one")
    assert data.max_image_size is not None
    extent = (data.max_image_size * size[0] / image_size, data.max_image_size * size[1] / image_size)
    fields = {"phrase": normalise_text(texts["phrase"], data.max_source_words)}
    return Example(fields, "", (x0, y0, x1, y1), extent, {}, 1.0)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, x0 y0 x1 y1; 0 if they do not overlap."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def hits(predicted: Sequence[Predicted], right: Sequence[Box]) -> list[float]:
    """The score of each answer: 100 if its box overlaps the right one with an IoU of at least 0.5, else 0."""
    return [100.0 * (p is not None and iou(p, r) >= 0.5) for p, r in zip(predicted, right, strict=True)]


GROUNDING = Family(
    name="grounding",
    texts=("phrase",),
    truth="box",
    read=read,
    answers="box",
    primary=PrimaryMetric("acc@0.5", "Acc@0.5 (%)", "Acc@0.5", hits),
)
