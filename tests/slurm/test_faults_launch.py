"""Launches under faults: killed at any moment, by two users at once, with limits on submitted jobs, without accounts.

The stories run concurrently, each on a sweep of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from faults import HELD, PLACE, SETTINGS, Sweep, assert_same, release, until
from groups import LONG
from lab import Lab, bare_cluster, beside
from patience import printed_by
from people import people

DYING = str(Path(__file__).with_name("dying.py"))


def die(sweep: Sweep, moment: str, *arguments: str) -> int:
    """Executes a launch that is killed at this moment, and returns its exit code."""
    launch = sweep.command("launch", *arguments)[3:]
    process = sweep.started([sys.executable, DYING, moment, str(sweep.store.root), *launch])
    output = printed_by(process)
    assert process.returncode in (0, -signal.SIGKILL), output
    return process.returncode


def moments(sweep: Sweep) -> list[str]:
    """The moments of a whole launch, in order (`dying.py`)."""
    die(sweep, "0", HELD)
    return [line.split()[1] for line in sweep.store.root.with_suffix(".moments").read_text().splitlines()]


def assert_each_run_has_one_job(sweep: Sweep) -> None:
    jobs = sweep.queue()
    assert {run: len(jobs.get(run, [])) for run in (sweep[seed].id for seed in sweep.seeds)} == {
        sweep[seed].id: 1 for seed in sweep.seeds
    }, jobs


@pytest.mark.long
@beside
def test_after_a_launch_was_killed_at_any_moment_the_next_one_loses_and_duplicates_no_job(lab: Lab) -> None:
    names = moments(lab.sweep(seeds=(1, 2, 3)))
    sbatch, intent = names.index("sbatch") + 1, next(i for i, name in enumerate(names, 1) if name.endswith("/jobs/1"))
    few = {1, sbatch // 2, intent, intent + 1, sbatch, sbatch + 1, sbatch + 3, len(names)}
    chosen = range(1, len(names) + 1) if LONG else sorted(few)
    for moment in chosen:
        sweep = lab.sweep(seeds=(1, 2, 3))
        assert die(sweep, str(moment), HELD) == -signal.SIGKILL
        _, output = sweep.run("status")
        assert "Traceback" not in output, (moment, names[moment - 1], output)
        sweep.launch(HELD)
        try:
            assert_each_run_has_one_job(sweep)
        except AssertionError as error:
            raise AssertionError(f"killed before {moment} of {len(names)}: {names[moment - 1]}") from error
        finally:
            sweep.close()


@pytest.mark.long
@beside
def test_a_launch_killed_while_sbatch_is_under_way_duplicates_no_job(lab: Lab) -> None:
    """sbatch goes on alone, and the next launch begins before sbatch has reached the controller."""
    sweep = lab.sweep(seeds=(1, 2))
    slow = sweep.folder / "bin/sbatch"
    slow.parent.mkdir(parents=True)
    slow.write_text(f'#!/bin/sh\ntouch {sweep.folder}/called\nsleep 3\nexec {shutil.which("sbatch")} "$@"\n')
    slow.chmod(0o755)
    sweep.environment["PATH"] = f"{slow.parent}:{os.environ['PATH']}"
    process = sweep.start("launch", HELD)
    until((sweep.folder / "called").exists, "the launch calls sbatch", process)
    process.kill()
    process.communicate()
    sweep.launch(HELD)
    time.sleep(4)
    assert_each_run_has_one_job(sweep)


@pytest.mark.long
@beside
def test_jobs_whose_launch_was_killed_right_after_sbatch_are_found_and_followed_by_the_next_launch(lab: Lab) -> None:
    sweep = lab.sweep(seeds=(1, 2))
    probe = moments(lab.sweep(seeds=(1, 2)))
    assert die(sweep, str(probe.index("sbatch") + 2)) == -signal.SIGKILL
    assert {row["state"] for row in sweep.rows().values()} <= {"queued", "running"}
    assert "all 2 runs are done" in sweep.launch("--wait")
    assert len(sweep.batches()) == 1
    for seed in sweep.seeds:
        assert sweep.done(seed)["attempt"] == 1
        assert_same(sweep[seed], lab.undisturbed(seed))


@pytest.mark.long
@beside
def test_under_a_submit_limit_of_ten_a_launch_submits_ten_says_how_many_wait_and_later_launches_submit_the_rest(
    lab: Lab,
) -> None:
    lab.cluster.add_user(lab.cluster.user, "narrow", MaxSubmitJobs=10)
    sweep = lab.sweep("cluster.account=narrow", HELD, seeds=range(1, 13))
    output = sweep.launch()
    assert "2 wait" in output or "2 runs wait" in output or "2 jobs wait" in output, output
    first = sweep.queue()
    assert len(first) == 10
    assert sorted(row["state"] for row in sweep.rows().values()) == ["queued"] * 10 + ["to do"] * 2
    sweep.run("launch")  # the limit allows no more jobs
    assert sweep.queue() == first
    lab.cluster.add_user(lab.cluster.user, "narrow", MaxSubmitJobs=11)
    sweep.launch()
    then = sweep.queue()
    assert len(then) == 11 and then.items() >= first.items() and {len(jobs) for jobs in then.values()} == {1}
    lab.cluster.add_user(lab.cluster.user, "narrow", MaxSubmitJobs=-1)
    sweep.launch()
    assert_each_run_has_one_job(sweep)


@pytest.mark.long
@beside
def test_under_a_submit_limit_a_launch_that_waits_submits_the_rest_as_jobs_end(lab: Lab) -> None:
    lab.cluster.add_user(lab.cluster.user, "tight", MaxSubmitJobs=2)
    sweep = lab.sweep("cluster.account=tight", seeds=(1, 2, 3))
    assert "all 3 runs are done" in sweep.launch("--wait")
    for seed in sweep.seeds:
        assert sweep.done(seed)["attempt"] == 1
        assert_same(sweep[seed], lab.undisturbed(seed))


@pytest.mark.long
@beside
def test_on_a_cluster_without_accounts_a_sweep_is_split_into_arrays_and_a_killed_run_is_recognised(lab: Lab) -> None:
    with bare_cluster() as cluster:
        sweep = Sweep(lab.folder / "bare", cluster, seeds=range(1, 6))
        lab.sweeps.append(sweep)
        sweep.launch()
        arrays = {job.split("_")[0] for jobs in sweep.queue().values() for job, _ in jobs}
        attempt, job = sweep.hold(5), sweep.job(5)
        assert len(arrays) == 2 and "_" not in job  # an array of four, and a single job
        os.kill(attempt.job["pid"], signal.SIGKILL)
        for seed in (1, 2, 3, 4):
            sweep.done(seed)
        until(lambda: not sweep.word(job), "the killed job ends")
        rows = sweep.rows()
        assert [rows[sweep[seed].id]["state"] for seed in sweep.seeds] == ["done"] * 4 + ["to do"]
        assert rows[sweep[5].id]["cause"] == "killed"
        assert "all 5 runs are done" in sweep.launch("--wait")
        assert [len(sweep[seed].attempts()) for seed in sweep.seeds] == [1, 1, 1, 1, 2]
        assert sweep.done(5)["resumed_from"]["attempt"] == 1
        for seed in (1, 2, 3):
            assert_same(sweep[seed], lab.undisturbed(seed))


@pytest.mark.long
@beside
def test_two_users_who_launch_one_sweep_at_once_into_a_group_store_run_each_run_once_and_both_see_it(lab: Lab) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be two other users")
    folder = Path(tempfile.mkdtemp(prefix="mmprompt-people-"))  # pytest's folders are for one user only
    folder.chmod(0o755)
    try:
        with people(folder, lab.cluster) as both:
            together(lab, both[0].group_folder, both)
    finally:
        shutil.rmtree(folder)


def together(lab: Lab, group_folder: Path, both: list) -> None:
    store = group_folder / "runs"
    sweep = Sweep(group_folder, lab.cluster, seeds=(1, 2, 3))
    lab.sweeps.append(sweep)
    environment = {"MMPROMPT_RUNS": str(store)}
    asked = ["length", *SETTINGS, *PLACE, "seed=1,2,3", "cluster.exclude='gn[3-4]'"]
    launches = [person.start(*person.sweeps("launch", *asked), **environment) for person in both]
    outputs = [printed_by(process) for process in launches]
    assert [process.returncode for process in launches] == [0, 0], outputs
    attempts = dict(zip(sweep.seeds, sweep.hold_all(sweep.seeds), strict=True))
    assert all(len(jobs) == 1 for jobs in sweep.queue().values()), sweep.queue()
    seen = [person.run(*person.sweeps("status", "--json"), **environment) for person in both]
    assert seen[0][1].count('"running"') == seen[1][1].count('"running"') >= 3, seen

    # One run is killed, and the user who did not start it resumes it from its checkpoint.
    owner = attempts[1].job["user"]
    [other] = [person for person in both if person.name != owner]
    job = sweep.job(1)
    os.kill(attempts[1].job["pid"], signal.SIGKILL)
    for seed in (2, 3):
        release(attempts[seed])
    until(lambda: not sweep.word(job), "the killed job ends")
    code, output = other.run(*other.sweeps("launch", *asked, "--wait"), **environment)
    assert code == 0 and "all 3 runs are done" in output, output
    assert [[attempt.job["user"] for attempt in sweep[seed].attempts()] for seed in (1,)] == [[owner, other.name]]
    assert [len(sweep[seed].attempts()) for seed in sweep.seeds] == [2, 1, 1]
    assert sweep.done(1)["resumed_from"]["attempt"] == 1
    for person in both:
        code, output = person.run(*person.sweeps("launch", *asked), **environment)
        assert code == 0 and "all 3 runs are done already" in output, output
    for seed in sweep.seeds:
        assert_same(sweep[seed], lab.undisturbed(seed))
