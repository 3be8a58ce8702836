"""Every verb of `sweeps` and `analysis` on stores that are damaged at random.

    python tests/mangled.py --examples 10000

Hypothesis damages copies of a small store (`mangled_store`). It cuts, empties, swaps and removes records, replaces them by folders
or other JSON and single values by values of another type, and adds foreign files. Every verb must then end with one of its own
exit codes and without a traceback.
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

CODES = (0, 1, 2)  # the exit codes that a verb may end with


# Every verb


def verbs(store: Path, number: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """The verbs to call on the store of this number; slow ones are called on some stores only."""
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
    if number % 2 == 0:
        yield "analysis verify", lambda: analysis(["verify", *where])
    yield "analysis claims", lambda: analysis(["claims", "length", *where])
    yield "analysis trace", lambda: analysis(["trace", "length", *where])
    yield "analysis curves", lambda: analysis(["curves", "length", *where])
    if number % 4 == 0:
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
    if number % 2 == 1:
        yield "clean", lambda: sweeps(["clean", "--days", "1", *where])
        yield "status after clean", lambda: sweeps(["status", *where])


EXPANDED: list[Any] = []  # the sweep, which is composed only once


def launch_plan(store: Path) -> int:
    """What a launch reads, prints and repairs before it submits anything."""
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
        EXPANDED[0], sweeps=[dataclasses.replace(one, deployment=place) for one in EXPANDED[0].sweeps]
    )
    seen = launch.repair_settings(launch_plan.plan_for(expanded, None, None), None, None)
    print(seen, seen.cost, seen.jobs)
    return launch._report(seen, [], [])


def job(store: Path) -> int:
    """What a job does before it begins a run; it is kept from beginning any."""
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
    """One step of a worker of the search, without executing the run that is next."""
    from mmprompt.runs.files import StoreError
    from mmprompt.studies.study import Study
    from sweeps.search.advance import Limits, StudyDriver

    try:
        StudyDriver(Study(Store(store), "learning_rate"), Limits()).advance()
    except StoreError as error:
        print(error)
    return 0


def api(store: Path) -> int:
    """The calls that notebooks make."""
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
    """What `sync` does before it contacts the server: it finds the records and checks them."""
    from mmprompt.runs.files import StoreError
    from mmprompt.runs.wandb_server import is_marked, sendable
    from sweeps.states.state import queue
    from sweeps.verbs import sync

    here = Store(store)
    with contextlib.suppress(StoreError):
        folders = [here.run(run) for run in sync._runs(here, [])]
        queued = queue(here, [folder.id for folder in folders])
        for folder in folders:
            for file, _ in sync._record_files(folder, queued):
                if not is_marked(file):
                    sendable(file)
    return 0


def check(store: Path, number: int, said: Sequence[str]) -> None:
    """Calls every verb on the store. Raises AssertionError at the first that ends in a traceback or an unknown exit code."""
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
        )  # no other process changes these stores


def plain(text: str) -> str:
    """The text without the traceback that attempts of this store have recorded, which verbs may show."""
    return text.replace("Traceback (most recent call last):\nValueError: no", "")


def fuzz(base: Store, folder: Path, examples: int, stores: Iterator[int]) -> None:
    """Calls every verb on copies of the store that Hypothesis damages. Raises the first failure, with the damage shrunk."""

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
        if number % 500 == 499:
            print(f"{number + 1} mangled stores so far", file=sys.stderr)
        place = folder / str(number) / "runs"
        copied(base.root, place)
        try:
            check(place, number, [damage(place, one) for one in some])
        finally:
            shutil.rmtree(place.parent, ignore_errors=True)

    every_verb_ends()


@contextlib.contextmanager
def unattended() -> Iterator[None]:
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
    with tempfile.TemporaryDirectory(prefix="mmprompt-mangled-") as name, unattended():
        base = made(Path(name) / "base" / "runs")
        fuzz(base, Path(name), asked.examples, stores)
    print(f"{next(stores)} mangled stores, no traceback, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
