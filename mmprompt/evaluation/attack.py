"""Adversarial attacks on a tuned model: the small change of what it reads that makes its right answer least likely (paper 4.4.3).

B batch, S source tokens, h x w grid of N = h w patches, C feature channels, d width, T decoder tokens.

White box: the gradient goes through all of the tuned model, prompts, adapters and updates included. A change is at most epsilon
in each number (max norm).

    embeddings   the embeddings of the source tokens, <s> and </s> among them, and the patches after `image_proj`, at once
    pixels       the normalised pixels, through the ResNet; the text stays as it is

    fgsm         one step: x + epsilon sign(gradient of the loss), as in the paper (Goodfellow et al. 2015)
    pgd          that step, then smaller ones, each projected back to the ball; kept is the point of highest loss, of each example
                 (Madry et al. 2018, without a random start: no random number is drawn here)

The loss is -log p of the right answer and its </s>, teacher-forced and summed over these tokens. Where the answers are a closed
set, p is shared at each place by the words that the set allows there: this is the probability by which the answer is chosen, and
a word that cannot be written cannot make the model err. There is no label smoothing: with it the loss of an answer surer than
1 - e falls as the answer gets less sure, and its gradient points the wrong way. So all models are attacked with one loss, however
they were trained. It matters: with p over the whole vocabulary the same step did less (docs/results-micro.md).

Not changed: padding (nothing depends on it: its gradient is 0), and what the decoder reads, that is the instruction too where
task.prompt_type is prev_output. Those are the same embeddings, yet no longer an input of the encoder.

The paper says no more than "one gradient step" and "text and image embeddings"; all else here is a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from mmprompt.data.tasks import Batch
from mmprompt.methods.tuned_model import EncodedBatch, Tuned
from mmprompt.models.ofa import PAD, Encoded
from mmprompt.settings.evaluation import Attack

Point = Sequence[Tensor]  # the numbers that are changed, B in each: text B S d and patches B N d, or pixels B 3 16h 16w
LOWEST, HIGHEST = -1.0, 1.0  # pixel
STRIDE = 2.5  # the steps of pgd together, in epsilons (Madry et al. 2018)


@torch.no_grad()
def encode_under_attack(tuned: Tuned, text: Batch, seen: Tensor, attack: Attack) -> EncodedBatch:
    """As `tuned.encode`, but of inputs changed so that the right answers of `text` become unlikely. Changes nothing else.

    seen: image features B C h w; with attack.input=pixels the pixels B 3 16h 16w.
    """
    if tuned.training:
        raise ValueError("the model is in train mode, and only in eval mode can it be attacked")
    pixels = attack.input == "pixels"
    with tuned.autocast():
        # In float32: a bfloat16 is too coarse to be changed by little.
        clean = [seen] if pixels else [tuned.backbone.embed(text.source), tuned.backbone.encoder.patches(seen).float()]
        grid = None if pixels else (seen.shape[2], seen.shape[3])
        return encode(tuned, text, grid, attacked(partial(losses, tuned, text, grid), clean, attack))


def encode(tuned: Tuned, text: Batch, grid: tuple[int, int] | None, point: Point) -> EncodedBatch:
    """With the embeddings and the patches of this grid, or with pixels."""
    if grid is None:
        return tuned.encode(text.source, tuned.backbone.features(*point))
    embedded, patches = point
    encoder, decoder = tuned.prompts(len(embedded))
    encoded: Encoded = tuned.backbone.encoder(embedded, text.source == PAD, patches, grid, None, encoder)
    return EncodedBatch(encoded, decoder)


def losses(tuned: Tuned, text: Batch, grid: tuple[int, int] | None, point: Point) -> Tensor:
    return answer_losses(tuned, text, encode(tuned, text, grid, point))  # B


def answer_losses(tuned: Tuned, text: Batch, asked: EncodedBatch) -> Tensor:
    """-log p of each example's right answer, B."""
    answering = text.target != PAD
    targets = text.target[answering]  # n
    states = tuned.backbone.decode_states(text.decoder, asked.encoded, asked.prefixes, answering)
    logits = tuned.backbone.logits(states).float()  # n V
    if tuned.config.task.answers is not None:
        allowed, _ = tuned.trie.allowed(text.target)
        written = torch.zeros_like(logits, dtype=torch.bool).index_copy(1, tuned.trie.words, allowed[answering])
        logits = logits.masked_fill(
            ~written.scatter(1, targets[:, None], True), float("-inf")
        )  # the right one in any case
    each = F.cross_entropy(logits, targets, reduction="none")
    return each.new_zeros(answering.shape).masked_scatter(answering, each).sum(1)


def attacked(losses: Callable[[Point], Tensor], clean: Point, attack: Attack) -> Point:
    """Where the attack that sets out from `clean` arrives."""
    balls = [ball(x, attack) for x in clean]

    def climb(point: Point, step: float) -> tuple[Tensor, Point]:
        """The losses at a point, and a point uphill of it."""
        with torch.enable_grad():
            point = [x.detach().requires_grad_() for x in point]
            found = losses(point)
            uphill = torch.autograd.grad(found.sum(), point)  # of nothing else: weights get no gradient
        moved = [x.detach() + step * slope.sign() for x, slope in zip(point, uphill, strict=True)]
        return found.detach(), [x.clamp(*bounds) for x, bounds in zip(moved, balls, strict=True)]

    highest, point = climb(clean, attack.epsilon)
    if attack.kind == "fgsm":
        return point
    best = clean
    for _ in range(attack.steps):
        found, further = climb(point, STRIDE * attack.epsilon / attack.steps)
        better = (found > highest).nonzero()[:, 0]
        best = [x.index_copy(0, better, y[better]) for x, y in zip(best, point, strict=True)]
        highest, point = highest.maximum(found), further
    return best


def ball(x: Tensor, attack: Attack) -> tuple[Tensor, Tensor]:
    """The least and the greatest that each number may become. A pixel that resizing put out of range goes no further out."""
    low, high = x - attack.epsilon, x + attack.epsilon
    if attack.input == "pixels":
        low, high = low.maximum(x.clamp(max=LOWEST)), high.minimum(x.clamp(min=HIGHEST))
    return low, high
