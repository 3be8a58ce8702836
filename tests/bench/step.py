"""A training step: the published computation against ours, with what is frozen computed anew and computed once.

The published step is written out below from the published math, on the same weights: the image stem in each step, position
biases made anew for each example, scores kept whole between product and softmax, logits at every position. It leaves out the
dropout of the published training, which costs time and would change nothing else.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Section, Timing, interleaved, timed
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from mini import official
from tiny import data_of, settings

from mmprompt.data.splits import Split
from mmprompt.data.tasks import Batch, preprocess
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import Tuned, View
from mmprompt.models.attention import Attention, KeyValue
from mmprompt.models.layers import DecoderLayer, EncoderLayer
from mmprompt.models.loss import label_smoothed
from mmprompt.models.ofa import IMAGE, OFA, PAD, TEXT
from mmprompt.models.positions import image_buckets, token_buckets
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.settings.prompt import Prompt
from mmprompt.training.feature_cache import Cache
from mmprompt.training.frozen_features import FrozenFeatures
from mmprompt.training.loader import Loader
from mmprompt.training.update import update

CPU, B, TARGET, SMOOTHING = torch.device("cpu"), 2, 16, 0.1
TEMPLATE = "' find the thing : the thing : the thing : the thing : the'"  # <s>, 14 words, </s>

# ----------------------------------------------------------------------------------------------------- as it is published


def attention(module: Attention, x: Tensor, memory: Tensor, bias: Tensor, prefix: KeyValue | None) -> Tensor:
    """bias B H T U."""
    query = module.split(module.query(x)) * module.scale
    key, value = module.split(module.key(memory)), module.split(module.value(memory))
    if prefix is not None:
        key, value = torch.cat([prefix[0], key], dim=2), torch.cat([prefix[1], value], dim=2)
    scores = query @ key.transpose(2, 3)  # B H T P+U
    scores[..., -bias.shape[3] :] += bias
    heads = F.softmax(scores, dim=-1, dtype=torch.float32) @ value * module.head_scale[:, None, None]
    out: Tensor = module.out(heads.transpose(1, 2).flatten(2))
    return out


def encoder_layer(layer: EncoderLayer, x: Tensor, bias: Tensor, prefix: KeyValue | None) -> Tensor:
    y = layer.self_norm(x)
    x = x + layer.self_out_norm(attention(layer.self_attention, y, y, bias, prefix))
    return x + layer.ffn(layer.ffn_norm(x))


def decoder_layer(
    layer: DecoderLayer, x: Tensor, bias: Tensor, prefix: KeyValue | None, memory: Tensor, memory_bias: Tensor
) -> Tensor:
    y = layer.self_norm(x)
    x = x + layer.self_out_norm(attention(layer.self_attention, y, y, bias, prefix))
    x = x + layer.cross_out_norm(attention(layer.cross_attention, layer.cross_norm(x), memory, memory_bias, None))
    return x + layer.ffn(layer.ffn_norm(x))


def absolute(module: nn.Module, queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Of each example: B H T U, from positions B T d and B U d."""
    query, key = (
        linear(x).unflatten(2, (heads, -1)).transpose(1, 2)
        for linear, x in ((module.query, queries), (module.key, keys))
    )
    scaled: Tensor = query * module.scale @ key.transpose(2, 3)
    return scaled


def relative(table: nn.Embedding, buckets: Tensor) -> Tensor:
    """buckets B T T."""
    return table(buckets).permute(0, 3, 1, 2)  # B H T T


def published_loss(tuned: Tuned, images: Tensor, text: Batch) -> Tensor:
    ofa, (encoder_prompt, decoder_prompt) = tuned.backbone, tuned.prompts(B)
    encoder, decoder, heads = ofa.encoder, ofa.decoder, ofa.encoder.position_bias.heads
    features = ofa.features(images)
    h, w = features.shape[2:]
    patches, source, target = h * w, text.source.shape[1], text.decoder.shape[1]
    look = encoder.image_norm(encoder.image_proj(features.flatten(2).transpose(1, 2)) + encoder.types.weight[IMAGE])
    x = torch.cat([look, encoder.token_norm(ofa.embed(text.source) + encoder.types.weight[TEXT])], dim=1)
    positions = encoder.positions((h, w), source).expand(B, -1, -1)
    shared = absolute(encoder.position_bias, positions, positions, heads)
    pairs = image_buckets(h, w, encoder.image_positions.side, CPU).expand(B, -1, -1)
    spans = token_buckets(source, encoder.token_biases[0].buckets, CPU).expand(B, -1, -1)
    for i, layer in enumerate(encoder.layers):
        bias = shared.clone()
        bias[:, :, :patches, :patches] += relative(encoder.image_biases[i].table, pairs)
        bias[:, :, patches:, patches:] += relative(encoder.token_biases[i].table, spans)
        x = encoder_layer(layer, x, bias, None if encoder_prompt is None else encoder_prompt[i])
    memory = encoder.norm(x)
    x, own = decoder.token_norm(ofa.embed(text.decoder)), decoder.token_positions(target).expand(B, -1, -1)
    future = torch.full((target, target), float("-inf")).triu(1)
    shared, memory_bias = (
        absolute(decoder.self_bias, own, own, heads),
        absolute(decoder.cross_bias, own, positions, heads),
    )
    spans = token_buckets(target, decoder.token_biases[0].buckets, CPU).expand(B, -1, -1)
    for i, layer in enumerate(decoder.layers):
        bias = shared + relative(decoder.token_biases[i].table, spans) + future
        x = decoder_layer(layer, x, bias, None if decoder_prompt is None else decoder_prompt[i], memory, memory_bias)
    log_probs = ofa.logits(decoder.norm(x)).log_softmax(-1)  # B T V
    each = SMOOTHING / (log_probs.shape[-1] - 1)
    right, real = log_probs.gather(2, text.target[..., None])[..., 0], text.target != PAD
    losses = -(1 - SMOOTHING - each) * right - each * log_probs.sum(2)
    return losses[real].sum()


# --------------------------------------------------------------------------------------------------------------- settings


def tuned_with(config: RunConfig, backbone: OFA, **prompt: object) -> Tuned:
    assert config.prompt is not None
    changed = Prompt.model_validate(config.prompt.model_dump() | prompt)
    return Tuned(config.model_copy(update={"prompt": changed}), backbone, torch.Generator().manual_seed(1), []).train()


def frozen(config: RunConfig, backbone: OFA, split: Split, folder: Path | None) -> FrozenFeatures:
    known = config.model_dump_json(include={"training_version", "threads", "precision", "model", "backbone", "task"})
    seen = FrozenFeatures(backbone, known, split, None if folder is None else Cache(folder, 20))
    seen.fill(seen.output_rows)
    return seen


def stepper(tuned: Tuned, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(tuned.prompts.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(tuned.prompts.parameters(), 1.0)
        optimiser.step()

    return step


class Official:
    """ofa_tiny on images of 384 pixels, with random weights; the data are those of the small world."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        over = (
            "model=ofa_tiny",
            "backbone.mode=eval",
            "task.image_size=384",
            f"task.template={TEMPLATE}",
            "prompt.length=64",
        )
        self.config, _ = settings(
            *over, "task.data.train=8", f"paths.backbone={ROOT}/mmprompt/backbones/micro.safetensors"
        )
        backbone = OFA(official("tiny")).eval().requires_grad_(False)
        published = backbone.state_dict()
        self.backbone = OFA(official("tiny")).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.backbone.load_state_dict(published)
        self.tuned = tuned_with(self.config, self.backbone)
        self.published = tuned_with(self.config, backbone)
        self.decoder_only = tuned_with(self.config, self.backbone, depth="decoder")
        of = self.config, self.backbone, data_of(self.config).split("train")
        self.anew, self.kept = frozen(*of, None), frozen(*of, folder)
        self.index = np.array([5, 2])
        answers = torch.randint(4, self.config.model.vocab_size, (B, TARGET))
        self.text = Batch(self.kept.source[self.index], answers[:, :1], answers, answers.roll(-1, 1), None)
        assert self.config.optim.label_smoothing == SMOOTHING
        assert self.text.source.shape == (B, 16) and (self.text.source != PAD).all()

    @property
    def images(self) -> Tensor:
        return preprocess(self.anew.examples.images[torch.from_numpy(self.index)], 384)

    def published_loss(self) -> Tensor:
        return published_loss(self.published, self.images.contiguous(), self.text)

    def loss(self, tuned: Tuned, view: View, forget: bool = False) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            if forget:
                self.backbone.encoder.remembered.results.clear()
            return tuned.loss(self.text, view(self.index), self.config.optim, 0.0)

        return loss

    def steps(self) -> dict[str, Callable[[], None]]:
        ours, decoder = self.tuned, self.decoder_only
        assert torch.allclose(self.published_loss(), self.loss(ours, self.kept.features)(), rtol=1e-4)
        return {
            "as published": stepper(self.published, self.published_loss),
            "ours, nothing kept": stepper(ours, self.loss(ours, self.anew.features, forget=True)),
            "image features kept": stepper(ours, self.loss(ours, self.kept.features, forget=True)),
            "and position biases: the default": stepper(ours, self.loss(ours, self.kept.features)),
            "decoder-only prompts, nothing kept": stepper(decoder, self.loss(decoder, self.anew.outputs, forget=True)),
            "decoder-only, features and biases kept": stepper(decoder, self.loss(decoder, self.kept.features)),
            "decoder-only, encoder outputs kept: the default": stepper(decoder, self.loss(decoder, self.kept.outputs)),
        }

    def parts(self) -> dict[str, list[Timing]]:
        """One step of the default, taken apart."""
        names = ["whole step", "read the features", "encoder", "decoder and loss", "backward", "clip and optimiser"]
        rows: dict[str, list[Timing]] = {name: [] for name in names}
        ours, optimiser = self.tuned, torch.optim.AdamW(self.tuned.prompts.parameters(), lr=1e-4)
        made: dict[str, Any] = {}

        def encode() -> None:
            encoder, _ = ours.prompts(B)
            made["encoded"] = ours.backbone.encode(self.text.source, made["features"], None, encoder)

        def decode() -> None:
            asked, answers = ours.encode(self.text, made["encoded"]), self.text.answers
            states = ours.backbone.decode_states(self.text.decoder, asked.encoded, asked.prefixes, answers)
            target = answers.of_rows(self.text.target)
            made["loss"] = label_smoothed(states, ours.backbone.embed.weight, target, SMOOTHING)

        def look() -> None:
            made["features"] = self.kept.features(self.index)

        def finish() -> None:
            nn.utils.clip_grad_norm_(ours.prompts.parameters(), 1.0)
            optimiser.step()

        for turn in range(6):
            optimiser.zero_grad()
            parts = [timed(part) for part in (look, encode, decode, lambda: made["loss"].backward(), finish)]
            whole = Timing(sum(part.wall for part in parts), sum(part.cpu for part in parts))
            for name, timing in zip(names, [whole, *parts], strict=True):
                rows[name] += [timing] if turn else []
        return rows


def micro(folder: Path) -> dict[str, Callable[[], None]]:
    """Ten updates each of the small model, through the training loop's own function."""
    over = (
        "task=micro_entailment",
        "prompt.length=64",
        "optim.batch_size=32",
        "optim.micro_batch=32",
        "task.data.train=320",
    )
    config, deployment = settings(*over, "optim.steps=1000")
    backbone, split = backbone_of(config, ROOT / deployment.paths.backbone), data_of(config).split("train")
    anew, kept = frozen(config, backbone, split, None), frozen(config, backbone, split, folder)

    def updates(tuned: Tuned, view: View) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(tuned.prompts.parameters(), lr=1e-4)
        loader = Loader(config, split, view, torch.device("cpu"))
        return lambda: [update(tuned, optimiser, config, loader, step) for step in range(10)] and None

    both, decoder = tuned_with(config, backbone), tuned_with(config, backbone, depth="decoder")
    return {
        "nothing kept": updates(both, anew.features),
        "features kept: the default": updates(both, kept.features),
        "decoder-only prompts, nothing kept": updates(decoder, anew.outputs),
        "decoder-only, encoder outputs kept: the default": updates(decoder, kept.outputs),
    }


def sections() -> Iterator[Section]:
    torch.set_num_threads(1)
    size = "384 pixels (576 patches), 16 source and 16 target tokens, vocabulary 59,457"
    with tempfile.TemporaryDirectory() as folder:
        tiny = Official(Path(folder))
        rows: Mapping[str, list[Timing]] = interleaved(tiny.steps(), 5)
        yield Section("Training step, ofa_tiny", f"{size}, B = 2, P = 64 + 64, 1 thread", rows)
        setting = "the same; the rows below the first are its parts"
        yield Section("Where the default's step goes, ofa_tiny", setting, tiny.parts(), parts=True)
        ways = {
            "features of an image computed": lambda: tiny.anew.features(tiny.index),
            "read (2.36 MB, in the page cache)": lambda: tiny.kept.features(tiny.index),
        }
        yield Section(
            "What is kept, ofa_tiny", "384 pixels, two images at a time, 1 thread", interleaved(ways, 5), 2, "image"
        )
        rows = interleaved(micro(Path(folder)), 5)
        yield Section("Training step, micro", "task=micro_entailment, B = 32, P = 64 + 64, 1 thread", rows, 10, "step")
