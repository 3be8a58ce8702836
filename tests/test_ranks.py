"""Several processes that train one run together (`cluster.gpus`), on CPUs: the result is that of one process."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from attempts import error_of
from patience import children_that_execute, until
from safetensors.torch import load_file
from tiny import JOB, frozen_run, job_settings, settings

from mmprompt.data.ranks import Ranks
from mmprompt.execution.execute import execute
from mmprompt.execution.run_context import FAKE_GPUS
from mmprompt.runs.identity import check_gpus
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError

SHARED = (
    "optim.batch_size=8",
    "optim.micro_batch=2",
    "optim.lr=0.001",
)  # four micro-batches, of which each process has two
LIVE = ("backbone.mode=train", "model.dropout=0", "model.encoder_drop_path=0", "model.decoder_drop_path=0")


@pytest.fixture(autouse=True)
def fake_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAKE_GPUS, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def trained(store: Path, gpus: int, *overrides: str, **more: Any) -> RunFolder:
    folder = frozen_run(store, *SHARED, *overrides)
    ended = execute(Store(store), [folder.id], job_settings(gpus=gpus), JOB, **more)
    assert ended == {folder.id: "done"}, error_of(folder.attempts()[-1])
    return folder


def assert_same(one: RunFolder, two: RunFolder) -> None:
    """But for the order of sums."""
    ours, theirs = load_file(two.weights_file), load_file(one.weights_file)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=2e-5, msg=name)
    (first, second) = (folder.result() or {} for folder in (one, two))
    assert first["metrics"] == second["metrics"] and first["best_step"] == second["best_step"]
    assert second["device"].startswith("2 x ") and not first["device"].startswith("2 x ")


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("optim.ema_decay=0.5",), marks=pytest.mark.long),
        ("method=finetune", "optim.eps=0.001", *LIVE),  # a smaller one moves gradients of 0 by their last bits
        pytest.param(("task=micro_caption", "optim.drop_worst=0.3", "task.data.val=31"), marks=pytest.mark.long),
    ],
    ids=["prompts with a moving average", "finetuning with live BatchNorm", "captions without the worst tokens"],
)
def test_two_processes_publish_what_one_does(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert_same(trained(tmp_path / "one", 1, *overrides), trained(tmp_path / "two", 2, *overrides))


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def stop(state: Any) -> None:
        if state.step == 3:
            raise Enough

    undisturbed = trained(tmp_path / "one", 1)
    for first, second in ((2, 1), (1, 2)):
        store = tmp_path / f"{first} then {second}"
        folder = frozen_run(store, *SHARED)
        now = job_settings(gpus=first, checkpoint_every=1)
        assert execute(Store(store), [folder.id], now, JOB, watch=stop) == {folder.id: "failed"}
        later = dict(JOB) | {"batch": "2"}
        assert execute(Store(store), [folder.id], job_settings(gpus=second), later) == {folder.id: "done"}
        assert (folder.result() or {})["resumed_from"] == {"attempt": 1, "step": 2}
        ours, theirs = load_file(folder.weights_file), load_file(undisturbed.weights_file)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=2e-5)


def scores_in(evaluation: Path) -> np.ndarray:
    scores: np.ndarray = np.load(evaluation.with_suffix(".npy"))
    return scores


def children() -> list[psutil.Process]:
    return children_that_execute("mmprompt.execution.followers", psutil.Process())


def test_if_a_process_dies_the_run_fails_with_its_last_words_and_no_process_stays(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, *SHARED, "optim.steps=100000")

    def kill() -> None:
        [other] = until(children, "there is another process")
        until(lambda: folder.attempts() and folder.attempts()[0].progress, "they train")
        other.send_signal(signal.SIGTERM)

    thread = threading.Thread(target=kill)
    thread.start()
    ended = execute(Store(tmp_path), [folder.id], job_settings(gpus=2), JOB)
    thread.join()
    assert ended == {folder.id: "failed"} and "process 1 of 0 to 1 ended: " in (error_of(folder.attempts()[0]) or "")
    until(lambda: not children(), "no process stays")


def test_a_run_that_diverges_in_all_processes_is_called_diverged(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, *SHARED, "optim.lr=1e30")
    assert execute(Store(tmp_path), [folder.id], job_settings(gpus=2), JOB) == {folder.id: "failed"}
    reason = folder.attempts()[0].reason
    assert reason is not None and reason.kind == "diverged"


@pytest.mark.long
def test_evaluations_of_a_finished_run_are_shared_as_well(tmp_path: Path) -> None:
    folder = trained(tmp_path, 2)
    more = [{"split": "test", "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.05}}]
    ended = execute(Store(tmp_path), [folder.id], job_settings(gpus=2), dict(JOB) | {"batch": "2"}, evaluations=more)
    assert ended == {folder.id: "done"}
    one = trained(tmp_path / "alone", 1)
    execute(Store(tmp_path / "alone"), [one.id], job_settings(gpus=1), dict(JOB) | {"batch": "2"}, evaluations=more)
    ours, theirs = ({file.stem: scores_in(file) for file in run.evaluation_files(1)} for run in (folder, one))
    assert len(theirs) == 3 and ours.keys() == theirs.keys()
    for name, scores in theirs.items():
        assert len(scores) == 30 and np.mean(ours[name] != scores) < 0.1


def test_more_gpus_than_micro_batches_are_refused_with_the_settings_that_would_do() -> None:
    config, _ = settings("optim.batch_size=8", "optim.micro_batch=4")
    check_gpus(config, 2)
    with pytest.raises(
        ConfigError, match=r"cluster\.gpus=3 .* it has 2 .* wanted: cluster\.gpus=2 or fewer, or a smaller"
    ):
        check_gpus(config, 3)


@pytest.mark.parametrize(("parts", "size"), [(4, 2), (7, 3), (3, 3), (5, 1)])
def test_every_part_is_of_exactly_one_process_and_no_process_idles(parts: int, size: int) -> None:
    shares = [list(Ranks(rank, size).share(range(parts))) for rank in range(size)]
    assert [part for share in shares for part in share] == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and min(map(len, shares)) >= 1
