"""The features of a split under a frozen backbone: image features and, if nothing is tuned in the encoder, its output.

B examples, C x h x w features, N = h w patches, S source tokens of the split's longest text, U = N + S, d width.

They are always computed in batches of one shape: the last batch is filled up, and every text is padded to the longest of its
split. In batches of one shape, an example's features have the same bits in every row and with any other examples (test_cache.py;
on CPU, with one and two threads, micro in batches of 8 to 50 and ofa_tiny at 384 pixels in batches of 2 to 16, there was no
exception). So it does not matter which process computed them, and the cache (`mmprompt.training.feature_cache`) need not be part
of a run's id.
"""

from __future__ import annotations

import copy
import json
import platform
from collections.abc import Callable
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmprompt.data.splits import Split
from mmprompt.data.tasks import pad, preprocess
from mmprompt.methods.tuned_model import Tuned, TwoSteps, View
from mmprompt.models.ofa import OFA, PAD, Encoded, none_if_unpadded
from mmprompt.models.precision import Precision, dtype_of
from mmprompt.models.resnet import STRIDE
from mmprompt.runs.cache import Cache
from mmprompt.runs.config import RunConfig
from mmprompt.settings.deployment import Caching
from mmprompt.settings.model import Model
from mmprompt.settings.task import Task
from mmprompt.training.feature_cache import Cached, Make

Want = Literal["pixels", "features", "encoded"]
# The numbers that identify a processor: their keys in /proc/cpuinfo, and their names here.
NUMBERS = {"cpu family": "family", "model": "model", "stepping": "stepping"}  # x86
NUMBERS |= {"CPU implementer": "implementer", "CPU part": "part", "CPU variant": "variant"}  # ARM
SPLITS_KEPT = 6  # so many splits' features are held in memory
# Of all images of a batch, at most: on a CPU 32 images with sides of 96 pixels, 2 with sides of 384; on a GPU 32 with sides of 480.
PIXELS = {"cpu": 2**19, "cuda": 2**23}


class FrozenFeatures:
    """The features of a split under a backbone that does not change."""

    def __init__(self, backbone: OFA, settings_json: str, split: Split, cache: Cache | None) -> None:
        """`settings_json`: the settings that decide the features, as JSON."""
        settings = json.loads(settings_json)
        self.task, model = Task.model_validate(settings.pop("task")), Model.model_validate(settings["model"])
        self.backbone, self.device = backbone, backbone.embed.weight.device
        self.dtype = backbone.encoder.dtype  # of features and of what the encoder makes of them
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
        """Image features as the cache stores them, B h w C; read from the cache if there is one."""
        make, shape = self.in_batches(self.make_features), (*self.grid, self.backbone.encoder.resnet.channels)
        return make if self.cache is None else self.through_cache(make, "features", shape, self.digests, self.cache)

    @cached_property
    def output_rows(self) -> Make:
        """The encoder's states, B U d; read from the cache if there is one."""
        make = self.in_batches(self.make_outputs)
        if self.cache is None:
            return make
        questions = [digest + text.tobytes() for digest, text in zip(self.digests, self.source.numpy(), strict=True)]
        shape = (self.patches + self.source.shape[1], self.dim)
        return self.through_cache(make, "encoder outputs", shape, questions, self.cache)

    def through_cache(
        self, make: Make, kind: str, shape: tuple[int, ...], examples: list[bytes], cache: Cache
    ) -> Cached:
        """The rows of `make`, of this shape, through the cache. `examples`: for each row, what it is computed from."""
        name = f"{kind} of {self.name}"
        return Cached(
            make, batch_size(self.task.image_size, self.device), name, shape, self.facts, examples, cache, self.dtype
        )

    def in_batches(self, make: Make) -> Make:
        """Returns a function that calls `make` with batches of one size and joins the results."""
        size = batch_size(self.task.image_size, self.device)

        @torch.no_grad()
        def make_in_batches(index: np.ndarray) -> Tensor:
            rows = []
            for first in range(0, len(index), size):
                part = index[first : first + size]
                rows.append(make(np.resize(part, size))[: len(part)])
            return torch.cat(rows)

        return make_in_batches

    def make_features(self, index: np.ndarray) -> Tensor:
        return self.features_of(images_of(self.examples, index))

    def features_of(self, images: Tensor) -> Tensor:
        pixels = normalised(images, self.task.image_size, self.device)
        return self.backbone.features(pixels).permute(0, 2, 3, 1)  # B h w C, as the encoder reads them

    def make_outputs(self, index: np.ndarray) -> Tensor:
        source = self.source[torch.from_numpy(index)].to(self.device)
        return self.backbone.encode(source, self.features(index), None, None).states  # B U d

    def features(self, index: np.ndarray) -> Tensor:
        """Image features of these examples."""
        return self.feature_rows(index).to(self.device).permute(0, 3, 1, 2)  # B C h w

    @property
    def anew(self) -> TwoSteps:
        """The view of image features that are computed each time."""

        def compute(images: Tensor) -> Tensor:
            rows = self.in_batches(lambda index: self.features_of(images[torch.from_numpy(index)]))
            return rows(np.arange(len(images))).permute(0, 3, 1, 2)  # B C h w

        return TwoSteps(reader(self.examples), compute)

    def fill(self, rows: Make) -> None:
        """Fills the cache with these rows. Features come first, because the encoder's outputs are computed from them.

        If rows are not kept, the images are needed again and again, so they are.
        """
        if isinstance(rows, Cached) and rows.missing():
            for needed in dict.fromkeys((self.feature_rows, rows)):
                assert isinstance(needed, Cached)
                needed.fill()
        if not isinstance(rows, Cached) or rows.missing():
            self.examples.keep_images()

    @torch.no_grad()
    def outputs(self, index: np.ndarray) -> Encoded:
        """The encoder's output for these examples, cut after the longest of their texts."""
        hidden = self.source[torch.from_numpy(index)] == PAD
        length = int((~hidden).sum(1).max())
        padding = none_if_unpadded(torch.cat([hidden.new_zeros(len(index), self.patches), hidden[:, :length]], dim=1))
        states = self.output_rows(index)[:, : self.patches + length].to(self.device)
        return Encoded(
            states,
            None if padding is None else padding.to(self.device),
            self.backbone.encoder.positions(self.grid, length),
        )


@lru_cache(maxsize=SPLITS_KEPT)  # most runs of a job share their task
def frozen_features(backbone: OFA, settings_json: str, split: Split, cache: Cache | None) -> FrozenFeatures:
    return FrozenFeatures(backbone, settings_json, split, cache)


@lru_cache(maxsize=1)
def ready(backbone: OFA, device: torch.device, precision: Precision) -> OFA:
    """The backbone on this device and in this precision: itself on the CPU in float32, otherwise a copy."""
    if device.type == "cpu" and precision == "float32":
        return backbone
    return copy.deepcopy(backbone).to(device).compute_in(dtype_of(precision))


def view(
    config: RunConfig,
    tuned: Tuned,
    backbone: OFA,
    split: Split,
    cache: Cache | None,
    want: Want = "encoded",
) -> View:
    """Returns a function from indices of a split's examples to the input of `tuned` for them. `backbone`: the pretrained one.

    As much as possible of the fixed part is computed only once, but no more than `want`: the encoder's output or the image
    features. If the ResNet trains or its BatchNorm statistics change, features are computed from the pixels each time.
    """
    device = next(tuned.parameters()).device
    if want == "pixels":
        return pixels(split, config.task.image_size, device)
    if not tuned.resnet_is_fixed:
        return live_features(config, tuned, split, device)
    keys = {"training_version", "threads", "precision", "model", "backbone", "task"}
    settings_json = config.model_dump_json(include=keys)
    frozen = frozen_features(ready(backbone, device, config.precision), settings_json, split, cache)
    encoded = want == "encoded" and tuned.encoder_is_fixed
    if cache is None and not encoded:
        return frozen.anew
    frozen.fill(frozen.output_rows if encoded else frozen.feature_rows)
    return frozen.outputs if encoded else frozen.features


def live_features(config: RunConfig, tuned: Tuned, split: Split, device: torch.device) -> View:
    """As `view`, for a ResNet that trains or whose BatchNorm statistics change: features are computed anew for each batch."""
    size, backbone = config.task.image_size, tuned.backbone
    return TwoSteps(reader(split), lambda images: backbone.features(normalised(images, size, device)))


def pixels(split: Split, image_size: int, device: torch.device) -> TwoSteps:
    """The view of normalised pixels, B 3 size size, the ResNet's input."""
    return TwoSteps(reader(split), lambda images: normalised(images, image_size, device))


def reader(split: Split) -> Callable[[np.ndarray], Tensor]:
    """A function that reads images of the split again and again, which therefore are kept as they were decoded."""
    split.keep_images()
    return partial(images_of, split)


def images_of(split: Split, index: np.ndarray) -> Tensor:
    """The images of these examples, B S S 3 uint8."""
    return split.images[torch.from_numpy(index)]


def normalised(images: Tensor, image_size: int, device: torch.device) -> Tensor:
    """Images, B S S 3 uint8, as the ResNet's input on the device, B 3 size size."""
    return preprocess(images.to(device, non_blocking=True), image_size)


def batch_size(image_size: int, device: torch.device) -> int:
    """The number of examples that are computed together. A power of two, because most batch sizes of runs are: a run's batch then
    needs little filling up where nothing is cached."""
    return 1 << max(0, (PIXELS[device.type] // image_size**2).bit_length() - 1)


def open_cache(settings: Caching, folder: Path, device: torch.device) -> Cache | None:
    """The cache in this folder; None if the settings switch it off."""
    is_on = settings.max_gb > 0 and (settings.frozen == "on" or device.type == "cpu")
    return Cache(folder, settings.max_gb) if is_on else None


def machine(device: torch.device) -> list[str]:
    """The version of torch and the device: besides the settings, they decide the last bits of a number."""
    if device.type == "cuda":
        return [torch.__version__, torch.cuda.get_device_name(device), f"{PIXELS['cuda']} pixels together"]
    return [torch.__version__, processor()]


@lru_cache
def processor() -> str:
    """The description of this machine's processor."""
    file = Path("/proc/cpuinfo")
    return description(file.read_text() if file.exists() else "", torch.backends.cpu.get_cpu_capability())


def description(cpuinfo: str, instructions: str) -> str:
    """Describes a processor, such as `AMD EPYC 7763 64-Core Processor (family 25, model 1, stepping 1, AVX2)`. Processors with
    different descriptions may compute different last bits.

    The name alone is not enough: virtual machines call several generations "AMD EPYC". `instructions`: the instruction set that
    torch uses. `cpuinfo`: the content of /proc/cpuinfo (man 5 proc), of which the first core is used. It is empty in some
    containers; the name is then that of the architecture.
    """
    first_core = cpuinfo.strip().split("\n\n")[0].splitlines()
    values = {key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in first_core) if colon}
    name = values.get("model name") or platform.processor() or platform.machine()
    numbers = [f"{word} {values[key]}" for key, word in NUMBERS.items() if values.get(key)]
    return f"{name} ({', '.join([*numbers, instructions])})"
