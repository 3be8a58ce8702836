"""What the lines of OFA's files say: cleaned texts, answers and what is right (facts 5.2 to 5.4, 5.7).

Everything is a function of a line's texts, by column, and the size of its image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mmprompt.data.text import normalised, without_punctuation
from mmprompt.data.tsv import DataError, Texts
from mmprompt.runs.config import Files, Task

LABELS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}
OBJECTS = 30  # of an image, the first
AND = "&&"  # between answers, captions, objects
SCORED = "|!+"  # between an answer's score and the answer
Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]  # x0 y0 x1 y1


@dataclass(frozen=True)
class Example:
    """An `Item` of `mmprompt.data.tasks`."""

    fields: Mapping[str, str]
    answer: str
    box: Box | None
    extent: tuple[float, float]
    right: Mapping[str, float]
    weight: float


def normalise_text(text: str, words: int) -> str:
    """Lower case, no punctuation in front, "-" and "/" as spaces, a person as such; the first so many words."""
    text = text.lower().lstrip(",.!?*#:;~").replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(text.split()[:words])


def grounding(texts: Texts, size: Size, task: Task, data: Files, trained: bool) -> Example:
    """Location tokens span max_image_size pixels of the resized image, also where that has fewer: the bins after those that its
    pixels reach are never right (facts 5.4)."""
    try:
        x0, y0, x1, y1 = (float(number) for number in texts["box"].split(","))
    except ValueError:
        raise DataError(f"the box {texts['box']!r} came; wanted: x0,y0,x1,y1 in pixels") from None
    if not (x0 < x1 and y0 < y1):
        raise DataError(f"the box {texts['box']!r} came; wanted: its top left corner, then its bottom right one")
    assert data.max_image_size is not None
    extent = (data.max_image_size * size[0] / task.image_size, data.max_image_size * size[1] / task.image_size)
    return Example(
        {"phrase": normalise_text(texts["phrase"], data.max_source_words)}, "", (x0, y0, x1, y1), extent, {}, 1.0
    )


def entailment(texts: Texts, size: Size, task: Task, data: Files, trained: bool) -> Example:
    if texts["label"] not in LABELS:
        raise DataError(f"the label {texts['label']!r} came; wanted: one of {', '.join(LABELS)}")
    fields = {name: normalise_text(text, data.max_source_words) for name, text in texts.items() if name != "label"}
    return example_of(fields, LABELS[texts["label"]], {LABELS[texts["label"]]: 1.0}, 1.0)


def vqa(texts: Texts, size: Size, task: Task, data: Files, trained: bool) -> Example:
    """The template ends the question with its question mark."""
    right: dict[str, float] = {}
    for part in texts["answers"].split(AND):
        score, mark, answer = part.partition(SCORED)
        try:
            value = float(score)
        except ValueError:
            value = -1.0
        if not mark or not 0 <= value <= 1:
            raise DataError(f"the answer {part!r} came; wanted: a score from 0 to 1, then {SCORED} and the answer")
        right[answer.strip()] = max(value, right.get(answer.strip(), 0.0))
    best = max(right, key=right.__getitem__)
    fields = {"question": normalise_text(texts["question"], data.max_source_words).removesuffix("?")}
    if "objects" in texts:
        fields["objects"] = " ".join(texts["objects"].strip().split(AND)[:OBJECTS])
    return example_of(fields, best, right, right[best] if data.confidence else 1.0)


def caption(texts: Texts, size: Size, task: Task, data: Files, trained: bool) -> Example:
    """Trained on without its punctuation; scored in lower case as well, as the evaluation of COCO reads captions."""
    captions = texts["captions"].split(AND)
    if trained and len(captions) > 1:
        raise DataError(f"{len(captions)} captions came, joined by {AND}; wanted, to train on: one on each line")
    bare = [without_punctuation(text) for text in captions]
    if not any(bare):
        raise DataError(f"the caption {texts['captions']!r} came; wanted: words")
    answer = next(text for text in bare if text)
    return example_of(
        {}, " ".join(answer.split()[: data.max_target_words]), Counter(normalised(text) for text in bare if text), 1.0
    )


READERS: dict[str, Callable[[Texts, Size, Task, Files, bool], Example]] = {
    "grounding": grounding,
    "entailment": entailment,
    "vqa": vqa,
    "caption": caption,
}


def example_of(fields: Mapping[str, str], answer: str, right: Mapping[str, float], weight: float) -> Example:
    """One that has no box."""
    return Example(fields, answer, None, (1.0, 1.0), right, weight)
