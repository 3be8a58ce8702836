"""Commands that users type: concurrent processes, their output and exit codes, and what is wrong with these."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from subject import Subject

CODES = {0, 1, 2, 130}  # the exit codes that a command may end with
HANGS = 240.0  # seconds after which a command that waits for no jobs counts as hung
TRACEBACK = "Traceback (most recent call last)"
SLURM = re.compile(
    r"(srun|slurmstepd(-\w+)?): .*\n?"
)  # SLURM's own lines in the same log, even in the middle of a line
FAR_AWAY = "Pacific/Auckland"  # the time zone of some users, which differs from that of the nodes


@dataclass
class Call:
    """A command that a user has typed."""

    words: Sequence[str]
    process: subprocess.Popen[bytes]
    out: Path
    err: Path
    waits: bool  # it waits for jobs, however long that takes
    shows: bool  # it prints logs, whose tracebacks are not its own
    then: Callable[[Call], None] | None
    began: float
    killed: bool = False  # by the harness

    @property
    def code(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def printed(self) -> str:
        return self.out.read_text(errors="replace") + self.err.read_text(errors="replace")

    def __str__(self) -> str:
        short = [word for word in self.words if "=" not in word or "/" in word]
        return f"{self.out.stem}: {' '.join(short)}"


class Calls:
    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.open: list[Call] = []
        self.wrong: list[str] = []
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        words: Sequence[str],
        far_away: bool = False,
        waits: bool = False,
        shows: bool = False,
        then: Callable[[Call], None] | None = None,
    ) -> Call:
        self.count += 1
        out = self.folder / f"{self.count:04}.out"
        err = out.with_suffix(".err")
        env = {**self.subject.env, **({"TZ": FAR_AWAY} if far_away else {})}
        with out.open("wb") as stdout, err.open("wb") as stderr:
            stdout.write(f"{' '.join(words)}{'  # in ' + FAR_AWAY if far_away else ''}\n".encode())
            stdout.flush()
            process = subprocess.Popen(
                self.subject.command(*words),
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.open.append(Call(words, process, out, err, waits, shows, then, time.monotonic()))
        return self.open[-1]

    def attend(self) -> None:
        """Checks the commands that have ended, and calls what should follow them."""
        for call in list(self.open):
            if call.code is None and not call.waits and time.monotonic() - call.began > HANGS:
                self.wrong.append(f"{call} did not end in {HANGS:g} s")
                call.kill()
            if call.code is not None:
                self.open.remove(call)
                self.wrong += faults_of(call)
                if call.then:
                    call.then(call)

    def end(self, seconds: float) -> None:
        """Waits this long for the commands to end, and kills the others."""
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            self.attend()
            time.sleep(0.1)
        for call in self.open:
            self.wrong.append(f"{call} did not end")
        self.kill()

    def kill(self) -> None:
        for call in self.open:
            call.kill()


def faults_of(call: Call) -> list[str]:
    """What is wrong with a command that has ended: its exit code, and tracebacks that it printed."""
    found = []
    if not call.killed and call.code not in CODES:
        found.append(f"{call} ended with {call.code}; see {call.err}")
    for file in [call.err, *([] if call.shows else [call.out])]:
        found += [f"{call} printed a traceback, {last}; see {file}" for last in raised(file)]
    return found


def raised(file: Path) -> list[str]:
    """The last line of each traceback in a file."""
    found = []
    with contextlib.suppress(OSError):
        lines = SLURM.sub("", file.read_text(errors="replace")).splitlines()
        for at, line in enumerate(lines):
            if TRACEBACK in line:
                margin = re.match(r"[\s|+-]*", line)
                end = len(margin[0]) if margin else 0
                rest = (text[end:] for text in lines[at + 1 :])
                found.append(next((text for text in rest if text[:1].strip()), "cut off"))
    return found
