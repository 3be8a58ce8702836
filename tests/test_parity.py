"""Our model computes what the official one computes, up to its numerical noise.

The fixtures are tensors recorded from the official code (their README). They lie in MMPROMPT_REFERENCE, by default in
../shared/reference beside the repository.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mini import MINI, PROMPT, official
from torch import Tensor

from mmprompt.methods import adapter
from mmprompt.methods.prompt import Prompts
from mmprompt.methods.tuned_model import tokens_in_loss
from mmprompt.models.decoding import search
from mmprompt.models.loss import label_smoothed, token_losses
from mmprompt.models.ofa import BOS, OFA, PAD, Encoded
from mmprompt.models.ofa_checkpoint import load_backbone, official_name, official_prompt_name, official_state
from mmprompt.models.positions import image_bucket_count, image_buckets, token_buckets
from mmprompt.settings.adapter import Adapter
from mmprompt.settings.model import Model
from mmprompt.settings.prompt import Prompt

REFERENCE = Path(os.environ.get("MMPROMPT_REFERENCE", Path(__file__).parents[1] / "../shared/reference"))
pytestmark = pytest.mark.skipif(
    not (REFERENCE / "manifest.json").is_file(), reason=f"no parity fixtures in {REFERENCE} (MMPROMPT_REFERENCE)"
)

ENCODER_ATOL, LOGITS_ATOL, LOSS_RTOL, GRADIENT_TOL = 2e-5, 5e-5, 1e-6, 1e-5
PROMPTED = ["b_prefix", "c_prefix_proj", "d_encoder_only", "e_decoder_only"]
CASES = ["a_noprompt", "a_text_only", "a_square", "a_interpolate", *PROMPTED, "f_adapter"]
GENERATING = ["a_noprompt", *PROMPTED, "f_adapter"]
CPU = torch.device("cpu")


@cache
def weights() -> dict[str, Tensor]:
    state = safetensors.torch.load_file(REFERENCE / "weights_transformer.safetensors")
    resnet = np.load(REFERENCE / "weights_resnet.npz")
    for key in resnet.files:
        if key.endswith("|q"):
            name = key.removesuffix("|q")
            state[name] = torch.from_numpy(resnet[key].astype(np.float32) * resnet[f"{name}|scale"])
        elif "|" not in key:
            state[key] = torch.from_numpy(resnet[key])
    return state


@cache
def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((REFERENCE / "manifest.json").read_text())
    return content


def settings(case: str) -> tuple[Model, Prompt | None]:
    config = manifest()[case]["config"]
    model = MINI.model_copy(update={"interpolate_from": 2 if config.get("interpolate_position") else None})
    encoder, decoder = config.get("encoder_prompt", False), config.get("decoder_prompt", False)
    if not (encoder or decoder):
        return model, None
    depth = "both" if encoder and decoder else "encoder" if encoder else "decoder"
    return model, PROMPT.model_copy(update={"length": 5, "depth": depth})


def load_prompts_of(case: str, model: Model, prompt: Prompt, extra: dict[str, Tensor]) -> Prompts:
    """The projections of the two stacks in case c differ in width, which no configuration of ours asks for."""
    if case != "c_prefix_proj":
        return load_prompts(Prompts(model, prompt, torch.Generator()), extra)
    mlp = prompt.model_copy(update={"reparameterization": "mlp", "mlp_dim": 128})
    prompts = Prompts(model, mlp, torch.Generator())
    prompts.decoder = Prompts(model, mlp.model_copy(update={"mlp_dim": 96}), torch.Generator()).decoder
    return load_prompts(prompts, extra)


def load_prompts(prompts: Prompts, extra: dict[str, Tensor]) -> Prompts:
    names = {name: official_prompt_name(name) for name in prompts.state_dict()}
    assert {*names.values()} == extra.keys()
    prompts.load_state_dict({name: extra[official] for name, official in names.items()})
    return prompts


@dataclass
class Run:
    model: OFA
    prompts: Prompts | None
    encoded: Encoded
    features: Tensor | None
    states: Tensor  # of the decoder, n d, where something is to be answered
    logits: Tensor
    loss: Tensor
    recorded: dict[str, Tensor]

    def gradients(self) -> dict[str, Tensor | None]:
        """Under official names."""
        ours = {official_name(name): p.grad for name, p in self.model.named_parameters()}
        if self.prompts is not None:
            ours |= {official_prompt_name(name): p.grad for name, p in self.prompts.named_parameters()}
        return ours


@cache
def run(case: str) -> Run:
    recorded = safetensors.torch.load_file(REFERENCE / f"case_{case}.safetensors")
    inputs = safetensors.torch.load_file(REFERENCE / "inputs.safetensors")
    config, prompt = settings(case)
    model = OFA(config).eval()
    load_backbone(model, weights())
    extra = {key.removeprefix("extra."): value for key, value in recorded.items() if key.startswith("extra.")}
    if case == "f_adapter":
        dim = manifest()[case]["config"]["adapter_dim"]
        adapter.install(Adapter(dim=dim), model, config.init_std, torch.Generator())
        names = {name: official_name(name) for name in model.state_dict() if ".adapter." in name}
        assert {*names.values()} == extra.keys()
        model.load_state_dict({name: extra[official] for name, official in names.items()}, strict=False)
    prompts = None if prompt is None else load_prompts_of(case, config, prompt, extra).eval()
    encoder, decoder = (None, None) if prompts is None else prompts(3)
    images = inputs["patch_images"][..., :64] if case == "a_square" else inputs["patch_images"]
    features = None if case == "a_text_only" else model.features(images)
    encoded = model.encode(inputs["src_tokens"], features, inputs["patch_masks"], encoder)
    states, answering = model.decode_states(inputs["prev_output_tokens"], encoded, decoder), inputs["target"] != PAD
    loss = label_smoothed(states[answering], model.embed.weight, inputs["target"][answering], 0.1)
    assert answering.sum() == manifest()[case]["losses"]["ntokens"]
    torch.autograd.backward(loss / answering.sum())
    return Run(model, prompts, encoded, features, states[answering], model.logits(states), loss, recorded)


def apart(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours.detach() - theirs).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_the_encoder_agrees_with_the_official_one(case: str) -> None:
    encoded, recorded = run(case).encoded, run(case).recorded
    assert apart(encoded.states, recorded["out.encoder_out"]) <= ENCODER_ATOL
    assert apart(encoded.positions.expand_as(encoded.states), recorded["out.position_embeddings"]) <= ENCODER_ATOL
    assert encoded.padding is not None
    assert torch.equal(encoded.padding, recorded["out.encoder_padding_mask"].bool())


@pytest.mark.parametrize("case", CASES)
def test_the_logits_agree_with_the_official_ones_at_every_token(case: str) -> None:
    real = safetensors.torch.load_file(REFERENCE / "inputs.safetensors")["prev_output_tokens"] != PAD
    assert apart(run(case).logits[real], run(case).recorded["out.logits"][real]) <= LOGITS_ATOL


@pytest.mark.parametrize("case", CASES)
def test_the_losses_agree_with_the_official_ones(case: str) -> None:
    recorded = manifest()[case]["losses"]
    assert float(run(case).loss.detach()) == pytest.approx(recorded["label_smoothed_sum_eps0.1"], rel=LOSS_RTOL)
    target = safetensors.torch.load_file(REFERENCE / "inputs.safetensors")["target"]
    states, embedding, right = run(case).states, run(case).model.embed.weight, target[target != PAD]
    assert float(label_smoothed(states, embedding, right, 0.0).detach()) == pytest.approx(
        recorded["nll_sum"], rel=LOSS_RTOL
    )
    each = token_losses(states, embedding, right, 0.1)
    assert float(each.sum()) == pytest.approx(recorded["label_smoothed_sum_eps0.1"], rel=LOSS_RTOL)
    most = tokens_in_loss(len(right), 0.2)
    least = each.topk(most, largest=False)
    nll = token_losses(states[least.indices], embedding, right[least.indices], 0.0)
    assert [float(least.values.sum()), float(nll.sum()), most] == pytest.approx(
        recorded["drop_worst_0.2"], rel=LOSS_RTOL
    )


@pytest.mark.parametrize("case", CASES)
def test_recorded_gradients_agree_elementwise(case: str) -> None:
    ours = run(case).gradients()
    recorded = {key.removeprefix("grad."): g for key, g in run(case).recorded.items() if key.startswith("grad.")}
    assert recorded or case.startswith("a_")
    for name, theirs in recorded.items():
        gradient = ours[name]
        assert gradient is not None
        assert apart(gradient, theirs) <= GRADIENT_TOL * float(theirs.abs().max()), name


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_norm_of_every_parameter_agrees(case: str) -> None:
    recorded: dict[str, float | None] = manifest()[case]["grad_norms"]
    ours = run(case).gradients()
    assert ours.keys() <= recorded.keys()
    for name, gradient in ours.items():
        theirs = recorded[name]
        norm = 0.0 if gradient is None else float(gradient.norm())
        assert norm == pytest.approx(theirs or 0.0, rel=GRADIENT_TOL, abs=1e-6), name
    assert not any(norm for name, norm in recorded.items() if name not in ours)


def test_the_resnet_agrees_with_the_official_one() -> None:
    features = run("a_noprompt").features
    assert features is not None
    theirs = run("a_noprompt").recorded["out.resnet_out"]
    assert apart(features, theirs) <= 1e-5 * float(theirs.abs().max())


def generated(case: str, beam: int, max_len: int) -> tuple[Tensor, Tensor]:
    model, prompts = run(case).model, run(case).prompts
    decoder = None if prompts is None else prompts(3)[1]
    start = torch.full((3, 1), BOS)
    return search(model, run(case).encoded, decoder, start, beam, 0, max_len, no_repeat_ngram=None, trie=None)


@pytest.mark.parametrize("case", GENERATING)
def test_greedy_decoding_writes_the_official_tokens(case: str) -> None:
    recorded, (tokens, score) = run(case).recorded, generated(case, beam=1, max_len=10)
    assert torch.equal(tokens, recorded["gen.greedy_tokens"][:, 1:])
    assert apart(score * 10, recorded["gen.greedy_sum_logprob"]) <= 10 * LOGITS_ATOL


@pytest.mark.parametrize("case", GENERATING)
def test_beam_search_finds_the_recorded_answer(case: str) -> None:
    recorded, (tokens, score) = run(case).recorded, generated(case, beam=3, max_len=5)  # and </s>
    assert torch.equal(tokens, recorded["gen.beam3_tokens"][:, 1:])
    assert apart(score, recorded["gen.beam3_norm_score"]) <= LOGITS_ATOL


@pytest.mark.parametrize("case", PROMPTED)
def test_prompts_leave_under_their_official_names(case: str) -> None:
    prompts, recorded = run(case).prompts, run(case).recorded
    assert prompts is not None
    exported = official_state({f"prompts.{name}": tensor for name, tensor in prompts.state_dict().items()})
    assert {f"extra.{name}" for name in exported} == {key for key in recorded if key.startswith("extra.")}
    assert all(torch.equal(tensor, recorded[f"extra.{name}"]) for name, tensor in exported.items())


def test_adapters_leave_under_their_official_names() -> None:
    model, recorded = run("f_adapter").model, run("f_adapter").recorded
    adapters = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items() if ".adapter." in name}
    exported = official_state(adapters)
    assert {f"extra.{name}" for name in exported} == {key for key in recorded if key.startswith("extra.")}
    assert all(torch.equal(tensor, recorded[f"extra.{name}"]) for name, tensor in exported.items())


def test_buckets_agree_with_the_official_tables() -> None:
    recorded = np.load(REFERENCE / "buckets.npz")

    def same(ours: Tensor, theirs: np.ndarray) -> bool:
        return torch.equal(ours, torch.from_numpy(theirs.astype(np.int64)))

    assert same(token_buckets(1024, 8, CPU), recorded["mini_token_rp_bucket"])
    assert same(token_buckets(1024, 256, CPU), recorded["official_token_rp_bucket_256"])
    assert same(image_buckets(6, 6, 6, CPU), recorded["mini_image_rp_bucket"][1:, 1:])
    assert same(image_buckets(42, 42, 42, CPU)[:199, :199], recorded["official_image_rp_bucket_42_first200"][1:, 1:])
    assert image_bucket_count(42) == 6892


@pytest.mark.parametrize(("name", "model"), [("mini", MINI), ("ofa_tiny", official("tiny"))])
def test_every_official_tensor_is_ours_or_left_out_for_a_stated_reason(name: str, model: Model) -> None:
    keys = json.loads((REFERENCE / f"{name}_state_dict_keys.json").read_text())
    state = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in keys.items()}
    load_backbone(OFA(model), state)
