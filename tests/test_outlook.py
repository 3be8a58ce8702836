"""What is found out about many runs: as about each alone, with few look-ups."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmprompt.run import INTERRUPTED, ROOT, Store, this_process
from sweeps.scheduler import Job
from sweeps.state import Held, Queue, State, state, states

KINDS = ("never", "waits", "works", "done", "failed", "interrupted", "elsewhere")
NOBODY = Queue({})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Forty runs of each kind. Each has had an attempt, but those that were never tried and those that wait in a queue."""
    store = Store(tmp_path)
    for name in runs():
        folder, kind = store.run(name), name.split("-")[0]
        if kind in ("never", "waits"):
            continue
        here = this_process()
        job = here | {"batch": "a", "scheduler": "local"} | ({"host": "another"} if kind == "elsewhere" else {})
        attempt = folder.claim(1, job)
        assert attempt is not None
        if kind == "done":
            folder.result_file.write_text(json.dumps({"attempt": 1, "seconds": 3.0}))
        elif kind in ("failed", "interrupted"):
            attempt.fail("nan" if kind == "failed" else f"{INTERRUPTED}killed")
    return store


def runs() -> list[str]:
    return [f"{kind}-{i}" for i in range(40) for kind in KINDS]


@pytest.mark.parametrize("job", [Job("300", "PENDING", "", "Priority", "1:00:00", "ann"), None])
def test_the_states_of_many_runs_are_those_of_each_alone_in_their_order(store: Store, job: Job | None) -> None:
    queue = Queue({name: [Held("2", number, job)] for number, name in enumerate(runs()) if name.startswith("waits")})
    found = states(store, runs(), queue)
    assert list(found) == runs()
    assert found == {name: state(store.run(name), queue) for name in runs()}
    names = {"never": "to do", "works": "running", "done": "done", "failed": "failed", "interrupted": "to do"}
    names |= {"waits": "queued" if job else "lost?", "elsewhere": "lost?"}
    assert {name: seen.name for name, seen in found.items()} == {name: names[name.split("-")[0]] for name in runs()}


def test_a_store_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert states(Store(tmp_path / "none"), ["a", "b"], NOBODY) == dict.fromkeys("ab", State("to do", None, None, None))


def test_a_run_without_a_folder_costs_no_look_up_and_a_done_one_costs_one(store: Store) -> None:
    count = f"""
import sys
from pathlib import Path
from mmprompt.run import Store
from sweeps.state import Queue, states
looked = []
sys.addaudithook(lambda event, given: looked.append(str(given[0])) if event in ("open", "os.scandir", "os.listdir") else None)
states(Store(Path({str(store.root)!r})), {[name for name in runs() if name.startswith(("never", "done"))]}, Queue({{}}))
print("\\n".join(path for path in looked if path.startswith({str(store.root)!r})))
"""
    done = subprocess.run([sys.executable, "-c", count], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = [str(store.run(name).result_file) for name in runs() if name.startswith("done")]
    assert sorted(done.stdout.split()) == sorted([str(store.root / "run"), *folders])
