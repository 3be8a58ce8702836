"""The figure of a sweep, ready for a paper: a panel per task, and below it the differences from the baseline.

Compared words are the rows of a dot plot. A compared number is an axis, logarithmic where it spans a wide range. Rows with values
along a further axis are lines, above a panel with the share of the score that they keep. The same values give the same bytes. The
paper's own values have a separate figure (`analysis.figures.paper_figures`); `analysis.figures.captions` writes the caption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import names
from analysis.figures.figure_content import AVERAGE, Keys, Panel, is_over_numbers, keys_of, near, panels_of
from analysis.figures.panel_grid import AROUND, LETTER, columns_of, grid_of
from analysis.figures.panels import (
    ASIDE,
    DIFFERENCE,
    KEPT,
    KEPT_DIFFERENCE,
    REFERENCES,
    RULE,
    SCORE,
    Quantity,
    above,
    curve,
    face,
    label,
    lines,
    logarithmic,
    marks_of_lines,
    marks_of_rows,
    number_axis,
    reached,
    reference_lines,
    rows,
    runs_of_lines,
    runs_of_rows,
    trend,
    value_axis,
    zero,
)
from analysis.figures.scales import COST, MARGIN, Scale, limits
from analysis.figures.scales import KEPT as SHARE
from analysis.figures.shown_figure import finished
from analysis.figures.style import WIDTHS, Look, applied, looks
from analysis.records.frame import Sweep
from analysis.records.references import NO_REFERENCES, References
from analysis.statistics.comparisons import margin_of

FEW = 3  # up to this number of lines, single runs and differences are shown too
TALLEST = 8.5  # inches: the height that a page has for a figure with its caption
BELOW = 0.33  # inches: space for text below a panel
ROW = 0.16  # inches: height of a row of a dot plot
ROWS_PANEL = 0.98  # inches: least width of a panel of a dot plot
LINES_PANEL = {True: 1.3, False: 1.5}  # inches: least width of a panel of few lines (True), or of many
NEAR_BEST = 0.99  # share of a learning curve's best score


def draw(
    sweep: Sweep,
    cells: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    width: str = "text",
    averages: pd.DataFrame | None = None,
    trends: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
) -> Figure:
    """Returns the figure of a sweep.

    `width`: one of `WIDTHS`. `curves`: learning curves, which are drawn instead of the cells if they are given; with a column
    `hours` they are drawn over device-hours as well. `averages` (over tasks) have a panel of their own; `trends` and
    `references` are lines in each panel.
    """
    with applied():
        if curves is not None:
            return finished(_learning(sweep, keys_of(sweep, cells, curves), curves, WIDTHS[width]))
        keys = keys_of(sweep, cells)
        shown = panels_of(sweep, cells, keys, averages, references)
        if is_over_numbers(sweep, cells):
            return finished(_lines(sweep, keys, shown, WIDTHS[width], trends))
        return finished(_rows(sweep, keys, shown, WIDTHS[width]))


# Rows


def _rows(sweep: Sweep, keys: Keys, panels: Sequence[Panel], width: float) -> Figure:
    """The figure of compared words: a row each; below, the differences of all rows but the baseline."""
    all_keys, compared_keys = list(keys.names), _against(keys, panels)
    are_compared = are_rows_compared(keys, panels, width)
    columns, inches = _columns_of_rows(keys, panels, width)
    heights = [0.06 + ROW * len(all_keys), *([0.06 + ROW * len(compared_keys)] if are_compared else [])]
    figure, grid = grid_of(len(panels), columns, heights, width, _shown_references(panels), [AROUND] * len(heights))
    for at, (panel, axes) in enumerate(zip(panels, grid, strict=True)):
        quantity = Quantity(*SCORE, panel.metric)
        references = near(panel)
        rows(axes[0], panel.cells, all_keys, keys.looks, quantity)
        runs_of_rows(axes[0], panel.runs, all_keys, keys.looks)
        reference_lines(axes[0], "x", references)
        bounds = quantity.limits(panel.cells, [*panel.runs["value"], *references.values()])
        value_axis(axes[0], "x", quantity, bounds, inches)
        axes[0].set_title(panel.title)
        axes[0].set_xlabel(names.metric(panel.metric))
        above(axes[0], _missing(panel, inches))
        if are_compared:
            quantity = Quantity(*DIFFERENCE, panel.metric, is_difference=True)
            compared_cells = panel.cells[panel.cells["key"].isin(compared_keys)]
            rows(axes[1], compared_cells, compared_keys, keys.looks, quantity)
            marks_of_rows(axes[1], compared_cells, compared_keys)
            zero(axes[1], "x", margin_of(sweep, panel.metric, "value"))
            value_axis(axes[1], "x", quantity, quantity.limits(compared_cells, [0.0]), inches)
            axes[1].set_xlabel(_unit(panel.metric))
        if at % columns == 0:
            axes[0].set_yticklabels(list(keys.names.values()))
            if are_compared:
                axes[1].set_yticklabels([keys.names[key] for key in compared_keys])
                axes[1].set_title(f"Difference to {_baseline(sweep)}", fontsize=7.5)
    return figure


def _columns_of_rows(keys: Keys, panels: Sequence[Panel], width: float) -> tuple[int, float]:
    """The number of panels side by side, and the width of each in inches."""
    beside = 0.1 + LETTER * max(len(name) for name in keys.names.values())
    columns = columns_of(len(panels), (width - beside) / ROWS_PANEL)
    return columns, (width - beside) / columns - 0.12


def _against(keys: Keys, panels: Sequence[Panel]) -> list[str]:
    """The keys that are compared with the baseline."""
    cells = panels[0].cells
    return [key for key in keys.names if key not in set(cells.loc[cells["baseline"], "key"])]


def are_rows_compared(keys: Keys, panels: Sequence[Panel], width: float) -> bool:
    """Whether there are differences, and a page has room for them."""
    blocks = -(-len(panels) // _columns_of_rows(keys, panels, width)[0])
    high = blocks * (0.12 + ROW * (len(keys.names) + len(_against(keys, panels))) + 2 * AROUND)
    return high <= TALLEST and any(panel.cells["difference"].notna().any() for panel in panels)


def _baseline(sweep: Sweep) -> str:
    """The name of the baseline's method; without one "the baseline", which the caption describes."""
    baseline = sweep.manifest["baseline"] or {}
    name = " ".join(str(baseline[axis]) for axes in sweep.roles.values() for axis in axes if axis in baseline)
    return names.in_sentence(names.value("method", name)) if "method" in baseline else "the baseline"


def _unit(metric: str) -> str:
    """The unit of a difference of this metric."""
    return names.metric(metric) if names.has_own_scale(metric) or metric == AVERAGE else "Points"


def _missing(panel: Panel, inches: float) -> str:
    """The number of runs behind a panel's values, if runs are missing; shorter beside a long title."""
    counted = panel.cells["n"] + panel.cells["diverged"]  # a run that diverged has its result
    if (counted == panel.cells["planned"]).all():
        return ""
    low, high, planned = panel.cells["n"].min(), panel.cells["n"].max(), panel.cells["planned"].max()
    note = f"n = {low:g} of {planned:g}" if low == high else f"n = {low:g} to {high:g} of {planned:g}"
    return note if LETTER * (len(panel.title) + len(note)) < inches else f"n < {planned:g}"


# Lines


def _lines(sweep: Sweep, keys: Keys, panels: Sequence[Panel], width: float, trends: pd.DataFrame | None) -> Figure:
    """The figure of values over an axis of numbers: the compared one, or the one along which rows have several values."""
    all_keys, is_few = list(keys.names), len(keys.names) <= FEW
    columns = columns_of(len(panels), width / LINES_PANEL[is_few])
    inches = width / columns - 0.5
    measures = [SCORE]
    if sweep.manifest["kept_from"] is not None:
        measures += [KEPT, *([KEPT_DIFFERENCE] if is_few else [])]
    elif is_few and any(panel.cells["difference"].notna().any() for panel in panels):
        measures.append(DIFFERENCE)
    heights = [1.05, *(0.85 if measure == KEPT else 0.7 for measure in measures[1:])]
    entries = [*([] if len(all_keys) == 1 else _entries(keys.names, keys.looks)), *_shown_references(panels)]
    around = [AROUND - BELOW, *[0.06] * (len(heights) - 2), BELOW] if len(heights) > 1 else [AROUND]
    figure, grid = grid_of(len(panels), columns, heights, width, entries, around)
    for at, (panel, axes) in enumerate(zip(panels, grid, strict=True)):
        scale = Scale.of(panel.cells["x"])
        dodge = min(0.03, 0.6 * scale.nearest / len(all_keys)) if len(all_keys) > 1 else 0.0
        spread = dodge * (len(all_keys) - 1) / 2
        beside = (spread + (ASIDE / inches if is_few else 0.0), spread)
        axis = sweep.over or sweep.compare
        first = panel.cells.loc[panel.cells["baseline"], "x"] if len(all_keys) == 1 else []
        ticks = scale.named(
            {x: names.value(axis, x) for x in scale.places}, inches / (1 + sum(beside) + 2 * MARGIN), [*first]
        )
        for measure, ax, height in zip(measures, axes, heights, strict=True):
            is_last = ax is axes[-1]
            quantity = _quantity(measure, panel.metric)
            cells, further_values = panel.cells, [0.0]
            if quantity.is_difference:
                zero(ax, "y", margin_of(sweep, panel.metric, "value") if measure == DIFFERENCE else None)
                if len(all_keys) > 1:
                    cells = cells[~cells["baseline"]]
                else:
                    cells = cells.assign(**{measure[0]: cells[measure[0]].where(~cells["baseline"], 0.0)})
                    marks_of_lines(ax, cells, scale)
            elif measure == SCORE:
                references = near(panel)
                further_values = [*(panel.runs["value"] if is_few else []), *references.values()]
                reference_lines(ax, "y", references)
                if is_few:
                    runs_of_lines(ax, panel.runs, all_keys, keys.looks, scale, dodge, inches)
                if len(all_keys) == 1 and trends is not None:
                    _trend(ax, panel, trends, scale)
            if len(all_keys) > 1:
                cells = cells.assign(baseline=False)
            lines(ax, cells, all_keys, keys.looks, quantity, scale, dodge)
            if not (measure == SCORE and logarithmic(ax, cells, quantity, further_values)):
                value_axis(ax, "y", quantity, quantity.limits(cells, further_values), height)
            number_axis(ax, scale, ticks, beside, is_last)
            if measure == SCORE or at % columns == 0:
                label(ax, _label(measure, panel.metric))
        axes[0].set_title(panel.title)
        above(axes[0], _missing(panel, inches))
        axes[-1].set_xlabel(names.axis(axis))
    return figure


def _quantity(measure: tuple[str, str], metric: str) -> Quantity:
    return Quantity(
        *measure, SHARE if measure[0].startswith("kept") else metric, measure in (DIFFERENCE, KEPT_DIFFERENCE)
    )


def _label(measure: tuple[str, str], metric: str) -> str:
    if measure == SCORE:
        return names.metric(metric)
    return {KEPT: "Score kept (%)", KEPT_DIFFERENCE: "Difference in\nscore kept"}.get(measure, "Difference\n(points)")


def _trend(ax: Axes, panel: Panel, trends: pd.DataFrame, scale: Scale) -> None:
    """Draws the trend in a panel of a figure that has one line."""
    trend_of_panel = trends[(trends["task"] == panel.task) & (trends["split"] == panel.split)]
    if len(trend_of_panel) == 1 and pd.notna(trend_of_panel["slope"].iloc[0]) and (panel.cells["x"] > 0).all():
        trend(ax, panel.cells, float(trend_of_panel["slope"].iloc[0]), scale)


# Learning curves


def _learning(sweep: Sweep, keys: Keys, curves: pd.DataFrame, width: float) -> Figure:
    """The figure of validation scores during training, over epochs, or over updates if some runs did not record epochs."""
    rows = keys.on(curves)
    x = {"epoch": "Epoch"} if len(rows) and rows["epoch"].notna().all() else {"step": "Update"}
    if "hours" in rows and rows["hours"].notna().all():
        x |= {"hours": "Device-hours"}
    tasks = list(dict.fromkeys(task for task, _ in sweep.shown))
    columns = columns_of(len(tasks), width / LINES_PANEL[True])
    figure, grid = grid_of(
        len(tasks), columns, [1.25] * len(x), width, _entries(keys.names, keys.looks), [AROUND] * len(x)
    )
    for task, axes in zip(tasks, grid, strict=True):
        rows_of_task = rows[rows["task"] == task]
        for ax, (column, name) in zip(axes, x.items(), strict=True):
            metric = sweep.tasks[task]
            quantity = Quantity(*SCORE, metric)
            value_axis(ax, "y", quantity, quantity.limits(rows_of_task), 1.25)
            for number, key in enumerate(keys.names):
                line = rows_of_task[rows_of_task["key"] == key]
                if line["value"].notna().any():
                    curve(ax, line, column, metric, keys.looks[key], number)
                    reached(ax, line, column, NEAR_BEST, keys.looks[key])
            value_axis(
                ax,
                "x",
                Quantity(*SCORE, COST),
                (0.0, 1.03 * rows_of_task[column].max() if len(rows_of_task) else 1.0),
                width / columns - 0.5,
            )
            ax.grid(visible=True, axis="y")
            label(ax, names.metric(metric))
            ax.set_xlabel(name)
        axes[0].set_title(names.task(task))
        if not len(rows_of_task):
            above(axes[0], "missing")
    return figure


# Seconds at inference


def inference(costs: pd.DataFrame, *, width: str = "column", quantity: str = "seconds_per_100") -> Figure:
    """Returns the figure of the cost of an answer against the size of the model, a line per method: the paper's Figure 4.

    `costs`: a row per model, method, task and quantity, with its median, lowest and highest. If `parameters` is one of the
    quantities, models are placed by their size, otherwise at equal distances.
    """
    sizes = costs[costs["quantity"] == "parameters"].groupby("model", sort=False)["median"].first() / 1e6
    rows = costs[costs["quantity"] == quantity]
    rows = rows.assign(x=rows["model"].map(sizes) if len(sizes) else rows["model"], key=rows["method"].astype(str))
    rows = rows.assign(value=rows["median"], lower=rows["lowest"], upper=rows["highest"], baseline=False, n=1)
    look_of = looks(rows["key"])
    tasks = list(rows["task"].drop_duplicates())
    with applied():
        inches = WIDTHS[width]
        columns = columns_of(len(tasks), inches / LINES_PANEL[True])
        entries = _entries({key: names.value("method", key) for key in look_of}, look_of)
        figure, grid = grid_of(len(tasks), columns, [1.25], inches, entries, [AROUND])
        for task, (ax,) in zip(tasks, grid, strict=True):
            rows_of_task = rows[rows["task"] == task]
            scale = Scale.of(rows_of_task["x"])
            ticks = {x: f"{x:.3g}" if len(sizes) else names.value("model", x) for x in scale.places}
            lines(ax, rows_of_task, list(look_of), look_of, Quantity(*SCORE, quantity), replace(scale, line="-"), 0.0)
            value_axis(ax, "y", Quantity(*SCORE, COST), limits([0.0, *rows_of_task["upper"]], COST), 1.25)
            number_axis(ax, scale, scale.named(ticks, inches / columns - 0.5), (0.0, 0.0), True)
            ax.set_title(names.task(task))
            label(ax, names.metric(quantity))
            ax.set_xlabel("Parameters (millions)" if len(sizes) else names.axis("model"))
        return finished(figure)


def _entries(name_of: Mapping[str, str], look_of: Mapping[str, Look]) -> list[Line2D]:
    """The entries of the legend: for each key a line with its marker."""
    style = {key: face(look, False) | {"lw": 0.9, "ls": look.line} for key, look in look_of.items()}
    return [Line2D([], [], label=name_of[key], **style[key]) for key in look_of]


def _shown_references(panels: Sequence[Panel]) -> list[Line2D]:
    """The legend's entries for reference lines; none if the baseline is the only one, as the caption explains it."""
    shown = [name for name in REFERENCES if any(name in near(panel) for panel in panels)]
    return [Line2D([], [], **(RULE | REFERENCES[name])) for name in shown] if set(shown) - {"baseline"} else []
