"""A sweep whose processes are killed at random moments, and that is launched again, gives the tables of an undisturbed one.

Every launch is `python -m sweeps launch` on local processes. MMPROMPT_LONG=1 trains more runs and kills ten times as often.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from attempts import error_of
from groups import LONG
from launcher import Launcher
from outcome import tables
from patience import ended, kill, printed_by, until

from mmprompt.runs.run_folder import RunFolder
from sweeps.jobs.batch import batches

RUNS, SEEDS = (6, "seed=1,2,3") if LONG else (4, "seed=1,2")
SWEEP = (SEEDS, "prompt.length=4,6", "optim.steps=12", "cluster.checkpoint_every=2", "tracking=offline")


def written(launcher: Launcher) -> dict[str, str]:
    """The tables of the sweep, without what may differ between two executions (`outcome`)."""
    found = tables(launcher.store, "length", launcher.folder / "out")
    assert found
    return found


def runs(launcher: Launcher) -> list[RunFolder]:
    return [launcher.store.run(point["run"]) for point in launcher.manifest()["points"]]


def workers(launcher: Launcher) -> list[psutil.Process]:
    found = []
    for process in launcher.processes():
        try:
            if "sweeps.node" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def kill_driver(launcher: Launcher, process: subprocess.Popen[str], chance: random.Random) -> None:
    process.kill()


def kill_worker(launcher: Launcher, process: subprocess.Popen[str], chance: random.Random) -> None:
    there = workers(launcher)
    if there:
        kill([chance.choice(there)])


def interrupt(launcher: Launcher, process: subprocess.Popen[str], chance: random.Random) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does


@pytest.mark.long
def test_a_sweep_that_is_killed_at_random_moments_gives_the_tables_of_an_undisturbed_one(
    launcher: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> None:
    undisturbed = Launcher(tmp_path_factory.mktemp("undisturbed"))
    began = time.monotonic()
    code, output = undisturbed.run("launch", *SWEEP)
    assert code == 0 and f"all {RUNS} runs are done" in output
    took = time.monotonic() - began

    chance, ends = random.Random(3), []
    for disturb in [kill_driver, kill_worker, interrupt, kill_driver] * (10 if LONG else 1):
        process = launcher.start("launch", *SWEEP)
        time.sleep(chance.uniform(0.1, 0.8) * took)
        if process.poll() is None:
            disturb(launcher, process, chance)
        ends.append((disturb.__name__, ended(process)))  # if the launch itself was killed, its workers go on
        if LONG and launcher.store.manifest("length").exists() and all(run.result() for run in runs(launcher)):
            for run in chance.sample(runs(launcher), 4):
                run.result_file.unlink()  # so that something is left to train
    code, output = launcher.run("launch", *SWEEP)
    assert code == 0 and f"all {RUNS} runs are done" in output, (ends, output)
    until(
        lambda: launcher.processes() == [], "no process is left"
    )  # a worker of the last killed launch may notice only now that it has to end

    assert written(launcher) == written(undisturbed)
    for run, other in zip(runs(launcher), runs(undisturbed), strict=True):
        result, expected = run.result() or {}, other.result() or {}
        assert result["metrics"] == expected["metrics"]
        assert run.weights_file.read_bytes() == other.weights_file.read_bytes()


@pytest.mark.long
def test_a_worker_whose_launch_was_killed_ends_after_its_run_and_the_next_launch_waits_for_it(
    launcher: Launcher,
) -> None:
    sweep = ("seed=1,2,3", "optim.steps=40", "cluster.max_parallel=1")
    first = launcher.start("launch", *sweep)
    worker = launcher.worker()
    worker.suspend()  # it stays at the first run until the test has looked
    first.kill()
    first.wait()
    second = launcher.start("launch", *sweep)
    assert second.stdout
    lines = [next(second.stdout) for _ in range(3)]
    assert lines[-1] == "1 process of another launch is at work here; waiting for it\n", lines
    time.sleep(2)
    assert worker.is_running() and len(workers(launcher)) == 1
    worker.resume()
    said = printed_by(second)
    assert second.returncode == 0 and "all 3 runs are done" in said, said
    assert not worker.is_running()
    assert [len(jobs) for jobs in launcher.attempts().values()] == [1, 1, 1]
    old, new = (batch.id for batch in batches(launcher.store))
    assert [jobs[0]["batch"] for jobs in launcher.attempts().values()] == [old, new, new]
    [log] = (launcher.store.jobs / old).glob("*_log.out")
    assert "this process ends here" in log.read_text()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_launch_that_ends_while_it_starts_a_worker_leaves_no_worker_behind(
    launcher: Launcher, ending: signal.Signals
) -> None:
    process = launcher.start("launch", "seed=1,2,3", "optim.steps=100000", "cluster.max_parallel=1")
    until(lambda: workers(launcher), "a worker is there", process)  # it has only been forked
    process.send_signal(ending)
    assert ended(process) == (-ending if ending is signal.SIGKILL else 130)
    if ending is signal.SIGKILL:
        until(lambda: not workers(launcher), "no worker is left")
    assert workers(launcher) == []
    assert all(jobs == [] for jobs in launcher.attempts().values())


@pytest.mark.long
def test_nohup_keeps_a_launch_alive_when_its_terminal_closes(launcher: Launcher) -> None:
    launcher.nohup = True
    process = launcher.start("launch", "seed=1", "optim.steps=2")
    launcher.worker()
    process.send_signal(signal.SIGHUP)
    said = printed_by(process)
    assert process.returncode == 0 and "all 1 runs are done" in said


@pytest.mark.long
def test_a_run_interrupted_in_one_launch_is_resumed_by_the_other_and_not_counted_as_failed(launcher: Launcher) -> None:
    """Of two launches, the one that trains the run gets Ctrl-C."""
    sweep = ("seed=1", "optim.steps=200", "cluster.max_parallel=1", "cluster.checkpoint_every=2")
    first = launcher.start("launch", *sweep)
    worker = launcher.worker()
    until(lambda: runs(launcher)[0].attempts()[0].checkpoint_steps, "the run leaves a checkpoint", first)
    worker.suspend()
    second = launcher.start("launch", *sweep)
    until(lambda: len(batches(launcher.store)) == 2, "the second launch is there", second)
    worker.resume()
    os.killpg(first.pid, signal.SIGINT)
    printed_by(first)
    said = printed_by(second)
    assert (first.returncode, second.returncode) == (130, 0), said
    [run] = runs(launcher)
    assert [error_of(attempt) for attempt in run.attempts()] == ["interrupted: told to end by SIGTERM\n", None]
    assert json.loads(run.result_file.read_text())["resumed_from"]["attempt"] == 1
