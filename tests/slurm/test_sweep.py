"""Sweeps on the real test cluster: they are submitted and followed, diverge or are refused, and run the code as it was at launch.

The stories run concurrently, each on a sweep of its own.
"""

from __future__ import annotations

import shutil

import pytest
from attempts import error_of
from faults import HELD, assert_same
from lab import Lab, beside

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.wandb_record import read_record


@beside
def test_a_sweep_of_three_runs_goes_through_slurm_once_and_the_same_command_follows_it(lab: Lab) -> None:
    sweep = lab.sweep("optim.steps=20", seeds=(1, 2, 3))
    output = sweep.launch("cluster.runs_per_job=2")
    assert "3 runs in 2 SLURM jobs of up to 2" in output and "submitted as SLURM job" in output
    [batch] = sweep.batches()
    code, output = sweep.run("plan", "cluster=auto")  # sinfo answers
    assert code == 0 and "to do" not in output, output
    assert "all 3 runs are done" in sweep.launch("--wait")
    assert sweep.batches() == [batch]  # nothing was submitted again
    for seed in sweep.seeds:
        [attempt] = sweep[seed].attempts()
        assert attempt.job["scheduler"] == "slurm" and attempt.job["batch"] == "1"
        assert sweep.accounts(attempt.job["job"]) == ["COMPLETED"]
        assert (sweep.store.root / attempt.job["log"]).is_file()
        assert sweep[seed].id in [run for parts in batch["jobs"] for part in parts for run in part["runs"]]
    assert {row["state"] for row in sweep.rows().values()} == {"done"}
    assert "all 3 runs are done already" in sweep.launch()


@pytest.mark.long
@beside
def test_a_run_that_diverges_is_tried_once_is_shown_as_diverged_and_does_not_stop_the_others(lab: Lab) -> None:
    sweep = lab.sweep("optim.steps=20")
    code, output = sweep.run("launch", "optim.lr=1e30,0.1", "cluster.runs_per_job=2", "--wait")
    assert code == 0 and "1 run diverged" in output and "the loss is nan" in output, output
    states = {row["values"]["optim.lr"]: row for row in sweep.rows().values()}
    assert states[0.1]["state"] == "done"
    assert (states[1e30]["state"], states[1e30]["cause"]) == ("diverged", None)
    [attempt] = sweep.store.run(states[1e30]["run"]).attempts()
    assert "the loss is nan" in (error_of(attempt) or "")
    assert sweep.accounts(attempt.job["job"]) == ["FAILED"]  # the job that both runs share
    [record] = attempt.path.glob("wandb/*/*.wandb")
    assert read_record(record, history=False).state == "failed"
    code, output = sweep.run("status")
    assert code == 0 and "2 runs: 1 done, 1 diverged; 100 % done" in output, output


@beside
def test_a_submission_that_sbatch_refuses_ends_in_one_sentence(lab: Lab) -> None:
    sweep = lab.sweep()
    code, output = sweep.run("launch", "cluster.partition=nowhere")
    assert code == 2 and "partition" in output and "Traceback" not in output, output


@pytest.mark.long
@beside
def test_edits_of_the_code_after_launch_do_not_reach_queued_jobs(lab: Lab) -> None:
    clone = lab.folder / "clone"
    for part in ("mmprompt", "sweeps", "conf"):
        shutil.copytree(ROOT / part, clone / part, ignore=shutil.ignore_patterns("__pycache__", "mine.yaml"))
    sweep = lab.sweep(root=clone)
    sweep.launch(HELD)
    job = sweep.job()
    for file in [*clone.glob("mmprompt/*.py"), *clone.glob("sweeps/*.py")]:
        file.write_text("raise SystemExit('edited')\n")
    shutil.rmtree(clone / "conf")
    sweep.let_go(job)
    assert sweep.done()["attempt"] == 1
    assert_same(sweep[1], lab.undisturbed(1))
