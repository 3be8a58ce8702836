"""`cluster.deterministic`: the settings of torch while a run is executed, and an operation that has no deterministic kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from attempts import error_of
from safetensors.torch import load_file
from tiny import JOB, composed, frozen_run, job_settings
from torch import Tensor

from mmprompt.execution.determinism import WORKSPACE
from mmprompt.execution.execute import execute, execute_for_search
from mmprompt.models.layers import DropPath
from mmprompt.runs.deployment import deployment_of
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.checkpoints import State


@pytest.fixture(autouse=True)
def workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")  # a value that is not reproducible


def executed(store: Path, wanted: bool, seen: list[tuple[object, ...]]) -> RunFolder:
    def look(state: State) -> None:
        cudnn = torch.backends.cudnn
        algorithms = torch.are_deterministic_algorithms_enabled()
        seen.append((algorithms, cudnn.deterministic, cudnn.benchmark, os.environ[WORKSPACE]))

    folder = frozen_run(store, "backbone.mode=train", "model.dropout=0.1")
    execute(Store(store), [folder.id], job_settings(deterministic=wanted), JOB, look)
    return folder


def test_torch_is_deterministic_while_the_run_is_executed_and_a_cpu_has_the_same_bits(tmp_path: Path) -> None:
    weights = []
    for wanted, during in ((False, (False, False, False, ":0:0")), (True, (True, True, False, ":4096:8"))):
        seen: list[tuple[object, ...]] = []
        folder = executed(tmp_path / str(wanted), wanted, seen)
        assert seen == [during] * 4
        assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic
        assert folder.attempts()[0].job["deterministic"] is wanted
        weights.append(load_file(folder.weights_file))
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("gpus", [0, pytest.param(1, marks=NEEDS_GPU)])
def test_a_deterministic_run_that_was_interrupted_has_the_bits_of_one_that_was_not(gpus: int, tmp_path: Path) -> None:
    def weights(store: Path, *ends: int | None) -> bytes:
        folder = frozen_run(store, "backbone.mode=train", "model.dropout=0.1")
        place = job_settings(deterministic=True, gpus=gpus)
        for until in ends:
            assert execute_for_search(Store(store), folder.id, place, JOB, [{"split": "val"}], until)
        assert folder.result() is not None
        return folder.weights_file.read_bytes()

    assert weights(tmp_path / "whole", None) == weights(tmp_path / "interrupted", 2, None)


def test_an_operation_without_a_deterministic_kernel_is_named_with_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`put_` has none, on a CPU too."""

    def forward(self: DropPath, branch: Tensor) -> Tensor:
        return branch.clone().put_(torch.tensor([0, 0]), torch.tensor([1.0, 1.0]))

    monkeypatch.setattr(DropPath, "forward", forward)
    folder = executed(tmp_path, True, [])
    assert error_of(folder.attempts()[0]).splitlines()[0] == (
        "ConfigError: cluster.deterministic=true: put_ has no deterministic kernel here; with cluster.deterministic=false the run "
        "goes on from its last checkpoint"
    )
    assert not torch.are_deterministic_algorithms_enabled()
    later = dict(JOB) | {"batch": "2"}
    assert execute(Store(tmp_path), [folder.id], job_settings(), later) == {folder.id: "done"}


def test_a_wrong_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.deterministic='often' \(str\) is not allowed; wanted: boolean"):
        deployment_of(composed("cluster.deterministic=often"))
