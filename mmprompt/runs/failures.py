"""Failures as data: the reasons why attempts end before they have done their work.

The whole program has one list of causes, and one class for the content of `error.json`, which an attempt writes. Beside it lies
error.txt, the same as text for users. Old attempts have only error.txt, which `from_text` reads.
Part of the light half of the package: imports only the standard library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Cause = Literal[
    "error",
    "diverged",  # the loss or the gradient is not finite; the same settings always diverge, so this is an outcome
    "out of memory",
    "disk full",
    "time limit",
    "preempted",
    "node lost",
    "cancelled",
    "killed",  # by a signal, or for an unknown reason
    "paused",  # by a search
    "not begun",  # a job ended before it claimed a run
]
RETRIED: dict[str, Cause] = {  # the words after --retry
    "error": "error",
    "diverged": "diverged",
    "oom": "out of memory",
    "disk": "disk full",
    "time": "time limit",
    "preempted": "preempted",
    "node": "node lost",
    "cancelled": "cancelled",
    "killed": "killed",
    "start": "not begun",
}
SILENT = "its process ended without a word"


@dataclass(frozen=True)
class Reason:
    """Why an attempt ended."""

    kind: Cause
    message: str  # one line
    traceback: str = ""
    interrupted: bool = False  # the reason does not lie in the run; the next attempt resumes from its checkpoint
    signal: str | None = None  # the signal that told the process to end

    @property
    def is_a_try(self) -> bool:
        """Whether the attempt counts towards the number of tries after which a run is not tried again."""
        return not self.interrupted or self.kind == "time limit"

    @property
    def text(self) -> str:
        """The reason as text for users, the content of error.txt."""
        return f"{OLD_PREFIX if self.interrupted else ''}{self.traceback or self.message}".rstrip() + "\n"


def told_to_end(signal: str) -> Reason:
    return Reason("killed", f"told to end by {signal}", interrupted=True, signal=signal)


def silent(interrupted: bool, guess: str = "") -> Reason:
    """The reason for an attempt whose process is gone. `guess`: what may have ended it."""
    return Reason("killed", f"{SILENT}{f': {guess}' if guess else ''}", interrupted=interrupted)


# The text of Python, torch and the operating system, in the error.txt of old attempts and in logs of jobs.

MEMORY = re.compile(
    r"\bMemoryError\b|OutOfMemoryError|out of memory|an't allocate memory|annot allocate memory|std::bad_alloc"
)
DISK = re.compile(
    r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed writing|basic_ios::clear: iostream error"
)
OLD_PREFIX, OLD_SIGNAL = "interrupted: ", "told to end by "
OLD_KINDS: tuple[tuple[str, Cause], ...] = (  # how error.txt began before error.json existed
    (SILENT, "killed"),
    ("the time limit ", "time limit"),
    ("TimeLimitError: ", "time limit"),
    ("paused ", "paused"),
)
OLD_DIVERGED = "mmprompt.train.TrainingError: "


def from_text(text: str) -> Reason:
    """The reason in an error.txt without error.json, or in the log of a job that ended before it claimed a run."""
    interrupted, text = text.startswith(OLD_PREFIX), text.removeprefix(OLD_PREFIX).strip()
    if text.startswith(OLD_SIGNAL):
        return told_to_end(text.removeprefix(OLD_SIGNAL))
    for beginning, kind in OLD_KINDS:
        if text.startswith(beginning):
            return Reason(kind, text, interrupted=interrupted)
    if not text:
        return silent(interrupted)
    message = conclusion(text)
    kind = "diverged" if OLD_DIVERGED in text else cause_of(text)
    return Reason(kind, message, text if text != message else "", interrupted)


def cause_of(text: str) -> Cause:
    """The cause that a traceback, or the last output of a process, shows."""
    message = conclusion(text)
    if any(DISK.search(line) for line in [message, *raised(text)]):
        return "disk full"
    return "out of memory" if MEMORY.search(message) else "error"


def raised(text: str) -> list[str]:
    """The lines of a traceback that name exceptions: the last exception, and those that led to it."""
    lines = [line for line in text.splitlines() if line.strip()]
    return [line for before, line in pairwise(lines) if before.startswith("  ") and not line.startswith(" ")]


def conclusion(text: str) -> str:
    """The line of a traceback that names the exception; the last line of other text."""
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
    named = [line for line in lines[frames[-1] :] if not line.startswith(" ")] if frames else []
    return (named or lines[-1:] or ["no reason given"])[0].strip()
