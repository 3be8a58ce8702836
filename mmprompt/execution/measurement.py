"""What the rows of a sweep take, measured side by side: seconds per 100 answers, seconds per update, peak memory.

A row is one finished run. All rows of a task are loaded into one process, on one device, and measured in turns, round by round,
in an order that rotates: what else the machine does meets all of them alike. A first round does not count. Ratios to the
baseline are taken within each round; reported are median, lowest and highest over rounds. Peak memory is that of a process of
its own for each row, `python -m mmprompt.execution.measurement`. Runs stay as they are; only what was measured is written.
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mmprompt.evaluation.answers import answers
from mmprompt.execution.evaluations import published_weights
from mmprompt.execution.resources import finish, forget_peak, peak_memory_mb, seconds_per_100
from mmprompt.execution.run_context import load_run
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.files import write_once
from mmprompt.runs.processes import at_work, this_process
from mmprompt.runs.records import as_json
from mmprompt.runs.signals import end_when_told
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import parse
from mmprompt.training.frozen_features import live_features
from mmprompt.training.loader import Loader
from mmprompt.training.train import update_ema
from mmprompt.training.update import optimiser_of, update

Request = Mapping[
    str, Any
]  # a row: task, values of the axes, run, settings of its job, and the place of its baseline among the rows


def measure(store: Store, asked: Mapping[str, Any], job: Mapping[str, Any], wanted: Callable[[], bool]) -> Path:
    """Measures the rows of a batch (`sweeps.verbs.measure`), and writes the result into the store under the next number.

    Raises SystemExit when the process has to end, or the measurement is no longer wanted: then nothing was written.
    """
    end_when_told()
    before = machine(store, job)
    print(f"measures {len(asked['rows'])} rows; {describe_machine(before)}", file=sys.stderr, flush=True)
    rows: list[Request] = asked["rows"]
    memory = [peak_in_a_process_of_its_own(store, row, asked) for row in rows if end_unless_wanted(wanted)]
    taken: dict[int, dict[str, list[float]]] = {}
    parameters: dict[int, int] = {}
    device = threads = None
    for _, group in itertools.groupby(range(len(rows)), key=lambda place: rows[place]["task"]):
        places = list(group)
        ready = [LoadedRow(store, rows[place], asked) for place in places if end_unless_wanted(wanted)]
        taken |= dict(zip(places, in_turns(ready, asked["rounds"], asked["updates"], wanted), strict=True))
        device, threads = ready[0].run.origin["device"], ready[0].run.config.threads
        parameters |= {place: one.parameters for place, one in zip(places, ready, strict=True)}
        for place in places:
            taken[place]["peak_memory_mb"] = [memory[place]]
            print(f"{rows[place]['task']} {rows[place]['values']}: measured", file=sys.stderr, flush=True)
        del ready
    content = {
        "sweep": asked["name"],
        **{key: job[key] for key in ("batch", "commit", "dirty", "code")},
        "when": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": this_process()["host"],
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
        "cores": before["cores"],
        "load": {"before": before["load"], "after": machine(store, job)["load"]},
        "others": before["others"],
        **{key: asked[key] for key in ("rounds", "updates", "baseline", "missing")},
        "rows": [
            {key: row[key] for key in ("task", "values", "run", "steps", "devices")}
            | {"baseline": row["baseline"] == place, "against": row["baseline"], "parameters": parameters[place]}
            | {"quantities": quantities(taken[place], taken.get(row["baseline"], {}))}
            for place, row in enumerate(rows)
        ],
    }
    return put(store, content)


class LoadedRow:
    """A finished run in memory. It answers and is updated again and again, each time from its own weights."""

    def __init__(self, store: Store, row: Request, asked: Mapping[str, Any]) -> None:
        folder = store.run(row["run"])
        result = folder.result()
        if result is None:
            raise RuntimeError(f"run {folder.id} has no result any more; the same command measures another")
        self.run = load_run(folder, folder.published, parse(JobSettings, asked["settings"][row["settings"]]))
        config, tuned = self.run.config, self.run.tuned
        training = tuned.prompts  # with the MLP, where there is one
        tuned.load_published_state(published_weights(folder, result))
        tuned.eval()
        self.device, self._answering = self.run.device, tuned.prompts
        self.parameters = sum(one.numel() for one in self.run.backbone.parameters())  # without what a method adds
        self.is_trained = bool(tuned.trained)  # not of a prompt of length 0
        last = self.run.data.split(config.task.splits[-1])
        seen = live_features(config, tuned, last, self.device)
        self._answer = partial(answers, config, tuned, last, seen)
        if self.is_trained:
            train = self.run.data.split("train")
            self._loader = Loader(config, train, self.run.view(train), self.device, speed=self.run.speed)
            tuned.prompts = self._training = training
            self._weights = tuned.tuned_state()
            self._optimiser, self._ema = optimiser_of(tuned, config.optim), dict[str, Tensor]()
            tuned.prompts = self._answering

    def once(self, updates: int) -> dict[str, float]:
        """Seconds per 100 answers, and per training update if the method trains anything."""
        torch.set_num_threads(self.run.config.threads)
        took = {"seconds_per_100": seconds_per_100(self._answer, self.device)}
        return took | ({"seconds_per_update": self.seconds_per_update(updates)} if self.is_trained else {})

    def seconds_per_update(self, count: int) -> float:
        """The mean over `count` updates from the middle of the run. The weights are restored afterwards."""
        config, tuned, optim = self.run.config, self.run.tuned, self.run.config.optim
        tuned.prompts = self._training
        tuned.train()
        finish(self.device)
        began = time.perf_counter()
        for step in range(optim.steps // 2, optim.steps // 2 + count):
            update(tuned, self._optimiser, config, self._loader, step % optim.steps)
            if optim.ema_decay is not None:
                update_ema(self._ema, tuned.trained, optim.ema_decay)
        finish(self.device)
        seconds = (time.perf_counter() - began) / count
        tuned.load_tuned_state(self._weights)
        tuned.prompts = self._answering
        tuned.eval()
        return seconds

    def peak(self, updates: int) -> float:
        """Peak memory in MB while it is updated and answers."""
        forget_peak(self.device)
        self.once(updates)
        return peak_memory_mb(self.device)


def in_turns(
    ready: Sequence[LoadedRow], rounds: int, updates: int, wanted: Callable[[], bool]
) -> list[dict[str, list[float]]]:
    """For each row, by quantity, the values of all rounds."""
    taken: list[dict[str, list[float]]] = [defaultdict(list) for _ in ready]
    for number in range(rounds + 1):
        for turn in range(len(ready)):
            end_unless_wanted(wanted)
            place = (turn + number) % len(ready)
            for quantity, value in ready[place].once(updates).items():
                if number > 0:  # before, caches are filled
                    taken[place][quantity].append(value)
    return taken


def quantities(taken: Mapping[str, Sequence[float]], baseline: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Median, lowest and highest of each quantity, and of its ratios to the baseline in the same rounds, if there is one."""
    found = {}
    for quantity, values in taken.items():
        ratios = [value / base for value, base in zip(values, baseline.get(quantity, ()), strict=False)]
        found[quantity] = {
            **summary(values, ""),
            **(summary(ratios, "ratio") if len(ratios) == len(values) else dict.fromkeys(RATIOS)),
            "rounds": len(values),
            "values": list(values),
        }
    return found


RATIOS = ("ratio", "ratio_lowest", "ratio_highest")


def summary(values: Sequence[float], name: str) -> dict[str, float]:
    prefix = f"{name}_" if name else ""
    return {name or "median": median(values), f"{prefix}lowest": min(values), f"{prefix}highest": max(values)}


def peak_in_a_process_of_its_own(store: Store, row: Request, asked: Mapping[str, Any]) -> float:
    """Peak memory in MB. Raises CalledProcessError if the process fails; the log says why."""
    told = json.dumps(
        {"store": str(store.root), "row": row, "asked": {key: asked[key] for key in ("settings", "updates")}}
    )
    command = [sys.executable, "-m", "mmprompt.execution.measurement"]
    done = subprocess.run(command, input=told, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_memory_mb"])


def machine(store: Store, job: Mapping[str, Any]) -> dict[str, Any]:
    """What else this machine does: load (processes that want a core, over the last minute), cores that this process may use,
    and other jobs of this store."""
    own = (store.jobs / str(job["batch"])).resolve()
    others = at_work(store.jobs.resolve(), but=own)
    return {"load": round(os.getloadavg()[0], 2), "cores": len(os.sched_getaffinity(0)), "others": others}


def describe_machine(machine: Mapping[str, Any]) -> str:
    return (
        f"load {machine['load']} of {machine['cores']} cores, {machine['others']} other jobs of this store at work here"
    )


def end_unless_wanted(wanted: Callable[[], bool]) -> bool:
    if not wanted():
        raise SystemExit("the measurement ends here, and nothing of it is kept: its launch is gone, or its time is up")
    return True


def put(store: Store, content: Mapping[str, Any]) -> Path:
    """Writes a measurement under the next free number. Two processes never get the same number."""
    folder, taken = store.costs(content["sweep"]), store.measurements(content["sweep"])
    for number in itertools.count(max(taken, default=0) + 1):
        if write_once(folder / f"{number}.json", as_json(content)):
            return folder / f"{number}.json"
    raise AssertionError


def main() -> None:
    """Measures the peak memory of one row, which the calling process names on stdin."""
    told = json.loads(sys.stdin.read())
    ready = LoadedRow(Store(Path(told["store"])), told["row"], told["asked"])
    print(json.dumps({"peak_memory_mb": ready.peak(told["asked"]["updates"])}))


if __name__ == "__main__":
    main()
