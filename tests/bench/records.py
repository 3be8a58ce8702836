"""Reading W&B records: the two ends of the file against all of it, at any number of logged steps; a sweep read and checked."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from measure import Section, Timing, interleaved
from wandb.proto.wandb_internal_pb2 import Record as Message

from analysis import runs
from analysis.records.manifest import read_manifest
from analysis.records.reading import assemble, read_sweep
from analysis.records.sources import InStore
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import frozen_text
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_ends import read_ends
from mmprompt.runs.wandb_file import framed
from mmprompt.runs.wandb_record import read_record
from sweeps.grid.manifest import expand

ROUNDS = 3
ROWS = (150, 1500, 9000, 94_200)  # the small world's; three of longer runs; OFA's on captions
EVERY = 50  # steps from one validation to the next
READS = {150: 100, 1500: 20, 9000: 4, 94_200: 1}  # of the whole file, in one measurement
RUNS, OF_A_SWEEP = 300, (150, 9000)  # a sweep, and the steps of its runs
ENDS = 300  # of the two ends
INVENTORIES = (1_000, 10_000)  # runs of a store


def record(rows: int, config: Mapping[str, Any], summary: Mapping[str, Any]) -> bytes:
    """As the client writes it offline: a header, the run, a message per step, the final values, the exit."""
    head, run, last, end = (message(number) for number in (1, 2, rows + 3, rows + 4))
    head.header.version_info.producer = "0.31"
    run.run.run_id = "0123456789abcdef-1"
    for key, value in config.items():
        run.run.config.update.add(key=key, value_json=json.dumps(value))
    for key, value in summary.items():
        last.summary.update.add(key=key, value_json=json.dumps(value))
    end.exit.exit_code = 0
    first, final = ([one.SerializeToString() for one in pair] for pair in ((head, run), (last, end)))
    return framed([*first, *steps(rows), *final])


def message(number: int) -> Message:
    one = Message(num=number)
    one._info.stream_id = "0123456789abcdef-1"
    return one


@cache
def steps(rows: int) -> list[bytes]:
    found = []
    for step in range(1, rows + 1):
        one = message(step + 2)
        values = {"_step": step, "_runtime": step / 7, "_timestamp": 1.7e9 + step / 7}
        values |= {"train/loss": 2 / step, "train/lr": 0.3 / step}
        values |= {} if step % EVERY else {"val/while_training": 70.0 + step / rows}
        for key, value in values.items():
            one.history.item.add(nested_key=[key], value_json=json.dumps(value))
        found.append(one.SerializeToString())
    return found


def a_record(rows: int) -> bytes:
    keys = ("val/accuracy", "test/accuracy", "best_step", "seconds", "device_hours")
    return record(rows, {f"key_{number}": number / 7 for number in range(100)}, dict.fromkeys(keys, 76.76))


def sections() -> Iterator[Section]:
    yield of_records()
    yield of_a_sweep()
    yield of_a_store()


def of_a_store() -> Section:
    """`runs()` of stores with settings and results as real ones."""
    with tempfile.TemporaryDirectory() as folder:
        stores = {count: Path(folder) / str(count) for count in INVENTORIES}
        for count, store in stores.items():
            fill(Store(store), count)
            assert len(runs(store)) == count and set(runs(store)["state"]) == {"done"}
        timings = interleaved({f"{count:,} runs": partial(runs, store) for count, store in stores.items()}, ROUNDS)
    rows = {}
    for (name, some), count in zip(timings.items(), INVENTORIES, strict=True):
        each = [Timing(t.wall / count, t.cpu / count) for t in some]
        rows[f"{name}: {sorted(t.wall for t in some)[ROUNDS // 2]:.1f} s in all"] = each
    return Section("Every run of a store as a frame", "`analysis.runs()`; a local disk, warm", rows, unit="run")


def fill(store: Store, count: int) -> None:
    expanded = expand("length", ["task=micro_vqa", "prompt.length=64", f"seed=range({count})"], ROOT / "conf")
    for run, config in expanded.configs.items():
        folder = store.run(run).path
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(frozen_text(config))
        result = {
            "run": run,
            "attempt": 1,
            "commit": "0" * 40,
            "dirty": False,
            "device": "cpu: a core",
            "best_step": 100,
        }
        result |= {"metrics": {"val/vqa_accuracy": 55.5, "test/vqa_accuracy": 54.5}, "seconds": 12.5, "epochs": 1.6}
        (folder / "result.json").write_text(json.dumps(result))


def of_a_sweep() -> Section:
    """300 runs whose settings, evaluations and per-example scores are as real ones; their records are framed here."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from synthetic_store import DISABLED, launch, made_by, manifest, run_all

    axes = {"task": ["micro_vqa"], "prompt.length": [10, 16, 30, 64, 100], "seed": list(range(RUNS // 5))}
    about = manifest("length", axes, "prompt.length", {}, {"prompt.length": 64})
    with tempfile.TemporaryDirectory() as folder:
        stores = {rows: Store(Path(folder) / str(rows)) for rows in OF_A_SWEEP}
        for rows, store in stores.items():
            launch(store, about)
            run_all(store, about["points"], DISABLED, seed=0)
            for point in about["points"]:
                run = store.run(point["run"])
                result = json.loads(run.result_file.read_text())
                config = json.loads(run.config_file.read_text()) | made_by(run.published) | {"run_id": run.id}
                place = "attempts/1/wandb/run.wandb"
                (run.path / place).parent.mkdir()
                (run.path / place).write_bytes(record(rows, config, result["metrics"]))
                run.result_file.write_text(json.dumps(result | {"wandb": place}))
            sweep = read_sweep(store, "length")
            assert not sweep.notes and set(sweep.frame["state"]) == {"done"} and set(sweep.frame["source"]) == {"wandb"}
        variants = {f"{rows:,} steps": partial(read_sweep, store, "length") for rows, store in stores.items()}
        deep = [OF_A_SWEEP[0]]
        variants |= {f"{rows:,} steps, with `--verify`": partial(verified, stores[rows]) for rows in deep}
        timings = interleaved(variants, ROUNDS)
    rows = {}
    for name, some in timings.items():
        each = [Timing(t.wall / RUNS, t.cpu / RUNS) for t in some]
        rows[f"{name}: {1 / sorted(t.cpu for t in each)[ROUNDS // 2]:,.0f} runs/s"] = each
    setting = f"{RUNS} runs of two evaluations of 500 examples each; a local disk, warm"
    return Section("A sweep read and checked", setting, rows, unit="run")


def verified(store: Store) -> None:
    assemble(store, read_manifest(store, "length"), InStore(whole=True), deep=True)


def of_records() -> Section:
    with tempfile.TemporaryDirectory() as folder:
        files = {rows: Path(folder) / f"{rows}.wandb" for rows in ROWS}
        for rows, file in files.items():
            file.write_bytes(a_record(rows))
            ours, whole = read_ends(file), read_record(file, history=False)
            assert (ours.config, ours.summary, ours.state) == (whole.config, whole.summary, "finished")
        first = ROWS[0]
        variants = {f"all of it, {first} steps": (READS[first], partial(read_record, files[first], history=False))}
        variants |= {f"the two ends, {rows:,} steps": (ENDS, partial(read_ends, file)) for rows, file in files.items()}
        for rows, file in files.items():
            if rows != first:
                variants[f"all of it, {rows:,} steps"] = READS[rows], partial(read_record, file, history=False)
        calls = {name: partial(times, call, count) for name, (count, call) in variants.items()}
        timings = interleaved(calls, ROUNDS)
    rows = {}
    for name, (count, _) in variants.items():
        each = [Timing(t.wall / count, t.cpu / count) for t in timings[name]]
        rows[f"{name}: {1 / sorted(t.cpu for t in each)[ROUNDS // 2]:,.0f} records/s"] = each
    setting = "As the client frames them, five values a step; a local disk, warm; without history"
    return Section("A W&B record read back", setting, rows, unit="record")


def times(call: partial[object], count: int) -> None:
    for _ in range(count):
        call()
