"""Decoding: with the key-value cache against running the decoder over each whole sequence at every step (tests/plain.py);
scores of all candidates against a beam search among them; the decoder's work in a training step.

Weights are random, so no answer ends by itself: every search writes all its tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from measure import Section, interleaved
from omegaconf import OmegaConf
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from mini import PROMPT
from plain import Reforward

from mmprompt.methods.prompt import Prompts
from mmprompt.models.attention import Prefixes
from mmprompt.models.decoding import Trie, score_candidates, search
from mmprompt.models.ofa import BOS, OFA, PAD, Encoded, Wanted
from mmprompt.settings.model import Model
from mmprompt.settings.parsing import parse

P = 64
Question = tuple[OFA, Encoded, Prefixes | None, Tensor]


@torch.no_grad()
def question(name: str, batch: int, side: int, source: int, start: int) -> Question:
    """A model and a batch of questions on images of side x side patches."""
    torch.manual_seed(0)
    conf = OmegaConf.load(Path(__file__).parents[2] / f"conf/model/{name}.yaml").model
    model = parse(Model, cast(dict[str, Any], OmegaConf.to_container(conf)))
    ofa = OFA(model).eval().requires_grad_(False)
    prompts = Prompts(model, PROMPT.model_copy(update={"length": P, "dropout": 0.0}), torch.Generator().manual_seed(1))
    encoder, decoder = prompts(batch)
    features = torch.randn(batch, ofa.encoder.resnet.channels, side, side)
    encoded = ofa.encode(torch.randint(4, model.vocab_size, (batch, source)), features, None, encoder)
    first = torch.cat([torch.full((batch, 1), BOS), torch.randint(4, 100, (batch, start - 1))], dim=1)
    return ofa, encoded, decoder, first


def cached_or_not(asked: Question, beam: int, tokens: int, rounds: int, setting: str) -> Section:
    model, *rest = asked

    def run(model: OFA) -> object:
        return search(model, *rest, beam, tokens, tokens, None, None)

    plain = cast(OFA, Reforward(model))
    rows = interleaved({"full re-forward": lambda: run(plain), "cache": lambda: run(model)}, rounds, warm_up=False)
    title = "Greedy decoding" if beam == 1 else f"Beam search, {beam} hypotheses"
    return Section(f"{title}, {setting.split(',')[0]}", f"{setting}, {tokens} new tokens, P = {P}, {threads()}", rows)


def answers(count: int) -> list[list[int]]:
    """As many as VQA has, of one to four tokens; many begin alike."""
    random, made = torch.Generator().manual_seed(0), set[tuple[int, ...]]()
    while len(made) < count:
        length = 1 + int(torch.multinomial(torch.tensor([0.45, 0.35, 0.15, 0.05]), 1, generator=random))
        pool = (2500 * torch.rand(length, generator=random) ** 2).long() + 100  # the smaller the likelier
        made.add(tuple(pool.tolist()))
    return [list(answer) for answer in sorted(made)]


def candidates() -> Section:
    batch, count = 4, 3129
    asked = question("ofa_tiny", batch, 24, 16, 12)
    trie = Trie.of(answers(count), torch.device("cpu"))
    choices = int((trie.count > 1).sum())
    rows = interleaved(
        {
            "all candidates scored": lambda: score_candidates(*asked, trie, chunk=64),
            "beam 5 in the trie": lambda: search(*asked, 5, 1, trie.longest, None, trie),
            "greedy in the trie": lambda: search(*asked, 1, 1, trie.longest, None, trie),
        },
        rounds=5,
    )
    setting = (
        f"ofa_tiny, B = {batch}, 592 source positions, 12 tokens of instruction in the decoder, {count} answers "
        f"({len(trie.word)} nodes, {choices} with a choice, {len(trie.words)} different tokens), P = {P}, {threads()}"
    )
    return Section("A closed set of answers", setting, rows, per=batch, unit="example")


def step(name: str, batch: int, side: int, source: int, instruction: int, answer: int, rounds: int) -> Section:
    """Forward and backward of the decoder, to its prompt; the last `answer` of its tokens are read."""
    model, encoded, prefixes, start = question(name, batch, side, source, instruction)
    tokens = torch.cat([start, torch.randint(4, 100, (batch, answer - 1))], dim=1)
    shorter = torch.arange(batch) % 4  # tokens of padding
    tokens = tokens.masked_fill(torch.arange(tokens.shape[1]) >= (tokens.shape[1] - shorter)[:, None], PAD)
    place, length = torch.arange(tokens.shape[1]), (tokens != PAD).sum(1, keepdim=True)
    wanted = (place < length) & (place >= length - answer)
    leaves = [(key.requires_grad_(), value.requires_grad_()) for key, value in (p for p in prefixes or [] if p)]

    def run(sparing: bool) -> None:
        states = model.decode_states(tokens, encoded, leaves, Wanted.of(wanted) if sparing else None)
        loss = model.logits(states if sparing else states[wanted]).logsumexp(-1).sum()
        torch.autograd.grad(loss, [leaf for pair in leaves for leaf in pair])

    rows = interleaved({"every state": lambda: run(False), "states that are read": lambda: run(True)}, rounds)
    setting = f"{name}, B = {batch}, {tokens.shape[1]} decoder tokens, {answer} of them read, P = {P}, {threads()}"
    return Section("The decoder's part of a training step", setting, rows)


def threads() -> str:
    return f"{torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)


def sections() -> Iterator[Section]:
    torch.set_num_threads(1)
    micro = question("micro", 250, 6, 8, 1)
    yield cached_or_not(micro, 1, 20, 5, "micro, B = 250, 44 source positions")
    yield cached_or_not(micro, 5, 20, 2, "micro, B = 250, 44 source positions")
    tiny = question("ofa_tiny", 8, 24, 16, 1)
    yield cached_or_not(tiny, 1, 16, 3, "ofa_tiny, B = 8, 592 source positions")
    yield cached_or_not(tiny, 5, 16, 2, "ofa_tiny, B = 8, 592 source positions")
    yield candidates()
    yield step("micro", 32, 6, 18, 16, 2, rounds=15)
    yield step("ofa_tiny", 2, 24, 16, 16, 2, rounds=15)
    yield step("ofa_tiny", 2, 24, 16, 1, 16, rounds=15)
