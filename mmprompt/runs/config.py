"""The schema of a run's configuration.

`RunConfig` says *what* is computed; it is hashed and stored at launch (`runs.identity`). `settings.deployment` says where it is
computed, and `runs.overrides` which overrides are accepted. No field has a default: all defaults are in `conf/`.
Part of the light half of the package: no torch, no Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, create_model, model_validator

from mmprompt.settings.method import MethodSettings, methods
from mmprompt.settings.model import Backbone, Model
from mmprompt.settings.optim import Optim
from mmprompt.settings.section import NotNegative, Positive, Section
from mmprompt.settings.task import Task

M = TypeVar("M", bound=MethodSettings)

METHODS = methods()


class RunConfig(Section):
    """Everything that decides a run's numbers, and nothing else. Its hash is the run's id.

    It also has a field for each method (`with_methods`): the field of the run's method has its settings, the others are null.
    """

    training_version: Positive = Field(
        description="raised when the same settings begin to give other numbers; computed"
    )
    seed: NotNegative = Field(description="seed of the initial weights, of the order of the data, and of dropout")
    threads: Positive = Field(
        description="threads of torch on the CPU; they change the order of sums, and so the last bits"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        description="of the forward pass, and of the frozen weights; trained parameters, logits, loss and optimiser are float32. "
        "auto: bfloat16 with cluster.gpus, else float32"
    )
    model: Model
    backbone: Backbone
    task: Task
    method: str
    optim: Optim

    methods: ClassVar[Mapping[str, type[MethodSettings]]]  # their settings, by name

    @property
    def method_settings(self) -> MethodSettings:
        """The settings of the run's method."""
        settings: MethodSettings = getattr(self, self.method)
        return settings

    def settings_of(self, method: type[M]) -> M | None:
        """The settings of this method, as in `config.settings_of(Prompt)`; None if the run has another method."""
        return self.method_settings if isinstance(self.method_settings, method) else None

    @model_validator(mode="before")
    @classmethod
    def _one_spelling_per_meaning(cls, values: Any) -> Any:
        """Sets settings without effect to fixed values, so that equal runs have equal ids: the settings of other methods,
        smoothing over a closed set that the task does not have, and the start of dropping tokens if none are dropped."""
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
    fields["method"] = (Literal[tuple(methods)], Field(description="how the backbone is tuned"))
    schema = create_model(
        "RunConfig",
        __base__=WITHOUT_METHODS,
        __module__=__name__,
        __doc__=WITHOUT_METHODS.__doc__,
        **fields,
    )
    schema.methods = methods
    return schema


if not TYPE_CHECKING:  # for type checkers, which know no field of a method, only `method_settings` and `settings_of`
    RunConfig = with_methods(METHODS)
