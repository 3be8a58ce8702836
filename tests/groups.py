"""Which tests run only on request, and which share a test process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

LONG = os.environ.get("MMPROMPT_LONG") == "1"  # all tests, in their long form


def some(cases: Sequence[Any], *kept: Any) -> list[Any]:
    """The cases of a parametrized test, those that are not kept marked `long`."""
    assert all(case in cases for case in kept)

    def long(case: Any) -> Any:
        return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.long)

    return [case if case in kept else long(case) for case in cases]


# Two test processes run SLURM's tests, each on its own cluster; the second runs these files.
SECOND = ("cluster", "status", "cancel", "doctor", "search", "measure", "clocks", "secrets", "evaluations")
SECOND = tuple(f"tests/slurm/test_{name}" for name in SECOND)


def group_of(nodeid: str) -> str | None:
    """The group of a SLURM test, which one test process runs; None for other tests."""
    if not nodeid.startswith("tests/slurm/"):
        return None
    return "slurm 2" if nodeid.startswith(SECOND) else "slurm 1"
