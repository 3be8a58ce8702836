"""Official OFA checkpoints: reads them, and maps our names of tensors to the official ones (facts 4.8, 4.9).

Only this module knows the official names. Loading is strict: each tensor of a file is used, or listed here with the reason why
it is not.
"""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from mmprompt.models.ofa import OFA
from mmprompt.models.positions import image_bucket_count
from mmprompt.settings.model import Model

State = dict[str, Tensor]

# Our name -> the official one: regular expressions, applied in this order.
RENAMED = [
    (r"^embed\b", "encoder.embed_tokens"),
    (r"^encoder\.resnet\.conv\b", "encoder.embed_images.conv1"),
    (r"^encoder\.resnet\.norm\b", "encoder.embed_images.bn1"),
    (r"^encoder\.resnet\.stages\.0\.", "encoder.embed_images.layer1."),
    (r"^encoder\.resnet\.stages\.1\.", "encoder.embed_images.layer2."),
    (r"^encoder\.resnet\.stages\.2\.", "encoder.embed_images.layer3."),
    (r"(embed_images\..*)\.norm(\d)\.", r"\1.bn\2."),
    (r"(embed_images\..*)\.shortcut\.", r"\1.downsample."),
    (r"^encoder\.types\b", "encoder.type_embedding"),
    (r"^encoder\.image_norm\b", "encoder.patch_layernorm_embedding"),
    (r"^(encoder|decoder)\.token_norm\b", r"\1.layernorm_embedding"),
    (r"^(encoder|decoder)\.token_positions\.table\b", r"\1.embed_positions"),
    (r"^(encoder|decoder)\.token_positions\.norm\b", r"\1.pos_ln"),
    (r"^encoder\.image_positions\.table\b", "encoder.embed_image_positions"),
    (r"^encoder\.image_positions\.norm\b", "encoder.image_pos_ln"),
    (r"^encoder\.position_bias\.(query|key)\b", r"encoder.pos_\1_linear"),
    (r"^decoder\.(self|cross)_bias\.(query|key)\b", r"decoder.\1_pos_\2_linear"),
    (r"pos_query_linear", "pos_q_linear"),
    (r"pos_key_linear", "pos_k_linear"),
    (r"^(encoder|decoder)\.(token|image)_biases\.(\d+)\.table\b", r"\1.\2_rel_pos_table_list.\3"),
    (r"\.self_norm\b", ".self_attn_layer_norm"),
    (r"\.cross_norm\b", ".encoder_attn_layer_norm"),
    (r"\.ffn_norm\b", ".final_layer_norm"),
    (r"^(encoder\..*)\.self_out_norm\b", r"\1.attn_ln"),
    (r"^(decoder\..*)\.(self|cross)_out_norm\b", r"\1.\2_attn_ln"),
    (r"\.self_attention\b", ".self_attn"),
    (r"\.cross_attention\b", ".encoder_attn"),
    (r"_attn\.head_scale\b", "_attn.c_attn"),
    (r"_attn\.query\b", "_attn.q_proj"),
    (r"_attn\.key\b", "_attn.k_proj"),
    (r"_attn\.value\b", "_attn.v_proj"),
    (r"_attn\.out\b", "_attn.out_proj"),
    (r"\.ffn\.up\b", ".fc1"),
    (r"\.ffn\.norm\b", ".ffn_layernorm"),
    (r"\.ffn\.down\b", ".fc2"),
    (r"\.adapter\.(down|up)\b", r".adapter.\1_proj"),
    (r"^(encoder|decoder)\.norm\b", r"\1.layer_norm"),
]
RENAMED_PROMPTS = [
    (r"^(encoder|decoder)\.table$", r"\1.\1_prompt_encoder.embedding.weight"),
    (r"^(encoder|decoder)\.mlp\.", r"\1.\1_prompt_encoder.trans."),
]

ALIASES = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")  # of encoder.embed_tokens.weight

# Tensors of an official file that our model does not have.
NOT_OURS = [
    r"\.version$",  # format number of the file
    r"\.num_batches_tracked$",  # counts batches; no result depends on it
    r"\.(token|image)_rp_bucket$",  # computed (mmprompt.models.positions)
    r"^decoder\.image_position_idx$",  # computed; generation of images only, as are the following
    r"^decoder\.embed_image_positions\.",
    r"^decoder\.image_pos_ln\.",
    r"^decoder\.code_layernorm_embedding\.",
    r"^decoder\.image_rel_pos_table_list\.",
]
PROMPT = r"\.(encoder|decoder)_prompt_encoder\."
ADAPTER = r"\.adapter\."


def left_out(model: Model) -> int:
    """Number of the official model's parameters that only generate images. Our parameters and these add up to the published total
    (facts 4.1)."""
    positions = (model.image_buckets**2 + 1) * model.dim
    norms = 2 * 2 * model.dim
    tables = model.decoder_layers * image_bucket_count(model.image_buckets) * model.heads
    return positions + norms + tables


class CheckpointError(ValueError):
    """A checkpoint does not fit the model. The message names the tensors and says what came and what was wanted."""


def read_state(path: Path) -> State:
    """Reads the tensors of an official .pt file, or of a .safetensors file with the same names. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the file's settings
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds objects besides tensors and is not unpickled here, as that could run code; if you trust it, "
            f"torch.save {{'model': torch.load(path, weights_only=False)['model']}} to another file first ({error})"
        ) from None
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError(f"{path} is no official checkpoint: it is a {type(content).__name__} without key 'model'")
    state: State = content["model"]
    return state


def official_name(name: str) -> str:
    """The official name of a tensor of `OFA`."""
    for ours, official in RENAMED:
        name = re.sub(ours, official, name)
    return name


def official_prompt_name(name: str) -> str:
    """The official name of a tensor of `Prompts`."""
    for ours, official in RENAMED_PROMPTS:
        name = re.sub(ours, official, name)
    return name


def load_backbone(model: OFA, state: State) -> None:
    """Copies an official state into the model; prompts and adapters in the state are left out.

    Raises CheckpointError if a tensor is missing, left over, or has another shape.
    """
    names = {name: official_name(name) for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    embedding = state.get("encoder.embed_tokens.weight")
    for alias in ALIASES:
        if embedding is not None and alias in state and not torch.equal(state[alias], embedding):
            raise CheckpointError(f"{alias} differs from encoder.embed_tokens.weight; wanted: one shared embedding")
    skipped = "|".join([*NOT_OURS, PROMPT, ADAPTER])
    to_use = {key for key in state if key not in ALIASES and not re.search(skipped, key)}
    copy_into(model, names, state, to_use)


def official_state(weights: State) -> State:
    """The tensors of a weights.safetensors, under their official names."""
    names = {"prompts": official_prompt_name, "backbone": official_name}
    parts = [(name.split(".", 1), tensor) for name, tensor in weights.items()]
    return {names[part](name): tensor for (part, name), tensor in parts}


def copy_into(module: nn.Module, names: dict[str, str], state: State, to_use: set[str]) -> None:
    """Copies `state[names[name]]` into the tensor `name` of the module, for all names. `to_use`: the keys that must be used.

    Raises CheckpointError, and copies nothing, if a tensor is missing, has another shape, or is left over.
    """
    missing = sorted(set(names.values()) - state.keys())
    left_over = sorted(to_use - set(names.values()))
    own = module.state_dict()
    shapes = [
        f"{key} is {list(state[key].shape)}, the model wants {list(own[name].shape)}{remark(key)}"
        for name, key in names.items()
        if key in state and state[key].shape != own[name].shape
    ]
    problems = [f"missing: {', '.join(missing)}"] if missing else []
    problems += [f"left over: {', '.join(left_over)}"] if left_over else []
    problems += [f"shapes: {'; '.join(shapes)}"] if shapes else []
    if problems:
        raise CheckpointError("the checkpoint does not fit the model. " + ". ".join(problems))
    module.load_state_dict({name: state[key] for name, key in names.items()}, strict=False)


def remark(key: str) -> str:
    """A remark on a tensor of another shape, for the error message. The published code would lengthen these tables with noise;
    here the file is refused."""
    if "positions" in key:
        return " (a table of other length would leave positions untrained)"
    return " (another vocabulary)" if "embed_tokens" in key else ""
