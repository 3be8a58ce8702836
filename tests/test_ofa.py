"""The backbone: sizes, masks, positions, noise, official checkpoints."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mini import MINI, mini_ofa, official
from torch import Tensor

from mmprompt.models.attention import Attention
from mmprompt.models.layers import DropPath
from mmprompt.models.loss import label_smoothed
from mmprompt.models.ofa import OFA, PAD, drop_paths
from mmprompt.models.ofa_checkpoint import (
    CheckpointError,
    check_fit,
    left_out,
    load_backbone,
    official_name,
    read_state,
)
from mmprompt.models.positions import token_buckets
from mmprompt.models.shapes import shapes_only

TOTALS = {"tiny": 33_488_336, "medium": 92_892_000, "base": 182_238_536, "large": 472_977_152, "huge": 929_486_848}
IMAGES = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(2))
SOURCE = torch.tensor([[0, 5, 6, 7, 2, 1], [0, 8, 9, 2, 1, 1], [0, 10, 11, 12, 13, 2]])
TARGET = torch.tensor([[0, 20, 21, 1], [0, 22, 23, 24], [0, 25, 1, 1]])
HAS_IMAGE = torch.tensor([True, False, True])


@pytest.fixture(scope="module")
def ofa() -> OFA:
    return mini_ofa()


def logits_of(ofa: OFA, source: Tensor, images: Tensor | None, has_image: Tensor | None, target: Tensor) -> Tensor:
    with torch.no_grad():
        features = None if images is None else ofa.features(images)
        return ofa.decode(target, ofa.encode(source, features, has_image, None), None)


@pytest.mark.parametrize("size", TOTALS)
def test_parameters_and_the_image_generation_tensors_add_up_to_the_official_total(size: str) -> None:
    model = official(size)
    with shapes_only():
        ours = sum(parameter.numel() for parameter in OFA(model).parameters())
    assert ours + left_out(model) == TOTALS[size]


def test_shapes_are_those_of_the_docstring(ofa: OFA) -> None:
    features = ofa.features(IMAGES)
    assert features.shape == (3, 1024, 4, 6)
    encoded = ofa.encode(SOURCE, features, HAS_IMAGE, None)
    assert encoded.states.shape == (3, 24 + 6, 64)
    assert encoded.padding is not None and encoded.padding.shape == (3, 30)
    assert encoded.positions.shape == (30, 64)
    assert ofa.decode(TARGET, encoded, None).shape == (3, 4, 1100)


def test_more_padding_changes_no_answer(ofa: OFA) -> None:
    wider = torch.nn.functional.pad(SOURCE, (0, 3), value=PAD)
    longer = torch.nn.functional.pad(TARGET, (0, 2), value=PAD)
    short = logits_of(ofa, SOURCE, IMAGES, HAS_IMAGE, TARGET)
    long = logits_of(ofa, wider, IMAGES, HAS_IMAGE, longer)[:, :4]
    torch.testing.assert_close(long[TARGET != PAD], short[TARGET != PAD], rtol=0, atol=2e-5)


def test_an_example_alone_is_answered_as_in_a_batch(ofa: OFA) -> None:
    together = logits_of(ofa, SOURCE, IMAGES, HAS_IMAGE, TARGET)
    for row in range(3):
        source, target = (t[row : row + 1, : (t[row] != PAD).sum()] for t in (SOURCE, TARGET))
        alone = logits_of(ofa, source, IMAGES[row : row + 1] if HAS_IMAGE[row] else None, None, target)
        torch.testing.assert_close(alone[0], together[row, : target.shape[1]], rtol=0, atol=2e-5)


def test_an_absent_image_is_not_looked_at(ofa: OFA) -> None:
    other = IMAGES.clone()
    other[1] = 100.0
    assert torch.equal(
        logits_of(ofa, SOURCE, IMAGES, HAS_IMAGE, TARGET), logits_of(ofa, SOURCE, other, HAS_IMAGE, TARGET)
    )


def test_a_position_of_the_decoder_does_not_see_later_tokens(ofa: OFA) -> None:
    changed = TARGET.clone()
    changed[:, 2:] = 99
    before, after = (logits_of(ofa, SOURCE, IMAGES, None, target) for target in (TARGET, changed))
    torch.testing.assert_close(after[:, :2], before[:, :2], rtol=0, atol=2e-5)
    assert not torch.allclose(after[:, 2:], before[:, 2:], atol=1e-2)


def test_attention_is_the_written_out_formula() -> None:
    torch.manual_seed(3)
    attention = Attention(dim=8, heads=2)
    torch.nn.init.normal_(attention.head_scale)
    x, memory, bias = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 3, 5)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    prefix = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    mask = bias[None].masked_fill(padding[:, None, None, :], float("-inf"))
    mask = torch.nn.functional.pad(mask, (4, 0))  # 0 on the prefix

    query = attention.query(x).view(2, 3, 2, 4).transpose(1, 2) / 8**0.5
    key = torch.cat([prefix[0], attention.key(memory).view(2, 5, 2, 4).transpose(1, 2)], dim=2)
    value = torch.cat([prefix[1], attention.value(memory).view(2, 5, 2, 4).transpose(1, 2)], dim=2)
    scores = query @ key.transpose(2, 3)
    scores[..., 4:] += bias
    scores[..., 4:].masked_fill_(padding[:, None, None, :], float("-inf"))
    heads = scores.softmax(-1) @ value * attention.head_scale[:, None, None]
    expected = attention.out(heads.transpose(1, 2).reshape(2, 3, 8))
    torch.testing.assert_close(attention(x, memory, mask, prefix), expected, rtol=0, atol=1e-6)

    whole = torch.nn.functional.pad(bias[:1, None].expand(1, 2, 3, 5), (4, 0))  # the same for both examples
    hidden = torch.zeros(2, 1, 1, 5).masked_fill(padding[:, None, None], float("-inf"))
    both = whole + torch.nn.functional.pad(hidden, (4, 0))
    assert torch.equal(attention(x, memory, whole, prefix, hidden), attention(x, memory, both, prefix))


def test_an_encoding_does_not_depend_on_earlier_calls(ofa: OFA) -> None:
    features = ofa.features(IMAGES)
    fresh, used = (copy.deepcopy(ofa) for _ in range(2))
    for length in (2, 18, 40, 3):
        used.encode(SOURCE[:1, :1].expand(1, length), features[:1], None, None)
    assert torch.equal(*(model.encode(SOURCE, features, None, None).states for model in (fresh, used)))


def written(ofa: OFA) -> None:
    with torch.no_grad():
        ofa.encoder.position_bias.query.weight.mul_(2)


def loaded(ofa: OFA) -> None:
    ofa.load_state_dict({name: 2 * value for name, value in ofa.state_dict().items()})


def replaced(ofa: OFA) -> None:
    ofa.load_state_dict({name: 2 * value for name, value in ofa.state_dict().items()}, assign=True)


def moved(ofa: OFA) -> None:
    ofa.double()


@pytest.mark.parametrize("change", [written, loaded, replaced, moved])
@torch.no_grad()
def test_remembered_biases_follow_their_parameters(change: Callable[[OFA], None]) -> None:
    ofa = mini_ofa().requires_grad_(False)
    features = ofa.features(IMAGES)
    for _ in range(3):  # so that memory that was given back is used again
        before = ofa.encode(SOURCE, features, None, None).states
        change(ofa)
        features = features.to(ofa.embed.weight.dtype)
        now = ofa.encode(SOURCE, features, None, None).states
        assert torch.equal(now, copy.deepcopy(ofa).encode(SOURCE, features, None, None).states)
        assert now.dtype != before.dtype or change is moved or not torch.equal(now, before)


@torch.no_grad()
def test_memory_that_is_used_again_is_not_mistaken_for_what_lay_there() -> None:
    """Every parameter in one block of memory, so that the block after the next lies where this one was."""
    ofa = mini_ofa().requires_grad_(False)
    features = ofa.features(IMAGES)
    for _ in range(6):
        parameters = dict(ofa.named_parameters())
        block = torch.cat([parameter.flatten() for parameter in parameters.values()]) * 1.1
        values = zip(parameters.values(), block.split([p.numel() for p in parameters.values()]), strict=True)
        state = dict(zip(parameters, (value.view_as(parameter) for parameter, value in values), strict=True))
        ofa.load_state_dict(state, strict=False, assign=True)
        del parameters, block, values, state
        now = ofa.encode(SOURCE, features, None, None).states
        assert torch.equal(now, copy.deepcopy(ofa).encode(SOURCE, features, None, None).states)


def test_biases_are_remembered_by_who_made_them_and_while_they_are_frozen() -> None:
    ofa = mini_ofa()
    states = ofa.encode(SOURCE, ofa.features(IMAGES), None, None).states
    assert not ofa.encoder.remembered.results
    states.sum().backward()
    assert ofa.encoder.image_biases[0].table.weight.grad is not None  # type: ignore[union-attr]
    ofa.requires_grad_(False)
    first, second = (ofa.encoder.masks((4, 6), length, [0, 5, 0]) for length in (5, 9))
    assert first[1][0].data_ptr() == second[1][0].data_ptr()  # made once for both
    assert [mask.shape for mask in second[1]] == [(1, 4, 33, 33), (1, 4, 33, 38), (1, 4, 33, 33)]
    assert not copy.deepcopy(ofa).encoder.remembered.results


def test_text_buckets_are_exact_near_and_shared_far_away() -> None:
    buckets = token_buckets(1024, 256, torch.device("cpu"))
    assert buckets[5, 5] == 255 and buckets[9, 5] == 259 and buckets[5, 9] == 251  # query minus key
    assert buckets[129, 0] == buckets[130, 0] != buckets[128, 0]
    assert buckets.min() == 0 and buckets.max() == 510


def test_a_batch_beyond_the_position_tables_is_refused_in_words(ofa: OFA) -> None:
    with pytest.raises(ValueError, match=r"65 tokens do not fit 64 positions \(model.max_positions\)"):
        ofa.encode(torch.zeros(1, 65, dtype=torch.long), None, None, None)
    with pytest.raises(ValueError, match=r"7 x 2 patches does not fit model.image_buckets=6"):
        ofa.encode(SOURCE[:1], torch.zeros(1, 1024, 7, 2), None, None)


def test_only_train_mode_is_noisy() -> None:
    ofa = mini_ofa()
    assert torch.equal(*(logits_of(ofa, SOURCE, IMAGES, None, TARGET) for _ in range(2)))
    ofa.train()
    assert not torch.equal(*(logits_of(ofa, SOURCE, IMAGES, None, TARGET) for _ in range(2)))


def test_drop_path_drops_whole_examples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    kept = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    torch.testing.assert_close(kept.unique(), torch.tensor([0, 4 / 3]))
    assert torch.equal(kept.amin((1, 2)), kept.amax((1, 2)))
    assert float(kept.mean()) == pytest.approx(1, abs=0.05)
    assert drop_paths(0.2, 3) == [0.0, 0.1, 0.2]


def test_a_fresh_model_has_the_published_initialisation() -> None:
    torch.manual_seed(0)
    ofa = OFA(MINI)
    assert (ofa.embed.weight[PAD] == 0).all()
    for name, parameter in ofa.named_parameters():
        if name.endswith(".bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name or "shortcut.1" in name or "head_scale" in name:
            assert (parameter == 1).all(), name
        elif "resnet" not in name and parameter.numel() > 4000:
            assert float(parameter.detach().std()) == pytest.approx(MINI.init_std, rel=0.1), name


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_loss_is_the_published_formula_and_so_are_its_gradients(smoothing: float) -> None:
    torch.manual_seed(0)
    states, embedding = (torch.randn(n, 4, requires_grad=True) for n in (3, 7))
    targets = torch.tensor([4, 6, 4])
    minus_log_p = -(states @ embedding.t()).log_softmax(-1)
    each = smoothing / 6
    expected = (1 - smoothing - each) * minus_log_p[range(3), targets].sum() + each * minus_log_p.sum()
    total = label_smoothed(states, embedding, targets, smoothing)
    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(*(torch.autograd.grad(t * 3, (states, embedding)) for t in (total, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_loss_survives_large_logits() -> None:
    loss = label_smoothed(torch.full((1, 1), 1000.0), torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0]), 0.0)
    assert loss == 2000


def official_state(ofa: OFA) -> dict[str, Tensor]:
    state = {official_name(name): tensor for name, tensor in ofa.state_dict().items()}
    embedding = state["encoder.embed_tokens.weight"]
    aliases = {"decoder.embed_tokens.weight": embedding, "decoder.output_projection.weight": embedding}
    return state | aliases | {"encoder.version": torch.ones(1), "decoder.image_pos_ln.bias": torch.zeros(64)}


def test_an_official_file_with_its_namespace_of_settings_is_read(ofa: OFA, tmp_path: Path) -> None:
    content = {"args": None, "cfg": {"model": argparse.Namespace(arch="ofa_tiny")}, "model": official_state(ofa)}
    torch.save(content, tmp_path / "ofa.pt")
    other = OFA(MINI)
    load_backbone(other, read_state(tmp_path / "ofa.pt"))
    assert all(torch.equal(a, b) for a, b in zip(ofa.parameters(), other.parameters(), strict=True))


def test_a_file_that_could_run_code_is_refused_in_words(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Path("x")}, tmp_path / "ofa.pt")
    with pytest.raises(CheckpointError, match="holds objects besides tensors"):
        read_state(tmp_path / "ofa.pt")


def saved(ofa: OFA, folder: Path, legacy: bool = False) -> Path:
    file = folder / "ofa.pt"
    content = {"args": argparse.Namespace(arch="ofa_tiny"), "model": official_state(ofa)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file


def test_a_file_of_before_pytorch_1_6_is_read(ofa: OFA, tmp_path: Path) -> None:
    other = OFA(MINI)
    load_backbone(other, read_state(saved(ofa, tmp_path, legacy=True)))
    assert all(torch.equal(a, b) for a, b in zip(ofa.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [1, 30, 400, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused_with_what_to_do(ofa: OFA, tmp_path: Path, legacy: bool, kept: float) -> None:
    file = saved(ofa, tmp_path, legacy)
    data = file.read_bytes()
    file.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=rf"^{file} is cut off.*; copy it again$"):
        read_state(file)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; copy it again"),
        (b"\n<!DOCTYPE html><html>", "is a web page and no checkpoint"),
        (b"version https://git-lfs", "is cut off, or no file of PyTorch"),
        (bytes(500), "is cut off"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_with_what_to_do(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("ofa.pt", "ofa.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} ({said}|is cut off or damaged)"):
            read_state(tmp_path / name)


def test_bytes_that_changed_are_found_by_the_archives_checksums(ofa: OFA, tmp_path: Path) -> None:
    file = saved(ofa, tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: the bytes of its part \S+ do not have their checksum"):
        read_state(file)
    check_fit(file, MINI)  # which looks at names and shapes alone


def test_numbers_that_are_not_finite_are_refused_by_the_tensors_name(ofa: OFA, tmp_path: Path) -> None:
    state = official_state(ofa)
    state["encoder.pos_ln.weight"] = torch.full((64,), float("nan"))
    torch.save({"model": state}, tmp_path / "ofa.pt")
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity in encoder.pos_ln.weight"):
        read_state(tmp_path / "ofa.pt")


def test_a_state_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    for content in ({"model": [1]}, {"model": {"a": 1}}, [1]):
        torch.save(content, tmp_path / "ofa.pt")
        with pytest.raises(CheckpointError, match="is no official checkpoint"):
            read_state(tmp_path / "ofa.pt")


def test_only_tensors_allowed_by_name_may_be_missing_or_left_over(ofa: OFA) -> None:
    state = official_state(ofa)
    del state["encoder.pos_ln.weight"]
    state["encoder.layers.0.w_resid"] = torch.zeros(64)
    state["classification_heads.mnli.out.weight"] = torch.zeros(3)  # which the official code deletes
    with pytest.raises(CheckpointError, match=r"missing: encoder.pos_ln.weight. left over: encoder.layers.0.w_resid"):
        load_backbone(OFA(MINI), state)
    with pytest.raises(CheckpointError, match=r"model. missing: encoder.pos_ln.weight$"):
        load_backbone(OFA(MINI), state, ["*.w_resid"])
    other = OFA(MINI)
    before = other.state_dict()["encoder.token_positions.norm.weight"].clone()
    load_backbone(other, state, ["*.w_resid", "encoder.pos_ln.*"])
    assert torch.equal(other.state_dict()["encoder.token_positions.norm.weight"], before)
    assert torch.equal(other.state_dict()["encoder.norm.bias"], ofa.state_dict()["encoder.norm.bias"])


def test_a_long_list_of_tensors_is_cut(ofa: OFA, tmp_path: Path) -> None:
    file = saved(ofa, tmp_path)
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more") as error:
        check_fit(file, MINI.model_copy(update={"encoder_layers": MINI.encoder_layers + 2}))
    assert len(str(error.value)) < 600
    check_fit(file, MINI)


def test_a_misfit_names_every_missing_superfluous_and_misshapen_tensor(ofa: OFA) -> None:
    state = official_state(ofa)
    del state["encoder.pos_ln.weight"]
    state["encoder.layers.0.w_resid"] = torch.zeros(64)
    state["encoder.embed_image_positions.weight"] = torch.zeros(26, 64)
    with pytest.raises(CheckpointError) as error:
        load_backbone(OFA(MINI), state)
    assert "missing: encoder.pos_ln.weight" in str(error.value)
    assert "left over: encoder.layers.0.w_resid" in str(error.value)
    assert "encoder.embed_image_positions.weight is [26, 64], the model wants [37, 64]" in str(error.value)


def test_an_untied_output_projection_is_refused(ofa: OFA) -> None:
    state = official_state(ofa) | {"decoder.output_projection.weight": torch.zeros(1100, 64)}
    with pytest.raises(CheckpointError, match=r"decoder.output_projection.weight differs"):
        load_backbone(OFA(MINI), state)
