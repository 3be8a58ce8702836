"""Prompts: what they change, what they do not change, and how many parameters they have."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any, cast

import pytest
import torch
from mini import MINI, PROMPT, mini_ofa, mini_prompts, official
from torch import Tensor

from mmprompt.methods.prompt import Prefix, Prompts
from mmprompt.models.attention import Attention, KeyValue, hiding
from mmprompt.models.ofa import OFA, PAD
from mmprompt.models.shapes import shapes_only

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
SOURCE = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1]])
TARGET = torch.tensor([[0, 20, 21, 1], [0, 22, 23, 24]])

# (P, size): encoder, decoder (facts 1.7)
COUNTS = {
    (10, "base"): (92_160, 92_160),
    (16, "base"): (147_456, 147_456),
    (30, "base"): (276_480, 276_480),
    (64, "base"): (589_824, 589_824),
    (100, "base"): (921_600, 921_600),
    (120, "base"): (1_105_920, 1_105_920),
    (10, "large"): (245_760, 245_760),
    (16, "large"): (393_216, 393_216),
    (30, "large"): (737_280, 737_280),
    (64, "large"): (1_572_864, 1_572_864),
    (100, "large"): (2_457_600, 2_457_600),
    (120, "large"): (2_949_120, 2_949_120),
    (64, "tiny"): (131_072, 131_072),
    (100, "tiny"): (204_800, 204_800),
    (64, "medium"): (262_144, 262_144),
    (100, "medium"): (409_600, 409_600),
    (64, "huge"): (3_932_160, 1_966_080),
    (100, "huge"): (6_144_000, 3_072_000),
}
MLP_COUNTS = {"base": 30_790_656, "large": 105_041_920, "tiny": 2_397_184}  # both stacks, P = 64


@pytest.fixture(scope="module")
def ofa() -> OFA:
    return mini_ofa()


def logits_of(ofa: OFA, prompts: Prompts | None, source: Tensor = SOURCE, target: Tensor = TARGET) -> Tensor:
    encoder, decoder = (None, None) if prompts is None else prompts(len(source))
    return ofa.decode(target, ofa.encode(source, ofa.features(IMAGES), None, encoder), decoder)


def size(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("length", "name"), COUNTS)
def test_trained_numbers_are_as_many_as_published(length: int, name: str) -> None:
    with shapes_only():
        prompts = Prompts(official(name), PROMPT.model_copy(update={"length": length}), torch.Generator())
    assert (size(prompts.encoder), size(prompts.decoder)) == COUNTS[length, name]


@pytest.mark.parametrize("name", MLP_COUNTS)
def test_the_mlp_has_as_many_numbers_as_published(name: str) -> None:
    changes = {"length": 64, "reparameterization": "mlp"}
    with shapes_only():
        prompts = Prompts(official(name), PROMPT.model_copy(update=changes), torch.Generator())
    assert size(prompts) == MLP_COUNTS[name]


@torch.no_grad()
def test_a_prompt_of_length_zero_is_the_backbone_to_the_last_bit(ofa: OFA) -> None:
    prompts = mini_prompts(length=0)
    assert size(prompts) == 0
    assert torch.equal(logits_of(ofa, prompts), logits_of(ofa, None))


@torch.no_grad()
def test_a_prompt_in_no_layer_is_the_backbone_to_the_last_bit(ofa: OFA) -> None:
    assert torch.equal(logits_of(ofa, mini_prompts(layers=[])), logits_of(ofa, None))


@torch.no_grad()
def test_a_prompt_changes_the_answer(ofa: OFA) -> None:
    for depth in ("encoder", "decoder", "both"):
        assert not torch.allclose(logits_of(ofa, mini_prompts(depth=depth)), logits_of(ofa, None), atol=1e-2)


def test_depth_and_lengths_reach_their_own_stack() -> None:
    both = mini_prompts(length=5, decoder_length=3)
    for prefixes, layers, length in zip(both(2), (3, 2), (5, 3), strict=True):
        assert prefixes is not None and len(prefixes) == layers
        for prefix in prefixes:
            assert prefix is not None
            assert prefix[0].shape == prefix[1].shape == (2, 4, length, 16)
    assert mini_prompts(depth="encoder").decoder is None
    assert mini_prompts(depth="decoder").encoder is None
    assert mini_prompts(length=5, decoder_length=0).decoder is None


def test_a_subset_of_layers_prompts_and_stores_only_these() -> None:
    prompts = mini_prompts(layers=[0, 2])
    encoder, decoder = prompts(2)
    assert encoder is not None and decoder is not None
    assert [prefix is not None for prefix in encoder] == [True, False, True]
    assert [prefix is not None for prefix in decoder] == [True, False]
    assert size(prompts) == 5 * (2 + 1) * 2 * 64


def test_a_row_of_the_table_is_key_then_value_per_layer() -> None:
    prompts = mini_prompts()
    assert prompts.encoder is not None
    prefixes = prompts.encoder(2)
    for layer, prefix in enumerate(prefixes):
        assert prefix is not None
        for part in (0, 1):  # key, value
            columns = prompts.encoder.table[:, (2 * layer + part) * 64 : (2 * layer + part + 1) * 64]
            assert torch.equal(prefix[part][1], columns.view(5, 4, 16).transpose(0, 1))


@torch.no_grad()
def test_padding_changes_no_prompted_answer(ofa: OFA) -> None:
    wider = torch.nn.functional.pad(SOURCE, (0, 3), value=PAD)
    longer = torch.nn.functional.pad(TARGET, (0, 2), value=PAD)
    short = logits_of(ofa, mini_prompts())
    long = logits_of(ofa, mini_prompts(), wider, longer)[:, :4]
    torch.testing.assert_close(long[TARGET != PAD], short[TARGET != PAD], rtol=0, atol=2e-5)


@torch.no_grad()
def test_each_example_can_have_a_prompt_of_its_own(ofa: OFA) -> None:
    ours, others = mini_prompts(), mini_prompts()
    for parameter in others.parameters():
        parameter.neg_()
    mixed = []
    for a, b in zip(ours(2), others(2), strict=True):
        assert a is not None and b is not None
        pairs = [(p, q) for p, q in zip(a, b, strict=True) if p is not None and q is not None]
        mixed.append([(torch.stack([p[0][0], q[0][1]]), torch.stack([p[1][0], q[1][1]])) for p, q in pairs])
    logits = ofa.decode(TARGET, ofa.encode(SOURCE, ofa.features(IMAGES), None, mixed[0]), mixed[1])
    torch.testing.assert_close(logits[0], logits_of(ofa, ours)[0], rtol=0, atol=2e-5)
    torch.testing.assert_close(logits[1], logits_of(ofa, others)[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", [{}, {"reparameterization": "mlp"}])
def test_with_a_frozen_backbone_every_prompt_number_and_nothing_else_has_a_gradient(changes: dict[str, Any]) -> None:
    ofa, prompts = mini_ofa().requires_grad_(False), mini_prompts(**changes)
    torch.autograd.backward(logits_of(ofa, prompts).square().sum())
    assert all(parameter.grad is None for parameter in ofa.parameters())
    for name, parameter in prompts.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).float().mean() > 0.9, name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layers": [2], "depth": "encoder"}, "0 0 1 | 1 1"),
        ({"layers": [1]}, "0 1 1 | 1 1"),
        ({"layers": [1], "depth": "decoder"}, "0 0 0 | 0 1"),
        ({"depth": "decoder"}, "0 0 0 | 1 1"),
    ],
)
def test_nothing_is_differentiated_below_the_lowest_prompt(changes: dict[str, Any], expected: str) -> None:
    ofa, prompts, seen = mini_ofa().requires_grad_(False), mini_prompts(**changes), []

    def look(layer: torch.nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(str(int((output if isinstance(output, Tensor) else output[0]).requires_grad)))

    for layer in (*ofa.encoder.layers, *ofa.decoder.layers):
        layer.register_forward_hook(look)
    logits_of(ofa, prompts)
    assert " ".join(seen[:3]) + " | " + " ".join(seen[3:]) == expected


def test_collapsing_the_mlp_changes_no_bit_of_the_answer(ofa: OFA) -> None:
    prompts = mini_prompts(reparameterization="mlp", mlp_dim=32)
    before = logits_of(ofa, prompts)
    plain = prompts.collapsed()
    assert size(plain) == 5 * (3 + 2) * 2 * 64 < size(prompts)
    assert torch.equal(logits_of(ofa, plain), before)


def keys_of_first_layer(prefix: Prefix) -> Tensor:
    first = prefix(64)[0]
    assert first is not None
    return cast(Tensor, first[0])


def test_prompt_dropout_draws_anew_for_each_example_and_only_while_training() -> None:
    prompts = mini_prompts(dropout=0.2)
    assert prompts.encoder is not None
    keys = keys_of_first_layer(prompts.encoder)
    assert torch.equal(keys, keys[:1].expand_as(keys))
    torch.manual_seed(0)
    noisy = keys_of_first_layer(prompts.encoder.train())
    dropped = noisy == 0
    assert not torch.equal(dropped[0], dropped[1])
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.02)
    torch.testing.assert_close(noisy[~dropped], (keys / 0.8)[~dropped])


def test_the_generator_alone_decides_the_initial_prompt() -> None:
    torch.manual_seed(5)
    first = mini_prompts(reparameterization="mlp", init_std=0.5)
    torch.manual_seed(6)
    second = mini_prompts(reparameterization="mlp", init_std=0.5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    start = first.state_dict()
    assert float(start["encoder.table"].std()) == pytest.approx(0.5, rel=0.15)
    assert float(start["encoder.mlp.2.weight"].std()) == pytest.approx(MINI.init_std, rel=0.05)


def attentions(ofa: OFA, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """What each self-attention is given (itself, x, keys and values, mask) in the batch with padding, and what comes out."""
    of = {stack: {id(layer.self_attention) for layer in getattr(ofa, stack).layers} for stack in ("encoder", "decoder")}
    given: dict[str, list[tuple[Any, ...]]] = {"encoder": [], "decoder": []}
    attend = Attention.attend

    def look(self: Attention, x: Tensor, key_value: KeyValue, mask: Tensor, hidden: Tensor | None = None) -> Tensor:
        out = attend(self, x, key_value, mask, hidden)
        mask = mask if hidden is None else hiding(mask, hidden)
        for stack, ids in of.items():
            if id(self) in ids:
                given[stack].append((self, x, key_value, mask, out))
        return out

    with monkeypatch.context() as patch:
        patch.setattr(Attention, "attend", look)
        logits_of(ofa, prompts)
    assert [len(calls) for calls in given.values()] == [3, 2]
    return given


# Where the P vectors of the prompt stand among its T real keys: which of [prompt ; keys] comes first, second, ...
PLACEMENTS: dict[str, Callable[[list[int], list[int]], list[int]]] = {
    "permuted": lambda prompt, keys: [*prompt[::-1], *keys],
    "in the middle": lambda prompt, keys: [*keys[: len(keys) // 2], *prompt, *keys[len(keys) // 2 :]],
    "at the end": lambda prompt, keys: [*keys, *prompt],
    "anywhere": lambda prompt, keys: [
        key for pair in zip_longest(keys[::-1], prompt) for key in pair if key is not None
    ],
}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@torch.no_grad()
def test_a_prompt_is_a_set_so_where_it_stands_changes_nothing(
    ofa: OFA, stack: str, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix, middle and end are one method: a prompt's keys have no position bias, so only what is in the prompt counts."""
    length = PROMPT.length
    for attention, x, (key, value), mask, out in attentions(ofa, mini_prompts(), monkeypatch)[stack]:
        order = PLACEMENTS[placement](list(range(length)), list(range(length, key.shape[2])))
        assert sorted(order) == list(range(key.shape[2])) and order != sorted(order)
        moved = attention.attend(x, (key[:, :, order], value[:, :, order]), mask[..., order])
        torch.testing.assert_close(moved, out, rtol=0, atol=1e-5)
        hidden = torch.isinf(mask)
        assert bool(hidden.any()) and not bool(hidden[..., :length].any())  # padding, or later tokens
        assert float(mask[..., :length].abs().max()) == 0 and float(mask[~hidden].abs().max()) > 0.1
        # What would have shown: another prompt, and keys that leave their bias behind.
        key, value = key.clone(), value.clone()
        other = attention.attend(x, (key.index_fill(2, torch.arange(length), 0.5), value), mask)
        assert float((other - out).abs().max()) > 1e-2
        behind = attention.attend(x, (key[:, :, order], value[:, :, order]), mask)
        assert placement == "permuted" or float((behind - out).abs().max()) > 1e-2


@pytest.mark.parametrize("padded", [True, False])
@torch.no_grad()
def test_the_order_of_the_prompts_vectors_changes_no_answer(ofa: OFA, padded: bool) -> None:
    source, target = (SOURCE, TARGET) if padded else (SOURCE[:, :3], TARGET[:, :3].clamp(min=2))
    ordered, shuffled = mini_prompts(), mini_prompts()
    for parameter in shuffled.parameters():
        parameter.copy_(parameter[torch.tensor([3, 0, 4, 1, 2])])
    before, after = (logits_of(ofa, prompts, source, target) for prompts in (ordered, shuffled))
    torch.testing.assert_close(after, before, rtol=0, atol=2e-4)
