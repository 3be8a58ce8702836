"""A GPU: the step of the official sizes and their decoding, as a share of what this GPU's matrix products reach.

`make bench-gpu`, or `python tests/bench gpu`. Then the step at each `cluster.speed`, side by side. Without a GPU it measures the
small model, at two speeds, so that the program itself is tried.
Weights are random. A step is `update`: forward, backward, clipping and AdamW; 30 source tokens and 20 of the answer, P = 64.

Work is counted as multiply-add = 2: the backward pass through a frozen layer has its input's gradient alone, attention's has both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import composed

from mmprompt.data.splits import Split
from mmprompt.data.tasks import Sample
from mmprompt.methods.tuned_model import Tuned
from mmprompt.models.decoding import search
from mmprompt.models.ofa import BOS, EOS, OFA
from mmprompt.models.resnet import STRIDE
from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import config_as_written
from mmprompt.settings.deployment import SpeedName
from mmprompt.training.loader import Loader
from mmprompt.training.speed import EAGER, Speed
from mmprompt.training.update import optimiser_of, update

SOURCE, ANSWER, P = 30, 20, 64  # tokens, and the prompt's length
ROUNDS, WARM_UP = 7, 3
SPEEDS: tuple[SpeedName, ...] = ("eager", "compile", "graph")
ON_GPU = [  # model, pixels, batch, precision
    *(("ofa_large", 480, batch, "bfloat16") for batch in (8, 32, 128)),
    ("ofa_large", 480, 16, "float32"),
    *(("ofa_base", 384, batch, "bfloat16") for batch in (32, 128)),
    ("micro", 96, 32, "float32"),
    ("micro", 96, 32, "bfloat16"),
]
ON_CPU = [("micro", 96, 8, "float32"), ("micro", 96, 8, "bfloat16")]


@dataclass(frozen=True)
class Table:
    text: str

    def markdown(self) -> str:
        return self.text


def sections() -> Iterator[Table]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU: the small model on one thread"
    rate = product_rate(device)
    head = f"### A step and decoding on: {name}\n\n"
    head += f"bfloat16 products of this device: {rate / 1e12:.3g} TFLOP/s; medians of {ROUNDS}, least and most.\n\n"
    head += "| model, pixels, batch, precision | ms a step | examples/s | share of that rate | peak GB | ms a token, beam 5 |\n"
    lines = []
    for case in ON_GPU if device.type == "cuda" else ON_CPU:
        lines.append(row(*case, device, rate))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    yield Table(head + "|---|--:|--:|--:|--:|--:|\n" + "\n".join(lines) + "\n\n" + same_bits(device) + "\n")
    speeds = SPEEDS if device.type == "cuda" else SPEEDS[:2]
    head = f"### A step at each `cluster.speed` on: {name}\n\n"
    head += (
        f"Texts of different lengths. Medians of {ROUNDS}; in brackets, seconds of compilation before and peak GB.\n\n"
    )
    head += "| model, pixels, batch, precision | " + " | ".join(f"{speed}, ms a step" for speed in speeds)
    lines = [side_by_side(*case, speeds, device) for case in (ON_GPU if device.type == "cuda" else ON_CPU[:1])]
    yield Table(head + " |\n|---" + "|--:" * len(speeds) + "|\n" + "\n".join(lines) + "\n")


def row(model: str, pixels: int, batch: int, precision: str, device: torch.device, rate: float) -> str:
    config = config_of(model, pixels, batch, precision)
    tuned = Tuned(config, OFA(config.model), torch.Generator().manual_seed(1), []).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = stepper(config, tuned, device)
    took = times(step, device)
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else "-"
    middle = statistics.median(took)
    spread = f"{1e3 * middle:.1f} ({1e3 * min(took):.1f} to {1e3 * max(took):.1f})"
    share = work(config, batch, pixels) / middle / rate
    token = statistics.median(times(decoder(tuned, batch, pixels, device), device)) / ANSWER
    case = f"{model}, {pixels}, {batch}, {precision}"
    return f"| {case} | {spread} | {batch / middle:.0f} | {share:.3f} | {peak} | {1e3 * token:.1f} |"


def side_by_side(
    model: str, pixels: int, batch: int, precision: str, speeds: Sequence[SpeedName], device: torch.device
) -> str:
    cells = [f"{model}, {pixels}, {batch}, {precision}"]
    for asked in speeds:
        config = config_of(model, pixels, batch, precision)
        tuned = Tuned(config, OFA(config.model), torch.Generator().manual_seed(1), []).to(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with Speed(asked, device) as speed:
            took = statistics.median(times(stepper(config, tuned, device, speed), device))
        peak = f", {torch.cuda.max_memory_allocated() / 1e9:.1f}" if device.type == "cuda" else ""
        cells.append(f"{1e3 * took:.1f} ({speed.seconds:.0f}{peak})" if not speed.why else speed.why)
    return f"| {' | '.join(cells)} |"


def config_of(model: str, pixels: int, batch: int, precision: str) -> RunConfig:
    sizes = (f"optim.batch_size={batch}", f"optim.micro_batch={batch}", "optim.steps=1000", f"task.image_size={pixels}")
    texts = (f"model={model}", f"prompt.length={P}", f"precision={precision}", "backbone.mode=eval", *sizes)
    return config_as_written(composed(*texts), "none")


def stepper(config: RunConfig, tuned: Tuned, device: torch.device, speed: Speed | None = None) -> Callable[[], object]:
    """An update on features that are given. With a speed, half of the texts are shorter by a token."""
    batch, side = config.optim.batch_size, config.task.image_size // STRIDE
    sample = Sample([BOS, *range(10, 8 + SOURCE), EOS], [BOS], [*range(10, 9 + ANSWER)], "", 1.0)
    features = torch.randn(batch, tuned.backbone.encoder.resnet.channels, side, side, device=device)
    shorter = sample if speed is None else replace(sample, source=sample.source[1:])
    samples = [sample, shorter] * (batch // 2)
    split = Split("train", torch.zeros(batch, 1), [], samples, None, list)  # type: ignore[arg-type]
    loader = Loader(config, split, lambda index: features, device, speed=speed or EAGER)
    optimiser = optimiser_of(tuned, config.optim)
    tuned.train()
    return lambda: update(tuned, optimiser, config, loader, 0)


def decoder(tuned: Tuned, batch: int, pixels: int, device: torch.device) -> Callable[[], object]:
    """A beam search that writes as many tokens as an answer has."""
    tuned.eval()
    side, tokens = pixels // STRIDE, torch.randint(4, 90, (batch, SOURCE), device=device)
    features = torch.randn(batch, tuned.backbone.encoder.resnet.channels, side, side, device=device)
    start = torch.full((batch, 1), BOS, device=device)

    @torch.no_grad()
    def decode() -> Tensor:
        encoder, prefixes = tuned.prefixes(batch)
        encoded = tuned.backbone.encode(tokens, features, None, encoder, padded=False)
        return search(tuned.backbone, encoded, prefixes, start, 5, ANSWER, ANSWER, None, None)[0]

    return decode


def times(call: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of each of some calls, after some that are not measured."""
    taken = []
    for _ in range(WARM_UP + ROUNDS):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        taken.append(time.perf_counter() - began)
    return taken[WARM_UP:]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_rate(device: torch.device) -> float:
    """FLOP/s of a large product in bfloat16."""
    n = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / statistics.median(times(lambda: a @ b, device))


def work(config: RunConfig, batch: int, pixels: int) -> float:
    """FLOP of a step of prompt tuning in both stacks, with the features given."""
    model, patches = config.model, (pixels // STRIDE) ** 2
    d, f, vocabulary, channels = model.dim, model.ffn_dim, model.vocab_size, 16 * model.resnet_width
    u, t = patches + SOURCE, ANSWER + 1
    linear = 2 * batch * u * (4 * d * d + 2 * d * f)
    attention = 4 * batch * u * (P + u) * d
    encoder = model.encoder_layers * (2 * linear + 3 * attention) + 2 * batch * patches * channels * d
    linear = 2 * batch * t * (6 * d * d + 2 * d * f)
    memory = 4 * batch * u * d * d  # keys and values of the encoder's output
    attention = 4 * batch * t * (P + t + u) * d
    decoding = model.decoder_layers * (2 * (linear + memory) + 3 * attention)
    return float(encoder + decoding + 4 * batch * t * vocabulary * d)


def same_bits(device: torch.device) -> str:
    """Whether some updates give the same bits each time."""
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        config = config_of("micro", 96, 16, "float32")
        tuned = Tuned(config, OFA(config.model), torch.Generator().manual_seed(1), []).to(device)
        step = stepper(config, tuned, device)
        for _ in range(6):
            step()
        states.append(torch.cat([weight.flatten() for weight in tuned.tuned_state().values()]))
    difference = float((states[0] - states[1]).abs().max())
    return f"Six updates of the small model, twice: the largest difference of a weight is {difference:.3g}."
