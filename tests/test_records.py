"""Reading W&B's record files, whole and damaged, with W&B's own inspector as the judge."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from synthetic_store import OFFLINE
from wandb.proto.wandb_internal_pb2 import Record as Message

from analysis.records import RecordError, WandbRecord, read_ends, read_record
from mmprompt.runs.wandb_file import BLOCK, CHUNK, MAGIC, framed, payloads
from mmprompt.runs.wandb_record import RecordWriter

ROWS = 600  # three blocks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attempt")
    record = RecordWriter(folder, "r-1", "a name", "a group", {"prompt": {"length": 64}, "layers": None}, OFFLINE)
    for step in range(1, ROWS + 1):
        record.log(step, {"train/loss": 1 / step})
        if step % 25 == 0:
            record.log(step, {"val/accuracy": float(step), "odd": float("nan")})
    record.finish({"test/accuracy": 82.2, "best_step": 125}, 0)
    assert record.file is not None
    return record.file


def damaged(data: bytes, folder: Path) -> WandbRecord:
    file = folder / "damaged.wandb"
    file.write_bytes(data)
    return read_record(file, history=True)


def assert_true_rows(found: WandbRecord, whole: WandbRecord) -> None:
    """Every row that is there is a row that was written."""
    true = whole.history.set_index("_step")["train/loss"]
    if len(found.history):
        read = found.history.set_index("_step")["train/loss"].astype("float64")  # 1.0 is written as 1
        assert read.equals(true.loc[read.index])


def test_a_record_reads_as_it_was_written(written: Path) -> None:
    record = read_record(written, history=True)
    assert record.config == {"prompt": {"length": 64}, "layers": None}
    assert record.summary == {"test/accuracy": 82.2, "best_step": 125}
    assert (record.run, record.name, record.group, record.state) == ("r-1", "a name", "a group", "finished")
    assert list(record.history["_step"]) == list(range(1, ROWS + 1))
    assert np.allclose(record.history["train/loss"], 1 / np.arange(1, ROWS + 1), rtol=0, atol=0)
    assert list(record.history["val/accuracy"].dropna()) == [float(step) for step in range(25, ROWS + 1, 25)]
    assert record.history["odd"].isna().all()
    assert record.damage == ()


def test_without_history_all_else_is_the_same(written: Path) -> None:
    whole, rest = read_record(written, history=True), read_record(written, history=False)
    assert (rest.config, rest.summary, rest.exit_code) == (whole.config, whole.summary, whole.exit_code)
    assert len(rest.history) == 0


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "killed": lambda data: data[: 2 * len(data) // 3],
    "flipped": lambda data: (
        data[:BLOCK] + bytes([data[BLOCK] ^ 1]) + data[BLOCK + 1 :]
    ),  # the whole of its block is lost
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_reader_agrees_with_wandbs_own_inspector(written: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "run-r-1.wandb"
    file.write_bytes(DAMAGES[damage](written.read_bytes()))
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
    rows = [message["history"]["item"] for message in messages if message["type"] == "history"]
    summary: dict[str, Any] = {}
    for message in messages:
        if message["type"] == "summary":
            summary |= message["summary"]["update"]
    (run,) = [message["run"] for message in messages if message["type"] == "run"]
    ends = [message["exit"]["exit_code"] for message in messages if message["type"] == "exit"]
    record = read_record(file, history=True)
    assert record.run == run["run_id"]
    assert record.config == {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
    assert record.summary == {key: value for key, value in summary.items() if not key.startswith("_")}
    assert ([] if record.exit_code is None else [record.exit_code]) == ends
    for key in ("_step", "_timestamp", "train/loss"):
        assert list(record.history[key]) == [row[key] for row in rows]
    assert len(rows) == ROWS if damage == "none" else 0 < len(rows) < ROWS


def test_a_file_cut_anywhere_gives_the_rows_before_the_cut(written: Path, tmp_path: Path) -> None:
    data, whole = written.read_bytes(), read_record(written, history=True)
    edges = [edge + shift for edge in range(BLOCK, len(data), BLOCK) for shift in range(-9, 20)]
    cuts = sorted({*range(len(MAGIC), 200), *edges, *range(len(MAGIC), len(data), 997), len(data) - 1})
    assert len(data) > 2 * BLOCK
    rows = 0
    for cut in cuts:
        found = damaged(data[:cut], tmp_path)
        assert_true_rows(found, whole)
        assert rows <= len(found.history)  # more file, not fewer rows
        assert list(found.history.get("_step", [])) == list(range(1, len(found.history) + 1))
        assert found.exit_code is None and found.state == "no end"
        rows = len(found.history)
    assert "the file ends inside a chunk" in found.damage[0]


def test_a_flipped_byte_loses_rows_but_never_makes_one_up(written: Path, tmp_path: Path) -> None:
    data, whole = written.read_bytes(), read_record(written, history=True)
    random = np.random.default_rng(0)
    for place in random.integers(len(MAGIC), len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(8))
        found = damaged(bytes(flipped), tmp_path)
        assert_true_rows(found, whole)
        assert found.damage or found.history.equals(whole.history)  # equal: it was padding


def test_a_zeroed_stretch_is_damage_and_the_next_block_is_read(written: Path, tmp_path: Path) -> None:
    data, whole = bytearray(written.read_bytes()), read_record(written, history=True)
    data[1000:3000] = bytes(2000)
    found = damaged(bytes(data), tmp_path)
    assert_true_rows(found, whole)
    assert found.state == "finished" and found.summary == whole.summary
    assert 0 < len(found.history) < ROWS
    assert found.damage[0].startswith("byte ") and "checksum" in found.damage[0]


# The two ends


def ends(data: bytes, folder: Path) -> tuple[WandbRecord, WandbRecord]:
    """The short reading and the whole one."""
    file = folder / "ends.wandb"
    file.write_bytes(data)
    return read_ends(file), read_record(file, history=False)


def said(record: WandbRecord) -> tuple[Any, ...]:
    return record.run, record.name, record.group, record.config, record.summary, record.exit_code


def long(rows: int) -> bytes:
    """A sound file of this many steps, whose values are set at its end."""
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


def test_the_two_ends_of_a_record_say_what_all_of_it_says(written: Path) -> None:
    short, whole = read_ends(written), read_record(written, history=False)
    assert said(short) == said(whole) and (short.damage, short.state) == ((), "finished")
    assert len(short.history) == 0


@pytest.mark.parametrize("rows", [0, 1, 200, 700, 1100, 1500, 4000])
def test_the_two_ends_say_it_whatever_the_length(rows: int, tmp_path: Path) -> None:
    short, whole = ends(long(rows), tmp_path)
    assert said(short) == said(whole)
    assert (short.summary, short.state, short.damage) == ({"test/accuracy": 82.2}, "finished", ())


def test_the_end_is_found_wherever_the_blocks_cut_it(tmp_path: Path) -> None:
    """The last messages are pushed over the end of a block, byte by byte, and are longer than one."""
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


def test_the_middle_is_not_looked_at(tmp_path: Path) -> None:
    data = bytearray(long(4000))
    data[3 * BLOCK + 100] ^= 1
    (tmp_path / "damaged.wandb").write_bytes(data)
    assert read_record(tmp_path / "damaged.wandb", history=False).damage
    assert read_ends(tmp_path / "damaged.wandb").damage == ()  # as is said there


@pytest.mark.parametrize("step", [1, 997])
def test_of_a_file_cut_anywhere_the_short_reading_says_no_more_than_the_whole_one(step: int, tmp_path: Path) -> None:
    data = long(1600)
    near = [edge + shift for edge in range(BLOCK, len(data), BLOCK) for shift in range(-9, 20)]
    cuts = range(len(data) - 150, len(data)) if step == 1 else [*near, *range(len(MAGIC), len(data), step)]
    assert len(data) > 3 * BLOCK
    for cut in cuts:
        short, whole = ends(data[:cut], tmp_path)
        assert said(short) == said(whole)
        assert short.damage == whole.damage and short.state == "no end"


def test_what_is_missing_among_the_last_messages_has_all_of_it_read(tmp_path: Path) -> None:
    records = [payload for payload in payloads(long(1500), len(MAGIC)) if isinstance(payload, bytes)]
    for gone in range(1, 4):  # the summary; and the last steps with it
        short, whole = ends(framed([*records[: -1 - gone], records[-1]]), tmp_path)
        assert said(short) == said(whole) and short.damage == whole.damage != ()


def test_a_record_whose_values_are_not_at_its_end_is_read_whole(tmp_path: Path) -> None:
    records = [payload for payload in payloads(long(1500), len(MAGIC)) if isinstance(payload, bytes)]
    *before, summary, end = records
    moved = [before[0], before[1], summary, *before[2:], end]
    for number, one in enumerate(messages := [Message.FromString(record) for record in moved], 1):
        one.num = number
    short, whole = ends(framed(one.SerializeToString() for one in messages), tmp_path)
    assert said(short) == said(whole) and short.damage == ()


def test_of_a_client_that_was_online_the_short_reading_has_what_was_set_last(tmp_path: Path) -> None:
    """It notes the last values of each step in the summary, too; those of long ago are in the middle of the file."""
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
def test_the_short_reading_refuses_what_the_whole_one_refuses(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "odd.wandb").write_bytes(data)
    with pytest.raises(RecordError, match=re.escape(reason)):
        read_ends(tmp_path / "odd.wandb")
    with pytest.raises(RecordError, match=r"gone\.wandb cannot be read: No such file"):
        read_ends(tmp_path / "gone.wandb")


PLACE, LENGTH = st.floats(0, 1, exclude_max=True), st.integers(1, 9000)
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), PLACE, st.just(0)),
        st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
        st.tuples(st.sampled_from(["zero", "delete", "repeat"]), PLACE, LENGTH),
        st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=50)),
    ),
    min_size=1,
    max_size=3,
)


def mutated(data: bytes, kind: str, place: float, how: Any) -> bytes:
    at = int(place * len(data))
    head, tail = data[:at], data[at:]
    match kind:
        case "cut":
            return head
        case "flip":
            return head + bytes([tail[0] ^ (1 << how)]) + tail[1:] if tail else head
        case "zero":
            return head + bytes(min(how, len(tail))) + tail[how:]
        case "delete":
            return head + tail[how:]
        case "repeat":
            return head + tail[:how] + tail
        case _:
            return head + how + tail


@settings(max_examples=150, deadline=None)
@given(MUTATIONS)
def test_whatever_happens_to_a_file_its_rows_are_true_and_what_is_missing_is_said(
    written: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, float, Any]]
) -> None:
    data, whole = written.read_bytes(), read_record(written, history=True)
    for change in changes:
        data = mutated(data, *change)
    try:
        found = damaged(data, tmp_path_factory.mktemp("damaged"))
    except RecordError:
        assert not data.startswith(MAGIC)
        return
    assert_true_rows(found, whole)
    if not found.damage:
        beginning = whole.history.head(len(found.history))[found.history.columns]
        assert found.history.astype("float64").equals(beginning.astype("float64"))
    if not found.damage and found.state == "finished":
        assert len(found.history) == ROWS
        assert (found.config, found.summary) == (whole.config, whole.summary)


@settings(max_examples=150, deadline=None)
@given(MUTATIONS)
def test_whatever_happens_to_a_file_the_short_reading_does_not_contradict_the_whole_one(
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


def test_chunks_that_are_gone_as_a_whole_are_missed(written: Path, tmp_path: Path) -> None:
    """Nothing but the numbers of the records tells, where the loss begins and ends with a chunk of the last block."""
    records = [payload for payload in payloads(written.read_bytes(), len(MAGIC)) if isinstance(payload, bytes)]
    found = damaged(framed([*records[:500], *records[510:]]), tmp_path)
    assert found.damage == ("records 501 to 510 are missing",)
    assert len(found.history) == ROWS - 10
    assert damaged(framed(records), tmp_path).damage == ()


def test_records_that_are_there_twice_count_once(written: Path, tmp_path: Path) -> None:
    records = [payload for payload in payloads(written.read_bytes(), len(MAGIC)) if isinstance(payload, bytes)]
    found = damaged(framed([*records[:500], *records[490:]]), tmp_path)
    assert found.history.equals(read_record(written, history=True).history)
    assert found.damage[0] == "record 491 comes after record 500" and len(found.damage) == 10


def test_a_record_without_its_first_chunk_is_missed() -> None:
    file = framed([b"x" * (BLOCK - len(MAGIC) - CHUNK.size - 20), b"y" * 100, b"z"])  # y crosses the end of a block
    missed, *rest = payloads(file[: len(MAGIC)] + file[BLOCK:], len(MAGIC))
    assert not isinstance(missed, bytes) and missed.reason == "a record has no beginning"
    assert rest == [b"z"]


def test_a_record_without_its_last_chunk_is_missed() -> None:
    record, missed = payloads(framed([b"a", b"b" * BLOCK])[:BLOCK], len(MAGIC))
    assert record == b"a"
    assert not isinstance(missed, bytes) and missed.reason == "a record has no end"


def test_a_record_with_a_hole_is_not_put_together() -> None:
    file = bytearray(framed([b"a", b"b" * (2 * BLOCK + 100), b"c"]))
    file[BLOCK + 1000] ^= 1
    assert [part for part in payloads(bytes(file), len(MAGIC)) if isinstance(part, bytes)] == [b"a", b"c"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * BLOCK), max_size=6))
@example(
    [BLOCK - len(MAGIC) - 2 * CHUNK.size, 5]
)  # what is left of the block holds the head of a chunk, and no byte of it
def test_what_is_framed_is_read_as_it_was(lengths: list[int]) -> None:
    records = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    assert list(payloads(framed(records), len(MAGIC))) == records


def evil(text: str) -> bytes:
    """A sound file whose values are this text."""
    run, row, last = Message(num=1), Message(num=2), Message(num=3)
    run.run.run_id = "r-1"
    run.run.config.update.add(key="seed", value_json=text)
    row.history.item.add(nested_key=["_step"], value_json="1")
    row.history.item.add(nested_key=["train/loss"], value_json=text)
    last.summary.update.add(nested_key=["test", "accuracy"], value_json=text)
    return framed(message.SerializeToString() for message in (run, row, last))


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from('[]{},:"1e-. \\naN'), max_size=20))
@example("")
@example("1,2")
@example("1],[2")
@example("[" * 100_000)
@example("9" * 5000)
@example("1e999")
def test_a_value_that_is_no_json_is_left_out_and_said(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    found = damaged(evil(text), tmp_path_factory.mktemp("evil"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        assert len(found.damage) == 3 and all("is no JSON" in damage for damage in found.damage)
        assert (found.config, found.summary) == ({}, {})
        assert math.isnan(found.history["train/loss"][0])
    else:
        assert found.damage == ()
        assert str(found.config) == str({"seed": value}) and str(found.summary) == str({"test.accuracy": value})


def test_a_sound_chunk_that_holds_no_message_is_damage(written: Path, tmp_path: Path) -> None:
    import zlib

    foreign = b"\xff\xff no message"
    chunk = CHUNK.pack(zlib.crc32(b"\x01" + foreign), len(foreign), 1) + foreign
    found = damaged(MAGIC + chunk, tmp_path)
    assert "is no W&B message" in found.damage[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "it is empty"), (b"PK\x03\x04 a zip", "it begins with b'PK"), (MAGIC[:5], "it begins with")],
)
def test_an_empty_or_foreign_file_is_refused_with_its_path_and_why(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as error:
        damaged(data, tmp_path)
    assert str(tmp_path / "damaged.wandb") in str(error.value) and reason in str(error.value)


def test_a_missing_file_is_refused_with_its_path_and_why(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"gone\.wandb cannot be read: No such file"):
        read_record(tmp_path / "gone.wandb", history=True)


def test_a_file_of_only_a_header_is_a_record_that_has_not_begun(tmp_path: Path) -> None:
    found = damaged(MAGIC, tmp_path)
    assert (found.run, found.state, found.damage, len(found.history)) == (None, "no end", (), 0)
