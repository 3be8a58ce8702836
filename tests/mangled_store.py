"""A small store with every kind of record, and ways to damage a copy of it (`tests/mangled.py`, `tests/test_damage.py`).

It holds sweeps with evaluations, a search, a measurement; runs that are done, failed, diverged, interrupted, lost or never begun;
batches of local processes and of SLURM.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from whole_store import JOB, searched, train

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_DIVERGED as DIVERGED
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store

LENGTH = ["task=micro_grounding", "prompt.length=10,64", "seed=11,12,13,14", "task.data.val=200", "task.data.test=200"]
ROBUSTNESS = ["task=micro_vqa", "method=finetune,prompt", "attack.epsilon=0.0,0.01", "seed=11,12"]
ROBUSTNESS += ["task.data.val=200", "task.data.test=200", "evaluation.examples=200"]
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
WORDS = ("NaN", "-Infinity", '"\\ud800"', "[" * 3000, "1" * 5000)  # as text, which json.dumps would not write
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
    """Makes the store whose copies are damaged."""
    from sweeps.grid.manifest import expand, write

    store = Store(root)
    for name, overrides in (("length", LENGTH), ("robustness", ROBUSTNESS)):
        expanded = expand(name, [f"paths.runs={root}", *overrides], ROOT / "conf")
        write(expanded, {"commit": None, "dirty": False})
        runs = list(expanded.configs)
        for run in runs[:4]:
            train(store, expanded.configs[run], expanded.evaluations[run])
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
    """Gives these runs attempts: the first failed, the second diverged, and the third may still be running."""
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
                attempt.fail(from_text(error))


def submitted(store: Store, sweep: str, runs: Sequence[str]) -> None:
    """Writes a SLURM batch and a batch of local processes."""
    for number, kind in ((1, "slurm"), (2, "local")):
        folder = store.jobs / str(number)
        (folder / "0").mkdir(parents=True)
        parts = [[{"settings": {}, "runs": [run], "evaluations": [{"split": "test"}]}] for run in runs]
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
    from mmprompt.execution.measurement import put

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
    """Copies the store as hard links; a file that is damaged is replaced, so that the original stays intact."""
    shutil.copytree(store, place, copy_function=os.link)


# The damage

# The kind of file, the number of the file among these, the number of the change, and a number that selects its variant.
Damage = tuple[int, int, int, int]


def damage(store: Path, one: Damage) -> str:
    """Damages the store, and describes the damage."""
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
    """One of the store's folders that contain the file."""
    inside = file.parts[file.parts.index("runs") + 1 : -1]
    return file.parents[how % len(inside)]


def value(file: Path, how: int, files: Sequence[Path]) -> None:
    """Replaces or deletes one value of a JSON file."""
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):  # it was damaged before
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
    """Every element within a JSON value: the list or object that holds it, and its index or key."""
    keys = content.keys() if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys):
        yield content, key
        yield from parts(content[key])


MANGLES: tuple[Callable[[Path, int, Sequence[Path]], None], ...] = (
    *(cut, other, swapped, folder, removed, link, folder_removed, folder_replaced),
    *(value, value, value, value),
)


def stranger(store: Path, which: int, how: int) -> str:
    """Adds a foreign file or folder to the store."""
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
