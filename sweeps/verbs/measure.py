"""`python -m sweeps measure NAME`: measures the seconds and the memory of the rows of a sweep (`mmprompt.execution.measurement`).

It measures one finished run for each task and row, the one with the smallest seed. The measurement is one job, on this machine or
on SLURM, with a batch of its own. It trains nothing; its result is STORE/costs/NAME/N.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import conclusion
from mmprompt.runs.files import StoreError, follow_mode
from mmprompt.runs.identity import is_of_evaluations, provenance
from mmprompt.runs.overrides import as_text
from mmprompt.runs.records import COSTS, CostsRecord, DamagedError, QuantityRecord, read
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.display.live_table import align_columns, confirm
from sweeps.grid.manifest import ExpandedSweep, expand
from sweeps.jobs import slurm, snapshot
from sweeps.jobs.batch import Batch, Kind, batches, job_settings, put_batch
from sweeps.jobs.local import Workers, capacity, running_workers
from sweeps.planning.launch_plan import CONF
from sweeps.verbs.launch import hand_over

UPDATES = 5  # of training, in a round
POLL = 0.5  # seconds between two checks for the result
SQUEUE = 30.0  # seconds between two queries of SLURM
NEWS = 60.0  # seconds after which a file that another host has written is visible here (NFS)
WIDTH = 120  # columns of the printed table
COLUMNS = {
    "seconds_per_100": "s per 100 answers",
    "seconds_per_update": "s per update",
    "peak_memory_mb": "peak MB",
}

Row = dict[str, Any]


def measure(name: str, overrides: Sequence[str], rounds: int, wait: bool) -> int:
    """Measures on this machine and prints the result, or submits a SLURM job that measures; with `wait` it follows that job.

    Returns 0 if all is well, 1 if a row has no finished run, or the measurement failed, 130 if interrupted.
    Raises ConfigError for a fault in the sweep, an override or the cluster settings.
    """
    expanded = expand(name, overrides, CONF)
    store, cluster = expanded.store, expanded.deployment.cluster
    follow_mode(store.root)
    rows, missing = rows_of(expanded)
    if not rows:
        print(f"{name}: nothing to measure, as none of its runs is finished; `make costs-{name}` measures them then")
        return 1
    for row in missing:
        print(f"not measured: {row['task']} {label(row['values'])} has no finished run")
    # Chosen before anything is written, because it may raise ConfigError.
    kind, why = slurm.choose(cluster.kind)
    tasks = len({row["task"] for row in rows})
    print(
        f"{name}: {len(rows)} row{'s' * (len(rows) > 1)} of {tasks} task{'s' * (tasks > 1)}, {rounds} rounds ({why})",
        flush=True,
    )
    facts = provenance() | {"slurm_cluster": None}
    if kind == "local":
        capacity(cluster, max(row["threads"] for row in rows))
        batch = freeze(expanded, rows, missing, rounds, kind, facts)
        code = measure_here(batch, store)
    else:
        facts["slurm_cluster"] = (slurm.config() or {}).get("ClusterName")
        if not confirm("submit 1 job?"):
            print("nothing was submitted")
            return 1
        batch = freeze(expanded, rows, missing, rounds, kind, facts)
        hand_over(batch, print)
        if not wait:
            job = " ".join(batch.job_ids.values())
            print(f"it writes {store.costs(name)}/N.json, which `make tables` reads; `scancel {job}` stops it")
            return 1 if missing else 0
        code = follow_job(batch)
    return code or (1 if missing else 0)


def rows_of(expanded: ExpandedSweep) -> tuple[list[Row], list[Row]]:
    """The rows that can be measured, ordered by task, each with the index of its baseline; and the rows without a finished run.

    A row is a combination of values on the axes, without the seed and without axes of evaluations.
    """
    store, entries = expanded.store, dict[str, tuple[Row, dict[Any, str]]]()  # a row, and its runs by seed
    for run, point in expanded.points:
        values = {
            axis: value
            for axis, value in point.values.items()
            if axis not in ("task", "seed") and not is_of_evaluations(axis)
        }
        row = {"task": point.values["task"], "values": values}
        entries.setdefault(json.dumps(row, sort_keys=True), (row, {}))[1].setdefault(point.values["seed"], run)
    tasks = list(dict.fromkeys(row["task"] for row, _ in entries.values()))
    rows, missing = list[Row](), list[Row]()
    for row, by_seed in sorted(entries.values(), key=lambda entry: tasks.index(entry[0]["task"])):
        done = [by_seed[seed] for seed in sorted(by_seed) if store.run(by_seed[seed]).result_if_readable() is not None]
        if not done:
            missing.append(row)
            continue
        config = expanded.configs[done[0]]
        devices = expanded.deployment.cluster.gpus or config.threads
        rows.append(row | {"run": done[0], "steps": config.optim.steps, "threads": config.threads, "devices": devices})
    baseline = {key: value for key, value in (expanded.sweep.baseline or {}).items() if key in expanded.axes}
    baseline = {key: value for key, value in baseline.items() if not is_of_evaluations(key)}
    for row in rows:
        row["baseline"] = baseline_of(expanded, row, rows, baseline) if baseline else None
    return rows, missing


def baseline_of(expanded: ExpandedSweep, row: Row, rows: Sequence[Row], baseline: Mapping[str, Any]) -> int | None:
    """The index of the row that this row is compared with; None if there is none, or more than one.

    It has the same task, the baseline's values, and this row's values on all other axes. Axes that the sweep compares together with
    an axis of the baseline are not among these other axes.
    """
    named = set(baseline)
    for together in (expanded.sweep.compared, expanded.sweep.each):
        named |= set(together) if named.intersection(together) else set()

    def other_values(one: Row) -> dict[str, Any]:
        return {axis: value for axis, value in one["values"].items() if axis not in named}

    indices = [
        index
        for index, one in enumerate(rows)
        if one["task"] == row["task"]
        and all(one["values"].get(axis) == value for axis, value in baseline.items())
        and other_values(one) == other_values(row)
    ]
    return indices[0] if len(indices) == 1 else None


def freeze(
    expanded: ExpandedSweep,
    rows: Sequence[Row],
    missing: Sequence[Row],
    rounds: int,
    kind: Kind,
    facts: Mapping[str, Any],
) -> Batch:
    """Puts the batch of the measurement into the store. Raises StoreError."""
    store, deployment = expanded.store, expanded.deployment
    copy = snapshot.take(ROOT, store)
    backbones = list(dict.fromkeys(expanded.backbones[row["run"]] for row in rows))
    content = {
        "measure": {
            "name": expanded.sweep.name,
            "rounds": rounds,
            "updates": UPDATES,
            "baseline": expanded.sweep.baseline,
            "missing": list(missing),
            "settings": [job_settings(deployment, backbone, copy) for backbone in backbones],
            "rows": [row | {"settings": backbones.index(expanded.backbones[row["run"]])} for row in rows],
        },
        "sweeps": {},
        "overrides": list(expanded.overrides),
        "threads": max(row["threads"] for row in rows),
        "jobs": [[]],
    }
    while True:  # until no other launch has taken the same number
        batch = put_batch(store, deployment, copy, kind, facts, batches(store), content)
        if batch is not None:
            return batch


def measure_here(batch: Batch, store: Store) -> int:
    """Measures in a local process, which ends with this one. Returns the exit code."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(ending, signal.default_int_handler)  # as for Ctrl-C
    running = running_workers(store)
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    others = f"{len(running)} process{'es' if len(running) != 1 else ''} of this store"
    print(
        f"this machine: load {load:.2f} of {cores} cores, {others} at work beside it; log in {batch.folder}", flush=True
    )
    workers = Workers(batch, len(running) + 1)
    try:
        if not workers.start(1, running):
            raise ConfigError("all GPUs of this machine are given to processes of this store; measure when one is free")
        while workers.alive():
            time.sleep(POLL)
    except KeyboardInterrupt:
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ending, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the stopping
        workers.stop()
        print("interrupted: nothing of this measurement is kept")
        return 130
    return conclude(batch, workers.last_words())


def follow_job(batch: Batch) -> int:
    """Waits until the SLURM job has written its result or is gone, and prints the result. Returns the exit code."""
    queried, gone = -SQUEUE, None
    try:
        while result_of(batch) is None and (gone is None or time.monotonic() - gone < NEWS):
            if time.monotonic() - queried >= SQUEUE and gone is None:
                answer, queried = slurm.jobs([batch]), time.monotonic()
                gone = None if answer.jobs or answer.unknown else time.monotonic()
            time.sleep(POLL)
    except KeyboardInterrupt:
        print("interrupted: the SLURM job goes on")
        return 130
    log = batch.log(0)
    return conclude(
        batch, f"{log} ends with\n  {conclusion(log.read_text(errors='replace'))}" if log else "it wrote no log"
    )


def conclude(batch: Batch, last_words: str) -> int:
    """Prints the result, or `last_words` if there is none. Returns the exit code. Raises StoreError if the result was removed."""
    file = result_of(batch)
    if file is None:
        print(f"nothing was measured; {last_words}")
        return 1
    content = read(file, COSTS)
    if content is None:
        raise StoreError(f"{file} was removed")
    print("\n".join([*lines(content), f"written to {file}"]))
    return 0


def result_of(batch: Batch) -> Path | None:
    """The file with the result of this batch's measurement; None while there is none."""
    for file in batch.store.measurements(str(batch.measured)).values():
        with contextlib.suppress(DamagedError):
            content = read(file, COSTS)
            if content is not None and content["batch"] == batch.id:
                return file
    return None


def lines(content: CostsRecord) -> Iterator[str]:
    """The result as lines of text: a table for each task."""
    for task in dict.fromkeys(row["task"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["task"] == task]
        cells = [[task, *COLUMNS.values()]]
        for row in rows:
            name = label(row["values"]) + (" (baseline)" if row["baseline"] else "")
            cells.append([name, *(text(row["quantities"].get(quantity)) for quantity in COLUMNS)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        yield from align_columns(cells, widths, WIDTH, range(1, len(widths)))
    load = content["load"]
    yield (
        f"median (lowest to highest) of {content['rounds']} rounds, x the ratio to the baseline in the same round; "
        f"{content['device']}, load {load['before']} before and {load['after']} after, of {content['cores']} cores"
    )


def text(quantity: QuantityRecord | None) -> str:
    """A measured quantity as `MEDIAN (LOWEST to HIGHEST) x RATIO`; `-` if it was not measured."""
    if quantity is None:
        return "-"
    numbers = quantity["median"], quantity["lowest"], quantity["highest"]
    value, lowest, highest = (f"{number:,.0f}" if numbers[0] >= 100 else f"{number:.3g}" for number in numbers)
    spread = f" ({lowest} to {highest})" if quantity["rounds"] > 1 else ""
    return f"{value}{spread}" + (f" x {quantity['ratio']:.2f}" if quantity["ratio"] is not None else "")


def label(values: Mapping[str, Any]) -> str:
    return " ".join(f"{axis}={as_text(value)}" for axis, value in values.items())
