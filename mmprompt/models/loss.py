"""The training loss: cross entropy with smoothed labels, summed over tokens (facts 3.4).

n tokens, d width, V vocabulary, W words that occur in the closed set of answers, e the smoothing. The right token y has weight
1 - e, every other one e' = e / (V - 1):
    loss = (1 - e - e') nll + e' sum over the vocabulary of -log p  =  log sum exp z - (1 - e - e') z_y - e' sum of z

The logits, n x V, are by far the largest tensor of a step. One autograd function computes them, turns them in place into
probabilities and then into their gradient, and frees them in the forward pass. This takes half the time of a chain of operations
that each keep a copy.
States and embedding are float32 in every precision: logits rounded to bfloat16 would lie .125 apart from 16 on.
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
        share = smoothing / (len(embedding) - 1)  # e'
        right, tokens = 1 - smoothing - share, torch.arange(len(targets), device=targets.device)
        z = embedding @ states.t()  # V n: the product is faster in this orientation
        highest = z.amax(0)
        loss = highest - right * z[targets, tokens] - share * z.sum(0)
        total = z.sub_(highest).exp_().sum(0)
        loss += total.log()
        z.div_(total).sub_(share)
        z[targets, tokens] -= right  # z is now the gradient of the logits
        if weights is not None:
            z, loss = z.mul_(weights), loss * weights
        states_gradient = (embedding.t() @ z).t()
        embedding_gradient = z @ states if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(states_gradient, embedding_gradient)
        return loss.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states_gradient, embedding_gradient = ctx.saved_tensors
        embedding_gradient = None if embedding_gradient is None else gradient * embedding_gradient
        return gradient * states_gradient, embedding_gradient, None, None, None


def label_smoothed(
    states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None = None
) -> Tensor:
    """The label-smoothed loss, summed over the tokens, each times its weight.

    states n d, embedding V d, targets n, weights n.
    """
    loss: Tensor = _LabelSmoothed.apply(states, embedding, targets, smoothing, weights)
    return loss


def label_smoothed_over(
    allowed: Tensor, words: Tensor, states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float
) -> Tensor:
    """The label-smoothed loss of each token, n, with probability and smoothing distributed over only those words that a closed
    set of answers allows there.

    allowed n W, words W (ids), states n d, targets n. Where m words are allowed, e' = e / (m - 1) (facts 3.4); where only one is
    allowed, the loss is 0.
    """
    logits = (states @ embedding[words].t()).masked_fill(~allowed, float("-inf"))  # n W
    log_probs = logits.log_softmax(1)
    share = smoothing / (allowed.sum(1) - 1 + 1e-6)  # n, e'
    right = log_probs.gather(1, torch.searchsorted(words, targets)[:, None])[:, 0]
    return -(1 - smoothing - share) * right - share * log_probs.masked_fill(~allowed, 0).sum(1)


@torch.no_grad()
def token_losses(states: Tensor, embedding: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """The label-smoothed loss of each token, n, without a gradient: for choosing the tokens that `label_smoothed` then sums."""
    logits = states @ embedding.t()  # n V
    share = smoothing / (len(embedding) - 1)  # e'
    right = logits.gather(1, targets[:, None])[:, 0]
    return logits.logsumexp(1) - (1 - smoothing - share) * right - share * logits.sum(1)
