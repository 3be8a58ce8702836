"""The comparison table of a sweep as Markdown, LaTeX and CSV, with the paper's own values in tables apart.

Rows are the compared axis (and any extra one), columns the tasks; both splits are in the CSV, the table shows test.
Nothing is selected or computed here. No cell is set in bold as the best on test: choosing there and reporting there
overstates the choice, and over a handful of seeds the intervals seldom tell neighbours apart. What is marked is the
choice on validation.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.frame import Sweep
from analysis.published import Published
from analysis.statistics import LEVEL

SPLIT = "test"
NOT_PLANNED = "-"
WIDTH = 120  # of the text in a Markdown file and on the terminal
ESCAPES = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


@dataclass(frozen=True)
class Table:
    """A caption, and strings with the row labels in the index."""

    caption: str
    frame: pd.DataFrame


def comparison(sweep: Sweep, cells: pd.DataFrame) -> Table:
    shown = cells[cells["split"] == SPLIT]
    labels = [sweep.compare, *sweep.extra_axes]
    texts = shown[labels].astype(str)
    texts[sweep.compare] += shown["baseline"].map({True: " (baseline)", False: ""})
    texts["column"] = shown["task"] + " (" + shown["metric"] + ")"
    texts["text"] = [_cell(row) for row in shown.itertuples()]
    rows = texts[labels].drop_duplicates()
    columns = [f"{task} ({metric})" for task, metric in sweep.tasks.items() if task in set(shown["task"])]
    frame = texts.pivot(index=labels, columns="column", values="text").fillna(NOT_PLANNED)
    order = pd.MultiIndex.from_frame(rows) if len(labels) > 1 else pd.Index(rows[sweep.compare])
    frame = frame.reindex(index=order, columns=columns).rename_axis(columns=None)
    return Table(" ".join(_caption(sweep, cells)), frame)


def paper(published: Iterable[Published]) -> list[Table]:
    """For each of the paper's tables and figures: a row per data set, split and metric, a column per value."""
    tables = []
    for part in published:
        rows = part.rows.assign(x=part.rows["x"].astype(str), text=part.rows["value"].map("{:.2f}".format))
        index = ["task", "split", "metric"]
        frame = rows.pivot(index=index, columns="x", values="text").fillna(NOT_PLANNED)
        order = pd.MultiIndex.from_frame(rows[index].drop_duplicates())
        frame = frame.reindex(index=order, columns=rows["x"].drop_duplicates()).rename_axis(columns=None)
        tables.append(Table(f"The paper's {part.place}: {part.about}.", frame))
    return tables


def markdown(tables: Iterable[Table], notes: Iterable[str]) -> str:
    parts = [f"{textwrap.fill(table.caption, WIDTH)}\n\n{_pipes(table.frame.reset_index())}" for table in tables]
    listed = [textwrap.fill(f"- {note}", WIDTH, subsequent_indent="  ", break_long_words=False) for note in notes]
    return "\n\n".join([*parts, "\n".join(["Notes:", *listed])] if listed else parts) + "\n"


def latex(tables: Iterable[Table], label: str) -> str:
    r"""A table environment each, for \usepackage{booktabs}, labelled tab:LABEL, tab:LABEL-paper-1, ..."""
    texts = []
    for number, table in enumerate(tables):
        frame = table.frame.reset_index().map(_escaped).rename(columns=_escaped)
        texts.append(
            frame.style.hide(axis="index").to_latex(
                hrules=True,
                caption=_escaped(table.caption),
                label=f"tab:{label}" + (f"-paper-{number}" if number else ""),
                position_float="centering",
                column_format="l" * table.frame.index.nlevels + "r" * len(table.frame.columns),
            )
        )
    return "\n".join(texts)


def csv(cells: pd.DataFrame) -> str:
    return cells.to_csv(index=False)


def _cell(row: Any) -> str:
    """`83.1 ± 1.2 (3)`: mean, half-width of the interval, n."""
    if row.n == 0:
        return "missing"
    spread = f" ± {row.upper - row.value:.1f}" if row.n > 1 else ""
    count = f"({row.n})" if row.n == row.planned else f"({row.n} of {row.planned})"
    return f"{row.value:.1f}{spread} {count}{' *' if row.chosen else ''}"


def _caption(sweep: Sweep, cells: pd.DataFrame) -> Iterator[str]:
    manifest, frame = sweep.manifest, sweep.frame
    places = ", ".join(f"{kind.capitalize()} {number}" for kind, number in (manifest["paper"] or {}).items())
    whose = f"The paper's claim ({places})" if places else "Claim"
    yield f"Sweep {manifest['sweep']}. {whose}: {manifest['claim'].rstrip('.')}."
    settled = {axis: frame[axis].iloc[0] for axis in sweep.settled_axes}
    yield f"Here: {', '.join(f'{key} {value}' for key, value in (manifest['header'] | settled).items())}."
    yield f"{SPLIT.capitalize()} split: mean ± half-width of the {LEVEL:.0%} t interval over seeds (n)."
    if (cells["n"] == 1).any():
        yield "One seed has no interval."
    if cells["chosen"].any():
        yield "* highest mean on validation; on test none is marked: overlapping intervals do not tell rows apart."
    yield _commits(frame)
    devices = sorted(frame["device"].dropna().unique())
    if len(devices) > 1:
        yield f"Mixed devices: {', '.join(devices)}."
    if (frame["state"] != "done").any():
        yield f"INCOMPLETE: of {len(frame)} runs {_count(frame)}."


def _commits(frame: pd.DataFrame) -> str:
    done = frame[frame["state"] == "done"]
    names = {
        (f"{commit[:10]}" if isinstance(commit, str) else "unknown") + (" with uncommitted changes" if dirty else "")
        for commit, dirty in zip(done["commit"], done["dirty"], strict=True)
    }
    return f"{'Mixed commits' if len(names) > 1 else 'Commit'}: {', '.join(sorted(names)) or 'none yet'}."


def _count(frame: pd.DataFrame) -> str:
    counts = frame["state"].value_counts()
    return ", ".join(f"{counts[state]} {state}" for state in ("done", "failed", "not done") if state in counts)


def _pipes(frame: pd.DataFrame) -> str:
    """A Markdown table whose columns line up on a terminal too; text to the left, values to the right."""
    columns = [[str(name), *frame[name]] for name in frame.columns]
    widths = [max(map(len, column)) for column in columns]
    labels = [number == 0 or not re.match(r"[\d.]+|missing|-", column[1]) for number, column in enumerate(columns)]
    pads = [str.ljust if label else str.rjust for label in labels]
    lines = [
        "| " + " | ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)) + " |"
        for line in zip(*columns, strict=True)
    ]
    rules = ["-" * (width + 1) + ("-" if label else ":") for width, label in zip(widths, labels, strict=True)]
    return "\n".join([lines[0], f"|{'|'.join(rules)}|", *lines[1:]])


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(char, char) for char in text)
