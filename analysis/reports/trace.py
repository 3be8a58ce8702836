"""The origin of a table's cell: the runs behind it, their files, and the command that repeats each run.

`python -m analysis trace length prompt.length=64 task=micro_grounding split=test` prints it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.records.frame import Sweep
from analysis.records.run_table import run_table
from analysis.records.stored import evaluation_files
from analysis.statistics.cell_statistics import mean_columns
from analysis.statistics.samples import Group, groups, plain
from mmprompt.runs.files import StoreError
from mmprompt.runs.overrides import as_text
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Deployment
from mmprompt.settings.spelling import nearest


def trace(sweep: Sweep, store: Store, words: Sequence[str]) -> str:
    """Describes every cell that these KEY=VALUE words select.

    Keys are the sweep's axes, task and split. Without a split, all splits that tables show are selected. Raises StoreError for a
    key that is no axis, and if no cell matches.
    """
    selection = dict(_key_and_value(sweep, word) for word in words)
    cells = [group for group in groups(sweep) if _matches(sweep, group, selection)]
    if not cells:
        raise StoreError(f"{sweep.manifest['sweep']} has no cell with {' '.join(words)}")
    table = run_table(sweep, store)
    points = {point["run"]: point for point in reversed(sweep.manifest["points"])}
    return "\n\n".join("\n".join(_cell(group, table, points, store)) for group in cells)


def _key_and_value(sweep: Sweep, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    keys = [axis for axis in sweep.manifest["axes"] if axis not in ("task", "seed")] + ["task", "split"]
    if not equals:
        raise StoreError(f"{word!r} is not KEY=VALUE; keys are {', '.join(keys)}")
    if key not in keys:
        raise StoreError(
            f"{key} is no axis of {sweep.manifest['sweep']}{nearest(key, keys)}; there are {', '.join(keys)}"
        )
    return key, value


def _matches(sweep: Sweep, group: Group, selection: Mapping[str, str]) -> bool:
    rows = group.rows
    is_shown = "split" in selection or (group.label["task"], group.label["split"]) in sweep.shown
    return is_shown and all(
        value in (as_text(plain(rows[key].iloc[0])), str(rows[key].iloc[0])) for key, value in selection.items()
    )


def _cell(group: Group, table: pd.DataFrame, points: Mapping[str, Any], store: Store) -> Iterator[str]:
    yield f"{group.sweep.manifest['sweep']}: {group.words}, {group.metric}"
    mean = mean_columns(group, "value")
    if mean["n"]:
        yield f"  mean of {mean['n']} seeds {mean['value']:.6g}" + _halves(mean)
    for index in group.rows.index:
        row = table.loc[index]
        yield from (f"  {line}" for line in _run(row, points[row["run"]], store))


def _halves(mean: Mapping[str, Any]) -> str:
    """The parts of a cell's interval in words."""
    if math.isnan(mean["half_seeds"]):
        return "; one seed has no interval"
    seeds = f"{mean['half_seeds']:.6g} over seeds"
    if math.isnan(mean["half_examples"]):
        return f" ± {seeds} (scores of single examples are not available)"
    both = math.hypot(mean["half_seeds"], mean["half_examples"])
    return f" ± {both:.6g} = sqrt(square of {seeds} + square of {mean['half_examples']:.6g} over {mean['examples']:,.0f} examples)"


def _run(row: pd.Series, point: Mapping[str, Any], store: Store) -> Iterator[str]:
    """Yields the lines about one run on one split."""
    folder = store.run(row["run"])
    yield f"seed {row['seed']}: {_value(row)}, run {row['run']}"
    if pd.isna(row["attempt"]):
        return
    commit = row["commit"] if isinstance(row["commit"], str) else None  # NaN if only other runs recorded theirs
    is_dirty = not pd.isna(row["dirty"]) and bool(row["dirty"])
    changes = " with uncommitted changes" if is_dirty else ""
    yield f"  made     attempt {int(row['attempt'])}, {commit or 'an unknown commit'}{changes}, {row['device']}"
    if not math.isnan(row["examples"]):
        of_attempt, later = evaluation_files(folder, int(row["attempt"]), row["evaluation"])
        scores = (of_attempt if of_attempt.exists() else later).with_suffix(".npy")
        yield f"  scores   {scores} ({int(row['examples']):,} examples)"
    yield f"  settings {store.root / row['config']}"
    yield f"  record   {store.root / row['record'] if row['record'] else 'none'}"
    yield f"  weights  sha256 {row['weights'] or 'not recorded'}"
    yield f"  again    {command_to_repeat(point, commit)}"


def _value(row: pd.Series) -> str:
    if isinstance(row["conflict"], str):
        return f"conflict: {row['conflict']}"
    return row["state"] if math.isnan(row["value"]) else f"{row['value']:.6g}"


def _decides_numbers(key: str) -> bool:
    """Whether a setting can change a run's numbers. Where it runs and how it is tracked cannot."""
    return key.split(".")[0] not in Deployment.model_fields or key in ("paths.backbone", "paths.data")


def command_to_repeat(point: Mapping[str, Any], commit: str | None) -> str:
    """The command that trains and evaluates a run again, in a separate store."""
    if "fixed" not in point:
        return "the manifest does not say what is fixed; launch the sweep again, which trains nothing that is done"
    settings = {**point["fixed"], **point["values"]}
    words = [f"{key}={as_text(value)}" for key, value in settings.items() if _decides_numbers(key)]
    line = shlex.join([".venv/bin/python", "-m", "mmprompt", *words, "paths.runs=again"])
    return f"git checkout {commit} && {line}" if commit else line
