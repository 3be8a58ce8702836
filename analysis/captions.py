"""What a reader of a figure has to know, in plain sentences for the caption: what is drawn, of how many runs, what intervals
are of, what each sign means, and the settings. Everything is read off the frames that the figure is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import names
from analysis.comparisons import margin_of
from analysis.figures import (
    FEW,
    NEAR_BEST,
    Keys,
    Panel,
    are_rows_compared,
    is_over_numbers,
    keys_of,
    near,
    panels_of,
)
from analysis.frame import Sweep
from analysis.references import NO_REFERENCES, References
from analysis.style import WIDTHS
from mmprompt.studies.intervals import LEVEL

CALLED = {"zero_shot": "Backbone without tuning", "chance": "Chance (always the same answer, the best one)"}


def caption(
    sweep: Sweep,
    cells: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    width: str = "text",
    averages: pd.DataFrame | None = None,
    trends: pd.DataFrame | None = None,
    references: References = NO_REFERENCES,
) -> str:
    """Of the figure that `analysis.figures.draw` makes of the same arguments: a sentence per line."""
    keys = keys_of(sweep, cells, curves)
    if curves is not None:
        said = _of_curves(sweep, curves, keys)
    else:
        panels = panels_of(sweep, cells, keys, averages, references)
        over = is_over_numbers(sweep, cells)
        compared = len(keys.names) <= FEW if over else are_rows_compared(keys, panels, WIDTHS[width])
        said = _of_cells(sweep, cells, keys, panels, averages, trends, over, compared)
    return "\n".join([*said, f"Settings: {_settings(sweep)}."]) + "\n"


def inference(costs: pd.DataFrame) -> str:
    """Of the figure that `analysis.figures.inference` makes: a sentence per line."""
    seconds = costs[costs["quantity"] == "seconds_per_100"]
    methods = [names.in_sentence(names.value("method", one)) for one in seconds["method"].drop_duplicates()]
    tasks = [names.in_sentence(names.task(one)) for one in seconds["task"].drop_duplicates()]
    low, high = seconds["rounds"].min(), seconds["rounds"].max()
    rounds = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    said = [
        f"Seconds per 100 answers of {_listed(methods)} against the parameters of the model, on {_listed(tasks)}.",
        f"Markers: medians over {rounds} rounds in which all rows of a task took turns on one device; bars: lowest to highest.",
    ]
    return "\n".join(said) + "\n"


def _of_cells(
    sweep: Sweep,
    cells: pd.DataFrame,
    keys: Keys,
    panels: Sequence[Panel],
    averages: pd.DataFrame | None,
    trends: pd.DataFrame | None,
    over: bool,
    compared: bool,
) -> list[str]:
    shown = cells[[pair in sweep.shown for pair in zip(cells["task"], cells["split"], strict=True)]]
    few = len(keys.names) <= FEW
    x, kept = sweep.over or sweep.compare, sweep.manifest["kept_from"] is not None
    said = [f"{_what(sweep, keys, over)} on {_tasks(sweep)}; {_splits(sweep)}."]
    said += _of_intervals(sweep, shown)
    if few or not over:
        said.append("Small dots: single runs.")
    if len(keys.names) > 1 and over:
        said.append("Lines are set a little apart.")
    marked = shown["baseline"].any() and not (over and len(keys.names) > 1)
    if marked:
        said.append(f"Hollow marker and dashed line: the baseline, {_baseline(sweep)}.")
    if kept:
        share = f"the share of its own score at {names.in_sentence(names.axis(x))} {sweep.manifest['kept_from']:g} that a run keeps"
        said.append(f"Second row: {share}.")
    if compared:
        said += _of_differences(sweep, shown, "kept_difference" if kept else "difference", over, panels)
    if trends is not None and over and len(keys.names) == 1:
        said += _of_trends(trends, panels)
    if averages is not None and len(averages):
        said.append(f"Average: {averages['rule'].iloc[0]}.")
    said += _of_references(panels)
    said += _of_missing(shown, over, few)
    return said


def _of_intervals(sweep: Sweep, shown: pd.DataFrame) -> list[str]:
    """What markers and bars are."""
    means, known = f"Markers: means over {_n(sweep, shown)}", shown[shown["lower"].notna()]
    if not len(known):
        return [f"{means}; one seed has no interval."]
    over = "intervals over seeds and test examples"
    lacking = int(known["half_examples"].isna().sum())
    if lacking == len(known):
        over = "t intervals over seeds alone, as the scores of single examples are not at hand"
    elif lacking:
        over += f" ({lacking} of {len(known)} over seeds alone, as scores of single examples are not at hand)"
    return [
        f"{means}; bars: {LEVEL:.0%} {over}, cut at the ends of the metric's range.",
        "A bar that is not seen is shorter than its marker.",
    ]


def _of_differences(sweep: Sweep, shown: pd.DataFrame, what: str, over: bool, panels: Sequence[Panel]) -> list[str]:
    known = shown[shown[what].notna() & ~shown["baseline"]]
    if not len(known):
        return []
    with_interval = known[known[f"{what}_lower"].notna()]
    kind = "without intervals"
    if len(with_interval):
        methods = " and ".join(dict.fromkeys(with_interval[f"{what}_method"]))
        of = f"all {len(with_interval)} comparisons" if len(with_interval) > 1 else "one comparison"
        of = "each task's comparisons" if sweep.manifest["family"] == "task" else of
        kind = f"with simultaneous {LEVEL:.0%} intervals over {of} ({methods})"
    share = " in the share kept" if what.startswith("kept") else ""
    said = [f"Below: differences{share} to the baseline, {_baseline(sweep)}, {kind}."]
    margins = {panel.metric: margin_of(sweep, panel.metric, "value") for panel in panels} if not share else {}
    units = {metric: names.metric(metric) if names.has_own_scale(metric) else "points" for metric in margins}
    bands = dict.fromkeys(f"{margin:g} {units[metric]}" for metric, margin in margins.items() if margin)
    if bands:
        said.append(f"Grey band: a difference of less than {' and '.join(bands)} counts as none.")
    if not share:
        said.append(f"{'Above' if over else 'Right of'} the panel: = equivalent to it; ~ not known to differ.")
    return said


def _of_trends(trends: pd.DataFrame, panels: Sequence[Panel]) -> list[str]:
    found = []
    for panel in panels:
        own = trends[(trends["task"] == panel.task) & (trends["split"] == panel.split)]
        for row in own.to_dict("records"):
            ends = f"{row['slope_lower']:+.2f} to {row['slope_upper']:+.2f}, {LEVEL:.0%} interval"
            found.append(f"{panel.title} {row['slope']:+.2f} ({ends})".replace("-", "\N{MINUS SIGN}"))
    return [f"Dotted line: trend per doubling, {'; '.join(found)}."] if found else []


def _of_references(panels: Sequence[Panel]) -> list[str]:
    """Chance and the untuned backbone, and those that lie too far off to be drawn."""
    said = []
    for name, words in CALLED.items():
        there = [f"{panel.title} {panel.references[name]:.1f}" for panel in panels if name in panel.references]
        off = [panel.title for panel in panels if name in panel.references and name not in near(panel)]
        if there:
            beyond = f"; not drawn, as it is far off: {', '.join(off)}" if off else ""
            said.append(f"{words}: {', '.join(there)}{beyond}.")
    return said


def _of_missing(shown: pd.DataFrame, over: bool, few: bool) -> list[str]:
    said = []
    lost = int((shown["n"] + shown["diverged"] < shown["planned"]).sum())
    if lost:
        said.append(f"INCOMPLETE: {lost} of {len(shown)} values have fewer runs than planned.")
    if over and not few and ((shown["failed"] + shown["diverged"]) == shown["planned"]).any():
        said.append("Crosses: every run diverged or failed.")
    return said


def _of_curves(sweep: Sweep, curves: pd.DataFrame, keys: Keys) -> list[str]:
    low, high = (curves["n"].min(), curves["n"].max()) if len(curves) else (0, 0)
    n = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    lines = _listed([names.in_sentence(name) for name in keys.names.values()])
    return [
        f"Score on part of the validation split while training, on {_tasks(sweep)}: {lines}.",
        f"Lines: means over n = {n} runs{_seeds(sweep)}; bands: {LEVEL:.0%} t intervals over seeds at each step, "
        "cut at the ends of the metric's range.",
        f"Dotted lines and hollow markers: where the mean first reaches {NEAR_BEST:.0%} of its own best.",
    ]


def _what(sweep: Sweep, keys: Keys, over: bool) -> str:
    if over:
        x = names.axis(sweep.over or sweep.compare)
        lines = (
            f" of {_listed([names.in_sentence(name) for name in keys.names.values()])}" if len(keys.names) > 1 else ""
        )
        return f"Score{lines} against {names.in_sentence(x)}"
    return f"Score by {names.in_sentence(names.axis(sweep.compare))}"


def _tasks(sweep: Sweep) -> str:
    return _listed([names.in_sentence(names.task(task)) for task in dict.fromkeys(task for task, _ in sweep.shown)])


def _splits(sweep: Sweep) -> str:
    splits = dict.fromkeys(names.split(split, task) for task, split in sweep.shown)
    return f"{_listed(list(splits))} split{'s' if len(splits) > 1 else ''}"


def _n(sweep: Sweep, shown: pd.DataFrame) -> str:
    there = shown[shown["n"] > 0]
    low, high, planned = there["n"].min(), there["n"].max(), shown["planned"].max()
    n = "0" if not len(there) else f"{planned:g}" if low == high == planned else f"{low:g} to {high:g} of {planned:g}"
    return f"n = {n} runs{_seeds(sweep)}"


def _seeds(sweep: Sweep) -> str:
    if "seed" not in sweep.frame:
        return ""
    seeds = sorted(sweep.frame["seed"].unique())
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _baseline(sweep: Sweep) -> str:
    """`prompt length 64`; a method by its name."""
    baseline = sweep.manifest["baseline"] or {}
    axes = [axis for axes in sweep.roles.values() for axis in axes if axis in baseline]
    if "method" in axes:
        return names.in_sentence(names.value("method", " ".join(str(baseline[axis]) for axis in axes)))
    return ", ".join(
        f"{names.in_sentence(names.axis(axis))} {names.in_sentence(names.value(axis, baseline[axis]))}" for axis in axes
    )


def _settings(sweep: Sweep) -> str:
    said = dict(sweep.manifest["header"])
    said |= {axis: sweep.frame[axis].iloc[0] for axis in sweep.settled_axes}
    return ", ".join(
        f"{names.in_sentence(names.axis(key))} {names.in_sentence(names.value(key, value))}"
        for key, value in said.items()
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
