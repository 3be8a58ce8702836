"""Scores of short answers: right, wrong, or partly right if only some annotators gave that answer (facts 5.7).

`right`: for each example the right answers and the score of each; 1 is full marks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

Right = Mapping[str, float]


def credits(predicted: Sequence[str], right: Sequence[Right]) -> list[float]:
    """The score of each answer: 100 if it is right, 0 if it is wrong; where many people answered, a soft score between (VQA)."""
    return [100.0 * scores.get(answer, 0.0) for answer, scores in zip(predicted, right, strict=True)]


def constant_answer(right: Sequence[Right]) -> float:
    """The score, in percent, of the best constant answer: the one that, given to all of these questions, scores most. This is what
    guessing achieves."""
    credit: defaultdict[str, float] = defaultdict(float)
    for scores in right:
        for answer, score in scores.items():
            credit[answer] += score
    return 100 * max(credit.values()) / len(right)
