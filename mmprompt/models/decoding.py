"""Decoding: beam search, and the probabilities of given candidates (facts 5.6, 5.7).

B batch, S start tokens, V vocabulary, d width; K hypotheses, t tokens of each, R tokens in the cache, W words to choose from;
C candidates, N nodes of their trie, A tokens of the longest candidate.
Decoding starts from the row's tokens in `start`: <s> alone, or <s> and an instruction, padded on the right.
Tokens that the decoder has read stay in a key-value cache. All hypotheses of an example share it, and each sees its own past only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from mmprompt.models.attention import Prefixes
from mmprompt.models.layers import gather_places
from mmprompt.models.ofa import EOS, OFA, PAD, Encoded

MINUS_INFINITY = float("-inf")
PATIENCE = 8  # so many tokens are written on a GPU before it is asked whether all answers are complete: to ask is to wait for it


@dataclass(frozen=True, eq=False)
class Trie:
    """A prefix tree of a closed set of answers. A node is a beginning of answers; node 0 is the empty one. Nodes are in order of
    length, and the children of a node are next to each other."""

    words: Tensor  # W, the distinct tokens, ascending
    word: Tensor  # N, index in `words` of the node's last token
    first: Tensor  # N, the node's first child
    count: Tensor  # N, number of the node's children
    paths: Tensor  # N A, the nodes from below the root to the node itself; then 0
    ends: Tensor  # C, the node of each whole answer
    on_cpu: tuple[Tensor, Tensor, Tensor]  # first, count and paths once more: to look at them, no GPU is waited for
    widest: int  # the number of children of the node that has most

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], device: torch.device) -> Trie:
        """The trie of these answers, given as token ids without <s> and </s>."""
        sequences = [(*answer, EOS) for answer in answers]
        beginnings = {sequence[:length] for sequence in sequences for length in range(len(sequence) + 1)}
        nodes = sorted(beginnings, key=lambda beginning: (len(beginning), beginning))
        number = {node: index for index, node in enumerate(nodes)}
        words = sorted({token for sequence in sequences for token in sequence})
        word_index = {token: index for index, token in enumerate(words)}
        longest = len(nodes[-1])
        paths = [[number[node[: i + 1]] for i in range(len(node))] + [0] * (longest - len(node)) for node in nodes]
        count = torch.bincount(torch.tensor([number[node[:-1]] for node in nodes[1:]]), minlength=len(nodes))
        on_cpu = (1 + count.cumsum(0) - count, count, torch.tensor(paths))
        return cls(
            words=torch.tensor(words, device=device),
            word=torch.tensor([0, *(word_index[node[-1]] for node in nodes[1:])], device=device),
            **dict(zip(("first", "count", "paths"), (one.to(device) for one in on_cpu), strict=True)),
            on_cpu=on_cpu,
            ends=torch.tensor([number[sequence] for sequence in sequences], device=device),
            widest=int(count.max()),
        )

    def allowed(self, answers: Tensor) -> Tensor:  # B T
        """Returns which words are allowed at each position of these answers, B T W, bool.

        `answers`: token ids with </s>, padded on either side. After the token with which an answer leaves the trie no word is
        allowed.
        """
        nodes, in_trie = answers.new_zeros(len(answers)), torch.ones_like(answers[:, 0], dtype=torch.bool)
        allowed = []
        for token in answers.t().contiguous():
            following = self.following(nodes[:, None])[:, 0]  # B W
            allowed.append((following > 0) & in_trie[:, None])
            index = torch.searchsorted(self.words, token).clamp(max=len(self.words) - 1)
            next_nodes = torch.where(self.words[index] == token, following.gather(1, index[:, None])[:, 0], 0)
            in_trie = in_trie & ((next_nodes > 0) | (token == PAD))
            nodes = torch.where(token == PAD, nodes, next_nodes)
        return torch.stack(allowed, 1)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest answer, including its </s>."""
        return self.paths.shape[1]

    def children(self, nodes: Tensor) -> Tensor:
        """The children of each node, in a last dimension; padded with 0."""
        child = torch.arange(self.widest, device=nodes.device)
        return torch.where(child < self.count[nodes][..., None], self.first[nodes][..., None] + child, 0)

    def following(self, nodes: Tensor) -> Tensor:  # B K
        """The node to which each word leads from each node, B K W; 0 where the word is not allowed."""
        children = self.children(nodes)
        none = nodes.new_zeros(*nodes.shape, len(self.words))
        return none.scatter_reduce(-1, self.word[children], children, "amax")  # B K W


@dataclass(frozen=True)
class Chunk:
    """Nodes whose children are scored together. n nodes with at most c children each, k children in all."""

    nodes: Tensor  # n
    read: Tensor  # m, these nodes and those above them: what the decoder reads
    places: Tensor  # n, indices of the nodes in `read`
    children: Tensor  # k
    which: Tensor  # k, their indices among the n c children of `Trie.children`, which are padded


@lru_cache(maxsize=2)
def chunks(trie: Trie, size: int) -> list[Chunk]:
    """The root, for which nothing is read, and then all other nodes with several children, `size` of them at a time."""
    device, (first, count, paths) = trie.ends.device, trie.on_cpu
    branching = 1 + (count[1:] > 1).nonzero()[:, 0]
    made = []
    for nodes in (torch.zeros(1, dtype=torch.long), *(branching.split(size) if len(branching) else ())):
        read = paths[nodes].unique()
        read = read[read > 0]
        child = torch.arange(trie.widest)
        real = child < count[nodes][:, None]  # n c
        children = (first[nodes][:, None] + child)[real]
        parts = nodes, read, torch.searchsorted(read, nodes), children, real.flatten().nonzero()[:, 0]
        made.append(Chunk(*(part.to(device) for part in parts)))
    return made


def lengths(tokens: Tensor) -> Tensor:
    """Number of tokens in each row, without the padding on its right."""
    return (tokens != PAD).sum(1)  # B


class BestHypotheses:
    """The best complete answer of each row so far."""

    def __init__(self, start: Tensor, longest: int) -> None:
        self.tokens = start.new_full((len(start), longest), PAD)
        self.mean = torch.full((len(start),), MINUS_INFINITY, device=start.device)  # B, mean log-probability per token
        self.count = start.new_zeros(len(start))  # B, number of complete answers so far

    def add(self, tokens: Tensor, scores: Tensor, complete: Tensor, most: int) -> None:
        """Takes the complete hypotheses into account; a row that has `most` complete answers already ignores them.

        tokens B K t; scores B K, summed log-probabilities; complete B K.
        """
        mean, which = (scores / tokens.shape[2]).masked_fill(~complete, MINUS_INFINITY).max(1)
        better = (mean > self.mean) & (self.count < most)
        best = tokens[torch.arange(len(which), device=which.device), which]
        best = F.pad(best, (0, self.tokens.shape[1] - best.shape[1]), value=PAD)
        self.tokens = torch.where(better[:, None], best, self.tokens)
        self.mean = torch.where(better, mean, self.mean)
        self.count = self.count + complete.sum(1)


@torch.no_grad()
def search(
    model: OFA,
    encoded: Encoded,
    prefixes: Prefixes | None,
    start: Tensor,  # B S
    beam: int,
    min_len: int,
    max_len: int,
    no_repeat_ngram: int | None,
    trie: Trie | None,
) -> tuple[Tensor, Tensor]:
    """Beam search; with one hypothesis, greedy decoding. Returns the best answer of each row (B T, with </s>, then padding)
    and the mean log-probability of its tokens (B).

    As published: the 2 K likeliest continuations are ranked. Those among the first K that end with </s> are kept as answers, and
    the first K that do not end are continued, until K answers are kept; the one with the highest mean wins. </s> comes after at
    least `min_len` and at most `max_len` other tokens; a single hypothesis, which needs no ranking, is cut after `max_len` without
    </s>. No sequence of `no_repeat_ngram` tokens occurs twice. With a trie, probabilities are normalised over the tokens that it
    allows; tokens that are forbidden for another reason count in this normalisation.
    """
    words = torch.arange(len(model.embed.weight), device=start.device) if trie is None else trie.words  # W
    embed = model.embed.weight if trie is None else model.embed.weight[words]
    steps = max_len + (beam > 1)
    states, cache = model.prefill(start, encoded, prefixes, steps - 1)
    cache = cache.with_room(beam * (steps - 1))
    visible = (start != PAD)[:, None]  # B K R, which of the cached tokens of its example belong to a hypothesis
    place = lengths(start)[:, None]  # B 1, position of the next token
    written = start.new_zeros(len(start), 1, 0)  # B K t, indices into `words`
    total = torch.zeros(len(start), 1, device=start.device)  # B K, log-probability
    nodes = start.new_zeros(len(start), 1)  # B K, nodes of the trie
    answers = BestHypotheses(start, steps)
    for step in range(steps):
        logits = F.linear(states, embed)  # B K W
        following = None if trie is None else trie.following(nodes)
        if following is not None:
            logits = logits.masked_fill(following == 0, MINUS_INFINITY)
        log_probs = logits.log_softmax(-1).masked_fill(forbidden(words, step, min_len, max_len), MINUS_INFINITY)
        if no_repeat_ngram is not None:
            ban_repeats(log_probs, written, no_repeat_ngram)

        scores = (total[..., None] + log_probs).flatten(1)  # B K W
        scores, choice = scores.topk(min(2 * beam, scores.shape[1]))  # B 2K
        parent, word = choice // len(words), choice % len(words)
        written = torch.cat([gather_places(written, parent), word[..., None]], dim=2)
        ends, last = words[word] == EOS, step == steps - 1
        complete = (ends | last) & (scores > MINUS_INFINITY)
        answers.add(words[written[:, :beam]], scores[:, :beam], complete[:, :beam], beam)

        unfinished = ends.int().argsort(dim=1, stable=True)[:, :beam]  # B K, the likeliest that do not end
        total = scores.masked_fill(ends, MINUS_INFINITY).gather(1, unfinished)
        if last:
            break
        looks = start.device.type == "cpu" or step % PATIENCE == PATIENCE - 1
        if looks and not ((answers.count < beam) & (total > MINUS_INFINITY).any(1)).any():
            break
        written, parent = gather_places(written, unfinished), parent.gather(1, unfinished)
        if following is not None:
            nodes = following.flatten(1).gather(1, choice.gather(1, unfinished)).masked_fill(total == MINUS_INFINITY, 0)
        own = torch.eye(unfinished.shape[1], dtype=torch.bool, device=unfinished.device)  # each sees its own new token
        visible = torch.cat([gather_places(visible, parent), own.expand(len(unfinished), -1, -1)], dim=2)
        tokens = words[written[..., -1]]
        states, cache = model.extend(tokens, place.expand_as(tokens), visible, cache)
        place = place + 1
    return answers.tokens, answers.mean


def forbidden(words: Tensor, step: int, min_len: int, max_len: int) -> Tensor:
    """Which words may not come at this step, W bool: padding always, </s> before `min_len`, all but </s> at `max_len`."""
    if step == max_len:
        return words != EOS
    return (words == PAD) | (words == EOS) if step < min_len else words == PAD


def ban_repeats(log_probs: Tensor, written: Tensor, n: int) -> None:
    """Forbids, in place, each word that would complete a sequence of n words that has occurred. log_probs B K W; written B K t."""
    if written.shape[2] < n:
        return
    grams = written.unfold(2, n, 1)  # B K t-n+1 n
    last = written[:, :, written.shape[2] - n + 1 :]  # B K n-1
    occurred = (grams[..., :-1] == last[:, :, None]).all(-1)  # B K t-n+1
    highest = torch.where(occurred, MINUS_INFINITY, -MINUS_INFINITY).to(log_probs.dtype)
    log_probs.scatter_reduce_(2, grams[..., -1], highest, "amin")


@torch.no_grad()
def score_candidates(
    model: OFA,
    encoded: Encoded,
    prefixes: Prefixes | None,
    start: Tensor,  # B S
    trie: Trie,
    chunk: int,
) -> Tensor:
    """Log-probability of each candidate for each example, B C, summed over its tokens and </s> and normalised over the words that
    the candidates allow.

    Only nodes with several children cost anything: the decoder reads `chunk` of them at a time, each with its own beginning as
    its past.
    """
    states, cache = model.prefill(start, encoded, prefixes, trie.longest - 1)
    log_probs = torch.zeros(len(start), len(trie.word), device=start.device)  # B N, of each node given its parent

    def score_children(states: Tensor, of: Chunk) -> None:  # B n d
        children = trie.children(of.nodes)  # n c
        embed = model.embed.weight[trie.words[trie.word[children]]]  # n c d
        logits = torch.einsum("bnd,ncd->bnc", states, embed).masked_fill(children == 0, MINUS_INFINITY)
        scores = logits.log_softmax(-1).flatten(1).index_select(1, of.which)  # B k
        log_probs.index_copy_(1, of.children, scores)

    root, *others = chunks(trie, chunk)
    score_children(states, root)
    for one in others:
        past = (trie.paths[one.read][:, :, None] == one.read).any(1).expand(len(start), -1, -1)  # B m m
        visible = torch.cat([(start != PAD)[:, None].expand(-1, len(one.read), -1), past], dim=2)  # B m S+m
        place = lengths(start)[:, None] + (trie.paths[one.read] > 0).sum(1) - 1  # B m
        tokens = trie.words[trie.word[one.read]].expand_as(place)
        states, _ = model.extend(tokens, place, visible, cache)
        score_children(states.index_select(1, one.places), one)
    return log_probs[:, trie.paths[trie.ends]].sum(2)  # node 0 counts 0
