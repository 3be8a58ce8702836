"""The losses equal their definitions, values and gradients."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from attempts import error_of
from tiny import JOB, frozen_run, job_settings
from torch import Tensor

from mmprompt.execution.execute import execute
from mmprompt.models.decoding import Trie
from mmprompt.models.loss import label_smoothed, label_smoothed_over, token_losses
from mmprompt.models.ofa import EOS, PAD
from mmprompt.runs.store import Store

SMOOTHING = 0.1
ANSWERS = [[10, 11], [10, 12], [13], [13, 11, 12]]
CPU = torch.device("cpu")


def made(n: int, d: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    states = torch.randn(n, d, generator=random).requires_grad_()
    embedding = torch.randn(vocabulary, d, generator=random).requires_grad_()
    return states, embedding, torch.randint(vocabulary, (n,), generator=random)


def by_definition(states: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    log_probs = (states @ embedding.t()).log_softmax(1)
    each = SMOOTHING / (len(embedding) - 1)
    right = log_probs[torch.arange(len(targets)), targets]
    return -(1 - SMOOTHING - each) * right - each * log_probs.sum(1)


def test_weighted_tokens_have_the_loss_and_the_gradients_of_the_definition() -> None:
    states, embedding, targets = made(7, 5, 30)
    weights = torch.linspace(0, 1, 7)
    ours = label_smoothed(states, embedding, targets, SMOOTHING, weights)
    theirs = (by_definition(states, embedding, targets) * weights).sum()
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(3 * loss, [states, embedding]) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_losses_of_single_tokens_are_those_that_are_summed() -> None:
    states, embedding, targets = made(7, 5, 30)
    torch.testing.assert_close(
        token_losses(states, embedding, targets, SMOOTHING), by_definition(states, embedding, targets)
    )


def padded(left: int) -> Tensor:
    """Every answer, with </s>, behind so much padding and before what makes them one length."""
    rows = [[PAD] * left + [*answer, EOS] for answer in ANSWERS]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("left", [0, 3])
def test_an_answer_may_go_on_as_the_closed_set_goes_on_and_not_otherwise(left: int) -> None:
    trie, answers = Trie.of(ANSWERS, CPU), padded(left)
    allowed = trie.allowed(answers)
    for row, answer in enumerate(ANSWERS):
        for place in range(len(answer) + 1):
            begun = answer[:place]
            wanted = {[*other, EOS][place] for other in ANSWERS if other[:place] == begun and len(other) >= place}
            found = trie.words[allowed[row, left + place]].tolist()
            assert set(found) == wanted, (answer, place)


def test_after_the_token_with_which_an_answer_leaves_the_closed_set_nothing_is_allowed() -> None:
    strange = torch.tensor([[10, 13, EOS], [99, EOS, PAD], [13, EOS, PAD]])
    allowed = Trie.of(ANSWERS, CPU).allowed(strange).any(2)
    assert allowed[:2].tolist() == [[True, True, False], [True, False, False]]
    assert allowed[2].tolist()[:2] == [True, True]


def test_training_on_an_answer_that_is_not_allowed_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "task=micro_entailment", "task.answers=[yes,no]", "optim.smoothing_over=allowed")
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB) == {folder.id: "failed"}
    assert "has an answer that is not among task.answers; add it there" in (error_of(folder.attempts()[-1]) or "")


def test_smoothing_over_what_is_allowed_is_a_softmax_over_it_and_costs_nothing_where_there_is_no_choice() -> None:
    trie, answers = Trie.of(ANSWERS, CPU), padded(0)
    answering = answers != PAD
    targets = answers[answering]
    states, embedding, _ = made(len(targets), 5, 30)
    allowed = trie.allowed(answers)[answering]
    losses = label_smoothed_over(allowed, trie.words, states, embedding, targets, SMOOTHING)
    for i, target in enumerate(targets.tolist()):
        among = trie.words[allowed[i]].tolist()
        log_probs = (states[i] @ embedding[among].t()).log_softmax(0)
        if len(among) == 1:
            assert losses[i] == 0
            continue
        each = SMOOTHING / (len(among) - 1 + 1e-6)
        loss = -(1 - SMOOTHING - each) * log_probs[among.index(target)] - each * log_probs.sum()
        torch.testing.assert_close(losses[i], loss)
    gradient = torch.autograd.grad(losses.sum(), states)[0]
    assert all(math.isfinite(value) for value in gradient.flatten().tolist())
