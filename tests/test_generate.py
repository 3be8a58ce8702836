"""Greedy decoding and candidate scores: against plain step-by-step and teacher-forced computations."""

from __future__ import annotations

import math

import pytest
import torch
from mini import mini_ofa, mini_prompts
from torch import Tensor

from mmprompt.attention import Prefixes
from mmprompt.generate import Candidates, greedy, score_candidates
from mmprompt.ofa import BOS, EOS, OFA, PAD, Encoded

SOURCE = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1], [0, 9, 9, 2, 1]])
START = torch.tensor([[0, 5, 6, 7], [0, 8, 1, 1], [0, 1, 1, 1]])  # prompts of three lengths
ANSWERS = [[20], [21, 22], [21, 23], [21], [24, 20, 20]]  # one is the beginning of others
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ofa() -> OFA:
    return mini_ofa()


@pytest.fixture(scope="module")
def encoded(ofa: OFA) -> Encoded:
    with torch.no_grad():
        images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
        return ofa.encode(SOURCE, ofa.features(images), None, mini_prompts()(3)[0])


@pytest.fixture(scope="module")
def prefixes() -> Prefixes:
    decoder: Prefixes | None = mini_prompts()(3)[1]
    assert decoder is not None
    return decoder


def row_of(encoded: Encoded, row: int) -> Encoded:
    padding = None if encoded.padding is None else encoded.padding[row : row + 1]
    return Encoded(encoded.states[row : row + 1], padding, encoded.positions)


@torch.no_grad()
def next_log_probs(ofa: OFA, encoded: Encoded, row: int, tokens: list[int], allowed: list[int]) -> dict[int, float]:
    """Of the allowed tokens after `tokens`, for one example, computed plainly."""
    logits = ofa.decode(torch.tensor([tokens]), row_of(encoded, row), mini_prompts()(1)[1])[0, -1]
    return dict(zip(allowed, logits[allowed].log_softmax(0).tolist(), strict=True))


def words(tokens: Tensor) -> list[int]:
    return [token for token in tokens.tolist() if token != PAD]


def test_greedy_continues_each_row_from_its_own_last_token(ofa: OFA, encoded: Encoded, prefixes: Prefixes) -> None:
    tokens, score = greedy(ofa, encoded, prefixes, START, min_len=0, max_len=5, allowed=None)
    for row in range(3):
        written, total = words(START[row]), 0.0
        for token in words(tokens[row]):
            log_probs = next_log_probs(ofa, encoded, row, written, list(range(1100)))
            assert token == max(log_probs.keys() - {PAD}, key=lambda t: log_probs[t])
            total += log_probs[token]
            written.append(token)
        assert float(score[row]) == pytest.approx(total, abs=1e-3)


def test_greedy_writes_only_allowed_tokens_and_pads_after_the_end(
    ofa: OFA, encoded: Encoded, prefixes: Prefixes
) -> None:
    few = [EOS, 30, 31, 32]
    allowed = torch.zeros(1100, dtype=torch.bool)
    allowed[few] = True
    # The probability of </s> is raised step by step until rows end at different times.
    lengths = set()
    for boost in torch.linspace(-3, 3, 13):
        model = mini_ofa()
        with torch.no_grad():
            model.embed.weight[EOS] *= float(boost)
        tokens, score = greedy(model, encoded, prefixes, START, min_len=0, max_len=6, allowed=allowed)
        for row in tokens.tolist():
            end = row.index(EOS) if EOS in row else 5
            assert set(row[: end + 1]) <= set(few) and set(row[end + 1 :]) <= {PAD}
            lengths.add(end)
        assert (score <= 0).all()
    assert len(lengths) > 1


def test_greedy_does_not_end_before_min_len(ofa: OFA, encoded: Encoded, prefixes: Prefixes) -> None:
    only_end = torch.zeros(1100, dtype=torch.bool)
    only_end[[EOS, 40]] = True
    for minimum in (0, 2, 4):
        tokens, _ = greedy(ofa, encoded, prefixes, START, min_len=minimum, max_len=4, allowed=only_end)
        assert not (tokens[:, :minimum] == EOS).any()


def test_candidate_scores_are_teacher_forced_log_probs_within_the_trie(
    ofa: OFA, encoded: Encoded, prefixes: Prefixes
) -> None:
    scores = score_candidates(ofa, encoded, prefixes, START, Candidates.of(ANSWERS, CPU), chunk=5)
    assert scores.shape == (3, 5)
    sequences = [[*answer, EOS] for answer in ANSWERS]
    for row in range(3):
        for column, sequence in enumerate(sequences):
            total = 0.0
            for position, token in enumerate(sequence):
                following = sorted({s[position] for s in sequences if s[:position] == sequence[:position]})
                log_probs = next_log_probs(ofa, encoded, row, words(START[row]) + sequence[:position], following)
                total += log_probs[token]
            assert float(scores[row, column]) == pytest.approx(total, abs=1e-4)


def test_the_candidates_share_all_probability(ofa: OFA, encoded: Encoded, prefixes: Prefixes) -> None:
    scores = score_candidates(ofa, encoded, prefixes, START, Candidates.of(ANSWERS, CPU), chunk=2)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))


def test_chunks_and_order_of_candidates_change_no_score(ofa: OFA, encoded: Encoded, prefixes: Prefixes) -> None:
    whole = score_candidates(ofa, encoded, prefixes, START, Candidates.of(ANSWERS, CPU), chunk=5)
    ones = score_candidates(ofa, encoded, prefixes, START, Candidates.of(ANSWERS, CPU), chunk=1)
    back = score_candidates(ofa, encoded, prefixes, START, Candidates.of(ANSWERS[::-1], CPU), chunk=3)
    torch.testing.assert_close(ones, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.flip(1), whole, rtol=0, atol=1e-4)


def test_one_token_answers_are_ranked_as_by_greedy(ofa: OFA, encoded: Encoded, prefixes: Prefixes) -> None:
    answers = [[token] for token in range(50, 60)]
    allowed = torch.zeros(1100, dtype=torch.bool)
    allowed[50:60] = True
    tokens, score = greedy(ofa, encoded, prefixes, START, min_len=0, max_len=1, allowed=allowed)
    scores = score_candidates(ofa, encoded, prefixes, START, Candidates.of(answers, CPU), chunk=20)
    assert torch.equal(scores.argmax(1) + 50, tokens[:, 0])
    torch.testing.assert_close(scores.amax(1), score, rtol=0, atol=1e-4)
    assert math.isclose(float(scores.exp().sum()), 3, abs_tol=1e-4)


def test_rows_with_and_without_an_instruction_start_from_bos(ofa: OFA, encoded: Encoded) -> None:
    plain = torch.full((3, 1), BOS)
    padded = torch.nn.functional.pad(plain, (0, 3), value=PAD)
    for start in (plain, padded):
        tokens, _ = greedy(ofa, encoded, None, start, min_len=0, max_len=3, allowed=None)
        assert torch.equal(tokens, greedy(ofa, encoded, None, plain, min_len=0, max_len=3, allowed=None)[0])
