"""SLURM's own daemons die while jobs are at work: then nobody knows, which is never taken for an end.

Alone on the cluster, when all stories have ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from faults import HELD, Sweep, hosts, release, until
from lab import Together


@pytest.fixture
def sweep(slurm: Path, together: Together, tmp_path: Path) -> Iterator[Sweep]:
    together.wait()
    cluster = Cluster(slurm)
    sweep = Sweep(tmp_path, cluster, hosts(tmp_path))
    yield sweep
    cluster.up()
    sweep.close()


def is_alone(sweep: Sweep) -> bool:
    """Whether the nodes have this host's name: then one sees that a process lives."""
    return sweep[1].attempts()[0].job["host"] == socket.gethostname()


def test_without_its_controller_nothing_is_known_nothing_is_submitted_and_nothing_is_lost(sweep: Sweep) -> None:
    sweep.seeds = (1, 2)
    sweep.launch(HELD)
    waiting, job = sweep.job(2), sweep.job(1)
    sweep.let_go(job)
    attempt = sweep.hold(1)
    sweep.cluster.kill("slurmctld")
    asked = {verb: sweep.start(verb, *more) for verb, more in {"status": ["--json"], "launch": [], "plan": []}.items()}
    said = {verb: process.communicate(timeout=90)[0] for verb, process in asked.items()}
    sweep.cluster.start("slurmctld")
    seen = json.loads(said["status"])
    states = {row["run"]: row["state"] for row in seen["sweeps"][0]["runs"]}
    assert seen["scheduler"].startswith("no information")
    assert states == {sweep[1].id: "running" if is_alone(sweep) else "lost?", sweep[2].id: "lost?"}
    assert "Traceback" not in "".join(said.values())
    assert asked["launch"].returncode != 0 and len(sweep.batches()) == 1, said["launch"]
    sweep.let_go(waiting)
    release(attempt)
    for seed in sweep.seeds:
        assert sweep.done(seed)["attempt"] == 1 and sweep.errors(seed) == [None]
    assert sweep.accounts(job) == sweep.accounts(waiting) == ["COMPLETED"]
    assert "all 2 runs are done already" in sweep.launch()


def test_without_the_accounts_a_killed_run_is_told_from_its_log_and_submitted_again(sweep: Sweep) -> None:
    sweep.launch()
    attempt, job = sweep.hold(), sweep.job()
    sweep.cluster.kill("slurmdbd")
    os.kill(attempt.job["pid"], signal.SIGKILL)
    until(lambda: not sweep.word(job), "the killed job ends", 60)
    assert (sweep.row()["state"], sweep.row()["cause"]) == ("to do", "killed")
    sweep.launch()
    assert sweep.done()["resumed_from"]["attempt"] == 1
    sweep.cluster.start("slurmdbd")
    assert sweep.accounts(job) == ["FAILED"]
