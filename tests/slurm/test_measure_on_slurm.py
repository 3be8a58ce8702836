"""A measurement of a sweep's rows, as a SLURM job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults import Sweep, until
from lab import Lab, beside
from patience import printed_by


def measure(sweep: Sweep, *arguments: str) -> tuple[int, str]:
    command = sweep.command("plan", *arguments)
    process = sweep.started(["measure" if word == "plan" else word for word in command])
    printed: str = printed_by(process)
    return process.returncode, printed


def measurements(sweep: Sweep) -> dict[Path, dict[str, Any]]:
    return {file: json.loads(file.read_text()) for file in sweep.store.costs("length").glob("*")}


@pytest.mark.long
@beside
def test_a_job_measures_and_while_a_measurement_waits_other_verbs_work(lab: Lab) -> None:
    sweep = lab.sweep("optim.steps=20")
    sweep.launch("--wait")
    code, output = measure(sweep, "--rounds", "1", "--wait")
    assert code == 0 and "submitted as SLURM job" in output and "s per 100 answers" in output, output
    [(file, content)] = measurements(sweep).items()
    batch = sweep.batches()[-1]
    assert file.name == "1.json" and content["batch"] == batch["job"]["batch"] == "2"
    assert [row["run"] for row in content["rows"]] == [sweep[1].id]
    # A job that no node takes: the call returns at once, other verbs work, and the command that it prints cancels the job.
    code, output = measure(sweep, "--rounds", "1", "cluster.sbatch={begin: now+1hour}")
    assert code == 0 and "`scancel " in output, output
    job = output.split("`scancel ")[1].split("`")[0]
    assert {row["state"] for row in sweep.rows().values()} == {"done"}
    code, output = sweep.run("cancel", "length")
    assert code == 0 and "nothing is cancelled" in output, output
    assert sweep.run("clean")[0] == 0 and "all 1 runs are done already" in sweep.launch()
    assert sweep.slurm("squeue", "-h", "-j", job, "-o", "%T").split() == ["PENDING"]
    sweep.slurm("scancel", job)
    until(lambda: not sweep.slurm("squeue", "-h", "-o", "%i %T").count(f"{job} PENDING"), "it is gone")
    assert len(measurements(sweep)) == 1
