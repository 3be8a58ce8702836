"""Adversarial attacks on a tuned model: small changes of its input that make the right answer least likely (paper 4.4.3).

B batch, S source tokens, h x w grid of N = h w patches, C feature channels, d width, T decoder tokens, V vocabulary.

The attacks are white-box: the gradient goes through the whole tuned model, including prompts, adapters and low-rank updates. Each
number of the input changes by at most epsilon (max norm).

    embeddings   the embeddings of the source tokens, <s> and </s> among them, and the patches after `image_proj`, together
    pixels       the normalised pixels, through the ResNet; the text stays as it is

    fgsm         one step: x + epsilon sign(gradient of the loss), as in the paper (Goodfellow et al. 2015)
    pgd          that step, then smaller ones, each projected back to the ball of radius epsilon; the result is, for each example,
                 the point of highest loss (Madry et al. 2018, without a random start: no random number is drawn here)

The loss is -log p of the right answer and its </s>, teacher-forced and summed over these tokens. Where the answers are a closed
set, p at each position is normalised over the words that the set allows there: this is the probability by which the answer is
chosen, and a word that cannot be generated cannot make the model err. There is no label smoothing: with smoothing e the loss of
an answer whose probability is above 1 - e falls as the probability falls, so its gradient points the wrong way. All models are
therefore attacked with one loss, however they were trained. It matters: with p over the whole vocabulary the same step had less
effect (docs/results-micro.md).

Not changed are padding (nothing depends on it: its gradient is 0) and the decoder's input, which contains the instruction where
task.prompt_type is prev_output. Those are the same embeddings, but there they are not an input of the encoder.

The paper says only "one gradient step" and "text and image embeddings"; everything else here is our choice.
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

Point = Sequence[Tensor]  # the input that is changed: embeddings B S d and patches B N d, or pixels B 3 16h 16w
LOWEST, HIGHEST = -1.0, 1.0  # values of a normalised pixel
STRIDE = 2.5  # the total length of pgd's steps, in epsilons (Madry et al. 2018)


@torch.no_grad()
def encode_under_attack(tuned: Tuned, text: Batch, image: Tensor, attack: Attack) -> EncodedBatch:
    """Like `tuned.encode`, but with an input that the attack has changed to make the right answers of `text` unlikely.

    The model itself is not changed. image: features B C h w; with attack.input=pixels the pixels B 3 16h 16w. Raises ValueError
    if the model is in train mode.
    """
    if tuned.training:
        raise ValueError("the model is in train mode, and only in eval mode can it be attacked")
    pixels = attack.input == "pixels"
    # In float32, because bfloat16 is too coarse for small changes.
    clean = [image] if pixels else [tuned.backbone.embed(text.source), tuned.backbone.encoder.patches(image).float()]
    grid = None if pixels else (image.shape[2], image.shape[3])
    return encode(tuned, text, grid, attacked(partial(losses, tuned, text, grid), clean, attack))


def encode(tuned: Tuned, text: Batch, grid: tuple[int, int] | None, point: Point) -> EncodedBatch:
    """Encodes a batch whose input is this point: embeddings and patches of this grid, or pixels if `grid` is None."""
    if grid is None:
        return tuned.encode(text, tuned.backbone.features(*point))
    embedded, patches = point
    padding = text.source == PAD if text.padded else None
    encoder, decoder = tuned.prefixes(len(embedded))
    encoded: Encoded = tuned.backbone.encoder(embedded, padding, patches, grid, None, encoder)
    return EncodedBatch(encoded, decoder)


def losses(tuned: Tuned, text: Batch, grid: tuple[int, int] | None, point: Point) -> Tensor:
    """The loss of each example, B, with this point as its input."""
    return answer_losses(tuned, text, encode(tuned, text, grid, point))  # B


def answer_losses(tuned: Tuned, text: Batch, questions: EncodedBatch) -> Tensor:
    """-log p of each example's right answer, B."""
    targets = text.answers.of_rows(text.target)  # n tokens of answers
    states = tuned.backbone.decode_states(text.decoder, questions.encoded, questions.prefixes, text.answers)
    logits = tuned.backbone.logits(states)  # n V
    if tuned.config.task.answers is not None:
        allowed = tuned.trie.allowed(text.target).flatten(0, 1).index_select(0, text.answers.places)
        possible = torch.zeros_like(logits, dtype=torch.bool).index_copy(1, tuned.trie.words, allowed)
        possible = possible.scatter(1, targets[:, None], True)  # the right word in any case
        logits = logits.masked_fill(~possible, float("-inf"))
    token_losses = F.cross_entropy(logits, targets, reduction="none")
    of_places = token_losses.new_zeros(text.target.numel()).index_copy(0, text.answers.places, token_losses)
    return of_places.view(text.target.shape).sum(1)


def attacked(losses: Callable[[Point], Tensor], clean: Point, attack: Attack) -> Point:
    """The point that the attack reaches from the unchanged input, `clean`."""
    balls = [ball(x, attack) for x in clean]

    def climb(point: Point, step: float) -> tuple[Tensor, Point]:
        """Returns the losses at a point, and the point that one step along the gradient's sign leads to, within the balls."""
        with torch.enable_grad():
            point = [x.detach().requires_grad_() for x in point]
            losses_here = losses(point)
            gradient = torch.autograd.grad(losses_here.sum(), point)  # of the point only: weights get no gradient
        moved = [x.detach() + step * slope.sign() for x, slope in zip(point, gradient, strict=True)]
        return losses_here.detach(), [x.clamp(*bounds) for x, bounds in zip(moved, balls, strict=True)]

    highest, point = climb(clean, attack.epsilon)
    if attack.kind == "fgsm":
        return point
    best = clean
    for _ in range(attack.steps):
        losses_here, next_point = climb(point, STRIDE * attack.epsilon / attack.steps)
        better = (losses_here > highest).nonzero()[:, 0]
        best = [x.index_copy(0, better, y[better]) for x, y in zip(best, point, strict=True)]
        highest, point = highest.maximum(losses_here), next_point
    return best


def ball(x: Tensor, attack: Attack) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value that each number may get. A pixel that resizing put out of range moves no further out."""
    low, high = x - attack.epsilon, x + attack.epsilon
    if attack.input == "pixels":
        low, high = low.maximum(x.clamp(max=LOWEST)), high.minimum(x.clamp(min=HIGHEST))
    return low, high
