"""Answers of a tuned model on a split, and their scores (facts 5.6, 5.7).

n examples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmprompt import metrics
from mmprompt.config import RunConfig
from mmprompt.data import Split
from mmprompt.digits import S
from mmprompt.generate import Candidates, greedy, score_candidates
from mmprompt.tasks import collate
from mmprompt.tokens import Tokenizer
from mmprompt.tuned import Tuned

BATCH = 250
BOX_TOKENS = 4  # an answer of the grounding task is exactly four tokens


@torch.no_grad()
def answers(
    config: RunConfig, tuned: Tuned, split: Split, features: Callable[[np.ndarray], Tensor], examples: int
) -> list[list[int]]:
    """Token ids answered to the first `examples` examples: the best of a closed set where the task has one, else greedy."""
    task, tokenizer = config.task, Tokenizer(config.model.vocab_size, config.model.num_bins)
    device = next(tuned.parameters()).device
    closed = [tokenizer.encode(answer) for answer in task.answers or []]
    candidates = Candidates.of(closed, device) if closed else None
    found: list[list[int]] = []
    for first in range(0, min(examples, len(split)), BATCH):
        index = np.arange(first, min(first + BATCH, examples, len(split)))
        text = collate([split.samples[i] for i in index]).to(device)
        asked = tuned.ask(text.source, features(index))
        if candidates is not None:
            scores = score_candidates(
                tuned.backbone, asked.encoded, asked.prefixes, text.start, candidates, len(closed)
            )
            found += [closed[choice] for choice in scores.argmax(1).tolist()]
        else:
            shortest = BOX_TOKENS if task.family == "grounding" else 1
            tokens, _ = greedy(
                tuned.backbone, asked.encoded, asked.prefixes, text.start, shortest, task.max_target_tokens, None
            )
            found += tokens.tolist()
    return found


def example_scores(
    config: RunConfig, tuned: Tuned, split: Split, features: Callable[[np.ndarray], Tensor], examples: int
) -> np.ndarray:
    """Score of each of the first `examples` examples under the task's metric (PRIMARY_METRIC of its family)."""
    tokenizer = Tokenizer(config.model.vocab_size, config.model.num_bins)
    found = answers(config, tuned, split, features, examples)
    items = split.items[: len(found)]
    if config.task.family == "grounding":
        truth = [item.box for item in items if item.box is not None]
        return metrics.hits([tokenizer.coordinates(ids, S) for ids in found], truth)
    score = metrics.cider_d if config.task.family == "caption" else metrics.matches
    return score([tokenizer.decode(ids) for ids in found], [item.answer for item in items])
