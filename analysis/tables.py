"""The tables of a sweep as Markdown, LaTeX and CSV, with the paper's own values in tables apart.

Rows are the compared axis (and any extra one), columns the tasks; of a sweep that follows rows over an axis, columns are its
values. Where the sweep asks for it: which share of a score is kept; how far rows are from the baseline; what runs took.
All splits are in the CSV. Nothing is selected or computed here. No cell is set in bold as the best on test: choosing there
and reporting there overstates the choice, and over a handful of seeds the intervals seldom tell neighbours apart. What is
marked is the choice on validation.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from analysis.costs import CAPTION, Costs
from analysis.costs import texts as cost_texts
from analysis.frame import FACTS, Sweep
from analysis.published import Published
from analysis.statistics import whole_state
from mmprompt.intervals import LEVEL

NOT_PLANNED = "-"  # nor recorded, of what runs took
INTERVAL = f"mean ± half-width of the {LEVEL:.0%} t interval"
PARAMETERS = "trainable_parameters"  # a row's, whatever the task
WIDTH = 120  # of the text in a Markdown file and on the terminal
ESCAPES = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A caption, and strings with the row labels in the index; `name` tells those of one sweep apart."""

    caption: str
    frame: pd.DataFrame
    name: str = ""


def ours(sweep: Sweep, cells: pd.DataFrame, facts: pd.DataFrame, measured: Costs | None = None) -> list[Table]:
    """The tables that a sweep becomes: scores, the share that is kept, differences from the baseline, what runs took."""
    tables = [comparison(sweep, cells, facts)]
    kept = sweep.manifest["kept_from"] is not None
    if kept:
        tables.append(shares(sweep, cells))
    what = "kept_difference" if kept else "difference"
    if cells[what].notna().any():
        tables.append(differences(sweep, cells, what))
    if (table := costs(sweep, facts, measured)) is not None:
        tables.append(table)
    return tables


def comparison(sweep: Sweep, cells: pd.DataFrame, facts: pd.DataFrame) -> Table:
    frame = _pivoted(sweep, cells, _cell)
    parameters = facts[facts["metric"] == PARAMETERS]
    if len(parameters):
        shared = [name for name in frame.index.names if name in parameters]
        by_row = {row: _range(group) for row, group in _named(sweep, parameters).groupby(shared, sort=False)}
        rows = frame.index.to_frame()[shared].itertuples(index=False, name=None)
        frame = frame.assign(**{FACTS[PARAMETERS]: [by_row.get(row, NOT_PLANNED) for row in rows]})
    return Table(" ".join(_caption(sweep, cells)), frame)


def shares(sweep: Sweep, cells: pd.DataFrame) -> Table:
    at = f"{sweep.over} {sweep.manifest['kept_from']:g}"
    what = f"share of its own score at {at} that a run keeps, in percent"
    chance = f"{NOT_PLANNED} Nothing to keep. What guessing would score is not taken off."
    caption = f"Sweep {sweep.manifest['sweep']}: {what}; {INTERVAL} over seeds (n). {chance}"
    return Table(caption, _pivoted(sweep, _apart(sweep, cells), _share), "kept")


def differences(sweep: Sweep, cells: pd.DataFrame, what: str) -> Table:
    """`what`: the column of the difference, of scores or of shares."""
    baseline = ", ".join(f"{axis} {value}" for axis, value in sweep.manifest["baseline"].items())
    of = "that share" if what == "kept_difference" else "the score"
    caption = (
        f"Sweep {sweep.manifest['sweep']}: difference of {of} from the baseline's ({baseline}), in points, seed by seed: "
        f"{INTERVAL} (pairs). ~ The interval contains 0: the two are not told apart. Intervals are not corrected for their number."
    )
    rows = cells if what == "difference" else _apart(sweep, cells)
    return Table(caption, _pivoted(sweep, rows[~rows["baseline"]], partial(difference_text, what=what)), "differences")


def costs(sweep: Sweep, facts: pd.DataFrame, measured: Costs | None = None) -> Table | None:
    """What runs take: a row per row label and task. What depends on the machine is from a measurement, the rest over seeds."""
    shown = facts[facts["metric"] != PARAMETERS]
    over_seeds = shown.assign(
        fact=shown["metric"], column=shown["metric"].map(FACTS), text=[_cost(row) for row in shown.itertuples()]
    )
    parts = [over_seeds] if measured is None else [over_seeds, cost_texts(sweep, measured)]
    texts = pd.concat(parts, ignore_index=True)
    if not len(texts):
        return None
    order = texts["fact"].map(list(sweep.manifest["facts"]).index).argsort(kind="stable")
    texts = _named(sweep, texts.iloc[order])
    said = [f"{INTERVAL} over seeds (n)"] if len(over_seeds) else []
    said += [CAPTION] if len(texts) > len(over_seeds) else []
    caption = f"Sweep {sweep.manifest['sweep']}: what its runs take; {'; '.join(said)}. {NOT_PLANNED} Not known."
    return Table(caption, _arranged(texts, ["task", *_labels(sweep)]), "cost")


def _labels(sweep: Sweep) -> list[str]:
    """Those of rows; the values of the axis that rows are followed over are columns."""
    return [name for name in sweep.roles if name != sweep.over]


def _apart(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """All but where every run has all of its score."""
    return cells[cells[sweep.over] != sweep.manifest["kept_from"]]


def _pivoted(sweep: Sweep, cells: pd.DataFrame, text: Callable[[Any], str]) -> pd.DataFrame:
    """A text per cell of what is shown: a column per task, or per value of the axis that rows are followed over."""
    pairs = sweep.shown
    shown = cells[[pair in pairs for pair in zip(cells["task"], cells["split"], strict=True)]]
    splits: Counter[Any] = Counter(task for task, _ in pairs)
    tasks = [
        f"{row.task}{f' {row.split}' if splits[row.task] > 1 else ''} ({row.metric})" for row in shown.itertuples()
    ]
    texts = _named(sweep, shown).assign(text=[text(row) for row in shown.itertuples()], task=tasks)
    if sweep.over is None:
        return _arranged(texts.assign(column=texts["task"]), _labels(sweep))
    columns = f"{sweep.over.rpartition('.')[2]} " + shown[sweep.over].astype(str)
    return _arranged(texts.assign(column=columns), ["task", *_labels(sweep)])


def _named(sweep: Sweep, rows: pd.DataFrame) -> pd.DataFrame:
    """Labels as text, that of the baseline marked."""
    texts = rows.assign(**{name: rows[name].astype(str) for name in _labels(sweep)})
    return texts.assign(
        **{sweep.compare: texts[sweep.compare] + rows["baseline"].map({True: " (baseline)", False: ""})}
    )


def _arranged(texts: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """`text` by `column`; rows and columns in the order in which they come, rows of one task together."""
    if index[0] == "task":
        texts = texts.iloc[texts["task"].map(list(texts["task"].unique()).index).argsort(kind="stable")]
    rows = texts[index].drop_duplicates()
    frame = texts.pivot(index=index, columns="column", values="text").fillna(NOT_PLANNED)
    order = pd.MultiIndex.from_frame(rows) if len(index) > 1 else pd.Index(rows[index[0]])
    return frame.reindex(index=order, columns=texts["column"].drop_duplicates()).rename_axis(columns=None)


def paper(published: Iterable[Published]) -> list[Table]:
    """For each of the paper's tables and figures: a row per data set, split and metric, a column per value."""
    tables: list[Table] = []
    for part in published:
        rows = part.rows.assign(x=part.rows["x"].astype(str), text=part.rows["value"].map("{:.2f}".format))
        index = ["task", "split", "metric"]
        frame = rows.pivot(index=index, columns="x", values="text").fillna(NOT_PLANNED)
        order = pd.MultiIndex.from_frame(rows[index].drop_duplicates())
        frame = frame.reindex(index=order, columns=rows["x"].drop_duplicates()).rename_axis(columns=None)
        tables.append(Table(f"The paper's {part.place}: {part.about}.", frame, f"paper-{len(tables) + 1}"))
    return tables


def markdown(tables: Iterable[Table], notes: Iterable[str]) -> str:
    parts = [f"{textwrap.fill(table.caption, WIDTH)}\n\n{_pipes(table.frame.reset_index())}" for table in tables]
    listed = [textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ", break_long_words=False) for note in notes]
    return "\n\n".join([*parts, "\n".join(["Notes:", *listed])] if listed else parts) + "\n"


def latex(tables: Iterable[Table], label: str) -> str:
    r"""A table environment each, for \usepackage{booktabs}, labelled tab:LABEL, tab:LABEL-differences, tab:LABEL-paper-1, ..."""
    texts = []
    for table in tables:
        frame = table.frame.reset_index().map(_escaped).rename(columns=_escaped)
        texts.append(
            frame.style.hide(axis="index").to_latex(
                hrules=True,
                caption=_escaped(table.caption),
                label=f"tab:{label}" + (f"-{table.name}" if table.name else ""),
                position_float="centering",
                column_format="l" * table.frame.index.nlevels + "r" * len(table.frame.columns),
            )
        )
    return "\n".join(texts)


def csv(cells: pd.DataFrame, facts: pd.DataFrame, measured: Costs | None = None) -> str:
    """Every split, and what runs took as further metrics, of no split; what was measured has no interval, but a lowest and a
    highest value, and a ratio to the baseline."""
    parts = [cells, *([facts.drop(columns="done")] if len(facts) else [])]
    if measured is not None and len(measured.frame):
        names = {"quantity": "metric", "median": "value", "run": "runs"}
        parts.append(measured.frame.rename(columns=names).assign(split=""))
    return pd.concat(parts, ignore_index=True).to_csv(index=False)


def _cell(row: Any) -> str:
    """`83.1 ± 1.2 (3)`: mean, half-width of the interval, n."""
    return f"{interval_text(row)}{' *' if row.chosen and row.n else ''}"


def _share(row: Any) -> str:
    return NOT_PLANNED if row.n and not row.kept_n else interval_text(row, "kept")


def difference_text(row: Any, what: str) -> str:
    if row.n and not getattr(row, f"{what}_n"):
        return NOT_PLANNED  # the baseline is missing, or has nothing to keep
    text = interval_text(row, what, "+")
    return f"{text} ~" if getattr(row, f"{what}_lower") <= 0 <= getattr(row, f"{what}_upper") else text


def _cost(row: Any) -> str:
    """To three digits."""
    if row.n == 0 and row.done:
        return NOT_PLANNED
    digits = 2 - math.floor(math.log10(abs(row.value))) if row.n and row.value else 1
    return interval_text(row, digits=max(0, digits))


def interval_text(row: Any, what: str = "value", sign: str = "", digits: int = 1) -> str:
    """Of this column; why there is none."""
    prefix = "" if what == "value" else f"{what}_"
    value, upper, n = getattr(row, what), getattr(row, f"{prefix}upper"), getattr(row, f"{prefix}n")
    if n == 0:
        counts = {state: getattr(row, state) for state in ("failed", "diverged")}
        said = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return whole_state(row) or (f"missing ({said})" if said else "missing")
    spread = f" ± {upper - value:,.{digits}f}" if n > 1 else ""
    return f"{value:{sign},.{digits}f}{spread} {f'({n})' if n == row.planned else f'({n} of {row.planned})'}"


def _range(rows: pd.DataFrame) -> str:
    """Of a number that all runs of a row should have in common."""
    known = rows[rows["n"] > 0]
    texts = [f"{value:,.0f}" for value in sorted({known["value"].min(), known["value"].max()})] if len(known) else []
    return " to ".join(texts) or NOT_PLANNED


def _caption(sweep: Sweep, cells: pd.DataFrame) -> Iterator[str]:
    manifest, frame = sweep.manifest, sweep.frame
    places = ", ".join(f"{kind.capitalize()} {number}" for kind, number in (manifest["paper"] or {}).items())
    whose = f"The paper's claim ({places})" if places else "Claim"
    yield f"Sweep {manifest['sweep']}. {whose}: {manifest['claim'].rstrip('.')}."
    settled = {axis: frame[axis].iloc[0] for axis in sweep.settled_axes}
    yield f"Here: {', '.join(f'{key} {value}' for key, value in (manifest['header'] | settled).items())}."
    for name, axes in sweep.roles.items():
        if len(axes) > 1:
            yield f"{name}: with {' and '.join(axes[1:])}, where it has that."
    yield f"{split_names(sweep)}: {INTERVAL} over seeds (n)."
    if (cells["n"] == 1).any():
        yield "One seed has no interval."
    if cells["chosen"].any():
        apart = [name for name in sweep.roles if name not in (sweep.compare, *sweep.extra_axes)]
        each = f" for each {' and '.join(apart)}" if apart else ""
        tests = [split for task, split in sweep.shown if split != sweep.validation[task]]
        none = f"; on {' and '.join(dict.fromkeys(tests))} none is marked" if tests else ""
        yield f"* highest mean on validation{each}{none}: overlapping intervals do not tell rows apart."
    yield commits(frame)
    devices = sorted(frame["device"].dropna().unique())
    if len(devices) > 1:
        yield f"Mixed devices: {', '.join(devices)}."
    if (frame["state"] != "done").any():
        several = "points" if frame["run"].duplicated().any() else "runs"
        lacking = "Of" if frame["state"].isin(("done", "diverged")).all() else "INCOMPLETE: of"
        yield f"{lacking} {len(frame)} {several} {_count(frame)}."


def split_names(sweep: Sweep) -> str:
    """`Test split`, `TestA and testB splits`: those that are shown."""
    splits = list(dict.fromkeys(split for _, split in sweep.shown))
    text = f"{' and '.join(splits)} split{'s' if len(splits) > 1 else ''}"
    return text[0].upper() + text[1:]


def commits(frame: pd.DataFrame) -> str:
    done = frame[frame["attempt"].notna()]
    names = {
        (f"{commit[:10]}" if isinstance(commit, str) else "unknown") + (" with uncommitted changes" if dirty else "")
        for commit, dirty in zip(done["commit"], done["dirty"], strict=True)
    }
    return f"{'Mixed commits' if len(names) > 1 else 'Commit'}: {', '.join(sorted(names)) or 'none yet'}."


def _count(frame: pd.DataFrame) -> str:
    counts = frame["state"].value_counts()
    return ", ".join(
        f"{counts[state]} {state}"
        for state in ("done", "diverged", "not evaluated", "failed", "not done")
        if state in counts
    )


def _pipes(frame: pd.DataFrame) -> str:
    """A Markdown table whose columns line up on a terminal too; text to the left, values to the right."""
    columns = [[str(name), *frame[name]] for name in frame.columns]
    widths = [max(map(len, column)) for column in columns]
    labels = [
        number == 0 or not re.match(r"[+\d.]+|missing|failed|diverged|-", column[1])
        for number, column in enumerate(columns)
    ]
    pads = [str.ljust if label else str.rjust for label in labels]
    lines = [
        "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)) + " |"
        for line in zip(*columns, strict=True)
    ]
    rules = ["-" * (width + 1) + ("-" if label else ":") for width, label in zip(widths, labels, strict=True)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(char, char) for char in text)
