"""The figure of a sweep, as it goes into a paper: a panel per task, and below it how far from the baseline its values are.

Words that are compared are rows of a dot plot; a number is an axis, logarithmic where it spans much; rows that are followed
over an axis are lines, above the share of the score that they keep. The same values give the same bytes. The paper's own
values are in a figure of their own (`analysis.paper_figures`), what a reader has to know in a caption (`analysis.captions`).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import names
from analysis.comparisons import margin_of
from analysis.frame import Sweep
from analysis.panels import (
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
from analysis.references import NO_REFERENCES, References
from analysis.scales import COST, MARGIN, Scale, are_numbers, limits
from analysis.scales import KEPT as SHARE
from analysis.style import LINES, WIDTHS, Look, applied, looks
from mmprompt.runs.files import write_over

KINDS, FORMATS = ("pdf", "png", "svg"), ("pdf", "png")  # that there are; that are made unless others are asked for
DPI = 300  # of a PNG
ON_SCREEN, PIXELS = 180, 130  # of a notebook: dots per inch, and pixels that an inch is shown as
FEW = 3  # lines, of which single runs and differences are shown too
TALLEST = 8.5  # inches: what a page has room for, with a caption
LETTER = 0.047  # inches: width of a letter, about
ROW = 0.16  # inches: height of a row of a dot plot
AROUND, BELOW = 0.49, 0.33  # inches: what stands above and below a panel; of that below
LEGEND_LINE = 0.14  # inches: height of a line of the legend
ROWS_PANEL = 0.98  # inches: the least width of its panels
LINES_PANEL = {True: 1.3, False: 1.5}  # inches: the least width of panels of lines, few or many
FAR = 1.0  # of the range of what is measured: a line to compare with that is further off is left out, and the caption says so
NEAR_BEST = 0.99  # of a learning curve's best
AVERAGE = "average"


@dataclass(frozen=True)
class Panel:
    """A task and split: what is drawn of it."""

    task: str
    split: str
    title: str
    metric: str
    cells: pd.DataFrame  # with `x` and `key`
    runs: pd.DataFrame
    references: Mapping[str, float]  # by their names in `REFERENCES`


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
    """`width`: one of `WIDTHS`. `curves`: learning curves, where the sweep asks for those and not for its cells; with a column
    `hours` they are drawn over that too. `averages` (over tasks) have a panel of their own, `trends` and
    `references` lines in each."""
    with applied():
        if curves is not None:
            return finished(_learning(sweep, keys_of(sweep, cells, curves), curves, WIDTHS[width]))
        keys = keys_of(sweep, cells)
        shown = panels_of(sweep, cells, keys, averages, references)
        if is_over_numbers(sweep, cells):
            return finished(_lines(sweep, keys, shown, WIDTHS[width], trends))
        return finished(_rows(sweep, keys, shown, WIDTHS[width]))


def is_over_numbers(sweep: Sweep, cells: pd.DataFrame) -> bool:
    """Whether values are drawn over an axis of numbers; else a row each."""
    x = cells[sweep.over or sweep.compare]
    return are_numbers(x) and x.nunique() > 1


class Shown(Figure):
    """A figure that a notebook shows as it is saved, and that is saved in our style (Type 42 fonts) whatever the user's is."""

    def savefig(self, *places: Any, **options: Any) -> None:
        with applied():
            super().savefig(*places, **options)

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        with applied():
            return bytes(printed(self, "png", ON_SCREEN)), {"width": round(self.get_figwidth() * PIXELS)}


def save(figure: Figure, stem: Path, formats: Iterable[str] = FORMATS) -> list[Path]:
    """STEM.pdf and so on; returns where they are."""
    places = []
    with applied():
        for kind in formats:
            places.append(stem.with_name(f"{stem.name}.{kind}"))
            write_over(places[-1], printed(figure, kind))
    return places


def printed(figure: Figure, kind: str, dpi: int = DPI) -> memoryview:
    """By the canvas itself: `savefig` would draw everything once more, to ask a layout that is settled. No date, no version."""
    made = io.BytesIO()
    if kind == "pdf":
        FigureCanvasPdf(figure).print_pdf(made, metadata={"CreationDate": None})
    elif kind == "svg":
        FigureCanvasSVG(figure).print_svg(made, metadata={"Date": None, "Creator": None})
    else:
        figure.set_dpi(dpi)
        FigureCanvasAgg(figure).print_png(made, metadata={"Software": None})
    return made.getbuffer()


def finished(figure: Figure) -> Figure:
    """With its layout solved, once for every format it is saved in."""
    figure.align_ylabels()
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


# What is drawn


@dataclass(frozen=True)
class Keys:
    """The rows or lines of a figure: each has a name and a look, the same in every panel."""

    labels: Sequence[str]  # the columns whose values name one
    names: Mapping[str, str]
    looks: Mapping[str, Look]

    @staticmethod
    def of(sweep: Sweep, rows: pd.DataFrame, x: str | None) -> Keys:
        """`x`: the label that is an axis. A method has its own colour and marker; what is told apart besides, a kind of line."""
        labels = [label for label in sweep.roles if label != x]
        method = next((label for label in labels if "method" in sweep.roles[label]), None)
        alone = str(sweep.manifest["header"].get("method", ""))
        said, styled, variants = {}, {}, {}
        for row in rows[labels].drop_duplicates().to_dict("records") if labels else [{}]:
            key = _key(row, labels)
            said[key] = ", ".join(_name_of(sweep, label, row[label]) for label in labels)
            styled[key] = str(row[method]) if method is not None else key or alone
            variants[key] = _key(row, [label for label in labels if label != method]) if method is not None else ""
        known, kinds = looks(styled.values()), list(dict.fromkeys(variants.values()))
        made = {key: replace(known[styled[key]], line=LINES[kinds.index(variants[key]) % len(LINES)]) for key in said}
        return Keys(labels, said, made)

    def on(self, rows: pd.DataFrame) -> pd.DataFrame:
        """With the column `key`."""
        keys = [_key(row, self.labels) for row in rows[list(self.labels)].to_dict("records")]
        return rows.assign(key=pd.Series(keys, rows.index, dtype=object))


def _key(row: Mapping[Any, Any], labels: Sequence[str]) -> str:
    return " ".join(str(row[label]) for label in labels)


def _name_of(sweep: Sweep, label: str, value: Any) -> str:
    said = names.value(label, value)
    return f"{names.axis(label).lower()} {said}" if label in sweep.extra_axes else said


def keys_of(sweep: Sweep, cells: pd.DataFrame, curves: pd.DataFrame | None = None) -> Keys:
    """Of a figure of cells, or of one of learning curves: those have a line for each row of the sweep, done or not."""
    if curves is not None:
        return Keys.of(sweep, sweep.named, sweep.over)
    return Keys.of(sweep, cells, (sweep.over or sweep.compare) if is_over_numbers(sweep, cells) else None)


def panels_of(
    sweep: Sweep,
    cells: pd.DataFrame,
    keys: Keys,
    averages: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
) -> list[Panel]:
    """For each task and split that is shown, and for the average where that is given."""
    x, runs = sweep.over or sweep.compare, sweep.scores
    cells, runs = keys.on(cells.assign(x=cells[x])), keys.on(runs.assign(x=runs[x]))
    runs = runs[runs["value"].notna()]
    tasks = [task for task, _ in sweep.shown]
    found = []
    for task, split in sweep.shown:
        own, those = (each[(each["task"] == task) & (each["split"] == split)] for each in (cells, runs))
        title = names.task(task) + (f", {names.split(split, task)}" if tasks.count(task) > 1 else "")
        compared = {**_baseline_value(own), **references.get((task, split), {})}
        found.append(Panel(task, split, title, sweep.tasks[task], own, those, compared))
    if averages is not None and len(averages):
        own = keys.on(averages.assign(x=averages[x], failed=0, diverged=0, planned=averages["n"]))
        found.append(Panel(AVERAGE, "", names.task(AVERAGE), AVERAGE, own, runs.head(0), _baseline_value(own)))
    return found


def _baseline_value(cells: pd.DataFrame) -> dict[str, float]:
    """That of the baseline, where that is one."""
    baseline = cells.loc[cells["baseline"], "value"]
    return {"baseline": float(baseline.iloc[0])} if len(baseline) == 1 and baseline.notna().all() else {}


def near(panel: Panel) -> dict[str, float]:
    """The references that are no further from what was measured than that spans itself."""
    ends = panel.cells[["value", "lower", "upper"]].to_numpy(float)
    shown = ends[pd.notna(ends)]
    if not len(shown):
        return {}
    low, high = limits(shown, panel.metric)
    reach = FAR * (high - low)
    return {key: value for key, value in panel.references.items() if low - reach <= value <= high + reach}


# Rows


def _rows(sweep: Sweep, keys: Keys, panels: Sequence[Panel], width: float) -> Figure:
    """Words that are compared: a row each, the differences of all but the baseline below."""
    every, against = list(keys.names), _against(keys, panels)
    compared = are_rows_compared(keys, panels, width)
    columns, inches = _columns_of_rows(keys, panels, width)
    heights = [0.06 + ROW * len(every), *([0.06 + ROW * len(against)] if compared else [])]
    figure, grid = grid_of(len(panels), columns, heights, width, _shown_references(panels), [AROUND] * len(heights))
    for at, (panel, axes) in enumerate(zip(panels, grid, strict=True)):
        quantity = Quantity(*SCORE, panel.metric)
        shown = near(panel)
        rows(axes[0], panel.cells, every, keys.looks, quantity)
        runs_of_rows(axes[0], panel.runs, every, keys.looks)
        reference_lines(axes[0], "x", shown)
        bounds = quantity.limits(panel.cells, [*panel.runs["value"], *shown.values()])
        value_axis(axes[0], "x", quantity, bounds, inches)
        axes[0].set_title(panel.title)
        axes[0].set_xlabel(names.metric(panel.metric))
        above(axes[0], _missing(panel, inches))
        if compared:
            quantity = Quantity(*DIFFERENCE, panel.metric, is_difference=True)
            own = panel.cells[panel.cells["key"].isin(against)]
            rows(axes[1], own, against, keys.looks, quantity)
            marks_of_rows(axes[1], own, against)
            zero(axes[1], "x", margin_of(sweep, panel.metric, "value"))
            value_axis(axes[1], "x", quantity, quantity.limits(own, [0.0]), inches)
            axes[1].set_xlabel(_unit(panel.metric))
        if at % columns == 0:
            axes[0].set_yticklabels(list(keys.names.values()))
            if compared:
                axes[1].set_yticklabels([keys.names[key] for key in against])
                axes[1].set_title(f"Difference to {_baseline(sweep)}", fontsize=7.5)
    return figure


def _columns_of_rows(keys: Keys, panels: Sequence[Panel], width: float) -> tuple[int, float]:
    """How many panels stand side by side, and how many inches are in each."""
    beside = 0.1 + LETTER * max(len(name) for name in keys.names.values())
    columns = columns_of(len(panels), (width - beside) / ROWS_PANEL)
    return columns, (width - beside) / columns - 0.12


def _against(keys: Keys, panels: Sequence[Panel]) -> list[str]:
    """What is compared with the baseline."""
    cells = panels[0].cells
    return [key for key in keys.names if key not in set(cells.loc[cells["baseline"], "key"])]


def are_rows_compared(keys: Keys, panels: Sequence[Panel], width: float) -> bool:
    """Whether there are differences, and room for them on a page."""
    blocks = -(-len(panels) // _columns_of_rows(keys, panels, width)[0])
    high = blocks * (0.12 + ROW * (len(keys.names) + len(_against(keys, panels))) + 2 * AROUND)
    return high <= TALLEST and any(panel.cells["difference"].notna().any() for panel in panels)


def _baseline(sweep: Sweep) -> str:
    """A method by its name; what else it is the caption says."""
    baseline = sweep.manifest["baseline"] or {}
    said = " ".join(str(baseline[axis]) for axes in sweep.roles.values() for axis in axes if axis in baseline)
    return names.in_sentence(names.value("method", said)) if "method" in baseline else "the baseline"


def _unit(metric: str) -> str:
    """Of a difference."""
    return names.metric(metric) if names.has_own_scale(metric) or metric == AVERAGE else "Points"


def _missing(panel: Panel, inches: float) -> str:
    """How many runs values have behind them, where that is not what was planned; in short beside a title that leaves no room."""
    known = panel.cells["n"] + panel.cells["diverged"]  # that a run diverges is what it came to
    if (known == panel.cells["planned"]).all():
        return ""
    low, high, planned = panel.cells["n"].min(), panel.cells["n"].max(), panel.cells["planned"].max()
    said = f"n = {low:g} of {planned:g}" if low == high else f"n = {low:g} to {high:g} of {planned:g}"
    return said if LETTER * (len(panel.title) + len(said)) < inches else f"n < {planned:g}"


# Lines


def _lines(sweep: Sweep, keys: Keys, panels: Sequence[Panel], width: float, trends: pd.DataFrame | None) -> Figure:
    """A number that is compared, or that rows are followed over."""
    every, few = list(keys.names), len(keys.names) <= FEW
    columns = columns_of(len(panels), width / LINES_PANEL[few])
    inches = width / columns - 0.5
    measures = [SCORE]
    if sweep.manifest["kept_from"] is not None:
        measures += [KEPT, *([KEPT_DIFFERENCE] if few else [])]
    elif few and any(panel.cells["difference"].notna().any() for panel in panels):
        measures.append(DIFFERENCE)
    heights = [1.05, *(0.85 if measure == KEPT else 0.7 for measure in measures[1:])]
    entries = [*([] if len(every) == 1 else _entries(keys.names, keys.looks)), *_shown_references(panels)]
    around = [AROUND - BELOW, *[0.06] * (len(heights) - 2), BELOW] if len(heights) > 1 else [AROUND]
    figure, grid = grid_of(len(panels), columns, heights, width, entries, around)
    for at, (panel, axes) in enumerate(zip(panels, grid, strict=True)):
        scale = Scale.of(panel.cells["x"])
        dodge = min(0.03, 0.6 * scale.nearest / len(every)) if len(every) > 1 else 0.0
        spread = dodge * (len(every) - 1) / 2
        beside = (spread + (ASIDE / inches if few else 0.0), spread)
        axis = sweep.over or sweep.compare
        first = panel.cells.loc[panel.cells["baseline"], "x"] if len(every) == 1 else []
        ticks = scale.named(
            {x: names.value(axis, x) for x in scale.places}, inches / (1 + sum(beside) + 2 * MARGIN), [*first]
        )
        for measure, ax, height in zip(measures, axes, heights, strict=True):
            is_last = ax is axes[-1]
            quantity = _quantity(measure, panel.metric)
            own, more = panel.cells, [0.0]
            if quantity.is_difference:
                zero(ax, "y", margin_of(sweep, panel.metric, "value") if measure == DIFFERENCE else None)
                if len(every) > 1:
                    own = own[~own["baseline"]]
                else:
                    own = own.assign(**{measure[0]: own[measure[0]].where(~own["baseline"], 0.0)})
                    marks_of_lines(ax, own, scale)
            elif measure == SCORE:
                shown = near(panel)
                more = [*(panel.runs["value"] if few else []), *shown.values()]
                reference_lines(ax, "y", shown)
                if few:
                    runs_of_lines(ax, panel.runs, every, keys.looks, scale, dodge, inches)
                if len(every) == 1 and trends is not None:
                    _trend(ax, panel, trends, scale)
            if len(every) > 1:
                own = own.assign(baseline=False)
            lines(ax, own, every, keys.looks, quantity, scale, dodge)
            if not (measure == SCORE and logarithmic(ax, own, quantity, more)):
                value_axis(ax, "y", quantity, quantity.limits(own, more), height)
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
    """Of a figure with one line."""
    own = trends[(trends["task"] == panel.task) & (trends["split"] == panel.split)]
    if len(own) == 1 and pd.notna(own["slope"].iloc[0]) and (panel.cells["x"] > 0).all():
        trend(ax, panel.cells, float(own["slope"].iloc[0]), scale)


# Learning curves


def _learning(sweep: Sweep, keys: Keys, curves: pd.DataFrame, width: float) -> Figure:
    """The score on validation while training, against epochs, or updates where runs do not say how many epochs those were."""
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
        own = rows[rows["task"] == task]
        for ax, (column, name) in zip(axes, x.items(), strict=True):
            metric = sweep.tasks[task]
            quantity = Quantity(*SCORE, metric)
            value_axis(ax, "y", quantity, quantity.limits(own), 1.25)
            for number, key in enumerate(keys.names):
                line = own[own["key"] == key]
                if line["value"].notna().any():
                    curve(ax, line, column, metric, keys.looks[key], number)
                    reached(ax, line, column, NEAR_BEST, keys.looks[key])
            value_axis(
                ax,
                "x",
                Quantity(*SCORE, COST),
                (0.0, 1.03 * own[column].max() if len(own) else 1.0),
                width / columns - 0.5,
            )
            ax.grid(visible=True, axis="y")
            label(ax, names.metric(metric))
            ax.set_xlabel(name)
        axes[0].set_title(names.task(task))
        if not len(own):
            above(axes[0], "missing")
    return figure


# Seconds at inference


def inference(costs: pd.DataFrame, *, width: str = "column", quantity: str = "seconds_per_100") -> Figure:
    """What an answer costs against the size of the model, a line per method: the paper's Figure 4.

    `costs`: a row per model, method, task and quantity, with its median, lowest and highest. Where `parameters` is one of the
    quantities, models lie where their size is; else side by side.
    """
    sizes = costs[costs["quantity"] == "parameters"].groupby("model", sort=False)["median"].first() / 1e6
    rows = costs[costs["quantity"] == quantity]
    rows = rows.assign(x=rows["model"].map(sizes) if len(sizes) else rows["model"], key=rows["method"].astype(str))
    rows = rows.assign(value=rows["median"], lower=rows["lowest"], upper=rows["highest"], baseline=False, n=1)
    known = looks(rows["key"])
    tasks = list(rows["task"].drop_duplicates())
    with applied():
        inches = WIDTHS[width]
        columns = columns_of(len(tasks), inches / LINES_PANEL[True])
        entries = _entries({key: names.value("method", key) for key in known}, known)
        figure, grid = grid_of(len(tasks), columns, [1.25], inches, entries, [AROUND])
        for task, (ax,) in zip(tasks, grid, strict=True):
            own = rows[rows["task"] == task]
            scale = Scale.of(own["x"])
            ticks = {x: f"{x:.3g}" if len(sizes) else names.value("model", x) for x in scale.places}
            lines(ax, own, list(known), known, Quantity(*SCORE, quantity), replace(scale, line="-"), 0.0)
            value_axis(ax, "y", Quantity(*SCORE, COST), limits([0.0, *own["upper"]], COST), 1.25)
            number_axis(ax, scale, scale.named(ticks, inches / columns - 0.5), (0.0, 0.0), True)
            ax.set_title(names.task(task))
            label(ax, names.metric(quantity))
            ax.set_xlabel("Parameters (millions)" if len(sizes) else names.axis("model"))
        return finished(figure)


# Where panels lie


def columns_of(count: int, fitting: float) -> int:
    """As many as fit, in rows as even as they come."""
    most = max(1, min(count, int(fitting + 0.05)))
    return -(-count // -(-count // most))


def grid_of(
    count: int,
    columns: int,
    heights: Sequence[float],
    width: float,
    entries: Sequence[Line2D],
    around: Sequence[float],
) -> tuple[Figure, list[list[Axes]]]:
    """A figure, and for each of so many panels its axes from the top, which are so high. `around`: inches for what stands
    above and below each of these. `entries` of the legend above them all."""
    blocks = -(-count // columns)
    packed = list(packed_in_lines(entries, width))
    high = blocks * (sum(heights) + sum(around)) + LEGEND_LINE * len(packed)
    figure = Shown(figsize=(width, high), layout="constrained")
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(w_pad=0.02, h_pad=0.02, wspace=0.03, hspace=0.02)  # type: ignore[call-arg]
    grid = figure.add_gridspec(blocks * len(heights), columns, height_ratios=[*heights] * blocks)
    axes = [
        [
            figure.add_subplot(grid[len(heights) * (at // columns) + level, at % columns])
            for level in range(len(heights))
        ]
        for at in range(count)
    ]
    if packed:
        figure.legend(handles=by_columns(packed), loc="outside upper left", ncols=len(packed[0]))
    return figure, axes


def packed_in_lines(entries: Sequence[Line2D], width: float) -> Iterator[list[Line2D]]:
    """Entries of a legend, in lines that fit, as even as they come."""
    if not entries:
        return
    each = max(0.42 + LETTER * len(str(entry.get_label())) for entry in entries)
    columns = columns_of(len(entries), width / each)
    for first in range(0, len(entries), columns):
        yield list(entries[first : first + columns])


def by_columns(packed: Sequence[Sequence[Line2D]]) -> list[Line2D]:
    """In the order in which Matplotlib fills a legend, column by column."""
    return [line[at] for at in range(len(packed[0])) for line in packed if at < len(line)]


def _entries(called: Mapping[str, str], known: Mapping[str, Look]) -> list[Line2D]:
    """Of the legend: a line with its marker for each."""
    style = {key: face(look, False) | {"lw": 0.9, "ls": look.line} for key, look in known.items()}
    return [Line2D([], [], label=called[key], **style[key]) for key in known]


def _shown_references(panels: Sequence[Panel]) -> list[Line2D]:
    """Only where there is more to explain than the baseline, which the caption does."""
    shown = [name for name in REFERENCES if any(name in near(panel) for panel in panels)]
    return [Line2D([], [], **(RULE | REFERENCES[name])) for name in shown] if set(shown) - {"baseline"} else []
