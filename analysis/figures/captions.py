"""The captions of figures: what is drawn, from how many runs, what the intervals cover, what each sign means, and the settings.

Every statement is computed from the frames that the figure is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis import names
from analysis.figures.figure_content import Keys, Panel, is_over_numbers, keys_of, near, panels_of
from analysis.figures.style import WIDTHS
from analysis.figures.sweep_figures import FEW, NEAR_BEST, are_rows_compared
from analysis.records.frame import Sweep
from analysis.records.references import NO_REFERENCES, References
from analysis.statistics.comparisons import margin_of
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
    """Returns the caption of the figure that `analysis.figures.sweep_figures.draw` makes from the same arguments, a sentence
    per line."""
    keys = keys_of(sweep, cells, curves)
    if curves is not None:
        sentences = _curve_sentences(sweep, curves, keys)
    else:
        panels = panels_of(sweep, cells, keys, averages, references)
        over = is_over_numbers(sweep, cells)
        compared = len(keys.names) <= FEW if over else are_rows_compared(keys, panels, WIDTHS[width])
        sentences = _cell_sentences(sweep, cells, keys, panels, averages, trends, over, compared)
    return "\n".join([*sentences, f"Settings: {_settings(sweep)}."]) + "\n"


def inference(costs: pd.DataFrame) -> str:
    """Returns the caption of the figure that `analysis.figures.sweep_figures.inference` makes, a sentence per line."""
    seconds = costs[costs["quantity"] == "seconds_per_100"]
    methods = [names.in_sentence(names.value("method", one)) for one in seconds["method"].drop_duplicates()]
    tasks = [names.in_sentence(names.task(one)) for one in seconds["task"].drop_duplicates()]
    low, high = seconds["rounds"].min(), seconds["rounds"].max()
    rounds = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    sentences = [
        f"Seconds per 100 answers of {_listed(methods)} against the parameters of the model, on {_listed(tasks)}.",
        f"Markers: medians over {rounds} rounds in which all rows of a task took turns on one device; bars: lowest to highest.",
    ]
    return "\n".join(sentences) + "\n"


def _cell_sentences(
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
    is_few = len(keys.names) <= FEW
    x, kept = sweep.over or sweep.compare, sweep.manifest["kept_from"] is not None
    sentences = [f"{_subject(sweep, keys, over)} on {_tasks(sweep)}; {_splits(sweep)}."]
    sentences += _interval_sentences(sweep, shown)
    if is_few or not over:
        sentences.append("Small dots: single runs.")
    if len(keys.names) > 1 and over:
        sentences.append("Lines are shifted a little, so that they do not hide each other.")
    marked = shown["baseline"].any() and not (over and len(keys.names) > 1)
    if marked:
        sentences.append(f"Hollow marker and dashed line: the baseline, {_baseline(sweep)}.")
    if kept:
        share = f"the share of its own score at {names.in_sentence(names.axis(x))} {sweep.manifest['kept_from']:g} that a run keeps"
        sentences.append(f"Second row: {share}.")
    if compared:
        sentences += _difference_sentences(sweep, shown, "kept_difference" if kept else "difference", over, panels)
    if trends is not None and over and len(keys.names) == 1:
        sentences += _trend_sentences(trends, panels)
    if averages is not None and len(averages):
        sentences.append(f"Average: {averages['rule'].iloc[0]}.")
    sentences += _reference_sentences(panels)
    sentences += _missing_sentences(shown, over, is_few)
    return sentences


def _interval_sentences(sweep: Sweep, shown: pd.DataFrame) -> list[str]:
    """Sentences that explain the markers and the bars."""
    means, with_interval = f"Markers: means over {_n(sweep, shown)}", shown[shown["lower"].notna()]
    if not len(with_interval):
        return [f"{means}; one seed has no interval."]
    over = "intervals over seeds and test examples"
    without_examples = int(with_interval["half_examples"].isna().sum())
    if without_examples == len(with_interval):
        over = "t intervals over seeds alone, as the scores of single examples are not available"
    elif without_examples:
        over += f" ({without_examples} of {len(with_interval)} over seeds alone, as scores of single examples are not available)"
    return [
        f"{means}; bars: {LEVEL:.0%} {over}, cut at the ends of the metric's range.",
        "A bar that is not visible is shorter than its marker.",
    ]


def _difference_sentences(
    sweep: Sweep, shown: pd.DataFrame, column: str, over: bool, panels: Sequence[Panel]
) -> list[str]:
    with_difference = shown[shown[column].notna() & ~shown["baseline"]]
    if not len(with_difference):
        return []
    with_interval = with_difference[with_difference[f"{column}_lower"].notna()]
    kind = "without intervals"
    if len(with_interval):
        methods = " and ".join(dict.fromkeys(with_interval[f"{column}_method"]))
        family = f"all {len(with_interval)} comparisons" if len(with_interval) > 1 else "one comparison"
        family = "each task's comparisons" if sweep.manifest["family"] == "task" else family
        kind = f"with simultaneous {LEVEL:.0%} intervals over {family} ({methods})"
    share = " in the share kept" if column.startswith("kept") else ""
    sentences = [f"Below: differences{share} to the baseline, {_baseline(sweep)}, {kind}."]
    margins = {panel.metric: margin_of(sweep, panel.metric, "value") for panel in panels} if not share else {}
    units = {metric: names.metric(metric) if names.has_own_scale(metric) else "points" for metric in margins}
    bands = dict.fromkeys(f"{margin:g} {units[metric]}" for metric, margin in margins.items() if margin)
    if bands:
        sentences.append(f"Grey band: a difference of less than {' and '.join(bands)} counts as none.")
    if not share:
        sentences.append(
            f"{'Above' if over else 'Right of'} the panel: = equivalent to the baseline; ~ not known to differ."
        )
    return sentences


def _trend_sentences(trends: pd.DataFrame, panels: Sequence[Panel]) -> list[str]:
    phrases = []
    for panel in panels:
        rows_of_panel = trends[(trends["task"] == panel.task) & (trends["split"] == panel.split)]
        for row in rows_of_panel.to_dict("records"):
            ends = f"{row['slope_lower']:+.2f} to {row['slope_upper']:+.2f}, {LEVEL:.0%} interval"
            phrases.append(f"{panel.title} {row['slope']:+.2f} ({ends})".replace("-", "\N{MINUS SIGN}"))
    return [f"Dotted line: trend per doubling, {'; '.join(phrases)}."] if phrases else []


def _reference_sentences(panels: Sequence[Panel]) -> list[str]:
    """The scores of chance and of the untuned backbone, and the panels where they lie too far off to be drawn."""
    sentences = []
    for name, words in CALLED.items():
        panel_scores = [f"{panel.title} {panel.references[name]:.1f}" for panel in panels if name in panel.references]
        off = [panel.title for panel in panels if name in panel.references and name not in near(panel)]
        if panel_scores:
            beyond = f"; not drawn, because it is too far away: {', '.join(off)}" if off else ""
            sentences.append(f"{words}: {', '.join(panel_scores)}{beyond}.")
    return sentences


def _missing_sentences(shown: pd.DataFrame, over: bool, is_few: bool) -> list[str]:
    sentences = []
    incomplete = int((shown["n"] + shown["diverged"] < shown["planned"]).sum())
    if incomplete:
        sentences.append(f"INCOMPLETE: {incomplete} of {len(shown)} values have fewer runs than planned.")
    if over and not is_few and ((shown["failed"] + shown["diverged"]) == shown["planned"]).any():
        sentences.append("Crosses: every run diverged or failed.")
    return sentences


def _curve_sentences(sweep: Sweep, curves: pd.DataFrame, keys: Keys) -> list[str]:
    low, high = (curves["n"].min(), curves["n"].max()) if len(curves) else (0, 0)
    n = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    lines = _listed([names.in_sentence(name) for name in keys.names.values()])
    return [
        f"Score on part of the validation split during training, on {_tasks(sweep)}: {lines}.",
        f"Lines: means over n = {n} runs{_seeds(sweep)}; bands: {LEVEL:.0%} t intervals over seeds at each step, "
        "cut at the ends of the metric's range.",
        f"Dotted lines and hollow markers: where the mean first reaches {NEAR_BEST:.0%} of its own best.",
    ]


def _subject(sweep: Sweep, keys: Keys, over: bool) -> str:
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
    with_runs = shown[shown["n"] > 0]
    low, high, planned = with_runs["n"].min(), with_runs["n"].max(), shown["planned"].max()
    n = (
        "0"
        if not len(with_runs)
        else f"{planned:g}"
        if low == high == planned
        else f"{low:g} to {high:g} of {planned:g}"
    )
    return f"n = {n} runs{_seeds(sweep)}"


def _seeds(sweep: Sweep) -> str:
    if "seed" not in sweep.frame:
        return ""
    seeds = sorted(sweep.frame["seed"].unique())
    return f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"


def _baseline(sweep: Sweep) -> str:
    """The baseline in words: `prompt length 64`; a method by its name."""
    baseline = sweep.manifest["baseline"] or {}
    axes = [axis for axes in sweep.roles.values() for axis in axes if axis in baseline]
    if "method" in axes:
        return names.in_sentence(names.value("method", " ".join(str(baseline[axis]) for axis in axes)))
    return ", ".join(
        f"{names.in_sentence(names.axis(axis))} {names.in_sentence(names.value(axis, baseline[axis]))}" for axis in axes
    )


def _settings(sweep: Sweep) -> str:
    settings = dict(sweep.manifest["header"])
    settings |= {axis: sweep.frame[axis].iloc[0] for axis in sweep.settled_axes}
    return ", ".join(
        f"{names.in_sentence(names.axis(key))} {names.in_sentence(names.value(key, value))}"
        for key, value in settings.items()
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
