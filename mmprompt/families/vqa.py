"""Visual question answering: the model answers a question about an image in a few words (facts 5.3, 5.7)."""

from __future__ import annotations

from mmprompt.families.challenge import Challenge
from mmprompt.families.family import Family, PrimaryMetric, ReferenceMetric
from mmprompt.families.lines import (
    AND,
    NOT_SCORED,
    DataError,
    Example,
    FileSettings,
    Size,
    Texts,
    example_of,
    normalise_text,
)
from mmprompt.families.short_answers import constant_answer, credits

OBJECTS = 30  # only so many objects of an image are used, the first ones
SCORED = "|!+"  # separates an answer's score from the answer


def read(texts: Texts, size: Size, image_size: int, data: FileSettings, trained: bool) -> Example:
    """Reads a line. The question loses its question mark, because the template has one. Raises DataError for an answer without a
    valid score."""
    fields = {"question": normalise_text(texts["question"], data.max_source_words).removesuffix("?")}
    if "objects" in texts:
        fields["objects"] = " ".join(texts["objects"].strip().split(AND)[:OBJECTS])
    if "answers" not in texts:
        return example_of(fields, "", {}, 1.0)
    right: dict[str, float] = {}
    for part in texts["answers"].split(AND):
        score, mark, answer = part.partition(SCORED)
        try:
            value = float(score)
        except ValueError:
            value = -1.0
        if not mark or not 0 <= value <= 1:
            hint = "" if trained or texts["answers"].strip() else f"; {NOT_SCORED}"
            raise DataError(
                f"the answer {part!r} came; wanted: a score from 0 to 1, then {SCORED} and the answer{hint}"
            )
        right[answer.strip()] = max(value, right.get(answer.strip(), 0.0))
    best = max(right, key=right.__getitem__)
    return example_of(fields, best, right, right[best] if data.confidence else 1.0)


VQA = Family(
    name="vqa",
    texts=("question", "objects"),
    truth="answers",
    read=read,
    answers="text",
    primary=PrimaryMetric("vqa_accuracy", "VQA accuracy (%)", "Accuracy", credits),
    references=(ReferenceMetric("constant_answer", constant_answer),),
    has_confidence=True,
    challenge=Challenge("EvalAI's VQA challenge", "vqa", "question_id", "answer", id_column=0),
)
