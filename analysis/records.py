"""A W&B record read back from its `.wandb` file: configuration, final values, history, how it ended, what is damaged.

The file is a log of protobuf messages (`mmprompt.wandb_file.payloads` knows the framing). Updates are played back in
order; values stay JSON text until the end, where each column is parsed at once. Everything that can be read is read:
damage is listed, not raised.
"""

from __future__ import annotations

import json
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
        config=_parsed(config),
        summary=_parsed(summary),
        history=_frame(rows),
        exit_code=exit_code,
        damage=tuple(damage),
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


def _parsed(values: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in values.items() if not key.startswith("_")}


def _frame(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """History as columns; a key that a row does not have is missing there."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    places: defaultdict[str, list[int]] = defaultdict(list)
    count = 0
    for row in rows:
        for key, text in row.items():
            texts[key].append(text)
            places[key].append(count)
        count += 1
    columns = {key: pd.Series(json.loads(f"[{','.join(texts[key])}]"), index=places[key]) for key in sorted(texts)}
    return pd.DataFrame(columns, index=pd.RangeIndex(count))
