"""Plain decoding, one sequence at a time: the key-value cache and the batched search must give the same results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmprompt.models.attention import Prefixes
from mmprompt.models.ofa import EOS, OFA, PAD, Encoded


def repeat(encoded: Encoded, prefixes: Prefixes | None, times: int) -> tuple[Encoded, Prefixes | None]:
    """Each example `times` times in a row."""
    padding = None if encoded.padding is None else encoded.padding.repeat_interleave(times, 0)
    many = Encoded(encoded.states.repeat_interleave(times, 0), padding, encoded.positions)
    if prefixes is None:
        return many, None
    return many, [p and (p[0].repeat_interleave(times, 0), p[1].repeat_interleave(times, 0)) for p in prefixes]


@dataclass(frozen=True)
class Tokens:
    tokens: Tensor  # B R, every token read
    encoded: Encoded
    prefixes: Prefixes | None

    def with_room(self, more: int) -> Tokens:
        return self


class Reforward(nn.Module):
    """A model without a cache: every step runs the decoder over each whole sequence anew."""

    def __init__(self, model: OFA) -> None:
        super().__init__()
        self.model, self.embed = model, model.embed

    def prefill(self, start: Tensor, encoded: Encoded, prefixes: Prefixes | None, more: int) -> tuple[Tensor, Tokens]:
        none = Tokens(start[:, :0], encoded, prefixes)
        visible, tokens = torch.ones_like(start[:, None], dtype=torch.bool), start
        states, cache = self.extend(tokens, None, visible & (start != PAD)[:, None], none)
        return states, cache

    def extend(self, tokens: Tensor, places: Tensor | None, visible: Tensor, cache: Tokens) -> tuple[Tensor, Tokens]:
        read, count = torch.cat([cache.tokens, tokens], dim=1), visible.shape[1]
        length = visible.sum(2)  # B n
        order = visible.int().argsort(dim=2, descending=True, stable=True)[..., : int(length.max())]  # B n T
        sequences = read[:, None].expand(-1, count, -1).gather(2, order)
        sequences[torch.arange(order.shape[2]) >= length[..., None]] = PAD
        many, prefixes = repeat(cache.encoded, cache.prefixes, count)
        states = self.model.decode_states(sequences.flatten(0, 1), many, prefixes).unflatten(0, visible.shape[:2])
        last = (length - 1)[..., None, None].expand(-1, -1, 1, states.shape[-1])
        return states.gather(2, last)[:, :, 0], Tokens(read, cache.encoded, cache.prefixes)


def beam_search(
    next_log_probs: Callable[[list[int]], Tensor],  # V, after these tokens
    beam: int,
    min_len: int,
    max_len: int,
    no_repeat_ngram: int | None = None,
    allowed: Callable[[list[int]], Sequence[int]] | None = None,
) -> tuple[list[int], float]:
    """One example, in lists. Facts 5.7. `allowed`: the tokens that may follow, which then share the probability."""
    going: list[tuple[float, list[int]]] = [(0.0, [])]
    kept: list[tuple[float, list[int]]] = []
    for step in range(max_len + (beam > 1)):
        candidates = []
        for total, tokens in going:
            log_probs = next_log_probs(tokens)
            if allowed is not None:
                mask = torch.full_like(log_probs, float("-inf"))
                mask[list(allowed(tokens))] = 0
                log_probs = (log_probs + mask).log_softmax(-1)
            likely = log_probs.argsort(descending=True)[: 2 * beam + len(tokens) + 2]  # some of them may not be written
            for token in [EOS] if step == max_len else likely.tolist():
                repeats = no_repeat_ngram is not None and repeated([*tokens, token], no_repeat_ngram)
                early, value = token == EOS and step < min_len, float(log_probs[token])
                if token != PAD and not (early or repeats) and value > float("-inf"):
                    candidates.append((total + value, [*tokens, token]))
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beam]
        cut = beam == 1 and step == max_len - 1
        kept += [(total / (step + 1), tokens) for total, tokens in candidates[:beam] if tokens[-1] == EOS or cut]
        going = [candidate for candidate in candidates if candidate[1][-1] != EOS][:beam]
        if len(kept) >= beam or not going:
            break
    score, tokens = max(kept[:beam], key=lambda k: k[0])
    return tokens, score


def repeated(tokens: list[int], n: int) -> bool:
    """Do the last n tokens occur before?"""
    grams = [tokens[i : i + n] for i in range(len(tokens) - n + 1)]
    return len(grams) > 1 and grams[-1] in grams[:-1]
