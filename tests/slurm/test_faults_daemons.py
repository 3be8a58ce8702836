"""SLURM's own daemons die while jobs run: the state of jobs is then unknown, and unknown never counts as ended.

These stories use a cluster of their own, so that the others need not wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator, Sequence

import pytest
from cluster import SPARE_FOLDER, SPARE_PORTS, Cluster
from faults import HELD, Sweep, hosts, release, until
from lab import Lab, alone_on, beside
from patience import printed_by


def spare(_: Cluster) -> contextlib.AbstractContextManager[Cluster]:
    return alone_on(SPARE_FOLDER, SPARE_PORTS)


@contextlib.contextmanager
def sweep_on_spare(lab: Lab, seeds: Sequence[int] = (1,)) -> Iterator[Sweep]:
    with lab.alone("spare cluster"):
        cluster = lab.shared.thing(spare, lab.cluster)
        sweep = Sweep(lab.folder / "spare", cluster, hosts(lab.folder), seeds)
        try:
            yield sweep
        finally:
            cluster.up()
            sweep.close()


def is_alone(sweep: Sweep) -> bool:
    """Whether the nodes have this host's name, so that it can be seen whether a process runs."""
    return sweep[1].attempts()[0].job["host"] == socket.gethostname()


@beside
def test_without_slurms_controller_states_are_unknown_nothing_is_submitted_and_no_run_is_lost(lab: Lab) -> None:
    with sweep_on_spare(lab, seeds=(1, 2)) as sweep:
        sweep.launch(HELD)
        waiting, job = sweep.job(2), sweep.job(1)
        sweep.let_go(job)
        attempt = sweep.hold(1)
        sweep.cluster.kill("slurmctld")
        asked = {
            verb: sweep.start(verb, *more) for verb, more in {"status": ["--json"], "launch": [], "plan": []}.items()
        }
        said = {verb: printed_by(process) for verb, process in asked.items()}
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


@pytest.mark.long
@beside
def test_without_accounting_a_killed_run_is_recognised_by_its_log_and_submitted_again(lab: Lab) -> None:
    with sweep_on_spare(lab) as sweep:
        sweep.launch()
        attempt, job = sweep.hold(), sweep.job()
        sweep.cluster.kill("slurmdbd")
        os.kill(attempt.job["pid"], signal.SIGKILL)
        until(lambda: not sweep.word(job), "the killed job ends")
        assert (sweep.row()["state"], sweep.row()["cause"]) == ("to do", "killed")
        sweep.launch()
        assert sweep.done()["resumed_from"]["attempt"] == 1
        sweep.cluster.start("slurmdbd")
        assert sweep.accounts(job) == ["FAILED"]
