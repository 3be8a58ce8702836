"""Checkpoints: everything of a run that has a state between two updates, saved from time to time, and found again to resume."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmprompt.methods.tuned_model import Tuned
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.files import remove

HASH = hashlib.sha256().digest_size
CHECKPOINTS_KEPT = 2  # per attempt
SHARE = 0.05  # of the time at most for saving checkpoints, if they go by the time
COMPILING = "train/compile_seconds"  # what is logged at a step in which layers were compiled
PARTS = {"state", "tuned", "optimiser", "random", "random_cuda"}  # the parts of a checkpoint


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
    seconds: float = 0.0  # of its steps, without COMPILING

    @property
    def compile_seconds(self) -> float:
        """Seconds in which layers were compiled, in all attempts that led here."""
        return sum(values.get(COMPILING, 0.0) for _, values in self.history)


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
            state = State(**content["state"])
            if isinstance(state.history, dict):  # a list in checkpoints of versions before 2026-11-29
                state.history = rows(state.history)
            self.seconds_before = state.seconds + state.compile_seconds
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
