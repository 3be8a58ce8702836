"""All runs of a store as one frame, whatever launched them, and the settings in which two runs differ."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records.frame import ABOUT
from analysis.records.stored import Unreadable, read, unfinished_state
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.deployment import store_folder
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import NEUTRAL, differing_keys, dotted, setting
from mmprompt.runs.records import RESULT
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store

AT_ONCE = 8  # runs that are read in parallel


def open_store(store: Store | Path | str | None = None) -> Store:
    """Returns the store in this folder; None: MMPROMPT_RUNS, or runs/ in the clone. Raises StoreError if there is none."""
    opened = store if isinstance(store, Store) else Store(store_folder(store))
    if not opened.root.is_dir():
        raise StoreError(
            f"there is no store {opened.root.absolute()}; `make sweep-length` makes one, and MMPROMPT_RUNS names another"
        )
    return opened


def runs(store: Store | Path | str | None = None) -> pd.DataFrame:
    """Returns a row per run that has a folder, indexed by its id.

    Columns: state (done, diverged, failed, not done, or damaged), every setting under its dotted key (NaN where a method does
    not have it), a column per split and metric (`test/acc@0.5`), then attempt, best_step, commit, dirty, device and the facts
    (`mmprompt.runs.comparison.FACTS`) that the run recorded.
    """
    opened = open_store(store)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        rows = list(pool.map(_row, map(opened.run, sorted(opened.runs()))))
    frame = pd.DataFrame(rows, columns=_column_order(rows))
    return frame.set_index("run")


def _column_order(rows: list[dict[str, Any]]) -> list[str]:
    """The columns in the order state, settings, results, facts; each kind in the order of first appearance."""
    first = ["run", "state"]
    last = [*ABOUT, *FACTS]
    keys = dict.fromkeys(key for row in rows for key in row if key not in (*first, *last))
    metrics = [key for key in keys if "/" in key]
    return [*first, *(key for key in keys if key not in metrics), *metrics, *last]


def _row(folder: RunFolder) -> dict[str, Any]:
    try:
        settings, result = settings_of(folder), read(folder.result_file, RESULT)
    except (Unreadable, StoreError):
        return {"run": folder.id, "state": "damaged"}
    row: dict[str, Any] = {
        "run": folder.id,
        "state": "done" if result is not None else unfinished_state(folder) or "not done",
    }
    row |= {
        key: value
        for key, value in {**settings, **_neutral_values(settings)}.items()
        if value is not None or "." in key
    }
    if result is not None:
        row |= result["metrics"] | {key: result.get(key) for key in (*ABOUT, *FACTS)}
    return row


def _neutral_values(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The neutral values of settings that were added after this run was launched.

    A section that another method needs, such as `lora`, does not count as a setting.
    """
    return {key: value for key, value in NEUTRAL.items() if key not in settings}


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """Returns a run's settings by dotted key, as they were at launch; empty if its folder has none.

    Raises StoreError if they do not match the run's id.
    """
    return dict(dotted(folder.settings())) if folder.config_file.exists() else {}


def diff(run: str, other: str, store: Store | Path | str | None = None) -> pd.DataFrame:
    """Returns the settings in which two runs differ, by dotted key, a column per run. `run`, `other`: beginnings of their ids.

    Raises StoreError for a run that does not exist, or whose settings were changed after launch.
    """
    opened = open_store(store)
    folders = [opened.find(run), opened.find(other)]
    ours, theirs = map(settings_of, folders)
    keys = differing_keys(ours, theirs)
    columns = {
        folder.id: [setting(settings, key) for key in keys]
        for folder, settings in zip(folders, (ours, theirs), strict=True)
    }
    return pd.DataFrame(columns, index=pd.Index(keys, name="setting"), dtype=object)
