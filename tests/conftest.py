"""The fixture `launcher`: `python -m sweeps` in a folder of its own, with nothing left running behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import Launcher


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    for process in launcher.processes():  # of a test that failed
        process.kill()
