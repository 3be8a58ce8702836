"""Stories run concurrently on one cluster, each on sweeps of its own, because most of their time is waiting.

A story is a function that gets a `Lab`. A test marked `@beside` is itself a story; a test marked `@looks_at` gets the results of
stories from `together`. The first test that uses the fixture `together` starts all stories, of every module, in the order of the
tests.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cluster import BARE_FOLDER, BARE_PORTS, NODES, Cluster
from faults import OVER, Sweep, hosts

from mmprompt.runs.run_folder import RunFolder

Test = TypeVar("Test", bound=Callable[..., None])
AT_ONCE = 3  # stories in each test process; with more, two cores spend much of their time switching between processes


def beside(story: Callable[[Lab], None]) -> Callable[[Together], None]:
    """Makes a test a story, which gets a `Lab` of its own and runs concurrently with the other stories."""

    def test(together: Together) -> None:
        together.result(story.__name__)

    test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
    return looks_at({story.__name__: story})(test)


def looks_at(stories: Stories) -> Callable[[Test], Test]:
    """Declares the stories that a test uses. If the test has a parameter `name`, each case uses only the story of that name."""

    def mark(test: Test) -> Test:
        test.stories = stories  # type: ignore[attr-defined]
        return test

    return mark


def stories_of(items: Iterable[pytest.Item]) -> dict[str, Callable[[Lab], Any]]:
    """The stories that these tests use, in the order of the tests."""
    found: dict[str, Callable[[Lab], Any]] = {}
    for item in items:
        stories = getattr(getattr(item, "function", None), "stories", {})
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        found |= {key: story for key, story in stories.items() if name in (None, key)}
    return found


def bare_cluster() -> contextlib.AbstractContextManager[Cluster]:
    """The cluster without accounts, for one story at a time."""
    return alone_on(BARE_FOLDER, BARE_PORTS, bare=True)


@contextlib.contextmanager
def alone_on(folder: Path, ports: int, bare: bool = False) -> Iterator[Cluster]:
    """Another cluster, which is stopped at the end of the context unless it was up before."""
    with folder.with_suffix(".tests").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster = Cluster(folder, ports, bare)
        was_up = bool(cluster.running())
        cluster.up()
        try:
            yield cluster
        finally:
            if not was_up:
                cluster.down()


@dataclass
class Lab:
    """What a story works with: a folder and sweeps of its own, and what it shares with other stories."""

    folder: Path
    cluster: Cluster
    undisturbed: Callable[[int], RunFolder]  # waits for the undisturbed run of a seed, and returns it
    shared: Shared
    sweeps: list[Sweep] = field(default_factory=list)

    def alone(self, name: str) -> threading.Lock:
        """A lock by which no other story breaks this node, or uses whatever else has this name."""
        return self.shared.lock(name)

    def sweep(self, *settings: str, **more: Any) -> Sweep:
        """A sweep on the nodes that no story breaks, unless the settings name nodes."""
        return self.sweep_here(*hosts(self.folder), *settings, **more)

    def sweep_here(self, *settings: str, **more: Any) -> Sweep:
        """The same on nodes that all have this host's name, so that every command sees whether their processes run."""
        named = any(setting.startswith("cluster.exclude=") for setting in settings)
        where = settings if named else (*settings, "cluster.exclude='gn[3-4]'")
        folder = self.folder / f"sweep{len(self.sweeps) + 1}"
        self.sweeps.append(Sweep(folder, self.cluster, where, **more))
        return self.sweeps[-1]

    def sweep_on(self, node: str, *settings: str, **more: Any) -> Sweep:
        others = ",".join(other for other in NODES if other != node)
        return self.sweep(f"cluster.exclude='{others}'", *settings, **more)


class Shared:
    """What stories share: locks, and resources that are made on first use and closed when all stories have ended."""

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._things: dict[Any, Any] = {}
        self._mine = threading.RLock()
        self._stack = contextlib.ExitStack()

    def lock(self, name: str) -> threading.Lock:
        with self._mine:
            return self._locks.setdefault(name, threading.Lock())

    def thing(self, make: Callable[[Cluster], contextlib.AbstractContextManager[Any]], cluster: Cluster) -> Any:
        with self.lock(f"make {make}"):
            if make not in self._things:
                self._things[make] = self._stack.enter_context(make(cluster))
            return self._things[make]

    def close(self) -> None:
        self._stack.close()


class Together:
    """All stories, started in their order, several at a time."""

    def __init__(self, folder: Path, cluster: Cluster, stories: Stories) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._shared = Shared()
        reference = Lab(folder / "undisturbed", cluster, self._undisturbed, self._shared)
        self._reference = self._pool.submit(undisturbed, reference)
        self.labs = [reference]
        self._ends: dict[str, Future[Any]] = {}
        for number, (name, story) in enumerate(stories.items()):
            lab = Lab(folder / str(number), cluster, self._undisturbed, self._shared)
            self.labs.append(lab)
            self._ends[name] = self._pool.submit(to_its_end, story, lab)

    def _undisturbed(self, seed: int) -> RunFolder:
        return self._reference.result()[seed]

    def result(self, story: str) -> Any:
        """Waits for a story's end, and returns its result. Fails if the story failed."""
        return self._ends[story].result()

    def close(self) -> None:
        OVER.set()
        for lab in self.labs:
            for sweep in lab.sweeps:
                sweep.close()
        self._pool.shutdown()
        self._shared.close()


def to_its_end(story: Callable[[Lab], Any], lab: Lab) -> Any:
    """Executes a story and returns its result. However it ends, its jobs are ended, because other stories wait for the nodes."""
    try:
        return story(lab)
    finally:
        for sweep in lab.sweeps:
            sweep.close()


Stories = Mapping[str, Callable[[Lab], Any]]


def undisturbed(lab: Lab) -> Sweep:
    sweep = lab.sweep("cluster.runs_per_job=3", seeds=(1, 2, 3))
    sweep.launch()
    for seed in sweep.seeds:
        sweep.done(seed)
    return sweep
