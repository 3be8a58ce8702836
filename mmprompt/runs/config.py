"""The schema of a run's configuration, and one-sentence errors for mistyped settings.

`RunConfig` says *what* is computed; it is hashed and stored at launch (`runs.identity`). Where it is computed is in
`runs.deployment`, which overrides are accepted in `runs.overrides`. No field has a default: every default lives in `conf/`.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from mmprompt.families.registry import FAMILIES
from mmprompt.settings.method import MethodSettings, methods
from mmprompt.settings.section import NotNegative, NotNegativeFloat, Positive, PositiveFloat, Rate, Section

T = TypeVar("T", bound=Section)
M = TypeVar("M", bound=MethodSettings)

METHODS = methods()
if TYPE_CHECKING:
    FamilyName = str
else:
    FamilyName = Literal[tuple(FAMILIES)]


class ConfigError(ValueError):
    """A setting is wrong. The message is one sentence a user can act on: the key, what came, what is allowed."""


class Model(Section):
    """One OFA size (facts 4.1, 4.3). Two sizes differ by these values and by nothing else."""

    name: str
    dim: Positive  # d, width of both stacks
    ffn_dim: Positive
    heads: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    resnet_blocks: Annotated[list[Positive], Field(min_length=3, max_length=3)]  # bottlenecks per stage
    resnet_width: Positive  # planes of the first stage; 64 in every official size
    vocab_size: Positive
    num_bins: Positive  # location tokens, the last ids of the vocabulary
    token_buckets: Positive  # of the relative text positions
    image_buckets: Positive  # largest patch grid, per side
    max_positions: Positive  # text positions; the tables hold two more
    interpolate_from: Positive | None  # patch grid side whose positions are stretched over the image; null: off
    dropout: Rate
    encoder_drop_path: Rate
    decoder_drop_path: Rate
    init_std: PositiveFloat

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}")
        return self


class Backbone(Section):
    """The pretrained weights and how they are held while the prompts train (decision 8)."""

    mode: Literal["eval", "train"]  # eval: really frozen; train: live BatchNorm, dropout and drop-path as published
    checksum: str


# Of `mmprompt.world`: raise it when the same settings begin to give other scenes. Every run gets a new id.
WORLD_VERSION = 1


class Digits(Section):
    """Generated scenes (`mmprompt.world.small_world`)."""

    world: Literal["digits"]
    pixels: Literal["plain", "texture"]  # texture: a shift that lies in the pixels alone
    seed: NotNegative
    train: Positive  # examples per split
    val: Positive
    test: Positive
    fingerprint: str  # of what the scenes are made from

    @property
    def splits(self) -> list[str]:
        return ["train", "val", "test"]

    @property
    def validation(self) -> str:
        return "val"


class Files(Section):
    """OFA's files (facts 5.1; `mmprompt.data.tsv`). Names are relative to the folder paths.data."""

    world: Literal["tsv"]
    files: dict[str, Annotated[list[str], Field(min_length=1)]]  # of each split, one behind the other; `train` is one
    validation: str  # the split that weights are chosen on
    columns: dict[str, NotNegative]  # what stands in which column, counted from 0
    encoder: str  # GPT-2's byte-level BPE: encoder.json,
    merges: str  # vocab.bpe,
    dictionary: str  # and which of its ids is OFA's fourth, fifth, ...: dict.txt
    max_image_size: Positive | None  # pixels of the resized image that location tokens span; null where there is no box
    max_source_words: Positive  # of each text that fills the template
    max_target_words: Positive  # of a caption that is trained on
    confidence: bool  # the loss of an answer is weighted by how many people gave it
    fingerprint: str  # of all files

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


def check_name(name: str) -> None:
    """Of a task's file. Raises ValueError: no path of a machine gets into an id."""
    if not name or name.startswith(("/", "~")) or ".." in name.split("/"):
        raise ValueError(f"task.data names the file {name!r}; wanted: a name inside the folder paths.data")


WORLDS = ("digits", "tsv")
TABLES = ("task.data.files", "task.data.columns")  # keys whose own keys are the task's


class Task(Section):
    name: str
    family: FamilyName
    data: Digits | Files = Field(discriminator="world")
    template: str  # the instruction; every {field} is filled from the example
    prompt_type: Literal[
        "none", "src", "prev_output"
    ]  # the decoder first reads the instruction: not, with </s>, without it
    image_size: Positive  # pixels, square
    answers: (
        list[str] | str | None
    )  # the closed set of answers (facts 5.6), or its file in paths.data; null: text is generated
    max_target_tokens: Positive  # longest generated answer
    beam: Positive | None  # of the search, held to `answers`; null: every answer is scored, and text is greedy
    no_repeat_ngram: Positive | None  # of the search: no so many tokens are written twice; null: off

    @property
    def validation(self) -> str:
        """The split that weights are chosen on."""
        return self.data.validation

    @property
    def splits(self) -> list[str]:
        """Those that finished weights are asked by default: validation first, then the tests."""
        return [self.validation, *(split for split in self.data.splits if split not in ("train", self.validation))]

    @property
    def files(self) -> list[str]:
        """Names of all files that it reads, in an order of their own."""
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
    def _files_say_what_is_asked(self) -> Self:
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
        if strange := sorted(asked - {*family.texts}):
            known = ", ".join(family.texts) or "none"
            raise ValueError(
                f"task.template asks for {{{strange[0]}}}; of task.family={self.family} it may ask for: {known}"
            )
        wanted, columns = {"image", family.truth, *asked}, self.data.columns
        if missing := sorted(wanted - columns.keys()):
            raise ValueError(f"task.data.columns={columns} does not say in which column {missing[0]} stands")
        if strange := sorted(columns.keys() - {"image", family.truth, *family.texts}):
            near = nearest(strange[0], wanted)
            raise ValueError(f"task.data.columns has {strange[0]}, which task.family={self.family} does not read{near}")
        if family.answers == "box" and self.data.max_image_size is None:
            raise ValueError("task.data.max_image_size=null, but location tokens need an extent; published: 512")
        if self.data.confidence and not family.has_confidence:
            those = " and ".join(one.name for one in FAMILIES.values() if one.has_confidence)
            raise ValueError(
                f"task.data.confidence=true, but answers of task.family={self.family} have none; only those of {those} do"
            )
        return self


class Optim(Section):
    """AdamW, linear warm-up and polynomial decay to 0 (facts 3.2, 3.4)."""

    lr: PositiveFloat
    betas: Annotated[list[Rate], Field(min_length=2, max_length=2)]
    eps: PositiveFloat
    weight_decay: NotNegativeFloat
    clip_norm: PositiveFloat
    warmup_ratio: Rate
    decay_power: NotNegativeFloat
    steps: Positive  # optimiser updates
    batch_size: Positive  # examples per update
    micro_batch: Positive  # examples per forward; batch_size / micro_batch are accumulated
    label_smoothing: Rate
    smoothing_over: Literal[
        "vocabulary", "allowed"
    ]  # allowed: the loss sees only what a closed set of answers allows next
    drop_worst: (
        Rate  # share of a micro-batch's tokens, those with the largest loss, that is left out; published: captions 0.2
    )
    drop_worst_after: NotNegative  # updates
    ema_decay: Rate | None  # what is validated and published is this moving average of the weights; null: the weights
    validate_every: Positive  # updates
    validate_examples: Positive  # of the validation split, while training; the whole split at the end

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"optim.micro_batch={self.micro_batch} must divide optim.batch_size={self.batch_size}")
        return self


class RunConfig(Section):
    """Everything that decides a run's numbers; nothing else. Its hash is the run's id.

    It has a field for each method as well (`with_methods`): that of the run's own holds its settings, the others are null.
    """

    training_version: Positive  # raised when the same settings begin to mean other numbers
    seed: NotNegative
    threads: Positive  # torch threads: they change the order of sums
    precision: Literal["float32", "bfloat16"]  # of the forward; prompts, loss and optimiser are float32
    model: Model
    backbone: Backbone
    task: Task
    method: str
    optim: Optim

    methods: ClassVar[Mapping[str, type[MethodSettings]]]  # their settings, by name

    @property
    def method_settings(self) -> MethodSettings:
        """Those of the run's own method."""
        settings: MethodSettings = getattr(self, self.method)
        return settings

    def settings_of(self, method: type[M]) -> M | None:
        """Those of this method: `config.settings_of(Prompt)`. None if the run's is another."""
        return self.method_settings if isinstance(self.method_settings, method) else None

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_per_meaning(cls, values: Any) -> Any:
        """Settings of other methods, and a smoothing that the task has no use for, decide nothing."""
        if not isinstance(values, dict):
            return values
        values = values | {method: None for method in cls.methods if method != values.get("method")}
        task, optim = values.get("task"), values.get("optim")
        if isinstance(task, dict) and isinstance(optim, dict) and task.get("answers") is None:
            values = values | {"optim": optim | {"smoothing_over": "vocabulary"}}
        if isinstance(optim, dict) and optim.get("drop_worst") == 0:
            values = values | {"optim": values["optim"] | {"drop_worst_after": 0}}
        return values

    @model_validator(mode="after")
    def _the_method_has_its_settings(self) -> Self:
        if self.method_settings is None:
            raise ValueError(f"method={self.method} needs the settings {self.method}.*")
        layers = {"encoder": self.model.encoder_layers, "decoder": self.model.decoder_layers}
        self.method_settings.check_layers(self.model.name, layers)
        return self


WITHOUT_METHODS = RunConfig


def with_methods(methods: Mapping[str, type[MethodSettings]]) -> type[RunConfig]:
    """The schema of a run for these methods: a section for each, and `method`, which names one of them."""
    fields: dict[str, Any] = {name: (settings | None, ...) for name, settings in methods.items()}
    fields["method"] = (Literal[tuple(methods)], ...)
    schema = create_model(
        "RunConfig",
        __base__=WITHOUT_METHODS,
        __module__=__name__,
        __doc__=WITHOUT_METHODS.__doc__,
        **fields,
    )
    schema.methods = methods
    return schema


if not TYPE_CHECKING:  # to a type checker a run has `method_settings` and `settings_of`, whatever methods there are
    RunConfig = with_methods(METHODS)


class Attack(Section):
    """An adversarial attack on an evaluation (paper 4.4.3; `mmprompt.evaluation.attack`). epsilon 0: none."""

    kind: Literal["fgsm", "pgd"]  # one signed step of the gradient, as in the paper; several, each projected back
    input: Literal[
        "embeddings", "pixels"
    ]  # text and image embeddings, as in the paper; the normalised pixels, in [-1, 1]
    epsilon: NotNegativeFloat  # largest change of any single number
    steps: Positive  # of pgd


class Evaluation(Section):
    """What the tuned weights of a run are asked. It makes an evaluation's id, and no run's."""

    splits: Annotated[list[str], Field(min_length=1)] | None  # null: the task's for validation and test
    examples: Positive | None  # of each split, the first; null: all
    beam: Positive | None  # null: the task's
    no_repeat_ngram: Positive | None  # null: the task's


class Questions(Section):
    """All that decides an evaluation of a run."""

    evaluation: Evaluation
    attack: Attack


def sentence(error: ValidationError, schema: type[Section]) -> str:
    """The first complaint of pydantic as one sentence: which key, what came, what is allowed."""
    first = error.errors()[0]
    # the schema of a task's data is chosen by its `world`, and pydantic says which one it chose
    place = [
        part for at, part in enumerate(first["loc"]) if at == 0 or first["loc"][at - 1] != "data" or part not in WORLDS
    ]
    key = ".".join(str(part) for part in place)
    match first["type"]:
        case "union_tag_invalid":
            return f"{key}.world={first['ctx']['tag']!r} is not allowed; choose one of {', '.join(WORLDS)}"
        case "union_tag_not_found":
            return f"{key}.world is missing"
        case "value_error":  # raised by a validator above, which already says it all
            return str(first["ctx"]["error"])
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is not a key of a run{nearest(key, dotted_keys(schema))}"
        case "literal_error":
            return f"{key}={first['input']!r} is not allowed; choose one of {first['ctx']['expected']}"
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}={first['input']!r} ({type(first['input']).__name__}) is not allowed; wanted: {wanted}"


def parse(schema: type[T], values: Mapping[str, Any]) -> T:
    """Validated settings. Raises ConfigError naming the key, what came and what is allowed."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(sentence(error, schema)) from None


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of the settings, dotted, those of sections after the section's own: `prompt`, `prompt.length`, ..."""
    for name, field in schema.model_fields.items():
        yield prefix + name
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from dotted_keys(part, f"{prefix}{name}.")


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, sorted(set(candidates)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
