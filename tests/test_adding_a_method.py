"""A method is the modules that have its name: a new method needs no entry in a list, and changes no id of other runs."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import cast

import pytest
from omegaconf import OmegaConf
from tiny import settings

from analysis import names
from mmprompt.methods.install import installer
from mmprompt.runs.config import METHODS, RunConfig, with_methods
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import NEUTRAL, completed, frozen_text, neutral_of, run_id
from mmprompt.settings.parsing import ConfigError, parse

COMMITTED = json.loads((Path(__file__).parent / "data" / "committed_runs.json").read_text())
SETTINGS = """
    from typing import Any, ClassVar
    from pydantic import Field
    from mmprompt.settings.method import MethodSettings

    class Shift(MethodSettings):
        label = "Shift"
        neutral: ClassVar[dict[str, Any]] = {"twice": False}

        size: float = Field(title="Shift size", description="of the vector at the start")
        twice: bool = Field(description="added later than the method")

        def in_words(self) -> str:
            return f"size={self.size:g}"
"""
INSTALL = """
    import torch
    from torch import nn

    def install(settings, backbone, std, generator):
        backbone.decoder.shift = nn.Parameter(torch.full((4,), settings.size))
"""
PROGRAM = """
    import json, sys
    import mmprompt.settings, mmprompt.methods
    folder, committed = sys.argv[1:]
    mmprompt.settings.__path__.append(f"{folder}/settings")
    mmprompt.methods.__path__.append(f"{folder}/methods")
    from mmprompt.runs.config import METHODS, RunConfig
    from mmprompt.settings.parsing import parse
    from mmprompt.runs.identity import completed, frozen_text, run_id
    from mmprompt.runs.overrides import known_keys
    from mmprompt.execution.run_context import describe
    from mmprompt.methods.tuned_model import outline
    from analysis import names

    runs = json.load(open(committed))
    assert "shift" in METHODS and "shift.size" in known_keys()
    assert names.axis("shift.size") == "Shift size" and names.value("method", "shift") == "Shift"
    for run in runs:
        assert run_id(parse(RunConfig, completed(json.loads(json.dumps(run["config"]))))) == run["id"]
    first = completed(runs[0]["config"])
    config = parse(RunConfig, first | {"method": "shift", "shift": {"size": 2, "twice": False}})
    frozen = json.loads(frozen_text(config))
    assert frozen["shift"] == {"size": 2.0} and "prompt" not in frozen
    assert parse(RunConfig, completed(frozen)) == config
    assert describe(config) == "micro_grounding shift size=2 seed=1"
    assert list(outline(config).trained) == ["backbone.decoder.shift"]
"""


def test_a_method_that_is_added_is_found_trains_and_leaves_every_id_as_it_was(tmp_path: Path) -> None:
    for name, text in (("settings/shift.py", SETTINGS), ("methods/shift.py", INSTALL), ("program.py", PROGRAM)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(textwrap.dedent(text))
    committed = Path(__file__).parent / "data" / "committed_runs.json"
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path), str(committed)]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_a_method_the_runs_of_all_others_have_the_ids_that_they_have_with_it() -> None:
    fewer = {name: METHODS[name] for name in METHODS if name != "lora"}
    kept = [run for run in COMMITTED if run["config"]["method"] != "lora"]
    neutral = {key: value for key, value in NEUTRAL.items() if key.split(".")[0] not in METHODS} | neutral_of(fewer)
    for run in kept:
        config = completed(json.loads(json.dumps(run["config"])))
        del config["lora"]
        assert frozen_text(parse(with_methods(fewer), config), neutral) == frozen_text(
            parse(RunConfig, completed(json.loads(json.dumps(run["config"]))))
        )
    assert len(kept) > 5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_what_installs_it_a_label_and_its_defaults_beside_its_learning_rate(method: str) -> None:
    file = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "method" / f"{method}.yaml"))
    assert callable(installer(method)) and names.value("method", method) == METHODS[method].label
    about = cast(dict, file)  # type: ignore[type-arg]
    assert about["method"] == method and about["optim"]["lr"] > 0
    assert about[method].keys() == METHODS[method].model_fields.keys()
    assert all(field.description for field in METHODS[method].model_fields.values())


def test_settings_of_every_method_can_be_given_whichever_is_chosen() -> None:
    assert {file.stem for file in (ROOT / "conf" / "method").glob("*.yaml")} == METHODS.keys()
    others = ("prompt.length=7", "lora.rank=3", "bitfit.rule=all", "adapter.dim=5", "finetune.freeze_embedding=true")
    for method in METHODS:
        config = settings(f"method={method}", *others)[0]
        assert run_id(config) == run_id(settings(f"method={method}", *(o for o in others if o.startswith(method)))[0])
        assert config.method_settings == getattr(config, method) and config.settings_of(METHODS[method]) is not None


def test_a_method_that_does_not_exist_is_answered_with_those_that_do() -> None:
    values = completed(json.loads(json.dumps(COMMITTED[0]["config"]))) | {"method": "prefix"}
    with pytest.raises(ConfigError, match=r"^method='prefix' is not allowed; choose one of 'adapter', 'bitfit',"):
        parse(RunConfig, values)
