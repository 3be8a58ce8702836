"""The framing of W&B's record files."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmprompt.runs.wandb_file import BLOCK, CHUNK, MAGIC, framed, payloads


def test_a_record_without_its_first_chunk_is_reported_as_one_without_a_beginning() -> None:
    file = framed([b"x" * (BLOCK - len(MAGIC) - CHUNK.size - 20), b"y" * 100, b"z"])  # y crosses the end of a block
    missed, *rest = payloads(file[: len(MAGIC)] + file[BLOCK:], len(MAGIC))
    assert not isinstance(missed, bytes) and missed.reason == "a record has no beginning"
    assert rest == [b"z"]


def test_a_record_without_its_last_chunk_is_reported_as_one_without_an_end() -> None:
    record, missed = payloads(framed([b"a", b"b" * BLOCK])[:BLOCK], len(MAGIC))
    assert record == b"a"
    assert not isinstance(missed, bytes) and missed.reason == "a record has no end"


def test_a_record_with_a_damaged_chunk_in_its_middle_is_left_out() -> None:
    file = bytearray(framed([b"a", b"b" * (2 * BLOCK + 100), b"c"]))
    file[BLOCK + 1000] ^= 1
    assert [part for part in payloads(bytes(file), len(MAGIC)) if isinstance(part, bytes)] == [b"a", b"c"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * BLOCK), max_size=6))
@example(
    [BLOCK - len(MAGIC) - 2 * CHUNK.size, 5]
)  # the rest of the block has room for the header of a chunk but for no byte of its content
def test_framed_records_are_read_back_unchanged(lengths: list[int]) -> None:
    records = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    assert list(payloads(framed(records), len(MAGIC))) == records
