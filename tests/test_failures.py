"""The reasons for the ends of attempts as data: written, read back, and read from the texts of older attempts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from whole_store import JOB

from mmprompt.runs.attempt import LAST_WORDS, Attempt
from mmprompt.runs.failures import Reason, from_text, silent, told_to_end
from mmprompt.runs.files import StoreError
from mmprompt.runs.store import Store

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    f()\n'
REASONS = st.builds(
    Reason,
    st.sampled_from(["error", "diverged", "out of memory", "disk full", "time limit", "killed", "paused"]),
    st.text(max_size=3000),
    st.text(max_size=20_000),
    st.booleans(),
    st.none() | st.sampled_from(["SIGTERM", "SIGINT"]),
)


def claimed(folder: Path) -> Attempt:
    run = Store(folder).run("run")
    attempt = run.claim(run.next_number, JOB)
    assert attempt is not None
    return attempt


def test_what_an_attempt_writes_down_is_what_is_read(tmp_path: Path) -> None:
    attempt = claimed(tmp_path)
    assert attempt.reason is None
    reason = Reason("diverged", "TrainingError: the loss is nan", f"{TRACEBACK}TrainingError: the loss is nan\n")
    attempt.fail(reason)
    assert attempt.reason == reason and attempt.diverged and attempt.has_failed
    assert attempt.error_text.read_text() == reason.traceback
    assert json.loads(attempt.error_file.read_text())["kind"] == "diverged"


@given(REASONS)
def test_where_the_disk_has_no_room_the_reason_fits_into_the_room_that_was_kept(
    tmp_path_factory: pytest.TempPathFactory, reason: Reason
) -> None:
    attempt = claimed(tmp_path_factory.mktemp("full"))
    assert attempt._fail_without_room(reason)
    read = attempt.reason
    assert read is not None and (read.kind, read.interrupted, read.signal) == (
        reason.kind,
        reason.interrupted,
        reason.signal,
    )
    assert reason.message.startswith(read.message) and reason.traceback.endswith(read.traceback)
    assert attempt.error_file.stat().st_size <= LAST_WORDS


@pytest.mark.parametrize(
    ("text", "kind", "message", "interrupted", "signal"),
    [
        ("interrupted: told to end by SIGTERM", "killed", "told to end by SIGTERM", True, "SIGTERM"),
        (
            "interrupted: the time limit of its job was near",
            "time limit",
            "the time limit of its job was near",
            True,
            None,
        ),
        ("TimeLimitError: 3 attempts came near", "time limit", "TimeLimitError: 3 attempts came near", False, None),
        ("interrupted: paused at step 50", "paused", "paused at step 50", True, None),
        ("its process ended without a word\n", "killed", "its process ended without a word", False, None),
        (f"{TRACEBACK}mmprompt.train.TrainingError: nan", "diverged", "mmprompt.train.TrainingError: nan", False, None),
        (f"{TRACEBACK}MemoryError", "out of memory", "MemoryError", False, None),
        (
            f"{TRACEBACK}OSError: [Errno 28] No space left on device",
            "disk full",
            "OSError: [Errno 28] No space left on device",
            False,
            None,
        ),
        (f"{TRACEBACK}ValueError: no", "error", "ValueError: no", False, None),
        ("", "killed", "its process ended without a word", False, None),
    ],
)
def test_an_error_text_of_long_ago_says_the_same(
    text: str, kind: str, message: str, interrupted: bool, signal: str | None, tmp_path: Path
) -> None:
    attempt = claimed(tmp_path)
    attempt.error_text.write_text(text)
    read = attempt.reason
    assert read is not None
    assert (read.kind, read.message, read.interrupted, read.signal) == (kind, message, interrupted, signal)


def test_only_what_lies_in_the_run_or_its_time_limit_counts_as_a_try() -> None:
    assert Reason("error", "").is_a_try and Reason("time limit", "", interrupted=True).is_a_try
    assert not told_to_end("SIGTERM").is_a_try and not Reason("disk full", "", interrupted=True).is_a_try
    assert silent(interrupted=False).is_a_try and not silent(interrupted=True).is_a_try


def test_a_damaged_error_json_is_damage_and_never_taken_for_no_error(tmp_path: Path) -> None:
    attempt = claimed(tmp_path)
    attempt.fail(from_text("ValueError: no"))
    attempt.error_file.write_text("{")
    with pytest.raises(StoreError, match=r"error\.json is cut off or damaged"):
        attempt.reason  # noqa: B018
