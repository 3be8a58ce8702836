"""The measured time and memory of a sweep's rows, from its newest measurement, STORE/costs/NAME/N.json.

`python -m sweeps measure` makes measurements. Runs also record how long they took, but their machine may have done other work at
the same time. An interval over such numbers means nothing, so none is computed. The values here are medians over rounds in which
all rows of a task took turns on one device, with the lowest and the highest value, and ratios to the baseline within the same
rounds. Device hours are derived: the seconds of an update, times the updates of a run, times its devices. They exclude
validation and everything after training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.records.frame import Sweep, joined
from analysis.records.inventory import settings_of
from analysis.records.manifest import axis_value
from mmprompt.runs.attempt import seconds_at_work
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import is_of_evaluations
from mmprompt.runs.records import COSTS, CostRow, CostsRecord, DamagedError, read
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store

# A fact that a sweep may ask for (`facts:`) and that depends on a machine's other work -> the measured quantities shown for it
SHOWN: dict[str, tuple[str, ...]] = {
    "seconds": ("seconds_per_update",),
    "device_hours": ("seconds_per_update", "device_hours"),
    "device_hours_spent": (),  # a note gives their sum instead
    "seconds_per_100": ("seconds_per_100",),
    "peak_memory_mb": ("peak_memory_mb",),
}
NUMBERS = ("median", "lowest", "highest", "ratio", "ratio_lowest", "ratio_highest", "rounds")
RATIOS = NUMBERS[3:6]
QUIET = 0.5  # load besides the measurement's own, up to which a machine counts as idle
LISTED = 3  # number of runs or rows that a note names


@dataclass(frozen=True)
class Costs:
    """The newest measurement of a sweep.

    `frame` has a row per row label, task and quantity (of `SHOWN`, and the model's parameters). Columns: the labels, task,
    quantity, median, lowest, highest, ratio, ratio_lowest, ratio_highest (to the baseline, NaN without one), rounds, baseline
    (whether the row is the baseline), run. The frame is empty if nothing was measured.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]


def read_costs(store: Store, sweep: Sweep) -> Costs:
    """Reads the newest measurement of a sweep.

    The notes say how it was made and what is wrong with it, or that there is none although the sweep asks for such facts.
    """
    name, labels = sweep.manifest["sweep"], labels_of(sweep)
    empty = pd.DataFrame(columns=[*labels, "task", "quantity", *NUMBERS, "baseline", "run"])
    files = store.measurements(name)
    command = f"`make costs-{name}` measures it"
    if not files:
        unmeasured_facts = set(SHOWN).intersection(sweep.manifest["facts"]) - {"device_hours_spent"}
        return Costs(empty, (f"what its rows take was not measured; {command}",) if unmeasured_facts else ())
    file = files[max(files)]
    try:
        content = read(file, COSTS)
    except DamagedError as error:
        return Costs(empty, (f"{error}; {command} again",))
    rows = [] if content is None else list(_rows(content))
    if content is None or not rows:
        return Costs(empty, (f"{file} holds no measurement; {command} again",))
    values = pd.DataFrame([{axis: axis_value(row["values"], axis) for axis in sweep.manifest["axes"]} for row in rows])
    frame = pd.DataFrame([{key: value for key, value in row.items() if key != "values"} for row in rows])
    frame = frame.assign(**{label: joined(values, sweep.roles[label]) for label in labels})
    of_sweep = frame["run"].isin(sweep.frame["run"])
    notes = tuple(_notes(content, sorted(set(frame.loc[~of_sweep, "run"])), command))
    frame = frame.iloc[(~of_sweep).argsort(kind="stable")].drop_duplicates([*labels, "task", "quantity"]).sort_index()
    return Costs(frame[list(empty.columns)].reset_index(drop=True), notes)


def labels_of(sweep: Sweep) -> list[str]:
    """The columns that together identify a measured row: those of the runs' settings, without those of evaluations."""
    return [name for name, axes in sweep.roles.items() if not all(map(is_of_evaluations, axes))]


def _rows(content: CostsRecord) -> Iterator[dict[str, Any]]:
    for row in content["rows"]:
        labels = {key: row[key] for key in ("values", "task", "run", "baseline")}
        for quantity, measured in row["quantities"].items():
            yield labels | {"quantity": quantity} | {key: _number(measured[key]) for key in NUMBERS}  # type: ignore[literal-required]
        if "parameters" in row:  # older measurements do not have it
            size = dict.fromkeys(("median", "lowest", "highest"), float(row["parameters"]))
            yield labels | {"quantity": "parameters", "rounds": 1.0} | size | dict.fromkeys(RATIOS, math.nan)
        if (update := row["quantities"].get("seconds_per_update")) is not None:
            hours, base = _hours(row), math.nan if row["against"] is None else _hours(content["rows"][row["against"]])
            factors = {key: hours / base if key.startswith("ratio") else hours for key in NUMBERS if key != "rounds"}
            derived = {key: _number(update[key]) * factor for key, factor in factors.items()}  # type: ignore[literal-required]
            yield labels | {"quantity": "device_hours"} | derived | {"rounds": update["rounds"]}


def _hours(row: CostRow) -> float:
    """Device hours of a run whose updates take one second each."""
    return float(row["steps"] * row["devices"] / 3600)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _notes(content: CostsRecord, foreign_runs: Sequence[str], command: str) -> Iterator[str]:
    load, cores, commit = content["load"], content["cores"], str(content["commit"])[:10]
    dirty = " with uncommitted changes" if content["dirty"] else ""
    yield (
        f"costs were measured on {content['device']}, threads: {content['threads']}, torch {content['torch']}, rounds: "
        f"{content['rounds']}, at {content['when']}, commit {commit}{dirty}"
    )
    other_load = max(load["before"], load["after"] - content["threads"])
    if other_load > QUIET or content["others"]:
        others = f", {content['others']} other jobs of this store" if content["others"] else ""
        yield f"costs were measured on a machine at work: load {other_load:.1f} of {cores} cores beside the measurement{others}"
    if foreign_runs:
        unlisted = f" and {len(foreign_runs) - LISTED} more" if len(foreign_runs) > LISTED else ""
        listed = ", ".join(foreign_runs[:LISTED])
        yield f"costs were measured on runs that the sweep does not have now, {listed}{unlisted}; {command} again"
    if content["missing"]:
        rows = [
            " ".join(map(str, [row["task"], *row["values"].values()])) for row in content["missing"]
        ]  # the names at the time of the measurement
        unlisted = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
        yield f"costs of {', '.join(rows[:LISTED])}{unlisted} were not measured: no run of it was finished then; {command}"


def shown(facts: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (fact, quantity) for each quantity that these facts show, once, in the order of the facts."""
    fact_of: dict[str, str] = {}
    for fact in facts:
        for quantity in SHOWN.get(fact, ()):
            fact_of.setdefault(quantity, fact)
    return [(fact, quantity) for quantity, fact in fact_of.items()]


def spent_device_hours(store: Store, sweep: Sweep) -> str | None:
    """A sentence on the device hours that all runs of a sweep took, including failed attempts and later evaluations.

    None if no run has recorded any.
    """
    total = 0.0
    runs = sweep.frame.drop_duplicates("run")
    for run, published, hours in runs[["run", "attempt", "device_hours_spent"]].itertuples(index=False, name=None):
        folder = store.run(run)
        try:  # the run's own record counts everything until it was published; later attempts are added here
            later_attempts = [
                attempt for attempt in folder.readable_attempts() if pd.isna(published) or attempt.number > published
            ]
            seconds = [
                seconds_at_work([attempt]) * (attempt.job.get("gpus") or _threads(folder)) for attempt in later_attempts
            ]
        except StoreError:
            seconds = []
        total += sum(seconds) / 3600 + (0.0 if pd.isna(hours) else float(hours))
    return f"its runs took {total:.2g} device hours in all, failed ones included" if total else None


def _threads(folder: RunFolder) -> int:
    """The number of threads of a run. Raises StoreError if its settings cannot be read."""
    return int(settings_of(folder).get("threads", 1))
