"""A search on SLURM: its workers are directed by no process, and the loss of workers, nodes or commands loses no trial."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from attempts import error_of
from cluster import Cluster
from faults import Sweep, is_alive, release, until
from lab import Lab, beside
from patience import printed_by
from searcher import TINY

from mmprompt.runs.attempt import Attempt
from mmprompt.studies.confirmation import is_over
from mmprompt.studies.outcomes import StudyProgress, StudyReader
from mmprompt.studies.study import Study

STEPS = "optim.steps=60"
SETTINGS = [text for text in TINY if not text.startswith(("optim.steps", "rungs", "budget", "optim.validate"))]
SETTINGS += [STEPS, "optim.validate_every=10", "rungs=[20,40]", "budget.trials=8", "cluster.checkpoint_every=5"]
PLACE = ["cluster=slurm", "cluster.mem_gb=0.9", "workers=3"]


@dataclass
class Search:
    """A search in a store of its own on the test cluster."""

    sweep: Sweep
    own: list[str]  # settings of this search

    @property
    def study(self) -> Study:
        return Study(self.sweep.store, "learning_rate")

    def read(self) -> StudyProgress:
        return StudyReader(self.study).read()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        place = [*self.sweep.settings, *PLACE]
        command = [sys.executable, "-m", "sweeps", "search", "learning_rate", *SETTINGS, *place, *self.own, *arguments]
        return self.sweep.started(command)

    def run(self, *arguments: str) -> str:
        """A call that must exit with 0; returns its output."""
        process = self.start(*arguments)
        printed: str = printed_by(process)
        assert process.returncode == 0, printed
        return printed

    def told(self) -> set[tuple[str, str]]:
        return {
            (json.dumps(one.trial.settings), json.dumps([one.state, one.values, sorted(one.rungs.items())]))
            for one in self.read().outcomes
        }

    def at_work(self) -> list[Attempt]:
        runs = (folder for run in self.sweep.store.runs() if (folder := self.sweep.store.run(run)).result() is None)
        return [
            attempt for run in runs for attempt in run.attempts() if error_of(attempt) is None and is_alive(attempt)
        ]

    def held_at_its_begin(self, but: Sequence[Attempt] = ()) -> Attempt | None:
        """An attempt that is stopped (SIGSTOP) before its first rung, so that the search cannot end without it; none in the jobs
        of `but`."""
        for attempt in self.at_work():
            if attempt.job["job"] in [other.job["job"] for other in but]:
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(attempt.job["pid"], signal.SIGSTOP)
                # A run that its process has just left, done or stopped at a rung, may have no checkpoint either.
                is_open = attempt.run.path.name in self.open_runs() and attempt.run.result() is None
                if is_open and max(attempt.checkpoint_steps, default=0) <= 10:
                    return attempt
            release(attempt)
        return None

    def hold(self, but: Sequence[Attempt] = ()) -> Attempt:
        """Waits until it holds an attempt as above, and returns it."""
        held: Attempt = until(
            lambda: self.held_at_its_begin(but), "a worker is held before the first rung of a run", often=True
        )
        return held

    def open_runs(self) -> list[str]:
        return [run for one in self.read().outcomes if one.state == "open" for run in one.trial.runs.values()]

    def workers(self) -> list[str]:
        """SLURM's states of the workers in its queue."""
        names = [batch["job_name"] for batch in self.sweep.batches()]
        lines = [line.split() for line in self.sweep.slurm("squeue", "-h", "-r", "-o", "%j %T").splitlines()]
        return [word for name, word in lines if name.rpartition(".")[0] in names]

    def assert_whole(self, trials: int = 8) -> None:
        """Trials 0 to N-1 exist once each, none is running, and every value is that of its runs."""
        progress = self.read()
        assert is_over(progress)
        assert [one.trial.number for one in progress.outcomes] == list(range(trials))
        for one in progress.outcomes:
            results = [self.sweep.store.run(run).result() for run in one.trial.runs.values()]
            if one.state == "done":
                assert one.values == [result["metrics"]["val/acc@0.5"] for result in results if result is not None]
            else:
                assert one.state == "stopped" and results == [None]
        assert not self.at_work()


RANDOM = "sampler=random"  # it proposes the same trials in any order


def search(lab: Lab) -> Search:
    return Search(lab.sweep(), [RANDOM])


@contextlib.contextmanager
def calm(cluster: Cluster) -> Iterator[Search]:
    """The same search in an undisturbed local process."""
    with tempfile.TemporaryDirectory() as folder:
        one = Search(Sweep(Path(folder), cluster), [RANDOM, "cluster=local", "cluster.max_parallel=1"])
        printed = printed_by(one.start())
        assert is_over(one.read()), printed
        yield one


def undisturbed(lab: Lab) -> set[tuple[str, str]]:
    """The result of the undisturbed search, which is made once for all stories."""
    one: Search = lab.shared.thing(calm, lab.cluster)
    return one.told()


@beside
def test_a_search_is_completed_by_its_workers_after_the_command_has_returned(lab: Lab) -> None:
    one = search(lab)
    said = one.run()
    assert (
        "submitted as SLURM job" in said
        and len(one.sweep.batches()[0]["jobs"]) == 3
        and "the workers go on by themselves" in said
    )
    code, output = one.sweep.run("status", "learning_rate", "--json")
    [shown] = json.loads(output)["searches"]
    assert code == 0 and not shown["over"]
    until(lambda: is_over(one.read()), "the workers end the search")
    one.assert_whole()
    assert one.told() == undisturbed(lab)
    until(lambda: not one.workers(), "no worker keeps its place")
    assert "is over already" in one.run() and len(one.sweep.batches()) == 1


@pytest.mark.long
@beside
def test_search_commands_that_are_killed_or_run_at_once_submit_no_worker_too_many(lab: Lab) -> None:
    one, chance = search(lab), random.Random(1)
    for _ in range(10):
        driver = one.start()
        time.sleep(chance.uniform(0.2, 4.0))  # at a random line of its code
        driver.kill()
        driver.wait()
    both = [one.start("--wait"), one.start("--wait")]
    printed = [printed_by(driver) for driver in both]
    assert [driver.returncode for driver in both] == [0, 0], printed
    one.assert_whole()
    assert one.told() == undisturbed(lab)
    assert "is over already" in one.run()


@pytest.mark.long
@beside
def test_workers_that_are_killed_requeued_or_at_their_time_limit_lose_no_trial(lab: Lab) -> None:
    one = search(lab)
    one.run()
    first = one.hold()
    os.kill(first.job["pid"], signal.SIGKILL)
    requeued = one.hold(but=[first])
    one.sweep.slurm("scontrol", "requeue", requeued.job["job"])
    release(requeued)
    until(lambda: error_of(requeued), "it says that it was told to end")
    last = one.hold()
    os.kill(last.job["pid"], signal.SIGUSR2)  # as SLURM does some time before the limit
    release(last)
    until(lambda: error_of(last), "it says that its time is up")
    driver = one.start("--wait")
    printed = printed_by(driver)
    assert driver.returncode == 0, printed
    one.assert_whole()
    assert one.told() == undisturbed(lab)
    assert error_of(first) is not None and "its process ended without a word" in error_of(first)


@pytest.mark.long
@beside
def test_the_trial_of_a_worker_whose_node_is_lost_is_completed_by_others(lab: Lab) -> None:
    with lab.alone("gn4"):
        one = Search(lab.sweep_on("gn4"), [RANDOM, "workers=1"])
        one.run()
        lost = one.hold()
        try:
            lab.cluster.kill("slurmd.gn4")
            until(lambda: one.sweep.word(lost.job["job"]) in ("PENDING", ""), "SLURM has lost the node")
            one.sweep.change(lost.job["job"], "ExcNodeList=gn[3-4]")
            until(lambda: is_over(one.read()), "the job ends the search elsewhere")
        finally:
            with contextlib.suppress(ProcessLookupError):  # a node that comes back ends the process
                os.kill(lost.job["pid"], signal.SIGKILL)
            lab.cluster.start("slurmd.gn4")
    one.assert_whole()
    assert one.told() == undisturbed(lab)


@pytest.mark.long
@beside
def test_cancel_ends_the_workers_of_a_search_and_the_next_call_goes_on(lab: Lab) -> None:
    one = Search(lab.sweep(), [RANDOM, "budget.trials=14"])
    one.run()
    held: list[Attempt] = []
    for _ in range(3):
        held.append(one.hold(but=held))
    # The worker gets a run that is not named, so it stays.
    runs = [one.sweep.store.run(run) for run in sorted(one.sweep.store.runs())]
    undone = sum(run.result() is None for run in runs)  # the three, and any that was paused before all were held
    code, output = cancelled(one, held[0], *(run.id for run in runs))
    assert code == 1 and "also holds" in output and f"0 of {undone} runs cancelled" in output, output
    assert len(one.workers()) == 3
    held[0] = one.hold(but=held[1:])
    code, output = cancelled(one, held[0], "learning_rate")
    for attempt in held:
        release(attempt)
    assert code == 0, output
    until(lambda: not one.workers(), "no worker is left")
    assert not is_over(one.read()), output
    one.run("--wait")
    one.assert_whole(14)


def cancelled(one: Search, held: Attempt, *what: str) -> tuple[int, str]:
    """Cancels these runs or the search, and says yes once the held worker has begun another trial. Returns exit code, output."""
    ours, terminal = pty.openpty()
    environment = {key: value for key, value in one.sweep.env.items() if key != "YES"}
    words = one.sweep.command("cancel", *what)
    process = subprocess.Popen(words, env=environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    printed, trials = b"", len(one.read().outcomes)
    try:
        while b"[y/N]" not in printed:
            printed += os.read(ours, 4096)
        release(held)
        until(lambda: len(one.read().outcomes) > trials, "the search has another trial")
        os.write(ours, b"y\n")
        with contextlib.suppress(OSError):  # when the process has ended
            while part := os.read(ours, 4096):
                printed += part
        return process.wait(), printed.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)
