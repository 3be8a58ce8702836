"""What a frozen backbone computes for a split: image features and, if no prompt reaches the encoder, the encoder's output.

B examples, C x h x w features, N = h w patches, S source tokens of the split's longest text, U = N + S, d width.

It is computed in batches of one shape, always: the last is filled up, every text padded to the longest of its split. In batches
of one shape an example has the same bits in whichever row and company (test_cache.py; on CPU, with one and two threads, micro
in batches of 8 to 50 and ofa_tiny at 384 pixels in batches of 2 to 16, there was no exception). So it does not matter who
computed an example, and whether it was kept (`mmprompt.training.feature_cache`) need not be in a run's id.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmprompt.data.splits import Split
from mmprompt.data.tasks import pad, preprocess
from mmprompt.methods.tuned_model import Tuned, View, autocast
from mmprompt.models.ofa import OFA, PAD, Encoded, none_if_unpadded
from mmprompt.models.resnet import STRIDE
from mmprompt.runs.config import RunConfig
from mmprompt.settings.deployment import Caching
from mmprompt.settings.model import Model
from mmprompt.settings.task import Task
from mmprompt.training.feature_cache import Cache, Cached, Make

Want = Literal["pixels", "features", "encoded"]
NUMBERS = {"cpu family": "family", "model": "model", "stepping": "stepping"}  # of a processor in /proc/cpuinfo, on x86
NUMBERS |= {"CPU implementer": "implementer", "CPU part": "part", "CPU variant": "variant"}  # on ARM
KEPT = 6  # splits, of the tasks that a job is at
PIXELS = 2**19  # of all images of a batch, at most: 32 images of 96 pixels a side, 2 of 384


class FrozenFeatures:
    """The features of a split under a backbone that does not change."""

    def __init__(self, backbone: OFA, known: str, split: Split, cache: Cache | None) -> None:
        """`known`: the settings that decide the features, as JSON."""
        settings = json.loads(known)
        self.task, model = Task.model_validate(settings.pop("task")), Model.model_validate(settings["model"])
        self.backbone, self.device, self.precision = backbone, backbone.embed.weight.device, settings["precision"]
        self.examples, self.name, self.cache = split, f"{self.task.name}/{split.name}", cache
        side = -(-self.task.image_size // STRIDE)
        self.grid, self.patches, self.dim = (side, side), side * side, model.dim
        self.facts = json.dumps([settings, self.task.image_size, machine(self.device)])

    @cached_property
    def source(self) -> Tensor:  # n S
        return pad([sample.source for sample in self.examples.samples])

    @cached_property
    def digests(self) -> list[bytes]:
        return self.examples.digests()

    @cached_property
    def feature_rows(self) -> Make:
        made, shape = self.in_batches(self.make_features), (*self.grid, self.backbone.encoder.resnet.channels)
        return made if self.cache is None else self.through_cache(made, "features", shape, self.digests, self.cache)

    @cached_property
    def output_rows(self) -> Make:
        made = self.in_batches(self.make_outputs)
        if self.cache is None:
            return made
        asked = [look + text.tobytes() for look, text in zip(self.digests, self.source.numpy(), strict=True)]
        return self.through_cache(
            made, "encoder outputs", (self.patches + self.source.shape[1], self.dim), asked, self.cache
        )

    def through_cache(self, made: Make, what: str, shape: tuple[int, ...], of: list[bytes], cache: Cache) -> Cached:
        """Rows of this shape, computed once for each item in `of`."""
        return Cached(made, batch_size(self.task.image_size), f"{what} of {self.name}", shape, self.facts, of, cache)

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
        pixels = preprocess(self.examples.images[torch.from_numpy(index)].to(self.device), self.task.image_size)
        return self.backbone.features(pixels).permute(0, 2, 3, 1)  # B h w C, as the encoder reads them

    def make_outputs(self, index: np.ndarray) -> Tensor:
        source = self.source[torch.from_numpy(index)].to(self.device)
        return self.backbone.encode(source, self.features(index), None, None).states  # B U d

    def features(self, index: np.ndarray) -> Tensor:
        return self.feature_rows(index).to(self.device).permute(0, 3, 1, 2)  # B C h w

    def fill(self, rows: Make) -> None:
        """Computes these rows for the cache, features first: the outputs are computed from them."""
        if isinstance(rows, Cached) and rows.missing():
            for needed in dict.fromkeys((self.feature_rows, rows)):
                assert isinstance(needed, Cached)
                needed.fill()

    @torch.no_grad()
    def outputs(self, index: np.ndarray) -> Encoded:
        """Cuts off the columns beyond the longest of these texts."""
        hidden = self.source[torch.from_numpy(index)] == PAD
        length = int((~hidden).sum(1).max())
        hidden = torch.cat([hidden.new_zeros(len(index), self.patches), hidden[:, :length]], dim=1)
        states = self.output_rows(index)[:, : self.patches + length].to(self.device)
        return Encoded(
            states, none_if_unpadded(hidden.to(self.device)), self.backbone.encoder.positions(self.grid, length)
        )


@lru_cache(maxsize=KEPT)  # the runs of a job mostly share their task
def frozen(backbone: OFA, known: str, split: Split, cache: Cache | None) -> FrozenFeatures:
    return FrozenFeatures(backbone, known, split, cache)


@lru_cache(maxsize=1)
def on(backbone: OFA, device: torch.device) -> OFA:
    return backbone if device.type == "cpu" else copy.deepcopy(backbone).to(device)


def view(
    config: RunConfig,
    tuned: Tuned,
    backbone: OFA,
    split: Split,
    cache: Cache | None,
    want: Want = "encoded",
) -> View:
    """Returns a function from example indices to what `tuned` reads of a split. `backbone`: the pretrained one, not tuned.

    Of what is fixed as much as possible is computed once, up to what is wanted: the encoder's output or the image features. What
    trains, or follows the batches, is computed from the pixels each time.
    """
    device = next(tuned.parameters()).device
    if want == "pixels":
        return pixels(split, config.task.image_size, device)
    if not tuned.resnet_is_fixed:
        return live_features(config, tuned, split, device)
    known = config.model_dump_json(include={"training_version", "threads", "precision", "model", "backbone", "task"})
    seen = frozen(on(backbone, device), known, split, cache)
    encoded = want == "encoded" and tuned.encoder_is_fixed
    seen.fill(seen.output_rows if encoded else seen.feature_rows)
    return seen.outputs if encoded else seen.features


def live_features(config: RunConfig, tuned: Tuned, split: Split, device: torch.device) -> View:
    """As `view`, for a ResNet that trains or whose BatchNorm statistics change: each batch is computed when it is needed."""
    looks = pixels(split, config.task.image_size, device)

    def see(index: np.ndarray) -> Tensor:
        with autocast(device, config.precision):
            return tuned.backbone.features(looks(index))

    return see


def pixels(split: Split, image_size: int, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """The images as the ResNet reads them, B 3 h w."""
    return lambda index: preprocess(split.images[torch.from_numpy(index)].to(device), image_size)


def batch_size(image_size: int) -> int:
    """A power of two, as most batch sizes are: then little is computed in vain where nothing is cached."""
    return 1 << max(0, (PIXELS // image_size**2).bit_length() - 1)


def open_cache(settings: Caching, folder: Path, device: torch.device) -> Cache | None:
    """The cache in this folder; None if the settings switch it off."""
    wanted = settings.max_gb > 0 and (settings.frozen == "on" or device.type == "cpu")
    return Cache(folder, settings.max_gb) if wanted else None


def machine(device: torch.device) -> list[str]:
    """What decides the last bits of a number besides the settings."""
    return [torch.__version__, torch.cuda.get_device_name(device) if device.type == "cuda" else processor()]


@lru_cache
def processor() -> str:
    """This machine's processor, as `described` says it."""
    file = Path("/proc/cpuinfo")
    return described(file.read_text() if file.exists() else "", torch.backends.cpu.get_cpu_capability())


def described(cpuinfo: str, instructions: str) -> str:
    """`AMD EPYC 7763 64-Core Processor (family 25, model 1, stepping 1, AVX2)`: what numbers differ between in the last bits.

    The name alone does not say it: virtual machines call several generations "AMD EPYC". `instructions`: the set that torch
    computes with. `cpuinfo`: what the kernel says (man 5 proc), of which that of the first core counts; empty where it says
    nothing, as in some containers: then the name is the architecture's.
    """
    first = cpuinfo.strip().split("\n\n")[0].splitlines()
    said = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in first) if colon}
    name = said.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {said[key]}" for key, word in NUMBERS.items() if said.get(key)]
    return f"{name} ({', '.join([*numbers, instructions])})"
