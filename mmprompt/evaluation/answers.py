"""Answers of a tuned model on a split, and their scores (facts 5.6, 5.7).

n examples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprompt.data.splits import Split
from mmprompt.data.tasks import Batch, collate
from mmprompt.evaluation.attack import encode_under_attack
from mmprompt.families.family import Family
from mmprompt.families.registry import FAMILIES
from mmprompt.methods.tuned_model import EncodedBatch, Tuned, View
from mmprompt.models.decoding import score_candidates, search
from mmprompt.models.ofa import Encoded
from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import as_asked
from mmprompt.settings.evaluation import Attack
from mmprompt.settings.parsing import parse

Answered = Callable[[int], None]

PIXELS = 250 * 96**2  # of a batch's images, about: 250 of the small world's, 10 of 480 pixels a side
CHUNK = 64  # nodes of the candidates' trie read at once
BOX_TOKENS = 4  # an answer that is a box is exactly four tokens


@torch.no_grad()
def answers(
    config: RunConfig,
    tuned: Tuned,
    split: Split,
    view: View,
    examples: int,
    attack: Attack | None = None,
    answered: Answered = lambda count: None,
) -> list[list[int]]:
    """Token ids answered to the first `examples` examples. An attack changes what `view` shows: features, or pixels.

    `answered` is told how many there are, after each batch.
    """
    task, device = config.task, next(tuned.parameters()).device
    trie = tuned.trie if tuned.closed else None
    shortest = BOX_TOKENS if FAMILIES[task.family].answers == "box" else 1
    longest = task.max_target_tokens if trie is None else trie.longest
    found: list[list[int]] = []
    size = config.optim.micro_batch  # of what fits with its gradients; an attack has these as well
    if attack is None:
        size = max(size, PIXELS // config.task.image_size**2)
    for first in range(0, min(examples, len(split)), size):
        index = np.arange(first, min(first + size, examples, len(split)))
        text = collate([split.samples[i] for i in index.tolist()]).to(device)
        with tuned.autocast():
            asked = encode(tuned, text, view(index), attack)
            model = tuned.backbone, asked.encoded, asked.prefixes, text.start
            if trie is not None and task.beam is None:
                found += [tuned.closed[choice] for choice in score_candidates(*model, trie, CHUNK).argmax(1).tolist()]
            else:
                tokens, _ = search(*model, task.beam or 1, shortest, longest, task.no_repeat_ngram, trie)
                found += tokens.tolist()
        answered(len(found))
    return found


def encode(tuned: Tuned, text: Batch, seen: Tensor | Encoded, attack: Attack | None) -> EncodedBatch:
    if attack is None:
        return tuned.encode(text.source, seen)
    assert isinstance(seen, Tensor)  # an attack goes through the encoder
    return encode_under_attack(tuned, text, seen, attack)


@dataclass(frozen=True)
class Scores:
    """What the answers to a set of questions are worth."""

    examples: np.ndarray  # of each, under the primary metric of the task's family
    metrics: dict[str, float]  # of all of them, by name: the mean of these, first, and the family's other metrics


def evaluate(
    config: RunConfig,
    tuned: Tuned,
    split: Split,
    view: View,
    settings: Mapping[str, Any],
    answered: Answered = lambda count: None,
) -> Scores:
    """Makes the evaluation with these settings (`mmprompt.runs.identity.evaluations_of`), on the split that they name.

    `view`: from indices of this split's examples to what the model reads of them; under an attack, to what the attack changes.
    """
    asked = config.model_copy(update={"task": as_asked(config.task, settings)})
    found = answers(asked, tuned, split, view, count(split, settings), attack_of(settings), answered)
    family: Family[Any, Any] = FAMILIES[config.task.family]
    predicted, right = compared(config, split, found)
    scores = np.array(family.primary.scores(predicted, right))
    return Scores(scores, {family.primary.name: float(scores.mean())} | family.values_beside(predicted, right))


def count(split: Split, settings: Mapping[str, Any]) -> int:
    """How many examples of its split an evaluation asks."""
    return min(len(split), settings["examples"]) if "examples" in settings else len(split)


def attack_of(settings: Mapping[str, Any]) -> Attack | None:
    return parse(Attack, {"steps": 1} | settings["attack"]) if "attack" in settings else None  # fgsm has one step


def example_scores(
    config: RunConfig,
    tuned: Tuned,
    split: Split,
    view: View,
    examples: int,
    attack: Attack | None = None,
    answered: Answered = lambda count: None,
) -> np.ndarray:
    """Score of each of the first `examples` examples under the primary metric of the task's family."""
    found = answers(config, tuned, split, view, examples, attack, answered)
    return np.array(FAMILIES[config.task.family].primary.scores(*compared(config, split, found)))


def compared(config: RunConfig, split: Split, found: Sequence[Sequence[int]]) -> tuple[list[Any], list[Any]]:
    """These answers, token ids, to the split's first examples as the task's family compares them, and what is right."""
    family, vocabulary = FAMILIES[config.task.family], split.vocabulary
    items = split.items[: len(found)]
    if family.answers == "text":
        return [family.spell(vocabulary.decode(ids)) for ids in found], [item.right for item in items]
    boxes = [in_pixels(vocabulary.coordinates(ids, 1.0), item.extent) for ids, item in zip(found, items, strict=True)]
    return boxes, [item.box for item in items]


def in_pixels(box: Sequence[float] | None, extent: tuple[float, float]) -> list[float] | None:
    """A box in shares of what location tokens span, in pixels of the image as it came."""
    return None if box is None else [share * pixels for share, pixels in zip(box, extent * 2, strict=True)]
