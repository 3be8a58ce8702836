"""The training loop of a tuned model. The best weights are chosen on validation (facts 3.2, 3.4).

B micro-batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mmprompt.data.ranks import ALONE, Ranks, on_cpu
from mmprompt.data.splits import Split
from mmprompt.evaluation.answers import example_scores
from mmprompt.methods.tuned_model import Tuned, View
from mmprompt.runs.config import RunConfig
from mmprompt.runs.signals import leave, time_is_up
from mmprompt.settings.optim import Optim
from mmprompt.training.checkpoints import COMPILING, Checkpoints, State
from mmprompt.training.loader import Loader
from mmprompt.training.speed import EAGER, Speed
from mmprompt.training.update import learning_rate, optimiser_of, update


class Paused(Exception):
    """The run has reached the update at which its attempt should pause. Its state is in a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(f"paused at step {step}")
        self.step = step


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


def begun(checkpoints: Checkpoints, tuned: Tuned, optimiser: torch.optim.Optimizer, ranks: Ranks) -> State:
    """The state at which training begins or goes on, the same in all processes of the run."""
    state = checkpoints.resume(tuned, optimiser) if ranks.leads else State()
    if ranks.same(state.step) > 0:
        content = {"state": vars(state), "tuned": tuned.tuned_state(), "optimiser": optimiser.state_dict()}
        if ranks.size > 1:
            content = ranks.same(on_cpu(content))
        if not ranks.leads:
            tuned.load_tuned_state(content["tuned"])
            optimiser.load_state_dict(content["optimiser"])
            state = State(**content["state"])
    return state


def is_over(state: State, optim: Optim) -> bool:
    """Whether training has come to its end: the last update, or as many without a better validation as `optim.patience` allows."""
    waited = state.step - state.best_step
    return state.step >= optim.steps or (
        optim.patience is not None and state.best_step > 0 and waited >= optim.patience
    )


def train(
    config: RunConfig,
    tuned: Tuned,
    splits: Mapping[str, Split],
    views: Mapping[str, View],
    checkpoints: Checkpoints,
    log: Callable[[int, dict[str, float]], None],
    report: Callable[[State], None],
    until: int | None = None,
    ranks: Ranks = ALONE,
    speed: Speed = EAGER,
) -> State:
    """Trains to the end, and leaves in `tuned` the weights that were best on validation.

    `splits`: by name, at least `train` and the validation split. `views`: the view of each split. `log` is called once with each
    step and its values; after a resume first with those of the earlier steps. `report` is called with the state after each update.
    `until`: the update after which this attempt ends, with Paused; the next attempt resumes there. `ranks`: the processes that
    train the run together; only the leader reads and saves checkpoints. `speed`: how they execute the layers; the time of
    compilations is logged apart, and is not in the state's seconds.
    Raises TrainingError if the loss or the gradient is not finite. If a time limit is near, saves the state and raises SystemExit.
    """
    if not tuned.trained:
        return State()  # a prompt of length 0: the backbone stays as it is
    optim = config.optim
    chosen_on = config.task.validation
    optimiser = optimiser_of(tuned, optim)
    state = begun(checkpoints, tuned, optimiser, ranks)
    for step, values in state.history:
        log(step, values)
    began = time.monotonic() - state.seconds
    last = optim.steps if until is None else min(until, optim.steps)
    device = next(tuned.parameters()).device
    with speed, Loader(config, splits["train"], views["train"], device, ranks, speed) as loader:
        while state.step < last and not is_over(state, optim):
            tuned.train()
            values = {"train/lr": learning_rate(optim, state.step + 1)}
            before = speed.seconds
            values["train/loss"] = update(tuned, optimiser, config, loader, state.step)
            if (took := speed.seconds - before) > 0:
                began += took
                values[COMPILING] = round(took, 3)
                print(f"step {state.step + 1}: compiled layers for {took:.1f} s", flush=True)
            state.step += 1
            if optim.ema_decay is not None:
                update_ema(state.ema, tuned.trained, optim.ema_decay)
            if state.step % optim.validate_every == 0 or state.step == optim.steps:
                tuned.eval()
                with with_ema_weights(tuned, state.ema):
                    scores = example_scores(
                        config, tuned, splits[chosen_on], views[chosen_on], optim.validate_examples, ranks=ranks
                    )
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
            due = checkpoints.is_due(state.step) or state.step == last or is_over(state, optim) or time_is_up()
            if due and ranks.leads:
                checkpoints.save(state, tuned, optimiser)
            if time_is_up():
                leave()
    if not is_over(state, optim):
        report(state)
        raise Paused(state.step)
    tuned.load_tuned_state(state.best)
    tuned.eval()
    return state
