"""`mmprompt fit`, and `cluster.recompute`: how much memory training takes, and taking less."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import JOB, SMALL, composed, frozen_run, job_settings

from mmprompt.execution.execute import execute
from mmprompt.fit import fit
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store

# Leaves the process 200 MB more than it has, which some sizes of the micro-batch do not fit into.
LIMITED = """
import re, resource, sys
from pathlib import Path
sys.path.insert(0, "tests")
from tiny import SMALL, composed
import mmprompt.fit
mmprompt.fit.fit(composed(*SMALL, "optim.batch_size=1", "optim.micro_batch=1"))
has = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (has + 200_000_000, resource.RLIM_INFINITY))
mmprompt.fit.fit(composed(*SMALL, "optim.batch_size=4096", "optim.micro_batch=4", "task.data.train=64"))
"""


def test_it_shows_what_each_micro_batch_takes_and_the_time_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(composed(*SMALL, f"paths.runs={tmp_path}/runs", "optim.steps=1000"))
    output = capsys.readouterr().out
    assert [int(line.split()[0]) for line in output.splitlines() if re.match(r" *\d+ +\d", line)] == [1, 2, 4, 8]
    assert re.search(r"fastest: optim\.micro_batch=\d, of optim\.batch_size=8", output)
    assert "1,000 updates" in output and "500 validations of 30 examples" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_sizes_that_do_not_fit_end_the_search_and_not_the_program() -> None:
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 0, limited.stderr[-2000:]
    second = limited.stdout.split("fastest:")[1]
    tried = [int(line.split()[0]) for line in second.splitlines() if re.match(r" *\d+ +\d", line)]
    assert tried and max(tried) < 4096 and "of optim.batch_size=4096" in limited.stdout


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_recomputing_layers_changes_no_bit(mode: str, tmp_path: Path) -> None:
    weights = []
    for recompute in (False, True):
        store = tmp_path / str(recompute)
        folder = frozen_run(store, f"backbone.mode={mode}", "prompt.dropout=0.2", "model.dropout=0.1")
        now = job_settings(recompute=recompute)
        assert execute(Store(store), [folder.id], now, JOB) == {folder.id: "done"}
        weights.append(load_file(folder.weights_file))
    usual, recomputed = weights
    assert all((usual[name] == value).all() for name, value in recomputed.items())
