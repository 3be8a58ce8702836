"""The tables of a sweep, made from its cells: their content, arrangement, captions and notes.

Rows are the values of the compared axis (and of any extra one), columns the tasks and their splits, as in the paper. If a row has
values along a further axis (`over`), these are the columns. If the sweep asks for it, there are tables of the share of a score
that is kept, the differences from the baseline, a trend, an average, and what runs took. The CSV has all splits. Nothing is
selected or estimated here. No cell is set in bold as the best on test: choosing and reporting on the same split overstates the
choice. The choice on validation is marked instead. `analysis.tables.markdown`, `analysis.tables.latex` and
`analysis.tables.terminal` write tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import names
from analysis.paper_values import Published
from analysis.records.frame import Sweep
from analysis.records.references import NO_REFERENCES, References
from analysis.statistics.cell_statistics import whole_state
from analysis.statistics.costs import Costs
from analysis.statistics.samples import SEEDS_ALONE
from analysis.tables.layout import NOTHING, Cell, Column, Row, Table, digits_for_three, table, transposed
from analysis.tables.table_notes import (
    EQUIVALENT,
    PERCENT_LEVEL,
    UNKNOWN,
    about,
    axis_words,
    baseline_words,
    covers_seeds_alone,
    detectable_notes,
    limit_note,
    listed,
    mark_notes,
    of_n,
    primary_cells,
    records,
    reference_notes,
    row_names,
    score_notes,
    shown_cells,
    simultaneous,
    split_words,
    state_notes,
    stub_heads,
    value_name,
    verdict_notes,
)

INTERVAL = f"mean ± half-width of the {PERCENT_LEVEL} interval"
PARAMETERS = "trainable_parameters"  # the same for all tasks of a row
MARKS = {"equivalent": EQUIVALENT, "not known": UNKNOWN}  # verdict -> its mark; a significant difference has none
NONE = pd.DataFrame()


def ours(
    sweep: Sweep,
    cells: pd.DataFrame,
    facts: pd.DataFrame,
    trends: pd.DataFrame = NONE,
    averages: pd.DataFrame = NONE,
    detectable: pd.DataFrame = NONE,
    extra: Sequence[Table] = (),
    references: References = NO_REFERENCES,
) -> list[Table]:
    """Returns the tables of a sweep: scores, the share that is kept, differences from the baseline, trend, average, what runs took,
    and `extra`.

    The frames come from `analysis.statistics.cell_statistics` and `analysis.statistics.summaries`; an empty one gives no
    table. `references` (`analysis.records.references`) are stated below the scores. If scores of single examples are not
    available, each table
    with intervals says that they cover seeds alone.
    """
    kept = sweep.manifest["kept_from"] is not None
    column = "kept_difference" if kept else "difference"
    all_tables = [comparison(sweep, cells, facts, detectable, references)]
    primary = primary_cells(sweep, cells)
    if kept:
        all_tables.append(shares(sweep, primary))
    if primary[column].notna().any():
        all_tables.append(differences(sweep, primary, column, detectable))
    if len(trends):
        all_tables.append(trend(sweep, trends))
    if len(averages):
        all_tables.append(average(sweep, averages))
    if covers_seeds_alone(primary):
        all_tables[1:] = [replace(made, notes=(*made.notes, SEEDS_ALONE)) for made in all_tables[1:]]
    if set(facts["metric"]) - {PARAMETERS}:
        all_tables.append(costs(sweep, facts))
    return [*all_tables, *extra]


# Tables


def comparison(
    sweep: Sweep,
    cells: pd.DataFrame,
    facts: pd.DataFrame,
    detectable: pd.DataFrame = NONE,
    references: References = NO_REFERENCES,
) -> Table:
    """The table of scores, with the number of trainable parameters of each row if runs recorded it."""
    shown = shown_cells(sweep, cells)
    scores = _arranged(sweep, shown, score)
    columns = scores.columns
    parameters = facts[facts["metric"] == PARAMETERS]
    if len(parameters):
        columns = (*columns, Column("parameters", "Trainable"))
        by_row = _by_row(sweep, parameters, _range)
        first = len(scores.stubs) - len(row_names(sweep))  # skips the task where it is a label
        rows = (
            Row(row.labels, (*row.cells, by_row.get(row.labels[first:], Cell(word=NOTHING)))) for row in scores.rows
        )
        scores = replace(scores, columns=columns, rows=tuple(rows))
    axes = f"{axis_words(sweep)}{f' and {names.in_sentence(names.axis(sweep.over))}' if sweep.over else ''}"
    caption = f"Scores by {axes} on {split_words(sweep)}: {INTERVAL}{of_n(scores.n, shown)}."
    notes = [*score_notes(sweep, shown), *reference_notes(sweep, references), *detectable_notes(sweep, detectable)]
    notes += state_notes(sweep)
    return _with(scores, caption, notes, sweep)


def shares(sweep: Sweep, cells: pd.DataFrame) -> Table:
    """The table of the share of its own score that a run keeps."""
    shown = shown_cells(sweep, _without_whole_score(sweep, cells))
    made = _arranged(sweep, shown, share)
    at = f"{names.in_sentence(names.axis(str(sweep.over)))} = {sweep.manifest['kept_from']:g}"
    caption = f"Share of its own score at {at} that a run keeps, in percent: {INTERVAL}{of_n(made.n, shown)}."
    nothing = [f"{NOTHING} nothing to keep."] if any(cell.word == NOTHING for cell in made.cells) else []
    notes = ["The score of guessing is not subtracted.", *nothing, *limit_note(shown, "kept_")]
    return _with(made, caption, notes, sweep, "kept")


def differences(sweep: Sweep, cells: pd.DataFrame, column: str, detectable: pd.DataFrame = NONE) -> Table:
    """The table of differences from the baseline. `column`: `difference` (scores) or `kept_difference` (shares)."""
    rows = cells if column == "difference" else _without_whole_score(sweep, cells)
    shown = shown_cells(sweep, rows[~rows["baseline"]])
    made = _arranged(sweep, shown, lambda row: difference(row, column))
    of = "Share kept" if column == "kept_difference" else "Score"
    caption = (
        f"{of} minus that of the baseline ({baseline_words(sweep)}), in points: {simultaneous(sweep, shown, column)}."
    )
    notes = [*mark_notes(sweep, shown, column), *detectable_notes(sweep, detectable)]
    return _with(made, caption, notes, sweep, "differences")


def trend(sweep: Sweep, trends: pd.DataFrame) -> Table:
    """The table of trends, with a row per task and split (and other label): the score against the logarithm of the axis."""
    axis = str(trends["axis"].iloc[0])
    others = [name for name in row_names(sweep) if name in trends]
    heads = [("slope", "per doubling", "Slope"), ("slope_p", "p", "Slope"), ("curvature", "", "Curvature")]
    heads += [("turning_point", "point", "Turning"), ("lack_of_fit_p", "p", "Lack of fit")]
    entries = []
    for row in records(shown_cells(sweep, trends).sort_values("place", kind="stable")):
        labels = (*(value_name(name, getattr(row, name)) for name in others), _task_words(sweep, row))
        for key, head, group in heads:
            entries.append((labels, Column(head, group), _trend_cell(row, key)))
    caption = (
        f"Trend over {names.in_sentence(names.axis(axis))}: change of the score in points per doubling, with its"
        f" {PERCENT_LEVEL} interval, and whether a straight line is enough."
    )
    notes = [
        "Slope and curvature (its change per doubling): contrasts of the rows' means on log2 of the axis, pooled variance.",
        "Turning point: the extreme of the fitted parabola, if it lies within the range of the axis. Lack of fit: p of the test for"
        " deviations from a straight line.",
    ]
    stubs = [*(names.axis(name) for name in others), "Task"]
    return _with(table("", stubs, entries, grouped=bool(others)), caption, notes, sweep, "trend")


def average(sweep: Sweep, averages: pd.DataFrame) -> Table:
    """The table of averages, with a row per row label. The values of a numeric axis are columns, as in the paper's Table 6."""
    labels = [name for name in row_names(sweep) if name in averages]
    entries = []
    for row in records(averages):
        label = tuple(value_name(name, getattr(row, name)) for name in labels)
        mean = Cell(row.value, row.lower, row.upper, int(row.n), int(row.n))
        difference = Cell(row.difference, row.difference_lower, row.difference_upper, signed=True)
        has_difference = not row.baseline and not math.isnan(row.difference)  # the baseline may lack a task
        entries += [
            (label, Column("Average score"), mean if row.n else Cell(word="missing")),
            (
                label,
                Column("Difference"),
                _marked(difference, row.difference_verdict) if has_difference else Cell(word=NOTHING),
            ),
            (label, Column("Better (%)"), Cell(word=NOTHING) if row.baseline else _plain(100 * row.better, 0)),
        ]
    made = table("", [names.axis(name) for name in labels], entries, grouped=len(labels) > 1)
    if len(labels) == 1 and pd.api.types.is_numeric_dtype(averages[labels[0]]):
        made = transposed(made, "")
    tasks, rules = int(averages["tasks"].max()), ", ".join(averages["rule"].unique())
    task_list = listed([names.task(task) for task in sweep.tasks])
    caption = f"Average over {tasks} tasks ({rules}): {INTERVAL}{of_n(made.n, averages)}."
    notes = [
        f"Tasks: {task_list}. Difference: from the baseline ({baseline_words(sweep)}). Better: share of pairs of a task and a seed"
        " in which the row's score is above the baseline's, ties as half.",
        *verdict_notes(set(averages["difference_verdict"]), ""),
    ]
    return _with(made, caption, notes, sweep, "average")


def costs(sweep: Sweep, facts: pd.DataFrame) -> Table:
    """The table of what runs took, with a row per task and row label."""
    shown = facts[facts["metric"] != PARAMETERS]
    entries = [
        ((names.task(row.task), *_row_labels(sweep, row)), Column(names.fact(row.metric, short=True)), _cost(row))
        for row in records(_ordered_by_task(shown))
    ]
    made = table("", ["Task", *stub_heads(sweep)], entries, grouped=True)
    caption = f"Costs of one training: mean{of_n(made.n, shown)}."
    notes = [f"{NOTHING} not recorded."] if any(cell.word == NOTHING for cell in made.cells) else []
    return _with(made, caption, notes, sweep, "cost")


def paper(published: Iterable[Published]) -> list[Table]:
    """The tables of the paper's own values, in its layout: a row per value of the axis, a column per data set, split and metric."""
    return [_published(part, at) for at, part in enumerate(published, start=1)]


def csv(cells: pd.DataFrame, facts: pd.DataFrame, measured: Costs) -> str:
    """Returns all columns and all splits as CSV, at full precision.

    Facts and measured costs are further metrics with an empty split. A measured cost has no interval, but a lowest and a highest
    value, and a ratio to the baseline.
    """
    parts = [cells, *([facts.drop(columns="done")] if len(facts) else [])]
    if len(measured.frame):
        names = {"quantity": "metric", "median": "value", "run": "runs"}
        parts.append(measured.frame.rename(columns=names).assign(split=""))
    return pd.concat(parts, ignore_index=True).to_csv(index=False)


def score(row: Any) -> Cell:
    """The cell of any row with value, lower, upper, n and planned: mean, interval and n, or why there is no value."""
    return _cell(row, "value", "*" if getattr(row, "chosen", False) and row.n else "")


def share(row: Any) -> Cell:
    """The cell of the share kept; a dash if there is nothing to keep."""
    return Cell(word=NOTHING) if row.n and not row.kept_n else _cell(row, "kept")


def difference(row: Any, column: str = "difference") -> Cell:
    """The cell of a difference with the mark of its verdict; a dash if the baseline is missing or has nothing to keep."""
    if row.n and not getattr(row, f"{column}_n"):
        return Cell(word=NOTHING)
    cell = _cell(row, column, signed=True)
    return cell if cell.word else _marked(cell, getattr(row, f"{column}_verdict"))


def _cell(row: Any, column: str, mark: str = "", signed: bool = False) -> Cell:
    prefix = "" if column == "value" else f"{column}_"
    n, base = int(getattr(row, f"{prefix}n")), Cell(note=getattr(row, "note", ""), key=getattr(row, "cell", ""))
    if getattr(row, "conflict", 0):
        return replace(base, word="conflict")
    if n == 0:
        counts = {state: getattr(row, state) for state in ("failed", "diverged")}
        lost = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return replace(base, word=whole_state(row) or (f"missing ({lost})" if lost else "missing"))
    value, lower, upper = (getattr(row, name) for name in (column, f"{prefix}lower", f"{prefix}upper"))
    numbers = {"value": value, "lower": lower, "upper": upper, "n": n, "planned": int(row.planned)}
    return replace(base, **numbers, signed=signed, mark=mark)


def _marked(cell: Cell, verdict: str) -> Cell:
    """The cell with the mark of this verdict. A difference without an interval is marked as not known."""
    mark = UNKNOWN if math.isnan(cell.lower) else MARKS.get(verdict, "")
    return replace(cell, mark=mark)


def _cost(row: Any) -> Cell:
    """The cell of a fact, with three significant digits."""
    if row.n == 0:
        return Cell(word=NOTHING) if row.done else _cell(row, "value")
    has_interval = row.lower < row.upper
    lower, upper = (row.lower, row.upper) if has_interval else (math.nan, math.nan)
    return Cell(row.value, lower, upper, int(row.n), int(row.planned), digits=digits_for_three(row.value))


def _plain(value: float, digits: int) -> Cell:
    return Cell(word=NOTHING) if math.isnan(value) else Cell(value, digits=digits)


def _range(rows: pd.DataFrame) -> Cell:
    """The cell of a number that all runs of a row should have in common; a range if they do not."""
    values = rows.loc[rows["n"] > 0, "value"]
    if not len(values):
        return Cell(word=NOTHING)
    if values.min() == values.max():
        return Cell(values.iloc[0], digits=0)
    return Cell(word=f"{values.min():,.0f} to {values.max():,.0f}")


def _trend_cell(row: Any, key: str) -> Cell:
    value = getattr(row, key)
    if math.isnan(value):
        return Cell(word=NOTHING)
    if key.endswith("_p"):
        return Cell(word=p_text(value))
    if key == "turning_point":
        return Cell(value, digits=0)
    return Cell(value, getattr(row, f"{key}_lower"), getattr(row, f"{key}_upper"), signed=True)


def p_text(p: float) -> str:
    """A p value with two significant digits; a very small one as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


# Rows and columns


def _row_labels(sweep: Sweep, row: Any) -> tuple[str, ...]:
    return tuple(value_name(name, getattr(row, name)) for name in row_names(sweep))


def _without_whole_score(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """All cells but those at the value where every run keeps all of its score."""
    return cells[cells[sweep.over] != sweep.manifest["kept_from"]]


def _ordered_by_task(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows ordered by task, tasks in the order of their first row."""
    return rows.iloc[rows["task"].map(list(rows["task"].unique()).index).argsort(kind="stable")]


def _arranged(sweep: Sweep, shown: pd.DataFrame, cell: Callable[[Any], Cell]) -> Table:
    """A table with a column per task and split, or per value of the sweep's axis `over`."""
    if sweep.over is not None:
        rows = shown.iloc[shown["place"].argsort(kind="stable")]
        group = names.axis(sweep.over)
        entries = [
            (
                (_task_words(sweep, row), *_row_labels(sweep, row)),
                Column(value_name(sweep.over, getattr(row, sweep.over)), group),
                cell(row),
            )
            for row in records(rows)
        ]
        return table("", ["Task", *stub_heads(sweep)], entries, grouped=True)
    heads = _heads(shown)
    entries = [(_row_labels(sweep, row), heads[row.task, row.split, row.metric], cell(row)) for row in records(shown)]
    return table("", stub_heads(sweep), entries, list(heads.values()), grouped=len(stub_heads(sweep)) > 1)


def _heads(shown: pd.DataFrame) -> dict[tuple[str, str, str], Column]:
    """The column of each task, split and metric: the task as its group; as its head the split or metric in which columns differ,
    the metric if there is only one."""
    order = shown["place"] + shown["metric"].map(names.metric_order)
    keys = shown.iloc[order.argsort(kind="stable")][["task", "split", "metric"]].drop_duplicates()
    splits, metrics = (keys.groupby("task")[what].nunique() for what in ("split", "metric"))
    heads = {}
    for task, split, metric in keys.itertuples(index=False, name=None):
        parts = [names.split(split, task)] if splits[task] > 1 else []
        if metrics[task] > 1 or not parts:
            parts.append(names.metric(metric, short=True))
        heads[task, split, metric] = Column(" ".join(parts), names.task(task))
    return heads


def _task_words(sweep: Sweep, row: Any) -> str:
    """The label of a row for a task and split: `Grounding, testA (Acc@0.5)`."""
    several = sum(task == row.task for task, _ in sweep.shown) > 1
    where = f", {names.split(row.split, row.task)}" if several else ""
    return f"{names.task(row.task)}{where} ({names.metric(row.metric, short=True)})"


def _by_row(sweep: Sweep, facts: pd.DataFrame, cell: Callable[[pd.DataFrame], Cell]) -> dict[tuple[str, ...], Cell]:
    labels = row_names(sweep)
    return {
        tuple(value_name(name, value) for name, value in zip(labels, label, strict=True)): cell(rows)
        for label, rows in facts.groupby(labels, sort=False)
    }


def _with(made: Table, caption: str, notes: Iterable[str], sweep: Sweep, name: str = "") -> Table:
    return replace(made, caption=caption, notes=tuple(notes), name=name, about=tuple(about(sweep)))


# The paper's values


def _published(part: Published, at: int) -> Table:
    rows = part.rows.assign(task=part.rows["dataset"])
    heads = _heads(rows.assign(place=range(len(rows))))
    sizes = rows["size"].nunique() > 1
    entries = []
    for row in records(rows):
        label = value_name(part.axis, row.setting)
        labels = (f"OFA-{row.size}", label) if sizes else (label,)
        digits = 1 if names.has_own_scale(row.metric) else 2
        entries.append((labels, heads[row.task, row.split, row.metric], Cell(row.value, digits=digits)))
    stubs = [*(["Size"] if sizes else []), names.axis(part.axis)]
    made = table(f"The paper's {part.place}: {part.about}.", stubs, entries, name=f"paper-{at}", grouped=sizes)
    if set(rows["metric"]) <= {"average", "gpu_hours"}:
        made = transposed(replace(made, columns=tuple(Column(column.group) for column in made.columns)), "")
    return made
