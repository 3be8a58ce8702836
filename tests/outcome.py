"""The tables of a sweep without what depends on interruptions: two stores with the same runs must agree on the rest."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pandas as pd

from analysis.__main__ import main as analysis
from mmprompt.runs.store import Store

SPENT = re.compile(r"its runs took\s+\S+\s+device\s+hours\s+in\s+all,\s+failed\s+ones\s+included")
KILLED = re.compile(  # a killed attempt left no complete W&B record, but evaluations that count
    r"(- |\s)some\s+evaluations\s+have\s+no\s+readable\s+W\\?&B\s+record;\s+their\s+values\s+are\s+from\s+their\s+files\.?\n?"
)
OF_A_SEARCH = "device_hours"  # part of the names of columns that hold a trial's device hours, failed attempts included
OF_THE_WAY = ["attempt", "record"]  # columns that say which attempt of a run published, and where its W&B record is


def tables(store: Store, sweep: str, out: Path) -> dict[str, str]:
    """The files that `python -m analysis tables SWEEP` writes, by name; empty if that fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = analysis(["tables", sweep, "--runs", str(store.root), "--out", str(out)])
    return {} if code else {file.name: same(file) for file in sorted((out / "tables").iterdir())}


def same(file: Path) -> str:
    """The file without what interruptions may change: the device hours, and which attempts published."""
    if file.name.endswith(".runs.csv"):
        return pd.read_csv(file).drop(columns=OF_THE_WAY).to_csv(index=False)
    if file.name.startswith("search-") and file.suffix == ".csv":
        table = pd.read_csv(file)
        return table[[name for name in table if OF_A_SEARCH not in name]].to_csv(index=False)
    return KILLED.sub("", SPENT.sub("", file.read_text(encoding="utf-8")))
