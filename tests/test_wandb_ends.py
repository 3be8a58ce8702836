"""A W&B record that is read from the two ends of its file, compared with one that is read from the whole file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from test_wandb_record import MUTATIONS, mutated, write
from wandb.proto.wandb_internal_pb2 import Record as Message

from mmprompt.runs.wandb_ends import read_ends
from mmprompt.runs.wandb_file import BLOCK, MAGIC, framed, payloads
from mmprompt.runs.wandb_record import RecordError, WandbRecord, read_record


def ends(data: bytes, folder: Path) -> tuple[WandbRecord, WandbRecord]:
    """The record as read from the two ends of its file, and as read from the whole file."""
    file = folder / "ends.wandb"
    file.write_bytes(data)
    return read_ends(file), read_record(file, history=False)


def said(record: WandbRecord) -> tuple[Any, ...]:
    return record.id, record.name, record.group, record.config, record.summary, record.exit_code


def long(rows: int) -> bytes:
    """An intact file with this many steps, whose values are set at its end."""
    messages = [Message(num=number) for number in range(1, rows + 5)]
    head, run, *steps, summary, end = messages
    head.header.version_info.producer = "0.31"
    run.run.run_id, run.run.display_name = "r-1", "a name"
    run.run.config.update.add(key="prompt", value_json='{"length": 64}')
    for step, message in enumerate(steps, 1):
        message.history.item.add(nested_key=["_step"], value_json=str(step))
        message.history.item.add(nested_key=["train/loss"], value_json=str(1 / step))
    summary.summary.update.add(key="test/accuracy", value_json="82.2")
    end.exit.exit_code = 0
    return framed(message.SerializeToString() for message in messages)


def test_a_record_of_the_client_reads_the_same_from_its_two_ends_as_from_the_whole_file(tmp_path: Path) -> None:
    written = write(tmp_path)
    short, whole = read_ends(written), read_record(written, history=False)
    assert said(short) == said(whole) and (short.damage, short.state) == ((), "finished")
    assert len(short.history) == 0


@pytest.mark.parametrize("rows", [0, 1, 200, 700, 1100, 1500, 4000])
def test_reading_the_two_ends_gives_the_same_values_at_any_length(rows: int, tmp_path: Path) -> None:
    short, whole = ends(long(rows), tmp_path)
    assert said(short) == said(whole)
    assert (short.summary, short.state, short.damage) == ({"test/accuracy": 82.2}, "finished", ())


def test_the_end_is_found_wherever_the_boundary_of_a_block_falls(tmp_path: Path) -> None:
    """A message before the last two grows byte by byte, which pushes these over the end of a block; then it spans blocks."""
    records = [payload for payload in payloads(long(1100), len(MAGIC)) if isinstance(payload, bytes)]
    *steps, summary, end = records
    size = len(framed([*steps, summary, end]))
    for room in (*range(BLOCK - 80, BLOCK), 3 * BLOCK):
        extra = Message(num=len(steps) + 1)
        extra.telemetry.python_version = "x" * ((room - size) % BLOCK + room // BLOCK * BLOCK)
        numbered = [Message.FromString(one) for one in (summary, end)]
        for number, message in enumerate(numbered, len(steps) + 2):
            message.num = number
        data = framed([*steps, extra.SerializeToString(), *(one.SerializeToString() for one in numbered)])
        short, whole = ends(data, tmp_path)
        assert said(short) == said(whole) and short.state == "finished" and short.damage == ()


def test_damage_in_the_middle_is_found_only_if_the_whole_file_is_read(tmp_path: Path) -> None:
    data = bytearray(long(4000))
    data[3 * BLOCK + 100] ^= 1
    (tmp_path / "damaged.wandb").write_bytes(data)
    assert read_record(tmp_path / "damaged.wandb", history=False).damage
    assert read_ends(tmp_path / "damaged.wandb").damage == ()  # as its docstring says


@pytest.mark.parametrize("step", [1, 997])
def test_a_file_that_is_cut_off_anywhere_reads_the_same_from_its_two_ends_as_from_the_whole_file(
    step: int, tmp_path: Path
) -> None:
    data = long(1600)
    near = [edge + shift for edge in range(BLOCK, len(data), BLOCK) for shift in range(-9, 20)]
    cuts = range(len(data) - 150, len(data)) if step == 1 else [*near, *range(len(MAGIC), len(data), step)]
    assert len(data) > 3 * BLOCK
    for cut in cuts:
        short, whole = ends(data[:cut], tmp_path)
        assert said(short) == said(whole)
        assert short.damage == whole.damage and short.state == "no end"


def test_if_one_of_the_last_messages_is_missing_the_whole_file_is_read(tmp_path: Path) -> None:
    records = [payload for payload in payloads(long(1500), len(MAGIC)) if isinstance(payload, bytes)]
    for gone in range(1, 4):  # the summary alone, or the last steps as well
        short, whole = ends(framed([*records[: -1 - gone], records[-1]]), tmp_path)
        assert said(short) == said(whole) and short.damage == whole.damage != ()


def test_if_the_values_are_not_at_the_end_of_the_file_the_whole_file_is_read(tmp_path: Path) -> None:
    records = [payload for payload in payloads(long(1500), len(MAGIC)) if isinstance(payload, bytes)]
    *before, summary, end = records
    moved = [before[0], before[1], summary, *before[2:], end]
    for number, one in enumerate(messages := [Message.FromString(record) for record in moved], 1):
        one.num = number
    short, whole = ends(framed(one.SerializeToString() for one in messages), tmp_path)
    assert said(short) == said(whole) and short.damage == ()


def test_the_two_ends_of_an_online_clients_record_give_only_the_values_that_were_set_last(tmp_path: Path) -> None:
    """An online client also writes each step's values into the summary; those of early steps are in the middle of the file."""
    records = [payload for payload in payloads(long(3000), len(MAGIC)) if isinstance(payload, bytes)]
    messages = []
    for record in map(Message.FromString, records):
        if record.WhichOneof("record_type") == "history":
            noted = Message()
            noted.summary.update.add(nested_key=["train/loss"], value_json="0.5")
            if len(messages) == 100:
                noted.summary.update.add(nested_key=["val/accuracy"], value_json="70.0")
            messages.append(noted)
        messages.append(record)
    for number, message in enumerate(messages, 1):
        message.num = number
    short, whole = ends(framed(message.SerializeToString() for message in messages), tmp_path)
    assert whole.summary == {"train/loss": 0.5, "val/accuracy": 70.0, "test/accuracy": 82.2}
    assert short.summary == {"test/accuracy": 82.2}
    assert (short.config, short.state, short.damage) == (whole.config, "finished", ())


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "it is empty"), (b"PK" * BLOCK * 2, "it begins with b'PK"), (MAGIC[:5], "begins with")]
)
def test_a_file_that_is_empty_foreign_or_missing_is_refused_with_a_reason(
    data: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "odd.wandb").write_bytes(data)
    with pytest.raises(RecordError, match=re.escape(reason)):
        read_ends(tmp_path / "odd.wandb")
    with pytest.raises(RecordError, match=r"gone\.wandb cannot be read: No such file"):
        read_ends(tmp_path / "gone.wandb")


@settings(max_examples=150, deadline=None)
@given(MUTATIONS)
def test_the_two_ends_of_a_mutated_file_give_the_same_values_as_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float, Any]]
) -> None:
    data = long(1500)
    for change in changes:
        data = mutated(data, *change)
    if not data.startswith(MAGIC):
        return
    short, whole = ends(data, tmp_path_factory.mktemp("ends"))
    assert said(short) == said(whole)
    assert short.damage == whole.damage or short.damage == ()
