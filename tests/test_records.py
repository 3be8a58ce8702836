"""Reading W&B's record files, whole and damaged, with W&B's own inspector as the judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_store import OFFLINE

from analysis.records import RecordError, RunRecord, read_record
from mmprompt.tracking import Record
from mmprompt.wandb_file import BLOCK, CHUNK, MAGIC

ROWS = 600  # three blocks


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attempt")
    record = Record(folder, "r-1", "a name", "a group", {"prompt": {"length": 64}, "layers": None}, OFFLINE)
    for step in range(1, ROWS + 1):
        record.log(step, {"train/loss": 1 / step})
        if step % 25 == 0:
            record.log(step, {"val/accuracy": float(step), "odd": float("nan")})
    record.finish({"test/accuracy": 82.2, "best_step": 125}, 0)
    assert record.file is not None
    return record.file


def damaged(data: bytes, folder: Path) -> RunRecord:
    file = folder / "damaged.wandb"
    file.write_bytes(data)
    return read_record(file, history=True)


def assert_true_rows(found: RunRecord, whole: RunRecord) -> None:
    """Every row that is there is a row that was written."""
    true = whole.history.set_index("_step")["train/loss"]
    if len(found.history):
        read = found.history.set_index("_step")["train/loss"]
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


def test_the_reader_agrees_with_wandbs_own_inspector(written: Path) -> None:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(written)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
    rows = [message["history"]["item"] for message in messages if message["type"] == "history"]
    summary: dict[str, Any] = {}
    for message in messages:
        if message["type"] == "summary":
            summary |= message["summary"]["update"]
    (run,) = [message["run"] for message in messages if message["type"] == "run"]
    (end,) = [message["exit"] for message in messages if message["type"] == "exit"]
    record = read_record(written, history=True)
    assert record.run == run["run_id"]
    assert record.config == {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
    assert record.summary == {key: value for key, value in summary.items() if not key.startswith("_")}
    assert record.exit_code == end["exit_code"]
    assert list(record.history["_step"]) == [row["_step"] for row in rows]
    assert list(record.history["_timestamp"]) == [row["_timestamp"] for row in rows]
    assert list(record.history["train/loss"]) == [row["train/loss"] for row in rows]


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
