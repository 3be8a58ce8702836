"""Stores whose files somebody or something has damaged, and every verb of `sweeps` and `analysis` on them.

    python tests/mangled.py --examples 10000

A small store holds all that a store can hold: sweeps with evaluations, a search, a measurement, runs that are done, failed,
diverged, interrupted, lost or never begun, batches of local processes and of SLURM. Hypothesis damages copies of it: records are
cut, emptied, swapped, removed, replaced by folders or other JSON, single values by values of another kind, and strangers'
files are put between them. Whatever it finds, a verb ends with an exit code of its own and not with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
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
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from whole_store import JOB, searched, train

from mmprompt.place import ROOT
from mmprompt.processes import this_process
from mmprompt.run import DIVERGED, INTERRUPTED, Store

LENGTH = ["task=micro_grounding", "prompt.length=10,64", "seed=11,12,13,14", "task.data.val=200", "task.data.test=200"]
ROBUSTNESS = ["task=micro_vqa", "method=finetune,prompt", "attack.epsilon=0.0,0.01", "seed=11,12"]
ROBUSTNESS += ["task.data.val=200", "task.data.test=200", "evaluation.examples=200"]
CODES = (0, 1, 2)  # with which a verb may end
KINDS = (
    "result.json",
    "config.json",
    "job.json",
    "progress.json",
    "error.txt",
    "batch.json",
    "submitted.json",
    "sweeps/",
)
KINDS += (
    "evaluations/",
    ".npy",
    ".wandb",
    "study.json",
    "trials/",
    "decisions/",
    "confirmed.json",
    "costs/",
    "_log.err",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "\x00",
    "../../x",
    "9" * 400,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    [],
    [None],
    {},
    {"a": {}},
)
WORDS = ("NaN", "-Infinity", '"\\ud800"', "[" * 3000, "1" * 5000)  # as text: what json.dumps would not write
STRANGERS = (
    "README.txt",
    "²",
    "9",
    "99999999999999999999",
    ".hidden",
    "x.json",
    "a\nb",
    "\udcff",
    "checkpoint.x.pt",
    "0",
)
PLACES = (
    "",
    "run",
    "jobs",
    "sweeps",
    "searches",
    "costs",
    "code",
    "cache",
    "jobs/1",
    "run/*",
    "run/*/attempts",
    "run/*/attempts/1",
)


# The store


def made(root: Path) -> Store:
    """The store that is damaged in copies."""
    from sweeps.manifest import expand, write

    store = Store(root)
    for name, overrides in (("length", LENGTH), ("robustness", ROBUSTNESS)):
        expanded = expand(name, [f"paths.runs={root}", *overrides], ROOT / "conf")
        write(expanded, {"commit": None, "dirty": False})
        runs = list(expanded.configs)
        for run in runs[:4]:
            train(store, expanded.configs[run], expanded.wanted[run])
        for run in runs[4:]:
            store.run(run).create(expanded.configs[run])
        if name == "length":
            unfinished(store, runs[4:7])
            submitted(store, "length", runs)
            measured(store, runs[0])
    searched(root)
    for file in root.rglob("*.json"):
        file.chmod(0o644)
    return store


def unfinished(store: Store, runs: Sequence[str]) -> None:
    """A run that failed, one that diverged, one that is at work as far as anybody can tell."""
    ends = ("Traceback (most recent call last):\nValueError: no", f"Traceback:\n{DIVERGED}the loss is nan", None)
    for run, end in zip(runs, ends, strict=True):
        folder = store.run(run)
        for error in (f"{INTERRUPTED}told to end by SIGTERM", end):
            job = JOB | {"batch": "1", "scheduler": "slurm", "job": "300_1", "log": "jobs/1/0/300_1_0_log.err"}
            attempt = folder.claim(folder.next_number, job | {"work": "train", "scheduler_job": "301"})
            assert attempt is not None
            attempt.report({"step": 50, "steps": 300, "validation": [[50, 12.5]], "seconds": 3.0, "loss": 1.0})
            attempt.checkpoint_file(50).write_bytes(b"0" * 100)
            if error is not None:
                attempt.fail(error)


def submitted(store: Store, sweep: str, runs: Sequence[str]) -> None:
    """A batch of SLURM's and one of local processes."""
    for number, kind in ((1, "slurm"), (2, "local")):
        folder = store.jobs / str(number)
        (folder / "0").mkdir(parents=True)
        parts = [[{"where": {}, "runs": [run], "evaluations": [{"split": "test"}]}] for run in runs]
        frozen: dict[str, Any] = {
            "sweeps": {sweep: list(runs)},
            "overrides": ["cluster=slurm"],
            "threads": 1,
            "jobs": parts,
        }
        frozen |= {
            "store": str(store.root),
            "snapshot": str(store.code / "c0de"),
            "job_name": f"mmprompt-{number}-abcdef",
        }
        frozen |= {"job": {"batch": str(number), "scheduler": kind, "code": "c0de", "commit": None, "dirty": False}}
        frozen |= {"launcher": this_process() | {"pid": 2**22 + 1}, "user": "anna", "slurm_cluster": "here"}
        frozen |= {"cluster": {"mem_gb": 2.0, "time_min": 60, "gpus": 0, "max_parallel": None}}
        (folder / "batch.json").write_text(json.dumps(frozen))
        (folder / "0" / "300_1_0_log.err").write_text(
            "== job 300_1 on gn1, 2026-11-24T12:10:00+0000\nsrun: error: gn1: task 0: Killed\n"
        )
        if kind == "slurm":
            (folder / "0" / "submitted.json").write_text(json.dumps({"job": "300", "count": len(runs)}))
            (folder / "submitted.json").write_text(json.dumps({"waiting": 0, "why": ""}))
    (store.code / "c0de").mkdir(parents=True)


def measured(store: Store, run: str) -> None:
    from mmprompt.costs import put

    quantity = {
        "median": 1.0,
        "lowest": 0.9,
        "highest": 1.1,
        "ratio": None,
        "ratio_lowest": None,
        "ratio_highest": None,
    }
    row = {"task": "micro_grounding", "values": {"prompt.length": 64}, "run": run, "steps": 300, "devices": 1}
    row |= {
        "baseline": True,
        "against": 0,
        "parameters": 7,
        "quantities": {"seconds_per_100": quantity | {"rounds": 3}},
    }
    content = {
        "sweep": "length",
        "batch": "2",
        "commit": None,
        "dirty": False,
        "code": None,
        "when": "then",
        "host": "h",
    }
    content |= {"device": "cpu: a core", "threads": 1, "torch": "2", "cores": 2, "load": {"before": 0.0, "after": 1.0}}
    put(store, content | {"others": 0, "rounds": 3, "updates": 5, "baseline": None, "missing": [], "rows": [row]})


def copied(store: Path, place: Path) -> None:
    """A copy of links: whatever is damaged gets a file of its own."""
    shutil.copytree(store, place, copy_function=os.link)


# What happens to it

Damage = tuple[int, int, int, int]  # which kind of file, which of them, what, and how


def damage(store: Path, one: Damage) -> str:
    """Does it; what, in words."""
    kind, which, what, how = one
    if what >= len(MANGLES):
        return stranger(store, which, how)
    files = [
        file for file in sorted(store.rglob("*")) if file.is_file() and KINDS[kind] in str(file.relative_to(store))
    ]
    if not files:
        return "nothing"
    file = files[which % len(files)]
    MANGLES[what](file, how, files)
    return f"{MANGLES[what].__name__} {how} {file.relative_to(store)}"


def put(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def cut(file: Path, how: int, files: Sequence[Path]) -> None:
    content = file.read_bytes()
    put(file, content[: how % (len(content) + 1)])


def other(file: Path, how: int, files: Sequence[Path]) -> None:
    contents = (b"", b"{}", b"[]", b"null", b"\xff\xfe\x00", b"{", b"3", b'"x"', b"\n" * 9, bytes(64))
    put(file, contents[how % len(contents)])


def swapped(file: Path, how: int, files: Sequence[Path]) -> None:
    put(file, files[how % len(files)].read_bytes())


def folder(file: Path, how: int, files: Sequence[Path]) -> None:
    file.unlink()
    file.mkdir()
    if how % 2:
        (file / "x").write_text("x")


def removed(file: Path, how: int, files: Sequence[Path]) -> None:
    file.unlink()


def link(file: Path, how: int, files: Sequence[Path]) -> None:
    file.unlink()
    file.symlink_to(file.name if how % 2 else "nowhere")


def folder_removed(file: Path, how: int, files: Sequence[Path]) -> None:
    shutil.rmtree(above(file, how))


def folder_replaced(file: Path, how: int, files: Sequence[Path]) -> None:
    place = above(file, how)
    shutil.rmtree(place)
    place.write_text("x")


def above(file: Path, how: int) -> Path:
    """A folder of the store that holds it."""
    inside = file.parts[file.parts.index("runs") + 1 : -1]
    return file.parents[how % len(inside)]


def value(file: Path, how: int, files: Sequence[Path]) -> None:
    """One value of a JSON file becomes another, or goes."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return
    places = list(parts(content))
    if not places:
        return
    holder, key = places[how % len(places)]
    change = (how // len(places)) % (len(VALUES) + len(WORDS) + 1)
    if change == len(VALUES) + len(WORDS):
        del holder[key]
        put(file, json.dumps(content).encode())
    elif change >= len(VALUES):
        holder[key] = "@@"
        put(file, json.dumps(content).replace('"@@"', WORDS[change - len(VALUES)]).encode())
    else:
        holder[key] = VALUES[change]
        put(file, json.dumps(content).encode())


def parts(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value: the list or the object that holds it, and where."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from parts(content[key])


MANGLES: tuple[Callable[[Path, int, Sequence[Path]], None], ...] = (
    *(cut, other, swapped, folder, removed, link, folder_removed, folder_replaced),
    *(value, value, value, value),
)


def stranger(store: Path, which: int, how: int) -> str:
    """Somebody's own file or folder in the store."""
    places = sorted(store.glob(PLACES[which % len(PLACES)])) if which % len(PLACES) else [store]
    if not places or not places[0].is_dir():
        return "nothing"
    place = places[0] / STRANGERS[how % len(STRANGERS)]
    with contextlib.suppress(FileExistsError):
        if how // len(STRANGERS) % 2:
            place.mkdir()
            (place / "x").write_text("x")
        else:
            with place.open("x") as file:
                file.write("x")
    return f"stranger {place}"


damages = st.lists(
    st.tuples(
        st.integers(0, len(KINDS) - 1), st.integers(0, 40), st.integers(0, len(MANGLES)), st.integers(0, 100_000)
    ),
    min_size=1,
    max_size=3,
)


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
    yield "outlook", lambda: outlook(store)
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


def outlook(store: Path) -> int:
    """What a launch knows, says and mends before it submits anything."""
    import dataclasses

    from sweeps import launch, outlook
    from sweeps.manifest import join

    if not EXPANDED:
        EXPANDED.append(join(["length"], [f"paths.runs={store}", *LENGTH], ROOT / "conf"))
    place = EXPANDED[0].place.model_copy(
        update={"paths": EXPANDED[0].place.paths.model_copy(update={"runs": str(store)})}
    )
    expanded = dataclasses.replace(
        EXPANDED[0], sweeps=[dataclasses.replace(one, place=place) for one in EXPANDED[0].sweeps]
    )
    seen = launch.mended(outlook.of(expanded, None, None), None, None)
    print(seen, seen.cost, seen.jobs)
    return launch._report(seen, [], [])


def job(store: Path) -> int:
    """What a job does before it begins a run: of those that it could begin it begins none."""
    from mmprompt.job import execute

    runs = sorted(Store(store).runs())
    execute(
        store, runs, {}, {"batch": "7", "scheduler": "local"}, wanted=lambda: False, evaluations=[{"split": "test"}]
    )
    return 0


def advance(store: Path) -> int:
    """A worker of the search, which takes nothing."""
    from mmprompt.files import StoreError
    from mmprompt.study import Study
    from sweeps.search.advance import Desk, Limits

    try:
        Desk(Study(Store(store), "learning_rate"), Limits()).advance()
    except StoreError as error:
        print(error)
    return 0


def api(store: Path) -> int:
    """What a notebook asks."""
    from analysis import load, runs
    from mmprompt.files import StoreError

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
    from mmprompt.files import StoreError
    from mmprompt.wandb_online import is_marked, look
    from sweeps import sync
    from sweeps.state import queue

    here = Store(store)
    with contextlib.suppress(StoreError):
        folders = [here.run(run) for run in sync._runs(here, [])]
        queued = queue(here, [folder.id for folder in folders])
        for folder in folders:
            for file, _ in sync._records(folder, queued):
                if not is_marked(file):
                    look(file)
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
