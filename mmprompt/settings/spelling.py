"""What a mistyped word may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean a or b?` for the candidates that resemble the word; empty if none does."""
    near = difflib.get_close_matches(word, sorted(set(candidates)), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
