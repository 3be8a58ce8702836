"""`precision=bfloat16`: what is held and computed in bfloat16, what stays float32, and how far gradients and answers are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import JOB, composed, data_of, frozen_run, job_settings, settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmprompt.data.tasks import collate, preprocess
from mmprompt.execution.execute import execute
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import Tuned
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import config_as_written
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError

HALF = "precision=bfloat16"
METHODS = (
    ("prompt.reparameterization=mlp",),
    ("method=bitfit",),
    ("method=adapter",),
    ("method=lora",),
    ("method=finetune",),
)


def tuned_of(*overrides: str) -> Tuned:
    config, deployment = settings(*overrides)
    backbone = backbone_of(config, ROOT / deployment.paths.backbone)
    return Tuned(config, backbone, torch.Generator().manual_seed(1), data_of(config).answer_ids)


def loss_of(tuned: Tuned) -> Tensor:
    """The loss of eight examples, from the pixels on."""
    split = data_of(tuned.config).split("train")
    index = torch.arange(8)
    features = tuned.backbone.features(preprocess(split.images[index], tuned.config.task.image_size))
    return tuned.loss(collate(split.samples[:8]), features, tuned.config.optim, 0.0)


def gradient(tuned: Tuned) -> Tensor:
    loss_of(tuned).backward()
    return torch.cat([parameter.grad.flatten() for parameter in tuned.trained.values() if parameter.grad is not None])


class Casts(TorchDispatchMode):
    """Remembers the memory of each tensor that is cast to another type, and the types that matrix products read."""

    def __init__(self) -> None:
        super().__init__()
        self.cast: list[int] = []
        self.products: list[set[torch.dtype]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.cast.append(args[0].data_ptr())
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.products.append({arg.dtype for arg in args if isinstance(arg, Tensor)})
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[0])
def test_what_trains_is_float32_and_no_frozen_weight_of_a_layer_is_cast_in_a_step(method: tuple[str, ...]) -> None:
    tuned = tuned_of(HALF, *method)
    parts = (tuned.backbone.encoder.layers, tuned.backbone.decoder.layers)
    frozen = [p for part in parts for p in part.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} <= {torch.bfloat16} and (frozen or method == ("method=finetune",))
    assert {p.dtype for p in tuned.trained.values()} == {torch.float32}
    with Casts() as casts:
        loss_of(tuned)
    assert not {p.data_ptr() for p in frozen} & {*casts.cast}


def test_layers_compute_in_bfloat16_and_the_last_product_in_float32() -> None:
    tuned = tuned_of(HALF)
    with Casts() as casts, torch.no_grad():
        assert loss_of(tuned).dtype == torch.float32
    *layers, last = casts.products
    assert last == {torch.float32}
    model = (
        tuned.config.model
    )  # six products in an encoder layer, ten in a decoder layer, and the projection of the patches
    assert layers.count({torch.bfloat16}) == 6 * model.encoder_layers + 10 * model.decoder_layers + 1
    assert all(len(types) == 1 for types in layers)
    assert {module.weight.dtype for module in tuned.backbone.modules() if isinstance(module, nn.BatchNorm2d)} == {
        torch.float32
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[0])
def test_gradients_are_those_of_float32_but_for_rounding(method: tuple[str, ...], mode: str) -> None:
    """In mode=train without dropout, so that both draw the same: nothing."""
    off = ("model.dropout=0", "model.encoder_drop_path=0", "model.decoder_drop_path=0", f"backbone.mode={mode}")
    full, half = (gradient(tuned_of(*method, *off, *more).train()) for more in ((), (HALF,)))
    assert half.dtype == torch.float32 and torch.isfinite(half).all()
    assert (half - full).norm() < 0.06 * full.norm()
    assert not torch.equal(half, full)


def test_running_statistics_of_batchnorm_are_float32_and_move_in_mode_train() -> None:
    tuned = tuned_of(HALF, "backbone.mode=train").train()
    before = {name: value.clone() for name, value in tuned.backbone.named_buffers() if "running" in name}
    loss_of(tuned)
    after = {name: value for name, value in tuned.backbone.named_buffers() if "running" in name}
    assert {value.dtype for value in after.values()} == {torch.float32}
    assert not any(torch.equal(after[name], value) for name, value in before.items())


def test_a_run_publishes_float32_weights_that_differ_from_those_of_float32(tmp_path: Path) -> None:
    published = []
    for more in ((), (HALF,)):
        folder = frozen_run(tmp_path, *more)
        assert execute(Store(tmp_path), [folder.id], job_settings(), JOB) == {folder.id: "done"}
        published.append(load_file(folder.weights_file))
    full, half = published
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not any(torch.equal(full[name], half[name]) for name in full)


def test_runs_in_bfloat16_have_new_ids_and_those_in_float32_their_old_ones() -> None:
    assert settings(HALF)[0].training_version == 3  # 2 were computed under autocast, with logits in bfloat16
    assert settings()[0].training_version == 2


@pytest.mark.parametrize(
    ("overrides", "precision"),
    [
        ((), "float32"),
        (("cluster.gpus=1",), "float32"),
        (("model=ofa_tiny",), "float32"),
        (("model=ofa_tiny", "cluster.gpus=1"), "bfloat16"),
        (("model=ofa_tiny", "cluster.gpus=1", "precision=float32"), "float32"),
    ],
)
def test_ofas_own_models_compute_in_bfloat16_on_a_gpu(overrides: tuple[str, ...], precision: str) -> None:
    assert config_as_written(composed(*overrides), "none").precision == precision


def test_a_wrong_precision_is_refused_with_all_words_that_are_allowed() -> None:
    with pytest.raises(ConfigError, match=r"precision='half' is not allowed; wanted: auto, float32, bfloat16"):
        config_as_written(composed("precision=half"), "none")
