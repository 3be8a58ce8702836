"""A W&B record as read from its `.wandb` file: configuration, final values, history, how it ended, what is damaged.

The file is a log of messages (`wandb_file` reads its framing, `wandb_messages` a single message). They are played back in order.
Values stay JSON text until the end, when each column of the history is parsed at once. Everything that can be read is read, and
damage is listed instead of raised. If the end is missing, `exit_code` and `state` show it; other losses are in `damage`.
`wandb_ends` reads a record without its history in less time. Part of the light half of the package.
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

from mmprompt.runs.files import matching
from mmprompt.runs.wandb_file import MAGIC, Damage, payloads
from mmprompt.runs.wandb_messages import MessageError, decoder, is_history, number_of


class RecordError(RuntimeError):
    """A file contains no W&B record at all. The message names the path and the reason."""


@dataclass(frozen=True)
class Column:
    """The values that were logged under one key, and the rows that have a value, counted from 0. NaN: it cannot be read."""

    rows: list[int]
    values: list[Any]


@dataclass(frozen=True, eq=False)  # compared by identity, so that records can be keys of a dict
class WandbRecord:
    path: Path
    id: str | None  # W&B's run id; None: the record ends before the id
    name: str
    group: str
    project: str
    entity: str  # empty: the account's own
    config: dict[str, Any]
    summary: dict[str, Any]  # without the client's own keys, which begin with _
    rows: int | None  # the number of logged steps; None: they were not counted
    history: dict[str, Column]  # by key, also `_step`; empty if it was not requested
    exit_code: int | None  # None: the record has no end
    damage: tuple[str, ...]

    @property
    def state(self) -> Literal["finished", "failed", "no end"]:
        if self.exit_code is None:
            return "no end"
        return "failed" if self.exit_code else "finished"


def record_files(folder: Path) -> list[Path]:
    """The records in an attempt's folder, the newest last; none if tracking is disabled."""
    return matching(folder, "wandb/*run-*-*/run-*.wandb")


def read_record(path: Path, history: bool, values: bool = True) -> WandbRecord:
    """Reads a whole record file. Raises RecordError if it cannot be opened or is no W&B file.

    `history`: whether to read the history. `values`: whether to read the configuration and the summary. What is not read stays
    empty, and takes no time.
    """
    data = contents(path)
    played = Played(history, values)
    for payload in payloads(data, len(MAGIC)):
        if isinstance(payload, Damage):
            played.damage.append(f"byte {payload.offset} of {len(data)}: {payload.reason}")
        else:
            played.play(payload)
    return played.record(path)


def contents(path: Path) -> bytes:
    """The bytes of a W&B file. Raises RecordError if it is no such file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    if not data.startswith(MAGIC):
        reason = "it is empty" if not data else f"it begins with {data[: len(MAGIC)]!r}, not with {MAGIC!r}"
        raise RecordError(f"{path} is no W&B record: {reason}")
    return data


class Played:
    """Plays messages back in order, and collects what they say."""

    def __init__(self, wants_history: bool, wants_values: bool = True) -> None:
        self.wants_history, self.wants_values = wants_history, wants_values
        self.decode = decoder()
        self.run: Any = None
        self.exit_code: int | None = None
        self.number = 0  # the number of the last message
        self.config: dict[str, str] = {}
        self.summary: dict[str, str] = {}
        self.rows = 0
        self.history: defaultdict[str, Column] = defaultdict(lambda: Column([], []))  # the values are JSON texts
        self.damage: list[str] = []

    def play(self, payload: bytes) -> None:
        """Plays the next message. A logged step is only counted, not decoded, if the history is not wanted."""
        if not self.wants_history and is_history(payload):
            self.rows += self.is_next(number_of(payload))
            return
        try:
            message = self.decode(payload)
        except MessageError as error:
            self.damage.append(str(error))
            return
        if not self.is_next(message.num):
            return
        match message.WhichOneof("record_type"):
            case "history":
                self.log(message.history.item)
            case "summary":
                self.update(self.summary, message.summary)
            case "config":
                self.update(self.config, message.config)
            case "run":
                self.run = message.run
                self.update(self.config, message.run.config)
            case "exit":
                self.exit_code = message.exit.exit_code

    def is_next(self, number: int) -> bool:
        """Whether a message with this number comes after the last one. Numbers that are missing or come again are damage."""
        if number > self.number + 1:
            self.damage.append(f"records {self.number + 1} to {number - 1} are missing")
        if number <= self.number:
            self.damage.append(f"record {number} comes after record {self.number}")
            return False
        self.number = number
        return True

    def log(self, items: Iterable[Any]) -> None:
        """Adds a row to the history. If a key occurs twice, the last value counts."""
        for key, text in {_key(item): item.value_json for item in items}.items():
            column = self.history[key]
            column.rows.append(self.rows)
            column.values.append(text)
        self.rows += 1

    def update(self, values: dict[str, str], change: Any) -> None:
        if self.wants_values:
            for item in change.update:
                values[_key(item)] = item.value_json
            for item in change.remove:
                values.pop(_key(item), None)

    def record(self, path: Path) -> WandbRecord:
        run, damage = self.run, self.damage
        return WandbRecord(
            path=path,
            id=run.run_id if run else None,
            name=run.display_name if run else "",
            group=run.run_group if run else "",
            project=run.project if run else "",
            entity=run.entity if run else "",
            config=_parsed(self.config, damage),
            summary=_parsed(self.summary, damage),
            rows=self.rows,
            history={key: _parsed_column(key, column, damage) for key, column in sorted(self.history.items())},
            exit_code=self.exit_code,
            damage=tuple(damage),  # last, because the lines above add to it
        )


def _key(item: Any) -> str:
    """A key as text: `a`, or `a.b` if it is nested."""
    return ".".join(item.nested_key) or item.key


def _parsed(values: Mapping[str, str], damage: list[str]) -> dict[str, Any]:
    ours = {key: text for key, text in values.items() if not key.startswith("_")}
    return {key: value for key, text in ours.items() if (value := _value(key, text, damage)) is not MISSING}


MISSING = object()  # stands for a value that cannot be read; null can be read


def _value(key: str, text: str, damage: list[str]) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        damage.append(f"a value of {key} is no JSON: {text[:20]!r}")
        return MISSING


def _parsed_column(key: str, texts: Column, damage: list[str]) -> Column:
    """Parses all values of a column at once, or one by one if that fails."""
    with contextlib.suppress(ValueError, RecursionError):
        values = json.loads(f"[{','.join(texts.values)}]")
        if len(values) == len(texts.values):
            return Column(texts.rows, values)
    found = [_value(key, text, damage) for text in texts.values]
    return Column(texts.rows, [math.nan if value is MISSING else value for value in found])
