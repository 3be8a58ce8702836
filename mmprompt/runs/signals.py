"""The signals that tell a job to end, and how the job ends.

SIGTERM (after Ctrl-C of a launch, scancel, preemption, or a shutdown): the job ends at once, by an exception, so that records are
closed. SIGUSR2 (from SLURM, some time before the time limit): training ends after the current step and saves its state. If
that has not happened within `patience`, the job ends as after SIGTERM.
Part of the light half of the package.
"""

from __future__ import annotations

import signal
import sys

TOLD_TO_END: list[int] = []  # received signals; compiled code may turn the handler's SystemExit into another exception


def end_when_told(patience: float | None = None) -> None:
    """Makes this process end properly on these signals. It is called once, in the main thread. `patience`: seconds that the process
    has after SIGUSR2; None: SIGUSR2 is not handled."""
    signal.signal(signal.SIGTERM, _end)
    if patience is not None:
        signal.signal(signal.SIGALRM, _end)
        signal.signal(signal.SIGUSR2, lambda number, _: _remember(number, patience))


def end_undisturbed() -> None:
    """From here on this process ends by itself. A signal that tells it to would only interrupt what Python does at its end, in a
    traceback; SLURM sends SIGTERM more than once."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def warning(time_min: int) -> int:
    """How many seconds before its time limit a job gets SIGUSR2. SLURM may send it up to a minute earlier."""
    return min(120, 15 * time_min)


def time_is_up() -> bool:
    """Whether SLURM has announced the time limit."""
    return signal.SIGUSR2 in TOLD_TO_END


def _end(number: int, frame: object) -> None:
    TOLD_TO_END.append(number)
    sys.exit(128 + TOLD_TO_END[0])


def _remember(number: int, patience: float) -> None:
    if not time_is_up():
        TOLD_TO_END.append(number)
        signal.setitimer(signal.ITIMER_REAL, patience)


def leave() -> None:
    """Ends the process because its time limit is near, at a point where nothing is lost."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    sys.exit(128 + signal.SIGUSR2)
