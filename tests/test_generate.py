"""Search with a key-value cache and candidate scores: against decoding written out (plain.py) and teacher-forced sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mini import mini_ofa, mini_prompts
from plain import Reforward, beam_search
from torch import Tensor

from mmprompt.models.attention import Past, Prefixes
from mmprompt.models.decoding import Trie, score_candidates, search
from mmprompt.models.ofa import BOS, EOS, OFA, PAD, Encoded, Wanted

SOURCE = torch.tensor([[0, 5, 6, 7, 2], [0, 8, 2, 1, 1], [0, 9, 9, 2, 1]])
START = torch.tensor([[0, 5, 6, 7], [0, 8, 1, 1], [0, 1, 1, 1]])  # prompts of three lengths
ANSWERS = [[20], [21, 22], [21, 23], [21], [24, 20, 20], [21, 22, 20, 23, 25]]  # some begin alike, some are beginnings
CPU = torch.device("cpu")
NOISE = 2e-5
Question = tuple[Encoded, Prefixes | None]


@cache
def ofa() -> OFA:
    return mini_ofa()


@cache
def ending_ofa() -> OFA:
    """Whose answers end by themselves, at different lengths."""
    model = mini_ofa()
    with torch.no_grad():
        model.embed.weight[EOS] *= 1.6
    return model


@torch.no_grad()
def question(source: Tensor = SOURCE, images: bool = True, **prompt: Any) -> Question:
    """Encoded, and the decoder's prefixes, with a prompt of these settings."""
    encoder, decoder = mini_prompts(**prompt)(len(source))
    pixels = torch.randn(len(source), 3, 64, 64, generator=torch.Generator().manual_seed(3))
    return ofa().encode(source, ofa().features(pixels) if images else None, None, encoder), decoder


def row_of(asked: Question, row: int) -> Question:
    """One example, without the padding of the others."""
    encoded, prefixes = asked
    real = slice(None) if encoded.padding is None else ~encoded.padding[row]
    alone = Encoded(encoded.states[row : row + 1, real], None, encoded.positions[real])
    return alone, prefixes and [p and (p[0][row : row + 1], p[1][row : row + 1]) for p in prefixes]


@torch.no_grad()
def next_log_probs(model: OFA, asked: Question, row: int, tokens: Sequence[int]) -> Tensor:
    """After `tokens`, for one example alone, computed plainly."""
    return model.decode(torch.tensor([tokens]), *row_of(asked, row))[0, -1].log_softmax(0)  # V


def words(tokens: Tensor) -> list[int]:
    return [token for token in tokens.tolist() if token != PAD]


def following(written: list[int], answers: list[list[int]] = ANSWERS) -> list[int]:
    sequences = [[*answer, EOS] for answer in answers]
    return sorted({s[len(written)] for s in sequences if s[: len(written)] == written})


QUESTIONS: dict[str, dict[str, Any]] = {
    "encoder padding": {},
    "no encoder padding": {"source": SOURCE[:, :3].where(SOURCE[:, :3] != PAD, 9)},
    "text only": {"images": False},
    "no prompt": {"length": 0},
    "prompt in the encoder": {"depth": "encoder"},
    "prompt in the decoder": {"depth": "decoder"},
    "prompts of unequal length": {"length": 3, "decoder_length": 7},
    "prompts in one layer": {"layers": [1]},
}


@cache
def asked_in(name: str) -> Question:
    return question(**QUESTIONS[name])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small tensors are not worth the waiting of one thread for another, least of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize(("beam", "min_len", "ngram"), [(1, 0, None), (1, 2, 2), (3, 0, None), (4, 2, 2)])
def test_search_finds_what_lists_and_whole_sequences_find(
    name: str, beam: int, min_len: int, ngram: int | None
) -> None:
    tokens, score = search(ending_ofa(), *asked_in(name), START, beam, min_len, 6, ngram, None)
    for row in range(3):
        start = words(START[row])
        found, mean = beam_search(
            lambda written, row=row, start=start: next_log_probs(ending_ofa(), asked_in(name), row, [*start, *written]),  # type: ignore[misc]
            beam,
            min_len,
            6,
            ngram,
        )
        assert words(tokens[row]) == found
        assert float(score[row]) == pytest.approx(mean, abs=NOISE)


@pytest.mark.parametrize("beam", [1, 2, 3, 8])
@pytest.mark.parametrize("answers", [ANSWERS, [[20], [20, 20]], [[20]], [[20], [20, 20], [20, 21, 20, 20]]])
def test_search_in_a_trie_finds_what_lists_find(answers: list[list[int]], beam: int) -> None:
    """Also with more hypotheses than there are answers."""
    asked, trie = asked_in("encoder padding"), Trie.of(answers, CPU)
    tokens, score = search(ofa(), *asked, START, beam, 0, trie.longest, None, trie)
    for row in range(3):
        start = words(START[row])
        found, mean = beam_search(
            lambda written, row=row, start=start: next_log_probs(ofa(), asked, row, [*start, *written]),  # type: ignore[misc]
            beam,
            0,
            trie.longest,
            allowed=lambda written: following(written, answers),
        )
        assert words(tokens[row]) == found
        assert float(score[row]) == pytest.approx(mean, abs=NOISE)
        assert found[:-1] in answers


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_the_cache_changes_nothing(data: st.DataObject) -> None:
    """Random lengths, prompts and rules: with the cache, and with the decoder run over each whole sequence at every step."""

    def rows(longest: int) -> Tensor:
        lengths = data.draw(st.lists(st.integers(1, longest), min_size=4, max_size=4))
        tokens = torch.randint(4, 1000, (4, max(lengths)), generator=torch.Generator().manual_seed(sum(lengths)))
        tokens[:, 0] = BOS
        return tokens.where(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None], PAD)

    source, start = rows(9), rows(7)
    asked = question(
        source,
        images=data.draw(st.booleans()),
        length=data.draw(st.integers(0, 6)),
        decoder_length=data.draw(st.none() | st.integers(0, 6)),
        layers=data.draw(st.sampled_from([None, [0], [1]])),
    )
    trie = data.draw(st.sampled_from([None, Trie.of(ANSWERS, CPU)]))
    rules = (data.draw(st.integers(1, 6)), data.draw(st.integers(0, 2)), 6, data.draw(st.sampled_from([None, 1, 3])))
    tokens, score = search(ending_ofa(), *asked, start, *rules, trie)
    expected, expected_score = search(Reforward(ending_ofa()), *asked, start, *rules, trie)  # type: ignore[arg-type]
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(score, expected_score, rtol=0, atol=NOISE)
    if trie is not None:
        scores = score_candidates(ofa(), *asked, start, trie, chunk=3)
        again = score_candidates(Reforward(ofa()), *asked, start, trie, chunk=3)  # type: ignore[arg-type]
        torch.testing.assert_close(scores, again, rtol=0, atol=10 * NOISE)


def test_rows_end_at_different_times_and_nothing_follows_the_end() -> None:
    for beam in (1, 4):
        tokens, _ = search(ending_ofa(), *asked_in("encoder padding"), START, beam, 0, 8, None, None)
        ends = [row.index(EOS) if EOS in row else 8 for row in tokens.tolist()]
        assert len(set(ends)) > 1
        assert all(set(row[end + 1 :]) <= {PAD} for row, end in zip(tokens.tolist(), ends, strict=True))
        assert not any(PAD in row[:end] for row, end in zip(tokens.tolist(), ends, strict=True))


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_an_answer_has_exactly_so_many_tokens_if_told_to(beam: int, length: int) -> None:
    tokens, _ = search(ending_ofa(), *asked_in("encoder padding"), START, beam, length, length, None, None)
    assert not (tokens[:, :length] == EOS).any() and not (tokens[:, :length] == PAD).any()
    if beam > 1:  # ranked with its </s>
        assert (tokens[:, length:] == torch.tensor([EOS])).all()


def test_answers_may_fill_the_position_tables_and_no_more() -> None:
    """64 positions, of which the instruction takes 4; the last token is written and not read."""
    for beam, longest in ((1, 61), (2, 60)):
        tokens, _ = search(ofa(), *asked_in("no prompt"), START, beam, 60, longest, None, None)
        assert tokens.shape == (3, 61)
        with pytest.raises(ValueError, match="65 tokens do not fit 64 positions"):
            search(ofa(), *asked_in("no prompt"), START, beam, 60, longest + 1, None, None)


@pytest.mark.parametrize("beam", [1, 3])
def test_no_tokens_in_a_row_are_written_twice(beam: int) -> None:
    """A model that likes to repeat itself."""
    model = mini_ofa()
    with torch.no_grad():
        model.embed.weight[[30, 31]] *= 5
    for n in (1, 2, 3):
        free, banned = (
            words(search(model, *asked_in("no prompt"), START, beam, 8, 12, ngram, None)[0][0]) for ngram in (None, n)
        )
        grams = [[tuple(answer[i : i + n]) for i in range(len(answer) - n + 1)] for answer in (free, banned)]
        assert len(set(grams[0])) < len(grams[0])
        assert len(set(grams[1])) == len(grams[1])


def test_a_wider_beam_finds_better_answers_than_greedy_ones() -> None:
    asked = asked_in("encoder padding")
    scores = {}
    for beam in (1, 8):
        tokens, _ = search(ofa(), *asked, START, beam, 6, 6, None, None)
        scores[beam] = 0.0
        for row in range(3):
            written = words(START[row])
            for token in words(tokens[row])[:6]:
                scores[beam] += float(next_log_probs(ofa(), asked, row, written)[token])
                written.append(token)
    assert scores[8] > scores[1] + 0.1


def test_reading_on_fills_the_room_there_is_and_copies_where_there_is_none() -> None:
    first, second, third = (torch.randn(1, 2, length, 4) for length in (3, 2, 2))
    tight = Past((first, first), 3)
    roomy = tight.with_room(3)
    for past, stays in ((tight, False), (roomy, True)):
        grown = past.append((second, second)).append((third[:, :, :1], third[:, :, :1]))
        expected = torch.cat([first, second, third[:, :, :1]], dim=2)
        assert all(torch.equal(part, expected) for part in grown.key_value)
        assert (grown.memory[0].data_ptr() == past.memory[0].data_ptr()) == stays
    grown = roomy.append((second, second)).append((third, third))  # one more than there is room for
    assert torch.equal(grown.key_value[1], torch.cat([first, second, third], dim=2))


def test_candidate_scores_are_teacher_forced_log_probs_within_the_trie() -> None:
    asked = asked_in("encoder padding")
    scores = score_candidates(ofa(), *asked, START, Trie.of(ANSWERS, CPU), chunk=9)
    assert scores.shape == (3, len(ANSWERS))
    for row in range(3):
        for column, answer in enumerate(ANSWERS):
            total = 0.0
            for position, token in enumerate([*answer, EOS]):
                written = answer[:position]
                log_probs = next_log_probs(ofa(), asked, row, words(START[row]) + written)[following(written)]
                total += float(log_probs.log_softmax(0)[following(written).index(token)])
            assert float(scores[row, column]) == pytest.approx(total, abs=1e-4)


def test_the_candidates_share_all_probability() -> None:
    scores = score_candidates(ofa(), *asked_in("encoder padding"), START, Trie.of(ANSWERS, CPU), chunk=9)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(3))


def test_chunks_and_order_of_candidates_change_no_score() -> None:
    asked = asked_in("encoder padding")
    whole = score_candidates(ofa(), *asked, START, Trie.of(ANSWERS, CPU), chunk=9)
    ones = score_candidates(ofa(), *asked, START, Trie.of(ANSWERS, CPU), chunk=1)
    back = score_candidates(ofa(), *asked, START, Trie.of(ANSWERS[::-1], CPU), chunk=2)
    torch.testing.assert_close(ones, whole, rtol=0, atol=1e-4)
    torch.testing.assert_close(back.flip(1), whole, rtol=0, atol=1e-4)


def test_answers_without_a_choice_have_probability_one() -> None:
    for answers in ([[20, 21]], [[20], [20]]):
        scores = score_candidates(ofa(), *asked_in("no prompt"), START, Trie.of(answers, CPU), chunk=9)
        assert torch.equal(scores, torch.zeros(3, len(answers)))


def test_one_token_answers_are_ranked_alike_by_scores_and_by_search() -> None:
    trie = Trie.of([[token] for token in range(50, 60)], CPU)
    scores = score_candidates(ofa(), *asked_in("encoder padding"), START, trie, chunk=20)
    for beam in (1, 10):
        tokens, mean = search(ofa(), *asked_in("encoder padding"), START, beam, 1, trie.longest, None, trie)
        assert torch.equal(tokens[:, :2], torch.stack([scores.argmax(1) + 50, torch.full((3,), EOS)], dim=1))
        torch.testing.assert_close(mean * 2, scores.amax(1), rtol=0, atol=1e-4)


def test_a_beam_as_wide_as_the_set_finds_its_best_mean() -> None:
    trie, count = Trie.of(ANSWERS, CPU), len(ANSWERS)
    tokens, mean = search(ofa(), *asked_in("encoder padding"), START, count, 0, trie.longest, None, trie)
    lengths = torch.tensor([len(answer) + 1 for answer in ANSWERS])
    best, which = (score_candidates(ofa(), *asked_in("encoder padding"), START, trie, 9) / lengths).max(1)
    assert [words(row)[:-1] for row in tokens] == [ANSWERS[choice] for choice in which]
    torch.testing.assert_close(mean, best, rtol=0, atol=1e-4)


def test_a_trie_knows_what_follows() -> None:
    trie = Trie.of(ANSWERS, CPU)
    assert trie.longest == 6
    written: list[list[int]] = [[], [21], [21, 22], [24], [20]]
    nodes = [0]
    for beginning in written[1:]:
        node = 0
        for token in beginning:
            leads = trie.following(torch.tensor([[node]]))[0, 0]
            node = int(leads[trie.words == token])
        nodes.append(node)
    leads = trie.following(torch.tensor([nodes]))[0]
    assert [trie.words[row > 0].tolist() for row in leads] == [following(beginning) for beginning in written]


@pytest.mark.parametrize("name", QUESTIONS)
def test_states_that_nobody_reads_are_left_out_and_gradients_stay(name: str) -> None:
    encoded, prefixes = asked_in(name)
    tokens = torch.tensor([[0, 5, 6, 7, 20, 21], [0, 8, 22, 1, 1, 1], [0, 23, 24, 25, 1, 1]])
    wanted = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0]]).bool()
    model, weights = mini_ofa(), torch.randn(7, 64, generator=torch.Generator().manual_seed(5))
    leaves = [p.clone().requires_grad_() for pair in prefixes or [] for p in pair or ()]
    pairs = iter(zip(leaves[::2], leaves[1::2], strict=True))
    prefixes = prefixes and [pair and next(pairs) for pair in prefixes]

    def gradients(states: Tensor) -> list[Tensor | None]:
        leaves_and_parameters = [*leaves, *model.decoder.parameters()]
        return list(torch.autograd.grad((states * weights).sum(), leaves_and_parameters, allow_unused=True))

    plain = model.decode_states(tokens, encoded, prefixes)[wanted]
    sparing = model.decode_states(tokens, encoded, prefixes, Wanted.of(wanted))
    torch.testing.assert_close(sparing, plain, rtol=0, atol=NOISE)
    for ours, theirs in zip(gradients(sparing), gradients(plain), strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


def test_rows_with_and_without_padding_start_from_bos() -> None:
    plain = torch.full((3, 1), BOS)
    padded = torch.nn.functional.pad(plain, (0, 3), value=PAD)
    for beam in (1, 3):
        expected = search(ofa(), *asked_in("no prompt"), plain, beam, 0, 3, None, None)[0]
        assert torch.equal(search(ofa(), *asked_in("no prompt"), padded, beam, 0, 3, None, None)[0], expected)
