"""The training loop of a tuned model. The best weights are chosen on validation (facts 3.2, 3.4).

B micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.data.splits import Split
from mmprompt.data.tasks import collate
from mmprompt.evaluation.answers import example_scores
from mmprompt.methods.tuned_model import Tuned, View, tokens_in_loss
from mmprompt.runs.config import RunConfig
from mmprompt.runs.signals import leave, time_is_up
from mmprompt.settings.optim import Optim
from mmprompt.training.checkpoints import Checkpoints, State
from mmprompt.training.optimiser import AdamW


class TrainingError(RuntimeError):
    """Training cannot continue. The message says at which step and why."""


class Paused(Exception):
    """The run has reached the update at which its attempt should pause. Its state is in a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step


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


@lru_cache(
    maxsize=2
)  # an update may reach into the next epoch; of 1.3 million examples each takes a tenth of a second to make
def epoch_order(seed: int, examples: int, epoch: int) -> np.ndarray:
    """The indices of all examples, in the order of an epoch. Read only."""
    order = np.random.default_rng((seed, epoch)).permutation(examples)
    order.setflags(write=False)
    return order


def data_order(seed: int, examples: int, first: int, count: int) -> np.ndarray:
    """Indices of the `count` examples that follow the first `first` ones in a stream of data. The stream is shuffled anew in each
    epoch.

    The result depends only on the arguments, so that a number is enough to say where in the data a run is.
    """
    chunks: list[np.ndarray] = []
    while count > 0:
        epoch, offset = divmod(first, examples)
        shuffled = epoch_order(seed, examples, epoch)[offset : offset + count]
        chunks.append(shuffled)
        first, count = first + len(shuffled), count - len(shuffled)
    return np.concatenate(chunks)


def update(
    tuned: Tuned, optimiser: torch.optim.Optimizer, config: RunConfig, split: Split, view: View, step: int
) -> float:
    """Makes one optimiser update over `batch_size` examples. Returns the mean loss per token.

    Raises TrainingError if the loss or the gradient is not finite.
    """
    optim = config.optim
    index = data_order(config.seed, len(split), step * optim.batch_size, optim.batch_size)
    parts = np.split(index, optim.batch_size // optim.micro_batch)
    device = next(tuned.parameters()).device
    texts = [collate([split.samples[i] for i in part]).to(device) for part in parts]
    dropped = optim.drop_worst if step >= optim.drop_worst_after else 0.0
    tokens = sum(tokens_in_loss(text.answer_tokens, dropped) for text in texts)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(optim, step + 1)
    optimiser.zero_grad()
    total = 0.0
    for text, part in zip(texts, parts, strict=True):
        loss = tuned.loss(text, view(part), optim, dropped)
        (loss / tokens).backward()
        total += loss.item() / tokens
    if not np.isfinite(total):
        raise TrainingError(
            f"the loss is {total} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g}, "
            f"learning rate {learning_rate(optim, step + 1):.3g}); a smaller optim.lr is the usual cure"
        )
    norm = nn.utils.clip_grad_norm_(tuned.trained.values(), optim.clip_norm)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"the gradient is {norm.item()} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g})"
        )
    optimiser.step()
    return total


@torch.no_grad()
def update_ema(ema: dict[str, Tensor], trained: Mapping[str, Tensor], decay: float) -> None:
    """Updates the moving average of the weights in place. It begins with the weights after the first update."""
    for name, weight in trained.items():
        if name in ema:
            ema[name].lerp_(weight, 1 - decay)
        else:
            ema[name] = weight.detach().clone()


@contextmanager
def with_ema_weights(tuned: Tuned, ema: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which the moving average, if there is one, replaces the weights."""
    weights, trained = tuned.tuned_state() if ema else {}, tuned.trained
    with torch.no_grad():
        for name, value in ema.items():
            trained[name].copy_(value)
    yield
    if ema:
        tuned.load_tuned_state(weights)


def train(
    config: RunConfig,
    tuned: Tuned,
    splits: Mapping[str, Split],
    views: Mapping[str, View],
    checkpoints: Checkpoints,
    log: Callable[[int, dict[str, float]], None],
    report: Callable[[State], None],
    until: int | None = None,
) -> State:
    """Trains to the last update, and leaves in `tuned` the weights that were best on validation.

    `splits`: by name, at least `train` and the validation split. `views`: the view of each split. `log` is called once with each
    step and its values; after a resume first with those of the earlier steps. `report` is called with the state after each update.
    `until`: the update after which this attempt ends, with Paused; the next attempt resumes there.
    Raises TrainingError if the loss or the gradient is not finite. If a time limit is near, saves the state and raises SystemExit.
    """
    if not tuned.trained:
        return State()  # a prompt of length 0: the backbone stays as it is
    optim = config.optim
    chosen_on = config.task.validation
    optimiser = optimiser_of(tuned, optim)
    state = checkpoints.resume(tuned, optimiser)
    for step, values in state.history:
        log(step, values)
    began = time.monotonic() - state.seconds
    last = optim.steps if until is None else min(until, optim.steps)
    while state.step < last:
        tuned.train()
        values = {"train/lr": learning_rate(optim, state.step + 1)}
        values["train/loss"] = update(tuned, optimiser, config, splits["train"], views["train"], state.step)
        state.step += 1
        if optim.ema_decay is not None:
            update_ema(state.ema, tuned.trained, optim.ema_decay)
        if state.step % optim.validate_every == 0 or state.step == optim.steps:
            tuned.eval()
            with with_ema_weights(tuned, state.ema):
                scores = example_scores(config, tuned, splits[chosen_on], views[chosen_on], optim.validate_examples)
                score = float(scores.mean())
                values["val/while_training"] = score
                state.validation.append((state.step, score))
                if score > state.best_score:
                    state.best_score, state.best_step, state.best = score, state.step, tuned.tuned_state()
        state.history.append((state.step, values))
        state.seconds = time.monotonic() - began
        log(state.step, values)
        report(state)
        # After the last step as well, because the evaluations that follow may take long and be interrupted.
        if checkpoints.is_due(state.step) or state.step in (last, optim.steps) or time_is_up():
            checkpoints.save(state, tuned, optimiser)
        if time_is_up():
            leave()
    if last < optim.steps and state.step < optim.steps:
        report(state)
        raise Paused(state.step)
    tuned.load_tuned_state(state.best)
    tuned.eval()
    return state
