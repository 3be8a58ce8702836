"""The settings of a task and of its data."""

from __future__ import annotations

from itertools import chain
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmprompt.families.registry import FAMILIES
from mmprompt.settings.section import NotNegative, Positive, Section
from mmprompt.settings.spelling import nearest

if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]

WORLDS = ("digits", "tsv")
TABLES = ("task.data.files", "task.data.columns")  # keys whose own keys are the task's
# Of `mmprompt.world`: raise it when the same settings begin to give other scenes. Every run gets a new id.
WORLD_VERSION = 1


class Digits(Section):
    """Generated scenes of handwritten digits (`mmprompt.world.small_world`)."""

    world: Literal["digits"] = Field(description="digits: scenes of the small world, generated from the seed")
    pixels: Literal["plain", "texture"] = Field(
        description="texture: bright stripes hide the digits, a shift in the pixels alone"
    )
    seed: NotNegative = Field(description="seed of the scenes; it is independent of the run's seed")
    train: Positive = Field(description="examples of the training split")
    val: Positive = Field(description="examples of the validation split")
    test: Positive = Field(description="examples of the test split")
    fingerprint: str = Field(description="what the scenes are made from; computed")

    @property
    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    @property
    def validation(self) -> str:
        return "val"


class Files(Section):
    """OFA's files (facts 5.1; `mmprompt.data.tsv`). Names are relative to the folder paths.data."""

    world: Literal["tsv"] = Field(description="tsv: OFA's files in paths.data")
    files: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        description="the files of each split, which are read one after the other; one split is called train"
    )
    validation: str = Field(description="the split on which weights are chosen")
    columns: dict[str, NotNegative] = Field(
        description="the column of each field, counted from 0; id: the example's number for a challenge"
    )
    encoder: str = Field(description="encoder.json of GPT-2's byte-level BPE")
    merges: str = Field(description="vocab.bpe of GPT-2's byte-level BPE")
    dictionary: str = Field(description="dict.txt: the BPE ids in the order of OFA's token ids, from the fourth on")
    max_image_size: Positive | None = Field(
        description="pixels of the resized image that the location tokens span; null: the task has no boxes"
    )
    max_source_words: Positive = Field(description="words of each text in the instruction; longer texts are cut")
    max_target_words: Positive = Field(description="words of a caption in training; longer captions are cut")
    confidence: bool = Field(description="weight the loss of an answer by how many people gave it")
    fingerprint: str = Field(description="hash of all files; computed")

    @property
    def splits(self) -> list[str]:
        return list(self.files)

    @model_validator(mode="after")
    def _names_mean_something(self) -> Self:
        if "train" not in self.files:
            raise ValueError(f"task.data.files has the splits {', '.join(self.files)}; one must be train")
        if self.validation not in self.files or self.validation == "train":
            others = ", ".join(split for split in self.files if split != "train")
            raise ValueError(
                f"task.data.validation={self.validation} must be one of task.data.files other than train: {others}"
            )
        for name in (*chain.from_iterable(self.files.values()), self.encoder, self.merges, self.dictionary):
            check_name(name)
        return self


def check_name(name: str, key: str = "task.data") -> None:
    """Raises ValueError if the name of a task's file is a path out of the folder paths.data: such a path would get into the id."""
    if not name or name.startswith(("/", "~")) or ".." in name.split("/"):
        raise ValueError(f"{key} names the file {name!r}; wanted: a name inside the folder paths.data")


class Task(Section):
    """A data set, the instruction, and how answers are found (facts 5)."""

    name: str = Field(description="the name of the task, which tables and messages show")
    family: FamilyName = Field(description="the kind of task, which decides fields, targets and metrics")
    data: Digits | Files = Field(discriminator="world", description="where the examples come from")
    template: str = Field(description="the instruction; each {field} is replaced by the example's")
    prompt_type: Literal["none", "src", "prev_output"] = Field(
        description="what the decoder reads first; none: nothing, src: the instruction with </s>, prev_output: without </s>"
    )
    image_size: Positive = Field(description="side of the square image, in pixels")
    answers: list[str] | str | None = Field(
        description="the closed set of answers (facts 5.6), or the name of its file in paths.data; null: text is generated"
    )
    max_target_tokens: Positive = Field(description="tokens of the longest generated answer")
    beam: Positive | None = Field(
        description="beams of the search, which keeps to a closed set of answers; null: each answer is scored, other text is greedy"
    )
    no_repeat_ngram: Positive | None = Field(
        description="the search writes no sequence of this many tokens twice; null: it may"
    )

    @property
    def validation(self) -> str:
        """The split on which weights are chosen."""
        return self.data.validation

    @property
    def splits(self) -> list[str]:
        """The splits that finished weights are evaluated on by default: validation first, then the tests."""
        return [self.validation, *(split for split in self.data.splits if split not in ("train", self.validation))]

    @property
    def files(self) -> list[str]:
        """The names of all files that the task reads, in an order that never changes."""
        if isinstance(self.data, Digits):
            return []
        examples = chain.from_iterable(self.data.files[split] for split in sorted(self.data.files))
        text = [self.data.encoder, self.data.merges, self.data.dictionary]
        return [*examples, *text, *([self.answers] if isinstance(self.answers, str) else [])]

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_per_meaning(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("answers") is None and values.get("beam") == 1:
            return values | {"beam": None}
        return values

    @model_validator(mode="after")
    def _only_a_search_has_rules(self) -> Self:
        if self.no_repeat_ngram is not None and self.answers is not None and self.beam is None:
            raise ValueError(
                f"task.no_repeat_ngram={self.no_repeat_ngram} is a rule of the search, and task.beam=null with a closed set of "
                "answers does not search; give task.beam, or leave task.no_repeat_ngram at null"
            )
        return self

    @model_validator(mode="after")
    def _files_have_what_the_family_reads(self) -> Self:
        if isinstance(self.answers, str):
            check_name(self.answers)
            if isinstance(self.data, Digits):
                raise ValueError(
                    f"task.answers={self.answers} names a file, and task.data.world=digits has none; give a list"
                )
        if isinstance(self.data, Digits):
            return self
        family = FAMILIES[self.family]
        asked = {name for _, name, _, _ in Formatter().parse(self.template) if name is not None}
        if unknown := sorted(asked - {*family.texts}):
            known = ", ".join(family.texts) or "none"
            raise ValueError(
                f"task.template asks for {{{unknown[0]}}}; of task.family={self.family} it may ask for: {known}"
            )
        wanted, columns = {"image", family.truth, *asked}, self.data.columns
        if missing := sorted(wanted - columns.keys()):
            raise ValueError(f"task.data.columns={columns} does not say in which column {missing[0]} stands")
        numbered = () if family.challenge is None else ("id",)
        if unknown := sorted(columns.keys() - {"image", family.truth, *family.texts, *numbered}):
            near = nearest(unknown[0], wanted)
            raise ValueError(f"task.data.columns has {unknown[0]}, which task.family={self.family} does not read{near}")
        if family.answers == "box" and self.data.max_image_size is None:
            raise ValueError("task.data.max_image_size=null, but location tokens need an extent; published: 512")
        if self.data.confidence and not family.has_confidence:
            those = " and ".join(one.name for one in FAMILIES.values() if one.has_confidence)
            raise ValueError(
                f"task.data.confidence=true, but answers of task.family={self.family} have none; only those of {those} do"
            )
        return self
