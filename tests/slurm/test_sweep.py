"""A sweep on the real test cluster: submitted, attached to, followed to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mmprompt.run import ROOT, Store
from sweeps.batch import batches

SWEEP = ["length", "task=micro_grounding", "prompt.length=4", "seed=1,2,3", "optim.steps=2"]
SWEEP += ["optim.batch_size=4", "optim.micro_batch=4", "task.data.train=8", "task.data.val=8", "task.data.test=8"]
SWEEP += ["tracking=disabled", "cluster.mem_gb=1", "cluster.runs_per_job=2"]


def sweeps(folder: Path, verb: str, *arguments: str) -> tuple[int, str]:
    """`python -m sweeps` in this folder, as a user calls it."""
    done = subprocess.run(
        [sys.executable, "-m", "sweeps", verb, *SWEEP, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout


def test_a_sweep_of_three_runs_goes_through_slurm_once_and_the_same_command_follows_it(
    slurm: Path, tmp_path: Path
) -> None:
    code, output = sweeps(tmp_path, "launch", "cluster=slurm")
    assert code == 0 and "3 runs in 2 SLURM jobs of up to 2" in output and "submitted as SLURM job" in output
    store = Store(tmp_path / "runs")
    [batch] = batches(store)
    _, output = sweeps(tmp_path, "plan")  # without cluster=: sinfo answers
    assert "to do" not in output

    code, output = sweeps(tmp_path, "launch", "--wait")
    assert code == 0 and "all 3 runs are done" in output
    assert batches(store) == [batch]  # nothing was submitted again
    points = json.loads(store.manifest("length").read_text())["points"]
    for point in points:
        [attempt] = store.run(point["run"]).attempts()
        assert attempt.job["scheduler"] == "slurm" and attempt.job["batch"] == batch.id
        assert attempt.job["scheduler_job"] is not None
        assert point["run"] in [run for job in batch.jobs for run in job]

    code, output = sweeps(tmp_path, "launch", "cluster=slurm")
    assert code == 0 and "all 3 runs are done already" in output


def test_a_failed_run_fails_its_slurm_job(slurm: Path, tmp_path: Path) -> None:
    code, output = sweeps(tmp_path, "launch", "cluster=slurm", "seed=1", "optim.lr=0.1,1e30", "--wait")
    assert code == 1 and "1 run failed" in output and "the loss is nan" in output
    [batch] = batches(Store(tmp_path / "runs"))
    asked = ["sacct", "-n", "-X", "-P", "-o", "State", f"--name={batch.job_name}"]
    deadline, states = time.monotonic() + 60, ["RUNNING"]
    while (not states or set(states) & {"RUNNING", "COMPLETING", "PENDING"}) and time.monotonic() < deadline:
        time.sleep(0.5)  # the accounting is behind
        states = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    assert states == ["FAILED"]  # both runs were in one job


def test_what_sbatch_refuses_is_one_sentence(slurm: Path, tmp_path: Path) -> None:
    code, output = sweeps(tmp_path, "launch", "cluster=slurm", "cluster.partition=nowhere")
    assert code == 2 and "sbatch refused the jobs: " in output and "partition" in output and "Traceback" not in output


def test_a_job_that_slurm_requeues_goes_on_from_its_checkpoint_and_is_not_submitted_twice(
    slurm: Path, tmp_path: Path
) -> None:
    settings = ("cluster=slurm", "seed=1", "optim.steps=400", "cluster.checkpoint_every=2")
    assert sweeps(tmp_path, "launch", *settings)[0] == 0
    store = Store(tmp_path / "runs")
    [batch] = batches(store)
    run = store.run(batch.jobs[0][0])
    deadline = time.monotonic() + 60
    while not (run.attempts() and run.attempts()[0].checkpoint_steps):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    job = run.attempts()[0].job["scheduler_job"]
    subprocess.run(["scontrol", "requeue", job], check=True)
    while run.attempts()[0].error is None and len(run.attempts()) == 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, output = sweeps(tmp_path, "launch", *settings, "--wait")
    assert code == 0 and "all 1 runs are done" in output, output
    assert batches(store) == [batch]
    assert [attempt.job["scheduler_job"] for attempt in run.attempts()] == [job, job]
    assert run.attempts()[0].error == "interrupted: told to end by SIGTERM"
    resumed = json.loads(run.result_file.read_text())["resumed_from"]
    assert resumed["attempt"] == 1 and resumed["step"] >= 2
