"""What a run is: the schema of its configuration, and one-sentence errors for whoever mistypes it.

Two halves. `RunConfig` is *what* is computed; it is hashed and frozen (`mmprompt.run`). `Place` is *where* and *how visibly*:
cluster, tracking, paths; it never changes a number, so it is in no id. No field has a default: every default lives in `conf/`.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
NotNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


T = TypeVar("T", bound="Section")


PRIMARY_METRIC = {  # on the paper's scale: percent; CIDEr times 100
    "grounding": "acc@0.5",
    "entailment": "accuracy",
    "vqa": "vqa_accuracy",
    "caption": "cider",
}


class ConfigError(ValueError):
    """A setting is wrong. The message is one sentence a user can act on: the key, what came, what is allowed."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


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


# Of mmprompt.digits and mmprompt.world: raise when the same settings begin to give other scenes. Every run gets a new id.
WORLD_VERSION = 1


class Data(Section):
    """Generated scenes (`mmprompt.world`)."""

    world: Literal["digits"]
    pixels: Literal["plain", "texture"]  # texture: a shift that lies in the pixels alone
    seed: NotNegative
    train: Positive  # examples per split
    val: Positive
    test: Positive
    fingerprint: str  # of what the scenes are made from


class Task(Section):
    name: str
    family: Literal["grounding", "entailment", "vqa", "caption"]
    data: Data
    template: str  # the instruction; every {field} is filled from the example
    prompt_type: Literal["none", "prev_output"]  # prev_output: the decoder reads the instruction before it answers
    image_size: Positive  # pixels, square
    answers: list[str] | None  # the closed set of answers (facts 5.6); null: text is generated
    max_target_tokens: Positive  # longest generated answer
    beam: Positive | None  # of the search, held to `answers`; null: every answer is scored, and text is greedy
    no_repeat_ngram: Positive | None  # of the search: no so many tokens are written twice; null: off

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


class Prompt(Section):
    """Deep prefix (paper 3.2, facts 1.2, 1.3)."""

    length: NotNegative  # P of the encoder, and of the decoder unless decoder_length says otherwise
    decoder_length: NotNegative | None
    depth: Literal["both", "encoder", "decoder"]
    layers: Annotated[list[NotNegative], Field(min_length=1)] | None  # which layers of each prompted stack; null: all
    reparameterization: Literal["none", "mlp"]
    mlp_dim: Positive | None  # hidden width of the MLP; null: 2 d, as published
    dropout: Rate  # on the prefix keys and values while training; published: 0.2
    init_std: NotNegativeFloat

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_per_meaning(cls, values: Any) -> Any:
        """Spellings of one prompt that people do use get one id."""
        if not isinstance(values, dict):
            return values
        layers = values.get("layers")
        if values.get("decoder_length") == values.get("length") or values.get("depth") == "encoder":
            values = values | {"decoder_length": None}
        if values.get("reparameterization") == "none":
            values = values | {"mlp_dim": None}
        if isinstance(layers, list) and all(type(layer) is int for layer in layers):
            values = values | {"layers": sorted(set(layers))}
        return values


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
    validate_every: Positive  # updates
    validate_examples: Positive  # of the validation split, while training; the whole split at the end

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"optim.micro_batch={self.micro_batch} must divide optim.batch_size={self.batch_size}")
        return self


class RunConfig(Section):
    """Everything that decides a run's numbers; nothing else. Its hash is the run's id."""

    training_version: Positive  # raised when the same settings begin to mean other numbers
    seed: NotNegative
    threads: Positive  # torch threads: they change the order of sums
    precision: Literal["float32", "bfloat16"]  # of the forward; prompts, loss and optimiser are float32
    model: Model
    backbone: Backbone
    task: Task
    method: Literal["prompt"]
    prompt: Prompt
    optim: Optim

    @model_validator(mode="after")
    def _prompted_layers_exist(self) -> Self:
        stacks = {"encoder": self.model.encoder_layers, "decoder": self.model.decoder_layers}
        for stack, layers in stacks.items():
            if self.prompt.depth in (stack, "both") and any(i >= layers for i in self.prompt.layers or []):
                raise ValueError(
                    f"prompt.layers={self.prompt.layers} names a layer that the {stack} of model.name="
                    f"{self.model.name} does not have; allowed are 0 to {layers - 1}"
                )
        return self


class Cluster(Section):
    """Where jobs run, and what a job may use. What is null is left to the cluster."""

    kind: Literal["auto", "local", "slurm"]
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    exclude: str | None  # nodes
    gres: str | None  # as sbatch reads it, `gpu:a100:1`; null: gpu:GPUS
    gpus: NotNegative  # per job
    cpus: Positive  # per job
    mem_gb: PositiveFloat
    time_min: Positive
    max_parallel: Positive | None  # jobs at once, here those of all launches; null: as the cores allow, on SLURM all
    checkpoint_every: Positive  # updates between two checkpoints of a run
    runs_per_job: Positive | None  # null: chosen so that the jobs are even and imports are paid once
    python: str | None  # the interpreter on the nodes, as a shell reads it; null: the one that launches
    setup: list[str]  # lines of shell before it; the first that fails ends the job
    sbatch: dict[str, str | int | bool]  # whatever else sbatch knows, `{mail-user: me@there}`

    @model_validator(mode="after")
    def _settings_go_into_files(self) -> Self:
        for line in self.setup:
            if secret := SECRET.search(line):
                raise ValueError(
                    f"cluster.setup={line.replace(secret['value'], '...')!r} would write a secret into the job's script, which "
                    f"others can read; export {secret['name']} in the shell that launches: jobs inherit it"
                )
        if self.gres is not None and not self.gpus:
            raise ValueError(f"cluster.gres={self.gres} needs cluster.gpus, the number that a run uses; it is 0")
        for key in self.sbatch:
            if key.replace("_", "-") in OWN_SBATCH:
                raise ValueError(f"cluster.sbatch has {key}, which is set by {OWN_SBATCH[key.replace('_', '-')]}")
        return self


# A word that names a secret, given a value of its own; `$X`, `$(...)` and backquotes take it from elsewhere.
SECRET = re.compile(
    r"\b(?P<name>\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*)=(?P<value>[\"']?[^\s$`\"';][^\s;]*)", re.IGNORECASE
)
OWN_SBATCH = {
    **{
        key: f"cluster.{key}" for key in ("partition", "account", "qos", "constraint", "reservation", "exclude", "gres")
    },
    **{"time": "cluster.time_min", "mem": "cluster.mem_gb", "cpus-per-task": "cluster.cpus", "gpus": "cluster.gpus"},
    **dict.fromkeys(
        ("array", "job-name", "output", "error", "open-mode", "signal", "requeue", "no-requeue"), "a launch"
    ),
    **dict.fromkeys(("dependency", "ntasks", "nodes", "wckey"), "a launch"),
}


class Tracking(Section):
    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None


class Caching(Section):
    """What becomes of what a frozen backbone makes of an example (`mmprompt.frozen`). It changes no bit."""

    frozen: Literal["auto", "on"]  # auto: kept on a CPU in mode eval; on: on a GPU too, and mode train is refused
    max_gb: NotNegativeFloat  # of all that is kept in STORE/cache; 0: nothing is kept


class Staging(Section):
    stage: bool  # what runs read is copied to $TMPDIR, once per node


class Paths(Section):
    runs: str | None  # the store; null: MMPROMPT_RUNS, or runs/ in the clone
    backbone: str  # checkpoint file; relative: to the folder that holds conf/


class Place(Section):
    cluster: Cluster
    tracking: Tracking
    cache: Caching
    data: Staging
    paths: Paths


def sentence(error: ValidationError) -> str:
    """The first complaint of pydantic as one sentence: which key, what came, what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "value_error":  # raised by a validator above, which already says it all
            return str(first["ctx"]["error"])
        case "missing":
            return f"{key} is missing"
        case "extra_forbidden":
            return f"{key} is not a key of a run{nearest(key, known_keys())}"
        case "literal_error":
            return f"{key}={first['input']!r} is not allowed; choose one of {first['ctx']['expected']}"
    wanted = first["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key}={first['input']!r} ({type(first['input']).__name__}) is not allowed; wanted: {wanted}"


def parse(schema: type[T], values: Mapping[str, Any]) -> T:
    """Validated settings. Raises ConfigError naming the key, what came and what is allowed."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(sentence(error)) from None


def known_keys() -> list[str]:
    """Every key a user can set, dotted: `prompt.length`, `cluster.time_min`, ..."""

    def walk(schema: type[BaseModel], prefix: str) -> Iterable[str]:
        for name, field in schema.model_fields.items():
            yield prefix + name
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from walk(field.annotation, f"{prefix}{name}.")

    derived = {"training_version", "backbone.checksum", "task.data.fingerprint"}  # computed, never set
    return [key for schema in (RunConfig, Place) for key in walk(schema, "") if key not in derived]


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean a or b?`, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, sorted(set(candidates)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def check_override(key: str, value: str | None, conf: Path) -> None:
    """Raises ConfigError if `key=value` names no key and no config group, or no file of its group."""
    groups = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in conf.iterdir() if path.is_dir()}
    if key in groups:
        options = groups[key]
        if value is not None and value not in options:
            raise ConfigError(f"{key}={value} does not exist{nearest(value, options)}; allowed: {', '.join(options)}")
    elif key not in known_keys() and not key.startswith("hydra"):
        raise ConfigError(f"there is no key {key}{nearest(key, [*known_keys(), *groups])}")
