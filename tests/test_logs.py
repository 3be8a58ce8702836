"""`python -m sweeps logs RUN`: the output of a run's job, and how its attempt ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import synthetic_store as made
from patience import ended, until
from test_causes import BEGIN, KILLED, TRACEBACK, answers, attempt, create, store, submit
from test_status import store_of

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store
from sweeps.verbs.logs import LINES, LogPrinter, logs

__all__ = ["store"]  # a fixture: a store, where SLURM's programs are not found


def printed_logs(capsys: pytest.CaptureFixture[str], store: Store, run: str, number: int | None = None) -> str:
    assert logs(run, store.root, follow=False, attempt=number) == 0
    return capsys.readouterr().out


def answering(folder: Path, **jobs: str) -> None:
    """Writes a squeue that has these tasks of batch 1, each given as STATE|NODE|REASON: `task0="PENDING||Resources"`."""
    lines = {}
    for task, job in jobs.items():
        word, node, reason = job.split("|")
        number = task.removeprefix("task")
        lines[f"300_{number}"] = f"mmprompt-1-abc.0|{word}|{node}|1:00:00|root|{reason}"
    answers(folder, "squeue", lines)


def test_logs_shows_the_newest_attempt_how_it_ended_and_the_end_of_its_job_s_output(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, [run] = store_of(tmp_path, 1)
    printed = "".join(f"line {i}\n" for i in range(100))
    attempt(store, BEGIN + printed, f"{TRACEBACK}ValueError: no\n", seed=0)
    submit(store, [[run]])
    answering(tmp_path)
    (store.root / "jobs/1/0/300_0_0_log.out").write_text("to the standard output\n")
    output = printed_logs(capsys, store, run[:6])
    first, second, *_ = output.splitlines()
    assert first == f"{run}  length: task=micro_vqa seed=0"
    assert second == "attempt 1 of 1: SLURM job 300_0 on elsewhere; error: ValueError: no"
    assert f"attempts/1/error.txt:\n{TRACEBACK}ValueError: no\n" in output
    assert f"{store.root}/jobs/1/0/300_0_0_log.err:\nline {100 - LINES}\n" in output and "line 99\n" in output
    assert output.endswith("300_0_0_log.out:\nto the standard output\n") and "other run" not in output


def test_logs_says_that_the_log_is_shared_if_its_job_has_several_runs(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = attempt(store, BEGIN + KILLED, seed=0), create(store, 1)
    submit(store, [[run, other]])
    answering(tmp_path)
    output = printed_logs(capsys, store, run)
    assert "killed: its process ended without a word" in output
    assert "the log is that of a job that has 1 other run as well" in output


def test_an_earlier_attempt_is_shown_without_the_output_of_its_requeued_job(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = BEGIN.replace("12:00:01", "12:30:01")
    log = f"{BEGIN}of the first\n{again}of the second\n"
    run = attempt(store, log, "interrupted: told to end by SIGTERM", seed=0)
    attempt(store, log, seed=0)
    submit(store, [[run]])
    answering(tmp_path, task0="RUNNING|gn2|None")
    output = printed_logs(capsys, store, run, 1)
    assert "attempt 1 of 2: SLURM job 300_0 on elsewhere; over" in output and "told to end by SIGTERM" in output
    assert "of the first" in output and "of the second" not in output
    assert "attempt 2 of 2: SLURM job 300_0 on elsewhere; running" in printed_logs(capsys, store, run)


def test_the_output_of_an_attempt_is_found_by_the_first_line_of_its_execution_not_by_time(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock of the second node was behind."""
    began = [BEGIN.replace("12:00:01\n", time) for time in ("12:30:01+0000\n", "11:45:01-0500\n", "12:40:01+0000\n")]
    log = f"{began[0]}of the first\n{began[1]}of the second\n{began[2]}of the third\n"
    for line in began:
        run = attempt(store, log, "interrupted: told to end by SIGTERM", seed=0, execution=line.strip())
    submit(store, [[run]])
    answering(tmp_path)
    for number, own in ((1, "of the first"), (2, "of the second")):
        parts = [line for line in printed_logs(capsys, store, run, number).splitlines() if line.startswith("of the ")]
        assert parts == [own]


def test_logs_says_what_a_run_that_has_not_begun_is_waiting_for(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create(store, 0)
    assert "not begun; SLURM has no job for it" in printed_logs(capsys, store, run)
    folder = submit(store, [[run], ["another"]])
    assert "not begun; no information from SLURM (there is no squeue here)" in printed_logs(capsys, store, run)
    answering(tmp_path, task0="PENDING||Resources")
    assert "queued: SLURM job 300_0 is pending (Resources)" in printed_logs(capsys, store, run)
    answering(tmp_path, task0="RUNNING|gn3|None")
    assert "queued: SLURM job 300_0 is running on gn3" in printed_logs(capsys, store, run)
    answering(tmp_path)
    (folder / "0" / "300_0_0_log.err").write_text("slurm_script: line 19: module: command not found\n")
    output = printed_logs(capsys, store, run)
    assert output.count("slurm_script: line 19: module: command not found") == 2  # the reason, and the log


def test_a_run_or_an_attempt_that_does_not_exist_is_an_error_of_one_sentence(store: Store) -> None:
    first, _ = create(store, 0), create(store, 1)
    with pytest.raises(StoreError, match="no run's id begins with"):
        logs("x", store.root, follow=False, attempt=None)
    with pytest.raises(StoreError, match="begins the ids of 2 runs"):
        logs("", store.root, follow=False, attempt=None)
    with pytest.raises(StoreError, match=r"--attempt 3: run .* has no such attempt; it was never begun"):
        logs(first, store.root, follow=False, attempt=3)
    run = attempt(store, error="interrupted: told to end by SIGTERM", kind="local", seed=2)
    attempt(store, error="interrupted: told to end by SIGTERM", kind="local", seed=2)
    submit(store, [[run]], kind="local")
    with pytest.raises(StoreError, match="has no such attempt; there are 1, 2"):
        logs(run, store.root, follow=False, attempt=3)
    with pytest.raises(StoreError, match="--attempt 1 is over, and -f has nothing to wait for"):
        logs(run, store.root, follow=True, attempt=1)


# Following


def test_a_line_that_is_written_while_the_end_of_a_log_is_read_is_printed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, printer, opened = tmp_path / "log", LogPrinter(), Path.open
    log.write_text("it begins\n")

    def write_first(path: Path, mode: str) -> Any:
        monkeypatch.setattr(Path, "open", opened)
        with log.open("a") as file:
            file.write("it goes on\n")
        return opened(path, mode)

    monkeypatch.setattr(Path, "open", write_first)
    printer.print_ends(log)
    printer.print_new(log)
    assert capsys.readouterr().out == f"\n{log}:\nit begins\nit goes on\n"


class Follower:
    """A `logs -f` in a process of its own."""

    def __init__(self, store: Store, run: str) -> None:
        self.file = store.root / "followed"
        with self.file.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sweeps", "logs", run, "-f", "--runs", str(store.root)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def until(self, text: str) -> str:
        until(lambda: text in self.file.read_text(), f"{text!r} is shown", self.process)
        return self.file.read_text()

    def end(self) -> str:
        assert ended(self.process) == 0, self.file.read_text()
        return self.file.read_text()


def test_following_prints_new_lines_continues_with_the_next_attempt_and_ends_with_the_run(store: Store) -> None:
    facts = made.JOB | this_process() | {"scheduler": "local", "batch": "1", "job": "77"}
    point = {"task": "micro_vqa", "seed": 0}
    store.jobs.mkdir(parents=True)
    first, second = store.root / "first.err", store.root / "second.err"
    first.write_text("it begins\n")
    attempt = made.claim(store, point, facts | {"log": "first.err"})
    follower = Follower(store, attempt.run.id)
    try:
        assert "attempt 1 of 1: process 77" in follower.until("it begins\n")
        with first.open("a") as log:
            log.write("it goes on\n")
        follower.until("it goes on\n")
        second.write_text("from the checkpoint\n")
        again = made.claim(store, point, facts | {"log": "second.err"})
        output = follower.until("from the checkpoint\n")
        assert "attempt 2 of 2" in output and output.count("it begins") == output.count("it goes on") == 1
        again.fail(from_text(f"{TRACEBACK}ValueError: no\n"))
        assert follower.end().endswith("error: ValueError: no\n")
    finally:
        follower.process.kill()
        follower.process.wait()


def test_ctrl_c_ends_following_without_a_traceback(store: Store) -> None:
    facts = made.JOB | this_process() | {"scheduler": "local", "batch": "1", "job": "77", "log": "first.err"}
    (store.root).mkdir()
    (store.root / "first.err").write_text("it begins\n")
    run = made.claim(store, {"task": "micro_vqa", "seed": 0}, facts).run.id
    follower = Follower(store, run)
    try:
        follower.until("it begins")
        with (store.root / "first.err").open("a") as log:
            log.write("it goes on\n")
        follower.until("it goes on")  # so it is following now
        follower.process.send_signal(2)
        assert "Traceback" not in follower.end()
    finally:
        follower.process.kill()
        follower.process.wait()
