"""The states of runs: the same for many at once as for each alone, with few file accesses, and with the needed evaluations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import write_once
from mmprompt.runs.identity import digest
from mmprompt.runs.processes import this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.jobs.slurm import Job
from sweeps.states.state import HoldingJob, Queue, State, state, states

KINDS = ("never", "waits", "works", "done", "failed", "interrupted", "elsewhere")
SETTINGS = {digest(text): text for text in (f'"{kind}-{i}"' for i in range(40) for kind in KINDS)}  # by run
RUNS = {run: text.strip('"').split("-")[0] for run, text in SETTINGS.items()}  # the kind of each
NOBODY = Queue({})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Forty runs of each kind. Each has had an attempt, except those that were never tried and those that wait in a queue."""
    store = Store(tmp_path)
    for run, kind in RUNS.items():
        folder = store.run(run)
        if kind == "never":
            continue
        write_once(folder.config_file, SETTINGS[run])
        if kind == "waits":
            continue
        here = this_process()
        job = here | {"batch": "a", "scheduler": "local"} | ({"host": "another"} if kind == "elsewhere" else {})
        attempt = folder.claim(1, job)
        assert attempt is not None
        if kind == "done":
            folder.result_file.write_text(json.dumps({"attempt": 1, "metrics": {}, "seconds": 3.0}))
        elif kind in ("failed", "interrupted"):
            attempt.fail(from_text("nan" if kind == "failed" else f"{INTERRUPTED}killed"))
    return store


def of(*kinds: str) -> list[str]:
    return [run for run, kind in RUNS.items() if kind in kinds]


@pytest.mark.parametrize("job", [Job("300", "PENDING", "", "Priority", "1:00:00", "ann"), None])
def test_the_states_of_many_runs_equal_those_of_each_by_itself_in_the_given_order(
    store: Store, job: Job | None
) -> None:
    queue = Queue({run: [HoldingJob("2", number, job)] for number, run in enumerate(of("waits"))})
    by_run = states(store, list(RUNS), queue)
    assert list(by_run) == list(RUNS)
    assert by_run == {run: state(store.run(run), queue) for run in RUNS}
    names = {"never": "to do", "works": "running", "done": "done", "failed": "failed", "interrupted": "to do"}
    names |= {"waits": "queued" if job else "lost?", "elsewhere": "lost?"}
    assert {run: current.name for run, current in by_run.items()} == {run: names[kind] for run, kind in RUNS.items()}


def test_a_store_that_does_not_exist_has_no_runs(tmp_path: Path) -> None:
    assert states(Store(tmp_path / "none"), ["a", "b"], NOBODY) == dict.fromkeys("ab", State("to do", None, None, None))


def test_a_run_without_a_folder_costs_no_file_access_and_a_done_run_costs_one(store: Store) -> None:
    count = f"""
import sys
from pathlib import Path
from typing import Any
from mmprompt.runs.store import Store
from sweeps.states.state import Queue, states
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event in ("open", "os.scandir", "os.listdir") else None)
states(Store(Path({str(store.root)!r})), {of("never", "done")}, Queue({{}}))
print("\\n".join(path for path in opened if path.startswith({str(store.root)!r})))
"""
    done = subprocess.run([sys.executable, "-c", count], cwd=ROOT, capture_output=True, text=True, check=True)
    folders = [str(store.run(run).result_file) for run in of("done")]
    assert sorted(done.stdout.split()) == sorted([str(store.root / "run"), *folders])


# Runs that have their result


def trained(folder: Path) -> RunFolder:
    run = Store(folder).run(digest("{}"))
    write_once(run.config_file, "{}")
    assert run.claim(
        1, this_process() | {"batch": "a", "scheduler": "local", "work": "train"}
    )  # its process still runs
    run.result_file.write_text(
        json.dumps({"attempt": 1, "metrics": {}, "evaluations": {"val": "v"}, "evaluated": ["v", "w"]})
    )
    return run


def evaluating(run: RunFolder, **job: Any) -> Attempt:
    facts = this_process() | {"batch": "b", "scheduler": "local", "job": "7", "work": "evaluate"} | job
    attempt = run.claim(run.next_number, facts)
    assert attempt is not None
    return attempt


def test_a_run_is_done_if_it_has_the_needed_evaluations_and_to_evaluate_otherwise(tmp_path: Path) -> None:
    run = trained(tmp_path)
    assert state(run, NOBODY, ["v", "w"]).name == "done"
    current = state(run, NOBODY, ["v", "x", "y"])
    assert (current.name, current.missing, current.attempt) == ("to evaluate", {"x", "y"}, None)
    assert current.restricted_to(run, ["v"]).name == "done" and current.restricted_to(run, ["x"]).missing == {"x"}
    run.evaluations.mkdir()
    (run.evaluations / "x.json").write_text("{}")
    (run.evaluations / ".y.json.0badc0de").write_text("{")
    assert state(run, NOBODY, ["v", "x"]).name == "done" and state(run, NOBODY, ["x", "y"]).missing == {"y"}


def test_an_evaluating_attempt_counts_as_running_until_it_writes_its_end_even_if_its_process_goes_on(
    tmp_path: Path,
) -> None:
    run = trained(tmp_path)
    attempt = evaluating(run)
    assert state(run, NOBODY, ["x"]).name == "running" and state(run, NOBODY, ["v"]).name == "done"
    attempt.end({})
    assert state(run, NOBODY, ["x"]).name == "to evaluate"
    evaluating(run).fail(from_text("WeightsError: damaged"))
    failed = state(run, NOBODY, ["x"])
    assert failed.name == "failed" and failed.result is not None and failed.attempt and failed.attempt.number == 3
    evaluating(run).end({})
    assert state(run, NOBODY, ["x"]).name == "to evaluate"  # the fourth attempt succeeded


def test_a_job_that_trained_a_run_and_works_on_others_does_not_hold_its_evaluations(tmp_path: Path) -> None:
    run = trained(tmp_path)
    job = Job("300", "RUNNING", "node", "", "1:00:00", "ann")
    assert state(run, Queue({run.id: [HoldingJob("1", 0, job, frozenset("vw"))]}), ["v", "x"]).name == "to evaluate"
    assert state(run, Queue({run.id: [HoldingJob("2", 0, job, frozenset("vx"))]}), ["v", "x"]).name == "queued"
