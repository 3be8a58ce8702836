"""The figure shows the cells, says what is missing, keeps the paper's values apart; the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from synthetic_store import DISABLED, LENGTHS, launch, manifest, run_all

from analysis.figures import GAP, Scale, draw, save
from analysis.frame import Sweep, read_sweep
from analysis.published import published
from analysis.statistics import cells
from mmprompt.place import ROOT
from mmprompt.run import Store

TASKS = ["micro_grounding", "micro_entailment"]


def drawn(root: Path, about: dict[str, Any], skipped: int = 0) -> tuple[Figure, pd.DataFrame, Sweep]:
    """The figure of a sweep whose last `skipped` points have not run."""
    store = Store(root)
    launch(store, about)
    run_all(store, about["points"][: len(about["points"]) - skipped], DISABLED, seed=0)
    sweep = read_sweep(store, about["sweep"])
    values = cells(sweep)
    return draw(sweep, values, published(sweep.manifest)), values[values["split"] == "test"], sweep


def length(seeds: list[int]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.length": LENGTHS, "seed": seeds}
    return manifest("length", axes, "prompt.length", {"table": "6", "figure": "2"}, {"prompt.length": 64})


def ours(figure: Figure) -> list[Axes]:
    return figure.subfigs[0].axes


def whiskers(ax: Axes) -> np.ndarray:
    (lines,) = [each for each in ax.collections if isinstance(each, LineCollection)]
    return np.array(lines.get_segments())  # lengths, 2 ends, x and y


def test_whiskers_and_points_are_the_cells_and_dots_the_runs(tmp_path: Path) -> None:
    figure, values, sweep = drawn(tmp_path, length([1, 2, 3]))
    for ax, task in zip(ours(figure), TASKS, strict=True):
        shown = values[values["task"] == task]
        assert np.allclose(whiskers(ax)[:, :, 1], shown[["lower", "upper"]])
        dots, means, solid, hollow = (line.get_ydata() for line in ax.lines)
        assert np.allclose(np.asarray(means, float), shown["value"])
        assert np.allclose(np.asarray(solid, float), shown.loc[~shown["baseline"], "value"])
        assert np.allclose(np.asarray(hollow, float), shown.loc[shown["baseline"], "value"])
        runs = sweep.scores.query("split == 'test' and task == @task")["value"]
        assert np.allclose(np.asarray(dots, float), runs)
        assert ax.get_title(loc="left") == task
        assert "n = 3" in [text.get_text() for text in ax.texts]


def test_there_is_a_tick_at_each_length_and_distances_are_logarithmic(tmp_path: Path) -> None:
    figure, _, _ = drawn(tmp_path, length([1]))
    for ax in ours(figure):
        assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "16", "30", "64", "100", "120"]
        ticks = np.asarray(ax.get_xticks())
        assert np.allclose(ticks, np.log(np.array(LENGTHS) / 10) / np.log(12))


def test_numbers_that_span_little_lie_linearly_and_words_evenly() -> None:
    assert Scale.of([1, 2, 5]).places == {1: 0.0, 2: 0.25, 5: 1.0}
    assert Scale.of([0, 50, 100]).places == {0: 0.0, 50: 0.5, 100: 1.0}


def test_zero_stands_apart_from_a_logarithmic_axis() -> None:
    scale = Scale.of([0, 0.01, 0.1, 1.0])
    assert scale.apart and scale.places[0] == 0.0 and scale.places[1.0] == 1.0
    left, middle, right = (scale.places[value] for value in (0.01, 0.1, 1.0))
    assert left == GAP and middle - left == pytest.approx(right - middle)
    assert Scale.of(["none", "mlp"]).places == {"none": 0.25, "mlp": 0.75}
    assert Scale.of([64]).places == {64: 0.5}
    assert (Scale.of([1, 2]).line, Scale.of(["none", "mlp"]).line) == ("-", "")
    assert Scale.of([64]).places == {64: 0.5}


def test_one_seed_has_a_point_and_no_whisker(tmp_path: Path) -> None:
    figure, values, _ = drawn(tmp_path, length([1]))
    for ax, task in zip(ours(figure), TASKS, strict=True):
        assert whiskers(ax).size == 0
        assert np.allclose(np.asarray(ax.lines[1].get_ydata(), float), values.loc[values["task"] == task, "value"])
        assert "n = 1" in [text.get_text() for text in ax.texts]


def test_a_missing_value_is_said_in_the_panel(tmp_path: Path) -> None:
    figure, _, _ = drawn(tmp_path, length([1, 2]), skipped=3)
    texts = [[text.get_text() for text in ax.texts] for ax in ours(figure)]
    assert "missing" not in texts[0] and "n = 2" in texts[0]
    assert texts[1].count("missing") == 1 and "n = 0 to 2 of 2" in texts[1]


def test_small_differences_are_drawn_small(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {"task": TASKS, "prompt.reparameterization": ["none", "mlp"], "seed": [1]}
    about = manifest("r", axes, "prompt.reparameterization", {"table": "4"}, {"prompt.reparameterization": "none"})
    figure, _, _ = drawn(tmp_path, about)
    for ax in ours(figure):
        low, high = ax.get_ylim()
        assert high - low >= 2.0


@pytest.mark.parametrize(
    ("compare", "values", "paper", "place"),
    [
        ("prompt.length", LENGTHS, {"table": "6", "figure": "2"}, "Figure 2"),
        ("prompt.depth", ["encoder", "decoder", "both"], {"table": "3"}, "Table 3"),
        ("prompt.reparameterization", ["none", "mlp"], {"table": "4"}, "Table 4"),
    ],
)
def test_the_papers_values_are_in_a_labelled_block_of_their_own(
    compare: str, values: list[Any], paper: dict[str, str], place: str, tmp_path: Path
) -> None:
    about = manifest("s", {"task": TASKS[:1], compare: values, "seed": [1]}, compare, paper, {})
    figure, _, _ = drawn(tmp_path, about)
    measured, theirs = figure.subfigs
    assert measured.get_suptitle() == "Measured here: sweep s"
    assert theirs.get_suptitle() == f"The paper's {place}"
    assert "OFA-large, one seed per value" in theirs.get_supxlabel()
    names = ["RefCOCO", "RefCOCO+", "RefCOCOg", "SNLI-VE", "COCO Captions", "VQA"]
    assert [ax.get_title(loc="left") for ax in theirs.axes] == names
    assert [label.get_text() for label in theirs.axes[0].get_xticklabels()] == [str(value) for value in values]


def test_a_sweep_of_the_users_own_has_no_block_of_the_papers(tmp_path: Path) -> None:
    about = manifest("s", {"task": TASKS[:1], "prompt.dropout": [0.0, 0.2], "seed": [1]}, "prompt.dropout", {}, {})
    figure, _, _ = drawn(tmp_path, about)
    assert len(figure.subfigs) == 1


def test_more_lines_than_colours_are_still_drawn(tmp_path: Path) -> None:
    layers = [[number] for number in range(8)]
    axes: dict[str, list[Any]] = {"task": TASKS[:1], "prompt.length": [10, 64], "prompt.layers": layers, "seed": [1]}
    figure, values, _ = drawn(tmp_path, manifest("s", axes, "prompt.length", {}, {}))
    assert len(ours(figure)[0].collections) == 8
    assert list(values["prompt.layers"][:2]) == ["[0]", "[1]"]
    (legend,) = figure.subfigs[0].legends
    assert legend.get_texts()[0].get_text() == "prompt.layers [0]"


def test_the_files_are_the_same_bytes_in_another_process_with_another_style(tmp_path: Path) -> None:
    figure, _, _ = drawn(tmp_path, length([1, 2, 3]))
    here = tmp_path / "here"
    save(figure, here)
    style = tmp_path / "matplotlibrc"
    style.write_text("font.size: 20\naxes.facecolor: red\nsavefig.dpi: 30\n")
    command = [sys.executable, "-m", "analysis", "tables", "length", "--runs", str(tmp_path), "--out", str(tmp_path)]
    theirs = {"MATPLOTLIBRC": str(style), "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo"}
    subprocess.run(command, env=dict(os.environ) | theirs, check=True, capture_output=True)
    for kind in ("png", "pdf"):
        assert Path(f"{here}.{kind}").read_bytes() == (tmp_path / "figures" / f"length.{kind}").read_bytes()
