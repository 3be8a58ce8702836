"""The tables of a sweep, from its cells: what is in them, how they are arranged, and what is said about them.

Rows are the compared axis (and any extra one), columns the tasks and their splits, as in the paper; of a sweep that follows
rows over an axis, columns are its values. Where the sweep asks for it: which share of a score is kept; how far rows are from
the baseline; a trend; an average; what runs took. All splits are in the CSV. Nothing is selected or estimated here. No cell
is set in bold as the best on test: choosing there and reporting there overstates the choice. What is marked is the choice on
validation. How a table is written down is for `analysis.markdown`, `analysis.latex` and `analysis.terminal`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pandas as pd

from analysis import names
from analysis.costs import Costs
from analysis.frame import Sweep
from analysis.layout import NOTHING, Cell, Column, Row, Table, number, table, three, turned
from analysis.manifest import axis_value
from analysis.published import Published
from analysis.references import NO_REFERENCES, References
from analysis.samples import SEEDS_ALONE
from analysis.statistics import whole_state
from mmprompt.intervals import LEVEL

PERCENT_LEVEL = f"{100 * LEVEL:g} %"
INTERVAL = f"mean ± half-width of the {PERCENT_LEVEL} interval"
PARAMETERS = "trainable_parameters"  # a row's, whatever the task
PERCENT = ("acc@0.5", "accuracy", "vqa_accuracy")
EQUIVALENT, UNKNOWN = "=", "~"
MARKS = {"equivalent": EQUIVALENT, "not known": UNKNOWN}  # verdict -> its mark; what is told apart has none
MOST = 4  # columns of which it is said one by one what can be told apart
SEEN_AGAINST = {"zero_shot": "without tuning", "chance": "always the same answer"}  # reference -> its words
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
    judged = _judged(sweep, cells)
    if kept:
        made.append(shares(sweep, judged))
    if judged[what].notna().any():
        made.append(differences(sweep, judged, what, detectable))
    if len(trends):
        made.append(trend(sweep, trends))
    if len(averages):
        made.append(average(sweep, averages))
    if _covers_seeds_alone(judged):
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
    shown = _shown(sweep, cells)
    scores = _arranged(sweep, shown, score)
    columns = scores.columns
    parameters = facts[facts["metric"] == PARAMETERS]
    if len(parameters):
        columns = (*columns, Column("parameters", "Trainable"))
        by_row = _by_row(sweep, parameters, _range)
        first = len(scores.stubs) - len(_labels(sweep))  # behind the task, where that is a label
        rows = (
            Row(row.labels, (*row.cells, by_row.get(row.labels[first:], Cell(word=NOTHING)))) for row in scores.rows
        )
        scores = replace(scores, columns=columns, rows=tuple(rows))
    axes = f"{_axis_words(sweep)}{f' and {_lower(names.axis(sweep.over))}' if sweep.over else ''}"
    caption = f"Scores by {axes} on {split_words(sweep)}: {INTERVAL}{_of_n(scores.n, shown)}."
    notes = [*_score_notes(sweep, shown), *_reference_notes(sweep, references), *_detectable_notes(sweep, detectable)]
    notes += _state_notes(sweep)
    return _with(scores, caption, notes, sweep)


def shares(sweep: Sweep, cells: pd.DataFrame) -> Table:
    shown = _shown(sweep, _apart(sweep, cells))
    made = _arranged(sweep, shown, share)
    at = f"{_lower(names.axis(str(sweep.over)))} = {sweep.manifest['kept_from']:g}"
    caption = f"Share of its own score at {at} that a run keeps, in percent: {INTERVAL}{_of_n(made.n, shown)}."
    nothing = [f"{NOTHING} nothing to keep."] if any(cell.word == NOTHING for cell in made.cells) else []
    notes = ["What guessing would score is not taken off.", *nothing, *_limit_note(shown, "kept_")]
    return _with(made, caption, notes, sweep, "kept")


def differences(sweep: Sweep, cells: pd.DataFrame, what: str, detectable: pd.DataFrame = NONE) -> Table:
    """`what`: the column of the difference, of scores or of shares."""
    rows = cells if what == "difference" else _apart(sweep, cells)
    shown = _shown(sweep, rows[~rows["baseline"]])
    made = _arranged(sweep, shown, lambda row: difference(row, what))
    of = "Share kept" if what == "kept_difference" else "Score"
    caption = f"{of} minus that of the baseline ({_baseline(sweep)}), in points: {_simultaneous(sweep, shown, what)}."
    notes = [*_mark_notes(sweep, shown, what), *_detectable_notes(sweep, detectable)]
    return _with(made, caption, notes, sweep, "differences")


def trend(sweep: Sweep, trends: pd.DataFrame) -> Table:
    """A row per task and split (and other label): how the score goes with the logarithm of the axis."""
    axis = str(trends["axis"].iloc[0])
    others = [name for name in _labels(sweep) if name in trends]
    heads = [("slope", "per doubling", "Slope"), ("slope_p", "p", "Slope"), ("curvature", "", "Curvature")]
    heads += [("turning_point", "point", "Turning"), ("lack_of_fit_p", "p", "Lack of fit")]
    entries = []
    for row in _rows(_shown(sweep, trends).sort_values("place", kind="stable")):
        labels = (*(_value(name, getattr(row, name)) for name in others), _task_words(sweep, row))
        for key, head, group in heads:
            entries.append((labels, Column(head, group), _trend_cell(row, key)))
    caption = (
        f"Trend over {_lower(names.axis(axis))}: change of the score in points per doubling, with its"
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
    labels = [name for name in _labels(sweep) if name in averages]
    entries = []
    for row in _rows(averages):
        label = tuple(_value(name, getattr(row, name)) for name in labels)
        mean = Cell(row.value, row.lower, row.upper, int(row.n), int(row.n))
        against = Cell(row.difference, row.difference_lower, row.difference_upper, signed=True)
        entries += [
            (label, Column("Average score"), mean if row.n else Cell(word="missing")),
            (
                label,
                Column("Difference"),
                Cell(word=NOTHING) if row.baseline else _marked(against, row.difference_verdict),
            ),
            (label, Column("Better (%)"), Cell(word=NOTHING) if row.baseline else _plain(100 * row.better, 0)),
        ]
    made = table("", [names.axis(name) for name in labels], entries, grouped=len(labels) > 1)
    if len(labels) == 1 and pd.api.types.is_numeric_dtype(averages[labels[0]]):
        made = turned(made, "")
    tasks, rules = int(averages["tasks"].max()), ", ".join(averages["rule"].unique())
    of = _listed([names.task(task) for task in sweep.tasks])
    caption = f"Average over {tasks} tasks ({rules}): {INTERVAL}{_of_n(made.n, averages)}."
    notes = [
        f"Tasks: {of}. Difference: from the baseline ({_baseline(sweep)}). Better: share of pairs of a task and a seed in"
        " which the row's score is above the baseline's, ties as half.",
        *_marks_said(set(averages["difference_verdict"]), ""),
    ]
    return _with(made, caption, notes, sweep, "average")


def costs(sweep: Sweep, facts: pd.DataFrame) -> Table:
    """What runs took: a row per task and row label."""
    shown = facts[facts["metric"] != PARAMETERS]
    entries = [
        ((names.task(row.task), *_row_labels(sweep, row)), Column(names.fact(row.metric, short=True)), _cost(row))
        for row in _rows(_together(shown))
    ]
    made = table("", ["Task", *_stubs(sweep)], entries, grouped=True)
    caption = f"What one training took: mean{_of_n(made.n, shown)}."
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
    n, note = int(getattr(row, f"{prefix}n")), getattr(row, "note", "")
    if getattr(row, "conflict", 0):
        return Cell(word="conflict", note=note)
    if n == 0:
        counts = {state: getattr(row, state) for state in ("failed", "diverged")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return Cell(word=whole_state(row) or (f"missing ({said})" if said else "missing"), note=note)
    value, lower, upper = (getattr(row, name) for name in (what, f"{prefix}lower", f"{prefix}upper"))
    return Cell(value, lower, upper, n, int(row.planned), signed=signed, mark=mark, note=note)


def _marked(cell: Cell, verdict: str) -> Cell:
    """A difference without an interval is not known, whatever it says."""
    mark = UNKNOWN if math.isnan(cell.lower) else MARKS.get(verdict, "")
    return Cell(cell.value, cell.lower, cell.upper, cell.n, cell.planned, signed=True, mark=mark, note=cell.note)


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


def _labels(sweep: Sweep) -> list[str]:
    """Those of rows; the values of the axis that rows are followed over are columns."""
    return [name for name in sweep.roles if name != sweep.over]


def _stubs(sweep: Sweep) -> list[str]:
    return [names.axis(name) for name in _labels(sweep)]


def _row_labels(sweep: Sweep, row: Any) -> tuple[str, ...]:
    return tuple(_value(name, getattr(row, name)) for name in _labels(sweep))


def _rows(frame: pd.DataFrame) -> Iterator[SimpleNamespace]:
    """With names that hold a dot as attributes too, which `itertuples` does not give."""
    return (SimpleNamespace(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records"))


def _value(axis: str, value: Any) -> str:
    return names.value(axis, value)


def _apart(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """All but where every run has all of its score."""
    return cells[cells[sweep.over] != sweep.manifest["kept_from"]]


def _shown(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """Of what tables show, validation first within a task, as the paper prints splits; tasks as the sweep has them."""
    tasks = list(sweep.tasks)
    pairs = sorted(sweep.shown, key=lambda pair: (tasks.index(pair[0]), names.split_place(pair[1])))
    place = {pair: at for at, pair in enumerate(pairs)}
    found = [place.get(pair, -1) for pair in zip(cells["task"], cells["split"], strict=True)]
    return cells.assign(place=found)[[at >= 0 for at in found]]


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
                Column(_value(sweep.over, getattr(row, sweep.over)), group),
                cell(row),
            )
            for row in _rows(rows)
        ]
        return table("", ["Task", *_stubs(sweep)], entries, grouped=True)
    heads = _heads(shown)
    entries = [(_row_labels(sweep, row), heads[row.task, row.split, row.metric], cell(row)) for row in _rows(shown)]
    return table("", _stubs(sweep), entries, list(heads.values()), grouped=len(_stubs(sweep)) > 1)


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
    labels = _labels(sweep)
    return {
        tuple(_value(name, one) for name, one in zip(labels, label, strict=True)): cell(rows)
        for label, rows in facts.groupby(labels, sort=False)
    }


# What is said


def _with(made: Table, caption: str, notes: Iterable[str], sweep: Sweep, name: str = "") -> Table:
    return replace(made, caption=caption, notes=tuple(notes), name=name, about=tuple(about(sweep)))


def about(sweep: Sweep) -> Iterator[str]:
    """Where a table comes from: what a paper does not print, and who has the table wants to know."""
    manifest = sweep.manifest
    places = ", ".join(f"{kind.capitalize()} {number}" for kind, number in (manifest["paper"] or {}).items())
    yield f"Sweep {manifest['sweep']}: `{manifest['command']}`."
    yield f"{f'Claim of the paper ({places})' if places else 'Claim'}: {manifest['claim'].rstrip('.')}."
    yield commits(sweep.frame)


def _score_notes(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    manifest, frame = sweep.manifest, sweep.frame
    yield _unit(shown)
    yield from _limit_note(shown, "")
    yield from _sources(sweep, shown)
    small = [task for task in shown["task"].unique() if names.is_small(task)]
    if small:
        yield f"{_listed([names.task(task) for task in small])}: tasks of the small world, not the paper's data."
    settled = {axis: frame[axis].iloc[0] for axis in sweep.settled_axes}
    settings = {names.axis(axis): _value(axis, value) for axis, value in (manifest["header"] | settled).items()}
    yield f"Settings: {', '.join(f'{_lower(axis)} {_lower(value)}' for axis, value in settings.items())}."
    for name, axes in sweep.roles.items():
        if len(axes) > 1:
            others = _listed([_lower(names.axis(axis)) for axis in axes[1:]])
            yield f"Behind {_lower(names.axis(name))}, in brackets: its {others}, where it has one."
    if shown["baseline"].any():
        yield f"Baseline: {_baseline(sweep)}."
    if (shown["n"] == 1).any():
        yield "One seed has no interval."
    yield from _choice(sweep, shown)


def _reference_notes(sweep: Sweep, references: References) -> Iterator[str]:
    """`Without tuning: 3.7 on Grounding, 67.3 on Entailment; always the same answer: 50.1 on Entailment.`"""
    tasks, said = [task for task, _ in sweep.shown], []
    for name, words in SEEN_AGAINST.items():
        known = [
            f"{number(value, 1)} on {names.task(task)}{f' {names.split(split, task)}' if tasks.count(task) > 1 else ''}"
            for task, split in sweep.shown
            if (value := references.get((task, split), {}).get(name)) is not None
        ]
        if known:
            said.append(f"{words}: {', '.join(known)}")
    if said:
        text = "; ".join(said)
        yield f"{text[0].upper()}{text[1:]}."


def _sources(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """What the intervals cover. A cell that differs from the others says so in its note."""
    known, judged = shown[shown["lower"].notna()], _judged(sweep, shown)
    if _covers_seeds_alone(judged):
        yield SEEDS_ALONE
    elif judged["lower"].notna().any():
        yield f"Intervals cover both sources of error, seeds and test examples{_examples(judged)}."
    further = known.loc[~known.index.isin(judged.index), "metric"].unique()
    if len(further):
        which = _listed([names.metric(one) for one in further])
        yield f"Intervals of {which} cover seeds alone: single examples have no such score."


def _judged(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """By the metric of each task, and not by further ones."""
    return cells[cells["metric"] == cells["task"].map(sweep.tasks)]


def _covers_seeds_alone(cells: pd.DataFrame) -> bool:
    """Whether there are intervals, and none has the part of the examples."""
    known = cells[cells["lower"].notna()]
    return len(known) > 0 and bool(known["half_examples"].isna().all())


def _choice(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """Of `*`, and of rates that were chosen with the seeds that are shown."""
    chosen = shown[shown["chosen"]]
    if len(chosen):
        apart = [names.axis(name) for name in sweep.roles if name not in (sweep.compare, *sweep.extra_axes)]
        each = f" for each {_lower(_listed(apart))}" if apart else ""
        among = sorted(int(k) for k in chosen["among"].unique() if k)
        k = f" among {among[0]}" + (f" to {among[-1]}" if len(among) > 1 else "") if among else ""
        tests = [split for task, split in sweep.shown if split != sweep.validation[task]]
        none = "; nothing was chosen on test" if tests else ""
        yield f"* highest mean on validation{k}{each}{none}."
    tuned = set(sweep.manifest["tuned_seeds"]) & set(sweep.frame.get("seed", []))
    if tuned:
        yield f"Learning rates were chosen on validation with seeds {_listed(sorted(tuned))}, which are shown here."


def _unit(shown: pd.DataFrame) -> str:
    """`Scores in percent; Captions in CIDEr-D times 100.`"""
    metrics = shown.drop_duplicates(["task", "metric"])
    percent = metrics["metric"].isin(PERCENT)
    others = [
        f"{names.task(row.task)} in {'CIDEr-D times 100' if row.metric == 'cider' else names.metric(row.metric)}"
        for row in _rows(metrics[~percent])
    ]
    return "; ".join([*(["Scores in percent"] if percent.any() else []), *others]) + "."


def _limit_note(shown: pd.DataFrame, prefix: str) -> Iterator[str]:
    value, lower, upper = (shown[name] for name in (prefix.rstrip("_") or "value", f"{prefix}lower", f"{prefix}upper"))
    if ((upper + lower - 2 * value).abs() > 1e-6 * value.abs()).any():
        yield "In brackets: the limits of an interval that is cut off at the end of the metric's range."


def _state_notes(sweep: Sweep) -> Iterator[str]:
    frame = sweep.frame
    if len(mixed := _commits(frame)) > 1:
        yield f"Mixed commits: {', '.join(mixed)}."
    devices = sorted(frame["device"].dropna().unique())
    if len(devices) > 1:
        yield f"Mixed devices: {', '.join(devices)}."
    if (frame["state"] != "done").any():
        several = "points" if frame["run"].duplicated().any() else "runs"
        lacking = "Of" if frame["state"].isin(("done", "diverged")).all() else "INCOMPLETE: of"
        yield f"{lacking} {len(frame)} {several} {_count(frame)}."


def _detectable_notes(sweep: Sweep, detectable: pd.DataFrame) -> Iterator[str]:
    """`With 3 seeds differences from 5.1 points on (Grounding), 8.0 (Entailment) are told apart with power 0.8; ...`"""
    if not len(detectable):
        return
    rows = _shown(sweep, detectable).sort_values("place", kind="stable")
    rows = rows[rows["difference"].notna()]
    for n, those in rows.groupby("n", sort=False):
        now, then = ([number(x, three(x) - 1) for x in those[what]] for what in ("difference", "with_5_seeds"))
        if len(those) > MOST:
            low, high = those["difference"].argmin(), those["difference"].argmax()
            points = f"{now[low]} to {now[high]} points on, by column,"
            later = f"{then[those['with_5_seeds'].argmin()]} to {then[those['with_5_seeds'].argmax()]}"
        else:
            several = those["task"].duplicated().any()
            first, *others = (
                f"({names.task(row.task)}{f' {names.split(row.split, row.task)}' if several else ''})"
                for row in _rows(those)
            )
            of = [f"{now[0]} points on {first}", *(f"{x} {word}" for x, word in zip(now[1:], others, strict=True))]
            points, later = ", ".join(of), _listed(then)
        yield f"With {n} seeds differences from {points} are told apart with power 0.8; with 5 seeds {later}."


def _simultaneous(sweep: Sweep, shown: pd.DataFrame, what: str) -> str:
    """What the interval of a difference is, and of how many it holds."""
    known = shown[shown[f"{what}_lower"].notna()]
    methods = {str(method): those["task"].unique() for method, those in known.groupby(f"{what}_method", sort=False)}
    if not methods:
        return "without intervals"
    by = " and ".join(
        method + (f" on {_listed([names.task(task) for task in tasks])}" if len(methods) > 1 else "")
        for method, tasks in methods.items()
    )
    of = f"the {len(known)} comparison{'s' * (len(known) > 1)} of this table"
    if sweep.manifest["family"] == "task":
        of += ", task by task"
    n = _of_n(_common(known[f"{what}_n"]), known, f"{what}_n").strip(" ()")
    return f"simultaneous {PERCENT_LEVEL} intervals over {of} ({by}; {n})"


def _mark_notes(sweep: Sweep, shown: pd.DataFrame, what: str) -> Iterator[str]:
    margins = sweep.manifest["margin"] or {}
    words = ", ".join(
        f"{margins[key]:g} points{f' of {names.metric(key, short=True)}' if key != 'percent' else ''}"
        for key in margins
    )
    verdicts = set(shown[f"{what}_verdict"])
    if shown.loc[shown[what].notna(), f"{what}_lower"].isna().any():
        verdicts.add("not known")
    yield from _marks_said(verdicts, words)


def _marks_said(verdicts: set[str], margin: str) -> Iterator[str]:
    if "not known" in verdicts:
        yield f"{UNKNOWN} not known: {'neither told apart nor equivalent' if margin else 'not told apart, which is not equal'}."
    if "equivalent" in verdicts:
        yield f"{EQUIVALENT} equivalent{f', within ± {margin}' if margin else ''}."
    if verdicts & {"higher", "lower"}:
        yield "No mark: told apart from the baseline."


def _of_n(n: int | None, rows: pd.DataFrame, column: str = "n") -> str:
    """` (n = 3 seeds)`; that of most cells, where some say another."""
    if n is None:
        return ""
    counts = {count for count in rows[column] if count}
    return f" (n = {n} seed{'s' if n > 1 else ''}{'' if counts == {n} else ' unless given'})"


def _common(counts: Iterable[Any]) -> int | None:
    known = Counter(int(count) for count in counts if count)
    return known.most_common(1)[0][0] if known else None


def _examples(shown: pd.DataFrame) -> str:
    counts = sorted({int(m) for m in shown["examples"].dropna()})
    return f" ({_listed([f'{m:,}' for m in counts])})" if counts else ""


def _baseline(sweep: Sweep) -> str:
    """`Finetuning`, `prompt length 64`."""
    said = []
    for axis, value in (sweep.manifest["baseline"] or {}).items():
        word = _value(axis, axis_value({axis: value}, axis))
        said.append(word if axis == "method" else f"{_lower(names.axis(axis))} {_lower(word)}")
    return ", ".join(said)


def _axis_words(sweep: Sweep) -> str:
    return _listed([_lower(stub) for stub in _stubs(sweep)])


def split_words(sweep: Sweep) -> str:
    """`the test split`, `testA, testB and test`: those that are shown."""
    splits = sorted({split for _, split in sweep.shown}, key=names.split_place)
    said = _listed([names.split(split) for split in splits])
    return f"the {said} split" if len(splits) == 1 else said


def commits(frame: pd.DataFrame) -> str:
    found = _commits(frame)
    return f"{'Mixed commits' if len(found) > 1 else 'Commit'}: {', '.join(found) or 'none yet'}."


def _commits(frame: pd.DataFrame) -> list[str]:
    done = frame[frame["attempt"].notna()]
    return sorted(
        {
            (f"{commit[:10]}" if isinstance(commit, str) else "unknown")
            + (" with uncommitted changes" if dirty else "")
            for commit, dirty in zip(done["commit"], done["dirty"], strict=True)
        }
    )


def _count(frame: pd.DataFrame) -> str:
    counts = frame["state"].value_counts()
    known = ("done", "diverged", "not evaluated", "failed", "conflict", "unreadable", "not done")
    return ", ".join(f"{counts[state]} {state}" for state in known if state in counts)


def _listed(words: Sequence[Any]) -> str:
    """`a, b and c`."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _lower(text: str) -> str:
    """Within a sentence: the first letter small, but of a name (BitFit, LoRA, MLP) as it is."""
    return text[0].lower() + text[1:] if text[1:2].islower() and text[1:] == text[1:].lower() else text


# The paper's


def _published(part: Published, at: int) -> Table:
    rows = part.rows.assign(task=part.rows["dataset"])
    heads = _heads(rows.assign(place=range(len(rows))))
    sizes = rows["size"].nunique() > 1
    entries = []
    for row in _rows(rows):
        label = _value(part.axis, row.setting)
        labels = (f"OFA-{row.size}", label) if sizes else (label,)
        digits = 1 if row.metric == "cider" else 2
        entries.append((labels, heads[row.task, row.split, row.metric], Cell(row.value, digits=digits)))
    stubs = [*(["Size"] if sizes else []), names.axis(part.axis)]
    made = table(f"The paper's {part.place}: {part.about}.", stubs, entries, name=f"paper-{at}", grouped=sizes)
    if set(rows["metric"]) <= {"average", "gpu_hours"}:
        made = turned(replace(made, columns=tuple(Column(column.group) for column in made.columns)), "")
    return made
