"""Every run of a store, whatever sweep or search or hand made it; and in what two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.frame import ABOUT
from analysis.stored import Unreadable, read, unfinished
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.deployment import store_folder
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import NEUTRAL, differing_keys, dotted, setting
from mmprompt.runs.records import RESULT
from mmprompt.runs.store import RunFolder, Store

AT_ONCE = 8  # runs that are read side by side


def store_at(store: Store | Path | str | None = None) -> Store:
    """The store at this folder; None: MMPROMPT_RUNS, or runs/ in the clone. Raises StoreError if there is none."""
    found = store if isinstance(store, Store) else Store(store_folder(store))
    if not found.root.is_dir():
        raise StoreError(
            f"there is no store {found.root.absolute()}; `make sweep-length` makes one, and MMPROMPT_RUNS names another"
        )
    return found


def runs(store: Store | Path | str | None = None) -> pd.DataFrame:
    """A row per run that has a folder, indexed by its id.

    Columns: state (done, diverged, failed, not done, or damaged), every setting under its dotted key (NaN where a method does
    not have it), a column per split and metric (`test/acc@0.5`), and what a run records of itself: attempt, best_step, commit,
    dirty, device and the facts (`mmprompt.runs.comparison.FACTS`).
    """
    place = store_at(store)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(_row, map(place.run, sorted(place.runs()))))
    frame = pd.DataFrame(rows, columns=_ordered(rows))
    return frame.set_index("run")


def _ordered(rows: list[dict[str, Any]]) -> list[str]:
    """State, settings, results, facts: each kind in the order in which it first comes."""
    first = ["run", "state"]
    last = [*ABOUT, *FACTS]
    found = dict.fromkeys(key for row in rows for key in row if key not in (*first, *last))
    metrics = [key for key in found if "/" in key]
    return [*first, *(key for key in found if key not in metrics), *metrics, *last]


def _row(folder: RunFolder) -> dict[str, Any]:
    try:
        settings, result = settings_of(folder), read(folder.result_file, RESULT)
    except (Unreadable, StoreError):
        return {"run": folder.id, "state": "damaged"}
    row: dict[str, Any] = {
        "run": folder.id,
        "state": "done" if result is not None else unfinished(folder) or "not done",
    }
    row |= {key: value for key, value in {**settings, **_neutral(settings)}.items() if value is not None or "." in key}
    if result is not None:
        row |= result["metrics"] | {key: result.get(key) for key in (*ABOUT, *FACTS)}
    return row


def _neutral(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What settings leave out as it was added later, at its neutral value. A section is no setting: `lora` of another method."""
    return {key: value for key, value in NEUTRAL.items() if key not in settings}


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """By dotted key, as they were frozen; empty for a folder without them. Raises StoreError if they are not those of its id."""
    return dict(dotted(folder.settings())) if folder.config_file.exists() else {}


def diff(run: str, other: str, store: Store | Path | str | None = None) -> pd.DataFrame:
    """The settings in which two runs differ, by dotted key: a column per run. `run`, `other`: beginnings of their ids.

    Raises StoreError for a run that is not there, or whose settings were changed after launch.
    """
    place = store_at(store)
    folders = [place.find(run), place.find(other)]
    ours, theirs = map(settings_of, folders)
    keys = differing_keys(ours, theirs)
    columns = {
        folder.id: [setting(one, key) for key in keys] for folder, one in zip(folders, (ours, theirs), strict=True)
    }
    return pd.DataFrame(columns, index=pd.Index(keys, name="setting"), dtype=object)
