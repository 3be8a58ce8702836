"""The progress reports of an attempt: progress.json, every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mmprompt.evaluation.answers import Answered
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.config import RunConfig
from mmprompt.training.checkpoints import State
from mmprompt.training.train import is_over

REPORT_EVERY = 2.0  # seconds between two progress reports
OnStep = Callable[[State], None]


def progress_reporter(config: RunConfig, attempt: Attempt, watch: OnStep | None, until: int | None = None) -> OnStep:
    """Returns a function that writes progress.json every few seconds and at the last update (or update `until`), and that calls
    `watch` at each update."""
    last = 0.0

    def report(state: State) -> None:
        nonlocal last
        if watch is not None:
            watch(state)
        ended = is_over(state, config.optim)
        if time.monotonic() - last > REPORT_EVERY or ended or state.step == until:
            last = time.monotonic()
            loss = state.history[-1][1]["train/loss"]
            attempt.report(
                {
                    "step": state.step,
                    "steps": state.step if ended else config.optim.steps,
                    "loss": loss,
                    "validation": state.validation,
                    "seconds": state.seconds,  # that its steps took, of earlier attempts too
                    "time": time.time(),
                }
            )

    return report


def heartbeat(attempt: Attempt) -> Answered:
    """Returns a function that renews the progress report every few seconds while a trained attempt evaluates."""
    last = time.monotonic()

    def answered(count: int) -> None:
        nonlocal last
        if time.monotonic() - last > REPORT_EVERY and (before := attempt.progress):
            last = time.monotonic()
            attempt.report(before | {"time": time.time()})

    return answered


@dataclass
class EvaluationProgress:
    """The progress reports of an attempt that only evaluates. They have the keys of training; a step is one example."""

    attempt: Attempt
    examples: int  # of all its evaluations
    _done: int = 0  # examples of evaluations before the one at hand
    _here: int = 0
    _made: int = 0
    _began: float = field(default_factory=time.monotonic)
    _last: float = 0.0

    def answered(self, count: int) -> None:
        self._here = count
        if time.monotonic() - self._last > REPORT_EVERY:
            self._report()

    def report(self, made: int) -> None:
        """Reports that `made` evaluations exist."""
        self._made, self._done, self._here = made, self._done + self._here, 0
        self._report()

    def _report(self) -> None:
        self._last = time.monotonic()
        step = {"step": self._done + self._here, "steps": self.examples, "evaluated": self._made, "validation": []}
        self.attempt.report(step | {"seconds": time.monotonic() - self._began, "time": time.time()})
