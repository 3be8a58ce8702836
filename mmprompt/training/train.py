"""The training loop of a tuned model. The best weights are chosen on validation (facts 3.2, 3.4).

B micro-batch.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmprompt.data.splits import Split
from mmprompt.data.tasks import collate
from mmprompt.evaluation.answers import example_scores
from mmprompt.methods.tuned_model import Tuned, View, tokens_in_loss
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.runs.files import remove
from mmprompt.runs.signals import leave, time_is_up
from mmprompt.settings.optim import Optim
from mmprompt.training.optimiser import AdamW

HASH = hashlib.sha256().digest_size
CHECKPOINTS_KEPT = 2  # per attempt
SHARE = 0.05  # of the time at most for saving checkpoints, if they go by the time
PARTS = {"state", "tuned", "optimiser", "random", "random_cuda"}  # the parts of a checkpoint


class TrainingError(RuntimeError):
    """Training cannot continue. The message says at which step and why."""


@dataclass
class State:
    """The state of a run between two updates, apart from the model, the optimiser and the random number generators."""

    step: int = 0
    ema: dict[str, Tensor] = field(default_factory=dict)  # moving average of the trained weights, if ema_decay is set
    best_step: int = 0
    best_score: float = float("-inf")
    best: dict[str, Tensor] = field(default_factory=dict)  # tuned weights at best_step
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # what was logged at each step
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


class Paused(Exception):
    """The run has reached the update at which its attempt should pause. Its state is in a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step


class DamagedCheckpointError(RuntimeError):
    """A run cannot resume from a checkpoint. The message says why."""


@dataclass
class Checkpoints:
    """Saves the checkpoints of an attempt, and finds those of its run.

    A file consists of the sha256 of its content, and the content: everything that has a state between two steps. An attempt keeps
    its newest two checkpoints, so that a damaged one costs little. As soon as it has two, those of earlier attempts are removed.
    """

    attempt: Attempt  # the attempt that saves its checkpoints here
    every: int | None  # updates between two checkpoints; None: by the time
    seconds: float = 0.0  # between two of them, if it goes by the time
    resumed_from: dict[str, int] | None = None  # attempt and step; None: training began at step 0
    seconds_before: float = 0.0  # of training before the checkpoint that was resumed from
    damaged: list[str] = field(default_factory=list)  # the checkpoints that could not be used, and why

    def __post_init__(self) -> None:
        self._older = self.attempt.run.checkpoints()
        self._last, self._took = time.monotonic(), 0.0  # when the latest was saved, and the seconds that this took

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be saved after this update."""
        if self.every is not None:
            return step % self.every == 0
        return time.monotonic() - self._last >= max(self.seconds, self._took / SHARE)

    def save(self, state: State, tuned: Tuned, optimiser: torch.optim.Optimizer) -> None:
        """Saves a checkpoint. Raises StoreError if it cannot be written (older ones stay); GoneError if the attempt was removed."""
        began, on_gpu = time.monotonic(), next(tuned.parameters()).is_cuda
        content: dict[str, Any] = {
            "state": vars(state) | {"history": columns(state.history)},
            "tuned": tuned.tuned_state(),
            "optimiser": optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if on_gpu else None,
        }
        buffer = io.BytesIO()
        buffer.write(bytes(HASH))  # room for the hash
        torch.save(content, buffer)
        data = buffer.getbuffer()
        data[:HASH] = hashlib.sha256(data[HASH:]).digest()
        self.attempt.put(self.attempt.checkpoint_file(state.step), data)
        own = [(step, self.attempt) for step in self.attempt.checkpoint_steps]
        for step, attempt in [*own[:-CHECKPOINTS_KEPT], *(self._older if len(own) >= CHECKPOINTS_KEPT else [])]:
            remove(attempt.checkpoint_file(step))
        self._last = time.monotonic()
        self._took = self._last - began

    def resume(self, tuned: Tuned, optimiser: torch.optim.Optimizer) -> State:
        """Loads the latest intact checkpoint of the run into `tuned` and `optimiser`, and returns its state. Returns a fresh state
        if there is none.

        The checkpoint may be of any attempt: on the same kind of machine all attempts go through the same states.
        """
        for step, attempt in self._older:
            file = attempt.checkpoint_file(step)
            try:
                content = read_checkpoint(file, tuned)
            except DamagedCheckpointError as error:
                self.damaged.append(f"{file.relative_to(attempt.run.path)}: {error}")
                print(f"{file} is passed over: {error}", flush=True)
                continue
            tuned.load_tuned_state(content["tuned"])
            optimiser.load_state_dict(content["optimiser"])
            torch.set_rng_state(content["random"])
            if content["random_cuda"] is not None and next(tuned.parameters()).is_cuda:
                torch.cuda.set_rng_state(content["random_cuda"])
            self.resumed_from = {"attempt": attempt.number, "step": step}
            print(f"goes on from step {step} of attempt {attempt.number}", flush=True)
            self.seconds_before = content["state"]["seconds"]
            state = State(**content["state"])
            if isinstance(state.history, dict):  # a list in checkpoints of versions before 2026-11-29
                state.history = rows(state.history)
            device = next(tuned.parameters()).device
            state.ema = {name: value.to(device) for name, value in state.ema.items()}  # where it is updated
            return state
        return State()


History = list[tuple[int, dict[str, float]]]
Columns = dict[str, tuple[Tensor, Tensor]]


def columns(history: History) -> Columns:
    """The history of a checkpoint: for each quantity the steps at which it was logged, and its values. 12 bytes for each value,
    where the list has 50: a run of 100,000 updates has 2.4 MB of it.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in history:
        for key, value in values.items():
            steps, numbers = found.setdefault(key, ([], []))
            steps.append(step)
            numbers.append(value)
    return {
        key: (torch.tensor(steps, dtype=torch.int32), torch.tensor(numbers, dtype=torch.float64))
        for key, (steps, numbers) in found.items()
    }


def rows(columns: Columns) -> History:
    """The inverse of `columns`."""
    found: dict[int, dict[str, float]] = {}
    for key, (steps, numbers) in columns.items():
        for step, value in zip(steps.tolist(), numbers.tolist(), strict=True):
            found.setdefault(step, {})[key] = value
    return sorted(found.items())


def read_checkpoint(file: Path, tuned: Tuned) -> dict[str, Any]:
    """Reads a checkpoint. Raises DamagedCheckpointError if it is not intact, or not of this run or this version of the code."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"it cannot be read: {error.strerror}") from error
    if hashlib.sha256(memoryview(data)[HASH:]).digest() != data[:HASH]:
        raise DamagedCheckpointError(f"its {len(data)} bytes do not have the checksum they begin with")
    try:
        content = torch.load(io.BytesIO(data[HASH:]), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise DamagedCheckpointError(f"torch {torch.__version__} cannot read it: {error}") from error
    has_all_parts = content.keys() == PARTS and content["state"].keys() == vars(State()).keys()
    if not has_all_parts or content["tuned"].keys() != tuned.tuned_state().keys():
        raise DamagedCheckpointError("it is of another version of the code")
    return content


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
