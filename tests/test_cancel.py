"""`cancel` on local processes: it ends a launch as Ctrl-C does, and touches no run that was not named."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from attempts import error_of
from hypothesis import given
from hypothesis import strategies as st
from launcher import Launcher
from patience import ended

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import process_here, this_process, who
from mmprompt.runs.store import Store
from sweeps.jobs import local
from sweeps.jobs.arrays import ranges
from sweeps.jobs.batch import batches
from sweeps.verbs import cancel as cancel_verb
from sweeps.verbs.cancel import cancel

LONG = ["seed=1,2", "optim.steps=4000", "cluster.max_parallel=1"]
WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]  # a process that waits until its input is closed


def stop(launcher: Launcher, *what: str, state: str | None = None) -> int:
    return cancel(what, launcher.store.root, state)


@pytest.mark.long
def test_a_launch_is_ended_only_if_all_its_runs_are_named_and_the_answer_is_yes(
    launcher: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = launcher.start("launch", *LONG)
    worker = launcher.worker()
    runs = [point["run"] for point in launcher.manifest()["points"]]
    assert stop(launcher, runs[1][:12]) == 1  # the launch is executing the other run
    assert f"1 run stays: the launch of batch 1 also holds {runs[0]}; name all" in capsys.readouterr().out
    assert stop(launcher, state="running") == 1
    assert f"1 run stays: the launch of batch 1 also holds {runs[1]}; name all" in capsys.readouterr().out
    assert answered(launcher, "n") == 1
    assert worker.is_running() and launch.poll() is None

    assert answered(launcher, "y") == 0
    assert ended(launch) == 130 and launcher.processes() == []
    [attempt] = launcher.store.run(runs[0]).attempts()
    assert error_of(attempt) is not None and error_of(attempt).startswith("interrupted: ")
    assert stop(launcher, "length") == 0
    assert "of 2 runs none is queued or running" in capsys.readouterr().out


def answered(launcher: Launcher, answer: str) -> int:
    """The exit code of a `cancel` of the sweep whose question gets this answer on a terminal."""
    ours, terminal = pty.openpty()
    words = [sys.executable, "-m", "sweeps", "cancel", "length", "--runs", str(launcher.store.root)]
    environment = {key: value for key, value in os.environ.items() if key != "YES"} | {"PYTHONPATH": str(ROOT)}
    os.write(ours, f"{answer}\n".encode())
    process = subprocess.Popen(words, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    code, printed = ended(process), b""
    with contextlib.suppress(OSError):  # after the last part of what it has printed
        while part := os.read(ours, 4096):
            printed += part
    os.close(ours)
    assert b"cancel 2 runs? [y/N]" in printed
    return code


def test_processes_whose_launch_was_killed_are_ended(launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> None:
    launch = launcher.start("launch", *LONG)
    launcher.worker()
    launch.kill()
    launch.wait()
    assert stop(launcher, *launcher.attempts()) == 0
    assert launcher.processes() == []
    assert "2 of 2 runs cancelled" in capsys.readouterr().out


def test_a_launch_may_end_just_before_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    with subprocess.Popen(WAITS, stdin=subprocess.PIPE) as launch:
        handed_over(store, 4, scheduler="local", launcher=process_here(launch.pid))
        send = os.kill

        def too_late(pid: int, number: int) -> None:
            monkeypatch.setattr(os, "kill", send)
            launch.kill()
            launch.wait()
            send(pid, number)

        monkeypatch.setattr(os, "kill", too_late)
        cancel_verb.stop(batches(store)[0])
        assert launch.returncode == -signal.SIGKILL


def test_killed_workers_are_gone_with_their_children_when_stop_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first child of the worker ends by itself when the worker is killed, and SIGKILL takes a moment, as of a large process."""
    store = Store(tmp_path)
    handed_over(store, 4, scheduler="local")
    [batch] = batches(store)
    monkeypatch.setattr(local, "LAST_WORDS", 0.0)
    words = [*WAITS, "-m", local.NODE, str(batch.folder), "1"]
    with (
        subprocess.Popen(WAITS, stdin=subprocess.PIPE) as first,
        subprocess.Popen(WAITS, stdin=subprocess.PIPE) as second,
        subprocess.Popen(words, stdin=subprocess.PIPE) as worker,
    ):
        children = [psutil.Process(one.pid) for one in (first, second)]
        kill = psutil.Process.kill

        def killed(process: psutil.Process) -> None:
            if process == children[0]:
                first.kill()
                first.wait()
                raise psutil.NoSuchProcess(process.pid)
            threading.Timer(0.2, kill, [process]).start()

        monkeypatch.setattr(psutil.Process, "children", lambda process, recursive: children)
        monkeypatch.setattr(psutil.Process, "kill", killed)
        cancel_verb.stop(batch)
        assert not psutil.pid_exists(worker.pid) and not psutil.pid_exists(second.pid)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ([], "cancel what? give the beginning of a run's id, a sweep, or --state queued or running"),
        (["lenght"], "there is no sweep of this name; did you mean length?"),
    ],
)
def test_an_unknown_name_and_no_name_at_all_are_errors_of_one_sentence(
    tmp_path: Path, what: list[str], sentence: str
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/length.json").write_text("{}")
    with pytest.raises(StoreError, match=re.escape(sentence)):
        cancel(what, tmp_path, None)


def test_the_time_per_run_does_not_grow_with_the_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no SLURM to query, so every job of the batch may still exist and counts as a holder."""
    monkeypatch.setenv("PATH", str(tmp_path))
    took = {}
    for runs in (500, 4000):
        store = Store(tmp_path / str(runs))
        handed_over(store, runs)
        began = time.process_time()
        assert cancel(["length"], store.root, None) == 1
        took[runs] = (time.process_time() - began) / runs
    assert took[4000] < 3 * took[500], took


def test_a_cancel_of_many_runs_says_that_it_is_reading_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for runs, beginning in ((499, "nothing is cancelled"), (500, "looking at 500 runs\nnothing is cancelled")):
        store = Store(tmp_path / str(runs))
        handed_over(store, runs, scheduler="local")
        cancel(["length"], store.root, None)
        assert capsys.readouterr().out.startswith(beginning)


def handed_over(store: Store, runs: int, scheduler: str = "slurm", launcher: Mapping[str, Any] | None = None) -> None:
    """Writes a sweep as a launch leaves it: four runs in each job, none of which has begun. `launcher`: the launch, if it still
    runs."""
    ids = [f"{number:016x}" for number in range(runs)]
    points = [{"run": run, "values": {}, "evaluations": {}} for run in ids]
    parts = [{"runs": ids[i : i + 4], "evaluations": [{"split": "val"}, {"split": "test"}]} for i in range(0, runs, 4)]
    launcher = launcher or this_process() | {"pid": 2**22 + 1}  # higher than any pid
    batch = {"sweeps": {"length": ids}, "jobs": [[part] for part in parts], "job": {"scheduler": scheduler}}
    batch |= {"job_name": "mmprompt-1-abc", "launcher": launcher, "user": who(), "slurm_cluster": None}
    batch |= {"overrides": [], "cluster": {"mem_gb": 2.0, "time_min": 60}, "store": str(store.root)}
    (store.jobs / "1" / "0").mkdir(parents=True)
    (store.jobs / "1" / "batch.json").write_text(json.dumps(batch))
    (store.jobs / "1" / "submitted.json").write_text(json.dumps({"waiting": 0, "why": ""}))
    manifest = {"command": "make sweep-length", "tasks": {"micro_vqa": {"metric": "vqa_accuracy"}}}
    store.manifest("length").parent.mkdir()
    store.manifest("length").write_text(json.dumps(manifest | {"points": points, "axes": {}}))


@given(st.sets(st.tuples(st.integers(1, 3), st.none() | st.integers(0, 30))))
def test_ranges_name_exactly_the_given_jobs(jobs: set[tuple[int, int | None]]) -> None:
    alone = {array for array, task in jobs if task is None}
    given_ids = {f"{a}_{t}" for a, t in jobs if t is not None and a not in alone} | {str(a) for a in alone}
    assert {job for text in ranges(sorted(given_ids)) for job in expanded(text)} == given_ids


def expanded(text: str) -> list[str]:
    """The ids of the jobs that scancel takes a range for."""
    array, _, tasks = text.partition("_[")
    if not tasks:
        return [array]
    ends = [part.split("-") for part in tasks.removesuffix("]").split(",")]
    return [f"{array}_{task}" for end in ends for task in range(int(end[0]), int(end[-1]) + 1)]
