"""The settings of the model, and of the backbone that it is loaded with."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmprompt.settings.section import Positive, PositiveFloat, Rate, Section


class Model(Section):
    """One size of OFA (facts 4.1, 4.3). Two sizes differ in these values and in nothing else."""

    name: str = Field(description="the name of the size, which tables and messages show")
    dim: Positive = Field(description="d, the width of the encoder and the decoder")
    ffn_dim: Positive = Field(description="hidden width of the feed-forward networks")
    heads: Positive = Field(description="attention heads per layer; must divide dim")
    encoder_layers: Positive = Field(description="layers of the encoder")
    decoder_layers: Positive = Field(description="layers of the decoder")
    resnet_blocks: Annotated[list[Positive], Field(min_length=3, max_length=3)] = Field(
        description="bottleneck blocks in each of the three stages of the ResNet"
    )
    resnet_width: Positive = Field(description="planes of the ResNet's first stage; 64 in every official size")
    vocab_size: Positive = Field(description="tokens of the vocabulary, location tokens included")
    num_bins: Positive = Field(description="location tokens, which are the last ids of the vocabulary")
    token_buckets: Positive = Field(description="buckets of the relative text positions")
    image_buckets: Positive = Field(description="patches per side of the largest image grid")
    max_positions: Positive = Field(description="text positions; the position tables hold two more")
    interpolate_from: Positive | None = Field(
        description="patches per side of the grid whose positions are interpolated to the image's; null: not interpolated"
    )
    dropout: Rate = Field(description="dropout of the backbone, where backbone.mode is train")
    encoder_drop_path: Rate = Field(
        description="rate at which the last layer of the encoder is skipped in training; it rises linearly from 0 in the first"
    )
    decoder_drop_path: Rate = Field(description="the same for the decoder")
    init_std: PositiveFloat = Field(description="standard deviation of the initial weights, for pretraining")
    allow: list[str] = Field(
        default_factory=list,
        description="official names, * for anything, of tensors that a checkpoint may lack (they keep their initial values) or "
        "have besides",
    )

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"model.heads={self.heads} must divide model.dim={self.dim}")
        return self


class Backbone(Section):
    """The pretrained weights, and how they are held while the trained parameters learn (decision 8)."""

    mode: Literal["eval", "train"] = Field(
        description="eval: the backbone is really frozen; train: BatchNorm, dropout and drop-path are live, as published"
    )
    checksum: str = Field(description="sha256 of the checkpoint file")
