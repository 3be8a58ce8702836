"""Reading W&B records: the two ends of the file against all of it, at any number of logged steps."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from measure import Section, Timing, interleaved
from wandb.proto.wandb_internal_pb2 import Record as Message

from analysis.records import read_ends, read_record
from mmprompt.wandb_file import framed

ROUNDS = 3
ROWS = (150, 1500, 9000, 94_200)  # the small world's; three of longer runs; OFA's on captions
EVERY = 50  # steps from one validation to the next
READS = {150: 100, 1500: 20, 9000: 4, 94_200: 1}  # of the whole file, in one measurement
ENDS = 300  # of the two ends


def record(rows: int) -> bytes:
    """As the client writes it offline: a header, the run, a message per step, the final values, the exit."""
    messages = [Message() for _ in range(rows + 4)]
    for number, message in enumerate(messages, 1):
        message.num = number
        message._info.stream_id = "0123456789abcdef-1"
    head, run, *steps, summary, end = messages
    head.header.version_info.producer = "0.31"
    run.run.run_id = "0123456789abcdef-1"
    for number in range(100):
        run.run.config.update.add(key=f"key_{number}", value_json=json.dumps(number / 7))
    for step, message in enumerate(steps, 1):
        values = {"_step": step, "_runtime": step / 7, "_timestamp": 1.7e9 + step / 7}
        values |= {"train/loss": 2 / step, "train/lr": 0.3 / step}
        values |= {} if step % EVERY else {"val/while_training": 70.0 + step / rows}
        for key, value in values.items():
            message.history.item.add(nested_key=[key], value_json=json.dumps(value))
    for key in ("val/accuracy", "test/accuracy", "best_step", "seconds", "device_hours"):
        summary.summary.update.add(key=key, value_json="76.76")
    end.exit.exit_code = 0
    return framed(message.SerializeToString() for message in messages)


def sections() -> Iterator[Section]:
    with tempfile.TemporaryDirectory() as folder:
        files = {rows: Path(folder) / f"{rows}.wandb" for rows in ROWS}
        for rows, file in files.items():
            file.write_bytes(record(rows))
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
    yield Section("A W&B record read back", setting, rows, unit="record")


def times(call: partial[object], count: int) -> None:
    for _ in range(count):
        call()
