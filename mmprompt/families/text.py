"""Texts compared without what does not count: punctuation, case, spaces."""

from __future__ import annotations

import string

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_punctuation(text: str) -> str:
    """Without punctuation."""
    return " ".join(text.translate(WITHOUT_PUNCTUATION).split())


def normalised(text: str) -> str:
    """As captions are compared."""
    return without_punctuation(text).lower()
