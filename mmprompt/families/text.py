"""Normalised texts for comparisons: without punctuation, differences of case, and extra spaces."""

from __future__ import annotations

import string

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def without_punctuation(text: str) -> str:
    """The text without punctuation, its words separated by single spaces."""
    return " ".join(text.translate(WITHOUT_PUNCTUATION).split())


def normalised(text: str) -> str:
    """The text without punctuation and in lower case: the form in which captions are compared."""
    return without_punctuation(text).lower()
