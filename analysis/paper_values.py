"""The paper's own numbers (arXiv 2208.02532), for separate tables and figures: other data, another model size, one seed.

`published.csv` holds the values of the paper's tables as printed, and those of Figure 2 as read from the plot; its last column
names the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.names import task

FILE = Path(__file__).with_name("published.csv")
COLUMN = {  # our axis -> the column of published.csv
    "method": "method",
    "prompt.length": "prompt_length",
    "prompt.depth": "prompt_depth",
    "prompt.reparameterization": "reparameterization",
}
PICTURES = {  # figures whose values are not published
    "figure3": "neither its values nor its epsilon are published; its text says that prompt tuning loses less on every task",
    "figure4": "its values are not published; its text: prompt tuning is always faster, about twice as fast for the largest",
}
ROW = ["x", "task", "split", "metric", "value"]  # x: the value on the axis, with the model's size if there are several
ROW += ["size", "setting", "dataset"]  # the parts of x, and the task as the paper names it


@dataclass(frozen=True)
class Published:
    """One table or figure of the paper over the axis that a sweep compares."""

    place: str  # Table 3, Figure 2
    about: str  # model size, seeds and source, in words
    axis: str  # our axis
    rows: pd.DataFrame  # the columns of ROW, in the paper's order


def published_values() -> pd.DataFrame:
    """Returns all values in published.csv."""
    return pd.read_csv(FILE, dtype={"prompt_length": "Int64"}, keep_default_na=False, na_values=[""])


def published(manifest: Mapping[str, Any]) -> Iterator[Published]:
    """Yields the values on the compared axis from the paper's table and figure that a sweep names; none for a user's own axis.

    In a table with several model sizes, each value on the axis stands for one of them.
    """
    axis = compared(manifest)
    if axis not in COLUMN:
        return
    values = published_values()
    for kind, number in (manifest["paper"] or {}).items():
        rows = values[values["table"] == f"{kind}{number}"].rename(columns={COLUMN[axis]: "x"})
        rows = rows[rows["x"].notna()].fillna({"split": ""})
        if len(rows):
            sizes, sources = " and ".join(rows["size"].unique()), "; ".join(rows["source"].unique())
            rows = rows.assign(setting=rows["x"], dataset=rows["task"], task=rows["task"].map(task))
            if rows["size"].nunique() > 1:
                rows = rows.assign(x=rows["size"] + " " + rows["x"].astype(str))
            source = f"OFA-{sizes}, one seed per value, {sources}"
            yield Published(f"{kind.capitalize()} {number}", source, axis, rows[ROW].reset_index(drop=True))


def unpublished(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence for each figure that a sweep names and whose values the paper does not publish."""
    for kind, number in (manifest["paper"] or {}).items():
        if f"{kind}{number}" in PICTURES:
            yield f"the paper's {kind.capitalize()} {number} stands nowhere here: {PICTURES[f'{kind}{number}']}"


def compared(manifest: Mapping[str, Any]) -> str:
    """Our compared axis, which the paper may have too."""
    compare = manifest["compare"]
    return compare if isinstance(compare, str) else str(compare[0])
