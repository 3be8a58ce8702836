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

from analysis.names import task

FILE = Path(__file__).with_name("published.csv")
COLUMN = {  # an axis of ours -> the column that holds it there
    "method": "method",
    "prompt.length": "prompt_length",
    "prompt.depth": "prompt_depth",
    "prompt.reparameterization": "reparameterization",
}
PICTURES = {  # of which values are not published
    "figure3": "neither its values nor its epsilon are published; its text says that prompt tuning loses less on every task",
    "figure4": "its values are not published; its text: prompt tuning is always faster, about twice as fast for the largest",
}
ROW = ["x", "task", "split", "metric", "value"]  # x: the value on the axis, with the size where there are several
ROW += ["size", "setting", "dataset"]  # what x and task are made of


@dataclass(frozen=True)
class Published:
    """One table or figure of the paper over the axis that a sweep compares."""

    place: str  # Table 3, Figure 2
    about: str  # whose values these are, in words
    axis: str  # of ours
    rows: pd.DataFrame  # the columns of ROW; in the paper's order


def published_values() -> pd.DataFrame:
    return pd.read_csv(FILE, dtype={"prompt_length": "Int64"}, keep_default_na=False, na_values=[""])


def published(manifest: Mapping[str, Any]) -> Iterator[Published]:
    """What the paper's table and figure that a sweep names say about its compared axis; for a user's axis, nothing.

    Of a table for several model sizes each value stands for one of them.
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
            about = f"OFA-{sizes}, one seed per value, {sources}"
            yield Published(f"{kind.capitalize()} {number}", about, axis, rows[ROW].reset_index(drop=True))


def unpublished(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What the paper shows without values, of what a sweep names."""
    for kind, number in (manifest["paper"] or {}).items():
        if f"{kind}{number}" in PICTURES:
            yield f"the paper's {kind.capitalize()} {number} stands nowhere here: {PICTURES[f'{kind}{number}']}"


def compared(manifest: Mapping[str, Any]) -> str:
    """The axis of ours that the paper may have too."""
    compare = manifest["compare"]
    return compare if isinstance(compare, str) else str(compare[0])
