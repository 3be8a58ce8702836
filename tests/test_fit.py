"""`mmprompt fit`, and `cluster.recompute`: how much memory training takes, and taking less."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import JOB, SMALL, composed, data_of, frozen_run, job_settings, settings
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mmprompt.data.tasks import collate
from mmprompt.execution.execute import execute
from mmprompt.execution.run_context import backbone_of
from mmprompt.fit import fit
from mmprompt.methods.tuned_model import Tuned
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


class Sums(TorchDispatchMode):
    """Knows the memory of each sum that has a row for each of some examples and is as large as a mask of attention."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples, self.made = examples, list[StorageWeakRef]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.add.Tensor and made.dim() == 4 and len(made) == self.examples:
            self.made.append(StorageWeakRef(made.untyped_storage()))
        return made


@pytest.mark.parametrize("recompute", [False, True])
def test_no_mask_of_padded_texts_is_kept_for_the_backward_pass(recompute: bool) -> None:
    config, deployment = settings()
    split = data_of(config).split("train")
    backbone = backbone_of(config, ROOT / deployment.paths.backbone)
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(1), [])
    tuned.backbone.encoder.recompute = recompute
    text = collate(split.samples[:8])
    assert text.padded
    with Sums(8) as sums:
        loss = tuned.loss(text, torch.randn(8, tuned.backbone.encoder.resnet.channels, 6, 6), config.optim, 0.0)
    assert len(sums.made) == config.model.encoder_layers
    assert loss.requires_grad and all(made.expired() for made in sums.made)


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
