"""The training loss: cross entropy with smoothed labels, summed over tokens (facts 3.4).

n tokens, d width, V vocabulary, W words that answers are made of, e the smoothing. The right token y has weight 1 - e, every
other one e' = e / (V - 1):
    loss = (1 - e - e') nll + e' sum over the vocabulary of -log p  =  log sum exp z - (1 - e - e') z_y - e' sum of z

Logits n x V are by far the largest thing in a step. They are made, turned into probabilities and then into the gradient in one
place, and given back before anything flows back: half the time of a chain of operations that each keep a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _LabelSmoothed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
    ) -> Tensor:
        each = smoothing / (len(embedding) - 1)
        right, tokens = 1 - smoothing - each, torch.arange(len(targets), device=targets.device)
        z = (embedding @ states.t()).float()  # V n: this way round the product is faster
        highest = z.amax(0)
        loss = highest - right * z[targets, tokens] - each * z.sum(0)
        total = z.sub_(highest).exp_().sum(0)
        loss += total.log()
        z.div_(total).sub_(each)
        z[targets, tokens] -= right  # the gradient of the logits
        if weights is not None:
            z, loss = z.mul_(weights), loss * weights
        of_states = (embedding.t() @ z).t().to(states.dtype)
        of_embedding = (z @ states).to(embedding.dtype) if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(of_states, of_embedding)
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_embedding = ctx.saved_tensors
        return gradient * of_states, None if of_embedding is None else gradient * of_embedding, None, None, None


def label_smoothed(
    states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """Summed over the tokens, each times its weight. states n d, embedding V d, targets n, weights n; in float32 from the
    logits on."""
    loss: Tensor = _LabelSmoothed.apply(states, embedding, targets, smoothing, weights)
    return loss


def label_smoothed_over(
    allowed: Tensor, words: Tensor, states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    """Of each token, n: probability and smoothing are shared by the words that a closed set of answers allows there alone.

    allowed n W, words W (ids), states n d, targets n. Where m words are allowed, e' = e / (m - 1) (facts 3.4); where one is,
    the loss is 0.
    """
    logits = (states @ embedding[words].t()).float().masked_fill(~allowed, float("-inf"))  # n W
    log_probs = logits.log_softmax(1)
    each = smoothing / (allowed.sum(1) - 1 + 1e-6)  # n
    right = log_probs.gather(1, torch.searchsorted(words, targets)[:, None])[:, 0]
    return -(1 - smoothing - each) * right - each * log_probs.masked_fill(~allowed, 0).sum(1)


@torch.no_grad()
def token_losses(states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """What `label_smoothed` sums, n: for who has to choose among them before anything flows back."""
    logits = (states @ embedding.t()).float()  # n V
    each = smoothing / (len(embedding) - 1)
    right = logits.gather(1, targets[:, None])[:, 0]
    return logits.logsumexp(1) - (1 - smoothing - each) * right - each * logits.sum(1)
