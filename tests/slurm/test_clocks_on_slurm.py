"""Nodes whose clock or time zone differs from the login node's: states, causes and device hours are the same."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from clocks import wrong
from faults import Sweep, assert_same, release, until
from lab import Lab, bare_cluster, beside
from patience import printed_by

from sweeps.jobs.job_log import BEGINS

AWAY = {"TZ": "Pacific/Auckland"}  # the time zone of the commands; the nodes' daemons have the machine's own


@pytest.mark.long
@beside
def test_without_accounts_a_job_of_another_time_zone_is_known_as_cancelled_and_not_submitted_again_by_a_waiting_launch(
    lab: Lab,
) -> None:
    """One job is cancelled while it trains, another during its setup lines, before python has begun."""
    away = AWAY | {"PATH": f"{forgetful(lab.folder / 'bin')}:{os.environ['PATH']}"}
    with bare_cluster() as cluster:
        at_work = Sweep(lab.folder / "at work", cluster, environment=away)
        begun = lab.folder / "begun"
        waits = f"cluster.setup=['touch {begun}', 'sleep 1000']"
        setting_up = Sweep(lab.folder / "setting up", cluster, [waits], environment=away)
        lab.sweeps += [at_work, setting_up]
        waiting = {sweep.folder: sweep.start("launch", "--wait") for sweep in (at_work, setting_up)}
        until(lambda: at_work.batches(), "the launch submits", waiting[at_work.folder])
        attempt, job = at_work.hold(), at_work.job()
        at_work.slurm("scancel", job)
        release(attempt)
        until(begun.exists, "the other job begins", waiting[setting_up.folder])
        setting_up.slurm("scancel", setting_up.job())
        for sweep in (at_work, setting_up):
            output = printed_by(waiting[sweep.folder])
            assert waiting[sweep.folder].returncode == 1 and "cancelled" in output, output
            row = sweep.row()
            assert (row["state"], row["cause"]) == ("to do", "cancelled"), row
            assert len(sweep.batches()) == 1
        [line] = first_lines(at_work)
        assert attempt.job["execution"] == line and line.endswith(time.strftime("%z")), line
        assert setting_up[1].attempts() == []


def forgetful(folder: Path) -> Path:
    """A folder with a squeue that lists no jobs that have ended, as the real one does after MinJobAge."""
    program = folder / "squeue"
    folder.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\ncase " $* " in *" -t all "*) exit 0;; esac\nexec {shutil.which("squeue")} "$@"\n')
    program.chmod(0o755)
    return folder


def first_lines(sweep: Sweep) -> list[str]:
    """The first line that each execution of the sweep's jobs wrote."""
    logs = (file.read_text().splitlines() for file in sorted(sweep.store.jobs.glob("*/*/*_0_log.err")))
    return [line for lines in logs for line in lines if line.startswith(BEGINS)]


def wrong_python(folder: Path, offset: str) -> str:
    """A setting by which jobs run a python whose clock is off by `offset`."""
    program = folder / "python-of-another-time"
    folder.mkdir(parents=True, exist_ok=True)
    variables = " ".join(f"'{key}={value}'" for key, value in wrong(offset, sleeps=True).items())
    program.write_text(f'#!/bin/sh\nexec env {variables} {sys.executable} "$@"\n')
    program.chmod(0o755)
    return f"cluster.python='{program}'"


@pytest.mark.long
@beside
def test_on_nodes_an_hour_behind_durations_are_right_and_a_cancelled_run_is_known_as_cancelled(lab: Lab) -> None:
    sweep = lab.sweep_here(wrong_python(lab.folder, "-3600"), seeds=(1, 2))
    began = time.monotonic()
    sweep.launch()
    attempt, job = sweep.hold(2), sweep.job(2)
    result = sweep.done(1)
    took = time.monotonic() - began
    assert 0 < result["seconds"] <= 3600 * result["device_hours"] + 0.02
    assert 3600 * result["device_hours"] <= 3600 * result["device_hours_spent"] + 0.04 <= took + 0.08
    assert_same(sweep[1], lab.undisturbed(1))
    assert sweep.row(2)["state"] == "running"
    sweep.slurm("scancel", job)
    release(attempt)
    assert sweep.accounts(job) == ["CANCELLED by 0"]
    until(lambda: not sweep.word(job), "the queue forgets the job")
    rows = sweep.rows()
    assert rows[sweep[1].id]["state"] == "done"
    assert (rows[sweep[2].id]["state"], rows[sweep[2].id]["cause"]) == ("to do", "cancelled")
    assert len(first_lines(sweep)) == 2
