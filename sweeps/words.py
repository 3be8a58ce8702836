"""Why runs end, in words: to be read, and to be typed after --retry. Imports nothing, so that help is there at once."""

from __future__ import annotations

from typing import Literal

Cause = Literal[
    "error",
    "diverged",
    "out of memory",
    "disk full",
    "time limit",
    "preempted",
    "node lost",
    "cancelled",
    "killed",
    "not begun",
]
WORDS: dict[str, Cause] = {  # as they are typed
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
