"""The origin of a cell: its runs, their files, and the command that repeats each."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from groups import some
from test_cells import SEEDS, Scores, stored

from analysis.records.frame import Sweep
from analysis.records.reading import read_sweep
from analysis.records.run_table import run_table
from analysis.reports.trace import command_to_repeat, trace
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import freeze, run_id
from mmprompt.runs.store import Store
from sweeps.grid.compose import Composer, parse
from sweeps.grid.manifest import expand, manifest

NAMES = ["length", "methods", "depth", "reparameterization", "convergence", "pixels", "robustness", "learning_rate"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Sweep]:
    scores: Scores = {("micro_grounding", 10): [70.0, 71.0, 72.5], ("micro_grounding", 64): [80.0, 81.2, 79.0]}
    return stored(tmp_path_factory.mktemp("store"), scores)


def test_a_traced_cell_lists_its_runs_and_existing_files(made: tuple[Store, Sweep]) -> None:
    store, sweep = made
    text = trace(sweep, store, ["prompt.length=64"])
    assert text.startswith("made: prompt.length=64 task=micro_grounding split=test, acc@0.5\n")  # what tables show
    places = [Path(place) for place in re.findall(r"(?:scores|settings|record) +(\S+)", text)]
    assert len(places) == 9 and all(place.is_file() for place in places)
    files = [place for place in places if place.suffix == ".npy"]
    x = np.array([np.load(file) for file in files], dtype=np.float64)
    mean, half = map(float, re.search(r"mean of 3 seeds (\S+) ± (\S+) =", text).groups())  # type: ignore[union-attr]
    of_seeds = 4.302653 * x.mean(axis=1).std(ddof=1) / 3**0.5
    of_test = 1.959964 * x.mean(axis=0).std(ddof=1) / x.shape[1] ** 0.5
    assert mean == pytest.approx(x.mean(), abs=1e-3) and half == pytest.approx(
        (of_seeds**2 + of_test**2) ** 0.5, rel=1e-3
    )
    for seed, value in zip(SEEDS, (80.0, 81.2, 79.0), strict=True):
        assert f"seed {seed}: {value:g}, run " in text


def test_a_split_can_be_selected_and_an_unknown_one_is_an_error(made: tuple[Store, Sweep]) -> None:
    store, sweep = made
    assert "split=val" in trace(sweep, store, ["prompt.length=10", "split=val"])
    with pytest.raises(StoreError, match=r"prompt.lenght is no axis of made; did you mean prompt.length"):
        trace(sweep, store, ["prompt.lenght=10"])
    with pytest.raises(StoreError, match=r"made has no cell with prompt.length=11"):
        trace(sweep, store, ["prompt.length=11"])
    with pytest.raises(StoreError, match=r"'64' is not KEY=VALUE; keys are prompt.length, task, split"):
        trace(sweep, store, ["64"])


def test_missing_runs_and_conflicts_are_listed(tmp_path: Path) -> None:
    store, sweep = stored(
        tmp_path, {("micro_grounding", 10): [70.0, 71.0], ("micro_grounding", 64): [80.0, 81.2, 79.0]}
    )
    assert "seed 13: not done, run " in trace(sweep, store, ["prompt.length=10"])
    file = store.run(sweep.frame["run"].iloc[0]).result_file
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"metrics": dict.fromkeys(result["metrics"], 99.0)}))
    assert "seed 11: conflict: " in trace(read_sweep(store, "made"), store, ["prompt.length=10"])


def test_the_run_table_has_a_row_per_run_and_split_from_which_cells_can_be_recomputed(
    made: tuple[Store, Sweep],
) -> None:
    store, sweep = made
    table = run_table(sweep, store)
    assert len(table) == 12 and set(table["split"]) == {"val", "test"}
    cell = table[(table["prompt.length"] == 64) & (table["split"] == "test")]
    assert list(cell["seed"]) == SEEDS and list(cell["value"]) == [80.0, 81.2, 79.0]
    assert (cell["examples"] == 500).all() and all((store.root / place).is_file() for place in cell["config"])
    assert all((store.root / place).is_file() for place in cell["record"])


@pytest.mark.parametrize("name", some(NAMES, "depth", "robustness"))
def test_the_command_that_repeats_a_run_makes_the_run_of_that_id(name: str) -> None:
    conf = ROOT / "conf"
    about = manifest(
        expand(name, ["optim.steps=7", "task.template='what is \"there\"?'"] if name == "depth" else [], conf), {}
    )
    composer = Composer(conf)
    for point in about["points"][:: max(1, len(about["points"]) // 5)]:
        command = command_to_repeat(point, None)
        words = shlex.split(command)
        assert words[:3] == [".venv/bin/python", "-m", "mmprompt"] and words[-1] == "paths.runs=again"
        given = {key: values[0] for key, values in (parse(word, conf, 1) for word in words[3:])}
        config, _ = freeze(composer.compose(given))
        assert run_id(config) == point["run"], command
    assert command_to_repeat(about["points"][0], "c0ffee").startswith(
        "git checkout c0ffee && .venv/bin/python -m mmprompt "
    )
