"""Visual entailment: the model says whether an image implies a sentence (facts 5.3, 5.7)."""

from __future__ import annotations

from mmprompt.families.family import Family, PrimaryMetric, ReferenceMetric
from mmprompt.families.lines import DataError, Example, FileSettings, Size, Texts, example_of, normalise_text
from mmprompt.families.short_answers import constant_answer, credits

LABELS = {"contradiction": "no", "entailment": "yes", "neutral": "maybe"}


def read(texts: Texts, size: Size, image_size: int, data: FileSettings, trained: bool) -> Example:
    """Reads a line. Raises DataError if its label is unknown."""
    if texts["label"] not in LABELS:
        raise DataError(f"the label {texts['label']!r} came; wanted: one of {', '.join(LABELS)}")
    fields = {name: normalise_text(text, data.max_source_words) for name, text in texts.items() if name != "label"}
    return example_of(fields, LABELS[texts["label"]], {LABELS[texts["label"]]: 1.0}, 1.0)


ENTAILMENT = Family(
    name="entailment",
    texts=("hypothesis", "caption"),
    truth="label",
    read=read,
    answers="text",
    primary=PrimaryMetric("accuracy", "Accuracy (%)", "Accuracy", credits),
    references=(ReferenceMetric("constant_answer", constant_answer),),
)
