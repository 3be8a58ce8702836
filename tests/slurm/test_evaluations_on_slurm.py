"""Evaluations of finished runs in SLURM jobs: nothing is trained again; an interrupted job loses only its current evaluation."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from faults import Sweep, until
from lab import Lab, beside

from mmprompt.runs.attempt import Attempt

BUDGETS = "attack.epsilon=" + ",".join(f"0.{i:02}" for i in range(1, 13))
MANY = (BUDGETS, "evaluation.splits=[test]")


def made(sweep: Sweep) -> dict[Path, tuple[int, int]]:
    """The files of evaluations that later attempts have made, with inode and time."""
    files = sweep[1].evaluations.glob("[!.]*.json")
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def evaluating(lab: Lab) -> tuple[Sweep, Attempt]:
    """A finished run, and an attempt that is stopped in the middle of its evaluations."""
    sweep = lab.sweep("optim.steps=20", "task.data.test=100")
    sweep.launch("--wait")
    sweep.launch(*MANY)
    until(lambda: len(made(sweep)) >= 2, "an attempt has evaluated something", often=True)
    attempt = sweep[1].attempts()[-1]
    os.kill(attempt.job["pid"], signal.SIGSTOP)
    assert attempt.number == 2 and attempt.evaluates and 2 <= len(made(sweep)) < 12
    return sweep, attempt


@beside
def test_jobs_evaluate_finished_runs_and_train_and_evaluate_the_others(lab: Lab) -> None:
    sweep = lab.sweep("optim.steps=20")
    sweep.launch("--wait")
    published = sweep[1].result_file.read_bytes()
    sweep.seeds = (1, 2)
    code, output = sweep.run("plan", "attack.epsilon=0,0.1")
    assert code == 0 and "2 runs (1 of them to evaluate) in 2 SLURM jobs" in output, output
    output = sweep.launch("attack.epsilon=0,0.1", "--wait")
    assert "2 runs: 1 to evaluate, 1 to do" in output and "all 2 runs are done" in output
    works = [[attempt.job["work"] for attempt in sweep[seed].attempts()] for seed in sweep.seeds]
    assert works == [["train", "evaluate"], ["train"]] and sweep[1].result_file.read_bytes() == published
    for point in sweep.manifest["points"]:
        for evaluation in point["evaluations"].values():
            assert sweep.store.run(point["run"]).evaluation_file(evaluation).is_file()
    for seed in sweep.seeds:
        assert sweep.accounts(sweep[seed].attempts()[-1].job["job"]) == ["COMPLETED"]
    assert {row["state"] for row in sweep.rows().values()} == {"done"}


@pytest.mark.long
@beside
def test_a_job_that_is_requeued_while_it_evaluates_makes_only_the_missing_evaluations(lab: Lab) -> None:
    sweep, attempt = evaluating(lab)
    row = sweep.row()
    assert (row["state"], row["evaluating"]) == ("running", True) and 0 < row["step"] < row["steps"] == 12 * 100
    before = made(sweep)
    sweep.slurm("scontrol", "requeue", attempt.job["job"])
    os.kill(attempt.job["pid"], signal.SIGCONT)
    until(lambda: len(made(sweep)) == 12, "the job makes the others")
    assert before == {file: then for file, then in made(sweep).items() if file in before}
    assert "all 1 runs are done" in sweep.launch(*MANY, "--wait")
    assert len(sweep.batches()) == 2 and sweep[1].attempts()[-1].has_ended
    assert sweep.errors() == [None, "interrupted: told to end by SIGTERM", None]


@pytest.mark.long
@beside
def test_after_a_job_was_killed_while_it_evaluated_the_next_launch_makes_the_missing_evaluations(lab: Lab) -> None:
    sweep, attempt = evaluating(lab)
    before = made(sweep)
    os.kill(attempt.job["pid"], signal.SIGKILL)
    row = until(lambda: (row := sweep.row())["cause"] and row, "status says that it was killed")
    assert (row["state"], row["cause"], row["evaluating"]) == ("to evaluate", "killed", True)
    output = sweep.launch(*MANY, "--wait")
    assert "1 run: 1 to evaluate" in output and "all 1 runs are done" in output
    assert len(made(sweep)) == 12 and len(sweep[1].attempts()) == 3
    assert before == {file: then for file, then in made(sweep).items() if file in before}
