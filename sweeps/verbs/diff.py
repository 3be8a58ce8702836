"""`python -m sweeps diff RUN [RUN]`: the settings, the checkpoint or the data set in which a run differs from a finished one.

A run's id is a hash of its settings, so a run is trained again exactly if a setting differs. Facts that are only recorded are not
part of the id. Nor are settings of `evaluation` and `attack`, which make other evaluations of the same run.
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
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.grid.launched import evaluations_of, find_run, label_of, readable, store_at

MEANS = {
    "backbone.checksum": "another checkpoint",
    "task.data.fingerprint": "another data set",
    "training_version": "the same settings mean other numbers",
}
RECORDED = ("commit", "dirty", "code", "device", "threads")  # with a result, or with an attempt
# Keys of a manifest's points, and the configuration keys they stand for.
POINT = {"task": "task.name", "model": "model.name"}
AT_ONCE = 16  # runs that are read at the same time
WORD = re.compile(r'[^\s"]+')


@dataclass(frozen=True)
class KnownSettings:
    """What is known of a run's settings: all of config.json, or for a run without a folder what its sweep's manifest names."""

    folder: RunFolder
    settings: Mapping[str, Any]  # by dotted key
    is_whole: bool  # they are those of config.json


def diff(run: str, other: str | None, runs: Path) -> int:
    """Prints how the second of two runs differs from the first, or how a single run differs from the nearest finished run.

    Raises StoreError if the store has no such run.
    """
    store = store_at(runs)
    given, which = known_settings(store, named(store, run)), ""
    if other is not None:
        old, new = given, known_settings(store, named(store, other))
    else:
        nearest, finished = nearest_finished(store, given)
        if nearest is None:
            print(
                f"{_title(store, given)}\nno other run is finished in {store.root}: there is nothing to compare it with"
            )
            return 0
        old, new, which = nearest, given, f", the nearest of {finished} finished run{'s' if finished != 1 else ''}"
    if old.folder == new.folder:
        print(f"{_title(store, new)}\nis the same run")
        return 0
    keys = differing(old, new)
    print(f"{_title(store, new)}\ndiffers from\n{_title(store, old)}{which}, in")
    _lines({key: _change(key, old.settings, new.settings) for key in keys} or {"nothing that is known": ""})
    for known in (old, new):
        if not known.is_whole:
            print(f"{known.folder.id} was never begun: no more is known of it than its sweep's manifest says")
    _print_recorded(recorded(old.folder), recorded(new.folder))
    return 0


def named(store: Store, prefix: str) -> RunFolder:
    """The run whose id begins with `prefix`; it may be a run of a sweep that was never begun.

    Raises StoreError if there is no such run, or more than one.
    """
    if any(run.startswith(prefix) for run in store.runs()):
        return find_run(store, prefix)
    planned = {run for sweep in readable(store) for run in sweep.runs if run.startswith(prefix)}
    if len(planned) > 1:
        raise StoreError(f"{prefix!r} begins the ids of {len(planned)} runs that were never begun; give more of it")
    return store.run(planned.pop()) if planned else find_run(store, prefix)


def known_settings(store: Store, folder: RunFolder) -> KnownSettings:
    """The settings of a run, from config.json or else from a manifest. Raises DamagedError if config.json does not match the id."""
    settings = dict(dotted(folder.settings())) if folder.config_file.exists() else None
    return KnownSettings(folder, planned(store, folder.id) if settings is None else settings, settings is not None)


def settings_of(folder: RunFolder) -> dict[str, Any] | None:
    """The settings of a run by dotted key; None if config.json is missing or does not match the id."""
    with contextlib.suppress(DamagedError):
        return dict(dotted(folder.settings()))
    return None


def planned(store: Store, run: str) -> dict[str, Any]:
    """The settings that the newest sweep with this run names for it."""
    for sweep in readable(store):
        for point in sweep.manifest["points"]:
            if point["run"] == run:
                values = sweep.manifest.get("header", {}) | point["values"]
                return {POINT.get(key, key): value for key, value in values.items() if not is_of_evaluations(key)}
    return {}


def nearest_finished(store: Store, given: KnownSettings) -> tuple[KnownSettings | None, int]:
    """The finished run with the fewest differing settings, the newest of several such runs; and the number of finished runs."""
    others = sorted(store.runs() - {given.folder.id})

    def rank(runs: Sequence[str]) -> list[tuple[int, float, str]]:
        ranked = []
        for folder in map(store.run, runs):
            with contextlib.suppress(OSError):
                when = folder.result_file.stat().st_mtime
                settings = settings_of(folder)
                if settings is not None:
                    ranked.append((len(differing(KnownSettings(folder, settings, True), given)), -when, folder.id))
        return ranked

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ranked = [run for part in pool.map(rank, (others[i::AT_ONCE] for i in range(AT_ONCE))) for run in part]
    return known_settings(store, store.run(min(ranked)[2])) if ranked else None, len(ranked)


def differing(old: KnownSettings, new: KnownSettings) -> list[str]:
    """The keys whose values differ. If not all settings of both runs are known, only keys that are known of both."""
    keys = identity.differing_keys(old.settings, new.settings)
    if old.is_whole and new.is_whole:
        return keys
    return [
        key for key in keys if all(key in known.settings or (known.is_whole and key in NEUTRAL) for known in (old, new))
    ]


def recorded(folder: RunFolder) -> dict[str, Any]:
    """What was recorded with a run's result, or else with its newest attempt; empty if it has neither."""
    result, attempts = folder.result_if_readable(), list(folder.readable_attempts())
    jobs = [attempt.job for attempt in attempts if result is None or attempt.number == result["attempt"]][-1:]
    facts: dict[str, Any] = {**(jobs[0] if jobs else {}), **(result or {})}
    return {key: facts[key] for key in RECORDED if key in facts} | (jobs[0].get("versions", {}) if jobs else {})


def _print_recorded(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    changes = {key: f"{_text(old[key])} -> {_text(new[key])}" for key in old if key in new and old[key] != new[key]}
    if changes:
        print("and in what is recorded, but never makes it another run:")
        _lines(changes)


def _title(store: Store, known: KnownSettings) -> str:
    label = label_of(store, known.folder.id)
    try:
        result = known.folder.result()
        missing = known.folder.missing(evaluations_of(store, known.folder.id), result) if result else ()
    except DamagedError as error:
        return f"{known.folder.id}  {label}{' ' if label else ''}(damaged: {error})"
    state = "finished" if result else "not finished" if known.is_whole else "not begun"
    more = f", {len(missing)} evaluation{'s' if len(missing) != 1 else ''} to make" if missing else ""
    return f"{known.folder.id}  {label}{' ' if label else ''}({state}{more})"


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    before, after = (value if value is ABSENT else _text(value) for value in (setting(old, key), setting(new, key)))
    notes = [MEANS[key]] if key in MEANS else []
    if key in NEUTRAL and (key in old) != (key in new):
        notes.append(f"{_text(NEUTRAL[key])} is as it was before there was this key: no id and no config.json has it")
    return f"{before} -> {after}" + (f"  ({'; '.join(notes)})" if notes else "")


def _text(value: Any) -> str:
    """A value as exact JSON, but a plain word without quotes."""
    is_word = isinstance(value, str) and WORD.fullmatch(value) and value not in ("null", "true", "false")
    return value if is_word else json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _lines(changes: Mapping[str, str]) -> None:
    width = max(map(len, changes))
    for key, change in changes.items():
        print(f"  {key:<{width}}  {change}".rstrip())
