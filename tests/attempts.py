"""The reason why an attempt ended, as text."""

from __future__ import annotations

from mmprompt.runs.attempt import Attempt


def error_of(attempt: Attempt) -> str | None:
    """The text of the attempt's reason; None if it has not ended or did all that it was made for."""
    reason = attempt.reason
    return None if reason is None else reason.text
