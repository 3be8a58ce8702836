"""The training loop: the effect of the settings of training on a run."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import JOB, data_of, frozen_run, job_settings, settings
from torch import Tensor

from mmprompt.data.splits import Split
from mmprompt.data.tasks import collate, preprocess
from mmprompt.execution.execute import execute, execute_for_search
from mmprompt.execution.run_context import backbone_of
from mmprompt.methods.tuned_model import Tuned, tokens_in_loss
from mmprompt.models.ofa import PAD
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.training.checkpoints import HASH, Checkpoints, State, columns, rows
from mmprompt.training.loader import data_order
from mmprompt.training.optimiser import AdamW


def trained(store: Path, *overrides: str) -> tuple[RunFolder, State]:
    """A run, and its state after the last step."""
    folder, states = frozen_run(store, *overrides), [State()]
    assert execute(
        Store(store), [folder.id], job_settings(), JOB, lambda state: states.append(copy.deepcopy(state))
    ) == {folder.id: "done"}
    return folder, states[-1]


def losses(state: State) -> list[float]:
    return [values["train/loss"] for _, values in state.history]


def test_the_optimiser_is_torch_s_to_the_last_bit_and_so_is_the_state_that_it_saves() -> None:
    def fitted(kind: type[torch.optim.AdamW]) -> tuple[list[Tensor], list[dict[str, Any]]]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(size)) for size in (5, 3)]
        optimiser = kind(weights, lr=0.1, weight_decay=0.1)
        for step in range(6):
            if step == 3:
                saved = copy.deepcopy(optimiser.state_dict())
                optimiser = kind(weights, lr=0.5)
                optimiser.load_state_dict(saved)
            optimiser.zero_grad()
            (weights[0].sum() * weights[1].pow(2).sum()).backward()
            optimiser.step()
        state = optimiser.state_dict()
        tensors = [weight.detach() for weight in weights]
        tensors += [state["state"][number][key] for number in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")]
        return tensors, state["param_groups"]

    (ours, our_groups), (theirs, their_groups) = fitted(AdamW), fitted(torch.optim.AdamW)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)) and our_groups == their_groups


HEAVY = ("torch._dynamo", "sklearn", "scipy", "pandas", "matplotlib", "hydra")
ALONE = f"""
import json, sys
from pathlib import Path
from mmprompt.settings.parsing import parse
from mmprompt.execution.execute import execute
from mmprompt.runs.deployment import JobSettings
from mmprompt.runs.store import Store
store, run, settings, job = sys.argv[1:]
print(execute(Store(Path(store)), [run], parse(JobSettings, json.loads(settings)), json.loads(job)))
print([name for name in {HEAVY!r} if name in sys.modules])
"""


def test_a_process_that_trains_imports_no_compiler_and_no_table(tmp_path: Path) -> None:
    """Together they take longer than a small run."""
    folder = frozen_run(tmp_path)
    command = [sys.executable, "-c", ALONE, str(tmp_path), folder.id, job_settings().model_dump_json(), json.dumps(JOB)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    *_, outcome, heavy = done.stdout.splitlines() or [done.stderr]
    assert (outcome, heavy) == (str({folder.id: "done"}), "[]"), done.stderr


def test_of_equal_scores_on_validation_the_earlier_step_is_kept(tmp_path: Path) -> None:
    """The steps are too small to change a weight, so all scores are equal."""
    folder, state = trained(tmp_path, "optim.lr=1e-30", "optim.validate_every=1")
    assert len(state.validation) == 4 and len({score for _, score in state.validation}) == 1
    assert (folder.result() or {})["best_step"] == 1


STILL = ("optim.lr=1e-30", "optim.steps=20")  # no weight changes, so no score rises after the first, at step 2


def test_a_run_ends_once_its_patience_does_and_one_with_more_patience_goes_on(tmp_path: Path) -> None:
    folder, state = trained(tmp_path, *STILL, "optim.patience=4")
    assert (folder.result() or {})["steps"] == state.step == 6 and state.best_step == 2
    progress = folder.attempts()[0].progress or {}
    assert (progress["step"], progress["steps"]) == (6, 6)
    to_the_end, _ = trained(tmp_path, *STILL, "optim.patience=18")
    assert (to_the_end.result() or {})["steps"] == 20


def test_a_run_whose_patience_ends_is_not_paused_at_a_later_update_and_ends_there_after_a_pause(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "whole", *STILL, "optim.patience=4")
    for pauses in ([10], [4, 10]):
        folder = frozen_run(tmp_path / str(len(pauses)), *STILL, "optim.patience=4")
        for until in pauses:
            assert folder.result() is None
            assert execute_for_search(Store(folder.root), folder.id, job_settings(), JOB, [{"split": "val"}], until)
        assert (folder.result() or {})["steps"] == 6
        assert folder.weights_file.read_bytes() == whole.weights_file.read_bytes()


def test_the_moving_average_is_what_is_validated_and_published_and_training_does_not_feel_it(tmp_path: Path) -> None:
    at_the_end = "optim.validate_every=4"
    plain, without = trained(tmp_path, at_the_end)
    average, state = trained(tmp_path, at_the_end, "optim.ema_decay=0.5")
    newest, _ = trained(tmp_path, at_the_end, "optim.ema_decay=0.0")
    assert losses(state) == losses(without)
    weights, averaged = load_file(plain.weights_file), load_file(average.weights_file)
    assert (
        all(torch.equal(averaged[name], state.ema[name]) for name in averaged) and averaged.keys() == state.ema.keys()
    )
    assert not any(torch.equal(averaged[name], weights[name]) for name in weights)
    assert newest.weights_file.read_bytes() == plain.weights_file.read_bytes()


def test_a_run_that_goes_on_from_a_checkpoint_goes_on_with_its_moving_average_and_its_hours(tmp_path: Path) -> None:
    """The dead attempt stopped at step 3, after a checkpoint at step 2 which says that it took an hour to get there."""
    overrides = ("optim.ema_decay=0.5", "optim.validate_every=4")
    whole, _ = trained(tmp_path / "a", *overrides)
    broken = frozen_run(tmp_path / "b", *overrides)

    class Killed(BaseException):
        pass

    def die(state: State) -> None:
        if state.step == 3:
            raise Killed

    with pytest.raises(Killed):
        execute(Store(tmp_path / "b"), [broken.id], job_settings(), JOB, die)
    attempt = broken.attempts()[0]
    (attempt.path / "job.json").write_text(json.dumps(attempt.job | {"pid": 2**22}))  # as if its process were gone
    content = torch.load(io.BytesIO(attempt.checkpoint_file(2).read_bytes()[HASH:]), weights_only=True)
    content["state"]["seconds"] = 3600.0
    torch.save(content, buffer := io.BytesIO())
    attempt.checkpoint_file(2).write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    assert execute(Store(tmp_path / "b"), [broken.id], job_settings(), JOB) == {broken.id: "done"}
    result = broken.result() or {}
    assert result["resumed_from"] == {"attempt": 1, "step": 2}
    assert 1 < result["device_hours"] < 1.1 and result["seconds"] > 3600
    assert broken.weights_file.read_bytes() == whole.weights_file.read_bytes()


def test_checkpoints_that_go_by_the_time_are_rare_where_saving_takes_long(tmp_path: Path) -> None:
    attempt = Attempt(frozen_run(tmp_path), 1)
    every_moment, hourly = Checkpoints(attempt, None, 1e-9), Checkpoints(attempt, None, 3600.0)
    assert every_moment.is_due(1) and not hourly.is_due(50)
    every_moment._took = 3600.0  # a file of many gigabytes
    assert not every_moment.is_due(2)
    by_updates = Checkpoints(attempt, 3, 3600.0)
    assert [step for step in range(1, 8) if by_updates.is_due(step)] == [3, 6]


def test_a_run_saves_checkpoints_as_time_goes_by(tmp_path: Path) -> None:
    folder, seen = frozen_run(tmp_path, "optim.steps=6"), set[int]()

    def watch(state: State) -> None:
        seen.update(folder.attempts()[0].checkpoint_steps)

    place = job_settings(checkpoint_every=None, checkpoint_seconds=1e-9)
    assert execute(Store(tmp_path), [folder.id], place, JOB, watch) == {folder.id: "done"}
    assert 1 in seen and len(seen) >= 2


def test_the_history_of_a_long_run_is_a_small_part_of_a_checkpoint() -> None:
    history = [(step, {"train/lr": 0.1 / step, "train/loss": 1.0 + step}) for step in range(1, 100_001)]
    for step in range(500, 100_001, 500):
        history[step - 1][1]["val/while_training"] = float(step)
    buffer = io.BytesIO()
    torch.save(columns(history), buffer)
    assert len(buffer.getvalue()) < 2.5e6
    assert rows(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)) == history
    assert rows(columns([])) == []


def test_the_worst_tokens_are_left_out_after_so_many_updates_and_not_before(tmp_path: Path) -> None:
    task = "task=micro_caption"
    _, without = trained(tmp_path, task)
    _, later = trained(tmp_path, task, "optim.drop_worst=0.5", "optim.drop_worst_after=2")
    assert losses(later)[:2] == losses(without)[:2]
    assert losses(later)[2] < losses(without)[2]


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
def test_the_loss_is_the_mean_over_the_tokens_that_are_left(over: str, tmp_path: Path) -> None:
    """Of each micro-batch the share with the largest losses is left out; at the first step, by the definition."""
    overrides = ("task=micro_vqa", "optim.micro_batch=4", "optim.drop_worst=0.3", f"optim.smoothing_over={over}")
    _, state = trained(tmp_path, *overrides)
    config, _ = settings(*overrides)
    backbone, data = backbone_of(config, Path(job_settings().backbone)), data_of(config)
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(config.seed), data.answer_ids)
    split = data.split("train")
    picked = data_order(config.seed, len(split), 0, config.optim.batch_size)
    left: list[Tensor] = []
    for part in picked.reshape(-1, 4):
        each = torch.cat([token_losses_of(tuned, split, int(i), over) for i in part])
        left.append(each.sort().values[: int(len(each) * 0.7)])
    assert losses(state)[0] == pytest.approx(float(torch.cat(left).mean()), rel=1e-4)


@pytest.mark.parametrize("over", ["vocabulary", "allowed"])
def test_of_weighted_examples_the_worst_are_those_of_the_largest_weighted_losses(over: str) -> None:
    config, _ = settings("task=micro_vqa", f"optim.smoothing_over={over}")
    backbone, data = backbone_of(config, Path(job_settings().backbone)), data_of(config)
    tuned = Tuned(config, backbone, torch.Generator().manual_seed(config.seed), data.answer_ids)
    split = data.split("train")
    weights = [0.1, 1.0, 0.5, 0.9]
    each = torch.cat([weight * token_losses_of(tuned, split, i, over) for i, weight in enumerate(weights)])
    text = replace(collate([split.samples[i] for i in range(4)]), weight=torch.tensor(weights))
    seen = tuned.backbone.features(preprocess(split.images[torch.arange(4)], config.task.image_size))
    with torch.no_grad():
        ours = tuned.loss(text, seen, config.optim, 0.3)
    assert float(ours) == pytest.approx(float(each.sort().values[: int(len(each) * 0.7)].sum()), rel=1e-4)


def test_of_the_worst_tokens_one_is_left_however_few_there_are() -> None:
    assert [tokens_in_loss(tokens, 0.2) for tokens in (1, 2, 5, 10)] == [1, 1, 4, 8]
    assert tokens_in_loss(7, 0.0) == 7 and tokens_in_loss(3, 1.0) == 1


@torch.no_grad()
def token_losses_of(tuned: Tuned, split: Split, index: int, over: str) -> Tensor:
    """Of one example, alone, by the definition (facts 3.4)."""
    text = collate([split.samples[index]])
    task, smoothing = tuned.config.task, tuned.config.optim.label_smoothing
    images = split.images[torch.tensor([index])]
    asked = tuned.encode(text, tuned.backbone.features(preprocess(images, task.image_size)))
    logits = tuned.backbone.decode(text.decoder, asked.encoded, asked.prefixes)[0]  # T V
    allowed = tuned.trie.allowed(text.target)[0]  # T W
    found = []
    for place, target in enumerate(text.target[0].tolist()):
        among = torch.arange(logits.shape[1]) if over == "vocabulary" else tuned.trie.words[allowed[place]]
        if target == PAD:
            continue
        log_probs = logits[place, among].log_softmax(0)
        each = smoothing / (len(among) - 1 + (1e-6 if over == "allowed" else 0))
        right = log_probs[(among == target).nonzero()[0, 0]]
        found.append(-(1 - smoothing - each) * right - each * log_probs.sum())
    return torch.stack(found)
