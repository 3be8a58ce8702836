"""The settings of training."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmprompt.settings.section import NotNegative, NotNegativeFloat, Positive, PositiveFloat, Rate, Section


class Optim(Section):
    """AdamW with linear warm-up and polynomial decay to 0 (facts 3.2, 3.4)."""

    lr: PositiveFloat = Field(description="learning rate after the warm-up")
    betas: Annotated[list[Rate], Field(min_length=2, max_length=2)] = Field(description="beta1 and beta2 of AdamW")
    eps: PositiveFloat = Field(description="epsilon of AdamW")
    weight_decay: NotNegativeFloat = Field(description="weight decay of AdamW")
    clip_norm: PositiveFloat = Field(description="the gradient's norm is clipped to this")
    warmup_ratio: Rate = Field(description="share of the updates in which the learning rate rises from 0")
    decay_power: NotNegativeFloat = Field(description="power of the decay to 0; 1: linear, 0: none")
    steps: Positive = Field(
        description="updates of the trained parameters; with optim.patience, the most that a run makes"
    )
    batch_size: Positive = Field(description="examples per update")
    micro_batch: Positive = Field(
        description="examples per forward pass; must divide batch_size, and the gradients of an update are accumulated"
    )
    label_smoothing: Rate = Field(description="share of the target's probability that is spread over other tokens")
    smoothing_over: Literal["vocabulary", "allowed"] = Field(
        description="tokens that share probability and smoothing in the loss; allowed: what a closed set of answers allows next"
    )
    drop_worst: Rate = Field(
        description="share of a micro-batch's tokens, those with the largest loss, that is left out; published: 0.2 for captions"
    )
    drop_worst_after: NotNegative = Field(description="updates before drop_worst begins")
    ema_decay: Rate | None = Field(
        description="validate and publish a moving average of the weights with this decay; null: the weights themselves"
    )
    validate_every: Positive = Field(description="updates between two validations")
    validate_examples: Positive = Field(
        description="examples of the validation split that each of them uses; after training all are used"
    )

    patience: Positive | None = Field(
        description="training ends once this many updates bring no better validation score; null: it goes on to optim.steps"
    )

    @property
    def parts(self) -> int:
        """Micro-batches of an update."""
        return self.batch_size // self.micro_batch

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.batch_size % self.micro_batch:
            raise ValueError(f"optim.micro_batch={self.micro_batch} must divide optim.batch_size={self.batch_size}")
        return self

    @model_validator(mode="after")
    def _patience_spans_a_validation(self) -> Self:
        if self.patience is not None and self.patience < self.validate_every:
            raise ValueError(
                f"optim.patience={self.patience} must be at least optim.validate_every={self.validate_every}: between two "
                "validations no score can rise"
            )
        return self
