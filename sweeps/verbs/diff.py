"""`python -m sweeps diff RUN [RUN]`: which setting, checkpoint or data set makes a run another than one that is finished.

A run's id is a hash of its settings, so what differs in them is why it runs again. What is only recorded never is, nor is what
its weights are asked: settings of `evaluation` and `attack` make other evaluations of the same run.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmprompt.runs import identity
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import ABSENT, NEUTRAL, dotted, is_of_evaluations, setting
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import RunFolder, Store
from sweeps.grid.launched import evaluations_of, find_run, label_of, readable, store_at

MEANS = {
    "backbone.checksum": "another checkpoint",
    "task.data.fingerprint": "another data set",
    "training_version": "the same settings mean other numbers",
}
RECORDED = ("commit", "dirty", "code", "device", "threads")  # with a result, or with an attempt
POINT = {"task": "task.name", "model": "model.name"}  # what a manifest calls them
AT_ONCE = 16  # runs that are looked at together
WORD = re.compile(r'[^\s"]+')


@dataclass(frozen=True)
class Known:
    """The settings of a run by dotted key, as config.json has them; of one that was never created, what a manifest says."""

    folder: RunFolder
    settings: Mapping[str, Any]
    is_whole: bool


def diff(run: str, other: str | None, runs: Path) -> int:
    """Prints how the second of two runs differs from the first, or how one differs from the nearest finished run.

    Raises StoreError for a run that is not there.
    """
    store = store_at(runs)
    mine, which = known(store, named(store, run)), ""
    if other is not None:
        old, new = mine, known(store, named(store, other))
    else:
        nearest, finished = nearest_finished(store, mine)
        if nearest is None:
            print(
                f"{_title(store, mine)}\nno other run is finished in {store.root}: there is nothing to compare it with"
            )
            return 0
        old, new, which = nearest, mine, f", the nearest of {finished} finished run{'s' if finished != 1 else ''}"
    if old.folder == new.folder:
        print(f"{_title(store, new)}\nis the same run")
        return 0
    keys = differing(old, new)
    print(f"{_title(store, new)}\ndiffers from\n{_title(store, old)}{which}, in")
    _lines({key: _change(key, old.settings, new.settings) for key in keys} or {"nothing that is known": ""})
    for one in (old, new):
        if not one.is_whole:
            print(f"{one.folder.id} was never begun: no more is known of it than its sweep's manifest says")
    _print_recorded(recorded(old.folder), recorded(new.folder))
    return 0


def named(store: Store, prefix: str) -> RunFolder:
    """The run whose id begins so; also one that was never begun, if a sweep has it. Raises StoreError."""
    if any(run.startswith(prefix) for run in store.runs()):
        return find_run(store, prefix)
    planned = {run for one in readable(store) for run in one.runs if run.startswith(prefix)}
    if len(planned) > 1:
        raise StoreError(f"{prefix!r} begins the ids of {len(planned)} runs that were never begun; give more of it")
    return store.run(planned.pop()) if planned else find_run(store, prefix)


def known(store: Store, folder: RunFolder) -> Known:
    """Raises DamagedError if its settings are not those of its id."""
    settings = dict(dotted(folder.settings())) if folder.config_file.exists() else None
    return Known(folder, planned(store, folder.id) if settings is None else settings, settings is not None)


def settings_of(folder: RunFolder) -> dict[str, Any] | None:
    """None if they are not there, or are not those of its id."""
    with contextlib.suppress(DamagedError):
        return dict(dotted(folder.settings()))
    return None


def planned(store: Store, run: str) -> dict[str, Any]:
    """What the newest sweep that has this run says of its settings."""
    for one in readable(store):
        for point in one.manifest["points"]:
            if point["run"] == run:
                said = one.manifest.get("header", {}) | point["values"]
                return {POINT.get(key, key): value for key, value in said.items() if not is_of_evaluations(key)}
    return {}


def nearest_finished(store: Store, mine: Known) -> tuple[Known | None, int]:
    """The finished run with the fewest other settings, of equals the newest; and how many are finished."""
    others = sorted(store.runs() - {mine.folder.id})

    def some(runs: Sequence[str]) -> list[tuple[int, float, str]]:
        found = []
        for folder in map(store.run, runs):
            with contextlib.suppress(OSError):
                when = folder.result_file.stat().st_mtime
                settings = settings_of(folder)
                if settings is not None:
                    found.append((len(differing(Known(folder, settings, True), mine)), -when, folder.id))
        return found

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = [one for part in pool.map(some, (others[i::AT_ONCE] for i in range(AT_ONCE))) for one in part]
    return known(store, store.run(min(found)[2])) if found else None, len(found)


def differing(old: Known, new: Known) -> list[str]:
    """The keys whose values differ; where not all are known, of those that are known of both."""
    keys = identity.differing_keys(old.settings, new.settings)
    if old.is_whole and new.is_whole:
        return keys
    return [key for key in keys if all(key in one.settings or (one.is_whole and key in NEUTRAL) for one in (old, new))]


def recorded(folder: RunFolder) -> dict[str, Any]:
    """How a run was made: of its result, else of its newest attempt; nothing if there is neither."""
    result, attempts = folder.result_if_readable(), list(folder.readable_attempts())
    jobs = [attempt.job for attempt in attempts if result is None or attempt.number == result["attempt"]][-1:]
    said: dict[str, Any] = {**(jobs[0] if jobs else {}), **(result or {})}
    return {key: said[key] for key in RECORDED if key in said} | (jobs[0].get("versions", {}) if jobs else {})


def _print_recorded(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changes = {key: f"{_text(old[key])} -> {_text(new[key])}" for key in old if key in new and old[key] != new[key]}
    if changes:
        print("and in what is recorded, but never makes it another run:")
        _lines(changes)


def _title(store: Store, one: Known) -> str:
    label = label_of(store, one.folder.id)
    try:
        result = one.folder.result()
        missing = one.folder.missing(evaluations_of(store, one.folder.id), result) if result else ()
    except DamagedError as error:
        return f"{one.folder.id}  {label}{' ' if label else ''}(damaged: {error})"
    state = "finished" if result else "not finished" if one.is_whole else "not begun"
    more = f", {len(missing)} evaluation{'s' if len(missing) != 1 else ''} to make" if missing else ""
    return f"{one.folder.id}  {label}{' ' if label else ''}({state}{more})"


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = (one if one is ABSENT else _text(one) for one in (setting(old, key), setting(new, key)))
    notes = [MEANS[key]] if key in MEANS else []
    if key in NEUTRAL and (key in old) != (key in new):
        notes.append(f"{_text(NEUTRAL[key])} is as it was before there was this key: no id and no config.json has it")
    return f"{before} -> {after}" + (f"  ({'; '.join(notes)})" if notes else "")


def _text(value: Any) -> str:
    """Exact; a word without quotes."""
    is_word = isinstance(value, str) and WORD.fullmatch(value) and value not in ("null", "true", "false")
    return value if is_word else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _lines(changes: Mapping[str, str]) -> None:
    width = max(map(len, changes))
    for key, change in changes.items():
        print(f"  {key:<{width}}  {change}".rstrip())
