"""Deep prefix prompts (paper 3.2; facts 1.2, 1.3): their settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmprompt.settings.method import MethodSettings
from mmprompt.settings.section import NotNegative, NotNegativeFloat, Positive, Rate


class Prompt(MethodSettings):
    """P key and P value vectors before the self-attention of each prompted layer; nothing of the backbone trains."""

    label = "Prompt tuning"
    is_published = True

    length: NotNegative = Field(
        title="Prompt length",
        description="P of the encoder, and of the decoder unless decoder_length says otherwise",
    )
    decoder_length: NotNegative | None = Field(description="P of the decoder; null: as length")
    depth: Literal["both", "encoder", "decoder"] = Field(title="Prompt depth", description="which stacks are prompted")
    layers: Annotated[list[NotNegative], Field(min_length=1)] | None = Field(
        description="which layers of each prompted stack; null: all"
    )
    reparameterization: Literal["none", "mlp"] = Field(
        title="Reparameterization", description="mlp: an MLP computes the prompt while it trains"
    )
    mlp_dim: Positive | None = Field(title="MLP width", description="hidden width of the MLP; null: 2 d, as published")
    dropout: Rate = Field(description="on the prefix keys and values while training; published: 0.2")
    init_std: NotNegativeFloat = Field(
        description="of the normal distribution that prompts start from; published: 0.02"
    )

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

    def in_words(self) -> str:
        return f"P={self.length} {self.depth} {self.reparameterization}"

    def check_layers(self, model: str, layers: Mapping[str, int]) -> None:
        for stack, there in layers.items():
            if self.depth in (stack, "both") and any(layer >= there for layer in self.layers or []):
                raise ValueError(
                    f"prompt.layers={self.layers} names a layer that the {stack} of model.name={model} does not have; "
                    f"allowed are 0 to {there - 1}"
                )
