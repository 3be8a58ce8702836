"""A run that is killed at any moment and started again ends with the same bits as one that was not killed.

Every kill is a SIGKILL of the real process; MMPROMPT_LONG=1 kills ten times as often, and before every file operation.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import error_of
from groups import LONG, some
from tiny import frozen_run
from victim import Victims

from analysis.records.histories import history_frame
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.wandb_record import read_record

STEPS = 12
FROZEN = ("optim.steps=12", "optim.validate_every=4")
LIVE = (*FROZEN, "prompt.dropout=0.2", "backbone.mode=train", "optim.micro_batch=4", "prompt.reparameterization=mlp")
CLOCK = ("_timestamp", "_runtime")
# The time and memory of a run differ each time.
TAKEN = dict.fromkeys(("seconds", "device_hours", "device_hours_spent", "peak_memory_mb", "seconds_per_100"), 0)


@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    victims = Victims(tmp_path_factory.mktemp("victims"))
    yield victims
    victims.close()


@pytest.fixture(scope="module")
def undisturbed(victims: Victims, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], RunFolder]:
    """A run that was never killed, for each of the settings."""
    store = tmp_path_factory.mktemp("undisturbed")
    runs = {settings: frozen_run(store, *settings) for settings in ((FROZEN, LIVE) if LONG else (FROZEN,))}
    for run in runs.values():
        assert victims.attempt(store, run.id, tracking="offline").code == 0
        assert len(run.attempts()) == 1
    return runs


def start(store: Path, undisturbed: RunFolder, *settings: str) -> RunFolder:
    """The same run in a store of its own, with a copy of the cached image features."""
    shutil.copytree(undisturbed.root / "cache", store / "cache")
    run = frozen_run(store, *settings)
    assert run.id == undisturbed.id
    return run


def reproducible_part(evaluation: Path) -> dict[str, Any]:
    """An evaluation's file without the attempt that made it, its W&B record, and the time that it took."""
    content: dict[str, Any] = json.loads(evaluation.read_text())
    return {key: value for key, value in content.items() if key not in ("attempt", "seconds", "wandb")}


def assert_same(run: RunFolder, other: RunFolder) -> None:
    """Weights, scores of every example, metrics and W&B history are equal to the bit; killed attempts left no other files."""
    ours, theirs = run.result(), other.result()
    assert ours is not None and theirs is not None
    for key in ("metrics", "evaluations", "best_step", "steps", "trainable_parameters", "threads", "device"):
        assert ours[key] == theirs[key], key
    assert run.weights_file.read_bytes() == other.weights_file.read_bytes()
    for evaluation in theirs["evaluations"].values():
        a, b = run.evaluation_file(evaluation), other.evaluation_file(evaluation)
        assert reproducible_part(a) == reproducible_part(b)
        assert a.with_suffix(".npy").read_bytes() == b.with_suffix(".npy").read_bytes()
    if ours["wandb"] is not None:
        a, b = (read_record(folder.path / folder.result()["wandb"], history=True) for folder in (run, other))  # type: ignore[index]
        assert a.state == b.state == "finished" and a.damage == b.damage == ()
        assert history_frame(a).drop(columns=[*CLOCK]).equals(history_frame(b).drop(columns=[*CLOCK]))
        assert list(history_frame(a)["_step"]) == list(range(1, STEPS + 1))
        assert a.summary | TAKEN == b.summary | TAKEN
    assert names(run) - {"error.json", "error.txt"} == names(other)
    assert len(list(run.path.rglob("*.safetensors"))) == 1 and list(run.path.rglob(".*")) == []


def names(run: RunFolder) -> set[str]:
    """The names of a run's files. W&B records, whose names differ between attempts, all count as `.wandb`."""
    return {path.name if path.suffix != ".wandb" else ".wandb" for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("settings", [FROZEN, pytest.param(LIVE, marks=pytest.mark.long)], ids=["frozen", "live"])
def test_a_run_that_is_killed_after_random_steps_equals_one_that_was_not_killed(
    victims: Victims, undisturbed: dict[tuple[str, ...], RunFolder], settings: tuple[str, ...], tmp_path: Path
) -> None:
    chance = random.Random(1)
    for number in range(10 if LONG else 1):
        store = tmp_path / str(number)
        run = start(store, undisturbed[settings], *settings)
        kills = sorted(chance.choices(range(1, STEPS + 1), k=3))
        for step in kills:
            assert victims.attempt(store, run.id, tracking="offline", die_after_step=step).killed
        assert victims.attempt(store, run.id, tracking="offline").code == 0
        assert len(run.attempts()) == 4
        last = (kills[-1] - 1) // 2 * 2  # there is a checkpoint of every second step before the kill
        assert ((run.result() or {})["resumed_from"] or {"step": 0})["step"] == last, kills
        assert_same(run, undisturbed[settings])


@pytest.mark.long
def test_a_run_that_is_killed_at_random_moments_equals_one_that_was_not_killed(
    victims: Victims, undisturbed: dict[tuple[str, ...], RunFolder], tmp_path: Path
) -> None:
    """At any point: while a record is opened, in the middle of a step, while the answers are scored."""
    chance = random.Random(2)
    began = time.monotonic()
    start(tmp_path / "timed", undisturbed[FROZEN], *FROZEN)
    victims.attempt(tmp_path / "timed", undisturbed[FROZEN].id, tracking="offline")
    whole = time.monotonic() - began
    killed, wanted = 0, 40 if LONG else 4
    for number in itertools.count():
        store = tmp_path / str(number)
        run = start(store, undisturbed[FROZEN], *FROZEN)
        for _ in range(2):
            seconds = chance.uniform(0, whole)
            if victims.attempt(store, run.id, tracking="offline", die_after_seconds=seconds).killed:
                killed += 1
            else:  # the run ended before the kill: the machine is less busy than when it was timed
                whole = seconds
        assert victims.attempt(store, run.id, tracking="offline").code == 0
        assert_same(run, undisturbed[FROZEN])
        if killed >= wanted:
            break


SHORT = ("optim.steps=4",)
OPERATIONS = 50  # at least so many times an attempt touches the store's files and folders if its features are cached


def test_a_run_that_is_killed_between_any_two_file_operations_equals_one_that_was_not_killed(
    victims: Victims, tmp_path: Path
) -> None:
    whole = frozen_run(tmp_path / "whole", *SHORT)
    assert victims.attempt(tmp_path / "whole", whole.id).code == 0
    number, killed = 0, True
    while killed:
        number += 1
        if not LONG and number % 25 != 1:
            continue
        store = tmp_path / str(number)
        run = start(store, whole, *SHORT)
        killed = victims.attempt(store, run.id, die_before_operation=number).killed
        if number % 2 and killed:  # and the next attempt too, some operations later
            victims.attempt(store, run.id, die_before_operation=number // 2 + 20)
        assert victims.attempt(store, run.id).code == 0
        assert_same(run, whole)
        shutil.rmtree(store)
    assert number > OPERATIONS


@pytest.mark.parametrize("byte", some([10_000, 70_000], 70_000))
def test_a_run_that_is_killed_while_it_writes_a_checkpoint_resumes_from_the_one_before(
    victims: Victims, undisturbed: dict[tuple[str, ...], RunFolder], byte: int, tmp_path: Path
) -> None:
    run = start(tmp_path, undisturbed[FROZEN], *FROZEN)
    assert victims.attempt(tmp_path, run.id, die_after_step=5).killed
    for _ in range(2):
        assert victims.attempt(tmp_path, run.id, die_at_byte=byte).killed
        [half] = run.path.glob("attempts/*/.checkpoint*")  # of the newest attempt; earlier drafts are removed
        assert half.stat().st_size == byte
    assert [attempt.checkpoint_steps for attempt in run.attempts()] == [[2, 4], [], []]
    assert victims.attempt(tmp_path, run.id, tracking="offline").code == 0
    assert (run.result() or {})["resumed_from"] == {"attempt": 1, "step": 4}
    assert_same(run, undisturbed[FROZEN])


def test_an_attempt_keeps_its_newest_two_checkpoints_and_then_deletes_those_of_earlier_attempts(
    victims: Victims, undisturbed: dict[tuple[str, ...], RunFolder], tmp_path: Path
) -> None:
    run = start(tmp_path, undisturbed[FROZEN], *FROZEN)
    kept = []
    for step in (7, 9, 11):
        assert victims.attempt(tmp_path, run.id, die_after_step=step).killed
        kept.append([attempt.checkpoint_steps for attempt in run.attempts()])
    assert kept == [[[4, 6]], [[4, 6], [8]], [[4, 6], [8], [10]]]
    assert victims.attempt(tmp_path, run.id, checkpoint_every=1, die_after_step=12).killed
    assert [attempt.checkpoint_steps for attempt in run.attempts()] == [[4, 6], [8], [10], [11]]
    shutil.rmtree(run.attempts()[3].path)
    shutil.rmtree(run.attempts()[2].path)
    assert victims.attempt(tmp_path, run.id, checkpoint_every=1, die_after_step=12).killed
    assert [attempt.checkpoint_steps for attempt in run.attempts()] == [[], [], [10, 11]]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def zero_the_end(file: Path) -> None:
    """As on a file system that stored the file's length but lost its content."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


def of_other_code(file: Path) -> None:
    """An intact file that lacks a part which today's code needs."""
    content = torch.load(io.BytesIO(file.read_bytes()[32:]), weights_only=True)
    del content["random"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    file.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def make_unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()  # permissions would not do, because root may read every file


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, zero_the_end, of_other_code, make_unreadable])
def test_a_damaged_checkpoint_is_named_and_the_run_resumes_from_the_one_before(
    victims: Victims,
    undisturbed: dict[tuple[str, ...], RunFolder],
    damage: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    run = start(tmp_path, undisturbed[FROZEN], *FROZEN)
    assert victims.attempt(tmp_path, run.id, die_after_step=9).killed
    newest = run.attempts()[0].checkpoint_file(8)
    damage(newest)
    end = victims.attempt(tmp_path, run.id, tracking="offline")
    assert f"{newest} is passed over: " in end.output and "goes on from step 6 of attempt 1" in end.output
    result = run.result() or {}
    assert result["resumed_from"] == {"attempt": 1, "step": 6}
    [damaged] = result["damaged_checkpoints"]
    assert damaged.startswith("attempts/1/checkpoint.8.pt: it")
    assert_same(run, undisturbed[FROZEN])


def test_if_an_attempt_left_no_intact_checkpoint_an_earlier_attempts_is_used_or_training_starts_again(
    victims: Victims, undisturbed: dict[tuple[str, ...], RunFolder], tmp_path: Path
) -> None:
    run = start(tmp_path, undisturbed[FROZEN], *FROZEN)
    assert victims.attempt(tmp_path, run.id, die_after_step=3).killed
    assert victims.attempt(tmp_path, run.id, die_after_step=5).killed
    first, second = run.attempts()
    empty(second.checkpoint_file(4))
    end = victims.attempt(tmp_path, run.id, die_after_step=3)
    assert "goes on from step 2 of attempt 1" in end.output
    empty(first.checkpoint_file(2))
    end = victims.attempt(tmp_path, run.id, tracking="offline")
    assert end.output.count("is passed over") == 2 and "goes on" not in end.output
    assert (run.result() or {})["resumed_from"] is None
    assert_same(run, undisturbed[FROZEN])


@pytest.mark.parametrize(
    ("spoil", "mend", "reason"),
    [
        ("head -c 100M /dev/zero > {disk}/filler || true", "rm {disk}/filler", "No space left on device"),
        ("mount --bind {disk} {disk} && mount -o remount,bind,ro {disk}", "umount {disk}", "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_cannot_be_written_ends_the_process_with_the_reason_and_loses_no_checkpoint(
    victims: Victims,
    undisturbed: dict[tuple[str, ...], RunFolder],
    tmp_path: Path,
    spoil: str,
    mend: str,
    reason: str,
) -> None:
    """The disk fails at step 5 and is still unusable for the next process; for the third it can be written again."""
    disk = victims.disk
    if disk is None:
        pytest.skip("no private file system can be mounted here: `unshare --user --mount` with a tmpfs is not allowed")
    store = disk / tmp_path.name
    seen = Path(f"/proc/{victims.process.pid}/root{store}")  # as its processes see it
    run, other = (frozen_run(seen, *settings) for settings in (FROZEN, (*FROZEN, "seed=9")))
    spoil, mend = (command.format(disk=disk) for command in (spoil, mend))

    end = victims.attempt(store, run.id, other.id, tracking="offline", shell_after_step=5, then=spoil)
    [attempt] = run.attempts()
    assert end.code == 1 and f"cannot be written: {reason}" in end.output.splitlines()[-1]
    said = end.output + (error_of(attempt) or "")  # on a slow machine the report of progress may be due first
    assert "checkpoint.6.pt cannot be written" in said or "progress.json cannot be written" in said
    assert attempt.checkpoint_steps == [2, 4] and {*attempt.path.glob(".*")} <= {attempt.last_words}
    assert error_of(attempt) is None or error_of(attempt).startswith(INTERRUPTED)
    assert run.tries() == 0 and other.attempts() == []

    end = victims.attempt(store, run.id, other.id, tracking="offline")
    assert (
        end.code == 1 and reason in end.output.splitlines()[-1]
    )  # where exactly it fails depends on the last free block
    assert run.tries() == 0 and attempt.checkpoint_steps == [2, 4] and other.attempts() == []

    end = victims.attempt(store, run.id, other.id, tracking="offline", first=mend)
    assert end.code == 0 and other.result() is not None
    assert (run.result() or {})["resumed_from"] == {"attempt": 1, "step": 4}
    assert_same(run, undisturbed[FROZEN])
