"""The paper's own numbers (arXiv 2208.02532), for a panel of their own: other data, another model size, one seed.

`published.csv` holds the values of the paper's tables as printed, and those of Figure 2 as read off the plot; its last
column says which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

FILE = Path(__file__).with_name("published.csv")
COLUMN = {  # an axis of ours -> the column that holds it there
    "method": "method",
    "prompt.length": "prompt_length",
    "prompt.depth": "prompt_depth",
    "prompt.reparameterization": "reparameterization",
}
NAME = {
    "refcoco": "RefCOCO",
    "refcoco_plus": "RefCOCO+",
    "refcocog": "RefCOCOg",
    "snli_ve": "SNLI-VE",
    "coco_caption": "COCO Captions",
    "vqa": "VQA",
    "average": "average score",
}


@dataclass(frozen=True)
class Published:
    """One table or figure of the paper over the axis that a sweep compares."""

    place: str  # Table 3, Figure 2
    about: str  # whose values these are, in words
    rows: pd.DataFrame  # x, task, split, metric, value; in the paper's order


def published_values() -> pd.DataFrame:
    return pd.read_csv(FILE, dtype={"prompt_length": "Int64"}, keep_default_na=False, na_values=[""])


def published(manifest: Mapping[str, Any]) -> Iterator[Published]:
    """What the paper's table and figure that a sweep names say about its compared axis; for a user's axis, nothing."""
    if manifest["compare"] not in COLUMN:
        return
    values = published_values()
    for kind, number in (manifest["paper"] or {}).items():
        rows = values[values["table"] == f"{kind}{number}"].rename(columns={COLUMN[manifest["compare"]]: "x"})
        rows = rows[rows["x"].notna()].fillna({"split": ""})
        if len(rows):
            sizes, sources = " and ".join(rows["size"].unique()), "; ".join(rows["source"].unique())
            shown = rows[["x", "task", "split", "metric", "value"]].replace({"task": NAME})
            yield Published(f"{kind.capitalize()} {number}", f"OFA-{sizes}, one seed per value, {sources}", shown)
