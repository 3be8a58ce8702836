"""Why runs stopped: from the attempt's error, then from sacct, then from the end of the job's log; no cause without evidence."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import synthetic_store as made

from mmprompt.runs.failures import from_text
from mmprompt.runs.files import write_once
from mmprompt.runs.identity import canonical
from mmprompt.runs.processes import who
from mmprompt.runs.store import Store
from sweeps.jobs.job_log import BEGINS
from sweeps.states.causes import RunFailure, failures
from sweeps.states.state import Queue, states

BEGAN = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))  # when the process of an attempt started
BEGIN = f"{BEGINS}job 300_0 on gn1, 2026-11-24T12:00:01\n"
KILLED = "srun: error: gn1: task 0: Killed\nsrun: Force Terminated StepId=301.0\n"
TRACEBACK = """Traceback (most recent call last):
  File "/store/code/c0de/mmprompt/execution/execute.py", line 102, in try_once
    perform(folder, attempt, where, watch)
  File "/store/code/c0de/mmprompt/training/train.py", line 174, in update
    raise TrainingError(
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on a machine without SLURM's programs."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Store(tmp_path / "runs")


def submit(
    store: Store, jobs: Sequence[Sequence[str]], number: int = 1, kind: str = "slurm", taken: int | None = None
) -> Path:
    """Writes a batch as a launch leaves it, with these runs in its jobs. SLURM accepted the first `taken` jobs, as array 300."""
    folder = store.jobs / str(number)
    (folder / "0").mkdir(parents=True, exist_ok=True)
    record = {
        "sweep": "length",
        "overrides": [],
        "store": str(store.root),
        "job": {"batch": str(number), "scheduler": kind},
        "job_name": f"mmprompt-{number}-abc",
        "launcher": {"host": made.JOB["host"], "pid": 1, "started": 0.0},
        "user": who(),
        "slurm_cluster": None,
        "cluster": {"mem_gb": 2.0, "time_min": 60},
        "jobs": [[{"settings": {}, "runs": list(runs)}] for runs in jobs],
    }
    (folder / "batch.json").write_text(json.dumps(record))
    if kind == "slurm":
        count = len(jobs) if taken is None else taken
        (folder / "0" / "submitted.json").write_text(json.dumps({"job": "300", "count": count}))
        (folder / "submitted.json").write_text(json.dumps({"waiting": len(jobs) - count, "why": ""}))
    return folder


def attempt(
    store: Store, log: str = "", error: str | None = None, kind: str = "slurm", seed: int = 1, **more: Any
) -> str:
    """Makes an attempt of batch 1 on another machine, with the files that it left, and returns the id of its run."""
    name = "jobs/1/0/300_0_0_log.err"
    (store.root / name).parent.mkdir(parents=True, exist_ok=True)
    (store.root / name).write_text(log)
    facts: dict[str, Any] = {**made.JOB, "scheduler": kind, "batch": "1", "job": "300_0", "log": name, "started": BEGAN}
    claimed = made.claim(store, {"task": "micro_vqa", "seed": seed}, facts | more)
    if error is not None:
        claimed.fail(from_text(error))
    return claimed.run.id


def create(store: Store, seed: int) -> str:
    """Writes the configuration of a run that has no attempt, and returns the run's id."""
    point = {"task": "micro_vqa", "seed": seed}
    run = made.run_of(point)
    write_once(store.run(run).config_file, canonical(made.config_of(point)))
    return run


def accounting(folder: Path, states: Mapping[str, str]) -> None:
    """Writes a sacct that knows these jobs, `name|state|exit code|start` by id, for states that the test cluster cannot produce."""
    answers(folder, "sacct", states)


def answers(folder: Path, name: str, states: Mapping[str, str]) -> None:
    """Writes a program that lists these jobs. It prints the names last, as our calls request, since names may contain anything."""
    split = {job: line.partition("|") for job, line in states.items()}
    output = "".join(f"{job}|{rest}|{job_name}|\n" for job, (job_name, _, rest) in split.items())
    (folder / f"{name}.said").write_text(output)
    program = folder / "bin" / name
    prints = f'while read -r line; do echo "$line"; done < {folder}/{name}.said'
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\n{prints}\n')
    program.chmod(0o755)


def failures_of(store: Store, *runs: str) -> dict[str, RunFailure]:
    return failures(store, runs, states(store, runs, Queue({})))


LOGS = {
    # by SLURM 22.05 with OverMemoryKill, whose accounting says FAILED
    "out of memory": "slurmstepd-gn1: error: StepId=301.0 exceeded memory limit (402034688 > 209715200), being killed\n"
    "slurmstepd-gn1: error: Exceeded job memory limit\nsrun: Job step aborted: Waiting up to 7 seconds for job step to finish.\n"
    "slurmstepd-gn1: error: *** STEP 301.0 ON gn1 CANCELLED AT 2026-11-24T12:10:59 ***\nsrun: error: gn1: task 0: Killed\n",
    "out of memory, cgroups": "slurmstepd: error: Detected 1 oom_kill event in StepId=301.0. Some of the step tasks have been "
    "OOM Killed.\nsrun: error: gn1: task 0: Out Of Memory\n",
    "out of memory, before 21.08": "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=301.0 cgroup. Some of your "
    "processes may have been killed by the cgroup out-of-memory handler.\n",
    "out of memory, since 25.05": "[2026-11-24T12:10:00.123] error: Detected 2 oom_kill events in StepId=301.0. Some of the step "
    "tasks have been OOM Killed.\n",
    "out of memory, from srun": "srun: error: gn1: task 0: Out Of Memory\n",
    "time limit": "slurmstepd-gn1: error: *** STEP 301.0 ON gn1 CANCELLED AT 2026-11-24T12:10:53 DUE TO TIME LIMIT ***\n"
    "slurmstepd-gn1: error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:53 DUE TO TIME LIMIT ***\n"
    "srun: error: gn1: task 0: Terminated\n",
    "time limit, before Python could handle the signal": "srun: error: gn1: task 0: User defined signal 2\n",
    "time limit, and only then memory": "slurmstepd: error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:53 DUE TO TIME LIMIT "
    "***\nslurmstepd: error: Detected 1 oom_kill event in StepId=301.0. Some of the step tasks have been OOM Killed.\n",
    "preempted": "slurmstepd-gn4: error: *** STEP 301.0 ON gn4 CANCELLED AT 2026-11-24T12:04:24 ***\n"
    "slurmstepd-gn4: error: *** JOB 301 ON gn4 CANCELLED AT 2026-11-24T12:04:54 DUE TO PREEMPTION ***\n",
    "node lost": "slurmstepd: error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG "
    "FOR DETAILS ***\n",
    "node lost, from srun": "srun: error: Node failure on gn3\n",
    "cancelled": "srun: got SIGCONT\nslurmstepd-gn1: error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:07 ***\n"
    "slurmstepd-gn1: error: *** STEP 301.0 ON gn1 CANCELLED AT 2026-11-24T12:10:07 ***\nsrun: error: gn1: task 0: Terminated\n",
    "cancelled, and only then memory": "slurmstepd: error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:07 ***\n"
    "slurmstepd: error: Detected 1 oom_kill event in StepId=301.0. Some of the step tasks have been OOM Killed.\n",
    "cancelled, since 25.05": "[2026-11-24T12:10:00.123] error: *** JOB 301 ON gn1 CANCELLED AT 2026-11-24T12:10:00 DUE to SIGNAL "
    "Terminated ***\n",
    "error": "srun: error: gn1: task 0: Segmentation fault\n",
    "disk full, and the process said so": "this process ends: /store cannot be written: No space left on device\n"
    "srun: error: gn1: task 0: Exited with exit code 1\n",
    "killed": KILLED,
    # any signal ends a step with these lines: from preemption, from a launch, from a user
    "killed, by some signal": "slurmstepd-gn4: error: *** STEP 301.0 ON gn4 CANCELLED AT 2026-11-24T12:02:28 ***\n"
    "srun: error: gn4: task 0: Exited with exit code 143\n",
    "killed, by a signal on which Python ended": "wandb: WARNING something else\n"
    "srun: error: gn1: task 0: Exited with exit code 143\n",
    "killed, after the memory was full for a while": "slurmstepd: error: Exceeded step memory limit at some point.\n"
    + KILLED,
    "killed, whatever the run printed": "RuntimeError: the DataLoader exceeded memory limit, oom_kill event\n" + KILLED,
    "killed, without any log": "",
}


@pytest.mark.parametrize("name", LOGS)
def test_the_end_of_a_log_gives_the_cause_without_accounting(store: Store, name: str) -> None:
    error = "interrupted: told to end by SIGTERM" if name == "killed, by some signal" else None
    run = attempt(store, BEGIN + LOGS[name], error)
    submit(store, [[run]])
    assert failures_of(store, run)[run].cause == name.split(",")[0]


NODE = BEGIN.replace("12:00:01", "12:00:01+0000")  # from a node whose time zone is UTC
EAST, WEST = "<+13>-13", "<-05>5"  # time zones of the machine that reads the log


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Returns a function that changes this machine's time zone."""

    def set_zone(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("begin", ["", BEGIN, NODE], ids=["no first line", "old first line", "first line"])
@pytest.mark.parametrize("claimed", [True, False])
def test_without_accounting_a_cancelled_job_is_cancelled_in_any_time_zone_of_the_reader(
    store: Store, zone: Callable[[str], None], begin: str, claimed: bool
) -> None:
    log = begin + LOGS["cancelled"]
    if claimed:
        run = attempt(store, log)
        submit(store, [[run]])
    else:
        run = create(store, 1)
        folder = submit(store, [[run]])
        (folder / "0" / "300_0_log.err").write_text(log)
    zone(EAST)
    assert failures_of(store, run)[run].cause == "cancelled"


def test_an_execution_without_a_first_line_is_recognised_by_stamps_far_from_the_earlier_ones(store: Store) -> None:
    run = attempt(
        store,
        EARLIER
        + "slurmstepd-gn2: error: *** JOB 301 ON gn2 CANCELLED AT 2026-11-24T12:10:07 ***\n"
        + "slurmstepd-gn2: error: *** STEP 301.0 ON gn2 CANCELLED AT 2026-11-24T12:10:37 ***\n",
    )
    submit(store, [[run]])
    assert failures_of(store, run)[run].cause == "cancelled"


def test_accounting_is_compared_with_a_nodes_stamps_in_the_nodes_time_zone(
    store: Store, tmp_path: Path, zone: Callable[[str], None]
) -> None:
    run = attempt(store, EARLIER.replace(BEGIN, NODE) + "slurm_script: line 19: module: command not found\n")
    submit(store, [[run]])
    accounting(
        tmp_path, {"300_0": "mmprompt-1-abc.0|FAILED|1:0|2026-11-24T07:05:20"}
    )  # sacct writes in its user's zone
    zone(WEST)
    assert failures_of(store, run)[run].cause == "killed"


EARLIER = BEGIN + LOGS["preempted"]  # the log of an execution after which SLURM started the job again


def test_slurms_lines_about_an_earlier_execution_are_not_the_cause_of_the_last_end(store: Store) -> None:
    again = f"{BEGINS}job 300_0 on gn2, 2026-11-24T12:05:20\n"
    run = attempt(store, EARLIER + again + KILLED)
    submit(store, [[run]])
    assert failures_of(store, run)[run].cause == "killed"


def test_accountings_start_time_separates_an_execution_without_a_first_line_from_an_earlier_one(
    store: Store, tmp_path: Path
) -> None:
    """The execution failed before Python started: it wrote no first line, and the newest attempt is the earlier execution's."""
    run = attempt(store, EARLIER + "slurm_script: line 19: module: command not found\n")
    submit(store, [[run]])
    assert failures_of(store, run)[run].cause == "preempted"  # without accounting nothing else is known
    name = "mmprompt-1-abc.0"
    accounting(tmp_path, {"300_0": f"{name}|FAILED|1:0|2026-11-24T12:05:20"})
    assert failures_of(store, run)[run].cause == "killed"


CAUSES = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node lost",
    "BOOT_FAIL": "node lost",
    "CANCELLED": "cancelled",
    "CANCELLED by 0": "cancelled",
    "FAILED": "killed",
    "COMPLETED": "killed",
    "RUNNING": "killed",  # the accounting is out of date
}


@pytest.mark.parametrize("state", CAUSES)
@pytest.mark.parametrize("error", [None, "its process ended without a word\n", "interrupted: told to end by SIGTERM"])
def test_accounting_gives_the_cause_of_an_attempt_that_wrote_none(
    store: Store, tmp_path: Path, state: str, error: str | None
) -> None:
    run = attempt(store, BEGIN + KILLED, error)
    submit(store, [[run]])
    accounting(tmp_path, {"300_0": f"mmprompt-1-abc.0|{state}|0:9|2026-11-24T12:00:00"})
    failure = failures_of(store, run)[run]
    assert failure.cause == CAUSES[state]
    assert "root" in failure.reason if state == "CANCELLED by 0" else True


@pytest.mark.parametrize(
    "state", ["FAILED", "CANCELLED by 0"]
)  # the second for a job without srun, which SLURM itself cancels
def test_a_log_gives_the_cause_if_accounting_only_says_failed_or_cancelled(
    store: Store, tmp_path: Path, state: str
) -> None:
    run = attempt(store, BEGIN + LOGS["out of memory"])
    submit(store, [[run]])
    accounting(tmp_path, {"300_0": f"mmprompt-1-abc.0|{state}|9:0|2026-11-24T12:00:00"})
    failure = failures_of(store, run)[run]
    assert (failure.cause, failure.reason) == (
        "out of memory",
        "StepId=301.0 exceeded memory limit (402034688 > 209715200), being killed",
    )
    assert failure.log is not None and failure.log.read_text().startswith(BEGIN)


def test_another_clusters_job_with_the_same_id_is_ignored(store: Store, tmp_path: Path) -> None:
    run = attempt(store, BEGIN + KILLED)
    submit(store, [[run]])
    accounting(tmp_path, {"300_0": "somebody's|TIMEOUT|0:0|2026-11-24T12:00:00"})
    assert failures_of(store, run)[run].cause == "killed"


def test_sacct_is_called_once_and_only_for_attempts_that_wrote_no_cause(store: Store, tmp_path: Path) -> None:
    silent = [attempt(store, BEGIN + KILLED, seed=seed) for seed in range(20)]
    failed = attempt(store, error=f"{TRACEBACK}ValueError: no\n", seed=20)
    submit(store, [[*silent, failed]])
    accounting(tmp_path, {"300_0": "mmprompt-1-abc.0|NODE_FAIL|0:0|2026-11-24T12:00:00"})
    causes = {run: failure.cause for run, failure in failures_of(store, *silent, failed).items()}
    assert causes == {**dict.fromkeys(silent, "node lost"), failed: "error"}
    assert len((tmp_path / "sacct.asked").read_text().splitlines()) == 1
    failures_of(store, failed)
    assert len((tmp_path / "sacct.asked").read_text().splitlines()) == 1


ERRORS = {
    f"{TRACEBACK}mmprompt.train.TrainingError: the loss is nan at step 2\n": (
        "diverged",
        "mmprompt.train.TrainingError: the loss is ",
    ),
    f"{TRACEBACK}pydantic.ValidationError: 1 error\n  field required\nSee https://errors\n": (
        "error",
        "pydantic.ValidationError: 1",
    ),
    f"{TRACEBACK}MemoryError\n": ("out of memory", "MemoryError"),
    f"{TRACEBACK}RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried\n": (
        "out of memory",
        "RuntimeError: Defau",
    ),
    f"{TRACEBACK}torch.OutOfMemoryError: CUDA out of memory. Tried to\n": ("out of memory", "torch.OutOfMemoryError"),
    f"interrupted: {TRACEBACK}mmprompt.runs.files.StoreError: /x cannot be written: Disk quota exceeded\n": (
        "disk full",
        "mmprompt.runs.files.StoreError",
    ),
    f"{TRACEBACK}OSError: [Errno 28] No space left on device: '/store/run/1/attempts/1/wandb'\n": (
        "disk full",
        "OSError: [Errno 28]",
    ),
    f"{TRACEBACK}OSError: [Errno 122] Disk quota exceeded\n\nDuring handling of the above exception, another exception "
    f"occurred:\n\n{TRACEBACK}wandb.errors.CommError: no run\n": ("disk full", "wandb.errors.CommError: no run"),
    f"{TRACEBACK}RuntimeError: [enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0: "
    "file write failed\n": ("disk full", "RuntimeError: [enforce"),
    f"{TRACEBACK}safetensors.SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)\n": (
        "disk full",
        "safetensors.SafetensorError",
    ),
    f"{TRACEBACK}mmprompt.runs.files.StoreError: /x cannot be written: Read-only file system\n": (
        "error",
        "mmprompt.runs.files.StoreError",
    ),
    "interrupted: the time limit is near": ("time limit", "the time limit is near"),
    "TimeLimitError: 3 attempts came near the time limit of their jobs": ("time limit", "TimeLimitError: 3 attempts"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_the_cause_that_an_attempt_wrote_is_preferred_to_accounting_and_log(
    store: Store, tmp_path: Path, error: str
) -> None:
    run = attempt(store, BEGIN + LOGS["preempted"], error)
    submit(store, [[run]])
    accounting(tmp_path, {"300_0": "mmprompt-1-abc.0|NODE_FAIL|0:0|2026-11-24T12:00:00"})
    failure = failures_of(store, run)[run]
    assert failure.cause == ERRORS[error][0] and failure.reason.startswith(ERRORS[error][1])
    assert failure.attempt is not None and failure.attempt.number == 1


def test_a_local_process_that_received_a_signal_was_cancelled_and_a_silent_one_was_killed(store: Store) -> None:
    signalled = attempt(store, error="interrupted: told to end by SIGTERM", kind="local", seed=1)
    silent = attempt(store, error="interrupted: its process ended without a word\n", kind="local", seed=2)
    submit(store, [[signalled, silent]], kind="local")
    causes = {run: failure.cause for run, failure in failures_of(store, signalled, silent).items()}
    assert causes == {signalled: "cancelled", silent: "killed"}


# A job that claimed no run


def test_a_job_that_ends_before_it_claims_a_run_is_not_begun_and_its_log_gives_the_reason(store: Store) -> None:
    first, second, third = (create(store, seed) for seed in (1, 2, 3))
    folder = submit(store, [[first], [second, third]])
    (folder / "0" / "300_0_0_log.err").write_text(
        "slurmstepd-gn2: error: execve(): /no/python: No such file or directory\n"
        "srun: error: gn2: task 0: Exited with exit code 2\n"
    )
    (folder / "0" / "300_1_0_log.err").write_text(
        BEGIN
        + f"{TRACEBACK}ModuleNotFoundError: No module named 'torch'\nsrun: error: gn2: task 0: Exited with exit code 1\n"
    )
    failed = failures_of(store, first, second, third)
    assert {failure.cause for failure in failed.values()} == {"not begun"}
    assert failed[first].reason == "execve(): /no/python: No such file or directory"
    assert failed[third].reason == "ModuleNotFoundError: No module named 'torch'"
    assert failed[third].attempt is None and failed[third].log == folder / "0" / "300_1_0_log.err"


@pytest.mark.parametrize(
    ("execution", "cause", "reason"),
    [
        ("CANCELLED by 0|0:0|None", "cancelled", "cancelled by root"),  # while it was pending
        ("FAILED|0:15|2026-11-24T12:00:00", "not begun", "its job left no log; SLURM says FAILED, exit code 0:15"),
        (
            "FAILED|0:53|2026-11-24T12:00:00",
            "not begun",
            "its job left no log; SLURM says FAILED, exit code 0:53: the node could not write into {store}/jobs/1/0",
        ),
        ("OUT_OF_MEMORY|0:125|2026-11-24T12:00:00", "out of memory", "SLURM says OUT_OF_MEMORY"),
        (None, "not begun", "its job left no log; SLURM no longer knows the job"),
    ],
)
def test_accounting_gives_the_cause_of_a_job_that_left_no_log(
    store: Store, tmp_path: Path, execution: str | None, cause: str, reason: str
) -> None:
    run = create(store, 1)
    submit(store, [[run]])
    if execution:
        accounting(tmp_path, {"300": f"mmprompt-1-abc.0|{execution}"})
    failure = failures_of(store, run)[run]
    assert (failure.cause, failure.reason) == (cause, reason.format(store=store.root))


@pytest.mark.parametrize("shown", ["300_[0-2]", "300_[0,2-3%2]"])
def test_tasks_that_never_began_share_one_line_of_accounting(store: Store, tmp_path: Path, shown: str) -> None:
    runs = [create(store, seed) for seed in range(4)]
    submit(store, [[run] for run in runs])
    accounting(
        tmp_path, {shown: "mmprompt-1-abc.0|CANCELLED by 0|0:0|None", "300_1": "mmprompt-1-abc.0|FAILED|0:53|None"}
    )
    causes = [failure.cause for failure in failures_of(store, *runs).values()]
    # A task that was cancelled alone, as the last one of the first list, is only missing from the list.
    assert causes == ["cancelled", "not begun", "cancelled", "cancelled"]


def test_a_task_that_is_missing_in_accounting_and_left_a_log_was_not_cancelled(store: Store, tmp_path: Path) -> None:
    runs = [create(store, seed) for seed in range(2)]
    folder = submit(store, [[run] for run in runs])
    accounting(tmp_path, {"300_0": "mmprompt-1-abc.0|CANCELLED|0:0|None"})
    (folder / "0" / "300_1_0_log.err").write_text("slurm_script: line 9: module: command not found\n")
    assert [failure.cause for failure in failures_of(store, *runs).values()] == ["cancelled", "not begun"]


@pytest.mark.parametrize(
    "behind", [None, "mmprompt-1-abc.0|RUNNING|0:0|2026-11-24T12:00:00", "allocation|CANCELLED by 0|0:0|None"]
)
def test_the_controller_gives_the_cause_of_jobs_that_accounting_does_not_know(
    store: Store, tmp_path: Path, behind: str | None
) -> None:
    lost, waited = attempt(store, BEGIN + KILLED), create(store, 2)
    submit(store, [[lost], [waited]])
    if behind is not None:
        accounting(tmp_path, {"300_0": behind, "300_1": behind})
    remembered = {
        "300_0": "mmprompt-1-abc.0|NODE_FAIL||2026-11-24T12:00:00",
        "300_1": "mmprompt-1-abc.0|CANCELLED||N/A",
    }
    answers(tmp_path, "squeue", remembered)
    assert [failure.cause for failure in failures_of(store, lost, waited).values()] == ["node lost", "cancelled"]
    assert len((tmp_path / "squeue.asked").read_text().splitlines()) == 1


def test_accounting_is_preferred_to_the_controller(store: Store, tmp_path: Path) -> None:
    known, waited = attempt(store, BEGIN + KILLED), create(store, 2)
    submit(store, [[known], [waited]])
    accounting(tmp_path, {"300_0": "mmprompt-1-abc.0|CANCELLED by 0|0:0|2026-11-24T12:00:00"})
    answers(tmp_path, "squeue", {"300_0": "mmprompt-1-abc.0|CANCELLED||N/A"})
    assert failures_of(store, known, waited)[known].reason == "cancelled by root"


def test_a_job_that_claimed_one_of_its_runs_has_begun_and_its_other_runs_have_no_cause(store: Store) -> None:
    begun, other = attempt(store, BEGIN + KILLED), create(store, 2)
    submit(store, [[begun, other]])
    assert list(failures_of(store, begun, other)) == [begun]


def test_the_newest_job_gives_the_cause_of_a_run_that_was_tried_before(store: Store, tmp_path: Path) -> None:
    run = attempt(store, error=f"{TRACEBACK}ValueError: no\n")
    submit(store, [[run]])
    submit(store, [[run]], number=2)
    assert failures_of(store, run)[run].cause == "not begun"
    accounting(tmp_path, {"300": "mmprompt-2-abc.0|COMPLETED|0:0|2026-11-24T12:20:00"})
    assert (
        failures_of(store, run)[run].cause == "error"
    )  # the second job found the run claimed, and ended without an error


def test_a_local_process_that_fails_before_it_claims_a_run_has_a_cause_and_a_stopped_one_has_none(
    store: Store,
) -> None:
    run = create(store, 1)
    folder = submit(store, [[run]], kind="local")
    log = folder / "77_0_log.err"
    assert failures_of(store, run) == {}
    log.write_text("")
    assert failures_of(store, run) == {}
    batch = json.loads((folder / "batch.json").read_text())
    log.write_text(f"{TRACEBACK}ModuleNotFoundError: No module named 'torch'\n")
    assert failures_of(store, run) == {}  # it is unknown whether the launch, on another machine, still runs
    batch["launcher"] = {"host": os.uname().nodename, "pid": 1, "started": 0.0}
    (folder / "batch.json").write_text(json.dumps(batch))
    assert failures_of(store, run)[run].reason == "ModuleNotFoundError: No module named 'torch'"


def test_runs_that_are_done_or_wait_or_were_never_launched_have_no_cause(store: Store) -> None:
    done = made.train(
        store, {"task": "micro_vqa", "seed": 1}, {"val/vqa_accuracy": 50.0, "test/vqa_accuracy": 50.0}, made.DISABLED
    ).id
    waits, never = create(store, 2), made.run_of({"task": "micro_vqa", "seed": 3})
    folder = submit(store, [[waits], [done]], taken=0)  # a submit limit: SLURM accepted none of them
    assert failures_of(store, done, waits, never) == {}
    shutil.rmtree(folder / "0")  # as if the launch was killed before it called sbatch
    assert failures_of(store, done, waits, never) == {}


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("TimeLimitError: the time limit is near and no run has begun, again", "time limit"),
        (f"{TRACEBACK}MemoryError", "out of memory"),
    ],
)
def test_a_jobs_limits_can_be_the_cause_of_its_end_before_it_claims_a_run(store: Store, line: str, cause: str) -> None:
    run = create(store, 1)
    folder = submit(store, [[run]])
    (folder / "0" / "300_0_log.err").write_text(f"{BEGIN}{line}\nsrun: error: gn1: task 0: Exited with exit code 1\n")
    assert failures_of(store, run)[run].cause == cause
