"""Figures: they show the cells, name what is missing, are ready for a paper, and have the same bytes each time."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import figure_checks
import numpy as np
import pandas as pd
import pytest
from full_sweeps import costs_of
from groups import some
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from synthetic_store import DISABLED, LENGTHS, launch, manifest, run_all

from analysis import names
from analysis.figures import captions, figure_content, figure_files, paper_figures, style
from analysis.figures.panels import SCORE, Quantity, rows
from analysis.figures.scales import BREAK, Scale, limits, ticks
from analysis.figures.shown_figure import save
from analysis.figures.sweep_figures import draw, inference
from analysis.paper_values import published
from analysis.records.frame import Sweep
from analysis.records.manifest import point_values
from analysis.records.reading import read_sweep
from analysis.statistics.cell_statistics import cells
from analysis.statistics.summaries import averages, trends
from mmprompt.runs.comparison import FACTS
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.store import Store
from sweeps.grid.manifest import expand
from sweeps.grid.manifest import manifest as frozen
from sweeps.grid.sweep_file import names as sweep_names

TASKS = ["micro_grounding", "micro_entailment"]
WIDTHS = list(style.WIDTHS)


def drawn(root: Path, about: dict[str, Any], skipped: int = 0) -> tuple[Figure, pd.DataFrame, Sweep]:
    """The figure, the cells of the test split, and the sweep, whose last `skipped` points have not run."""
    store = Store(root)
    launch(store, about)
    run_all(store, about["points"][: len(about["points"]) - skipped], DISABLED, seed=0)
    sweep = read_sweep(store, about["sweep"])
    values = cells(sweep)
    return draw(sweep, values), values[values["split"] == "test"], sweep


def length(seeds: list[int], **shown: Any) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.length": LENGTHS, "seed": seeds}
    return manifest("length", axes, "prompt.length", {"table": "6", "figure": "2"}, {"prompt.length": 64}, **shown)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep over lengths with three seeds; all runs are done."""
    _, _, sweep = drawn(tmp_path_factory.mktemp("whole"), length([1, 2, 3]))
    return sweep


def with_manifest(sweep: Sweep, **changes: Any) -> Sweep:
    return replace(sweep, manifest=sweep.manifest | changes)


def of_test(sweep: Sweep) -> pd.DataFrame:
    """The cells of the test split."""
    return cells(sweep).query("split == 'test'")


def scores_of(figure: Figure) -> list[Axes]:
    """The panels of scores; they are those with a title."""
    return [ax for ax in figure.axes if ax.get_title(loc="left") in map(names.task, ADDED_TASKS)]


def differences_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if figure_checks.is_difference(ax)]


ADDED_TASKS = [*TASKS, "micro_vqa", "micro_caption", "average"]


def drawn_as(ax: Axes, what: str, way: str = "y") -> np.ndarray:
    """The positions of marks of this kind (mean, runs, ...) on the axis of values."""
    data = [
        np.asarray(line.get_ydata() if way == "y" else line.get_xdata(), float)
        for line in ax.lines
        if line.get_gid() == what
    ]
    return np.concatenate(data) if data else np.array([])


def whiskers(ax: Axes) -> np.ndarray:
    """The whiskers, shape (values, 2 ends, x and y)."""
    parts = [part for each in ax.collections if isinstance(each, LineCollection) for part in each.get_segments()]
    return np.array([part for part in parts if len(part)]).reshape(
        -1, 2, 2
    )  # a mean without an interval has an empty whisker


# Values


def test_whiskers_and_markers_show_the_cells_and_dots_the_runs(whole: Sweep) -> None:
    values = of_test(whole)
    figure = draw(whole, values)
    for ax, task in zip(scores_of(figure), TASKS, strict=True):
        shown = values[values["task"] == task]
        assert np.allclose(whiskers(ax)[:, :, 1], shown[["lower", "upper"]].clip(0, 100))
        assert np.allclose(drawn_as(ax, "line"), shown["value"])
        assert np.allclose(sorted(drawn_as(ax, "mean")), sorted(shown["value"]))
        (hollow,) = [line for line in ax.lines if line.get_gid() == "mean" and line.get_markerfacecolor() == "white"]
        assert np.allclose(np.asarray(hollow.get_ydata(), float), shown.loc[shown["baseline"], "value"])
        runs = whole.scores.query("split == 'test' and task == @task")["value"]
        assert np.allclose(sorted(drawn_as(ax, "runs")), sorted(runs))
        (line,) = [line for line in ax.lines if line.get_gid() == "baseline"]
        assert line.get_ydata()[0] == hollow.get_ydata()[0]  # type: ignore[index]


def test_the_lower_panel_shows_the_differences_and_intervals_of_the_frame(whole: Sweep) -> None:
    values = cells(whole)
    values = values.assign(
        difference_lower=values["difference"] - 7,
        difference_upper=values["difference"] + 3,
        difference_verdict=values["difference_verdict"].where(values["prompt.length"] != 16, "not known"),
    )
    for ax, task in zip(differences_of(draw(whole, values)), TASKS, strict=True):
        shown = values[(values["task"] == task) & (values["split"] == "test")]
        others = shown[~shown["baseline"]]
        assert np.allclose(whiskers(ax)[:, :, 1], others[["difference_lower", "difference_upper"]])
        assert np.allclose(sorted(drawn_as(ax, "mean")), sorted([0.0, *others["difference"]]))
        marks = [text.get_text() for text in ax.texts]
        assert marks.count("~") == (others["difference_verdict"] == "not known").sum() > 0


def test_compared_words_are_rows_downward_in_the_order_of_the_sweep(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.depth": ["both", "encoder", "decoder"], "seed": [1, 2, 3]}
    about = manifest("depth", axes, "prompt.depth", {"table": "3"}, {"prompt.depth": "both"})
    figure, values, _ = drawn(tmp_path, about)
    first, second = scores_of(figure)
    assert [label.get_text() for label in first.get_yticklabels()] == ["Both", "Encoder", "Decoder"]
    assert first.get_ylim()[0] > first.get_ylim()[1]
    for ax, task in zip((first, second), TASKS, strict=True):
        shown = values[values["task"] == task]
        assert np.allclose(drawn_as(ax, "mean", "x"), shown["value"])
        assert np.allclose(drawn_as(ax, "interval", "x").reshape(-1, 2), shown[["lower", "upper"]].clip(0, 100))
        assert len(drawn_as(ax, "runs", "x")) == 9
    below = differences_of(figure)
    assert [label.get_text() for label in below[0].get_yticklabels()] == ["Encoder", "Decoder"]
    for ax, task in zip(below, TASKS, strict=True):
        shown = values[(values["task"] == task) & ~values["baseline"]]
        assert np.allclose(drawn_as(ax, "mean", "x"), shown["difference"])
    assert below[0].get_title(loc="left") == "Difference to the baseline"


def test_there_is_a_tick_at_each_length_and_names_do_not_touch(tmp_path: Path) -> None:
    figure, _, sweep = drawn(tmp_path, length([1]))
    for width in WIDTHS:
        for ax in draw(sweep, cells(sweep), width=width).axes:
            assert np.allclose(ax.get_xticks(), np.log(np.array(LENGTHS) / 10) / np.log(12))
    named = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert named == ["10", "16", "30", "64", "", "120"]


def test_one_seed_has_a_point_and_no_whisker(tmp_path: Path) -> None:
    figure, values, _ = drawn(tmp_path, length([1]))
    for ax, task in zip(scores_of(figure), TASKS, strict=True):
        assert not len(whiskers(ax))
        assert np.allclose(sorted(drawn_as(ax, "mean")), sorted(values.loc[values["task"] == task, "value"]))


def test_the_panel_and_the_caption_name_a_missing_value(tmp_path: Path) -> None:
    figure, _, sweep = drawn(tmp_path, length([1, 2]), skipped=3)
    first, second = scores_of(figure)
    texts = [[text.get_text() for text in ax.texts] for ax in (first, second)]
    assert "missing" not in texts[0] and texts[1].count("missing") == 1
    assert [ax.get_title(loc="right") for ax in (first, second)] == ["", "n = 0 to 2 of 2"]
    assert "INCOMPLETE: 2 of 12 values have fewer runs than planned." in captions.caption(sweep, cells(sweep))


def test_a_conflict_is_written_where_its_value_would_be(tmp_path: Path) -> None:
    _, values, sweep = drawn(tmp_path, length([1, 2]))
    there = (values["task"] == TASKS[0]) & (values["prompt.length"] == 30)
    values = values.assign(conflict=there.astype(int), value=values["value"].mask(there))
    first, second = scores_of(draw(sweep, values))
    assert [text.get_text() for text in first.texts] == ["conflict"] and not second.texts


def test_no_interval_is_drawn_beyond_the_range_of_scores(whole: Sweep) -> None:
    values = of_test(whole).assign(value=99.0, lower=-3.0, upper=109.0)
    for ax in scores_of(draw(whole, values)):
        ends = whiskers(ax)[:, :, 1]
        assert ends.min() == 0.0 and ends.max() == 100.0


def test_averages_have_a_panel_and_trends_a_line_of_their_slope(whole: Sweep) -> None:
    values = of_test(whole)
    average = values[values["task"] == TASKS[0]].drop(columns=["task", "split", "metric"])
    average = average.assign(value=50.0 + np.arange(6), rule="mean of the metrics as they are")
    trends = pd.DataFrame({"task": TASKS, "split": "test", "slope": [0.5, 2.0], "slope_lower": 0.1, "slope_upper": 3.0})
    figure = draw(whole, values, averages=average, trends=trends)
    *tasks, last = scores_of(figure)
    assert last.get_title(loc="left") == "Average" and np.allclose(drawn_as(last, "line"), 50.0 + np.arange(6))
    for ax, slope in zip(tasks, (0.5, 2.0), strict=True):
        (line,) = [line for line in ax.lines if line.get_gid() == "trend"]
        rise = np.asarray(line.get_ydata(), float)
        assert rise[-1] - rise[0] == pytest.approx(slope * np.log2(12))
    text = captions.caption(whole, values, averages=average, trends=trends)
    assert "Grounding +0.50 (+0.10 to +3.00" in text and "Average: mean of the metrics as they are." in text


def references_in(ax: Axes, way: str = "y") -> dict[str, float]:
    """The positions of the lines across a panel, by the name of the reference."""
    return {name: drawn_as(ax, name, way)[0] for name in ("zero_shot", "chance") if len(drawn_as(ax, name, way))}


def test_near_references_are_lines_and_far_ones_are_words_in_the_caption(tmp_path: Path) -> None:
    near, far = {"zero_shot": 70.0, "chance": 5.0}, {"zero_shot": 2.04}
    known = {(TASKS[0], "test"): near, (TASKS[1], "test"): far, (TASKS[1], "val"): {"zero_shot": 65.0}}
    _, values, sweep = drawn(tmp_path, length([1, 2, 3]))
    values = values.assign(value=values["value"].where(values["task"] == TASKS[1], 60.0), lower=55.0, upper=75.0)
    figure = draw(sweep, values, references=known)
    assert [references_in(ax) for ax in scores_of(figure)] == [{"zero_shot": 70.0}, {}]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Mean of the baseline", "Backbone without tuning"]
    said = captions.caption(sweep, values, references=known)
    assert (
        "Backbone without tuning: Grounding 70.0, Entailment 2.0; not drawn, because it is too far away: Entailment."
        in said
    )
    assert "the best one): Grounding 5.0; not drawn, because it is too far away: Grounding." in said


def test_rows_have_references_only_where_they_are_known(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.depth": ["both", "decoder"], "seed": [1, 2, 3]}
    figure, values, sweep = drawn(tmp_path, manifest("depth", axes, "prompt.depth", {}, {"prompt.depth": "both"}))
    assert [references_in(ax, "x") for ax in scores_of(figure)] == [{}, {}] and not figure.legends
    assert not any(words in captions.caption(sweep, values) for words in captions.CALLED.values())
    middle = float(values.loc[values["task"] == TASKS[1], "value"].mean())
    figure = draw(sweep, values, references={(TASKS[1], "test"): {"chance": middle}})
    assert [references_in(ax, "x") for ax in scores_of(figure)] == [{}, {"chance": middle}]
    assert figure_checks.all_of(figure) == {}


def test_more_lines_than_looks_are_still_drawn(tmp_path: Path) -> None:
    layers = [[number] for number in range(9)]
    axes: dict[str, list[Any]] = {"task": TASKS[:1], "prompt.length": [10, 64], "prompt.layers": layers, "seed": [1]}
    figure, _, _ = drawn(tmp_path, manifest("s", axes, "prompt.length", {}, {}))
    assert len([line for line in figure.axes[0].lines if line.get_gid() == "line"]) == 9
    (legend,) = figure.legends
    assert "prompt layers [0]" in [text.get_text() for text in legend.get_texts()]


# Positions of values


def test_numbers_that_span_little_lie_linearly_and_words_evenly() -> None:
    assert Scale.of([1, 2, 5]).places == {1: 0.0, 2: 0.25, 5: 1.0}
    assert Scale.of([0, 50, 100]).places == {0: 0.0, 50: 0.5, 100: 1.0}
    assert Scale.of(["none", "mlp"]).places == {"none": 0.25, "mlp": 0.75}
    assert Scale.of([64]).places == {64: 0.5}
    assert (Scale.of([1, 2]).line, Scale.of(["none", "mlp"]).line) == ("-", "")


def test_a_logarithmic_axis_is_broken_between_zero_and_the_next_value() -> None:
    scale = Scale.of([0, 0.01, 0.1, 1.0])
    assert scale.apart and scale.places[0] == 0.0 and scale.places[1.0] == 1.0
    left, middle, right = (scale.places[value] for value in (0.01, 0.1, 1.0))
    assert left == BREAK and middle - left == pytest.approx(right - middle)


def test_an_axis_spans_two_points_at_least_and_stays_within_the_metrics_range() -> None:
    low, high = limits([70.0, 70.1], "accuracy")
    assert high - low > 2.0 and low < 70 < high
    assert limits([99.9, 100.0], "accuracy")[1] < 101 and limits([99.9, 100.0], "accuracy")[0] < 98.1
    assert ticks(97.9, 100.2, 1.0, "accuracy") == [98.0, 99.0, 100.0]
    assert ticks(-41.0, 3.0, 1.0, "accuracy", is_difference=True) == [-40.0, -20.0, 0.0]


# The figures of all sweeps


@cache
def made_up(name: str) -> Sweep:
    """A sweep of conf/ with all runs done; some scores are near the ends of their range."""
    noise = np.random.default_rng(0)
    expanded = expand(name, ["seed=1,2,3"], ROOT / "conf")
    about = json.loads(json.dumps(frozen(expanded, {"commit": None, "dirty": False})))
    about["margin"] = {"percent": 2.0, "cider": 20.0}
    middle: dict[tuple[Any, ...], float] = {}
    rows = []
    for point in about["points"]:
        values = point_values(about, point)
        metric, most = about["tasks"][values["task"]]["metric"], 100.0
        if metric == "cider":
            most = 1000.0
        label = tuple(sorted((axis, str(value)) for axis, value in values.items() if axis not in ("seed", "run")))
        middle.setdefault(label, float(noise.choice([0.02, 0.3, 0.7, 0.995])) * most)
        own = {
            f"{split}/{metric}": float(np.clip(middle[label] + noise.normal(0, 0.02 * most), 0, most))
            for split in point["evaluations"]
        }
        fixed = {"state": "done", "metric": metric, "source": "wandb", "attempt": 1, "commit": "c", "dirty": False}
        rows.append(values | fixed | {"device": "cpu", "best_step": 1} | dict.fromkeys(FACTS, 1.0) | own)
    return Sweep(about, pd.DataFrame(rows), ())


def made_up_curves(sweep: Sweep) -> pd.DataFrame | None:
    if not sweep.manifest["curves"]:
        return None
    rows = []
    for task in sweep.tasks:
        for method, tau in (("finetune", 60.0), ("prompt", 170.0)):
            for step in range(30, 901, 30):
                value = 99.5 - 60 * np.exp(-step / tau)
                rows.append(
                    {
                        "method": method,
                        "task": task,
                        "step": step,
                        "epoch": step / 90,
                        "hours": step / tau,
                        "value": value,
                    }
                )
    return pd.DataFrame(rows).assign(lower=lambda rows: rows["value"] - 9, upper=lambda rows: rows["value"] + 9, n=3)


@pytest.fixture(scope="module", params=some(sweep_names(ROOT / "conf"), "length", "robustness"))
def made(request: pytest.FixtureRequest) -> tuple[Sweep, pd.DataFrame, pd.DataFrame | None]:
    sweep = made_up(request.param)
    return sweep, cells(sweep), made_up_curves(sweep)


@pytest.mark.parametrize("width", some(WIDTHS, "column"))
def test_a_figure_of_each_sweep_can_be_printed_at_either_width(
    made: tuple[Sweep, pd.DataFrame, pd.DataFrame | None], width: str
) -> None:
    sweep, values, curves = made
    figure = draw(sweep, values, curves, width=width)
    assert figure.get_figwidth() == style.WIDTHS[width] and figure.get_figheight() < 9.0
    assert figure_checks.all_of(figure) == {}
    part = paper_figures.choose_part(published(sweep.manifest))
    if part is not None:
        assert figure_checks.all_of(paper_figures.draw(part, sweep.compare, width=width)) == {}


def test_a_method_has_one_colour_and_one_marker_in_every_sweep(
    made: tuple[Sweep, pd.DataFrame, pd.DataFrame | None],
) -> None:
    sweep, values, curves = made
    figure = draw(sweep, values, curves)
    known = {names.value("method", method): look for method, look in style.KNOWN.items()}
    seen = {text.get_text(): (line.get_color(), line.get_marker()) for text, line in _legend(figure)}
    seen |= _rows(figure)
    methods = {name: look for name, look in seen.items() if name in known}
    assert methods == {name: (known[name].colour, known[name].marker) for name in methods}
    if "method" in sweep.manifest["axes"]:
        assert methods
    else:  # all of it is prompts
        means = [line for ax in figure.axes for line in ax.lines if line.get_gid() == "mean"]
        assert (
            sweep.over
            or figure_content.is_over_numbers(sweep, values) is False
            or {line.get_color() for line in means} == {style.KNOWN["prompt"].colour}
        )


def _legend(figure: Figure) -> Iterable[tuple[Any, Any]]:
    for legend in figure.legends:
        yield from zip(legend.get_texts(), legend.get_lines(), strict=True)


def _rows(figure: Figure) -> dict[str, tuple[Any, Any]]:
    """The look of each row's mean, by the row's name."""
    look_of_row = {}
    for ax in figure.axes:
        labels = [label.get_text() for label in ax.get_yticklabels()]
        for line in ax.lines:
            if line.get_gid() == "mean" and ax.yaxis_inverted():
                at = round(float(np.asarray(line.get_ydata(), float)[0]))
                look_of_row[labels[at]] = (line.get_color(), line.get_marker())
    return look_of_row


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (lambda ax: ax.set_title("x", fontsize=5), "too_small"),
        (lambda ax: ax.text(1.9, 0.5, "far out", transform=ax.transAxes), "cut_off"),
        (lambda ax: ax.text(0.0, 1.05, "on the title", transform=ax.transAxes), "overlapping"),
        (lambda ax: ax.set_ylim(78.0, 80.0), "markers_outside"),
        (lambda ax: ax.set_ylim(0.0, 120.0), "out_of_range"),
    ],
)
def test_each_check_of_figures_notices_its_fault(fault: Any, found: str, whole: Sweep) -> None:
    figure = draw(whole, cells(whole))
    assert figure_checks.all_of(figure) == {}
    fault(scores_of(figure)[-1])
    assert found in figure_checks.all_of(figure)


def test_every_colour_stands_out_from_paper_and_no_two_looks_are_the_same() -> None:
    def luminance(colour: str) -> float:
        parts = np.array(colors.to_rgb(colour))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    every = [*style.KNOWN.values(), *style.OTHERS]
    assert all(1.05 / (luminance(look.colour) + 0.05) >= 3.0 for look in every)
    assert len({(look.colour, look.marker) for look in every}) == len(every)
    assert len({look.marker for look in style.KNOWN.values()}) == len(style.KNOWN) == 6
    assert luminance("#E69F00") > 0.3  # orange as it is published would not do


def test_learning_curves_have_bands_within_the_range_and_a_mark_where_99_percent_of_the_best_is_reached() -> None:
    sweep = made_up("convergence")
    curves = made_up_curves(sweep)
    assert curves is not None
    figure = draw(sweep, cells(sweep), curves)
    assert [ax.get_xlabel() for ax in figure.axes[:2]] == ["Epoch", "Device-hours"]
    for ax, task in zip(figure.axes[::2], sweep.tasks, strict=True):
        bands = [each for each in ax.collections if isinstance(each, PolyCollection)]
        assert max(path.vertices[:, 1].max() for band in bands for path in band.get_paths()) == 100.0
        marks = [line.get_xydata()[0] for line in ax.lines if line.get_gid() == "reached"]
        for (x, y), method in zip(marks, ("finetune", "prompt"), strict=True):
            own = curves[(curves["task"] == task) & (curves["method"] == method)]
            first = own[own["value"] >= 0.99 * own["value"].max()].iloc[0]
            assert (x, y) == (first["epoch"], first["value"])


def test_the_share_kept_is_drawn_below_the_score_and_a_wide_range_of_captions_is_logarithmic() -> None:
    sweep = made_up("robustness")
    values = cells(sweep)
    factor = values["task"].map(lambda task: 1.0 if task == "micro_caption" else 0.1)
    rank = values.groupby(["task", "attack.epsilon"], sort=False).cumcount()
    values = values.assign(value=800.0 / 2.0**rank * factor).assign(
        lower=lambda rows: rows["value"] * 0.9, upper=lambda rows: rows["value"] * 1.1
    )
    figure = draw(sweep, values)
    by_task = dict(zip(sweep.tasks, zip(figure.axes[::2], figure.axes[1::2], strict=True), strict=True))
    for task, (above, below) in by_task.items():
        own = values[(values["task"] == task) & (values["split"] == "test")]
        assert np.allclose(sorted(drawn_as(below, "line")), sorted(own["kept"]))
        assert above.get_yscale() == ("log" if task == "micro_caption" else "linear")
        assert below.get_ylabel() in ("Score kept (%)", "")


# The paper's values


@pytest.mark.parametrize(
    ("compare", "paper", "place", "named"),
    [
        ("prompt.length", {"table": "6", "figure": "2"}, "Figure 2", None),
        ("prompt.depth", {"table": "3"}, "Table 3", ["Encoder", "Decoder", "Both"]),
        (
            "method",
            {"table": "1"},
            "Table 1",
            ["Finetuning, base", "Prompt tuning, base", "Finetuning, large", "Prompt tuning, large"],
        ),
    ],
)
def test_the_papers_values_are_all_in_a_separate_figure(
    compare: str, paper: dict[str, str], place: str, named: list[str] | None
) -> None:
    part = paper_figures.choose_part(published({"compare": compare, "paper": paper}))
    assert part is not None and part.place == place
    figure = paper_figures.draw(part, compare)
    tasks = ["RefCOCO", "RefCOCO+", "RefCOCOg", "SNLI-VE", "COCO Captions", "VQA"]
    assert [ax.get_title(loc="left") for ax in figure.axes] == tasks
    scores = part.rows[part.rows["metric"].isin(["acc@0.5", "accuracy", "vqa_accuracy", "cider"])]
    for ax, (_, own) in zip(figure.axes, scores.groupby("task", sort=False), strict=True):
        shown = drawn_as(ax, "mean", "x") if named else drawn_as(ax, "line")
        assert np.allclose(sorted(shown), sorted(own["value"]))
    if named:
        assert [text.get_text() for text, _ in _legend(figure)] and {
            text.get_text() for text, _ in _legend(figure)
        } == set(named)
    assert f"{place} of the paper" in paper_figures.caption(part) and "one seed per value" in paper_figures.caption(
        part
    )


def test_values_of_the_paper_that_coincide_do_not_hide_each_other() -> None:
    part = paper_figures.choose_part(published({"compare": "method", "paper": {"table": "1"}}))
    assert part is not None
    for ax in paper_figures.draw(part, "method", width="column").axes:
        places = np.array(list(figure_checks.points(ax)))
        apart = np.hypot(*(places[:, None] - places[None]).T) + 1e9 * np.eye(len(places))
        assert apart.min() > 3.5 * ax.figure.dpi / 72  # a marker's width


def test_a_spike_of_one_point_does_not_fill_a_panel() -> None:
    part = paper_figures.choose_part(published({"compare": "prompt.length", "paper": {"figure": "2"}}))
    assert part is not None
    for ax in paper_figures.draw(part, "prompt.length").axes:
        low, high = ax.get_ylim()
        assert high - low >= paper_figures.LEAST


def test_differences_without_room_on_a_page_are_neither_drawn_nor_in_the_caption() -> None:
    sweep = made_up("methods")
    points = [point | {"evaluations": dict.fromkeys("abcd", "x")} for point in sweep.manifest["points"]]
    more = {
        f"{split}/{metric}": sweep.frame.get(f"test/{metric}")
        for split in "abcd"
        for metric in sweep.frame["metric"].unique()
    }
    wide = Sweep(sweep.manifest | {"points": points}, sweep.frame.assign(**more), ())
    few, many = cells(sweep), cells(wide)
    assert differences_of(draw(sweep, few)) and "Below: " in captions.caption(sweep, few)
    figure = draw(wide, many)
    assert not differences_of(figure) and "Below: " not in captions.caption(wide, many)
    assert figure.get_figheight() < 9.0 and len(figure.axes) == 16 and figure_checks.all_of(figure) == {}


# Costs


def test_inference_time_is_drawn_over_the_size_of_the_model_with_a_line_per_method() -> None:
    sizes = {"ofa_base": 182e6, "ofa_large": 473e6, "ofa_huge": 930e6}
    rows = [
        {
            "model": model,
            "method": method,
            "task": "refcoco",
            "quantity": quantity,
            "median": value,
            "lowest": value,
            "highest": value * 1.1,
        }
        for model, size in sizes.items()
        for method, factor in (("finetune", 2.0), ("prompt", 1.0))
        for quantity, value in (("parameters", size), ("seconds_per_100", factor * size / 1e8))
    ]
    for width in WIDTHS:
        figure = inference(pd.DataFrame(rows), width=width)
        (ax,) = figure.axes
        assert figure_checks.all_of(figure) == {}
        assert [label.get_text() for label in ax.get_xticklabels()] == ["182", "473", "930"]
        first, second = (np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_gid() == "line")
        assert np.allclose(first, 2 * second) and np.allclose(second, np.array(list(sizes.values())) / 1e8)
    (ax,) = inference(pd.DataFrame([row for row in rows if row["quantity"] != "parameters"])).axes
    assert ax.get_xlabel() == "Model"


def test_a_sweep_over_models_has_its_inference_figure_in_separate_files(whole: Sweep, tmp_path: Path) -> None:
    """The measurement of convergence, as if of two models; with one model there is no such figure."""
    costs = costs_of(made_up("convergence")).frame
    assert costs["method"].nunique() == 2
    size = {"quantity": "parameters", "lowest": 7e5, "highest": 7e5, "median": 7e5}
    small = pd.concat([costs, costs.drop_duplicates(["method", "task"]).assign(**size)]).assign(model="micro")
    times = small[["median", "lowest", "highest"]] * 3
    both = pd.concat([small, small.assign(model="larger", **{key: times[key] for key in times})], ignore_index=True)
    for frame, expected in ((small, False), (both, True)):
        folder = tmp_path / str(expected)
        files = figure_files.write(folder, whole, of_test(whole), [], formats=["png"], costs=frame)
        theirs = [file.name for file in files if "inference" in file.name]
        assert theirs == (["length_inference.png", "length_inference.caption.txt"] if expected else [])
    (ax, _) = inference(both).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.7", "2.1"]
    text = (tmp_path / "True" / "length_inference.caption.txt").read_text()
    assert text.startswith(
        "Seconds per 100 answers of finetuning and prompt tuning against the parameters of the model"
    )


# The files


def run(store: Path, out: Path, *more: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "analysis", "tables", "length", "--runs", str(store), "--out", str(out), *more]
    theirs = {"PYTHONPATH": str(ROOT)} | (environment or {})
    return subprocess.run(command, env=dict(os.environ) | theirs, check=True, capture_output=True, text=True).stdout


@pytest.mark.long
def test_the_files_are_the_same_bytes_in_another_process_with_another_style(whole: Sweep, tmp_path: Path) -> None:
    assert whole.store is not None
    here, more = tmp_path / "here", {"averages": averages(whole), "trends": trends(whole)}
    save(draw(whole, cells(whole), **more), here, ["pdf", "png", "svg"])
    matplotlibrc = tmp_path / "matplotlibrc"
    matplotlibrc.write_text("font.size: 20\naxes.facecolor: red\nsavefig.dpi: 30\nfont.family: monospace\n")
    environment = {"MATPLOTLIBRC": str(matplotlibrc), "TZ": "Asia/Tokyo"}
    run(whole.store.root, tmp_path, "--format", "pdf,png,svg", environment=environment)
    for kind in ("png", "pdf", "svg"):
        assert Path(f"{here}.{kind}").read_bytes() == (tmp_path / "figures" / f"length.{kind}").read_bytes()
    made = (tmp_path / "figures" / "length.caption.txt").read_text()
    assert made == captions.caption(whole, cells(whole), **more)


def test_our_figure_and_the_papers_are_separate_files_and_column_figures_have_their_own_names(tmp_path: Path) -> None:
    drawn(tmp_path / "store", length([1]))
    output = run(tmp_path / "store", tmp_path, "--width", "column", "--format", "pdf")
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert made == {
        "length_column.pdf",
        "length_paper_column.pdf",
        "length_column.caption.txt",
        "length_paper_column.caption.txt",
    }
    assert "length_column.pdf, .caption.txt, " in output and "length_paper_column.pdf" in output


def test_a_users_own_sweep_has_no_figure_of_the_papers_values(tmp_path: Path) -> None:
    about = manifest("length", {"task": TASKS[:1], "prompt.dropout": [0.0, 0.2], "seed": [1]}, "prompt.dropout", {}, {})
    drawn(tmp_path / "store", about)
    run(tmp_path / "store", tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "length.pdf",
        "length.png",
        "length.caption.txt",
    }


@pytest.mark.skipif(shutil.which("pdffonts") is None, reason="pdffonts of poppler-utils is not there")
@pytest.mark.parametrize("name", ["robustness", "methods"])
def test_fonts_in_a_pdf_are_embedded_and_none_is_type_3(name: str, tmp_path: Path) -> None:
    sweep = made_up(name)
    (place,) = save(draw(sweep, cells(sweep)), tmp_path / name, ["pdf"])
    listed = subprocess.run(["pdffonts", str(place)], check=True, capture_output=True, text=True).stdout.splitlines()[
        2:
    ]
    assert listed and all("TrueType" in line and " yes yes " in line and style.FONT in line for line in listed)


def test_the_caption_agrees_with_the_frame(whole: Sweep) -> None:
    sweep = with_manifest(whole, margin={"percent": 1.5, "cider": 20.0})
    values = cells(sweep).assign(difference_method="Dunnett")
    sentences = captions.caption(sweep, values).splitlines()
    assert sentences == [
        "Score against prompt length on grounding and entailment; test split.",
        "Markers: means over n = 3 runs (seeds 1, 2, 3); bars: 95% intervals over seeds and test examples, "
        "cut at the ends of the metric's range.",
        "A bar that is not visible is shorter than its marker.",
        "Small dots: single runs.",
        "Hollow marker and dashed line: the baseline, prompt length 64.",
        "Below: differences to the baseline, prompt length 64, with simultaneous 95% intervals over all 10 comparisons (Dunnett).",
        "Grey band: a difference of less than 1.5 points counts as none.",
        "Above the panel: = equivalent to the baseline; ~ not known to differ.",
        "Settings: model micro, backbone mode eval, method prompt tuning, updates 30.",
    ]
    noisy = values["difference_method"].mask(values["prompt.length"] == 10, "Welch, Holm")
    assert "(Welch, Holm and Dunnett)." in captions.caption(sweep, values.assign(difference_method=noisy))
    each = with_manifest(sweep, family="task")
    assert "over each task's comparisons" in captions.caption(each, values)


@pytest.mark.parametrize(("n", "words"), [(1, "not defined"), (0, "missing")])
def test_an_average_in_percent_of_a_score_of_0_is_drawn_as_not_defined(n: int, words: str) -> None:
    nothing = {"value": math.nan, "lower": math.nan, "upper": math.nan, "baseline": False, "n": n}
    ax = Figure().subplots()
    rows(
        ax,
        pd.DataFrame([{"key": "prompt"} | nothing]),
        ["prompt"],
        {"prompt": style.KNOWN["prompt"]},
        Quantity(*SCORE, "acc@0.5"),
    )
    assert [text.get_text() for text in ax.texts] == [words]
