"""A step on a GPU: nothing is read back in its middle, and its examples are read ahead, in the same order."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import JOB, data_of, frozen_run, job_settings, settings
from torch import Tensor
from torch.nn import functional as F

from mmprompt.data.splits import Split
from mmprompt.data.tasks import collate
from mmprompt.execution.execute import execute
from mmprompt.methods.tuned_model import TwoSteps, outline
from mmprompt.models.decoding import PATIENCE, score_candidates, search
from mmprompt.runs.config import RunConfig
from mmprompt.runs.store import Store
from mmprompt.training.checkpoints import State
from mmprompt.training.loader import AHEAD, Loader
from mmprompt.training.update import ODD_KERNEL, another_attention

CPU = torch.device("cpu")
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("prompt.reparameterization=mlp", "precision=bfloat16"),
        ("method=finetune", "backbone.mode=train"),
        ("task=micro_caption", "optim.drop_worst=0.2"),
        ("task=micro_entailment", "optim.smoothing_over=allowed"),
        ("task=micro_vqa", "prompt.depth=decoder"),
    ],
    ids=lambda overrides: " ".join(overrides) or "default",
)
def test_a_step_never_looks_at_a_number_on_its_device(overrides: tuple[str, ...]) -> None:
    """On the meta device there are no numbers: to look at one, as `.item()` or a mask as an index do, is an error there."""
    config, _ = settings(*overrides)
    tuned, meta, data = outline(config).train(), torch.device("meta"), data_of(config)
    tuned.closed = data.answer_ids
    text = collate(data.split("train").samples[:8])
    images = torch.empty(8, 3, 96, 96, device=meta)
    loss = tuned.loss(text.to(meta), tuned.backbone.features(images), config.optim, config.optim.drop_worst)
    loss.backward()
    gradients = [parameter.grad for parameter in tuned.trained.values()]
    assert loss.shape == () and any(gradient is not None for gradient in gradients)
    torch.nn.utils.clip_grad_norm_(tuned.trained.values(), config.optim.clip_norm)


@pytest.mark.parametrize("no_repeat_ngram", [None, 3])
def test_a_beam_search_waits_for_its_device_only_now_and_then(no_repeat_ngram: int | None) -> None:
    config, _ = settings("task=micro_caption")
    tuned, meta = outline(config), torch.device("meta")
    text = collate(data_of(config).split("test").samples[:4]).to(meta)
    questions = tuned.encode(text, torch.empty(4, tuned.backbone.encoder.resnet.channels, 6, 6, device=meta))
    asked = tuned.backbone, questions.encoded, questions.prefixes, text.start
    tokens, scores = search(*asked, 5, 1, PATIENCE - 2, no_repeat_ngram, None)
    assert tokens.shape == (4, PATIENCE - 1) and scores.shape == (4,)
    with pytest.raises(RuntimeError, match="meta"):  # then it looks whether all answers are complete
        search(*asked, 5, 1, PATIENCE, no_repeat_ngram, None)


def test_scoring_all_candidates_never_waits_for_its_device() -> None:
    config, _ = settings("task=micro_vqa")
    data, tuned, meta = data_of(config), outline(config), torch.device("meta")
    tuned.closed = data.answer_ids
    text = collate(data.split("test").samples[:4]).to(meta)
    questions = tuned.encode(text, torch.empty(4, tuned.backbone.encoder.resnet.channels, 6, 6, device=meta))
    asked = tuned.backbone, questions.encoded, questions.prefixes, text.start
    assert score_candidates(*asked, tuned.trie, 2).shape == (4, len(tuned.closed))


class Reads:
    """Images as a file has them: reading takes its time, and it is known who reads what."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.threads = images, set[int]()
        self.read = 0

    def __getitem__(self, index: Tensor) -> Tensor:
        self.threads.add(threading.get_ident())
        self.read += len(index)
        return self.images[index]


def made(images: Callable[[Split], object] = lambda split: split.images) -> tuple[RunConfig, Split, Loader]:
    config, _ = settings("optim.steps=20", "optim.micro_batch=4")
    split = data_of(config).split("train")
    split = replace(split, images=images(split))
    view = TwoSteps(lambda index: split.images[torch.from_numpy(index)], lambda images: images.float())
    return config, split, Loader(config, split, view, CPU)


def test_what_is_read_ahead_by_a_thread_is_what_is_read_without_one_also_after_a_resume() -> None:
    _, _, inline = made()
    _, split, loader = made(lambda split: Reads(split.images))
    with inline, loader:
        for step in (0, 1, 2, 7, 8, 3):  # 7: a resume; 3: an evaluation's own loader would begin anywhere
            for ours, theirs in zip(loader(step), inline(step), strict=True):
                assert torch.equal(ours.read, theirs.read)
                assert torch.equal(ours.text.target, theirs.text.target)
    assert threading.get_ident() not in split.images.threads  # type: ignore[attr-defined]


def test_no_more_than_a_few_updates_are_in_memory_and_none_beyond_the_last() -> None:
    config, split, loader = made(lambda split: Reads(split.images))
    with loader:
        loader(0)
    assert split.images.read <= (1 + AHEAD) * config.optim.batch_size  # type: ignore[attr-defined]
    _, split, loader = made(lambda split: Reads(split.images))
    with loader:
        loader(config.optim.steps - 1)
    assert split.images.read == config.optim.batch_size  # type: ignore[attr-defined]


def test_a_fault_while_reading_ahead_is_the_fault_of_the_update_that_needs_it() -> None:
    def broken(split: Split) -> object:
        class Broken(Reads):
            def __getitem__(self, index: Tensor) -> Tensor:
                if self.read >= 2 * 8:
                    raise OSError("line 17 cannot be read")
                return super().__getitem__(index)

        return Broken(split.images)  # type: ignore[arg-type]

    _, _, loader = made(broken)
    with loader:
        loader(0), loader(1)
        with pytest.raises(OSError, match="line 17 cannot be read"):
            loader(2)


class Faulty(torch.autograd.Function):
    """A kernel of attention whose gradient is NaN, like that of Hopper GPUs for some lengths of keys."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor) -> Tensor:
        return heads.view_as(heads)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=NEEDS_GPU)], ids=str)
def test_other_kernels_have_finite_gradients_where_the_usual_one_of_hopper_has_none(device: torch.device) -> None:
    """192 keys, and scores so low that the logarithm of their sum is below -88.7 (PyTorch issue 196678)."""
    torch.manual_seed(0)
    parts = [torch.randn(2, 4, length, 64, device=device, dtype=torch.bfloat16) for length in (64, 192, 192)]
    mask = torch.full((1, 4, 64, 192), -100.0, device=device, dtype=torch.bfloat16)
    query, key, value = (part.requires_grad_() for part in parts)
    with another_attention():
        F.scaled_dot_product_attention(query, key, value, mask).float().sum().backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in (query, key, value))


@pytest.mark.parametrize(
    "overrides",
    [(), ("backbone.mode=train", "model.dropout=0.1", "prompt.dropout=0.2")],
    ids=["frozen", "live"],
)
def test_a_fault_of_an_attention_kernel_is_no_divergence(
    overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(store: Path) -> tuple[list[float], dict[str, Tensor]]:
        folder, states = frozen_run(store, "optim.lr=0.001", *overrides), [State()]
        run = execute(Store(store), [folder.id], job_settings(), JOB, lambda state: states.append(copy.deepcopy(state)))
        assert run == {folder.id: "done"}
        return [values["train/loss"] for _, values in states[-1].history], load_file(folder.weights_file)

    losses, weights = trained(tmp_path / "sound")
    assert capsys.readouterr().out.count(ODD_KERNEL) == 0
    attention = F.scaled_dot_product_attention

    def faulty(*arguments: Any, **more: Any) -> Tensor:
        heads: Tensor = attention(*arguments, **more)
        return Faulty.apply(heads) if torch.backends.cuda.flash_sdp_enabled() else heads

    monkeypatch.setattr(F, "scaled_dot_product_attention", faulty)
    losses_there, weights_there = trained(tmp_path / "faulty")
    assert capsys.readouterr().out.count(ODD_KERNEL) == 4
    assert losses_there == pytest.approx(losses, rel=1e-4)  # the same dropout was drawn again
    for name, value in weights.items():
        torch.testing.assert_close(weights_there[name], value, rtol=1e-2, atol=1e-3)
        assert not name.endswith(("running_mean", "running_var")) or torch.allclose(
            weights_there[name], value, rtol=1e-4
        )
