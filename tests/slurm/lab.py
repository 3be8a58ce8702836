"""Stories: tests that run side by side on one cluster, each on sweeps of its own, because most of what they take is waiting.

A story is a function marked `@beside`. The first test that asks for the fixture `together` starts all of them, of every module.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster import BARE_FOLDER, BARE_PORTS, NODES, Cluster
from faults import OVER, Sweep, hosts

from mmprompt.run import RunFolder

AT_ONCE = 8  # stories; more of them and on two cores python does not start before SLURM's time is up


def beside(story: Callable[[Lab], None]) -> Callable[[Together], None]:
    """A test that runs beside the others that are marked so; the story gets a `Lab` of its own."""

    def test(together: Together) -> None:
        together.result(story.__name__)

    test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
    test.story = story  # type: ignore[attr-defined]
    return test


@contextlib.contextmanager
def bare_cluster() -> Iterator[Cluster]:
    """The one without accounts, for one test process at a time."""
    with BARE_FOLDER.with_suffix(".tests").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = Cluster(BARE_FOLDER, BARE_PORTS, bare=True)
        was_up = bool(cluster.running())
        cluster.up()
        try:
            yield cluster
        finally:
            if not was_up:
                cluster.down()


@dataclass
class Lab:
    """What a story has to itself, a folder and sweeps in it, and what it shares."""

    folder: Path
    cluster: Cluster
    undisturbed: Callable[[int], RunFolder]  # the run of a seed that nobody disturbs; waits for it
    nodes: dict[str, threading.Lock]  # held by a story that breaks this node
    sweeps: list[Sweep] = field(default_factory=list)

    def sweep(self, *settings: str, **more: Any) -> Sweep:
        """On the nodes that nobody breaks, unless the settings say where."""
        where = hosts(self.folder)
        if not any(setting.startswith("cluster.exclude=") for setting in settings):
            where.append("cluster.exclude='gn[3-4]'")
        folder = self.folder / f"sweep{len(self.sweeps) + 1}"
        self.sweeps.append(Sweep(folder, self.cluster, (*where, *settings), **more))
        return self.sweeps[-1]

    def sweep_on(self, node: str, *settings: str, **more: Any) -> Sweep:
        others = ",".join(other for other in NODES if other != node)
        return self.sweep(f"cluster.exclude='{others}'", *settings, **more)


class Together:
    """All stories, begun in their order, several at a time."""

    def __init__(self, folder: Path, cluster: Cluster, stories: list[Callable[[Lab], None]]) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        reference = Lab(folder / "undisturbed", cluster, self._undisturbed, {})
        self._reference = self._pool.submit(undisturbed, reference)
        locks = {node: threading.Lock() for node in NODES}
        labs = [Lab(folder / story.__name__, cluster, self._undisturbed, locks) for story in stories]
        self.labs = [reference, *labs]
        self._ends: dict[str, Future[None]] = {
            story.__name__: self._pool.submit(story, lab) for story, lab in zip(stories, labs, strict=True)
        }

    def _undisturbed(self, seed: int) -> RunFolder:
        return self._reference.result()[seed]

    def result(self, story: str) -> None:
        """Waits for its end, and fails if it failed."""
        self._ends[story].result()

    def wait(self) -> None:
        """Until no story goes on, however they ended."""
        wait(self._ends.values())

    def close(self) -> None:
        OVER.set()
        for lab in self.labs:
            for sweep in lab.sweeps:
                sweep.close()
        self._pool.shutdown()


def undisturbed(lab: Lab) -> Sweep:
    sweep = lab.sweep("cluster.runs_per_job=3", seeds=(1, 2, 3))
    sweep.launch()
    for seed in sweep.seeds:
        sweep.done(seed)
    return sweep
