"""What the rows of a sweep take, from its newest measurement, STORE/costs/NAME/N.json (`python -m sweeps measure`).

Runs record how long they took as well, beside whatever else their machine did at that moment: an interval over such numbers
says nothing, and none is made. Here are medians over rounds in which all rows of a task took turns on one device, with the
lowest and the highest, and ratios to the baseline within the same rounds. Device hours are derived: an update's seconds, times
the updates of a run, times its devices; validation and what comes after training are not in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.frame import Sweep, joined
from analysis.inventory import settings_of
from analysis.manifest import axis_value
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import is_of_evaluations
from mmprompt.runs.records import COSTS, CostRow, CostsRecord, DamagedError, read
from mmprompt.runs.store import RunFolder, Store, seconds_at_work

# What a sweep may ask for (`facts:`) that depends on what else a machine does -> the quantities that are shown for it.
SHOWN: dict[str, tuple[str, ...]] = {
    "seconds": ("seconds_per_update",),
    "device_hours": ("seconds_per_update", "device_hours"),
    "device_hours_spent": (),  # a sentence says their sum
    "seconds_per_100": ("seconds_per_100",),
    "peak_memory_mb": ("peak_memory_mb",),
}
NUMBERS = ("median", "lowest", "highest", "ratio", "ratio_lowest", "ratio_highest", "rounds")
RATIOS = NUMBERS[3:6]
QUIET = 0.5  # load beside the measurement up to which a machine is said to do nothing else
LISTED = 3  # runs, or rows, that a note names


@dataclass(frozen=True)
class Costs:
    """`frame` has a row per row label, task and quantity (of `SHOWN`, and the model's parameters): the labels, task, quantity,
    median, lowest, highest, ratio, ratio_lowest, ratio_highest (to the baseline's, NaN without one), rounds, baseline (whether it
    is the baseline), run. Empty where nothing was measured."""

    frame: pd.DataFrame
    notes: tuple[str, ...]


def read_costs(store: Store, sweep: Sweep) -> Costs:
    """The newest measurement of a sweep. What is to be known of it, and that there is none where the sweep asks for such facts, is
    in the notes."""
    name, labels = sweep.manifest["sweep"], labels_of(sweep)
    empty = pd.DataFrame(columns=[*labels, "task", "quantity", *NUMBERS, "baseline", "run"])
    files = store.measurements(name)
    command = f"`make costs-{name}` measures it"
    if not files:
        is_asked = set(SHOWN).intersection(sweep.manifest["facts"]) - {"device_hours_spent"}
        return Costs(empty, (f"what its rows take was not measured; {command}",) if is_asked else ())
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
    """The columns that together name a row: those of settings that runs have, not of what their weights are asked."""
    return [name for name, axes in sweep.roles.items() if not all(map(is_of_evaluations, axes))]


def _rows(content: CostsRecord) -> Iterator[dict[str, Any]]:
    for row in content["rows"]:
        about = {key: row[key] for key in ("values", "task", "run", "baseline")}
        for quantity, said in row["quantities"].items():
            yield about | {"quantity": quantity} | {key: _number(said[key]) for key in NUMBERS}  # type: ignore[literal-required]
        if "parameters" in row:  # not in measurements of earlier days
            size = dict.fromkeys(("median", "lowest", "highest"), float(row["parameters"]))
            yield about | {"quantity": "parameters", "rounds": 1.0} | size | dict.fromkeys(RATIOS, math.nan)
        if (update := row["quantities"].get("seconds_per_update")) is not None:
            hours, base = _hours(row), math.nan if row["against"] is None else _hours(content["rows"][row["against"]])
            factors = {key: hours / base if key.startswith("ratio") else hours for key in NUMBERS if key != "rounds"}
            derived = {key: _number(update[key]) * factor for key, factor in factors.items()}  # type: ignore[literal-required]
            yield about | {"quantity": "device_hours"} | derived | {"rounds": update["rounds"]}


def _hours(row: CostRow) -> float:
    """Device hours of a run whose updates take a second each."""
    return float(row["steps"] * row["devices"] / 3600)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _notes(content: CostsRecord, strangers: Sequence[str], command: str) -> Iterator[str]:
    load, cores, commit = content["load"], content["cores"], str(content["commit"])[:10]
    dirty = " with uncommitted changes" if content["dirty"] else ""
    yield (
        f"costs were measured on {content['device']}, threads: {content['threads']}, torch {content['torch']}, rounds: "
        f"{content['rounds']}, at {content['when']}, commit {commit}{dirty}"
    )
    beside = max(load["before"], load["after"] - content["threads"])
    if beside > QUIET or content["others"]:
        others = f", {content['others']} other jobs of this store" if content["others"] else ""
        yield f"costs were measured on a machine at work: load {beside:.1f} of {cores} cores beside the measurement{others}"
    if strangers:
        more = f" and {len(strangers) - LISTED} more" if len(strangers) > LISTED else ""
        listed = ", ".join(strangers[:LISTED])
        yield f"costs were measured on runs that the sweep does not have now, {listed}{more}; {command} again"
    if content["missing"]:
        rows = [
            " ".join(map(str, [row["task"], *row["values"].values()])) for row in content["missing"]
        ]  # as they were called when it was measured
        more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
        yield f"costs of {', '.join(rows[:LISTED])}{more} were not measured: no run of it was finished then; {command}"


def shown(facts: Sequence[str]) -> list[tuple[str, str]]:
    """Each quantity once, with the fact for which it is shown, in the order of the facts."""
    found: dict[str, str] = {}
    for fact in facts:
        for quantity in SHOWN.get(fact, ()):
            found.setdefault(quantity, fact)
    return [(fact, quantity) for quantity, fact in found.items()]


def spent_in_all(store: Store, sweep: Sweep) -> str | None:
    """A sentence on the device hours that all runs of a sweep took, attempts that came to nothing and later evaluations included.
    None where no run has recorded any."""
    total = 0.0
    runs = sweep.frame.drop_duplicates("run")
    for run, published, hours in runs[["run", "attempt", "device_hours_spent"]].itertuples(index=False, name=None):
        folder = store.run(run)
        try:  # its own record counts all until it was published
            rest = [
                attempt for attempt in folder.readable_attempts() if pd.isna(published) or attempt.number > published
            ]
            seconds = [seconds_at_work([attempt]) * (attempt.job.get("gpus") or _threads(folder)) for attempt in rest]
        except StoreError:
            seconds = []
        total += sum(seconds) / 3600 + (0.0 if pd.isna(hours) else float(hours))
    return f"its runs took {total:.2g} device hours in all, failed ones included" if total else None


def _threads(folder: RunFolder) -> int:
    """Raises StoreError if its settings cannot be read."""
    return int(settings_of(folder).get("threads", 1))
