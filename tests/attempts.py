"""The reason for the end of an attempt, as text."""

from __future__ import annotations

from mmprompt.runs.attempt import Attempt


def error_of(attempt: Attempt) -> str | None:
    """What error.txt holds; None of an attempt that has not ended, or did all it was made for."""
    reason = attempt.reason
    return None if reason is None else reason.text
