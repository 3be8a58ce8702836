"""The methods of tuning: what each adds to a backbone, and exactly which of its tensors train (facts 1.5).

prompt     the deep prefix prompts (`mmprompt.methods.prompts`), nothing of the backbone
finetune   everything; with finetune.freeze_embedding all but the token embedding
bitfit     biases: those the published code's name rule finds, or all
adapter    the adapters that are added after each feed-forward; the published flag alone trains the backbone as well
lora       the low-rank updates that are added to attention projections, of self- and cross-attention
"""

from __future__ import annotations

import torch
from torch import nn

from mmprompt.methods.adapter import Adapter
from mmprompt.methods.lora import LowRank
from mmprompt.models.attention import Attention
from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import official_name
from mmprompt.runs.config import RunConfig


def install(config: RunConfig, backbone: OFA, generator: torch.Generator) -> None:
    """Adds what the method adds, and lets train what it trains: `requires_grad` is True there and nowhere else."""
    std = config.model.init_std  # as every linear layer of the model starts: that is what the published code amounts to
    if config.adapter is not None:
        add_adapters(backbone, config.adapter.dim, std, generator)
    if config.lora is not None:
        for attention in [module for module in backbone.modules() if isinstance(module, Attention)]:
            for target in config.lora.targets:
                linear: nn.Linear = getattr(attention, target)
                setattr(attention, target, LowRank(linear, config.lora.rank, config.lora.alpha, std, generator))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(is_trained(name, config))


def add_adapters(backbone: OFA, bottleneck: int, std: float, generator: torch.Generator) -> None:
    """One in each layer of both stacks."""
    for layer in (*backbone.encoder.layers, *backbone.decoder.layers):
        layer.adapter = Adapter(backbone.embed.embedding_dim, bottleneck, std, generator)


def is_added(name: str) -> bool:
    """Whether a method has added this tensor to the backbone, by our name of it."""
    return ".adapter." in name or ".lora_" in name


def is_trained(name: str, config: RunConfig) -> bool:
    """Whether a tensor of the backbone trains, by our name of it."""
    if config.finetune is not None:
        return not (config.finetune.freeze_embedding and name == "embed.weight")
    if config.bitfit is not None:
        return name.endswith(".bias") and (config.bitfit.rule == "all" or is_published_bias(name))
    return is_added(name)


def is_published_bias(name: str) -> bool:
    """The rule of the published code, which goes by official names: a bias of something called layer_norm or fc.

    So norms that are called layernorm (after attention, inside the FFN, of embeddings) and attention's biases stay frozen.
    """
    official = official_name(name)
    return "layer_norm" in official or "fc" in official
