"""Stories: what runs side by side on one cluster, each on sweeps of its own, because most of what it takes is waiting.

A story is a function that gets a `Lab`. A test marked `@beside` is one; a test marked `@looks_at` asks `together` for what
stories came to. The first test that asks for the fixture `together` starts all of them, of every module, in the order of the tests.
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
AT_ONCE = 3  # stories in each test process; with more, two cores spend much of their time on changing between processes


def beside(story: Callable[[Lab], None]) -> Callable[[Together], None]:
    """A test that runs beside the others that are marked so; the story gets a `Lab` of its own."""

    def test(together: Together) -> None:
        together.result(story.__name__)

    test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
    return looks_at({story.__name__: story})(test)


def looks_at(stories: Stories) -> Callable[[Test], Test]:
    """Of a parametrized test, whose parameter is called `name`, a case looks only at the story of that name."""

    def mark(test: Test) -> Test:
        test.stories = stories  # type: ignore[attr-defined]
        return test

    return mark


def stories_of(items: Iterable[pytest.Item]) -> dict[str, Callable[[Lab], Any]]:
    """What these tests look at, in their order."""
    found: dict[str, Callable[[Lab], Any]] = {}
    for item in items:
        stories = getattr(getattr(item, "function", None), "stories", {})
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        found |= {key: story for key, story in stories.items() if name in (None, key)}
    return found


def bare_cluster() -> contextlib.AbstractContextManager[Cluster]:
    """The one without accounts, for one story at a time."""
    return alone_on(BARE_FOLDER, BARE_PORTS, bare=True)


@contextlib.contextmanager
def alone_on(folder: Path, ports: int, bare: bool = False) -> Iterator[Cluster]:
    """Another cluster, up for as long as the context lasts, and longer if it was up before."""
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
    """What a story has to itself, a folder and sweeps in it, and what it shares."""

    folder: Path
    cluster: Cluster
    undisturbed: Callable[[int], RunFolder]  # the run of a seed that nobody disturbs; waits for it
    shared: Shared
    sweeps: list[Sweep] = field(default_factory=list)

    def alone(self, name: str) -> threading.Lock:
        """With it no other story breaks this node, or is at whatever else has this name."""
        return self.shared.lock(name)

    def sweep(self, *settings: str, **more: Any) -> Sweep:
        """On the nodes that nobody breaks, unless the settings say where."""
        return self.sweep_here(*hosts(self.folder), *settings, **more)

    def sweep_here(self, *settings: str, **more: Any) -> Sweep:
        """The same, on nodes that all have the name of this host: whoever looks sees whether a process of theirs lives."""
        named = any(setting.startswith("cluster.exclude=") for setting in settings)
        where = settings if named else (*settings, "cluster.exclude='gn[3-4]'")
        folder = self.folder / f"sweep{len(self.sweeps) + 1}"
        self.sweeps.append(Sweep(folder, self.cluster, where, **more))
        return self.sweeps[-1]

    def sweep_on(self, node: str, *settings: str, **more: Any) -> Sweep:
        others = ",".join(other for other in NODES if other != node)
        return self.sweep(f"cluster.exclude='{others}'", *settings, **more)


class Shared:
    """What stories share: locks, and things that the first makes that asks for them, and that go when all stories have ended."""

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
    """All stories, begun in their order, several at a time."""

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
        """What it came to. Waits for its end, and fails if it failed."""
        return self._ends[story].result()

    def close(self) -> None:
        OVER.set()
        for lab in self.labs:
            for sweep in lab.sweeps:
                sweep.close()
        self._pool.shutdown()
        self._shared.close()


def to_its_end(story: Callable[[Lab], Any], lab: Lab) -> Any:
    """What a story comes to; nothing of it stays at work, however it ends: others wait for its place."""
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
