"""Reads a W&B record from the two ends of its file, in a time that does not grow with the number of logged steps.

The client writes the configuration first, and the final values and the exit last. So the first block and the last blocks are
enough. Damage between them is not noticed. Part of the light half of the package.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from mmprompt.runs.wandb_file import BLOCK, MAGIC, Damage, payloads
from mmprompt.runs.wandb_messages import is_history, number_of
from mmprompt.runs.wandb_record import Played, RecordError, WandbRecord, read_record

WHOLE = 2  # a file of at most so many blocks is read completely


def read_ends(path: Path) -> WandbRecord:
    """Returns what `read_record` returns without history, except for damage in the middle of the file; `rows` may be None.

    If the ends are damaged, or lack something that they should contain, the whole file is read. Otherwise `summary` lacks the
    values that were set before the last logged step. Our runs set none then; an online client sets the values of each step.
    Raises RecordError as `read_record`.
    """
    try:
        with path.open("rb") as file:
            found = _ends(path, file)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    return found or read_record(path, history=False)


def _ends(path: Path, file: BinaryIO) -> WandbRecord | None:
    """The record; None if the file is short, or if its ends do not contain enough."""
    blocks = -(-file.seek(0, os.SEEK_END) // BLOCK)
    if blocks <= WHOLE:
        return None
    file.seek(0)
    head = _first_messages(file.read(BLOCK))
    for count in (1, 2, 4, 8):
        if not head or count >= blocks:
            return None
        file.seek((blocks - count) * BLOCK)
        tail = _last_messages(file.read())
        if tail is None:
            return None
        if tail:
            return _put_together(path, head, tail)
    return None


def _put_together(path: Path, head: Iterable[bytes], tail: Iterable[bytes]) -> WandbRecord | None:
    """The record that these messages make; None if they are damaged, or lack the run, its final values or its end."""
    played = Played(wants_history=False)
    for message in head:
        played.play(message)
    played.summary.clear()  # values set at the first step, if any, may have been set again in the middle
    for message in tail:
        played.number = number_of(message) - 1  # messages between the two ends are not missing: they were not read
        played.play(message)
    is_whole = played.run is not None and played.summary and played.exit_code is not None
    record = replace(played.record(path), rows=None)
    return record if is_whole and not record.damage else None


def _first_messages(data: bytes) -> list[bytes]:
    """The messages before the first logged step, from the file's first block; empty if any of them is damaged or missing."""
    found: list[bytes] = []
    if data.startswith(MAGIC):
        for payload in payloads(data, len(MAGIC)):
            if isinstance(payload, Damage) or number_of(payload) != len(found) + 1:
                return []
            if is_history(payload):
                return found
            found.append(payload)
    return []


def _last_messages(data: bytes) -> list[bytes] | None:
    """The messages after the last logged step. Empty if these blocks hold no step, so that more must be read; None if damaged."""
    found: list[bytes] = []
    last: int | None = None  # the number of the last message since a step was found
    for payload in payloads(data, 0, inside=True):
        if isinstance(payload, Damage):
            return None
        if is_history(payload):
            found, last = [], number_of(payload)
        elif last is not None:
            if number_of(payload) != last + 1:
                return None
            found, last = [*found, payload], last + 1
    return (found or None) if last is not None else []
