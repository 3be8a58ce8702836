"""What `status` and `logs` say about jobs of the real test cluster that wait, run, are suspended or have ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import clocks
import pytest
from faults import HELD, Sweep, until
from lab import Lab, beside
from patience import ended

from mmprompt.runs.processes import who
from sweeps.display.report import SUSPICIOUS_SILENCE

SOON = "import sys; from sweeps.display import live_table as table; table.LOG_INTERVAL = table.MAX_LOG_INTERVAL = 0.2; "
SOON += "from sweeps.__main__ import main; sys.exit(main(sys.argv[1:]))"


def at_work(lab: Lab, running: int, waiting: int, *settings: str) -> Sweep:
    """A sweep with one array task per run: the first are running and stopped, the others have not begun."""
    sweep = lab.sweep_here(*settings, seeds=range(1, running + waiting + 1))
    sweep.launch(HELD)
    jobs = [sweep.job(seed) for seed in sweep.seeds]
    for job in jobs[:running]:
        sweep.let_go(job)
    sweep.hold_all(sweep.seeds[:running])
    return sweep


def without_sacct(folder: Path) -> dict[str, str]:
    """The environment of a cluster without accounting."""
    programs = folder / "programs"
    programs.mkdir()
    for program in ("squeue", "scontrol"):
        found = shutil.which(program)
        assert found is not None
        (programs / program).symlink_to(found)
    return {"PATH": str(programs)}


@beside
def test_a_row_shows_job_node_and_time_left_of_a_running_run_and_slurms_reason_for_a_waiting_one(lab: Lab) -> None:
    sweep = at_work(lab, running=2, waiting=2)
    code, output = sweep.run("status")
    assert code == 0 and output.startswith("length: 4 runs: 2 running, 2 queued; "), output
    row, waits = sweep.row(1), sweep.row(3)
    assert (row["state"], row["slurm"], row["job"], row["attempt"]) == ("running", "RUNNING", sweep.job(1), 1)
    assert row["node"] in ("gn1", "gn2", "gn3", "gn4") and 0 < row["job_left"] <= 3600 and row["step"] >= 1
    assert (waits["state"], waits["slurm"], waits["job"], waits["node"]) == ("queued", "PENDING", sweep.job(3), None)
    assert f"queued ({waits['reason']})" in output and waits["reason"].startswith("Partition")
    code, output = sweep.run("logs", sweep[3].id[:8])
    assert code == 0 and f"queued: SLURM job {sweep.job(3)} is pending ({waits['reason']})" in output


@pytest.mark.long
@beside
def test_the_output_of_a_launch_that_waits_equals_status_and_wrong_clocks_of_nodes_do_not_matter(lab: Lab) -> None:
    hour_behind = (
        [f"cluster.python='{clocks.python_with_wrong_clock(lab.folder, '-3600')}'"] if clocks.library() else []
    )
    sweep = at_work(lab, 2, 1, *hour_behind)
    log, command = sweep.folder / "log", [sys.executable, "-c", SOON, *sweep.command("launch", HELD, "--wait")[3:]]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=sweep.folder, env=sweep.env, stdout=file, stderr=subprocess.STDOUT)
    try:
        until(lambda: log.read_text().count("\n") >= 6, "the launch says how things stand", process)
        _, output = sweep.run("status")
        first, head, *rows = output.splitlines()
        [*_, last, _] = log.read_text().split("\n")
        assert last == first and re.fullmatch(
            r"length: 3 runs: 2 running, 1 queued; \d+ % done, more than \d+ (s|min) left", last
        )
        assert [row[head.index("state") :].split()[0] for row in rows[:3]] == ["running", "running", "queued"]
        assert "silent" not in output and "0 s" not in [row.split("  ")[-1].strip() for row in rows]
        assert all(0 <= time.time() - sweep.row(seed)["heard"] < SUSPICIOUS_SILENCE for seed in (1, 2))
    finally:
        process.send_signal(signal.SIGINT)
        assert ended(process) == 130


@pytest.mark.long
@beside
def test_a_suspended_job_is_shown_as_suspended(lab: Lab) -> None:
    sweep = at_work(lab, running=1, waiting=0)
    job = sweep.job()
    sweep.slurm("scontrol", "suspend", job)
    until(lambda: sweep.word(job) == "SUSPENDED", "the job is suspended")
    assert sweep.row()["slurm"] == "SUSPENDED" and sweep.row()["state"] == "running"
    assert "suspended" in sweep.run("status")[1] and "suspended" in sweep.run("logs", sweep[1].id)[1]
    sweep.slurm("scontrol", "resume", job)


@beside
def test_each_ended_job_has_its_cause_with_and_without_accounting_and_a_waiting_one_has_none(lab: Lab) -> None:
    sweep = at_work(lab, running=2, waiting=2)
    jobs = [sweep.job(seed) for seed in (1, 2, 3)]
    os.kill(sweep[1].attempts()[0].job["pid"], signal.SIGKILL)
    sweep.slurm("scancel", jobs[1])
    sweep.slurm("scancel", jobs[2])  # SLURM keeps no trace of a single task cancelled out of a waiting array
    for job in jobs:
        until(lambda job=job: not sweep.word(job), "the job has ended")
    wanted = {1: "killed", 2: "cancelled", 3: "cancelled", 4: None}

    def causes() -> dict[int, str | None]:
        rows = sweep.rows()
        return {seed: rows[sweep[seed].id]["cause"] for seed in sweep.seeds}

    until(lambda: causes() == wanted, "status knows the ends")
    until(lambda: sweep.row(2)["reason"] == f"cancelled by {who()}", "accounting has heard of it")
    code, output = sweep.run("status")
    assert code == 1 and "1 queued, 3 to do (1 killed, 2 cancelled)" in output, output
    sweep.environment = without_sacct(lab.folder)
    try:
        assert causes() == wanted
        assert sweep.row(2)["reason"].endswith("***") or "CANCELLED" in sweep.row(2)["reason"]
    finally:
        sweep.environment = {}


@pytest.mark.long
@beside
def test_following_continues_with_the_next_attempt_when_slurm_requeues_the_job(lab: Lab) -> None:
    sweep = at_work(lab, running=0, waiting=1)
    job = sweep.job()
    with (sweep.folder / "followed").open("w+") as output:
        follow = sweep.command("logs", sweep[1].id[:8], "-f")
        process = subprocess.Popen(follow, cwd=sweep.folder, env=sweep.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            until(lambda: "is pending" in (sweep.folder / "followed").read_text(), "it is followed", process)
            sweep.let_go(job)
            held = sweep.hold()
            sweep.slurm("scontrol", "requeue", job)
            os.kill(held.job["pid"], signal.SIGCONT)
            sweep.done()
            assert ended(process) == 0
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        said = output.read()
    assert f"queued: SLURM job {job} is pending" in said and said.index("attempt 1 of 1") < said.index("attempt 2 of 2")
    assert said.count(f"== job {job} on ") == 2 and said.endswith("\ndone\n"), said


@pytest.mark.long
@beside
def test_a_job_whose_python_does_not_exist_has_not_begun_and_status_and_logs_say_why(lab: Lab) -> None:
    sweep = lab.sweep_here()
    sweep.launch("cluster.python=/no/such/python", HELD)
    job = sweep.job()
    sweep.let_go(job)
    until(lambda: not sweep.word(job), "the job has ended")
    until(lambda: sweep.row()["cause"] == "not begun", "status says so")
    code, output = sweep.run("status")
    assert code == 1 and "/no/such/python: No such file or directory" in output and "sweeps doctor" in output
    assert "cluster.python=/no/such/python" in output.splitlines()[-1]  # so that it is visible what to change
    assert "/no/such/python: No such file or directory" in sweep.run("logs", sweep[1].id)[1]
