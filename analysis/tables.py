"""The tables of a sweep, from its cells: what is in them, how they are arranged, and what is said about them.

Rows are the compared axis (and any extra one), columns the tasks and their splits, as in the paper; of a sweep that follows
rows over an axis, columns are its values. Where the sweep asks for it: which share of a score is kept; how far rows are from
the baseline; a trend; an average; what runs took. All splits are in the CSV. Nothing is selected or estimated here. No cell
is set in bold as the best on test: choosing there and reporting there overstates the choice. What is marked is the choice on
validation. How a table is written down is for `analysis.markdown`, `analysis.latex` and `analysis.terminal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import names
from analysis.costs import Costs
from analysis.frame import Sweep
from analysis.layout import NOTHING, Cell, Column, Row, Table, table, three, turned
from analysis.paper_values import Published
from analysis.references import NO_REFERENCES, References
from analysis.samples import SEEDS_ALONE
from analysis.statistics import whole_state
from analysis.table_notes import (
    EQUIVALENT,
    PERCENT_LEVEL,
    UNKNOWN,
    about,
    axis_words,
    baseline_words,
    covers_seeds_alone,
    detectable_notes,
    judged_cells,
    limit_note,
    listed,
    mark_notes,
    marks_said,
    of_n,
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
)

INTERVAL = f"mean ± half-width of the {PERCENT_LEVEL} interval"
PARAMETERS = "trainable_parameters"  # a row's, whatever the task
MARKS = {"equivalent": EQUIVALENT, "not known": UNKNOWN}  # verdict -> its mark; what is told apart has none
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
    """The tables that a sweep becomes: scores, the share that is kept, differences from the baseline, trend, average, what
    runs took, and `extra`. The frames are those of `analysis.statistics`; an empty one makes no table. `references`
    (`analysis.references`) stand below the scores. Where no scores of single examples are at hand, each that has intervals
    says that they cover seeds alone.
    """
    kept = sweep.manifest["kept_from"] is not None
    what = "kept_difference" if kept else "difference"
    made = [comparison(sweep, cells, facts, detectable, references)]
    judged = judged_cells(sweep, cells)
    if kept:
        made.append(shares(sweep, judged))
    if judged[what].notna().any():
        made.append(differences(sweep, judged, what, detectable))
    if len(trends):
        made.append(trend(sweep, trends))
    if len(averages):
        made.append(average(sweep, averages))
    if covers_seeds_alone(judged):
        made[1:] = [replace(one, notes=(*one.notes, SEEDS_ALONE)) for one in made[1:]]
    if set(facts["metric"]) - {PARAMETERS}:
        made.append(costs(sweep, facts))
    return [*made, *extra]


# Tables


def comparison(
    sweep: Sweep,
    cells: pd.DataFrame,
    facts: pd.DataFrame,
    detectable: pd.DataFrame = NONE,
    references: References = NO_REFERENCES,
) -> Table:
    shown = shown_cells(sweep, cells)
    scores = _arranged(sweep, shown, score)
    columns = scores.columns
    parameters = facts[facts["metric"] == PARAMETERS]
    if len(parameters):
        columns = (*columns, Column("parameters", "Trainable"))
        by_row = _by_row(sweep, parameters, _range)
        first = len(scores.stubs) - len(row_names(sweep))  # behind the task, where that is a label
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
    shown = shown_cells(sweep, _apart(sweep, cells))
    made = _arranged(sweep, shown, share)
    at = f"{names.in_sentence(names.axis(str(sweep.over)))} = {sweep.manifest['kept_from']:g}"
    caption = f"Share of its own score at {at} that a run keeps, in percent: {INTERVAL}{of_n(made.n, shown)}."
    nothing = [f"{NOTHING} nothing to keep."] if any(cell.word == NOTHING for cell in made.cells) else []
    notes = ["What guessing would score is not taken off.", *nothing, *limit_note(shown, "kept_")]
    return _with(made, caption, notes, sweep, "kept")


def differences(sweep: Sweep, cells: pd.DataFrame, what: str, detectable: pd.DataFrame = NONE) -> Table:
    """`what`: the column of the difference, of scores or of shares."""
    rows = cells if what == "difference" else _apart(sweep, cells)
    shown = shown_cells(sweep, rows[~rows["baseline"]])
    made = _arranged(sweep, shown, lambda row: difference(row, what))
    of = "Share kept" if what == "kept_difference" else "Score"
    caption = (
        f"{of} minus that of the baseline ({baseline_words(sweep)}), in points: {simultaneous(sweep, shown, what)}."
    )
    notes = [*mark_notes(sweep, shown, what), *detectable_notes(sweep, detectable)]
    return _with(made, caption, notes, sweep, "differences")


def trend(sweep: Sweep, trends: pd.DataFrame) -> Table:
    """A row per task and split (and other label): how the score goes with the logarithm of the axis."""
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
        "Turning point: where the fitted parabola has its extreme, if that lies in the range tried. Lack of fit: what a"
        " straight line leaves.",
    ]
    stubs = [*(names.axis(name) for name in others), "Task"]
    return _with(table("", stubs, entries, grouped=bool(others)), caption, notes, sweep, "trend")


def average(sweep: Sweep, averages: pd.DataFrame) -> Table:
    """A row per row label; of a numeric axis its values are the columns, as in the paper's Table 6."""
    labels = [name for name in row_names(sweep) if name in averages]
    entries = []
    for row in records(averages):
        label = tuple(value_name(name, getattr(row, name)) for name in labels)
        mean = Cell(row.value, row.lower, row.upper, int(row.n), int(row.n))
        against = Cell(row.difference, row.difference_lower, row.difference_upper, signed=True)
        is_known = not row.baseline and not math.isnan(row.difference)  # the baseline may be missing in a task
        entries += [
            (label, Column("Average score"), mean if row.n else Cell(word="missing")),
            (
                label,
                Column("Difference"),
                _marked(against, row.difference_verdict) if is_known else Cell(word=NOTHING),
            ),
            (label, Column("Better (%)"), Cell(word=NOTHING) if row.baseline else _plain(100 * row.better, 0)),
        ]
    made = table("", [names.axis(name) for name in labels], entries, grouped=len(labels) > 1)
    if len(labels) == 1 and pd.api.types.is_numeric_dtype(averages[labels[0]]):
        made = turned(made, "")
    tasks, rules = int(averages["tasks"].max()), ", ".join(averages["rule"].unique())
    of = listed([names.task(task) for task in sweep.tasks])
    caption = f"Average over {tasks} tasks ({rules}): {INTERVAL}{of_n(made.n, averages)}."
    notes = [
        f"Tasks: {of}. Difference: from the baseline ({baseline_words(sweep)}). Better: share of pairs of a task and a seed in"
        " which the row's score is above the baseline's, ties as half.",
        *marks_said(set(averages["difference_verdict"]), ""),
    ]
    return _with(made, caption, notes, sweep, "average")


def costs(sweep: Sweep, facts: pd.DataFrame) -> Table:
    """What runs took: a row per task and row label."""
    shown = facts[facts["metric"] != PARAMETERS]
    entries = [
        ((names.task(row.task), *_row_labels(sweep, row)), Column(names.fact(row.metric, short=True)), _cost(row))
        for row in records(_together(shown))
    ]
    made = table("", ["Task", *stub_heads(sweep)], entries, grouped=True)
    caption = f"What one training took: mean{of_n(made.n, shown)}."
    notes = [f"{NOTHING} not recorded."] if any(cell.word == NOTHING for cell in made.cells) else []
    return _with(made, caption, notes, sweep, "cost")


def paper(published: Iterable[Published]) -> list[Table]:
    """The paper's own values in its layout: a row per value of the axis, a column per data set, split and metric."""
    return [_published(part, at) for at, part in enumerate(published, start=1)]


def csv(cells: pd.DataFrame, facts: pd.DataFrame, measured: Costs) -> str:
    """Every column and every split, at full precision, and what runs took as further metrics, of no split; what was measured
    has no interval, but a lowest and a highest value, and a ratio to the baseline."""
    parts = [cells, *([facts.drop(columns="done")] if len(facts) else [])]
    if len(measured.frame):
        names = {"quantity": "metric", "median": "value", "run": "runs"}
        parts.append(measured.frame.rename(columns=names).assign(split=""))
    return pd.concat(parts, ignore_index=True).to_csv(index=False)


def score(row: Any) -> Cell:
    """Of any row with value, lower, upper, n and planned: mean, interval, n; why there is none."""
    return _cell(row, "value", "*" if getattr(row, "chosen", False) and row.n else "")


def share(row: Any) -> Cell:
    return Cell(word=NOTHING) if row.n and not row.kept_n else _cell(row, "kept")


def difference(row: Any, what: str = "difference") -> Cell:
    """With the mark of its verdict; a dash where the baseline is missing, or has nothing to keep."""
    if row.n and not getattr(row, f"{what}_n"):
        return Cell(word=NOTHING)
    cell = _cell(row, what, signed=True)
    return cell if cell.word else _marked(cell, getattr(row, f"{what}_verdict"))


def _cell(row: Any, what: str, mark: str = "", signed: bool = False) -> Cell:
    prefix = "" if what == "value" else f"{what}_"
    n, about = int(getattr(row, f"{prefix}n")), Cell(note=getattr(row, "note", ""), key=getattr(row, "cell", ""))
    if getattr(row, "conflict", 0):
        return replace(about, word="conflict")
    if n == 0:
        counts = {state: getattr(row, state) for state in ("failed", "diverged")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return replace(about, word=whole_state(row) or (f"missing ({said})" if said else "missing"))
    value, lower, upper = (getattr(row, name) for name in (what, f"{prefix}lower", f"{prefix}upper"))
    known = {"value": value, "lower": lower, "upper": upper, "n": n, "planned": int(row.planned)}
    return replace(about, **known, signed=signed, mark=mark)


def _marked(cell: Cell, verdict: str) -> Cell:
    """A difference without an interval is not known, whatever it says."""
    mark = UNKNOWN if math.isnan(cell.lower) else MARKS.get(verdict, "")
    return replace(cell, mark=mark)


def _cost(row: Any) -> Cell:
    """To three digits."""
    if row.n == 0:
        return Cell(word=NOTHING) if row.done else _cell(row, "value")
    has_interval = row.lower < row.upper
    lower, upper = (row.lower, row.upper) if has_interval else (math.nan, math.nan)
    return Cell(row.value, lower, upper, int(row.n), int(row.planned), digits=three(row.value))


def _plain(value: float, digits: int) -> Cell:
    return Cell(word=NOTHING) if math.isnan(value) else Cell(value, digits=digits)


def _range(rows: pd.DataFrame) -> Cell:
    """Of a number that all runs of a row should have in common."""
    known = rows.loc[rows["n"] > 0, "value"]
    if not len(known):
        return Cell(word=NOTHING)
    if known.min() == known.max():
        return Cell(known.iloc[0], digits=0)
    return Cell(word=f"{known.min():,.0f} to {known.max():,.0f}")


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
    """To two significant digits; very small ones as a bound."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


# Rows and columns


def _row_labels(sweep: Sweep, row: Any) -> tuple[str, ...]:
    return tuple(value_name(name, getattr(row, name)) for name in row_names(sweep))


def _apart(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """All but where every run has all of its score."""
    return cells[cells[sweep.over] != sweep.manifest["kept_from"]]


def _together(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one task one after the other, tasks in the order in which they come."""
    return rows.iloc[rows["task"].map(list(rows["task"].unique()).index).argsort(kind="stable")]


def _arranged(sweep: Sweep, shown: pd.DataFrame, cell: Callable[[Any], Cell]) -> Table:
    """A column per task and split, or per value of the axis that rows are followed over."""
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
    """By task, split and metric: the data set above; below it what tells its columns apart, the metric if nothing does."""
    order = shown["place"] + shown["metric"].map(names.metric_place)
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
    """`Grounding, testA (Acc@0.5)`: as a label of a row."""
    several = sum(task == row.task for task, _ in sweep.shown) > 1
    where = f", {names.split(row.split, row.task)}" if several else ""
    return f"{names.task(row.task)}{where} ({names.metric(row.metric, short=True)})"


def _by_row(sweep: Sweep, facts: pd.DataFrame, cell: Callable[[pd.DataFrame], Cell]) -> dict[tuple[str, ...], Cell]:
    labels = row_names(sweep)
    return {
        tuple(value_name(name, one) for name, one in zip(labels, label, strict=True)): cell(rows)
        for label, rows in facts.groupby(labels, sort=False)
    }


def _with(made: Table, caption: str, notes: Iterable[str], sweep: Sweep, name: str = "") -> Table:
    return replace(made, caption=caption, notes=tuple(notes), name=name, about=tuple(about(sweep)))


# The paper's


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
        made = turned(replace(made, columns=tuple(Column(column.group) for column in made.columns)), "")
    return made
