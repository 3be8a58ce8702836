"""Pretraining of the small backbone: OFA's pretraining tasks on the small world, from random weights.

B scenes, Q sequences (several per scene), N patches, d width, C feature channels.

Official OFA has an ImageNet ResNet, days of GPU time and text pretraining. Three auxiliary losses replace them here. They change
only the training loss; the resulting model is plain OFA.
    words     patches under a digit are drawn towards the embeddings of the words for its value, colour and size
    patches   a head, discarded after pretraining, predicts value, colour, size and box from the encoder's output at such a patch
    ordinal   the neighbours of the right location token count as nearly right
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmprompt.data.tasks import Batch, Sample, collate, encode, preprocess
from mmprompt.data.tokenizer import Tokenizer
from mmprompt.families.grounding import hits
from mmprompt.families.short_answers import credits
from mmprompt.models.decoding import search
from mmprompt.models.ofa import OFA, PAD
from mmprompt.models.ofa_checkpoint import official_name
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import provenance
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import ConfigError
from mmprompt.settings.section import Section
from mmprompt.training.optimiser import AdamW
from mmprompt.world import digits, small_world

EVALUATION_BATCH = 100
LONGEST_ANSWER = 16  # tokens

PROMPT_TYPE = {
    "grounding": "none",
    "matching": "prev_output",
    "vqa": "prev_output",
    "caption": "none",
    "region": "none",
}


class Recipe(Section):
    """The settings of pretraining, from conf/pretrain.yaml."""

    seed: int
    threads: int
    steps: int
    scenes: int  # per step
    per_scene: int  # sequences per scene
    image_size: int
    lr: float
    betas: list[float]
    weight_decay: float
    warmup: int  # steps
    flat_until: float  # share of the steps; then linearly down to last_lr
    last_lr: float  # share of lr
    clip_norm: float
    words_weight: float
    patches_weight: float
    helps_until: float  # share of the steps after which the two weights are divided by four
    checkpoint_every: int
    score_every: int
    score_examples: int
    gate: dict[str, float]  # score in percent that each of these tasks must reach
    gate_examples: int


@dataclass(frozen=True)
class PatchLabels:
    """The attributes of the object under each patch's centre. They are meaningless if there is no object."""

    covered: Tensor  # B N bool, whether an object is there
    digit: Tensor  # B N
    colour: Tensor  # B N
    size: Tensor  # B N
    box: Tensor  # B N 4, in [0, 1]


def patch_labels(scenes: digits.Scenes, side: int) -> PatchLabels:
    """The labels of each scene's patches. `side`: number of patches along each side of the image."""
    centre = (np.arange(side) + 0.5) * digits.S / side
    x, y = np.tile(centre, side), np.repeat(centre, side)  # N, row by row
    present = np.arange(digits.K) < scenes.count[:, None]  # B K
    low, high = scenes.box[:, :, None, :2], scenes.box[:, :, None, 2:]  # B K 1 2
    point = np.stack([x, y], -1)  # N 2
    inside = ((point >= low) & (point < high)).all(-1) & present[:, :, None]  # B K N
    which = inside.argmax(1)  # B N
    rows = np.arange(len(which))[:, None]
    arrays = (
        inside.any(1),
        *(a[rows, which] for a in (scenes.digit, scenes.colour, scenes.size)),
        scenes.box[rows, which] / digits.S,
    )
    return PatchLabels(*(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays))


class PatchHead(nn.Module):
    """Predicts a digit's attributes from the encoder's output. It is discarded after pretraining."""

    SPLIT = (len(digits.DIGITS), len(digits.COLOURS), len(digits.SIZES), 4)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, sum(self.SPLIT))

    def forward(self, states: Tensor, labels: PatchLabels) -> Tensor:  # B N d
        """The loss of its predictions, averaged over the patches that an object covers."""
        digit, colour, size, box = self.out(states[labels.covered]).split(self.SPLIT, -1)
        on = labels.covered
        losses = [F.cross_entropy(digit, labels.digit[on]), F.cross_entropy(colour, labels.colour[on])]
        return sum(losses, F.cross_entropy(size, labels.size[on])) + 4 * F.l1_loss(box, labels.box[on])


class Pretraining:
    """The mixture of pretraining tasks: its batches, losses and scores."""

    def __init__(self, recipe: Recipe, model: Model) -> None:
        self.recipe = recipe
        self.tokenizer = Tokenizer(model.vocab_size, model.num_bins)
        self.first_bin = model.vocab_size - model.num_bins
        self.side = recipe.image_size // 16
        location = torch.arange(model.num_bins)
        # bins x bins: the target distribution for each right location token, whose neighbours are nearly right
        self.soft = torch.softmax(-((location[:, None] - location) ** 2) / 2, -1)
        words = [[self.tokenizer.ids[w] for w in group] for group in (digits.DIGITS, digits.COLOURS, digits.SIZES)]
        self.words = [torch.tensor(group) for group in words]

    def sequences(self, rng: np.random.Generator, scenes: digits.Scenes) -> Iterator[tuple[int, Sample]]:
        """Yields `per_scene` samples of each scene, of tasks drawn by their share, with the scene's index."""
        names = list(small_world.PRETRAINING)
        share = np.array([weight for _, weight, _ in small_world.PRETRAINING.values()])
        for scene in range(len(scenes.count)):
            made = 0
            while made < self.recipe.per_scene:
                name = names[rng.choice(len(names), p=share / share.sum())]
                template, _, maker = small_world.PRETRAINING[name]
                item = small_world.make_item(rng, scenes, scene, maker)
                if item is not None:
                    made += 1
                    yield scene, encode(item, template, PROMPT_TYPE[name], self.tokenizer)

    def batch(self, seed: int, step: int) -> tuple[Tensor, PatchLabels, Tensor, Batch]:
        """The batch of a step, which depends on seed and step only: images of B scenes, their labels, the scene of each sequence
        (Q), and the sequences."""
        rng = np.random.default_rng((seed, step))
        scenes = digits.sample_scenes(rng, self.recipe.scenes, "pretrain", "plain")
        index, samples = zip(*self.sequences(rng, scenes), strict=True)
        images = preprocess(torch.from_numpy(scenes.images), self.recipe.image_size)
        return images, patch_labels(scenes, self.side), torch.tensor(index), collate(samples)

    def loss(self, model: OFA, head: PatchHead, batch: tuple[Tensor, PatchLabels, Tensor, Batch]) -> dict[str, Tensor]:
        """The losses of a batch: `text`, of the answers, and the auxiliary losses `words` and `patches`."""
        images, labels, index, text = batch
        features = model.features(images)  # B C h w
        patches = model.encoder.embed_image(model.encoder.patches(features))  # B N d
        encoded = model.encode(text.source, features[index], None, None)
        states = model.decode_states(text.decoder, encoded, None)
        on = text.target != PAD
        target, logits = text.target[on], model.logits(states[on])
        log_probs = logits.log_softmax(-1)
        nll = -log_probs.gather(1, target[:, None])[:, 0]
        bins = target >= self.first_bin
        soft = self.soft[target[bins] - self.first_bin]
        ordinal = -(soft * log_probs[bins][:, self.first_bin :]).sum(-1)
        # One sequence of each scene is enough for the loss of its patches.
        first = torch.arange(0, len(index), self.recipe.per_scene)
        number = patches.shape[1]
        return {
            "text": torch.cat([nll[~bins], ordinal]).mean(),
            "words": self.words_loss(model, patches, labels),
            "patches": head(encoded.states[first, :number], labels),
        }

    def words_loss(self, model: OFA, patches: Tensor, labels: PatchLabels) -> Tensor:
        """The loss of classifying the patches (B N d) by their similarity to the embeddings of words."""
        on = labels.covered
        truth = (labels.digit[on], labels.colour[on], labels.size[on])
        losses = [
            F.cross_entropy(patches[on] @ model.embed.weight[ids].T, right)
            for ids, right in zip(self.words, truth, strict=True)
        ]
        return losses[0] + losses[1] + losses[2]

    @torch.no_grad()
    def score(self, model: OFA, split: str, examples: int) -> dict[str, float]:
        """The percentage of right answers at each task on the handwriting of a split, with greedy decoding (grounding: an IoU of at
        least 0.5 is right)."""
        model.eval()
        scores = {}
        for name, (template, _, maker) in small_world.PRETRAINING.items():
            scenes, items = small_world.sample_items(np.random.default_rng(1), examples, split, maker, "plain")
            samples = [encode(item, template, PROMPT_TYPE[name], self.tokenizer) for item in items]
            token_ids: list[list[int]] = []
            for first in range(0, examples, EVALUATION_BATCH):
                part = slice(first, first + EVALUATION_BATCH)
                text = collate(samples[part])
                features = model.features(preprocess(torch.from_numpy(scenes.images[part]), self.recipe.image_size))
                encoded = model.encode(text.source, features, None, None)
                token_ids += search(model, encoded, None, text.start, 1, 1, LONGEST_ANSWER, None, None)[0].tolist()
            if name == "grounding":
                boxes = [self.tokenizer.coordinates(ids, digits.S) for ids in token_ids]
                right = hits(boxes, [item.box for item in items if item.box is not None])
            else:
                right = credits([self.tokenizer.decode(ids) for ids in token_ids], [item.right for item in items])
            scores[name] = float(np.mean(right))
        model.train()
        return scores


def learning_rate(recipe: Recipe, step: int) -> float:
    """The learning rate at a step: linear warm-up, then constant, then linear decay."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    remaining = (recipe.steps - step) / (recipe.steps * (1 - recipe.flat_until))
    return recipe.lr * max(recipe.last_lr, min(1.0, remaining))


def make_backbone(recipe: Recipe, config: Model, folder: Path, watch: Callable[[int, str], None]) -> str:
    """Pretrains a backbone, from the folder's checkpoint if there is one, and installs it if its scores pass the gate.

    Returns a sentence that says whether it was installed, with the scores. `watch` is called after each step with the number of
    steps and a text. Raises ConfigError if the checkpoint was made by another recipe.
    """
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    work = Pretraining(recipe, config)
    model = OFA(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = PatchHead(config.dim)
    train(recipe, work, model, head, folder, watch)
    state = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(state)  # so that exactly the weights that are written are scored
    scores = work.score(model, "test", recipe.gate_examples)
    text = ", ".join(f"{name} {score:.1f}" for name, score in scores.items())
    below = {name: wanted for name, wanted in recipe.gate.items() if scores[name] < wanted}
    if below:
        return f"not installed, below the gate {below}: {text} (n = {recipe.gate_examples}, unseen handwriting)"
    file = ROOT / "mmprompt" / "backbones" / f"{config.name}.safetensors"
    install(file, state, recipe, scores)
    return f"installed {file}: {text} (n = {recipe.gate_examples}, unseen handwriting)"


def install(file: Path, state: dict[str, Tensor], recipe: Recipe, scores: dict[str, float]) -> None:
    """Writes the backbone to a file with official names, like any other backbone. The metadata say how it was made."""
    tensors = {
        official_name(name): t.contiguous() for name, t in state.items() if not name.endswith("num_batches_tracked")
    }
    content = hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors)))
    metadata = {
        "recipe": recipe.model_dump_json(),
        "seed": str(recipe.seed),
        "commit": provenance()["commit"] or "unknown",
        "metrics": json.dumps(scores),
        "sha256": content.hexdigest(),  # of the tensors' bytes in the order of their names
    }
    save_file(tensors, file.with_suffix(".new"), metadata)
    file.with_suffix(".new").chmod(0o644)
    os.replace(file.with_suffix(".new"), file)


def train(
    recipe: Recipe, work: Pretraining, model: OFA, head: PatchHead, folder: Path, watch: Callable[[int, str], None]
) -> None:
    """Trains model and head to the recipe's last step, and saves checkpoints and scores in the folder."""
    parameters = [*model.parameters(), *head.parameters()]
    betas = (recipe.betas[0], recipe.betas[1])
    optimiser = AdamW(parameters, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, first, scores = folder / "checkpoint.pt", 0, ""
    parts: dict[str, Any] = {"model": model, "head": head, "optimiser": optimiser}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["recipe"] != recipe.model_dump_json():
            raise ConfigError(f"{checkpoint} was made by another recipe; remove it, or give another folder=...")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["step"]
    for step in range(first, recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        losses = work.loss(model, head, work.batch(recipe.seed, step))
        share = 1.0 if step < recipe.helps_until * recipe.steps else 0.25
        help_loss = recipe.words_weight * losses["words"] + recipe.patches_weight * losses["patches"]
        optimiser.zero_grad()
        (losses["text"] + share * help_loss).backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimiser.step()
        done = step + 1
        if done % recipe.score_every == 0:
            by_task = work.score(model, "val", recipe.score_examples)
            scores = ", ".join(f"{name} {score:.0f}" for name, score in by_task.items())
            with open(folder / "scores.jsonl", "a") as file:
                file.write(json.dumps({"step": done, "loss": losses["text"].item()} | by_task) + "\n")
        if done % recipe.checkpoint_every == 0 or done == recipe.steps:
            torch.save(
                {name: part.state_dict() for name, part in parts.items()}
                | {"step": done, "recipe": recipe.model_dump_json()},
                checkpoint.with_suffix(".new"),
            )
            os.replace(checkpoint.with_suffix(".new"), checkpoint)
        watch(done, f"loss {losses['text'].item():.2f} {scores}")
