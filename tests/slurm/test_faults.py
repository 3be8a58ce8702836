"""Faults of running and waiting jobs, caused by SLURM, the machine or users: after each, the runs end with the right records.

The stories run concurrently, the longest first, each on a sweep of its own. Stories that break a node use gn3 and gn4.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
import socket

import pytest
from attempts import error_of
from faults import HELD, Sweep, assert_same, damage, is_alive, litter, release, slow, step_daemon, told, until
from groups import LONG
from lab import Lab, beside
from patience import printed_by

from mmprompt.runs.signals import warning

TOLD = "interrupted: told to end by SIGTERM"


@pytest.mark.long
@beside
def test_a_run_longer_than_the_time_limit_is_completed_by_one_job_that_requeues_itself(lab: Lab) -> None:
    limits, minutes = (4, 2) if LONG else (2, 60)
    sweep = lab.sweep(f"cluster.time_min={minutes}")
    sweep.launch()
    job = sweep.job()
    for number in range(1, limits + 1):
        attempt = sweep.hold(1, number)
        if not LONG:  # an administrator shortens the limit so that the warning comes at once
            set_limit(sweep, job, (elapsed(sweep, job) + warning(minutes)) // 60 + 1)
        until(lambda attempt=attempt: told(attempt) or error_of(attempt), "the attempt is told that its time is up")
        release(attempt)
        until(lambda attempt=attempt: error_of(attempt), "the attempt ends")
        until(lambda: sweep.waits_again(job), "SLURM has the job in its queue again")
        set_limit(sweep, job, minutes if number < limits else 60)  # the last job has enough time even on a slow machine
    result = sweep.done()
    assert result["attempt"] == limits + 1 and result["resumed_from"]["attempt"] == limits
    *interrupted, last = sweep.errors()
    assert last is None and all(str(error).startswith("interrupted: the time limit") for error in interrupted)
    assert sweep.accounts(job) == ["REQUEUED"] * limits + ["COMPLETED"]
    assert len(sweep.batches()) == 1
    assert_same(sweep[1], lab.undisturbed(1))


def elapsed(sweep: Sweep, job: str) -> int:
    """Seconds since a job began."""
    *hours, minutes, seconds = map(int, sweep.slurm("squeue", "-h", "-j", job, "-o", "%M").strip().split(":"))
    return 3600 * sum(hours) + 60 * minutes + seconds


def set_limit(sweep: Sweep, job: str, minutes: int) -> None:
    sweep.change(job, f"TimeLimit={minutes}")


@pytest.mark.long
@beside
def test_a_run_whose_node_is_lost_resumes_on_another_and_its_surviving_process_changes_no_result(lab: Lab) -> None:
    with lab.alone("gn4"):
        sweep = lab.sweep_on("gn4")
        sweep.launch()
        first, job = sweep.hold(), sweep.job()
        try:
            lab.cluster.kill("slurmd.gn4")
            until(lambda: sweep.waits_again(job), "SLURM has lost the node and requeues the job")
            row = sweep.row()
            assert row["state"] in ("queued", "running")
            sweep.change(job, "ExcNodeList=gn[3-4]")
            second = sweep.hold(1, 2) if first.job["host"] != socket.gethostname() else first
            assert is_alive(first)
            with slow(first, 0.5), slow(second, 0.5):  # both copies work at the same time
                result = sweep.done()
            until(lambda: not is_alive(first) and not is_alive(second), "both copies have ended")
        finally:
            lab.cluster.start("slurmd.gn4")
    assert sweep.done() == result and result["attempt"] in (1, 2)
    assert len(list(sweep[1].path.rglob("weights.safetensors"))) == 1
    assert "all 1 runs are done already" in sweep.launch() and len(sweep.batches()) == 1
    assert sweep.accounts(job)[0] == "NODE_FAIL"
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_requeued_job_resumes_from_its_checkpoint_and_is_not_submitted_again(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch()
    attempt, job = sweep.hold(), sweep.job()
    sweep.slurm("scontrol", "requeue", job)
    release(attempt)
    until(lambda: error_of(attempt), "the attempt says why it ended")
    assert sweep.row()["state"] in ("queued", "running", "done")
    result = sweep.done()
    assert result["attempt"] == 2 and result["resumed_from"]["attempt"] == 1
    assert sweep.errors() == [TOLD, None]
    assert sweep.accounts(job) == ["REQUEUED", "COMPLETED"]
    assert "all 1 runs are done already" in sweep.launch() and len(sweep.batches()) == 1
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_preempted_job_is_requeued_and_resumes_from_its_checkpoint(lab: Lab) -> None:
    with lab.alone("gn3"):
        sweep = lab.sweep_on("gn3")
        sweep.launch()
        attempt, job = sweep.hold(), sweep.job()
        sweep.slurm("sbatch", "-p", "high", "-w", "gn3", "-N", "1", "-n", "4", "--output=/dev/null", "--wrap=sleep 3")
        until(lambda: "PreemptTime=None" not in sweep.slurm("scontrol", "show", "job", job), "SLURM preempts the job")
        release(attempt)
        result = sweep.done()
    assert result["attempt"] == 2 and result["resumed_from"]["attempt"] == 1
    assert sweep.errors() == [TOLD, None]
    preempted, last = sweep.accounts(job)  # the first execution may have requeued itself before SLURM killed it
    assert preempted in ("PREEMPTED", "REQUEUED") and last == "COMPLETED"
    assert len(sweep.batches()) == 1
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_cancelled_job_is_submitted_again_by_the_next_launch_but_not_by_one_that_waits_for_it(lab: Lab) -> None:
    sweep = lab.sweep()
    waiting = sweep.start("launch", "--wait")
    until(lambda: sweep.batches(), "the launch submits", waiting)
    attempt, job = sweep.hold(), sweep.job()
    sweep.slurm("scancel", job)
    release(attempt)
    output = printed_by(waiting)
    assert waiting.returncode == 1 and "cancelled" in output, output
    assert sweep.row()["state"] == "to do" and sweep.row()["cause"] == "cancelled"
    assert sweep.errors() == [TOLD] and sweep.accounts(job) == ["CANCELLED by 0"]
    assert len(sweep.batches()) == 1
    sweep.launch()
    assert sweep.done()["resumed_from"]["attempt"] == 1 and sweep.errors() == [TOLD, None]
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_if_one_task_of_an_array_is_cancelled_the_others_go_on_and_only_it_is_submitted_again(lab: Lab) -> None:
    sweep = lab.sweep(seeds=(1, 2, 3))
    sweep.launch()
    attempts = sweep.hold_all(sweep.seeds)
    job = sweep.job(2)
    assert "_" in job and len({sweep.job(seed).split("_")[0] for seed in sweep.seeds}) == 1
    sweep.slurm("scancel", job)
    for attempt in attempts:
        release(attempt)
    for seed in (1, 3):
        assert sweep.done(seed)["attempt"] == 1
    assert sweep.accounts(job) == ["CANCELLED by 0"]
    rows = sweep.rows()
    assert [rows[sweep[seed].id]["state"] for seed in sweep.seeds] == ["done", "to do", "done"]
    sweep.launch()
    assert [[run for part in parts for run in part["runs"]] for parts in sweep.batches()[1]["jobs"]] == [[sweep[2].id]]
    assert sweep.done(2)["attempt"] == 2
    for seed in sweep.seeds:
        assert_same(sweep[seed], lab.undisturbed(seed))


@pytest.mark.long
@beside
def test_a_job_that_is_cancelled_while_it_waits_leaves_no_attempt_and_its_run_is_to_do_again(lab: Lab) -> None:
    sweep = lab.sweep(seeds=(1, 2))
    sweep.launch(HELD)
    jobs = [sweep.job(seed) for seed in sweep.seeds]
    assert [row["state"] for row in sweep.rows().values()] == ["queued", "queued"]
    sweep.slurm("scancel", jobs[0])
    sweep.let_go(jobs[1])
    assert sweep.done(2)["attempt"] == 1
    row = sweep.row(1)
    assert row["state"] == "to do" and row["attempt"] is None
    assert row["cause"] in (
        "cancelled",
        "not begun",
    )  # sacct does not know a task that was cancelled before it began
    sweep.launch()
    assert sweep.done(1)["attempt"] == 1 and len(sweep.batches()) == 2
    for seed in sweep.seeds:
        assert_same(sweep[seed], lab.undisturbed(seed))


@pytest.mark.long
@beside
def test_a_launch_that_waits_submits_a_run_again_whose_process_was_killed(lab: Lab) -> None:
    sweep = lab.sweep()
    waiting = sweep.start("launch", "--wait")
    until(lambda: sweep.batches(), "the launch submits", waiting)
    attempt, job = sweep.hold(), sweep.job()
    os.kill(attempt.job["pid"], signal.SIGKILL)
    assert sweep.accounts(job) == ["FAILED"]
    output = printed_by(waiting)
    assert waiting.returncode == 0 and "all 1 runs are done" in output, output
    assert sweep.done()["resumed_from"]["attempt"] == 1
    assert len(sweep.batches()) == 2 and len(sweep[1].attempts()) == 2
    assert_same(sweep[1], lab.undisturbed(1))


@beside
def test_a_killed_run_is_to_do_and_the_next_launch_resumes_from_the_checkpoint_before_a_damaged_one(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch()
    attempt, job = sweep.hold(), sweep.job()
    with slow(attempt, 0.3):
        until(lambda: len(attempt.checkpoint_steps) == 2, "there are two checkpoints")
    attempt = sweep.hold()
    os.kill(attempt.job["pid"], signal.SIGKILL)
    until(lambda: not sweep.word(job), "the job ends")
    *_, older, _ = attempt.checkpoint_steps  # the one before these two may not have been removed yet
    file = damage(attempt)
    row = sweep.row()
    assert row["state"] == "to do" and row["cause"] == "killed"
    sweep.launch()
    result = sweep.done()
    assert result["resumed_from"] == {"attempt": 1, "step": older}
    assert file.name in result["damaged_checkpoints"][0]
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_two_processes_that_train_one_run_publish_one_result(lab: Lab) -> None:
    """Without the daemon nothing ends the first process: SLURM gives up the job, and the process goes on."""
    sweep = lab.sweep()
    sweep.launch()
    first, job = sweep.hold(), sweep.job()
    daemon = step_daemon(first)
    assert daemon is not None
    release(first)  # the kernel would send SIGHUP to a process that is stopped when its parent dies
    daemon.kill()
    daemon.wait()
    os.kill(first.job["pid"], signal.SIGSTOP)
    sweep.slurm("scancel", job)
    until(lambda: not sweep.word(job), "SLURM gives the job up")
    assert is_alive(first) and error_of(first) is None
    sweep.launch()
    second = sweep.hold(1, 2) if first.job["host"] != socket.gethostname() else first
    with slow(first, 0.5), slow(second, 0.5):
        result = sweep.done()
    until(lambda: not is_alive(first) and not is_alive(second), "both processes have ended")
    assert sweep.done() == result
    assert len(list(sweep[1].path.rglob("weights.safetensors"))) == 1
    assert "all 1 runs are done already" in sweep.launch()
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_job_without_enough_memory_is_reported_as_such_and_succeeds_with_more(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch("cluster.mem_gb=0.1")
    job = sweep.job()
    until(lambda: not sweep.word(job), "SLURM kills the job")
    assert sweep.accounts(job)[-1] in ("FAILED", "OUT_OF_MEMORY")  # the latter with cgroups
    assert sweep.row()["cause"] == "out of memory"
    _, output = sweep.run("status")
    assert "--retry oom cluster.mem_gb=" in output, output
    sweep.launch("--retry", "oom")  # SETTINGS ask for more
    assert sweep.done() and len(sweep.batches()) == 2
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_suspended_job_counts_as_running_is_not_submitted_again_and_goes_on_when_it_is_resumed(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch()
    attempt, job = sweep.hold(), sweep.job()
    sweep.slurm("scontrol", "suspend", job)
    until(lambda: sweep.word(job) == "SUSPENDED", "SLURM has suspended the job")
    assert sweep.row()["state"] == "running"
    sweep.launch()
    assert len(sweep.batches()) == 1
    sweep.slurm("scontrol", "resume", job)
    release(attempt)
    assert sweep.done()["attempt"] == 1 and sweep.errors() == [None]
    assert sweep.accounts(job) == ["COMPLETED"]
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_run_goes_on_undisturbed_if_its_nodes_slurmd_is_killed_and_started_again(lab: Lab) -> None:
    with lab.alone("gn3"):
        sweep = lab.sweep_on("gn3")
        sweep.launch()
        attempt, job = sweep.hold(), sweep.job()
        lab.cluster.kill("slurmd.gn3")
        lab.cluster.start("slurmd.gn3")
        release(attempt)
        assert sweep.done()["attempt"] == 1 and sweep.errors() == [None]
        assert sweep.accounts(job) == ["COMPLETED"]
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_stale_and_misleading_files_in_the_store_change_nothing(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch(HELD)
    job, folder = sweep.job(), sweep.store.jobs / "1/0"
    for name in (f"{job}_0_result.pkl", f"{job}_0_result.pkl.save_tmp", f"{job}_submitted.pkl"):
        (folder / name).write_bytes(pickle.dumps(("success", "of another life")))
    litter(sweep.store.jobs, random.Random(1))
    assert sweep.row()["state"] == "queued"
    sweep.launch()
    assert len(sweep.batches()) == 1
    sweep.let_go(job)
    assert sweep.done()["attempt"] == 1
    assert "all 1 runs are done already" in sweep.launch()
    assert_same(sweep[1], lab.undisturbed(1))


@pytest.mark.long
@beside
def test_a_batch_that_cannot_be_read_is_named_with_what_to_do_and_every_verb_goes_on_with_the_rest(lab: Lab) -> None:
    sweep = lab.sweep()
    sweep.launch(HELD)
    text = (sweep.store.jobs / "1/batch.json").read_text()
    (sweep.store.jobs / "1/batch.json").write_text(text[: len(text) // 2])
    try:
        for verb, *more, expected in (("plan", 0), ("launch", HELD, 0), ("status", 1)):
            code, output = sweep.run(str(verb), *map(str, more))
            assert code == expected and "Traceback" not in output, output
            assert re.search(r"damaged: \S+jobs/1/batch.json is cut off .*; restore it; .*squeue --me", output), output
    finally:
        (sweep.store.jobs / "1/batch.json").write_text(text)
    # The launch could not know of the first job, and submitted a second.
    assert sweep.row()["state"] == "queued" and len(sweep.queue()[sweep[1].id]) == 2
