"""Scores of single examples on the paper's scale: 100 is right, 0 is wrong; CIDEr-D times 100 (facts 5.7).

n examples. Means over a split are taken where they are reported; here every example keeps its own score.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

Box = Sequence[float]  # x0 y0 x1 y1


def iou(a: Box, b: Box) -> float:
    """Intersection over union; 0 if they do not overlap."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def hits(predicted: Sequence[Box | None], truth: Sequence[Box]) -> np.ndarray:
    """Acc@0.5. None: the model's answer was no box."""
    return np.array([100.0 * (p is not None and iou(p, t) >= 0.5) for p, t in zip(predicted, truth, strict=True)])


def credits(predicted: Sequence[str], right: Sequence[Mapping[str, float]]) -> np.ndarray:
    """What each answer scores: 100 for the one that is right, or, where many people answered, their soft score (VQA)."""
    return np.array([100.0 * scores.get(answer, 0.0) for answer, scores in zip(predicted, right, strict=True)])


def constant_answer(right: Sequence[Mapping[str, float]]) -> float:
    """What the one answer scores that is the best to give to all of these questions, in percent: what guessing comes to."""
    credit: defaultdict[str, float] = defaultdict(float)
    for scores in right:
        for answer, score in scores.items():
            credit[answer] += score
    return 100 * max(credit.values()) / len(right)


def cider_d(predicted: Sequence[str], right: Sequence[Mapping[str, float]]) -> np.ndarray:
    """CIDEr-D (Vedantam et al. 2015, section 6): 1- to 4-grams, clipped counts, length penalty with sigma 6.

    `right`: the captions of each image, and how often each was given. Document frequencies are those of these captions. Words are
    split at spaces; COCO's own evaluation splits them with a Java program. Scores of a whole set are in `evaluation.captions`.
    """
    documents = Counter(gram for captions in right for gram in {gram for text in captions for gram in ngrams(text)})
    log_size = math.log(max(len(right), 2))

    def weights(text: str) -> list[dict[tuple[str, ...], float]]:
        by_length: list[dict[tuple[str, ...], float]] = [{}, {}, {}, {}]
        for gram, count in Counter(ngrams(text)).items():
            by_length[len(gram) - 1][gram] = count * (log_size - math.log(max(1, documents[gram])))
        return by_length

    def similarity(guess: str, caption: str) -> float:
        total = 0.0
        for g, r in zip(weights(guess), weights(caption), strict=True):
            norm = math.sqrt(sum(w * w for w in g.values())) * math.sqrt(sum(w * w for w in r.values()))
            clipped = sum(min(w, r[gram]) * r[gram] for gram, w in g.items() if gram in r)
            total += clipped / norm if norm else 0.0
        gap = len(guess.split()) - len(caption.split())
        return 100 * 10 * total / 4 * math.exp(-(gap**2) / (2 * 6**2))

    scores = []
    for guess, captions in zip(predicted, right, strict=True):
        given = sum(captions.values())
        scores.append(sum(times * similarity(guess, caption) for caption, times in captions.items()) / given)
    return np.array(scores)


def ngrams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1)]
