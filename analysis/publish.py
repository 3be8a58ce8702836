"""`python -m analysis publish README.md docs/results-micro.md`: what documents say of results, written from the records.

A document has blocks between `<!-- results: WHAT -->` and `<!-- end of results -->`; what stands between is written anew, the
prose around stays. WHAT is `claims` or `claims SWEEP ...`, `made SWEEP ...`, or `table SWEEP KIND`, where KIND is what
`analysis.tables` calls it. Of every sweep that is named the tables, the runs behind them, their settings and the figure go
into docs/, so that a reader computes all of it again without a store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from mmprompt.files import StoreError

BEGIN, END = "<!-- results: {} -->", "<!-- end of results -->"
BLOCK = re.compile(r"(?P<begin><!-- results: (?P<what>[^>]*?) -->\n).*?(?P<end><!-- end of results -->)", re.DOTALL)


def blocks(text: str) -> Iterator[list[str]]:
    """The words of each block of a document."""
    for found in BLOCK.finditer(text):
        yield found["what"].split()


def filled(text: str, made: Callable[[list[str]], str], name: str) -> str:
    """The document with each block as `made` makes it of its words. Raises StoreError for a block without an end."""
    if text.count("<!-- results:") != len(list(blocks(text))):
        raise StoreError(f"{name}: a block that begins with <!-- results: WHAT --> has no {END}")
    return BLOCK.sub(lambda found: f"{found['begin']}{made(found['what'].split()).rstrip()}\n{found['end']}", text)
