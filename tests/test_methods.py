"""Which tensors each method trains: names, counts of every official size, and that nothing else moves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from groups import some
from mini import official
from safetensors.torch import load_file
from tiny import JOB, frozen_run, job_settings, settings

from mmprompt.execution.execute import execute
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.lora import LowRank
from mmprompt.methods.tuned_model import Tuned, outline
from mmprompt.models.ofa_checkpoint import official_name
from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import run_id
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from mmprompt.training.train import update_ema, with_ema_weights

SIZES = ("tiny", "medium", "base", "large", "huge")
PUBLISHED: dict[tuple[str, str], int] = {  # facts 1.7, and for sizes it does not list the same rules by hand
    ("bitfit", "tiny"): 15_872,
    ("bitfit", "base"): 70_656,
    ("bitfit", "large"): 186_368,
    ("adapter.dim=100", "tiny"): 412_448,
    ("adapter.dim=100", "base"): 1_853_616,
    ("adapter.dim=100", "large"): 4_942_176,
    ("adapter.dim=200", "base"): 3_698_016,
    ("adapter.dim=200", "large"): 9_859_776,
    ("prompt.length=64", "huge"): 5_898_240,
    ("prompt.length=100", "medium"): 819_200,
}


def of_size(size: str, *overrides: str) -> RunConfig:
    config, _ = settings(*overrides)
    return config.model_copy(update={"model": official(size)})


def count(tuned: Tuned) -> int:
    return sum(parameter.numel() for parameter in tuned.trained.values())


@pytest.mark.parametrize(("what", "size"), PUBLISHED)
def test_as_many_numbers_train_as_published(what: str, size: str) -> None:
    method = what.split(".")[0]
    overrides = [what] if "=" in what else []
    assert count(outline(of_size(size, f"method={method}", *overrides))) == PUBLISHED[what, size]


@pytest.mark.parametrize("size", some(SIZES, "tiny", "base"))
def test_counts_follow_from_the_shape_in_every_official_size(size: str) -> None:
    model = official(size)
    d, both, heads = (
        model.dim,
        model.encoder_layers + model.decoder_layers,
        model.encoder_layers + 2 * model.decoder_layers,
    )
    bitfit = d * (7 * model.encoder_layers + 8 * model.decoder_layers + 2)
    assert count(outline(of_size(size, "method=bitfit"))) == bitfit
    assert count(outline(of_size(size, "method=adapter", "adapter.dim=100"))) == both * (2 * 100 * d + 100 + d)
    lora = outline(of_size(size, "method=lora", "lora.rank=8", "lora.targets=[query,value]"))
    assert count(lora) == heads * 2 * 2 * 8 * d
    whole = outline(of_size(size, "method=finetune"))
    assert count(whole) == sum(parameter.numel() for parameter in whole.backbone.parameters())
    frozen = outline(of_size(size, "method=finetune", "finetune.freeze_embedding=true"))
    assert count(frozen) == count(whole) - model.vocab_size * d
    assert all(name.endswith(".bias") for name in outline(of_size(size, "method=bitfit", "bitfit.rule=all")).trained)


def test_bitfit_finds_by_the_published_rule_what_the_facts_list() -> None:
    tuned = outline(of_size("tiny", "method=bitfit"))
    names = {official_name(name.removeprefix("backbone.")) for name in tuned.trained}
    each = ("self_attn_layer_norm", "final_layer_norm", "fc1", "fc2")
    wanted = {f"encoder.layers.{i}.{part}.bias" for i in range(4) for part in each}
    wanted |= {f"decoder.layers.{i}.{part}.bias" for i in range(4) for part in (*each, "encoder_attn_layer_norm")}
    assert names == wanted | {"encoder.layer_norm.bias", "decoder.layer_norm.bias"}


def test_bitfit_by_the_other_rule_trains_every_bias_there_is() -> None:
    tuned = outline(of_size("tiny", "method=bitfit", "bitfit.rule=all"))
    biases = {name for name, _ in tuned.named_parameters() if name.split(".")[-1] == "bias"}
    assert set(tuned.trained) == biases
    assert {"backbone.encoder.resnet.norm.bias", "backbone.decoder.layers.3.cross_attention.key.bias"} <= biases


METHODS = {
    "prompt": (),
    "finetune": (),
    "finetune, embedding frozen": ("finetune.freeze_embedding=true",),
    "bitfit": (),
    "bitfit, all": ("bitfit.rule=all",),
    "adapter": (),
    "lora": ("lora.targets=[query,key,value,out]",),
}


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_what_the_method_trains_and_not_one_bit_of_anything_else(method: str, tmp_path: Path) -> None:
    overrides = (f"method={method.split(',')[0]}", "optim.lr=1e-2", "optim.validate_every=4", *METHODS[method])
    folder = frozen_run(tmp_path, *overrides)
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB) == {folder.id: "done"}
    config, _ = settings(*overrides)
    backbone = backbone_of(config, Path(job_settings().backbone))
    before = Tuned(config, backbone, torch.Generator().manual_seed(config.seed), [])
    start = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    weights = load_file(folder.weights_file)
    assert weights.keys() == before.trained.keys()
    before.load_tuned_state(weights)
    after = before.state_dict()
    assert {name for name in after if not torch.equal(after[name], start[name])} == weights.keys()


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_lora_changes_no_output_at_the_start_and_an_adapter_does(method: str) -> None:
    config, _ = settings(f"method={method}")
    backbone = backbone_of(config, Path(job_settings().backbone))
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(1), [])
    source, images = torch.tensor([[0, 5, 6, 2]]), torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        ours = tuned.backbone.encode(source, tuned.backbone.features(images), None, None).states
        theirs = backbone.encode(source, backbone.features(images), None, None).states
    assert torch.equal(ours, theirs) == (method == "lora")  # an adapter as published is no identity at the start


def test_a_low_rank_update_is_the_product_of_its_definition_scaled_by_alpha_over_rank() -> None:
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(5, 7)
    updated = LowRank(linear, 2, 6.0, 0.02, generator)
    torch.nn.init.normal_(updated.lora_up, generator=generator)
    x = torch.randn(3, 5, generator=generator)
    weight = linear.weight + 6.0 / 2 * updated.lora_up @ updated.lora_down
    torch.testing.assert_close(updated(x), x @ weight.t() + linear.bias)


def test_settings_of_other_methods_are_in_no_id() -> None:
    ids = {
        run_id(settings("method=adapter", *others)[0])
        for others in (
            (),
            ("prompt.length=100",),
            ("lora.rank=2", "bitfit.rule=all"),
            ("finetune.freeze_embedding=true",),
        )
    }
    assert len(ids) == 1
    assert len({run_id(settings("method=adapter", f"adapter.dim={dim}")[0]) for dim in (8, 16)}) == 2


def test_settings_without_an_effect_are_in_no_id() -> None:
    same: list[tuple[Any, ...]] = [
        ("task=micro_grounding", "optim.smoothing_over=allowed"),
        ("task=micro_grounding", "optim.drop_worst_after=100"),
        ("task=micro_grounding",),
    ]
    assert len({run_id(settings(*overrides)[0]) for overrides in same}) == 1


def test_a_key_of_lora_that_names_no_projection_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"lora.targets.0='keys' is not allowed; choose one of 'query', 'key', 'value' or 'out'"
    ):
        settings("method=lora", "lora.targets=[keys]")


def test_the_moving_average_is_the_one_of_its_definition() -> None:
    weights = {"w": torch.nn.Parameter(torch.tensor([1.0]))}
    ema: dict[str, torch.Tensor] = {}
    values = (1.0, 3.0, -2.0)
    expected = values[0]
    for value in values:
        weights["w"].data.fill_(value)
        update_ema(ema, weights, 0.9)
        expected = 0.9 * expected + 0.1 * value
    assert float(ema["w"]) == pytest.approx(expected)


def test_with_a_moving_average_it_is_validated_and_published_and_the_weights_go_on(tmp_path: Path) -> None:
    config, _ = settings("method=adapter", "optim.ema_decay=0.5")
    tuned = Tuned(config, backbone_of(config, Path(job_settings().backbone)), torch.Generator().manual_seed(1), [])
    weights = tuned.tuned_state()
    ema = {name: value + 1 for name, value in weights.items()}
    with with_ema_weights(tuned, ema):
        assert all(torch.equal(value, ema[name]) for name, value in tuned.tuned_state().items())
    assert all(torch.equal(value, weights[name]) for name, value in tuned.tuned_state().items())


def test_params_shows_every_tensor_that_trains_and_needs_no_weights() -> None:
    command = [sys.executable, "-m", "mmprompt.parameters", "method=bitfit", "model=ofa_base"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "backbone.decoder.layers.5.cross_norm.bias" in done.stdout and "3,072" in done.stdout
    assert "trains 70,656 numbers in 56 tensors" in done.stdout.replace("\n", " ")
    assert "0.039% of the 182,238,536" in done.stdout.replace("\n", " ")
    assert done.stdout.count("\n backbone.") == 56
