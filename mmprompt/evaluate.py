"""Answers of a tuned model on a split, and their scores (facts 5.6, 5.7).

n examples, B batch.
"""

from __future__ import annotations

import numpy as np
import torch

from mmprompt import metrics
from mmprompt.config import RunConfig
from mmprompt.data import Split
from mmprompt.digits import S
from mmprompt.generate import Trie, score_candidates, search
from mmprompt.tasks import collate
from mmprompt.tokens import Tokenizer
from mmprompt.tuned import Tuned, View

BATCH = 250
CHUNK = 64  # nodes of the candidates' trie read at once
BOX_TOKENS = 4  # an answer of the grounding task is exactly four tokens


@torch.no_grad()
def answers(config: RunConfig, tuned: Tuned, split: Split, view: View, examples: int) -> list[list[int]]:
    """Token ids answered to the first `examples` examples."""
    task, tokenizer = config.task, Tokenizer(config.model.vocab_size, config.model.num_bins)
    device = next(tuned.parameters()).device
    closed = [tokenizer.encode(answer) for answer in task.answers or []]
    trie = Trie.of(closed, device) if closed else None
    shortest = BOX_TOKENS if task.family == "grounding" else 1
    longest = task.max_target_tokens if trie is None else trie.longest
    found: list[list[int]] = []
    for first in range(0, min(examples, len(split)), BATCH):
        index = np.arange(first, min(first + BATCH, examples, len(split)))
        text = collate([split.samples[i] for i in index]).to(device)
        with tuned.autocast():
            asked = tuned.ask(text.source, view(index))
            model = tuned.backbone, asked.encoded, asked.prefixes, text.start
            if trie is not None and task.beam is None:
                found += [closed[choice] for choice in score_candidates(*model, trie, CHUNK).argmax(1).tolist()]
            else:
                tokens, _ = search(*model, task.beam or 1, shortest, longest, task.no_repeat_ngram, trie)
                found += tokens.tolist()
    return found


def example_scores(config: RunConfig, tuned: Tuned, split: Split, view: View, examples: int) -> np.ndarray:
    """Score of each of the first `examples` examples under the task's metric (PRIMARY_METRIC of its family)."""
    tokenizer = Tokenizer(config.model.vocab_size, config.model.num_bins)
    found = answers(config, tuned, split, view, examples)
    items = split.items[: len(found)]
    if config.task.family == "grounding":
        truth = [item.box for item in items if item.box is not None]
        return metrics.hits([tokenizer.coordinates(ids, S) for ids in found], truth)
    score = metrics.cider_d if config.task.family == "caption" else metrics.matches
    return score([tokenizer.decode(ids) for ids in found], [item.answer for item in items])
