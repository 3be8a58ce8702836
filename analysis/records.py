"""A W&B record read back from its `.wandb` file: configuration, final values, history, how it ended, what is damaged.

The file is a log of protobuf messages (`mmprompt.wandb_file.payloads` knows the framing), numbered from 1. Updates are played
back in order; values stay JSON text until the end, where each column is parsed at once. Everything that can be read is read:
damage is listed, not raised. What is missing at the end shows in `exit_code` and `state`, what is missing before it in `damage`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mmprompt.wandb_file import MAGIC, Damage, payloads


class RecordError(RuntimeError):
    """The file holds no record at all. The message names the path and the reason."""


@dataclass(frozen=True)
class RunRecord:
    path: Path
    run: str | None  # W&B's run id; None: the record ends before it
    name: str
    group: str
    config: dict[str, Any]
    summary: dict[str, Any]  # without the client's own keys, which begin with _
    history: pd.DataFrame  # a row per logged step, in order; `_step` is a column; empty if it was not asked for
    exit_code: int | None  # None: the record ends before the run did
    damage: tuple[str, ...]

    @property
    def state(self) -> Literal["finished", "failed", "no end"]:
        if self.exit_code is None:
            return "no end"
        return "failed" if self.exit_code else "finished"


def read_record(path: Path, history: bool) -> RunRecord:
    """Play a record file back. Raises RecordError if it cannot be opened or is no W&B file."""
    from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

    data = _contents(path)
    damage: list[str] = []
    run: Any = None
    exit_code: int | None = None
    number = 0
    config: dict[str, str] = {}
    summary: dict[str, str] = {}
    rows: list[dict[str, str]] = []
    for payload in payloads(data, len(MAGIC)):
        if isinstance(payload, Damage):
            damage.append(f"byte {payload.offset} of {len(data)}: {payload.reason}")
            continue
        try:
            message = Message.FromString(payload)
        except DecodeError as error:
            damage.append(f"a record of {len(payload)} bytes is no W&B message: {error}")
            continue
        if message.num > number + 1:
            damage.append(f"records {number + 1} to {message.num - 1} are missing")
        if message.num <= number:
            damage.append(f"record {message.num} comes after record {number}")
            continue
        number = message.num
        match message.WhichOneof("record_type"):
            case "history" if history:
                rows.append({_key(item): item.value_json for item in message.history.item})
            case "summary":
                _update(summary, message.summary)
            case "config":
                _update(config, message.config)
            case "run":
                run = message.run
                _update(config, message.run.config)
            case "exit":
                exit_code = message.exit.exit_code
    return RunRecord(
        path=path,
        run=run.run_id if run else None,
        name=run.display_name if run else "",
        group=run.run_group if run else "",
        config=_parsed(config, damage),
        summary=_parsed(summary, damage),
        history=_frame(rows, damage),
        exit_code=exit_code,
        damage=tuple(damage),  # last, when all have added to it
    )


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    if not data.startswith(MAGIC):
        reason = "it is empty" if not data else f"it begins with {data[: len(MAGIC)]!r}, not with {MAGIC!r}"
        raise RecordError(f"{path} is no W&B record: {reason}")
    return data


def _key(item: Any) -> str:
    """`a`, or `a.b` for a nested key."""
    return ".".join(item.nested_key) or item.key


def _update(values: dict[str, str], change: Any) -> None:
    for item in change.update:
        values[_key(item)] = item.value_json
    for item in change.remove:
        values.pop(_key(item), None)


def _parsed(values: Mapping[str, str], damage: list[str]) -> dict[str, Any]:
    ours = {key: text for key, text in values.items() if not key.startswith("_")}
    return {key: value for key, text in ours.items() if (value := _value(key, text, damage)) is not MISSING}


MISSING = object()  # a value that cannot be read; null is one that can


def _value(key: str, text: str, damage: list[str]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        damage.append(f"a value of {key} is no JSON: {text[:20]!r}")
        return MISSING


def _column(key: str, texts: list[str], damage: list[str]) -> list[Any]:
    """All values of a column, parsed at once; one by one if that fails."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(f"[{','.join(texts)}]")
        if len(values) == len(texts):
            return values
    found = [_value(key, text, damage) for text in texts]
    return [math.nan if value is MISSING else value for value in found]


def _frame(rows: Iterable[Mapping[str, str]], damage: list[str]) -> pd.DataFrame:
    """History as columns; a key that a row does not have is missing there."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    places: defaultdict[str, list[int]] = defaultdict(list)
    count = 0
    for row in rows:
        for key, text in row.items():
            texts[key].append(text)
            places[key].append(count)
        count += 1
    columns = {key: pd.Series(_column(key, texts[key], damage), index=places[key]) for key in sorted(texts)}
    return pd.DataFrame(columns, index=pd.RangeIndex(count))
