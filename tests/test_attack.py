"""Attacks: how far they move what the model reads, that they hurt, and that they touch nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from tiny import data_of, settings
from torch import Tensor, nn

from mmprompt.data.tasks import Batch, collate, preprocess
from mmprompt.evaluation.attack import answer_losses, encode, encode_under_attack
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import EncodedBatch, Tuned
from mmprompt.models.ofa import PAD, Wanted
from mmprompt.runs.config import METHODS
from mmprompt.runs.deployment import backbone_file
from mmprompt.settings.evaluation import Attack

EXAMPLES = 12
SMALLEST = 0.005  # epsilon of conf/sweep/robustness.yaml
INPUTS = ("embeddings", "pixels")
KINDS = ("fgsm", "pgd")


def attack(epsilon: float, kind: str = "fgsm", input: str = "embeddings", steps: int = 4) -> Attack:
    return Attack.model_validate({"kind": kind, "input": input, "epsilon": epsilon, "steps": steps})


@dataclass(frozen=True)
class Asking:
    """The committed backbone at the start of tuning, and questions of its first examples."""

    tuned: Tuned
    text: Batch
    pixels: Tensor
    features: Tensor

    def seen(self, input: str) -> Tensor:
        return self.pixels if input == "pixels" else self.features

    def plainly(self) -> EncodedBatch:
        with torch.no_grad():
            return self.tuned.encode(self.text, self.features)

    def under(self, attack: Attack) -> EncodedBatch:
        return encode_under_attack(self.tuned, self.text, self.seen(attack.input), attack)

    def losses(self, asked: EncodedBatch) -> Tensor:
        with torch.no_grad():
            return answer_losses(self.tuned, self.text, asked)

    def part(self, rows: slice) -> Asking:
        """Some of the questions, without the padding that they then have no need of."""
        source, start, decoder, target = (
            tensor[rows][:, : int((tensor[rows] != PAD).any(0).nonzero().max()) + 1]
            for tensor in (self.text.source, self.text.start, self.text.decoder, self.text.target)
        )
        text = Batch(source, start, decoder, target, None, Wanted.of(target != PAD), bool((source == PAD).any()))
        return Asking(self.tuned, text, self.pixels[rows], self.features[rows])


@cache
def asking(method: str = "prompt", task: str = "micro_vqa", precision: str = "float32") -> Asking:
    examples = EXAMPLES if precision == "float32" else 4  # CPUs are slow in bfloat16
    settings_of_prompts = ("prompt.length=4", "prompt.init_std=0.3") if method == "prompt" else ()
    config, place = settings(f"method={method}", f"task={task}", f"precision={precision}", *settings_of_prompts)
    backbone, data = backbone_of(config, backbone_file(place), False), data_of(config)
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(1), data.answer_ids)
    torch.set_num_threads(config.threads)  # as a job does
    split = data.split("val")
    pixels = preprocess(split.images[:examples], config.task.image_size)
    with torch.no_grad():
        features = tuned.backbone.features(pixels)
    return Asking(tuned, collate([split.samples[i] for i in range(examples)]), pixels, features)


def read_by(module: nn.Module, of: Asking, attack: Attack) -> list[Any]:
    """What the module reads last under the attack: that which the answer is made from."""
    read: list[Any] = []
    handle = module.register_forward_pre_hook(lambda module, inputs: read.append(inputs))
    of.under(attack)
    handle.remove()
    return list(read[-1])


def moved(of: Asking, attack: Attack) -> list[tuple[Tensor, Tensor]]:
    """Each input that is attacked, before and after."""
    if attack.input == "pixels":
        return [(of.pixels, read_by(of.tuned.backbone.encoder.resnet, of, attack)[0])]
    text, _, patches, *_ = read_by(of.tuned.backbone.encoder, of, attack)
    with torch.no_grad():
        clean = of.tuned.backbone.embed(of.text.source), of.tuned.backbone.encoder.patches(of.features)
    return [(clean[0], text), (clean[1], patches)]


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize(("precision", "kind"), [("float32", "fgsm"), ("float32", "pgd"), ("bfloat16", "fgsm")])
def test_epsilon_zero_changes_no_bit(precision: str, kind: str, input: str) -> None:
    of = asking(precision=precision)
    under, plain = of.under(attack(0, kind, input)).encoded, of.plainly().encoded
    assert torch.equal(under.states, plain.states) and torch.equal(under.positions, plain.positions)
    assert under.padding is not None and plain.padding is not None and torch.equal(under.padding, plain.padding)


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_mean_loss_rises_at_the_smallest_epsilon_and_more_at_a_larger_one(method: str, input: str) -> None:
    of = asking(method)
    plain = of.losses(of.plainly()).mean()
    small, large = (of.losses(of.under(attack(epsilon, "fgsm", input))).mean() for epsilon in (SMALLEST, 4 * SMALLEST))
    assert plain + 0.01 < small and small + 0.01 < large


@pytest.mark.parametrize("task", ["micro_grounding", "micro_entailment", "micro_caption"])
def test_answers_of_every_kind_are_attacked(task: str) -> None:
    of = asking(task=task)
    assert of.losses(of.under(attack(4 * SMALLEST))).mean() > 1.02 * of.losses(of.plainly()).mean()


@pytest.mark.parametrize("input", INPUTS)
def test_pgd_is_at_least_fgsm_for_every_example_and_stronger_on_the_whole(input: str) -> None:
    of = asking()
    for epsilon in (SMALLEST, 0.1, 1.0):  # the last so large that a single step overshoots
        fgsm, pgd = (of.losses(of.under(attack(epsilon, kind, input))) for kind in KINDS)
        assert bool((pgd >= fgsm).all()) and bool((pgd >= of.losses(of.plainly())).all())
        assert pgd.mean() > fgsm.mean() + 1e-3


def test_pgd_of_more_steps_is_stronger() -> None:
    few, many = (asking().losses(asking().under(attack(0.05, "pgd", steps=steps))).mean() for steps in (1, 8))
    assert many > 1.02 * few


@pytest.mark.parametrize("epsilon", [SMALLEST, 0.3])
@pytest.mark.parametrize(("precision", "kind"), [("float32", "fgsm"), ("float32", "pgd"), ("bfloat16", "fgsm")])
def test_no_embedding_moves_more_than_epsilon_and_padding_not_at_all(precision: str, kind: str, epsilon: float) -> None:
    of = asking(precision=precision)
    words, no_words = of.text.source != PAD, of.text.source == PAD
    assert bool(no_words.any())
    (text, new_text), (patches, new_patches) = moved(of, attack(epsilon, kind))
    assert new_text.dtype == new_patches.dtype == torch.float32
    for distance in ((new_text - text).abs(), (new_patches - patches).abs()):
        assert float(distance.max()) <= epsilon + 1e-6 * float(patches.abs().max())
    assert torch.equal(new_text[no_words], text[no_words])
    if kind == "fgsm":  # every other number, <s> and </s> included, moves by all of epsilon
        for distance in ((new_text - text)[words].abs(), (new_patches - patches).abs()):
            assert float((distance > 0.99 * epsilon).float().mean()) > 0.99


@pytest.mark.parametrize("epsilon", [SMALLEST, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_move_at_most_by_epsilon_and_none_out_of_range(kind: str, epsilon: float) -> None:
    ((clean, new),) = moved(asking(), attack(epsilon, kind, "pixels"))
    assert float((new - clean).abs().max()) <= epsilon + 1e-6
    outside = clean.abs() > 1  # resizing overshoots
    assert bool(outside.any())
    assert float(new[~outside].abs().max()) <= 1
    assert bool((new[outside] * clean[outside].sign() <= clean[outside].abs()).all())
    at_the_border = ~outside & (clean.abs() > 1 - epsilon)
    assert bool((new[at_the_border].abs() == 1).any())  # where it would have gone further


def test_what_the_decoder_reads_is_not_changed() -> None:
    of = asking()  # its decoder reads the instruction
    assert of.text.start.shape[1] > 1
    embedded = read_by(of.tuned.backbone.decoder, of, attack(0.1))[0]
    assert torch.equal(embedded, of.tuned.backbone.embed(of.text.decoder))


def state_of(tuned: Tuned) -> dict[str, Any]:
    tensors = dict(tuned.named_parameters()) | dict(tuned.named_buffers())
    return {
        "values": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "gradients": {name: None if tensor.grad is None else tensor.grad.clone() for name, tensor in tensors.items()},
        "trained": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "modes": {name: module.training for name, module in tuned.named_modules()},
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("method", ["prompt", "finetune", "adapter"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_attack_leaves_everything_as_it_was(method: str, input: str, precision: str) -> None:
    of = asking(method, precision=precision)
    pixels, features, source = of.pixels.clone(), of.features.clone(), of.text.source.clone()
    for parameter in list(of.tuned.trained.values())[::2]:  # of the others there is none, and stays none
        parameter.grad = torch.full_like(parameter, 3.0)
    before = state_of(of.tuned)
    with torch.no_grad():  # so it is called
        asked = of.under(attack(0.1, "pgd", input))
        assert not torch.is_grad_enabled()
    assert same(state_of(of.tuned), before)
    assert torch.equal(of.pixels, pixels) and torch.equal(of.features, features) and torch.equal(of.text.source, source)
    assert not any(tensor.requires_grad for tensor in (of.pixels, of.features, asked.encoded.states))
    for parameter in of.tuned.parameters():
        parameter.grad = None


@pytest.mark.parametrize("input", INPUTS)
def test_an_example_is_attacked_the_same_in_any_company(input: str) -> None:
    of = asking()
    shortest = int((of.text.source != PAD).sum(1).argmin())
    rows = slice(shortest, shortest + 1)
    alone = of.part(rows)
    assert alone.text.source.shape[1] < of.text.source.shape[1]
    for kind in KINDS:
        together, apart = moved(of, attack(0.1, kind, input)), moved(alone, attack(0.1, kind, input))
        for (_, many), (_, one) in zip(together, apart, strict=True):
            same = (many[rows, : one.shape[1]] - one).abs() < 1e-5  # but for the signs of slopes that are all but 0
            assert float(same.float().mean()) > 0.99
    many, one = (other.losses(other.under(attack(0.1, input=input))) for other in (of, alone))
    torch.testing.assert_close(many[rows], one, rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_a_step_in_a_random_direction_hurts_less() -> None:
    of, epsilon = asking(), 0.05
    generator = torch.Generator().manual_seed(3)
    clean = of.tuned.backbone.embed(of.text.source), of.tuned.backbone.encoder.patches(of.features)
    anywhere = [x + epsilon * torch.randn(x.shape, generator=generator).sign() for x in clean]
    grid = of.features.shape[2], of.features.shape[3]
    plain, random, worst = (
        of.losses(asked).mean()
        for asked in (of.plainly(), encode(of.tuned, of.text, grid, anywhere), of.under(attack(epsilon)))
    )
    assert worst - plain > 5 * (random - plain).abs()


def test_a_model_in_train_mode_is_not_attacked() -> None:
    of = asking()
    of.tuned.train()
    with pytest.raises(ValueError, match="train mode"):
        of.under(attack(0.1))
    of.tuned.eval()
