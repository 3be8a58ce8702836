"""`python -m mmprompt` as a person types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import SMALL

from mmprompt.runs.deployment import ROOT


def mmprompt(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmprompt", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"MMPROMPT_RUNS": str(store)},
    )


def test_a_run_by_hand_ends_with_its_metrics_and_its_folder_and_is_not_run_twice(tmp_path: Path) -> None:
    first = mmprompt(tmp_path, *SMALL, "tracking=disabled")
    assert first.returncode == 0, first.stderr
    assert "test/acc@0.5" in first.stdout and str(tmp_path / "run") in first.stdout
    again = mmprompt(tmp_path, *SMALL, "tracking=disabled")
    assert again.returncode == 0 and "done already" in again.stdout and "test/acc@0.5" in again.stdout
    assert len(list((tmp_path / "run").iterdir())) == 1


def test_a_failed_run_by_hand_exits_with_its_reason(tmp_path: Path) -> None:
    failed = mmprompt(tmp_path, *SMALL, "tracking=disabled", "prompt.init_std=1e30")
    assert failed.returncode == 1 and "the loss is nan at step 1" in failed.stderr and "error.txt" in failed.stderr


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("prompt.lenght=3", "there is no key prompt.lenght; did you mean prompt.length"),
        ("task=micro_groundin", "task=micro_groundin does not exist; did you mean micro_grounding"),
        ("optim.lr=-1", "optim.lr=-1 (int) is not allowed; wanted: greater than 0"),
        ("prompt.length=[", "prompt.length=["),
    ],
)
def test_a_typo_gets_one_sentence_and_no_stack(tmp_path: Path, word: str, said: str) -> None:
    answer = mmprompt(tmp_path, word)
    assert answer.returncode != 0 and said in answer.stderr
    assert "Traceback" not in answer.stderr and len(answer.stderr.strip().splitlines()) == 1
