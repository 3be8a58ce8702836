"""Scores of short answers: right, wrong, or partly right if only some annotators gave that answer (facts 5.7).

`right`: of each example the answers that score, and how much; 1 is full marks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

Right = Mapping[str, float]


def credits(predicted: Sequence[str], right: Sequence[Right]) -> list[float]:
    """What each answer scores: 100 for the one that is right, or, where many people answered, their soft score (VQA)."""
    return [100.0 * scores.get(answer, 0.0) for answer, scores in zip(predicted, right, strict=True)]


def constant_answer(right: Sequence[Right]) -> float:
    """What the one answer scores that is the best to give to all of these questions, in percent: what guessing comes to."""
    credit: defaultdict[str, float] = defaultdict(float)
    for scores in right:
        for answer, score in scores.items():
            credit[answer] += score
    return 100 * max(credit.values()) / len(right)
