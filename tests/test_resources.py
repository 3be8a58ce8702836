"""The recorded costs of a run (epochs, hours, memory) are those that it really had."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import JOB, frozen_run, job_settings

from mmprompt.execution.execute import SUMMARISED, execute
from mmprompt.execution.resources import device_hours, epochs, forget_peak, near_best, peak_memory_mb, seconds_per_100
from mmprompt.runs.attempt import seconds_at_work
from mmprompt.runs.failures import from_text
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import Store

CPU = torch.device("cpu")
ROUNDED = 0.02  # seconds that are lost where hours are rounded to five places


@pytest.mark.parametrize(
    ("scores", "update"),
    [
        ([50.0, 98.9, 99.0, 100.0], 30),  # the first of those that are near enough, not the best
        ([50.0, 100.0, 40.0], 20),  # falling afterwards does not matter
        ([0.0, 0.0], 10),
        ([], 0),
    ],
)
def test_near_the_best_is_the_first_validation_with_99_percent_of_it(scores: list[float], update: int) -> None:
    assert near_best([(10 * (i + 1), score) for i, score in enumerate(scores)]) == update


def test_epochs_and_hours_are_counted_over_examples_and_devices() -> None:
    assert epochs(updates=150, batch_size=32, examples=2400) == 2.0
    assert device_hours(seconds=1800, devices=4) == 2.0


def test_the_time_of_100_answers_does_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def answer(most: int) -> list[int]:
        nonlocal now
        now += 0.02
        return [0] * (most // 4)

    assert seconds_per_100(answer, CPU) == pytest.approx(0.08)


def test_the_peak_of_memory_is_what_was_used_at_once_since_it_was_forgotten() -> None:
    forget_peak(CPU)
    before = peak_memory_mb(CPU)
    block = np.ones(100_000_000, np.uint8)
    del block
    assert 90 < peak_memory_mb(CPU) - before < 200
    forget_peak(CPU)
    assert peak_memory_mb(CPU) < before + 50


def test_an_attempt_was_at_work_from_its_claim_to_its_last_sign_of_life(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    first, second = folder.claim(1, JOB), folder.claim(2, JOB)
    assert first is not None and second is not None
    first.report({"step": 1})
    for file, at in ((first.path / "job.json", 1000), (first.path / "progress.json", 1100)):
        os.utime(file, (at, at))
    first.fail(from_text("somebody else wrote this long after it was gone"))
    os.utime(second.path / "job.json", (5000, 5000))  # it never said anything
    assert seconds_at_work([first, second]) == 100


def hours(number: float) -> float:
    """In seconds."""
    return 3600 * number


def test_a_run_records_all_that_it_took_and_what_attempts_before_it_took(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    dead = folder.claim(1, JOB | {"work": "train", "host": "another", "pid": 1, "started": 0, "scheduler_job": None})
    assert dead is not None
    dead.report({"step": 0})
    os.utime(dead.path / "job.json", (1000, 1000))
    os.utime(dead.path / "progress.json", (4600, 4600))
    dead.fail(from_text("RuntimeError: of a batch before"))
    began = time.monotonic()
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB | {"batch": "another"}) == {folder.id: "done"}
    wall = time.monotonic() - began
    result = json.loads(folder.result_file.read_text())
    assert set(SUMMARISED) <= result.keys()
    assert 0 < result["seconds"] <= hours(result["device_hours"]) <= wall + ROUNDED  # one thread
    # An hour before, and now from the claim to the last sign of life, which comes after the last that counts as work.
    assert (
        hours(result["device_hours"]) <= hours(result["device_hours_spent"]) - 3600 + 2 * ROUNDED <= wall + 3 * ROUNDED
    )
    assert result["epochs"] == 4 * 8 / 40 and 0 < result["epochs_to_99"] <= result["epochs"]
    assert result["peak_memory_mb"] > 100 and "seconds_per_100" not in result  # that is measured apart


def test_the_recorded_costs_of_a_run_do_not_include_its_attacks(tmp_path: Path) -> None:
    """Attacks go back through the model, and take more memory and time than all else here."""
    folder = frozen_run(tmp_path)
    attack = {"attack": {"kind": "pgd", "input": "pixels", "epsilon": 0.1, "steps": 10}}
    evaluations = [{"split": "test"} | attack, {"split": "val"}, {"split": "test"}]
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB, evaluations=evaluations) == {folder.id: "done"}
    result = json.loads(folder.result_file.read_text())
    took = json.loads(folder.evaluation_file(evaluation_id(folder.id, evaluations[0])).read_text())["seconds"]
    assert 0 < hours(result["device_hours"]) <= hours(result["device_hours_spent"]) - took + 3 * ROUNDED
    assert set(result["metrics"]) == {"val/acc@0.5", "test/acc@0.5"}
