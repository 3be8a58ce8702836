"""A checkpoint that does not fit its model is refused by `plan`, `launch` and `search`, before a job finds out on its node."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from launcher import Launcher
from searcher import Searcher
from tiny import composed, settings

from mmprompt.checkpoint import show
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.planning import checkpoints

OURS = checkpoints.OURS / "micro.safetensors"
NORM = "encoder.layer_norm.weight"


@pytest.fixture
def lacking(tmp_path: Path) -> Path:
    """The backbone of the repository, without a tensor."""
    state = safetensors.torch.load_file(OURS)
    del state[NORM]
    safetensors.torch.save_file(state, tmp_path / "lacking.safetensors")
    return tmp_path / "lacking.safetensors"


def program(*words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mmprompt.checkpoint", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_one_that_does_not_fit_is_refused_and_nothing_is_begun(launcher: Launcher, lacking: Path) -> None:
    searcher = Searcher(launcher.folder)
    for code, output in (
        launcher.run("launch", "seed=1", "optim.steps=2", f"paths.backbone={lacking}"),
        searcher.run(f"paths.backbone={lacking}"),
    ):
        assert code == 2 and f"paths.backbone={lacking} does not fit model=micro: " in output, output
        assert f"missing: {NORM}" in output and "Traceback" not in output
    assert not launcher.store.root.exists()


@pytest.mark.long
def test_one_that_lacks_what_is_allowed_by_name_is_trained(launcher: Launcher, lacking: Path) -> None:
    words = ("seed=1", "optim.steps=2", f"paths.backbone={lacking}", f"model.allow=[{NORM}]")
    code, output = launcher.run("launch", *words)
    assert code == 0, output
    [run] = launcher.store.runs()
    assert launcher.store.run(run).settings()["model"]["allow"] == [NORM]
    lacking.write_bytes(b"")
    code, output = launcher.run("plan", *words)
    assert code == 2 and "is empty; copy it again" in output, output


def test_a_checkpoint_that_fits_is_looked_at_once_for_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, model, store = tmp_path / "copy.safetensors", settings()[0].model, Store(tmp_path)
    shutil.copyfile(OURS, copy)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")  # a python that cannot import torch
        checkpoints.check_checkpoints([(copy, "0", model)] * 2, store)
        assert capsys.readouterr().err.count("cannot be said here (exit code 1)") == 1
    checkpoints.check_checkpoints([(copy, "0", model)], store)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    checkpoints.check_checkpoints([(copy, "0", model)], store)
    assert not capsys.readouterr().err
    checkpoints.check_checkpoints([(copy, "1", model)], store)  # other content
    assert "cannot be said" in capsys.readouterr().err


def test_plan_makes_no_store_for_it(launcher: Launcher, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    shutil.copyfile(OURS, copy)
    code, output = launcher.run("plan", "seed=1", f"paths.backbone={copy}")
    assert code == 0 and not launcher.store.root.exists(), output


def test_the_command_says_what_is_in_a_file_or_why_it_does_not_fit(
    lacking: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(composed(f"paths.backbone={OURS}"))
    output = capsys.readouterr().out
    assert f"{OURS} fits model=micro: " in output and "tensors (float16), " in output, output
    code, output = program(f"paths.backbone={lacking}")
    assert code == 1 and f"missing: {NORM}" in output and "Traceback" not in output, output
    with pytest.raises(ConfigError, match=r"\(another vocabulary\).* more"):
        show(composed(f"paths.backbone={OURS}", "model=ofa_tiny"))
