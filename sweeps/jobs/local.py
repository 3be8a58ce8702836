"""Local workers: processes that take runs from a batch's list. A launch starts and stops them.

All launches of a store on one machine share its cores and GPUs. Before a launch starts a worker, it counts the workers of all
launches, even of launches that have ended. Workers are found by their command line, which contains the folder of their batch.
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

from mmprompt.runs.failures import conclusion
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster
from mmprompt.settings.parsing import ConfigError
from sweeps.jobs.batch import GPUS, Batch

LAST_WORDS = 20.0  # seconds that a worker has after SIGTERM to close its records
AGAIN = 8.0  # seconds after which SIGTERM is sent again: compiled code can swallow the exception that a signal raises
NODE = "sweeps.node"  # the module that a worker executes


def capacity(cluster: Cluster, threads: int) -> int:
    """Returns how many workers may run on this machine at once, each with so many `threads`.

    Raises ConfigError if the machine has fewer GPUs than one worker needs.
    """
    count = len(os.sched_getaffinity(0)) // threads
    if cluster.gpus:
        devices = len(gpus())
        count = devices // cluster.gpus
        if count == 0:
            raise ConfigError(f"cluster.gpus={cluster.gpus}, but this machine has {devices} NVIDIA devices")
    return max(1, cluster.max_parallel or count)


def gpus() -> list[str]:
    """Returns the GPUs that we may use: those in CUDA_VISIBLE_DEVICES if it is set, as inside an allocation, else all."""
    devices = [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    return visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(devices)))


def visible_gpus(visible: str) -> list[str]:
    """Returns the GPUs in the text of CUDA_VISIBLE_DEVICES as CUDA reads it: numbers or UUIDs, up to the first other word."""
    return list(itertools.takewhile(re.compile(r"\d+$|GPU-|MIG-").match, re.split(r"\s*,\s*", visible.strip())))


def running_workers(store: Store) -> list[psutil.Process]:
    """Returns the local workers of this store that run on this machine, whichever launch started them."""
    jobs, workers = store.jobs.resolve(), []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[-4:-2] == ["-m", NODE] and Path(words[-2]).resolve().parent == jobs:
            batch = Batch(Path(words[-2]))
            if batch.file.exists() and not batch.is_slurm:
                workers.append(process)
    return workers


def batch_folder(worker: psutil.Process) -> Path:
    """Returns the folder of the worker's batch, as its command line names it."""
    return Path(worker.info["cmdline"][-2])


def gpus_of(worker: psutil.Process) -> list[str]:
    """Returns the GPUs that were given to a worker; an empty list if it belongs to another user or has ended."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return visible_gpus(worker.environ().get(GPUS, ""))
    return []


def output_log(log: str) -> Path:
    """Returns the file for a worker's stdout, next to `log`, its stderr."""
    return Path(log).with_suffix(".out")


class Workers:
    """The local workers that this process starts for one batch."""

    def __init__(self, batch: Batch, most: int) -> None:
        self.batch = batch
        self.store = Store(Path(batch.record["store"]))
        self.most = most  # workers on this machine at once, those of other launches included
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def started(self) -> int:
        """How many workers were started so far."""
        return len(self._started)

    @property
    def any_ended_well(self) -> bool:
        return any(process.poll() == 0 for process in self._started)

    def alive(self) -> int:
        """Returns how many of the started workers still run."""
        return sum(process.poll() is None for process in self._started)

    def start(self, requested: int, running: Sequence[psutil.Process]) -> int:
        """Starts `requested` workers, or as many as fit beside the `running` ones, and returns their number.

        Raises StoreError if a worker's log cannot be written or the process cannot be started.
        """
        taken = [gpu for worker in running for gpu in gpus_of(worker)]
        free = [gpu for gpu in gpus() if gpu not in taken]
        each = self.batch.record["cluster"]["gpus"]
        count = max(0, min(requested, self.most - len(running), len(free) // each if each else requested))
        for number in range(count):
            self._start(free[number * each : (number + 1) * each])
        return count

    def _start(self, gpus: list[str]) -> None:
        """Starts a worker on these GPUs. Raises StoreError if it cannot be started."""
        code = self.batch.record["snapshot"]
        paths = os.pathsep.join(filter(None, [code, os.environ.get("PYTHONPATH")]))
        environment = os.environ | self.batch.environment | {GPUS: ",".join(gpus), "PYTHONPATH": paths}
        try:
            number, log = self._new_log()
            with signals_held_back(), log, output_log(log.name).open("wb") as output:
                command = [sys.executable, "-u", "-m", NODE, str(self.batch.folder), str(number)]
                self._started.append(
                    subprocess.Popen(
                        command, cwd=code, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=log
                    )
                )
        except OSError as error:
            raise StoreError(f"no worker can be started from {self.batch.folder}: {error.strerror}") from error

    def _new_log(self) -> tuple[int, BinaryIO]:
        """Returns the number of the next worker, and its log, newly created. Raises OSError if that fails."""
        for number in itertools.count(len(self._started) + 1):
            with contextlib.suppress(FileExistsError):
                return number, self.batch.worker_log(number).open("xb")
        raise AssertionError

    def last_words(self) -> str:
        """Returns the most recently written log's name and conclusion, as a sentence for users."""
        logs = self.batch.worker_logs
        return (
            f"{logs[-1]} ends with\n  {conclusion(logs[-1].read_text(encoding='utf-8', errors='replace'))}"
            if logs
            else "they wrote no log"
        )

    def finish(self) -> None:
        """Waits until the workers, which have nothing left to do, have ended; stops those that do not end by themselves."""
        deadline = time.monotonic() + LAST_WORDS
        for process in self._started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        if self.alive():
            self.stop()

    def stop(self) -> None:
        """Ends every worker of the batch: with SIGTERM, on which a worker closes its records, and later with SIGKILL."""
        began = time.monotonic()
        while (workers := self._ours()) and time.monotonic() - began < LAST_WORDS:
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.terminate()
            psutil.wait_procs(workers, timeout=AGAIN)
        killed: list[psutil.Process] = []
        for worker in self._ours():
            with contextlib.suppress(psutil.NoSuchProcess):
                killed += [worker, *worker.children(recursive=True)]
        for process in killed:
            with contextlib.suppress(psutil.NoSuchProcess):  # a child that ends with its parent spares no other
                process.kill()
        psutil.wait_procs(killed, timeout=AGAIN)  # who asks next what is at work shall not find them

    def _ours(self) -> list[psutil.Process]:
        return [worker for worker in running_workers(self.store) if batch_folder(worker) == self.batch.folder]


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Delays the signals that end this process until the worker that is being started can be found by `Workers.stop`.

    The worker inherits a blocked SIGINT. Ctrl-C in a terminal goes to all processes of the terminal, but a worker must receive only
    the SIGTERM that this process sends.
    """
    received: list[int] = []
    endings = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {ending: signal.signal(ending, lambda number, _: received.append(number)) for ending in endings}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for ending, handler in before.items():
            signal.signal(ending, handler)
        if received:
            signal.raise_signal(received[0])
