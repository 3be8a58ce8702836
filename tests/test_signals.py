"""How a job ends when it is told to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmprompt.runs.deployment import ROOT

JOB = """
import atexit, os, signal, sys
from mmprompt.runs import signals

signals.end_when_told(patience=60)
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGALRM)])
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    {ends}
"""


@pytest.mark.parametrize(("ends", "is_clean"), [("signals.end_undisturbed()", True), ("pass", False)])
def test_a_signal_that_comes_while_python_ends_changes_nothing(ends: str, is_clean: bool) -> None:
    done = subprocess.run([sys.executable, "-c", JOB.format(ends=ends)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 143 and (done.stderr == "") == is_clean, done.stderr
