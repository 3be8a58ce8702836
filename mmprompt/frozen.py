"""What a frozen backbone makes of a split: image features and, where no prompt reaches the encoder, the encoder's output.

B examples, C x h x w features, N = h w patches, S source tokens of the split's longest text, U = N + S, d width.

It is computed in batches of one shape, always: the last is filled up, every text padded to the longest of its split. In batches
of one shape an example has the same bits in whichever row and company (test_cache.py; on CPU, with one and two threads, micro
in batches of 8 to 50 and ofa_tiny at 384 pixels in batches of 2 to 16, there was no exception). So it does not matter who
computed an example, and whether it was kept (`mmprompt.cache`) need not be in a run's id.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmprompt.cache import Cache, Cached, Make
from mmprompt.config import Caching, Model, RunConfig, Task
from mmprompt.data import SPLITS, load
from mmprompt.ofa import OFA, PAD, Encoded, only_if_any
from mmprompt.resnet import STRIDE
from mmprompt.tasks import pad, preprocess
from mmprompt.tuned import Tuned, View, autocast

PIXELS = 2**19  # of all images of a batch, at most: 32 images of 96 pixels a side, 2 of 384


class Frozen:
    """A split in the eyes of a backbone that no longer changes."""

    def __init__(self, backbone: OFA, known: str, split: str, cache: Cache | None) -> None:
        """`known`: the settings that decide what it sees, as JSON."""
        settings = json.loads(known)
        self.task, model = Task.model_validate(settings.pop("task")), Model.model_validate(settings["model"])
        self.backbone, self.device, self.precision = backbone, backbone.embed.weight.device, settings["precision"]
        examples = load(self.task, model, split)
        self.images, self.source = examples.images, pad([sample.source for sample in examples.samples])  # n S
        side = -(-self.task.image_size // STRIDE)
        self.grid, self.patches = (side, side), side * side
        self.feature_rows, self.output_rows = self.in_batches(self.make_features), self.in_batches(self.make_outputs)
        if cache is not None:
            facts = json.dumps([settings, self.task.image_size, machine(self.device)])
            looks = [hashlib.sha256(image).digest() for image in self.images.numpy()]
            asked = [look + text.tobytes() for look, text in zip(looks, self.source.numpy(), strict=True)]
            shape = (side, side, backbone.encoder.resnet.channels)
            batch, name = batch_size(self.task.image_size), f"features of {self.task.name}/{split}"
            self.feature_rows = Cached(self.feature_rows, batch, name, shape, facts, looks, cache)
            name, wide = f"encoder outputs of {self.task.name}/{split}", self.patches + self.source.shape[1]
            self.output_rows = Cached(self.output_rows, batch, name, (wide, model.dim), facts, asked, cache)

    def in_batches(self, make: Make) -> Make:
        size = batch_size(self.task.image_size)

        @torch.no_grad()
        def made(index: np.ndarray) -> Tensor:
            rows = []
            for first in range(0, len(index), size):
                part = index[first : first + size]
                with autocast(self.device, self.precision):
                    rows.append(make(np.resize(part, size))[: len(part)].float())
            return torch.cat(rows)

        return made

    def make_features(self, index: np.ndarray) -> Tensor:
        pixels = preprocess(self.images[torch.from_numpy(index)].to(self.device), self.task.image_size)
        return self.backbone.features(pixels).permute(0, 2, 3, 1)  # B h w C, as the encoder reads them

    def make_outputs(self, index: np.ndarray) -> Tensor:
        source = self.source[torch.from_numpy(index)].to(self.device)
        return self.backbone.encode(source, self.features(index), None, None).states  # B U d

    def features(self, index: np.ndarray) -> Tensor:
        return self.feature_rows(index).to(self.device).permute(0, 3, 1, 2)  # B C h w

    def fill(self, rows: Make) -> None:
        """Makes what is to be kept of these rows, of the features first: they are what outputs are made of."""
        if isinstance(rows, Cached) and rows.missing():
            for needed in dict.fromkeys((self.feature_rows, rows)):
                assert isinstance(needed, Cached)
                needed.fill()

    @torch.no_grad()
    def outputs(self, index: np.ndarray) -> Encoded:
        """Without the columns beyond the longest of these texts."""
        hidden = self.source[torch.from_numpy(index)] == PAD
        length = int((~hidden).sum(1).max())
        hidden = torch.cat([hidden.new_zeros(len(index), self.patches), hidden[:, :length]], dim=1)
        states = self.output_rows(index)[:, : self.patches + length].to(self.device)
        return Encoded(states, only_if_any(hidden.to(self.device)), self.backbone.encoder.positions(self.grid, length))


@lru_cache(maxsize=len(SPLITS))  # the runs of a job mostly share their task
def frozen(backbone: OFA, known: str, split: str, cache: Cache | None) -> Frozen:
    return Frozen(backbone, known, split, cache)


@lru_cache(maxsize=1)
def on(backbone: OFA, device: torch.device) -> OFA:
    return backbone if device.type == "cpu" else copy.deepcopy(backbone).to(device)


def view(config: RunConfig, tuned: Tuned, backbone: OFA, split: str, cache: Cache | None) -> View:
    """What `tuned` looks at of a split. `backbone`: as it came, before anything was tuned on it."""
    device = next(tuned.parameters()).device
    if tuned.live:
        return live(config, tuned, split, device)
    known = config.model_dump_json(include={"training_version", "threads", "precision", "model", "backbone", "task"})
    seen = frozen(on(backbone, device), known, split, cache)
    encoder_is_frozen = tuned.prompts.encoder is None
    seen.fill(seen.output_rows if encoder_is_frozen else seen.feature_rows)
    return seen.outputs if encoder_is_frozen else seen.features


def live(config: RunConfig, tuned: Tuned, split: str, device: torch.device) -> View:
    """Features under a BatchNorm that follows the batches: each batch is computed as it is."""
    images = load(config.task, config.model, split).images

    def see(index: np.ndarray) -> Tensor:
        pixels = preprocess(images[torch.from_numpy(index)].to(device), config.task.image_size)
        with torch.no_grad(), autocast(device, config.precision):
            return tuned.backbone.features(pixels)

    return see


def batch_size(image_size: int) -> int:
    """A power of two, as the sizes of batches mostly are: where nothing is kept, little is then computed in vain."""
    return 1 << max(0, (PIXELS // image_size**2).bit_length() - 1)


def kept(settings: Caching, folder: Path, device: torch.device) -> Cache | None:
    """The cache in this folder; None if these settings want none."""
    wanted = settings.max_gb > 0 and (settings.frozen == "on" or device.type == "cpu")
    return Cache(folder, settings.max_gb) if wanted else None


def machine(device: torch.device) -> list[str]:
    """What decides the last bits besides the settings."""
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return [torch.__version__, kind, torch.backends.cpu.get_cpu_capability()]


@lru_cache
def cpu_name() -> str:
    """The processor's name; numbers differ in the last bits between kinds."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
