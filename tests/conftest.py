"""What all tests share: their order, how they are divided between processes, that Ctrl-C can be sent to what they start, and the
fixture `launcher` (`python -m sweeps` in a folder of its own, with nothing left running behind it).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from groups import LONG, group_of
from hypothesis import HealthCheck, settings
from launcher import Launcher
from patience import kill

from sweeps.jobs.batch import THREADS

# What begins first, so that nothing long is left for the end: SLURM's tests, which mostly wait, and of the others the longest.
# First of all those of the test cluster itself, before any story breaks a node of it.
FIRST = (
    "slurm/test_cluster",
    "slurm/test_faults",
    "slurm/test_evaluations_on_slurm",
    "slurm/test_faults_daemons",
    "slurm/test_doctor_on_slurm",
    "slurm/test_faults_launch",
    "slurm/test_sweep",
    "slurm/test_status_on_slurm",
    "slurm/test_cancel_on_slurm",
    "slurm",
    "test_online",
    "test_survival",
    "test_evaluations",
    "test_launch",
    "test_status",
    "test_store_users",
    "test_sync",
    "test_resume",
)

# As for most users: what a process compiles the next one finds compiled. It saves a third of a second for each of a thousand.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Several processes test at once, one for each core at least: more threads would wait for each other. Jobs set their own number.
for variable in THREADS:
    os.environ.setdefault(variable, "1")

# Hypothesis fails an example that takes 200 ms, by the clock on the wall: on a busy machine any of them may.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# What a shell starts in the background, or nohup, ignores SIGINT, and so does all that it starts: not these tests.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again, which took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        if not LONG and item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="MMPROMPT_LONG=1 runs it"))

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(tests).with_suffix("").as_posix()
        return next(
            (number for number, one in enumerate(FIRST) if name == one or name.startswith(f"{one}/")), len(FIRST)
        )

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes (pytest -n) two have the SLURM tests, each with its own cluster; of the others, each file has one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid) or str(super()._split_scope(nodeid))

    config.option.loadscopereorder = False  # by the number of tests in a file; ours is the better order
    return Scheduling(config, log)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    kill(launcher.processes())  # of a test that failed
