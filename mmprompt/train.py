"""The training loop: prompts on a frozen backbone, chosen on validation (facts 3.2, 3.4).

B micro-batch, C x h x w features.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.config import Optim, RunConfig
from mmprompt.data import Split, load
from mmprompt.evaluate import example_scores
from mmprompt.tasks import collate, preprocess
from mmprompt.tuned import Tuned

HASH = hashlib.sha256().digest_size
Features = Callable[[np.ndarray], Tensor]  # indices of examples -> B C h w


class TrainingError(RuntimeError):
    """Training cannot go on. The message says at which step and why."""


@dataclass
class State:
    """Everything a run is made of between two steps, besides the model's frozen part."""

    step: int = 0
    best_step: int = 0
    best_score: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict)  # tuned weights at best_step
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's state goes every so often, and where it may be found.

    A file is the sha256 of its content and the content: everything that has a state between two steps.
    """

    file: Path  # this attempt's
    every: int  # updates
    older: Sequence[Path]  # of other attempts, the latest first

    def save(self, state: State, tuned: Tuned, optimiser: torch.optim.Optimizer) -> None:
        """Replaced in one step: there is always a complete one."""
        on_gpu = next(tuned.parameters()).is_cuda
        buffer = io.BytesIO()
        content: dict[str, Any] = {
            "state": vars(state),
            "tuned": tuned.tuned_state(),
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if on_gpu else None,
        }
        torch.save(content, buffer)
        temporary = self.file.with_suffix(".new")
        with open(temporary, "wb") as handle:
            handle.write(hashlib.sha256(buffer.getbuffer()).digest())
            handle.write(buffer.getbuffer())
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(self.file)

    def resume(self, tuned: Tuned, optimiser: torch.optim.Optimizer) -> State:
        """The state to go on from, put into `tuned` and `optimiser`: the latest that is intact, or a fresh one."""
        for file in self.older:
            data = file.read_bytes()
            if hashlib.sha256(data[HASH:]).digest() != data[:HASH]:
                print(f"{file} is damaged; an older checkpoint is taken, or training starts anew", flush=True)
                continue
            content = torch.load(io.BytesIO(data[HASH:]), map_location="cpu", weights_only=True)
            tuned.load_tuned_state(content["tuned"])
            optimiser.load_state_dict(content["optimiser"])
            torch.set_rng_state(content["random"])
            if content["random_cuda"] is not None and next(tuned.parameters()).is_cuda:
                torch.cuda.set_rng_state(content["random_cuda"])
            return State(**content["state"])
        return State()


def learning_rate(optim: Optim, update: int) -> float:
    """Of the update-th update, counted from 1: linear warm-up, then polynomial decay to 0."""
    warmup = int(optim.steps * optim.warmup_ratio)
    if update <= warmup:
        return optim.lr * update / warmup
    return optim.lr * (1 - (update - warmup - 1) / (optim.steps - warmup)) ** optim.decay_power


def order(seed: int, examples: int, first: int, count: int) -> np.ndarray:
    """Indices of the `count` examples after the first `first`, of a data stream that is shuffled anew each epoch.

    A function of its arguments alone, so that the data position is a number.
    """
    picked: list[np.ndarray] = []
    while count > 0:
        epoch, offset = divmod(first, examples)
        shuffled = np.random.default_rng((seed, epoch)).permutation(examples)[offset : offset + count]
        picked.append(shuffled)
        first, count = first + len(shuffled), count - len(shuffled)
    return np.concatenate(picked)


def features_of(tuned: Tuned, config: RunConfig, split: Split, cached: Tensor | None, device: torch.device) -> Features:
    """Image features by example: looked up where the stem is frozen, computed where it is live."""
    if cached is not None:
        return lambda index: cached[torch.from_numpy(index)].to(device)

    def compute(index: np.ndarray) -> Tensor:
        images = preprocess(split.images[torch.from_numpy(index)].to(device), config.task.image_size)
        with torch.no_grad():
            return tuned.backbone.features(images)

    return compute


def update(
    tuned: Tuned, optimiser: torch.optim.Optimizer, config: RunConfig, split: Split, features: Features, step: int
) -> float:
    """One optimiser update over `batch_size` examples; returns the mean loss per token. Raises TrainingError on NaN."""
    optim = config.optim
    index = order(config.seed, len(split), step * optim.batch_size, optim.batch_size)
    parts = np.split(index, optim.batch_size // optim.micro_batch)
    device = next(tuned.parameters()).device
    texts = [collate([split.samples[i] for i in part]).to(device) for part in parts]
    tokens = sum(text.answer_tokens for text in texts)
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(optim, step + 1)
    optimiser.zero_grad()
    total = 0.0
    for text, part in zip(texts, parts, strict=True):
        loss, _ = tuned.loss(text, features(part), optim.label_smoothing)
        (loss / tokens).backward()
        total += loss.item() / tokens
    if not np.isfinite(total):
        raise TrainingError(
            f"the loss is {total} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g}, "
            f"learning rate {learning_rate(optim, step + 1):.3g}); a smaller optim.lr is the usual cure"
        )
    norm = nn.utils.clip_grad_norm_(tuned.prompts.parameters(), optim.clip_norm)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"the gradient is {norm.item()} at step {step + 1} of {optim.steps} (optim.lr={optim.lr:g})"
        )
    optimiser.step()
    return total


def train(
    config: RunConfig,
    tuned: Tuned,
    cached: dict[str, Tensor] | None,
    checkpoints: Checkpoints,
    log: Callable[[int, dict[str, float]], None],
    report: Callable[[State], None],
) -> State:
    """Trains to the last step and leaves the best weights, by validation, in `tuned`.

    `cached`: image features by split; None where the stem is live. `log` gets each step's values once, those of a resumed
    history first. Raises TrainingError.
    """
    if not any(True for _ in tuned.prompts.parameters()):
        return State()  # a prompt of length 0: the backbone as it is
    optim, device = config.optim, next(tuned.parameters()).device
    splits = {name: load(config.task, config.model, name) for name in ("train", "val")}
    features = {
        name: features_of(tuned, config, split, None if cached is None else cached[name], device)
        for name, split in splits.items()
    }
    optimiser = torch.optim.AdamW(
        tuned.prompts.parameters(),
        lr=optim.lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    state = checkpoints.resume(tuned, optimiser)
    for step, values in state.history:
        log(step, values)
    began = time.monotonic() - state.seconds
    while state.step < optim.steps:
        tuned.train()
        values = {"train/lr": learning_rate(optim, state.step + 1)}
        values["train/loss"] = update(tuned, optimiser, config, splits["train"], features["train"], state.step)
        state.step += 1
        if state.step % optim.validate_every == 0 or state.step == optim.steps:
            tuned.eval()
            scores = example_scores(config, tuned, splits["val"], features["val"], optim.validate_examples)
            score = float(scores.mean())
            values["val/while_training"] = score
            state.validation.append((state.step, score))
            if score > state.best_score:
                state.best_score, state.best_step, state.best = score, state.step, tuned.tuned_state()
        state.history.append((state.step, values))
        state.seconds = time.monotonic() - began
        log(state.step, values)
        report(state)
        if state.step % checkpoints.every == 0 and state.step < optim.steps:
            checkpoints.save(state, tuned, optimiser)
    tuned.load_tuned_state(state.best)
    tuned.eval()
    return state
