"""Local workers: processes that take runs from a batch's list; a launch starts and stops them.

All launches of a store on one machine share its cores and GPUs: whoever starts a worker counts those of the others, be their
launch alive or not. They are found by their command line, which holds the folder of their batch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from mmprompt.runs.config import ConfigError
from mmprompt.runs.deployment import Cluster
from mmprompt.runs.failures import conclusion
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from sweeps.jobs.batch import GPUS, Batch

LAST_WORDS = 20.0  # seconds that a worker has after SIGTERM to close its records
AGAIN = 8.0  # seconds after which it is told again: compiled code can swallow the exception that a signal raises
NODE = "sweeps.node"  # the module that a worker executes


def capacity(cluster: Cluster, threads: int) -> int:
    """How many workers this machine carries at once. Raises ConfigError if it lacks the GPUs that one needs."""
    most = len(os.sched_getaffinity(0)) // threads
    if cluster.gpus:
        found = len(gpus())
        most = found // cluster.gpus
        if most == 0:
            raise ConfigError(f"cluster.gpus={cluster.gpus}, but this machine has {found} NVIDIA devices")
    return max(1, cluster.max_parallel or most)


def gpus() -> list[str]:
    """The GPUs that we may use: inside an allocation those of CUDA_VISIBLE_DEVICES, else all."""
    there = [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    return listed(os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(there)))


def listed(visible: str) -> list[str]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: numbers or UUIDs, up to the first word that is neither."""
    return list(itertools.takewhile(re.compile(r"\d+$|GPU-|MIG-").match, re.split(r"\s*,\s*", visible.strip())))


def at_work(store: Store) -> list[psutil.Process]:
    """The local workers of this store that live on this machine, whoever started them."""
    jobs, found = store.jobs.resolve(), []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[-4:-2] == ["-m", NODE] and Path(words[-2]).resolve().parent == jobs:
            batch = Batch(Path(words[-2]))
            if batch.file.exists() and not batch.is_slurm:
                found.append(process)
    return found


def folder_of(worker: psutil.Process) -> Path:
    """Of its batch."""
    return Path(worker.info["cmdline"][-2])


def gpus_of(worker: psutil.Process) -> list[str]:
    """The GPUs it was given; none known of another user's."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return listed(worker.environ().get(GPUS, ""))
    return []


def log_of_output(log: str) -> Path:
    """What a worker prints as output, beside what it prints as errors."""
    return Path(log).with_suffix(".out")


class Workers:
    def __init__(self, batch: Batch, most: int) -> None:
        self.batch = batch
        self.store = Store(Path(batch.record["store"]))
        self.most = most  # on this machine at once, those of other launches included
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def started(self) -> int:
        return len(self._started)

    @property
    def any_ended_well(self) -> bool:
        return any(process.poll() == 0 for process in self._started)

    def alive(self) -> int:
        return sum(process.poll() is None for process in self._started)

    def start(self, wanted: int, there: Sequence[psutil.Process]) -> int:
        """Starts `wanted` workers, or as many as have a place beside those that are `there`. How many. Raises StoreError."""
        taken = [gpu for worker in there for gpu in gpus_of(worker)]
        free = [gpu for gpu in gpus() if gpu not in taken]
        each = self.batch.record["cluster"]["gpus"]
        count = max(0, min(wanted, self.most - len(there), len(free) // each if each else wanted))
        for number in range(count):
            self._start(free[number * each : (number + 1) * each])
        return count

    def _start(self, gpus: list[str]) -> None:
        """Raises StoreError."""
        code = self.batch.record["snapshot"]
        paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        environment = os.environ | self.batch.environment | {GPUS: ",".join(gpus), "PYTHONPATH": paths}
        try:
            number, log = self._new_log()
            with signals_held_back(), log, log_of_output(log.name).open("wb") as output:
                command = [sys.executable, "-u", "-m", NODE, str(self.batch.folder), str(number)]
                self._started.append(
                    subprocess.Popen(
                        command, cwd=code, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=log
                    )
                )
        except OSError as error:
            raise StoreError(f"no worker can be started from {self.batch.folder}: {error.strerror}") from error

    def _new_log(self) -> tuple[int, BinaryIO]:
        """The number of the next worker, and its log. Raises OSError."""
        for number in itertools.count(len(self._started) + 1):
            with contextlib.suppress(FileExistsError):
                return number, self.batch.worker_log(number).open("xb")
        raise AssertionError

    def last_words(self) -> str:
        """The end of the log that was written to last."""
        logs = self.batch.worker_logs
        return (
            f"{logs[-1]} ends with\n  {conclusion(logs[-1].read_text(encoding='utf-8'))}"
            if logs
            else "they wrote no log"
        )

    def finish(self) -> None:
        """Waits for the workers, which have nothing left to do; stops those that do not end by themselves."""
        deadline = time.monotonic() + LAST_WORDS
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        if self.alive():
            self.stop()

    def stop(self) -> None:
        """Ends every worker: SIGTERM, on which it closes its records, and SIGKILL for those that do not end."""
        began = time.monotonic()
        while (workers := self._ours()) and time.monotonic() - began < LAST_WORDS:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.terminate()
            psutil.wait_procs(workers, timeout=AGAIN)
        for worker in self._ours():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [worker, *worker.children(recursive=True)]:
                    process.kill()

    def _ours(self) -> list[psutil.Process]:
        return [worker for worker in at_work(self.store) if folder_of(worker) == self.batch.folder]


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """What would end us waits until the worker that is being started is one that `stop` finds.

    And the worker inherits that SIGINT is blocked: Ctrl-C in a terminal goes to all its processes, but workers shall hear of
    it from us alone, as SIGTERM.
    """
    came: list[int] = []
    endings = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {ending: signal.signal(ending, lambda number, _: came.append(number)) for ending in endings}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for ending, handler in before.items():
            signal.signal(ending, handler)
        if came:
            signal.raise_signal(came[0])
