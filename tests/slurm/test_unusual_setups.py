"""Unusual setups: odd output of SLURM, renamed jobs, wrappers, other shells and environments, odd paths, full disks.

The stories run concurrently. Most of their jobs wait in a partition that starts no job.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from faults import HELD, Sweep, assert_same, release, until
from lab import Lab, beside
from patience import printed_by

from mmprompt.runs.deployment import ROOT
from sweeps.jobs.batch import batches


def around(sweep: Sweep, name: str, before: str, after: str) -> None:
    """Puts a wrapper around one of SLURM's programs, as some sites do."""
    file = sweep.folder / "bin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'#!/bin/sh\n{before}\n{shutil.which(name)} "$@" || exit\n{after}\n')
    file.chmod(0o755)
    sweep.environment["PATH"] = f"{file.parent}:{os.environ['PATH']}"


def causes(sweep: Sweep) -> dict[int, str | None]:
    rows = sweep.rows()
    return {seed: rows[sweep[seed].id]["cause"] for seed in sweep.seeds}


def cancelled_by_hand(lab: Lab, count: int, chosen: set[int], listed: str) -> None:
    """Cancels the chosen tasks of a waiting array, and later the rest, which sacct lists as `listed` (a pattern)."""
    sweep = lab.sweep_here(HELD, seeds=range(count))
    sweep.launch()
    array = sweep.job(0).split("_")[0]
    sweep.slurm("scancel", *(f"{array}_{task}" for task in sorted(chosen)))
    of_array = ("sacct", "-n", "-X", "-P", "-o", "JobID", "-j", array)
    until(lambda: re.search(listed, sweep.slurm(*of_array)), "accounting lists the others")
    rows = sweep.rows()
    assert [rows[sweep[seed].id]["state"] for seed in sweep.seeds] == [
        "to do" if seed in chosen else "queued" for seed in sweep.seeds
    ]
    assert {seed for seed, cause in causes(sweep).items() if cause == "cancelled"} == chosen
    sweep.slurm("scancel", array)
    until(lambda: set(causes(sweep).values()) == {"cancelled"}, "status knows that all were cancelled")


@beside
def test_a_task_list_with_steps_in_accounting_is_read(lab: Lab) -> None:
    cancelled_by_hand(lab, 13, set(range(1, 13, 2)), r"_\[0-12:2%13\]")


@beside
def test_a_task_list_that_accounting_would_cut_short_is_read_completely(lab: Lab) -> None:
    cancelled_by_hand(lab, 50, {task for task in range(50) if task % 3 == 1 or task % 7 == 2}, r"\.\.\.")


@pytest.mark.long
@beside
def test_renamed_jobs_are_still_recognised_by_the_next_launch_by_cancel_and_after_their_end(
    lab: Lab,
) -> None:
    sweep = lab.sweep_here(HELD, seeds=(1, 2))
    sweep.launch()
    array = sweep.job(1).split("_")[0]
    stranger = sweep.slurm("sbatch", "--parsable", "-p", "later", "-J", "x|y", "--wrap=true").strip()
    try:
        sweep.change(array, "JobName=x|y")
        assert sweep.queue() == {}
        assert {row["job"] for row in sweep.rows().values()} == {f"{array}_0", f"{array}_1"}
        assert "2 queued" in sweep.launch() and len(sweep.batches()) == 1
        code, output = sweep.run("cancel", "length")
        assert code == 0 and "2 of 2 runs cancelled" in output, output
        until(lambda: set(causes(sweep).values()) == {"cancelled"}, "accounting knows the renamed jobs")
        assert sweep.word(stranger) == "PENDING"
    finally:
        sweep.slurm("scancel", array, stranger)


@beside
def test_output_of_a_wrapper_around_sbatch_is_not_read_as_a_job_id(lab: Lab) -> None:
    sweep = lab.sweep_here(HELD)
    around(sweep, "sbatch", "echo job 424242 of project", "echo quota: 7 of 10 jobs used")
    output = sweep.launch()
    [batch] = batches(sweep.store)
    assert batch.job_ids == {0: sweep.job()} and f"submitted as SLURM job {sweep.job()};" in output


@pytest.mark.long
@beside
def test_if_a_wrapper_around_sbatch_hides_the_job_id_no_job_is_submitted_twice(lab: Lab) -> None:
    sweep = lab.sweep_here(HELD)
    around(sweep, "sbatch", "exec 3>&1 >/dev/null", "echo Thank you >&3")
    code, output = sweep.run("launch")
    assert code == 2 and "did not say whether it took the jobs" in output and "nothing is lost" in output, output
    assert "sbatch printed no job id" in output and "manually" not in output, output
    del sweep.environment["PATH"]
    assert "1 queued" in sweep.launch() and len(sweep.batches()) == 1 and len(sweep.queue()[sweep[1].id]) == 1


@pytest.mark.long
@beside
def test_a_store_with_special_characters_in_its_path_works(lab: Lab) -> None:
    odd = Sweep(lab.folder / "50% %u %j $HOME it's (1) störe", lab.cluster, ["cluster.exclude='gn[3-4]'"])
    lab.sweeps.append(odd)
    odd.launch()
    assert odd.done()["attempt"] == 1
    [batch] = batches(odd.store)
    log = batch.log(0)
    assert log is not None and log.name.startswith(f"{batch.job_ids[0]}_0_log") and "== job" in log.read_text()
    assert "== job" in odd.run("logs", odd[1].id)[1]
    assert_same(odd[1], lab.undisturbed(1))
    several = replace(odd, seeds=(2, 3))  # an array, whose logs have other names
    several.launch("cluster.python=/no/such/python", HELD)
    jobs = [several.job(seed) for seed in (2, 3)]
    assert all("_" in job for job in jobs)
    several.let_go(jobs[0].split("_")[0])
    for job in jobs:
        until(lambda job=job: not several.word(job), "the job has ended")
    until(lambda: set(causes(several).values()) == {"not begun"}, "status says so")
    assert all("/no/such/python: No such file" in row["reason"] for row in several.rows().values() if row["cause"])


@pytest.mark.long
@beside
def test_a_shell_without_a_home_but_with_wandb_variables_changes_nothing_and_no_key_is_stored(
    lab: Lab,
) -> None:
    key = "0123456789abcdef" * 2 + "01234567"
    sweep = lab.sweep_here()
    sweep.environment = {"HOME": "/nowhere", "TMPDIR": "/nowhere", "WANDB_MODE": "disabled", "WANDB_DIR": "/nowhere"}
    sweep.environment |= {"WANDB_RUN_ID": "x", "WANDB_RESUME": "must", "WANDB_API_KEY": key, "HF_TOKEN": f"hf_{key}"}
    sweep.launch()
    result = sweep.done()
    assert (sweep[1].path / str(result["wandb"])).stat().st_size > 0
    assert_same(sweep[1], lab.undisturbed(1))
    files = [file for file in sweep.store.root.rglob("*") if file.is_file()]
    assert len(files) > 10 and not [file for file in files if key.encode() in file.read_bytes()]


@pytest.mark.long
@beside
def test_two_versions_of_the_code_that_launch_at_the_same_time_submit_each_run_once(lab: Lab) -> None:
    sweep = lab.sweep_here(HELD, seeds=(1, 2))
    other = lab.folder / "other"
    for name in ("mmprompt", "sweeps", "analysis", "conf"):
        shutil.copytree(ROOT / name, other / name, ignore=shutil.ignore_patterns("__pycache__", "mine.yaml"))
    with (other / "mmprompt/evaluation/answers.py").open("a") as file:
        file.write("# another version\n")
    launches = [one.start("launch") for one in (sweep, replace(sweep, root=other)) for _ in range(2)]
    said = [printed_by(launch) for launch in launches]
    assert [launch.returncode for launch in launches] == [0] * 4, said
    assert len(sweep.batches()) == 1 and all(len(jobs) == 1 for jobs in sweep.queue().values()), said
    assert sweep.run("cancel", "length")[0] == 0


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A separate file system with room for a launch. Skips the test if none may be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m,mode=755", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system may be mounted here, so none can be full")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@beside
def test_if_the_disk_is_full_right_after_sbatch_the_jobs_stay_queued_and_the_launch_says_so(lab: Lab) -> None:
    with small_disk(lab.folder / "disk") as disk:
        sweep = Sweep(disk, lab.cluster, [HELD], (1, 2))
        try:
            handed_over_to_a_full_disk(sweep)
        finally:
            sweep.close()  # before the disk has gone


def handed_over_to_a_full_disk(sweep: Sweep) -> None:
    around(sweep, "sbatch", "", f"cat /dev/zero > {sweep.folder}/rest 2>/dev/null; true")
    code, output = sweep.run("launch")
    [(job, _)] = sweep.queue()[sweep[1].id]
    array = job.split("_")[0]
    assert code == 2 and "jobs/1/0/submitted.json cannot be written: No space left on device" in output, output
    assert f"SLURM has the jobs all the same, as job {array}; nothing is lost" in output, output
    assert "the same command finds them" in output and "Traceback" not in output, output
    (sweep.folder / "rest").unlink()
    assert "2 queued" in sweep.launch() and len(sweep.batches()) == 1
    assert {run: len(jobs) for run, jobs in sweep.queue().items()} == {sweep[seed].id: 1 for seed in (1, 2)}


@pytest.mark.long
@beside
def test_a_shell_of_salloc_submits_jobs_unless_it_runs_on_a_node(lab: Lab) -> None:
    sweep = lab.sweep_here("cluster.kind=auto", HELD)
    allocate = ["salloc", "--quiet", "--mem=50", "--immediate=600"]
    process = sweep.started([*allocate, *sweep.command("launch")])
    output = printed_by(process)
    assert process.returncode == 0 and len(sweep.queue()[sweep[1].id]) == 1, output
    assert re.search(r"holds SLURM job \d+ but is where salloc was typed, .*`srun --pty bash` goes there", output), (
        output
    )
    process = sweep.started([*allocate, "srun", "--mem=50", *sweep.command("plan", "seed=2")])
    output = printed_by(process)
    assert re.search(r"cluster\.kind=auto: this is inside SLURM job \d+", output), output


@pytest.mark.long
@beside
def test_environment_variables_for_slurms_commands_change_nothing(lab: Lab) -> None:
    sweep = lab.sweep_here(HELD, seeds=(1, 2, 3))
    odd = {"SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "CD", "SQUEUE_SORT": "-i", "SQUEUE_USERS": "nobody"}
    odd |= {"SBATCH_PARTITION": "nowhere", "SBATCH_JOB_NAME": "x", "SBATCH_EXPORT": "NONE", "SBATCH_HOLD": "1"}
    odd |= {"SACCT_FORMAT": "User", "SLURM_CLUSTERS": "nowhere", "SLURM_TIME_FORMAT": "relative"}
    odd |= {"SLURM_BITSTR_LEN": "3", "LC_ALL": "C", "COLUMNS": "20", "TZ": "Pacific/Auckland"}
    in_shell = replace(sweep, environment=odd)
    in_shell.launch()
    assert len(sweep.queue()) == 3
    assert "3 queued" in in_shell.launch() and len(sweep.batches()) == 1
    code, output = in_shell.run("cancel", sweep[1].id, sweep[3].id)
    assert code == 0 and "2 of 2 runs cancelled" in output, output
    assert list(sweep.queue()) == [sweep[2].id]
    sweep.slurm("scancel", sweep.job(2))
    until(lambda: set(causes(in_shell).values()) == {"cancelled"}, "accounting is understood")


@pytest.mark.long
@beside
def test_jobs_held_by_slurm_after_a_requeue_are_not_submitted_again_and_can_be_released_or_cancelled(
    lab: Lab,
) -> None:
    sweep = lab.sweep_here(seeds=(1, 2))
    sweep.launch()
    attempts, jobs = sweep.hold_all(sweep.seeds), [sweep.job(seed) for seed in sweep.seeds]
    sweep.slurm("scontrol", "requeuehold", jobs[0])
    sweep.slurm("scontrol", "requeuehold", "State=SpecialExit", jobs[1])
    for attempt, job in zip(attempts, jobs, strict=True):
        release(attempt)
        until(lambda job=job: sweep.word(job) in ("PENDING", "SPECIAL_EXIT"), "SLURM holds the job")
    rows = sweep.rows()
    assert [rows[sweep[seed].id]["state"] for seed in sweep.seeds] == ["queued", "queued"]
    assert "2 queued" in sweep.launch() and len(sweep.batches()) == 1
    [advised] = [line for line in sweep.run("status")[1].splitlines() if line.startswith("held by SLURM (")]
    sweep.slurm(*advised.partition("): ")[2].split())
    until(lambda: sweep.word(jobs[0]) == "RUNNING", "the job begins again")
    assert "held by" not in sweep.run("status")[1]
    code, output = sweep.run("cancel", "length")
    assert code == 0 and "2 of 2 runs cancelled" in output, output
    until(lambda: not sweep.queue(), "the jobs are gone")


@pytest.mark.long
@beside
def test_a_batch_or_snapshot_removed_while_jobs_wait_is_made_again_by_the_next_launch(lab: Lab) -> None:
    sweep = lab.sweep_here(HELD)
    sweep.launch()
    old = sweep.job()
    shutil.rmtree(sweep.store.jobs / "1")
    assert sweep.row()["state"] == "to do"
    sweep.let_go(old)
    until(lambda: not sweep.word(old), "the job that lost its batch has ended")
    assert sweep[1].attempts() == []
    sweep.launch()
    job = sweep.job()
    shutil.rmtree(sweep.store.root / "code")
    sweep.let_go(job)
    until(lambda: not sweep.word(job), "the job that lost its code has ended")
    row = sweep.row()
    assert (row["state"], row["cause"]) == ("to do", "not begun") and "/code/" in row["reason"], row
    assert "No such file or directory" in row["reason"]
    sweep.launch()
    [where] = json.loads((sweep.store.jobs / "2/batch.json").read_text())["jobs"][0]
    assert (sweep.store.root / "code").is_dir() and where["runs"] == [sweep[1].id]
