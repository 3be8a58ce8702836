"""The answers of a tuned model on a split, and their scores (facts 5.6, 5.7).

n examples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmprompt.data.ranks import ALONE, Ranks
from mmprompt.data.splits import Split
from mmprompt.data.tasks import Batch, collate
from mmprompt.evaluation.attack import encode_under_attack
from mmprompt.families.family import Family
from mmprompt.families.registry import FAMILIES
from mmprompt.methods.tuned_model import EncodedBatch, Tuned, View
from mmprompt.models.decoding import score_candidates, search
from mmprompt.models.ofa import Encoded
from mmprompt.runs.answer_file import Answers
from mmprompt.runs.config import RunConfig
from mmprompt.runs.identity import as_asked
from mmprompt.settings.evaluation import Attack
from mmprompt.settings.parsing import parse

Answered = Callable[[int], None]  # is called with the number of examples that have been answered

PIXELS = 250 * 96**2  # of a batch's images, about: 250 images of the small world, or 10 with sides of 480 pixels
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
    ranks: Ranks = ALONE,
) -> list[list[int]]:
    """Returns the answers to the first `examples` examples, as token ids. An attack changes what `view` returns: image features,
    or pixels.

    `answered` is called after each batch with the number of answers so far.
    """
    task, device = config.task, next(tuned.parameters()).device
    trie = tuned.trie if tuned.closed else None
    shortest = BOX_TOKENS if FAMILIES[task.family].answers == "box" else 1
    longest = task.max_target_tokens if trie is None else trie.longest
    token_ids: list[list[int]] = []
    size = config.optim.micro_batch  # fits into memory together with its gradients, which an attack needs as well
    if attack is None:
        size = max(size, PIXELS // config.task.image_size**2)
    indices = ranks.share(range(min(examples, len(split))))
    for first in range(0, len(indices), size):
        index = np.array(indices[first : first + size])
        text = collate([split.samples[i] for i in index.tolist()]).to(device)
        questions = encode(tuned, text, view(index), attack)
        model = tuned.backbone, questions.encoded, questions.prefixes, text.start
        if trie is not None and task.beam is None:
            best = score_candidates(*model, trie, CHUNK).argmax(1).tolist()
            token_ids += [tuned.closed[candidate] for candidate in best]
        else:
            tokens, _ = search(*model, task.beam or 1, shortest, longest, task.no_repeat_ngram, trie)
            token_ids += tokens.tolist()
        answered(min(len(token_ids) * ranks.size, examples))
    return [ids for part in ranks.each(token_ids) for ids in part]


def encode(tuned: Tuned, text: Batch, inputs: Tensor | Encoded, attack: Attack | None) -> EncodedBatch:
    """Encodes a batch, under an attack if there is one. `inputs`: what the view of the split returned for the batch."""
    if attack is None:
        return tuned.encode(text, inputs)
    assert isinstance(inputs, Tensor)  # an attack goes through the encoder
    return encode_under_attack(tuned, text, inputs, attack)


@dataclass(frozen=True)
class Scores:
    """The scores of the answers to a set of n examples, and the answers where a challenge may want them."""

    n: int
    examples: (
        np.ndarray | None
    )  # n, each example's score under the family's primary metric; None: the split is unscored
    metrics: dict[str, float]  # first the mean of `examples`, then the family's other metrics; empty: unscored
    answers: Answers | None  # None where no challenge asks for them


def evaluate(
    config: RunConfig,
    tuned: Tuned,
    split: Split,
    view: View,
    settings: Mapping[str, Any],
    answered: Answered = lambda count: None,
    ranks: Ranks = ALONE,
) -> Scores:
    """Makes the evaluation with these settings (`mmprompt.runs.identity.evaluations_of`). `split` is the one that they name.

    `view`: a function from indices of this split's examples to the model's input; under an attack, to what the attack changes.
    """
    decoding = config.model_copy(update={"task": as_asked(config.task, settings)})
    token_ids = answers(decoding, tuned, split, view, count(split, settings), attack_of(settings), answered, ranks)
    family: Family[Any, Any] = FAMILIES[config.task.family]
    n = len(token_ids)
    kept = None if split.ids is None else Answers(split.ids[:n], [split.vocabulary.decode(ids) for ids in token_ids])
    if not split.is_scored:
        return Scores(n, None, {}, kept)
    predicted, right = predicted_and_right(config, split, token_ids)
    scores = np.array(family.primary.scores(predicted, right))
    metrics = {family.primary.name: float(scores.mean())} | family.other_metrics(predicted, right)
    return Scores(n, scores, metrics, kept)


def count(split: Split, settings: Mapping[str, Any]) -> int:
    """The number of examples of its split that an evaluation with these settings uses."""
    return min(len(split), settings["examples"]) if "examples" in settings else len(split)


def attack_of(settings: Mapping[str, Any]) -> Attack | None:
    """The attack of an evaluation with these settings; None if it has none."""
    return parse(Attack, {"steps": 1} | settings["attack"]) if "attack" in settings else None  # fgsm has one step


def example_scores(
    config: RunConfig,
    tuned: Tuned,
    split: Split,
    view: View,
    examples: int,
    attack: Attack | None = None,
    answered: Answered = lambda count: None,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Scores of the first `examples` examples, n, under the primary metric of the task's family."""
    token_ids = answers(config, tuned, split, view, examples, attack, answered, ranks)
    return np.array(FAMILIES[config.task.family].primary.scores(*predicted_and_right(config, split, token_ids)))


def predicted_and_right(
    config: RunConfig, split: Split, token_ids: Sequence[Sequence[int]]
) -> tuple[list[Any], list[Any]]:
    """Returns the answers to the split's first examples, given as token ids, and the right ones, both in the form that the
    metrics of the task's family compare: texts, or boxes in pixels of the original images."""
    family, vocabulary = FAMILIES[config.task.family], split.vocabulary
    items = split.items[: len(token_ids)]
    if family.answers == "text":
        return [family.normalise(vocabulary.decode(ids)) for ids in token_ids], [item.right for item in items]
    shares = [vocabulary.coordinates(ids, 1.0) for ids in token_ids]
    boxes = [in_pixels(box, item.extent) for box, item in zip(shares, items, strict=True)]
    return boxes, [item.box for item in items]


def in_pixels(box: Sequence[float] | None, extent: tuple[float, float]) -> list[float] | None:
    """Converts a box from shares of the area that location tokens span to pixels of the original image.

    `extent`: width and height of that area, in pixels. None stays None.
    """
    return None if box is None else [share * pixels for share, pixels in zip(box, extent * 2, strict=True)]
