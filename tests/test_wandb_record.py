"""W&B records read from intact and damaged files; W&B's own inspector must agree."""

from __future__ import annotations

import json
import math
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

from analysis.records.histories import history_frame, read_history
from mmprompt.runs.wandb_file import BLOCK, CHUNK, MAGIC, framed, payloads
from mmprompt.runs.wandb_record import RecordError, WandbRecord, read_record
from mmprompt.runs.wandb_writer import RecordWriter

ROWS = 600  # three blocks


def write(folder: Path) -> Path:
    """The file of a record that the client wrote."""
    record = RecordWriter(folder, "r-1", "a name", "a group", {"prompt": {"length": 64}, "layers": None}, OFFLINE)
    for step in range(1, ROWS + 1):
        record.log(step, {"train/loss": 1 / step})
        if step % 25 == 0:
            record.log(step, {"val/accuracy": float(step), "odd": float("nan")})
    record.finish({"test/accuracy": 82.2, "best_step": 125}, 0)
    assert record.file is not None
    return record.file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("attempt"))


def damaged(data: bytes, folder: Path) -> WandbRecord:
    file = folder / "damaged.wandb"
    file.write_bytes(data)
    return read_record(file, history=True)


def assert_true_rows(found: WandbRecord, whole: WandbRecord) -> None:
    """Every row that was read is a row that was written."""
    true = history_frame(whole).set_index("_step")["train/loss"]
    if len(history_frame(found)):
        read = history_frame(found).set_index("_step")["train/loss"].astype("float64")  # 1.0 is written as 1
        assert read.equals(true.loc[read.index])


def test_a_record_reads_as_it_was_written(written: Path) -> None:
    record = read_record(written, history=True)
    assert record.config == {"prompt": {"length": 64}, "layers": None}
    assert record.summary == {"test/accuracy": 82.2, "best_step": 125}
    assert (record.id, record.name, record.group, record.state) == ("r-1", "a name", "a group", "finished")
    assert list(history_frame(record)["_step"]) == list(range(1, ROWS + 1))
    assert np.allclose(history_frame(record)["train/loss"], 1 / np.arange(1, ROWS + 1), rtol=0, atol=0)
    assert list(history_frame(record)["val/accuracy"].dropna()) == [float(step) for step in range(25, ROWS + 1, 25)]
    assert history_frame(record)["odd"].isna().all()
    assert record.damage == ()


def test_a_record_read_without_its_history_is_otherwise_the_same(written: Path) -> None:
    whole, rest = read_record(written, history=True), read_record(written, history=False)
    assert (rest.config, rest.summary, rest.exit_code) == (whole.config, whole.summary, whole.exit_code)
    assert len(rest.history) == 0


def test_a_record_read_without_its_values_is_otherwise_the_same(written: Path) -> None:
    whole, rest = read_record(written, history=True), read_record(written, history=False, values=False)
    assert (rest.config, rest.summary, rest.history) == ({}, {}, {})
    assert (rest.id, rest.project, rest.rows, rest.state) == (whole.id, whole.project, whole.rows, whole.state)
    assert (rest.rows, rest.damage) == (ROWS, ())


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "killed": lambda data: data[: 2 * len(data) // 3],
    "flipped": lambda data: data[:BLOCK] + bytes([data[BLOCK] ^ 1]) + data[BLOCK + 1 :],  # the whole block is lost
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
    assert record.id == run["run_id"]
    assert record.config == {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
    assert record.summary == {key: value for key, value in summary.items() if not key.startswith("_")}
    assert ([] if record.exit_code is None else [record.exit_code]) == ends
    for key in ("_step", "_timestamp", "train/loss"):
        assert list(history_frame(record)[key]) == [row[key] for row in rows]
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
        assert rows <= len(history_frame(found))  # a longer part of the file gives at least as many rows
        assert list(history_frame(found).get("_step", [])) == list(range(1, len(history_frame(found)) + 1))
        assert found.exit_code is None and found.state == "no end"
        rows = len(history_frame(found))
    assert "the file ends inside a chunk" in found.damage[0]


def test_a_flipped_bit_may_lose_rows_but_never_invents_one(written: Path, tmp_path: Path) -> None:
    data, whole = written.read_bytes(), read_record(written, history=True)
    random = np.random.default_rng(0)
    for place in random.integers(len(MAGIC), len(data), 60):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(8))
        found = damaged(bytes(flipped), tmp_path)
        assert_true_rows(found, whole)
        assert found.damage or history_frame(found).equals(
            history_frame(whole)
        )  # if they are equal, the bit lay in padding


def test_a_zeroed_stretch_is_damage_and_the_next_block_is_read(written: Path, tmp_path: Path) -> None:
    data, whole = bytearray(written.read_bytes()), read_record(written, history=True)
    data[1000:3000] = bytes(2000)
    found = damaged(bytes(data), tmp_path)
    assert_true_rows(found, whole)
    assert found.state == "finished" and found.summary == whole.summary
    assert 0 < len(history_frame(found)) < ROWS
    assert found.damage[0].startswith("byte ") and "checksum" in found.damage[0]


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
def test_the_rows_of_a_mutated_file_are_true_and_missing_ones_are_reported(
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
        beginning = history_frame(whole).head(len(history_frame(found)))[history_frame(found).columns]
        assert history_frame(found).astype("float64").equals(beginning.astype("float64"))
    if not found.damage and found.state == "finished":
        assert len(history_frame(found)) == ROWS
        assert (found.config, found.summary) == (whole.config, whole.summary)


def test_records_whose_whole_chunks_are_lost_are_reported_by_their_numbers(written: Path, tmp_path: Path) -> None:
    """If whole chunks of the last block are lost, only the numbers of the records show it."""
    records = [payload for payload in payloads(written.read_bytes(), len(MAGIC)) if isinstance(payload, bytes)]
    found = damaged(framed([*records[:500], *records[510:]]), tmp_path)
    assert found.damage == ("records 501 to 510 are missing",)
    assert len(history_frame(found)) == ROWS - 10
    assert damaged(framed(records), tmp_path).damage == ()


def test_records_that_occur_twice_count_once_and_are_reported(written: Path, tmp_path: Path) -> None:
    records = [payload for payload in payloads(written.read_bytes(), len(MAGIC)) if isinstance(payload, bytes)]
    found = damaged(framed([*records[:500], *records[490:]]), tmp_path)
    assert history_frame(found).equals(read_history(written))
    assert found.damage[0] == "record 491 comes after record 500" and len(found.damage) == 10


def evil(text: str) -> bytes:
    """An intact file whose values are this text."""
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
def test_a_value_that_is_no_json_is_left_out_and_reported(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    found = damaged(evil(text), tmp_path_factory.mktemp("evil"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        assert len(found.damage) == 3 and all("is no JSON" in damage for damage in found.damage)
        assert (found.config, found.summary) == ({}, {})
        assert math.isnan(history_frame(found)["train/loss"][0])
    else:
        assert found.damage == ()
        assert str(found.config) == str({"seed": value}) and str(found.summary) == str({"test.accuracy": value})


def test_an_intact_chunk_that_holds_no_message_is_damage(written: Path, tmp_path: Path) -> None:
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
    assert (found.id, found.state, found.damage, len(history_frame(found))) == (None, "no end", (), 0)
