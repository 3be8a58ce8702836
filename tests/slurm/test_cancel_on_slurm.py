"""`cancel` on the real cluster: it cancels exactly the jobs of the named runs."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
from attempts import error_of
from faults import Sweep, release, until
from lab import Lab, beside
from patience import ended, printed_by

from mmprompt.runs.identity import evaluation_id

HELD = ["cluster.sbatch={hold: true}"]  # the jobs wait for ever and use no CPU time


def waiting(sweep: Sweep) -> list[int]:
    """The seeds of the runs that a job in SLURM's queue holds."""
    held = sweep.queue()
    return [seed for seed in sweep.seeds if sweep[seed].id in held]


@beside
def test_one_pending_task_of_an_array_is_cancelled_alone_and_then_the_others(lab: Lab) -> None:
    sweep = lab.sweep_here(*HELD, seeds=(1, 2, 3))
    sweep.launch()
    code, output = sweep.run("cancel", sweep[2].id[:9])
    assert code == 0 and "1 of 1 run cancelled" in output, output
    assert waiting(sweep) == [1, 3]
    code, output = sweep.run("cancel", "--state", "running")
    assert code == 0 and "none is running" in output, output
    assert waiting(sweep) == [1, 3]
    code, output = sweep.run("cancel", "length", "--state", "queued")
    assert code == 0 and "2 of 2 runs cancelled" in output, output
    assert waiting(sweep) == []


@pytest.mark.long
@beside
def test_a_job_of_several_runs_is_not_cancelled_while_it_holds_a_run_that_was_not_named(lab: Lab) -> None:
    sweep = lab.sweep_here(*HELD, "cluster.runs_per_job=3", seeds=(1, 2, 3))
    sweep.launch()
    code, output = sweep.run("cancel", sweep[1].id, sweep[2].id)
    assert code == 1 and f"2 runs stay: job {sweep.job()} also holds {sweep[3].id}" in output, output
    assert waiting(sweep) == [1, 2, 3]
    made = {split: evaluation_id(sweep[3].id, {"split": split}) for split in ("val", "test")}
    # The run is done by another job, so this job will skip it.
    (sweep[3].path / "result.json").write_text(json.dumps({"attempt": 1, "metrics": {}, "evaluations": made}))
    code, output = sweep.run("cancel", sweep[1].id, sweep[2].id)
    assert code == 0 and "2 of 2 runs cancelled" in output, output
    assert waiting(sweep) == []


@beside
def test_without_information_from_slurm_nothing_is_cancelled(lab: Lab) -> None:
    sweep = lab.sweep_here(*HELD, seeds=(1, 2, 3))
    sweep.launch()
    sweep.environment = {"PATH": "/nowhere"}
    try:
        code, output = sweep.run("cancel", "length")
    finally:
        sweep.environment = {}
    assert code == 1 and "3 runs stay: SLURM gives no information" in output and "nothing is cancelled" in output
    assert waiting(sweep) == [1, 2, 3]


@beside
def test_many_jobs_are_cancelled_by_one_command_and_those_that_slurm_refuses_are_named(lab: Lab) -> None:
    sweep = lab.sweep_here(*HELD, seeds=(1, 2, 3))
    sweep.launch()
    jobs = [job for some in sweep.queue().values() for job, _ in some]
    calls, wrapper = lab.folder / "calls", lab.folder / "bin" / "scancel"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("scancel")} "$@"\n')
    wrapper.chmod(0o755)

    def cancelled(*ids: str) -> str:
        code = f"from sweeps.jobs import slurm; print(slurm.cancel({ids}))"
        env = sweep.env | {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert cancelled(*jobs, "no-id").startswith("[('no-id', 'scancel fails (")
    assert calls.read_text().splitlines()[0].split() == [*jobs, "no-id"]
    until(lambda: not waiting(sweep), "the jobs are gone")
    calls.unlink()
    assert cancelled(*jobs) == "[]\n" and len(calls.read_text().splitlines()) == 1  # jobs that are gone are no error


@beside
def test_another_users_jobs_are_named_and_left_alone(lab: Lab) -> None:
    if os.getuid() != 0:
        pytest.skip("only root submits in another's name")
    sweep = lab.sweep_here("cluster.sbatch={hold: true, uid: games}", seeds=(1, 2, 3))
    sweep.cluster.add_user("games")
    try:
        sweep.launch()
        code, output = sweep.run("cancel", "length")
        assert code == 1 and "3 runs stay: their jobs are games's" in output and "nothing is cancelled" in output
        assert waiting(sweep) == [1, 2, 3]
    finally:
        sweep.close()
        sweep.cluster.remove_user("games")


@pytest.mark.long
@beside
def test_jobs_that_a_launch_is_just_submitting_are_cancelled_after_their_submission(lab: Lab) -> None:
    sweep = lab.sweep_here(*HELD, seeds=(1, 2, 3))
    slow, go = lab.folder / "bin" / "sbatch", lab.folder / "go"
    slow.parent.mkdir(parents=True)
    slow.write_text(f'#!/bin/sh\nwhile [ ! -e {go} ]; do sleep 0.1; done\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    sweep.environment = {"PATH": f"{slow.parent}:{os.environ['PATH']}"}
    launch = sweep.start("launch")
    until(sweep.batches, "the launch says what it will submit", launch)
    cancel = sweep.start("cancel", "length")
    assert cancel.stdout is not None and cancel.stdout.readline() == "a launch is submitting; waiting for it\n"
    go.touch()
    output = printed_by(cancel)
    assert cancel.returncode == 0 and "3 of 3 runs cancelled" in output, output
    assert ended(launch) == 0 and waiting(sweep) == []


@pytest.mark.long
@beside
def test_cancel_of_a_state_cancels_only_runs_in_it_and_a_cancelled_run_later_resumes_from_its_checkpoint(
    lab: Lab,
) -> None:
    sweep = lab.sweep_here("cluster.max_parallel=1", seeds=(1, 2))
    sweep.launch()
    attempt = sweep.hold(1)
    code, output = sweep.run("cancel", "length", "--state", "queued")
    assert code == 0 and "1 of 1 run cancelled" in output, output
    assert waiting(sweep) == [1] and attempt.is_running()
    code, output = sweep.run("cancel", "--state", "running")
    release(attempt)
    assert code == 0 and "1 of 1 run cancelled" in output, output
    until(lambda: error_of(attempt), "the attempt says why it ended")
    assert sweep.errors(1) == ["interrupted: told to end by SIGTERM"]
    until(lambda: not waiting(sweep), "the job is gone")
    time.sleep(1)
    assert waiting(sweep) == []  # and the job has not been requeued
    sweep.launch("--limit", "1")
    assert sweep.done(1)["resumed_from"]["attempt"] == 1
