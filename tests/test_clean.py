"""`clean` deletes exactly what is no longer needed; most of the test stores are written by the code that writes real ones."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.failures import from_text
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.grid.manifest import Launch, join
from sweeps.jobs import snapshot
from sweeps.jobs.batch import Batch, Kind, batches, freeze_batch
from sweeps.verbs.clean import CODE, Waste, clean, free

DAYS = 30
OLD = 40 * 86_400.0  # seconds
LENGTH = ["task=micro_vqa", "prompt.length=10", "cluster=local"]
ELSEWHERE = {"host": "another", "pid": 1, "started": 0.0}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MMPROMPT_RUNS", str(tmp_path / "runs"))
    return Store(tmp_path / "runs")


def sweep(seeds: str) -> Launch:
    return join(["length"], [*LENGTH, f"seed={seeds}"], ROOT / "conf")


def submit(store: Store, expanded: Launch, kind: Kind = "local", **facts: Any) -> Batch:
    """The batch of a launch that has ended, with the logs of its workers; its runs are created, but not begun."""
    for run, config in expanded.configs.items():
        store.run(run).create(config)
    facts = {"commit": "aaaa", "dirty": False, "slurm_cluster": None} | facts
    batch = freeze_batch(expanded, [list(expanded.configs)], kind, facts, batches(store))
    assert batch is not None
    text = batch.file.read_text()
    batch.file.write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 1'))  # the launch has ended
    for name in ("1_0_log.out", "1_0_log.err"):
        (batch.folder / name).write_text("printed")
    return Batch(batch.folder)


def attempt_of(folder: RunFolder, **job: Any) -> Attempt:
    """An attempt whose process is gone, with every file that an attempt makes."""
    attempt = folder.claim(folder.next_number, ELSEWHERE | {"batch": "1", "scheduler": "local"} | job)
    assert attempt is not None
    for step in (10, 20):
        attempt.checkpoint_file(step).write_bytes(bytes(1000))
    attempt.weights_file.write_bytes(bytes(100))
    attempt.evaluations.mkdir()
    attempt.evaluation_file("abc").write_text("{}")
    (attempt.path / "wandb").mkdir()
    (attempt.path / "wandb/run.wandb").write_text("record")
    return attempt


def finish(folder: RunFolder) -> None:
    """Publishes a result of the run's second attempt, which was killed before it removed its checkpoints."""
    attempt_of(folder).fail(from_text(f"{INTERRUPTED}killed"))
    attempt = attempt_of(folder)
    evaluations = {split: evaluation_id(folder.id, {"split": split}) for split in ("val", "test")}
    result = {"attempt": attempt.number, "metrics": {}, "seconds": 1.0, "evaluations": evaluations}
    folder.result_file.write_text(json.dumps(result))


def age(store: Store, seconds: float = OLD) -> None:
    then = time.time() - seconds
    for path in sorted(store.root.rglob("*"), reverse=True):
        os.utime(path, (then, then))


def files(store: Store) -> set[str]:
    return {str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file()}


def cleaned(store: Store, cache: bool = False) -> set[str]:
    """The files that `clean` has deleted. It fails if `clean` could not delete something."""
    before = files(store)
    assert clean(store.root, DAYS, cache) == 0
    assert files(store) <= before
    return before - files(store)


def draft(*folders: Path) -> Iterable[str]:
    """Makes the half-written files that a killed process leaves in these folders, and yields their paths."""
    for folder in folders:
        (folder / ".7.0badc0de").mkdir(parents=True)
        (folder / ".7.0badc0de" / "file").write_text("half")
        (folder / ".file.json.0badc0de").write_text("half")
        yield from (f"{folder.name}/.7.0badc0de/file", f"{folder.name}/.file.json.0badc0de")


def test_in_an_old_store_exactly_what_is_no_longer_needed_is_deleted(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    expanded = sweep("1,2")
    done, failed = map(store.run, expanded.configs)
    submit(store, sweep("1"))
    submit(store, sweep("2"))
    finish(done)
    attempt_of(failed).fail(from_text("TrainingError: the loss is nan"))
    list(draft(done.path, done.path / "attempts", failed.path / "attempts/1", store.code, store.jobs))
    age(store)
    expected = {f"run/{done.id}/attempts/1/{name}" for name in ("weights.safetensors", "evaluations/abc.json")}
    expected |= {f"run/{done.id}/attempts/{n}/checkpoint.{step}.pt" for n in (1, 2) for step in (10, 20)}
    expected |= {"jobs/1/1_0_log.out", "jobs/1/1_0_log.err"}
    places = (f"run/{done.id}", f"run/{done.id}/attempts", f"run/{failed.id}/attempts/1", "code", "jobs")
    expected |= {f"{place}/{name}" for place in places for name in (".7.0badc0de/file", ".file.json.0badc0de")}
    assert cleaned(store) == expected
    output = capsys.readouterr().out
    assert "half-written files of processes that were killed (10)" in output
    assert "files of attempts that were not published (6)" in output and "older than 30 days (2)" in output
    assert "freed" in output
    assert cleaned(store) == set() and "nothing can be freed" in capsys.readouterr().out
    assert done.published.weights_file.exists() and done.evaluation_file("abc").exists()


def test_batches_keep_their_numbers(store: Store) -> None:
    submit(store, sweep("1"))
    finish(store.run(next(iter(sweep("1").configs))))
    age(store)
    assert cleaned(store)
    assert submit(store, sweep("2")).id == "2"


def test_drafts_and_logs_that_are_not_old_enough_stay(store: Store) -> None:
    submit(store, sweep("1"))
    folder = store.run(next(iter(sweep("1").configs)))
    list(draft(folder.path, store.code))
    age(store, 80_000.0)
    assert cleaned(store) == set()
    finish(folder)
    age(store, 29 * 86_400.0)
    assert {Path(path).parts[0] for path in cleaned(store)} == {"run", "code"}
    assert len(list(snapshot.files(next(store.code.iterdir())))) > 20


def test_nothing_is_deleted_of_a_run_that_is_running_or_may_be_running_elsewhere(store: Store) -> None:
    running, elsewhere = map(store.run, sweep("1,2").configs)
    submit(store, sweep("1,2"))
    attempt_of(running, **this_process())
    attempt_of(elsewhere)
    list(draft(running.path, running.path / "attempts/1", elsewhere.path, elsewhere.path / "attempts"))
    age(store)
    assert cleaned(store) == set()


def test_another_attempt_of_a_finished_run_keeps_its_files_while_it_may_be_running(store: Store) -> None:
    here, elsewhere = map(store.run, sweep("1,2").configs)
    submit(store, sweep("1,2"))
    for folder, process in ((here, this_process()), (elsewhere, ELSEWHERE)):
        finish(folder)
        attempt_of(folder, **process)
    age(store)
    assert not any("/attempts/3/" in path for path in cleaned(store))


@pytest.mark.parametrize("state", ["no information", "SLURM does not have it"])
def test_without_information_about_slurm_jobs_everything_that_they_could_use_stays(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    batch = submit(store, sweep("1"), "slurm")
    (batch.folder / "0").mkdir()
    (batch.folder / "submitted.json").write_text('{"waiting": 0, "why": ""}')
    finish(store.run(next(iter(sweep("1").configs))))
    age(store)
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit " + ("1" if state == "no information" else "0"))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    deleted = cleaned(store)
    assert ("SLURM gives no information" in capsys.readouterr().out) == (state == "no information") == (not deleted)


def test_code_is_deleted_unless_an_open_batch_needs_it_or_it_had_uncommitted_changes(store: Store) -> None:
    folder = store.run(next(iter(sweep("1").configs)))
    batch = submit(store, sweep("1"))
    copy = Path(batch.record["snapshot"])
    age(store)
    assert cleaned(store) == set()  # the run is to do
    finish(folder)
    batch.file.write_text(batch.file.read_text().replace('"dirty": false', '"dirty": true'))
    age(store)
    assert not any(path.startswith("code") for path in cleaned(store))
    batch.file.write_text(batch.file.read_text().replace('"dirty": true', '"dirty": false'))
    age(store)
    assert f"code/{copy.name}/sweeps/verbs/clean.py" in cleaned(store) and not copy.exists()


def test_code_that_a_launch_uses_again_while_it_is_being_deleted_stays_whole(store: Store) -> None:
    copy = snapshot.take(ROOT, store)
    age(store)
    assert snapshot.take(ROOT, store) == copy  # after `clean` has judged it to be old
    assert not free(Waste(CODE, copy, 0), DAYS)
    assert snapshot.identity(copy) == copy.name and list(store.code.iterdir()) == [copy]
    age(store)
    assert free(Waste(CODE, copy, 0), DAYS) and list(store.code.iterdir()) == []


def test_files_of_a_probe_are_deleted_when_they_are_old(store: Store) -> None:
    (store.root / "doctor/0badc0de/code").mkdir(parents=True)
    (store.root / "doctor/0badc0de/log").write_text("printed")
    assert cleaned(store) == set()
    age(store)
    assert cleaned(store) == {"doctor/0badc0de/log"}


def test_the_cache_is_deleted_only_on_request(store: Store) -> None:
    store.cache.mkdir(parents=True)
    (store.cache / "abc.rows").write_bytes(bytes(100))
    assert cleaned(store) == set()
    assert cleaned(store, cache=True) == {"cache/abc.rows"}
