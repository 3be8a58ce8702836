"""The models of the tests: a mini OFA of 3 and 2 layers, the shape of the parity fixtures; and the official sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from mmprompt.methods.prompt import Prompts
from mmprompt.models.ofa import OFA
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse
from mmprompt.settings.prompt import Prompt

MINI = Model(
    name="mini",
    dim=64,
    ffn_dim=256,
    heads=4,
    encoder_layers=3,
    decoder_layers=2,
    resnet_blocks=[2, 2, 2],
    resnet_width=64,
    vocab_size=1100,
    num_bins=100,
    token_buckets=8,
    image_buckets=6,
    max_positions=62,
    interpolate_from=None,
    dropout=0.1,
    encoder_drop_path=0.1,
    decoder_drop_path=0.1,
    init_std=0.02,
)
PROMPT = Prompt(
    length=5,
    decoder_length=None,
    depth="both",
    layers=None,
    reparameterization="none",
    mlp_dim=None,
    dropout=0.2,
    init_std=1.0,
)


def official(size: str) -> Model:
    """The settings of conf/model/ofa_SIZE.yaml."""
    path = Path(__file__).parents[1] / f"conf/model/ofa_{size}.yaml"
    return parse(Model, cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path).model)))


def mini_ofa() -> OFA:
    """In eval mode, with weights large enough that every part shows in the output."""
    torch.manual_seed(0)
    return OFA(MINI.model_copy(update={"init_std": 0.2})).eval()


def mini_prompts(**changes: Any) -> Prompts:
    return Prompts(MINI, PROMPT.model_copy(update=changes), torch.Generator().manual_seed(1)).eval()
