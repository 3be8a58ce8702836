"""What all tests share: how they are divided between processes, and the fixture `launcher`
(`python -m sweeps` in a folder of its own, with nothing left running behind it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from launcher import Launcher


@pytest.hookimpl(wrapper=True)  # before xdist, which reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Of several processes (pytest -n) one has all of SLURM's tests: some stop its daemons. Of the others a file stays together.

    SLURM's come first: they take longest.
    """
    items.sort(key=lambda item: "slurm" not in item.path.parts)
    for item in items:
        group = "slurm" if "slurm" in item.path.parts else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
    yield


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    for process in launcher.processes():  # of a test that failed
        process.kill()
