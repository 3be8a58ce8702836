"""Official OFA checkpoints: reads them, and maps our names of tensors to the official ones (facts 4.8, 4.9).

Only this module knows the official names. Loading is strict: each tensor of a file is used, or listed here with the reason why
it is not.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mmprompt.models.ofa import OFA
from mmprompt.models.positions import image_bucket_count
from mmprompt.models.shapes import shapes_only
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
    r"^classification_heads\.",  # of other tasks; the official code deletes them too
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


def read_state(path: Path, whole: bool = True) -> State:
    """Reads the tensors of an official .pt file, or of a .safetensors file with the same names.

    `whole`: checks every byte; else the tensors are only mapped, which takes no time, and their names and shapes can be trusted,
    not their values. Raises CheckpointError with the file and what to do.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty; copy it again")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page and no checkpoint: its download went wrong; fetch it again")
    state = _tensors(path) if path.suffix == ".safetensors" else _official_tensors(path, head, whole)
    if whole and (odd := [name for name, tensor in state.items() if not is_finite(tensor)]):
        raise CheckpointError(
            f"{path} holds NaN or infinity in {listed(sorted(odd))}; it is damaged, or its training diverged"
        )
    return state


def is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(path: Path) -> State:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is cut off or damaged ({error}); copy it again") from None


def _official_tensors(path: Path, head: bytes, whole: bool) -> State:
    """The tensors of a .pt file: a zip archive, or one pickle after another as PyTorch wrote before version 1.6."""
    is_zip = head.startswith(b"PK")
    if is_zip:
        _check_archive(path, whole)
    else:
        _check_pickles(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the file's settings
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+?)\.? ", str(error))
        raise CheckpointError(
            f"{path} holds objects besides tensors{f' ({name[1]})' if name else ''} and is not unpickled here, as that could run "
            "code; if you trust it, torch.save({'model': torch.load(path, weights_only=False)['model']}, another file) first"
        ) from None
    except (EOFError, RuntimeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is cut off or damaged ({str(error).splitlines()[0]}); copy it again") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} is no official checkpoint: it is a {type(content).__name__} without key 'model'")
    state: State = content["model"]
    if odd := sorted(str(name) for name, value in state.items() if not isinstance(value, Tensor)):
        raise CheckpointError(f"{path} is no official checkpoint: of its 'model', {listed(odd)} are no tensors")
    return state


def _check_pickles(path: Path) -> None:
    """Raises CheckpointError if a file does not begin with the five pickles of PyTorch before version 1.6."""
    try:
        with path.open("rb") as file:
            for _ in range(5):
                for _ in pickletools.genops(file):
                    pass
    except Exception as error:  # of whatever kind: these are bytes from anywhere
        said = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is cut off, or no file of PyTorch ({said}); copy it again") from None


def _check_archive(path: Path, whole: bool) -> None:
    """Raises CheckpointError if a zip archive has no end or, if `whole`, a part whose bytes differ from their checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip() if whole else None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is cut off after {size:,} bytes or damaged ({error}); copy it again") from None
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the bytes of its part {damaged} do not have their checksum; copy it again"
        )


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_fit(path: Path, model: Model, whole: bool = False) -> State:
    """Reads a checkpoint as `read_state` does and returns it, without making the model.

    Raises CheckpointError if its tensors are not those of the model, by their names and shapes.
    """
    state = read_state(path, whole)
    if whole:
        check_aliases(state)
    with shapes_only():
        empty = OFA(model)
    check(empty, *_wanted(empty, state, model.allow))
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


def load_backbone(model: OFA, state: State, allow: Sequence[str] = ()) -> None:
    """Copies an official state into the model; prompts and adapters in the state are left out.

    `allow`: patterns of official names, `*` for anything, of tensors that may be missing or left over. What is missing stays as
    the model was made. Raises CheckpointError if any other tensor is missing or left over, or if one has another shape.
    """
    check_aliases(state)
    copy_into(model, *_wanted(model, state, allow))


def check_aliases(state: State) -> None:
    """Raises CheckpointError if the model's one embedding differs from a copy of it in the file."""
    embedding = state.get("encoder.embed_tokens.weight")
    for alias in ALIASES:
        if embedding is not None and alias in state and not torch.equal(state[alias], embedding):
            raise CheckpointError(f"{alias} differs from encoder.embed_tokens.weight; wanted: one shared embedding")


def _wanted(model: OFA, state: State, allow: Sequence[str]) -> tuple[dict[str, str], State, set[str]]:
    """For `copy_into`: by our name the official one, the state, and its keys that must be used."""
    names = {name: official_name(name) for name in model.state_dict() if not name.endswith("num_batches_tracked")}
    names = {name: key for name, key in names.items() if key in state or not is_allowed(key, allow)}
    skipped = "|".join([*NOT_OURS, PROMPT, ADAPTER])
    keys = {key for key in state if key not in ALIASES and not re.search(skipped, key)}
    return names, state, {key for key in keys if key in names.values() or not is_allowed(key, allow)}


def is_allowed(key: str, allow: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in allow)


def official_state(weights: State) -> State:
    """The tensors of a weights.safetensors, under their official names."""
    names = {"prompts": official_prompt_name, "backbone": official_name}
    parts = [(name.split(".", 1), tensor) for name, tensor in weights.items()]
    return {names[part](name): tensor for (part, name), tensor in parts}


def copy_into(module: nn.Module, names: dict[str, str], state: State, to_use: set[str]) -> None:
    """Copies `state[names[name]]` into the tensor `name` of the module, for all names. `to_use`: the keys that must be used.

    Raises CheckpointError, and copies nothing, if a tensor is missing, has another shape, or is left over.
    """
    check(module, names, state, to_use)
    module.load_state_dict({name: state[key] for name, key in names.items()}, strict=False)


def check(module: nn.Module, names: dict[str, str], state: State, to_use: set[str]) -> None:
    """Raises CheckpointError, which names the first tensors of each kind, if a state does not fit the module."""
    missing = sorted(set(names.values()) - state.keys())
    left_over = sorted(to_use - set(names.values()))
    own = module.state_dict()
    shapes = [
        f"{key} is {list(state[key].shape)}, the model wants {list(own[name].shape)}{remark(key)}"
        for name, key in names.items()
        if key in state and state[key].shape != own[name].shape
    ]
    problems = [f"missing: {listed(missing)}"] if missing else []
    problems += [f"left over: {listed(left_over)}"] if left_over else []
    problems += [f"shapes: {listed(shapes)}"] if shapes else []
    if problems:
        raise CheckpointError("the checkpoint does not fit the model. " + ". ".join(problems))


def remark(key: str) -> str:
    """A remark on a tensor of another shape, for the error message. The published code would lengthen these tables with noise;
    here the file is refused."""
    if "positions" in key:
        return " (a table of other length would leave positions untrained)"
    return " (another vocabulary)" if "embed_tokens" in key else ""
