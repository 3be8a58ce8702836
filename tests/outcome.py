"""What two launches of one sweep must have in common, whatever interrupted them: the tables, without notes on how runs went."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pandas as pd

from analysis.__main__ import main as analysis
from mmprompt.runs.store import Store

SPENT = re.compile(r"its runs took\s+\S+\s+device\s+hours\s+in\s+all,\s+failed\s+ones\s+included")
KILLED = re.compile(  # an attempt that evaluated has left no whole record, but evaluations that count
    r"(- |\s)some\s+evaluations\s+have\s+no\s+readable\s+W\\?&B\s+record;\s+their\s+values\s+are\s+from\s+their\s+files\.?\n?"
)
OF_A_SEARCH = "device_hours"  # in the name of a column: what a trial has taken, failed attempts included
OF_THE_WAY = ["attempt", "record"]  # of a run: which of its attempts published, and where that one's record is


def tables(store: Store, sweep: str, out: Path) -> dict[str, str]:
    """By name, what `python -m analysis tables SWEEP` writes. Empty where that fails."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = analysis(["tables", sweep, "--runs", str(store.root), "--out", str(out)])
    return {} if code else {file.name: same(file) for file in sorted((out / "tables").iterdir())}


def same(file: Path) -> str:
    """The file without what a disturbed launch may say differently: what it spent, and by which attempts."""
    if file.name.endswith(".runs.csv"):
        return pd.read_csv(file).drop(columns=OF_THE_WAY).to_csv(index=False)
    if file.name.startswith("search-") and file.suffix == ".csv":
        table = pd.read_csv(file)
        return table[[name for name in table if OF_A_SEARCH not in name]].to_csv(index=False)
    return KILLED.sub("", SPENT.sub("", file.read_text(encoding="utf-8")))
