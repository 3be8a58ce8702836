"""What the jobs of a model need where conf/cluster does not say: memory, CPU cores and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse
from mmprompt.settings.section import Section

BYTES = 4  # of a float32
IMAGE_DECODERS = 8  # cores: one decodes about 110 photographs of RefCOCO in a second
SMALL = 10_000_000  # parameters, fewer than any official size has
FLOOR_GB, CUDA_GB = 2.0, 4.0  # Python, torch, W&B and the data; what CUDA's libraries hold on the host


class _Sized(Section):
    model: Model


def needs(composed: Mapping[str, Any]) -> dict[str, float | int]:
    """`mem_gb`, `cpus` and `time_min` for a run with these composed settings.

    Each GPU has a process of its own, in whose memory the checkpoint file, the model and the tuned copy lie at once. Where
    everything trains, so do two copies of a checkpoint: the weights, the best ones and the two moments of Adam. A run that needs
    more time continues in the next job. Raises ConfigError for a wrong setting of the model.
    """
    parameters = parameter_count(parse(_Sized, {"model": composed["model"]}).model)
    has_files, gpus = "files" in composed["task"]["data"], composed["cluster"]["gpus"]
    processes = max(1, gpus) if isinstance(gpus, int) else 1
    copies = 4 + (8 if composed["method"] == "finetune" else 0)
    memory = processes * (FLOOR_GB + copies * BYTES * parameters / 1e9 + (CUDA_GB if gpus else 0.0))
    return {
        "mem_gb": float(round(memory)),
        "cpus": IMAGE_DECODERS * processes if has_files and gpus else 1,
        "time_min": 60 if parameters < SMALL else 240,
    }


def parameter_count(model: Model) -> int:
    """The number of a model's parameters, to a few percent: the matrices of its layers, its ResNet, vocabulary and positions."""
    encoder = model.encoder_layers * (4 * model.dim**2 + 2 * model.dim * model.ffn_dim)
    decoder = model.decoder_layers * (8 * model.dim**2 + 2 * model.dim * model.ffn_dim)
    widths = [model.resnet_width * 2**stage for stage in range(3)]
    resnet = sum(17 * width**2 * blocks for width, blocks in zip(widths, model.resnet_blocks, strict=True))
    rows = model.vocab_size + 2 * model.max_positions + model.image_buckets**2 + 6 * model.dim
    return rows * model.dim + encoder + decoder + resnet
