"""A process that executes runs and dies at a requested point: `python tests/victim.py STORE`, which `Victims` starts and controls.

Importing torch takes seconds, so one process imports it once, prepares what a run needs, and forks for every attempt. The fork
behaves like a process that a scheduler starts: it has a pid, a claim and a W&B record of its own, and SIGKILL ends it alone.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.runs.deployment import ROOT

TOUCHES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkstemp"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_operation(number: int, store: str) -> None:
    """Dies before the operation of this number on files and folders of the store, counted from 1."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in TOUCHES and any(isinstance(a, str | os.PathLike) and store in os.fspath(a) for a in arguments[:2]):
            count += 1
            if count == number:
                die()

    sys.addaudithook(hook)


def attempt(asked: dict[str, Any], settings: Any) -> dict[str, str]:
    """What the forked process does. `asked` holds the request: which runs, and where to die."""
    from tiny import JOB

    from mmprompt.execution.execute import execute
    from mmprompt.runs.store import Store

    def shell(command: str) -> None:
        subprocess.run(command, shell=True, check=True)

    def watch(state: Any) -> None:
        if state.step == asked.get("die_after_step"):
            die()
        if state.step == asked.get("shell_after_step"):
            shell(asked["then"])

    if "first" in asked:
        shell(asked["first"])

    if "die_before_operation" in asked:
        die_before_operation(asked["die_before_operation"], asked["store"])
    if "die_at_byte" in asked:  # of a file: if the process writes more, the kernel kills it in the middle of that write
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["die_at_byte"], resource.RLIM_INFINITY))
    settings = settings.model_copy(update={"checkpoint_every": asked["checkpoint_every"]})
    return execute(Store(Path(asked["store"])), asked["runs"], settings, JOB, watch)


def end(asked: dict[str, Any], settings: Any) -> None:
    """Executes the attempt and exits with its code, without the second that shutting down the interpreter takes."""
    code = 0
    try:
        print(json.dumps(attempt(asked, settings)), flush=True)
    except SystemExit as reason:
        code = reason.code if isinstance(reason.code, int) else 1
        print("" if isinstance(reason.code, int) else reason.code, flush=True)
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def main() -> None:
    from tiny import JOB, frozen_run, job_settings

    from mmprompt.execution.execute import execute
    from mmprompt.runs.store import Store

    store = Path(sys.argv[1])
    places = {tracking: job_settings(tracking) for tracking in ("disabled", "offline")}
    warm = frozen_run(store, "optim.steps=1")
    execute(Store(store), [warm.id], places["disabled"], JOB)
    import wandb  # noqa: F401

    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            end(asked, places[asked["tracking"]])
        if "die_after_seconds" in asked:
            time.sleep(asked["die_after_seconds"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


@dataclass(frozen=True)
class End:
    code: int  # the exit code, or minus the signal that ended the process
    output: str

    @property
    def killed(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


class Victims:
    """The process that forks. If mounting is allowed, it has a small disk of its own, which can be filled or made read-only."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.disk: Path | None = folder / "disk"
        self.disk.mkdir()
        mount = f'mount -t tmpfs -o size=16m none "{self.disk}" && exec "$@"'
        before = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
        if shutil.which("unshare") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
            self.disk, before = None, []
        self.process = subprocess.Popen(
            [*before, sys.executable, __file__, str(folder / "warm")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def attempt(
        self, store: Path, *runs: str, tracking: str = "disabled", checkpoint_every: int = 2, **asked: Any
    ) -> End:
        """Executes the runs in a new process, and waits for its end."""
        assert self.process.stdin and self.process.stdout
        asked |= {"store": str(store), "runs": runs, "tracking": tracking, "checkpoint_every": checkpoint_every}
        self.process.stdin.write(json.dumps(asked | {"output": str(self.output)}) + "\n")
        self.process.stdin.flush()
        while not (answer := self.process.stdout.readline().strip()).lstrip("-").isdigit():
            assert answer or self.process.poll() is None, "the process that forks has ended"
        return End(int(answer), self.output.read_text())

    def close(self) -> None:
        self.process.communicate()


if __name__ == "__main__":
    main()
