"""The small backbone in the repository: what it is, where it comes from, how good it is."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors import safe_open

from mmprompt.models.ofa import OFA
from mmprompt.models.ofa_checkpoint import load_backbone, read_state
from mmprompt.runs.deployment import ROOT
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse
from mmprompt.training.pretrain import PatchHead, Pretraining, Recipe, train

FILE = ROOT / "mmprompt" / "backbones" / "micro.safetensors"
EVIDENCE = ROOT / "docs" / "evidence" / "learning_rate.csv"
EVIDENCE_OF_PROMPTS = EVIDENCE.with_name("learning_rate_prompt.csv")
TUNED = sorted((ROOT / "conf" / "tuned").glob("micro_*.yaml"))


def yaml(path: str) -> dict[str, Any]:
    content = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / path))
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def recipe(**changes: Any) -> Recipe:
    return parse(Recipe, yaml("pretrain.yaml")["recipe"] | changes)


MICRO = parse(Model, yaml("model/micro.yaml")["model"])


def test_the_file_says_which_recipe_seed_and_commit_made_it_and_what_it_reached() -> None:
    with safe_open(FILE, "pt") as file:
        said = file.metadata()
        content = hashlib.sha256(b"".join(file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())))
        kinds = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert FILE.stat().st_size < 4e6 and kinds == {torch.float16}
    assert said["sha256"] == content.hexdigest()
    assert Recipe.model_validate_json(said["recipe"]) == recipe() and said["seed"] == str(recipe().seed)
    assert re.fullmatch(r"[0-9a-f]{40}", said["commit"])
    metrics = json.loads(said["metrics"])
    assert all(metrics[task] >= wanted for task, wanted in recipe().gate.items())


@pytest.mark.long
def test_it_passes_the_gate_on_handwriting_it_never_saw() -> None:
    torch.set_num_threads(1)
    model = OFA(MICRO)
    load_backbone(model, read_state(FILE))
    scores = Pretraining(recipe(), MICRO).score(model, "test", 400)
    # n = 400: a standard error of about 1.2 points under the score that the file states.
    assert all(scores[task] >= wanted - 2.5 for task, wanted in recipe().gate.items()), scores


def test_micro_is_ofa_base_with_other_values() -> None:
    assert yaml("model/micro.yaml")["model"].keys() == yaml("model/ofa_base.yaml")["model"].keys()
    count = sum(parameter.numel() for parameter in OFA(MICRO).parameters())
    assert 0.5e6 < count < 1e6


def test_the_official_sizes_are_tuned_as_published_unless_told_otherwise() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        modes = {
            name: compose("config", [f"model={name}"]).backbone.mode for name in ("micro", "ofa_base", "ofa_large")
        }
        told = compose("config", ["model=ofa_base", "backbone.mode=eval"]).backbone.mode
    assert modes == {"micro": "eval", "ofa_base": "train", "ofa_large": "train"} and told == "eval"


def test_no_code_asks_for_a_model_by_name() -> None:
    for file in (ROOT / "mmprompt").glob("*.py"):
        assert not re.search(r"model\.name\s*(==|!=|in\b)", file.read_text()), file


def test_pretraining_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path: Path) -> None:
    def made(folder: Path, *stops: int) -> dict[str, torch.Tensor]:
        for steps in stops:
            short = recipe(checkpoint_every=2, scenes=4, warmup=2, steps=4)
            torch.manual_seed(short.seed)
            model, head = OFA(MICRO), PatchHead(MICRO.dim)

            class Stop(BaseException):
                pass

            def watch(step: int, text: str, steps: int = steps, stop: type[BaseException] = Stop) -> None:
                if step == steps:
                    raise stop

            with pytest.raises(Stop):
                train(short, Pretraining(short, MICRO), model, head, folder, watch)
        return model.state_dict()

    whole, parts = made(tmp_path / "a", 4), made(tmp_path / "b", 3, 4)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def rates() -> Iterator[tuple[str, str, float, pd.DataFrame]]:
    """Of every tuned file of the small world: task, way of tuning, rate, and what was seen of the grid on validation."""
    prompts, others = pd.read_csv(EVIDENCE_OF_PROMPTS), pd.read_csv(EVIDENCE)
    prompts = prompts.assign(way=prompts["prompt.reparameterization"], planned=3, diverged=0)
    evidence = pd.concat([prompts, others.assign(way=others["method"])])
    for file in TUNED:
        method, task = file.stem.removeprefix("micro_").split("_", 1)
        said = yaml(f"tuned/{file.name}")
        tuned = {way: rate for way, rate in said["tuned"].items() if way != "seeds"}
        ways = {f"{method} {way}" if method == "bitfit" else way: rate for way, rate in tuned.items()}
        for way, rate in (ways or {method: said["optim"]["lr"]}).items():
            rows = evidence[(evidence["task"] == task) & (evidence["way"] == way) & (evidence["split"] == "val")]
            yield task, way, rate, rows.sort_values("optim.lr").reset_index(drop=True)


RATES = list(rates())


@pytest.mark.parametrize(
    ("task", "way", "rate", "rows"), RATES, ids=[f"{way} {task}".replace(" ", "-") for task, way, _, _ in RATES]
)
def test_every_tuned_rate_is_the_best_on_validation_and_lies_inside_the_grid(
    task: str, way: str, rate: float, rows: pd.DataFrame
) -> None:
    assert len(rows) >= 9 and (rows["n"] + rows["diverged"] == 3).all(), (task, way)
    best = rows.loc[rows["n"] == 3, "value"].idxmax()  # a rate at which a run diverged cannot be chosen
    assert rows.loc[best, "optim.lr"] == rate, (task, way)
    assert 0 < best < len(rows) - 1, f"{task} {way}: the best rate is at the edge of the grid; extend it"


def test_the_grid_is_the_same_for_every_method() -> None:
    grids = {way: tuple(rows["optim.lr"]) for _, way, _, rows in RATES}
    assert {grid[:9] for grid in grids.values()} == {(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)}
