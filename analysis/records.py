"""A W&B record read back from its `.wandb` file: configuration, final values, history, how it ended, what is damaged.

The file is a log of protobuf messages (`mmprompt.runs.wandb_file.payloads` knows the framing), numbered from 1. Updates are played
back in order; values stay JSON text until the end, where each column is parsed at once. Everything that can be read is read:
damage is listed, not raised. What is missing at the end shows in `exit_code` and `state`, what is missing before it in `damage`.

`read_record` reads all of it. `read_ends` reads the first block and the last ones, whatever lies between: the client writes the
configuration first, and the final values and the exit last. What it cannot see is damage in the middle.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from mmprompt.runs.wandb_file import BLOCK, MAGIC, Damage, payloads

NUMBER, HISTORY = b"\x08", b"\x12"  # of a message, the tags of its fields num and history (wandb_internal.proto)
WHOLE = 2  # blocks: a file of so many is read as a whole


class RecordError(RuntimeError):
    """The file holds no record at all. The message names the path and the reason."""


@dataclass(frozen=True)
class WandbRecord:
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


def read_record(path: Path, history: bool) -> WandbRecord:
    """Play a record file back, all of it. Raises RecordError if it cannot be opened or is no W&B file."""
    data = _contents(path)
    played = _Played()
    for payload in payloads(data, len(MAGIC)):
        if isinstance(payload, Damage):
            played.damage.append(f"byte {payload.offset} of {len(data)}: {payload.reason}")
        else:
            played.play(payload, history)
    return played.record(path)


def read_ends(path: Path) -> WandbRecord:
    """The same without history, from the two ends of the file: in a time that does not grow with the steps that were logged.

    Where the ends are not sound, or do not hold what they should, the whole file is read. Else what lies between them is not
    looked at: `damage` says nothing of it, and what was set before the last logged step is not in `summary`. We set nothing
    there; a client that is online notes the last values of each step. Raises RecordError as `read_record`.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            blocks = -(-size // BLOCK)
            if blocks > WHOLE:
                file.seek(0)
                head = _first_messages(file.read(BLOCK))
                for count in (1, 2, 4, 8):
                    if not head or count >= blocks:
                        break
                    file.seek((blocks - count) * BLOCK)
                    tail = _last_messages(file.read())
                    if tail is None:
                        break
                    if tail:
                        return _put_together(path, head, tail) or read_record(path, history=False)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    return read_record(path, history=False)


def _put_together(path: Path, head: Iterable[bytes], tail: Iterable[bytes]) -> WandbRecord | None:
    """What these messages say; None if they are not sound, or lack the run, its final values or its end."""
    played = _Played()
    for message in head:
        played.play(message, history=False)
    played.summary.clear()  # of the first step, if anything: it may have been set anew in the middle
    for message in tail:
        played.number = _number(message) - 1  # what is missing between the two ends was left out by us
        played.play(message, history=False)
    is_whole = played.run is not None and played.summary and played.exit_code is not None
    record = played.record(path)
    return record if is_whole and not record.damage else None


def _first_messages(data: bytes) -> list[bytes]:
    """The messages before the first logged step, of the file's first block; none if not all is sound up to that step."""
    found: list[bytes] = []
    if data.startswith(MAGIC):
        for payload in payloads(data, len(MAGIC)):
            if isinstance(payload, Damage) or _number(payload) != len(found) + 1:
                return []
            if _is_history(payload):
                return found
            found.append(payload)
    return []


def _last_messages(data: bytes) -> list[bytes] | None:
    """Those after the last logged step; [] if these blocks hold no step, so that more must be read; None if not all is sound."""
    found: list[bytes] = []
    last: int | None = None  # the number of that step, or of what came last
    for payload in payloads(data, 0, inside=True):
        if isinstance(payload, Damage):
            return None
        if _is_history(payload):
            found, last = [], _number(payload)
        elif last is not None:
            if _number(payload) != last + 1:
                return None
            found, last = [*found, payload], last + 1
    return (found or None) if last is not None else []


def _is_history(message: bytes) -> bool:
    """Whether it is a logged step, by its tags: its number comes first, and then what it is."""
    at = _after_number(message)
    return message[at : at + 1] == HISTORY


def _after_number(message: bytes) -> int:
    at = 1
    while message[at : at + 1] > b"\x7f":  # a byte of the number that is not its last
        at += 1
    return at + 1


def _number(message: bytes) -> int:
    """0 where a message does not begin with it."""
    if message[:1] != NUMBER:
        return 0
    number = 0
    for shift, byte in enumerate(message[1 : _after_number(message)]):
        number |= (byte & 0x7F) << (7 * shift)
    return number


class _Played:
    """Messages, played back in order."""

    def __init__(self) -> None:
        from wandb.proto.wandb_internal_pb2 import Record as Message  # type: ignore[attr-defined]

        self.parse = Message.FromString
        self.run: Any = None
        self.exit_code: int | None = None
        self.number = 0
        self.config: dict[str, str] = {}
        self.summary: dict[str, str] = {}
        self.rows: list[dict[str, str]] = []
        self.damage: list[str] = []

    def play(self, payload: bytes, history: bool) -> None:
        if not history and payload[:1] == NUMBER and _is_history(payload):
            self.count(_number(payload))
            return
        try:
            message = self.parse(payload)
        except DecodeError as error:
            self.damage.append(f"a record of {len(payload)} bytes is no W&B message: {error}")
            return
        if not self.count(message.num):
            return
        match message.WhichOneof("record_type"):
            case "history" if history:
                self.rows.append({_key(item): item.value_json for item in message.history.item})
            case "summary":
                _update(self.summary, message.summary)
            case "config":
                _update(self.config, message.config)
            case "run":
                self.run = message.run
                _update(self.config, message.run.config)
            case "exit":
                self.exit_code = message.exit.exit_code

    def count(self, number: int) -> bool:
        """Whether a message of this number is the next one, or after one that is missing."""
        if number > self.number + 1:
            self.damage.append(f"records {self.number + 1} to {number - 1} are missing")
        if number <= self.number:
            self.damage.append(f"record {number} comes after record {self.number}")
            return False
        self.number = number
        return True

    def record(self, path: Path) -> WandbRecord:
        run, damage = self.run, self.damage
        return WandbRecord(
            path=path,
            run=run.run_id if run else None,
            name=run.display_name if run else "",
            group=run.run_group if run else "",
            config=_parsed(self.config, damage),
            summary=_parsed(self.summary, damage),
            history=_frame(self.rows, damage) if self.rows else pd.DataFrame(),
            exit_code=self.exit_code,
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
