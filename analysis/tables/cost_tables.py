"""Tables of measured costs: time and memory per row of a sweep, and the paper's Table 5 derived from them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pandas as pd

from analysis import names
from analysis.records.frame import Sweep
from analysis.statistics.costs import Costs, labels_of, shown
from analysis.tables.layout import NOTHING, Cell, Column, Table, digits_for_three, table

HEADS = {  # quantity -> the head of its columns
    "seconds_per_update": "Seconds per update",
    "device_hours": "Device-hours",
    "seconds_per_100": "Seconds per 100 answers",
    "peak_memory_mb": "Peak memory (MB)",
}
HOURS = "device_hours"  # the paper's GPU-hours
MEASURED = (
    "Median (lowest to highest) over rounds in which all rows of a task took turns on one device; ratio to the baseline within "
    "the same round. Peak memory is measured in a separate process."
)


def cost_tables(sweep: Sweep, costs: Costs) -> list[Table]:
    """Returns the tables of the measured quantities that the sweep asks for; empty if nothing was measured."""
    if not len(costs.frame):
        return []
    quantities = [quantity for _, quantity in shown(sweep.manifest["facts"])]
    tables = [measured(sweep, costs.frame, [one for one in quantities if one != HOURS])] if quantities else []
    return tables + ([hours(sweep, costs.frame)] if HOURS in quantities else [])


def measured(sweep: Sweep, frame: pd.DataFrame, quantities: list[str]) -> Table:
    """Returns a table with a row per task and row of the sweep: each quantity's median with its range, and its ratio to the
    baseline's."""
    stubs = labels_of(sweep)
    entries = []
    for row in _rows(frame[frame["quantity"].isin(quantities)]):
        labels = (names.task(row.task), *(names.value(stub, getattr(row, stub)) for stub in stubs))
        head = HEADS[row.quantity]
        entries.append((labels, Column("Median", head), _range(row.median, row.lowest, row.highest)))
        ratio = Cell(word="1") if row.baseline else _range(row.ratio, row.ratio_lowest, row.ratio_highest)
        entries.append((labels, Column("Ratio", head), ratio))
    columns = [Column(kind, HEADS[one]) for one in quantities for kind in ("Median", "Ratio")]
    heads = ["Task", *map(names.axis, stubs)]
    caption = "Costs of training and of answering."
    return table(caption, heads, entries, columns, name="measured", notes=(MEASURED,))


def hours(sweep: Sweep, frame: pd.DataFrame) -> Table:
    """Returns the paper's Table 5: a row per row of the sweep; for each task the device-hours of one training and their ratio
    to the baseline's."""
    stubs = labels_of(sweep)
    entries = []
    for row in _rows(frame[frame["quantity"] == HOURS]):
        labels = tuple(names.value(stub, getattr(row, stub)) for stub in stubs)
        group = names.task(row.task)
        entries.append((labels, Column("Hours", group), _range(row.median, row.lowest, row.highest)))
        ratio = Cell(word="1") if row.baseline else _range(row.ratio, row.ratio_lowest, row.ratio_highest)
        entries.append((labels, Column("Ratio", group), ratio))
    caption = "Device-hours of the updates of one training, and their ratio to the baseline's."
    notes = ("Seconds per update, measured in turns, times the updates of a run: without validation and loading.",)
    return table(caption, list(map(names.axis, stubs)), entries, name="hours", notes=notes)


def _range(value: float, lowest: float, highest: float) -> Cell:
    """A value with its range. A quantity that was measured once, such as peak memory, has none."""
    if pd.isna(value):
        return Cell(word=NOTHING)
    return (
        Cell(value, digits=digits_for_three(value))
        if lowest == highest
        else Cell(value, lowest, highest, is_range=True)
    )


def _rows(frame: pd.DataFrame) -> Iterator[SimpleNamespace]:
    return (SimpleNamespace(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records"))
