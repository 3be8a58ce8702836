"""The log of a waiting launch and `status` report the same at the same moment, even if the clocks of machines differ."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from clocks import python_with_wrong_clock
from launcher import TINY, Launcher
from patience import ended, until

from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from sweeps.display.report import SUSPICIOUS_SILENCE

SOON = "import sys; from sweeps.display import live_table as table; table.LOG_INTERVAL = table.MAX_LOG_INTERVAL = 0.2; "
SOON += "from sweeps.__main__ import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Waiting:
    """A launch that writes a log, one run after another."""

    launcher: Launcher
    settings: tuple[str, ...]
    program: tuple[str, ...] = (sys.executable,)
    process: subprocess.Popen[bytes] = field(init=False)

    def __enter__(self) -> Waiting:
        arguments = ["launch", "length", *TINY, "optim.validate_every=50", "cluster.max_parallel=1", *self.settings]
        self.process = subprocess.Popen(
            [*self.program, "-c", SOON, *arguments],
            cwd=self.launcher.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(self.launcher.store.root)},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=self.launcher.take_signals,
        )
        return self

    def __exit__(self, *error: object) -> None:
        for attempt in self.attempts:
            go_on(attempt)
        self.process.send_signal(signal.SIGTERM)
        ended(self.process)

    @property
    def log(self) -> Path:
        return self.launcher.folder / "log"

    @property
    def attempts(self) -> list[Attempt]:
        store = self.launcher.store
        return [attempt for run in store.runs() for attempt in store.run(run).attempts()]

    def held(self, steps: int, at: Callable[[int], bool]) -> Attempt:
        """The attempt of the run of so many steps, stopped where `at` says so of its step."""

        def there() -> Attempt | None:
            for attempt in self.attempts:
                said = attempt.progress
                if said and said["steps"] == steps and at(said["step"]):
                    os.kill(attempt.job["pid"], signal.SIGSTOP)
                    return attempt
            return None

        attempt: Attempt = until(there, f"the run of {steps} steps is as far as that", self.process, often=True)
        worker = psutil.Process(attempt.job["pid"])
        until(lambda: worker.status() == psutil.STATUS_STOPPED, "it stands still", self.process)
        return attempt

    def last_line(self) -> str:
        """What the log says after what is there has been looked at again."""
        before = self.log.read_text()

        def more() -> str:
            said = self.log.read_text().removeprefix(before)
            return said if said.count("\n") >= 3 else ""

        lines: str = until(more, "the launch says how things stand", self.process)
        return lines[: lines.rindex("\n")].splitlines()[-1]

    def status(self) -> list[str]:
        return asked(self.launcher).splitlines()


def asked(launcher: Launcher, *arguments: str) -> str:
    """What `status` prints, of a store that nobody changes in the meantime."""
    command = [sys.executable, "-m", "sweeps", "status", "--runs", str(launcher.store.root), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def go_on(attempt: Attempt) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(attempt.job["pid"], signal.SIGCONT)


SHORT, LONG = 4, 40
MANY = ("task.data.val=300", "task.data.test=300")  # whose scoring takes longer than the steps


@pytest.mark.long
def test_the_log_of_a_launch_and_status_say_the_same_of_a_run_that_stands_still_and_scoring_takes_time(
    launcher: Launcher,
) -> None:
    with Waiting(launcher, ("seed=1", f"optim.steps={SHORT},{LONG}", *MANY)) as waiting:
        scoring = waiting.held(SHORT, lambda step: step == SHORT)
        line, (first, head, *rows) = waiting.last_line(), waiting.status()
        said = r"length: 2 runs: 1 running \(1 scoring\), 1 to do; 50 % done, more than \d+ s left"
        assert line == first and re.fullmatch(said, line)
        assert re.search(r"  scoring  .*  4/4 ", rows[0]) and "left" not in head  # nothing tells how long it takes
        go_on(scoring)

        under_way = waiting.held(LONG, lambda step: step < LONG)
        line, (first, _, *rows) = waiting.last_line(), waiting.status()
        assert line == first and re.fullmatch(
            r"length: 2 runs: 1 done, 1 running; (5[0-9]|[6-9][0-9]) % done, about \d+ s left", line
        )
        assert re.search(rf"  running  .*  {under_way.progress['step']}/{LONG} .* \d+ s$", rows[0])
        go_on(under_way)

        waiting.held(LONG, lambda step: step == LONG)
        line, (first, _, *rows) = waiting.last_line(), waiting.status()
        assert line == first and re.fullmatch(
            r"length: 2 runs: 1 done, 1 running \(1 scoring\); (5[0-9]|[6-9][0-9]) % done, about [1-9]\d* s left", line
        )
        assert re.search(rf"  scoring  .*  {LONG}/{LONG} .* [1-9]\d* s$", rows[0])
        [sweep] = json.loads(asked(launcher, "--json"))["sweeps"]
        assert [run["left"] is None for run in sweep["runs"]] == [True, False] and 0 < sweep["left"] < 600
        assert 0.5 < sweep["done"] < 1


@pytest.mark.long
@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_run_whose_node_has_a_wrong_clock_is_neither_silent_nor_ahead(launcher: Launcher, seconds: int) -> None:
    python = python_with_wrong_clock(launcher.folder, f"{seconds:+}")
    with Waiting(launcher, ("seed=1", "optim.steps=4000"), (str(python),)) as waiting:
        held = waiting.held(4000, lambda step: step > 0)
        assert held.progress is not None and abs(held.progress["time"] - time.time() - seconds) < SUSPICIOUS_SILENCE
        [sweep] = json.loads(asked(launcher, "--json"))["sweeps"]
        [run] = sweep["runs"]
        assert 0 <= time.time() - run["heard"] < SUSPICIOUS_SILENCE
        assert "silent" not in asked(launcher) and "1 running" in asked(launcher)
        # And it is called silent once it is, though its own clock has seen nothing of it.
        long_ago = time.time() - SUSPICIOUS_SILENCE - 60
        for file in held.path.glob("*.*"):
            os.utime(file, (long_ago, long_ago))
        said = asked(launcher)
        assert "running, silent for 11 min" in said
        assert f"python -m sweeps cancel {held.run.id[:4]}" in said.split("no word for 11 min from")[1]
        assert re.search(r"1 running; \d+ % done, more than", waiting.last_line())
