"""Every verb of `sweeps` and `analysis` on stores that are damaged at random.

    python tests/mangled.py --examples 10000

Hypothesis damages copies of a small store (`mangled_store`): records are cut, emptied, swapped, removed, replaced by folders or by
other JSON, single values by values of another kind, and strangers' files are put between them. Whatever it finds, a verb ends
with an exit code of its own and not with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from mangled_store import LENGTH, Damage, copied, damage, damages, made

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import CHANGING
from mmprompt.runs.store import Store

CODES = (0, 1, 2)  # with which a verb may end


# Every verb


def verbs(store: Path, number: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """What is called on each store; what takes long on some: every `number` of them."""
    from analysis.__main__ import main as analysis
    from sweeps.__main__ import main as sweeps

    runs = sorted(Store(store).runs())
    run, another = (runs[number % len(runs)], runs[-1]) if runs else ("a", "b")
    where = ["--runs", str(store)]
    yield "status", lambda: sweeps(["status", *where])
    yield "status of all", lambda: sweeps(["status", "length", "robustness", "learning_rate", "--json", *where])
    yield "logs", lambda: sweeps(["logs", run, *where])
    yield "diff", lambda: sweeps(["diff", run, another, *where])
    yield "diff to the nearest", lambda: sweeps(["diff", run, *where])
    yield "cancel", lambda: sweeps(["cancel", "length", *where])
    yield "cancel of a state", lambda: sweeps(["cancel", "--state", "queued", *where])
    yield "launch plan", lambda: launch_plan(store)
    yield "job", lambda: job(store)
    yield "search", lambda: advance(store)
    yield "analysis verify", lambda: analysis(["verify", *where])
    yield "analysis claims", lambda: analysis(["claims", "length", *where])
    yield "analysis trace", lambda: analysis(["trace", "length", *where])
    yield "analysis curves", lambda: analysis(["curves", "length", *where])
    yield "analysis API", lambda: api(store)
    if number % 40 == 0:
        yield "analysis tables", lambda: analysis(["tables", *where])
    if number % 80 == 0:
        yield "analysis report", lambda: analysis(["report", *where])
    if number % 40 == 20:
        yield (
            "plan",
            lambda: sweeps(["plan", "length", "robustness", "cluster=local", f"paths.runs={store}", *LENGTH[1:3]]),
        )
    if number % 40 == 30:
        yield "search plan", lambda: sweeps(["search", "plan", "learning_rate", "cluster=local", f"paths.runs={store}"])
    yield "sync", lambda: sync(store)
    yield "clean", lambda: sweeps(["clean", "--days", "1", *where])
    yield "status after clean", lambda: sweeps(["status", *where])


EXPANDED: list[Any] = []  # the sweep, composed once


def launch_plan(store: Path) -> int:
    """What a launch knows, says and mends before it submits anything."""
    import dataclasses

    from sweeps.grid.manifest import join
    from sweeps.planning import launch_plan
    from sweeps.verbs import launch

    if not EXPANDED:
        EXPANDED.append(join(["length"], [f"paths.runs={store}", *LENGTH], ROOT / "conf"))
    place = EXPANDED[0].deployment.model_copy(
        update={"paths": EXPANDED[0].deployment.paths.model_copy(update={"runs": str(store)})}
    )
    expanded = dataclasses.replace(
        EXPANDED[0], sweeps=[dataclasses.replace(one, place=place) for one in EXPANDED[0].sweeps]
    )
    seen = launch.repair_settings(launch_plan.of(expanded, None, None), None, None)
    print(seen, seen.cost, seen.jobs)
    return launch._report(seen, [], [])


def job(store: Path) -> int:
    """What a job does before it begins a run: of those that it could begin it begins none."""
    from tiny import job_settings

    from mmprompt.execution.execute import execute

    runs = sorted(Store(store).runs())
    execute(
        Store(store),
        runs,
        job_settings(),
        {"batch": "7", "scheduler": "local"},
        wanted=lambda: False,
        evaluations=[{"split": "test"}],
    )
    return 0


def advance(store: Path) -> int:
    """A worker of the search, which takes nothing."""
    from mmprompt.runs.files import StoreError
    from mmprompt.studies.study import Study
    from sweeps.search.advance import Limits, StudyDriver

    try:
        StudyDriver(Study(Store(store), "learning_rate"), Limits()).advance()
    except StoreError as error:
        print(error)
    return 0


def api(store: Path) -> int:
    """What a notebook asks."""
    from analysis import load, runs
    from mmprompt.runs.files import StoreError

    print(runs(store))
    with contextlib.suppress(StoreError):
        found = load("length", store)
        print(found.table())
        for one in sorted(Store(store).runs())[:3]:
            with contextlib.suppress(StoreError):
                print(found.run(one).attempts, found.run(one).evaluations, found.run(one))
    return 0


def sync(store: Path) -> int:
    """Which records there are, up to the question to the server."""
    from mmprompt.runs.files import StoreError
    from mmprompt.runs.wandb_server import is_marked, read_local
    from sweeps.states.state import queue
    from sweeps.verbs import sync

    here = Store(store)
    with contextlib.suppress(StoreError):
        folders = [here.run(run) for run in sync._runs(here, [])]
        queued = queue(here, [folder.id for folder in folders])
        for folder in folders:
            for file, _ in sync._record_files(folder, queued):
                if not is_marked(file):
                    read_local(file)
    return 0


def check(store: Path, number: int, said: Sequence[str]) -> None:
    """Raises AssertionError with the traceback of the first verb that ends in one."""
    for name, verb in verbs(store, number):
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = verb()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except Exception:
            raise AssertionError(f"{name}, after {'; '.join(said)}\n{traceback.format_exc()}") from None
        assert code in CODES, (name, code, said)
        assert "Traceback (most recent call last)" not in plain(output.getvalue()), (name, said, output.getvalue())
        assert CHANGING not in output.getvalue(), (
            name,
            said,
            output.getvalue(),
        )  # nothing changes these stores meanwhile


def plain(text: str) -> str:
    """Without what attempts left: theirs are shown."""
    return text.replace("Traceback (most recent call last):\nValueError: no", "")


def fuzz(base: Store, folder: Path, examples: int, stores: Iterator[int]) -> None:
    """Damages copies of the store as Hypothesis says, and calls every verb on each. Raises for the first that fails, shrunk."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        derandomize=examples < 1000,
        print_blob=True,
    )
    @given(damages)
    def every_verb_ends(some: list[Damage]) -> None:
        number = next(stores)
        place = folder / str(number) / "runs"
        copied(base.root, place)
        try:
            check(place, number, [damage(place, one) for one in some])
        finally:
            shutil.rmtree(place.parent, ignore_errors=True)

    every_verb_ends()


@contextlib.contextmanager
def nobody_asks() -> Iterator[None]:
    """Every question is answered with yes, and there is no SLURM."""
    before = dict(os.environ)
    os.environ |= {"YES": "1", "WANDB_MODE": "offline", "PATH": "/nowhere"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="stores (%(default)s)")
    asked = parser.parse_args(arguments)
    began, stores = time.monotonic(), itertools.count()
    with tempfile.TemporaryDirectory(prefix="mmprompt-mangled-") as name, nobody_asks():
        base = made(Path(name) / "base" / "runs")
        fuzz(base, Path(name), asked.examples, stores)
    print(f"{next(stores)} mangled stores, no traceback, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
