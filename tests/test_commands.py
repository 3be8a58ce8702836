"""The command `mmprompt`, and what programs read of commands: JSON and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Launcher
from tiny import JOB, frozen_run, job_settings

from mmprompt.execution.execute import execute
from mmprompt.export import export
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.commands import COMMANDS
from sweeps.console import RESULTS, RUNS

MMPROMPT = str(Path(sys.executable).with_name("mmprompt"))


def mmprompt(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sweeps.console", *words], cwd=ROOT, capture_output=True, text=True)


def test_the_front_door_lists_every_command_and_leads_to_each() -> None:
    listed = mmprompt()
    assert listed.returncode == 2
    for name in (*COMMANDS, *RUNS, *RESULTS):
        assert f"  {name:<10} " in listed.stdout
    for name in ("plan", "tables", "export"):
        shown = mmprompt(name, "--help")
        assert shown.returncode == 0 and shown.stdout.startswith("usage: "), shown.stderr
    wrong = mmprompt("lanch")
    assert wrong.returncode == 2 and "there is no command lanch; did you mean launch" in wrong.stderr


def test_every_module_of_a_command_is_one(tmp_path: Path) -> None:
    modules = {file.stem for file in (ROOT / "sweeps/commands").glob("*.py")} - {"__init__", "arguments"}
    assert modules == {*COMMANDS}


@pytest.fixture
def launched(launcher: Launcher) -> tuple[Launcher, dict[str, Any]]:
    code, output = launcher.run("launch", "seed=1,2", "optim.steps=2", "--json")
    assert code == 0, output
    return launcher, json.loads(output[output.index("{\n") :])


def test_launch_plan_and_status_say_the_same_to_programs(launched: tuple[Launcher, dict[str, Any]]) -> None:
    launcher, after = launched
    [sweep] = after["sweeps"]
    assert (sweep["sweep"], sweep["counts"]["done"]) == ("length", 2)
    code, output = launcher.run("plan", "seed=1,2,3", "optim.steps=2", "--json")
    planned = json.loads(output)
    assert code == 0 and len(planned["to_do"]) == 1 and planned["scheduler"] == "local" and planned["at_once"] == 1
    assert planned["sweeps"][0]["counts"] == {"done": 2, "to do": 1} and planned["damaged"] == []
    assert planned["seconds"] > 0 and planned["bytes"] > 0
    done = [run["run"] for run in planned["sweeps"][0]["runs"] if run["state"] == "done"]
    assert sorted(done) == sorted(run["run"] for run in sweep["runs"])


def test_tables_as_json_hold_every_cell(launched: tuple[Launcher, dict[str, Any]], tmp_path: Path) -> None:
    launcher, _ = launched
    words = ["tables", "length", "--json", "--runs", str(launcher.store.root), "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "analysis", *words], cwd=ROOT, capture_output=True, text=True)
    [document] = json.loads(done.stdout)
    assert done.returncode == 0 and document["sweep"] == "length" and document["conflicts"] == []
    assert {cell["n"] for cell in document["cells"]} == {2} and (tmp_path / "tables/length.csv").exists()


def test_a_finished_run_is_exported_under_official_names(tmp_path: Path) -> None:
    run = frozen_run(tmp_path, "prompt.reparameterization=mlp", "optim.steps=1", "optim.validate_every=1")
    assert execute(Store(tmp_path), [run.id], job_settings(), JOB) == {run.id: "done"}
    assert export(Store(tmp_path), run.id[:6], tmp_path / "prompt.pt") == 2
    exported = torch.load(tmp_path / "prompt.pt", weights_only=True)["model"]
    assert {name: tuple(tensor.shape) for name, tensor in exported.items()} == {
        "encoder.encoder_prompt_encoder.embedding.weight": (4, 2 * 3 * 96),
        "decoder.decoder_prompt_encoder.embedding.weight": (4, 2 * 2 * 96),
    }


@pytest.mark.parametrize(
    ("overrides", "why"),
    [(["method=lora"], "its tensors have no official names"), (["prompt.layers=[0]"], "prompts 1 of 3 layers")],
)
def test_what_the_published_code_does_not_know_is_not_exported(overrides: list[str], why: str, tmp_path: Path) -> None:
    run = frozen_run(tmp_path, "optim.steps=1", "optim.validate_every=1", *overrides)
    execute(Store(tmp_path), [run.id], job_settings(), JOB)
    with pytest.raises(ConfigError, match=why):
        export(Store(tmp_path), run.id, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()
