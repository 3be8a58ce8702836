"""Composing once per choice of groups gives what Hydra gives for every point alone."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mmprompt.config import ConfigError
from mmprompt.run import ROOT, freeze, run_id
from sweeps.compose import Composer
from sweeps.manifest import expand


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of conf/ with more interpolations, and a learning rate that was chosen for one task."""
    copy = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", copy)
    method = (copy / "method" / "prompt.yaml").read_text()
    (copy / "method" / "prompt.yaml").write_text(method.replace("mlp_dim: null", "mlp_dim: ${model.dim}"))
    shutil.rmtree(copy / "tuned", ignore_errors=True)
    (copy / "tuned").mkdir()
    (copy / "tuned" / "micro_prompt_micro_vqa.yaml").write_text("# @package _global_\noptim: {lr: 0.77}\n")
    return copy


def by_hydra(conf: Path, overrides: list[str]) -> Any:
    with initialize_config_dir(str(conf), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides), resolve=True)


def test_leaves_set_on_a_composed_choice_equal_a_full_compose_at_every_point(conf: Path) -> None:
    axes: dict[str, dict[str, Any]] = {  # as Hydra reads it -> as we hold it
        "task": {"micro_vqa": "micro_vqa", "micro_grounding": "micro_grounding"},
        "prompt.length": {"10": 10, "16": 16},
        "prompt.layers": {"[0,1]": [0, 1], "null": None},
        "model.dim": {"96": 96, "48": 48},
        "prompt.decoder_length": {"${prompt.length}": "${prompt.length}"},
        "tracking.project": {"'${model.name}, ${task.name}'": "${model.name}, ${task.name}", "x": "x"},
        "optim.lr": {"1e-3": 0.001},
    }
    composer = Composer(conf)
    for texts in itertools.product(*axes.values()):
        overrides = {key: axes[key][text] for key, text in zip(axes, texts, strict=True)}
        whole = by_hydra(conf, [f"{key}={text}" for key, text in zip(axes, texts, strict=True)])
        assert composer.compose(overrides) == whole
    assert composer.compose({"prompt": {"length": 3}, "seed": 2}) == by_hydra(conf, ["prompt={length: 3}", "seed=2"])


def test_points_do_not_see_what_points_before_them_set(conf: Path) -> None:
    composer = Composer(conf)
    alone = Composer(conf).compose({"seed": 3})
    composer.compose({"seed": 3, "prompt.length": 99, "optim.lr": 0.5})
    composer.compose({"task": "micro_vqa", "seed": 4})
    assert composer.compose({"seed": 3}) == alone


def test_a_tuned_rate_is_the_default_of_its_task_and_an_override_wins_over_it(conf: Path) -> None:
    composer = Composer(conf)
    assert composer.compose({"task": "micro_vqa"})["optim"]["lr"] == 0.77
    assert composer.compose({"task": "micro_vqa", "optim.lr": 0.5})["optim"]["lr"] == 0.5
    assert composer.compose({"task": "micro_grounding"})["optim"]["lr"] != 0.77


def test_what_cannot_be_composed_gets_one_sentence(conf: Path) -> None:
    wrong: list[dict[str, Any]] = [{"prompt.lenght": 3}, {"prompt": 3}, {"tracking.project": "${no.such.key}"}]
    for overrides in wrong:
        with pytest.raises(ConfigError) as caught:
            Composer(conf).compose(overrides)
        assert "\n" not in str(caught.value)


def test_a_run_by_hand_and_the_same_point_of_a_sweep_are_one_run() -> None:
    expanded = expand("length", ["prompt.length=10,16", "seed=1"], ROOT / "conf")
    for run, point in expanded.points:
        config, _ = freeze(by_hydra(ROOT / "conf", [f"{key}={value}" for key, value in point.values.items()]))
        assert run_id(config) == run


def test_points_that_mean_the_same_are_one_run() -> None:
    expanded = expand(
        "length", ["task=micro_vqa", "seed=1", "prompt.length=8", "prompt.decoder_length=null,8"], ROOT / "conf"
    )
    assert len(expanded.points) == 2 and len(expanded.configs) == 1


def test_blocks_that_make_different_runs_of_one_point_are_refused(conf: Path) -> None:
    text = (conf / "sweep" / "length.yaml").read_text()
    block = (
        "  - product: {task: [micro_grounding], prompt.length: [10], seed: [1]}\n    fixed: {optim.steps: 7}\nbaseline:"
    )
    (conf / "sweep" / "length.yaml").write_text(text.replace("baseline:", block))
    with pytest.raises(ConfigError, match=r"two blocks make different runs of .*make an axis of it"):
        expand("length", [], conf)


def test_a_sweep_runs_in_one_place() -> None:
    with pytest.raises(ConfigError, match=r"cluster.kind is local and slurm; a sweep runs in one place"):
        expand("length", ["cluster=local,slurm"], ROOT / "conf")
