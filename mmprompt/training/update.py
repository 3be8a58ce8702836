"""One update: the learning rate, the gradient of a batch, and what is done about a number that is not finite (facts 3.2, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmprompt.methods.tuned_model import Tuned, tokens_in_loss
from mmprompt.runs.config import RunConfig
from mmprompt.settings.optim import Optim
from mmprompt.training.loader import Loader, MicroBatch
from mmprompt.training.optimiser import AdamW

ODD_KERNEL = (
    "with the usual kernel of attention a number was not finite; with another kernel all are, and the step was made with that one. "
    "The kernel is at fault, not the run"
)


class TrainingError(RuntimeError):
    """Training cannot continue. The message says at which step and why."""


def optimiser_of(tuned: Tuned, optim: Optim) -> AdamW:
    return AdamW(
        tuned.trained.values(),
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )


def learning_rate(optim: Optim, update: int) -> float:
    """The learning rate of an update, counted from 1: linear warm-up, then polynomial decay to 0."""
    warmup = int(optim.steps * optim.warmup_ratio)
    if update <= warmup:
        return optim.lr * update / warmup
    return optim.lr * (1 - (update - warmup - 1) / (optim.steps - warmup)) ** optim.decay_power


def update(tuned: Tuned, optimiser: torch.optim.Optimizer, config: RunConfig, loader: Loader, step: int) -> float:
    """Makes one optimiser update over `batch_size` examples. Returns the mean loss per token.

    A step with a number that is not finite is computed again with another kernel of attention before the run counts as diverged.
    Raises TrainingError if the loss or the gradient is not finite, AnswerError if a right answer is not in the closed set over
    which labels are smoothed.
    """
    optim, parts = config.optim, loader(step)
    for part in parts:
        tuned.check_answers(part.samples, optim)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(optim, step + 1)
    loader.ranks.draw(config.seed, step)
    drawn = random_state(loader.device)
    with loader.ranks.running_statistics(tuned, optim.parts):
        total, norm = gradient_at_speed(tuned, loader, parts, step)
        if not (np.isfinite(total) and np.isfinite(norm)):
            with another_attention(), same_statistics(tuned):
                restore_random_state(drawn, loader.device)
                total, norm = gradient(tuned, loader, parts, step)
            if np.isfinite(total) and np.isfinite(norm):
                print(f"step {step + 1} of {optim.steps}: {ODD_KERNEL}", flush=True)
    if not np.isfinite(total):
        raise TrainingError(
            f"the loss is {total} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g}, "
            f"learning rate {learning_rate(optim, step + 1):.3g}); a smaller optim.lr is the usual cure"
        )
    if not np.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g})")
    optimiser.step()
    return total


def gradient_at_speed(tuned: Tuned, loader: Loader, parts: Sequence[MicroBatch], step: int) -> tuple[float, float]:
    """As `gradient`, with the layers executed at the loader's speed. If they cannot be compiled, eager from now on."""
    speed, drawn = loader.speed, random_state(loader.device)
    if not speed.is_compiled:
        return gradient(tuned, loader, parts, step)
    buffers = [(buffer, buffer.clone()) for buffer in tuned.buffers() if tuned.live]
    try:
        with speed.layers_of(tuned):
            return gradient(tuned, loader, parts, step)
    except RuntimeError as error:
        if not speed.is_to_blame(error):
            raise
        words = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
        speed.give_up(f"at step {step + 1} compilation failed with {type(error).__name__}: {words}")
    for buffer, before in buffers:  # statistics of BatchNorms
        buffer.copy_(before)
    restore_random_state(drawn, loader.device)
    return gradient(tuned, loader, loader.read_again(step), step)


def gradient(tuned: Tuned, loader: Loader, parts: Sequence[MicroBatch], step: int) -> tuple[float, float]:
    """Computes and clips the gradient of an update: of these micro-batches, and of those that other processes have.

    Returns the mean loss per token, and the gradient's norm before it was clipped. Only at the end, where both are read, the CPU
    waits for a GPU.
    """
    optim, losses = tuned.config.optim, []
    dropped = optim.drop_worst if step >= optim.drop_worst_after else 0.0
    tokens = sum(tokens_in_loss(part.text.answer_tokens, dropped) for part in parts)
    for parameter in tuned.trained.values():
        parameter.grad = None
    for text, inputs in loader.on_device(parts):
        loader.speed.begins(tuned.trained.values())
        loss = tuned.loss(text, inputs, optim, dropped)
        (loss / tokens).backward()
        losses.append(loss.detach())
    every, tokens = loader.ranks.sum_gradients(tuned.trained.values(), tokens, losses)
    norm = nn.utils.clip_grad_norm_(tuned.trained.values(), optim.clip_norm)
    *values, norm_value = torch.cat([every, norm[None].to(every.device)]).tolist()
    return float(sum(value / tokens for value in values)), norm_value


def another_attention() -> AbstractContextManager[None]:
    """A context in which attention is computed by other kernels than usual.

    With an additive mask, the usual one of Hopper GPUs returns NaN for the gradient of some lengths of keys (PyTorch issue 196678).
    """
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


@contextmanager
def same_statistics(tuned: Tuned) -> Iterator[None]:
    """A context in which BatchNorms use the statistics of the batch as before, but their running statistics do not move."""
    norms = [module for module in tuned.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, usual, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


RandomState = tuple[Tensor, Tensor | None]  # of the CPU, and of the device


def random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
