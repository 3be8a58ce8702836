"""Answers of a model: greedy decoding, and scores of given candidates (facts 5.6, 5.7).

B batch, S start tokens, T generated tokens, V vocabulary, d width; C candidates, c of them in a chunk, A tokens of the
longest candidate, W distinct tokens in all candidates.
Decoding starts from the row's tokens in `start`: <s> alone, or <s> and an instruction, padded on the right.
Every step runs the decoder over the whole sequence anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmprompt.attention import KeyValue, Prefixes
from mmprompt.ofa import EOS, OFA, PAD, Encoded


def lengths(tokens: Tensor) -> Tensor:
    """Tokens of each row without the padding on its right."""
    return (tokens != PAD).sum(1)  # B


@torch.no_grad()
def greedy(
    model: OFA,
    encoded: Encoded,
    prefixes: Prefixes | None,
    start: Tensor,  # B S
    min_len: int,
    max_len: int,
    allowed: Tensor | None,  # V, True for tokens that may be generated
) -> tuple[Tensor, Tensor]:
    """The likeliest token at each step, until </s> (not before `min_len` other tokens) or `max_len` tokens.

    Returns the generated tokens (B T, with </s>, then padding) and the sum of their log-probabilities (B). The allowed
    tokens share the probability; padding and an early </s> are never chosen but keep their part, as published.
    """
    batch, width = start.shape
    rows, place = torch.arange(batch, device=start.device), lengths(start)
    tokens = torch.cat([start, start.new_full((batch, max_len), PAD)], dim=1)
    generated = start.new_full((batch, max_len), PAD)
    total = torch.zeros(batch, device=start.device)
    going = torch.ones(batch, dtype=torch.bool, device=start.device)
    for step in range(max_len):
        states = model.decode_states(tokens[:, : width + step], encoded, prefixes)
        logits = model.logits(states[rows, place - 1]).float()  # B V
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        log_probs = logits.log_softmax(-1)
        log_probs[:, [PAD, EOS] if step < min_len else [PAD]] = float("-inf")
        best, token = log_probs.max(-1)  # B
        total += torch.where(going, best, 0)
        token = torch.where(going, token, PAD)
        generated[:, step] = token
        tokens[rows, place] = token
        place, going = place + going, going & (token != EOS)
        if not going.any():
            break
    return generated, total


@dataclass(frozen=True)
class Candidates:
    """The possible answers, and as a trie: which tokens may follow the first tokens of each."""

    tokens: Tensor  # C A, each ends with </s>, then padding
    words: Tensor  # W, the distinct tokens
    index: Tensor  # C A, place of each token in `words`; 0 at padding
    allowed: Tensor  # C A W, which words some candidate with the same first tokens has here

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], device: torch.device) -> Candidates:
        """`answers`: token ids without <s> and </s>."""
        sequences = [[*answer, EOS] for answer in answers]
        longest = max(len(sequence) for sequence in sequences)
        words = sorted({token for sequence in sequences for token in sequence})
        place = {token: index for index, token in enumerate(words)}
        following: dict[tuple[int, ...], list[int]] = {}
        for sequence in sequences:
            for position, token in enumerate(sequence):
                following.setdefault(tuple(sequence[:position]), []).append(place[token])
        tokens = torch.full((len(sequences), longest), PAD)
        index = torch.zeros(len(sequences), longest, dtype=torch.long)
        allowed = torch.zeros(len(sequences), longest, len(words), dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(sequence)
            index[row, : len(sequence)] = torch.tensor([place[token] for token in sequence])
            for position in range(len(sequence)):
                allowed[row, position, following[tuple(sequence[:position])]] = True
        return cls(tokens.to(device), torch.tensor(words, device=device), index.to(device), allowed.to(device))


@torch.no_grad()
def score_candidates(
    model: OFA,
    encoded: Encoded,
    prefixes: Prefixes | None,
    start: Tensor,  # B S
    candidates: Candidates,
    chunk: int,
) -> Tensor:
    """Log-probability of each candidate for each example, among the candidates: its tokens and </s>, summed. B C."""
    # Beyond the last position with a choice the trie decides: log-probability 0, and nothing to compute.
    choices = (candidates.allowed.sum(2) > 1).any(0).nonzero()
    longest = int(choices.max()) + 1 if len(choices) else 1
    scores = []
    for first in range(0, len(candidates.tokens), chunk):
        part = slice(first, first + chunk), slice(longest)
        tokens, index, allowed = candidates.tokens[part], candidates.index[part], candidates.allowed[part]
        # Candidates that begin alike share the decoder's work; one-word answers are all read off one position.
        inputs, row = tokens[:1, :0], torch.zeros_like(tokens[:, 0])
        if longest > 1:
            inputs, row = torch.unique(tokens[:, : longest - 1], dim=0, return_inverse=True)
        count = len(inputs)
        states = answer_states(model, encoded.repeat(count), repeat(prefixes, count), start, inputs)  # B r A d
        logits = states.float() @ model.embed.weight[candidates.words].float().T  # B r A W
        log_probs = logits[:, row].masked_fill(~allowed, float("-inf")).log_softmax(-1)  # B c A W
        chosen = log_probs.gather(3, index.expand(len(start), -1, -1)[..., None])[..., 0]  # B c A
        scores.append(chosen.masked_fill(tokens == PAD, 0).sum(2))
    return torch.cat(scores, dim=1)


def answer_states(model: OFA, encoded: Encoded, prefixes: Prefixes | None, start: Tensor, inputs: Tensor) -> Tensor:
    """Decoder states after each start (B S) and after each further token of each input (r A-1): B r A d."""
    batch, count, longest = len(start), len(inputs), inputs.shape[1] + 1
    sequences = torch.cat([start, start.new_full((batch, longest - 1), PAD)], dim=1)
    sequences = sequences[:, None].repeat(1, count, 1)  # B r S+A-1
    places = lengths(start)[:, None] + torch.arange(longest, device=start.device)  # B A, of the tokens to be predicted
    places = places[:, None].expand(-1, count, -1)  # B r A
    sequences.scatter_(2, places[..., :-1], inputs.expand(batch, -1, -1))
    states = model.decode_states(sequences.flatten(0, 1), encoded, prefixes).unflatten(0, (batch, count))
    return states.gather(2, (places - 1)[..., None].expand(-1, -1, -1, states.shape[-1]))


def repeat(prefixes: Prefixes | None, times: int) -> Prefixes | None:
    """Each example's prefixes `times` times in a row."""

    def each(prefix: KeyValue | None) -> KeyValue | None:
        return prefix and (prefix[0].repeat_interleave(times, 0), prefix[1].repeat_interleave(times, 0))

    return prefixes and [each(prefix) for prefix in prefixes]
