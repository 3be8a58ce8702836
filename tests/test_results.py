"""Results in notebooks: one import, and frames that agree with the tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import whole_store
from wandb_server import WandbServer

import analysis
from analysis import diff, load, published, runs, study
from analysis.records.reading import read_sweep
from analysis.statistics.cell_statistics import cells
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import read_config
from mmprompt.runs.store import Store
from sweeps.verbs.sync import sync


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("store")
    whole_store.filled(root, ("length", "main", "robustness"))
    return whole_store.searched(root)


def test_the_import_loads_nothing_and_every_listed_name_exists() -> None:
    code = "import sys, analysis; sys.exit(bool({'pandas', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert all(callable(getattr(analysis, name)) for name in analysis.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        analysis.laod  # noqa: B018
    assert set(published()["table"]) >= {"table1", "table6", "figure2"}


def test_a_sweeps_results_agree_with_its_table(store: Store) -> None:
    length = load("length", store)
    pd.testing.assert_frame_equal(length.cells(), cells(read_sweep(store, "length")))
    assert repr(length).startswith("Scores by prompt length") and "24 of 24 runs done" in length._repr_html_()
    assert len(repr(length)) < 3000
    assert length.table("differences").name == "differences" and set(length.tables) >= {"scores", "trend", "average"}
    assert length.table().markdown().count("|") > 20 and "tabular" in length.table().latex()
    assert length.figure(width="column").get_figwidth() == 3.25
    image, size = length.figure()._repr_png_()  # type: ignore[attr-defined]
    assert image.startswith(b"\x89PNG") and size["width"] == round(5.5 * 130)
    assert length.claims()["verdict"].notna().all() and len(length.trends()) and len(length.averages())
    assert not len(length.missing()) and not len(length.costs()) and length.verify() == []


def test_another_baseline_task_or_split_is_one_argument(store: Store) -> None:
    part = load("length", store, tasks=["micro_entailment"], splits=["val"], baseline={"prompt.length": 10})
    part_cells = part.cells()
    assert set(part_cells["task"]) == {"micro_entailment"} and part.sweep.shown == [("micro_entailment", "val")]
    assert set(part_cells.loc[part_cells["baseline"], "prompt.length"]) == {10}
    whole = load("length", store).cells().query("task == 'micro_entailment'")
    values = [frame.set_index(["prompt.length", "split"])["value"] for frame in (part_cells, whole)]
    pd.testing.assert_series_equal(*values)
    assert "val split" in str(part.table())


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (lambda store: load("lenght", store), "no sweep lenght .*; did you mean length?"),
        (lambda store: load("length", store.root / "none"), "there is no store .*none; `make sweep-length` makes one"),
        (lambda store: load("length", store, tasks=["micro_vqa"]), "sweep length has no task micro_vqa"),
        (lambda store: load("length", store, splits=["tset"]), "sweep length has no split tset; did you mean test?"),
        (lambda store: load("length", store, baseline={"prompt.length": 11}), "has no prompt.length 11"),
        (lambda store: load("length", store).table("diferences"), "has no table diferences; did you mean differences?"),
        (lambda store: load("length", store).at(taks="x"), "has no axis taks; did you mean task?"),
        (lambda store: load("length", store).at(task="x"), "has no task x"),
        (lambda store: load("length", store).run("zz"), "has no run whose id begins with 'zz'"),
        (lambda store: load("length", store).run(""), "has 24 runs whose id begins with ''"),
        (lambda store: load("length", store).paired(10, 11), "there is no row '11'"),
        (lambda store: load("robustness", store).paired("prompt", "finetune"), "6 cells of 'prompt'; choose one by attack.epsilon"),
        (lambda store: load("length", store).examples("train"), "has no scores of single examples of train"),
        (lambda store: load("search-learning_rate", store), "is a search; study\\('learning_rate'\\) loads it"),
        (lambda store: study("learning", store), "no search learning in .*; did you mean learning_rate?"),
        (lambda store: study("learning_rate", store).optuna("x"), "has no group 'x'"),
        (lambda store: diff("zz", "f", store), "no run's id begins with 'zz'"),
        (lambda store: load("length", store, source="cloud"), "is neither 'store' nor 'server'"),
    ],
)  # fmt: skip
def test_a_name_that_does_not_exist_is_an_error_of_one_sentence(what: object, sentence: str, store: Store) -> None:
    with pytest.raises(StoreError, match=sentence) as error:
        what(store)  # type: ignore[operator]
    assert "\n" not in str(error.value)


def test_a_run_has_its_origin(store: Store) -> None:
    length = load("length", store)
    run, other = length.at(task="micro_grounding", **{"prompt.length": 64})
    assert (run.config["prompt.length"], run.config["seed"], other.config["seed"]) == (64, 11, 12)
    assert run.config["optim.drop_worst"] == 0.0  # was added later and has its neutral value
    assert run.state == "done" and run.commit == whole_store.JOB["commit"] and run.device == "cpu: a core"
    assert run.history.index[-1] == 150 and run.history["val/while_training"].is_monotonic_increasing
    assert run.metrics["test/acc@0.5"] == pytest.approx(run.examples().mean())
    assert set(run.evaluations["split"]) == {"val", "test"} and set(run.evaluations["examples"]) == {
        whole_store.EXAMPLES
    }
    (attempt,) = run.attempts.to_dict("records")
    assert attempt["published"] and attempt["work"] == "train" and attempt["error"] == ""
    assert (
        "prompt.length=64" in run.command
        and run.command.count("paths.runs=") == 1
        and run.command.startswith(f"git checkout {run.commit} && ")
    )
    assert run.record is not None and Path(run.record).is_file()
    assert run.id in repr(run) and run.id in run._repr_html_()
    assert length.run(run.id[:6]).id == run.id
    assert list(diff(run.id, other.id, store).index) == ["seed"]


def test_every_run_of_the_store_is_a_row_with_its_settings(store: Store) -> None:
    frame = runs(store)
    assert set(frame.index) == store.runs()
    for run in frame.index[:5]:
        config = read_config(store.run(run).config_file)
        assert frame.loc[run, "optim.lr"] == config.optim.lr and frame.loc[run, "task.name"] == config.task.name
    assert {"test/acc@0.5", "trainable_parameters", "prompt.length"} <= set(frame.columns)
    assert "lora" not in frame.columns  # a section is not a setting
    done = {run for run in store.runs() if store.run(run).result_file.exists()}
    assert set(frame.index[frame["state"] == "done"]) == done and set(frame["state"]) == {"done", "not done"}


def test_damaged_runs_and_runs_never_started_are_rows(tmp_path: Path) -> None:
    store = whole_store.filled(tmp_path, ("length",), skipped=2)
    length = load("length", store)
    assert len(length.missing()) == 2 and set(length.missing()["state"]) == {"not done"}
    assert (
        set(length.missing()["command"]) == {length.sweep.manifest["command"]}
        and length.missing()["seconds"].eq(12.5).all()
    )
    assert "22 of 24 runs done" in length._repr_html_()
    first, second, *_ = sorted(store.runs())
    store.run(first).result_file.write_text("{")
    store.run(second).config_file.write_text("{}")
    assert set(runs(store).loc[[first, second], "state"]) == {"damaged"}
    again = load("length", store)
    assert {"unreadable", "conflict", "not done"} == set(again.missing()["state"])
    assert all(why for state, why in again.missing()[["state", "why"]].itertuples(index=False) if state != "not done")
    with pytest.raises(StoreError, match=r"result\.json is cut off"):
        _ = again.run(first).state


def test_a_sweep_without_done_runs_names_the_command_to_type(tmp_path: Path) -> None:
    length = load("length", whole_store.filled(tmp_path, ("length",), skipped=24))
    assert (
        "none of its 24 runs is done yet; `make sweep-length" in repr(length) and "none of its" in length._repr_html_()
    )
    with pytest.raises(StoreError, match="none of its 24 runs is done yet"):
        length.cells()
    assert len(length.missing()) == 24 and length.missing()["seconds"].isna().all()


def test_two_rows_are_compared_example_by_example(store: Store) -> None:
    length = load("length", store)
    pair = length.paired(64, 10, task="micro_grounding")
    examples = length.examples("test").query("task == 'micro_grounding'")
    means = examples.groupby(["prompt.length", "example"])["score"].mean()
    difference = means[64] - means[10]
    np.testing.assert_allclose(pair.frame["difference"].sort_index(), difference, rtol=1e-6)
    assert pair.frame["difference"].abs().is_monotonic_decreasing
    assert pair.summary["mean difference"] == pytest.approx(difference.mean())
    counts = [pair.summary[key] for key in ("64 ahead", "10 ahead", "level")]
    assert counts == [(difference > 0).sum(), (difference < 0).sum(), (difference == 0).sum()] and sum(counts) == len(
        difference
    )
    html = pair._repr_html_()
    assert html.count("<img") == 10 and html.count("data:image/png;base64,") == 10
    asked = pair.frame.iloc[0]
    assert asked["question"].startswith("find the thing") and asked["answer"] == "(the box)"


def test_the_questions_of_scenes_are_those_that_runs_answer(store: Store) -> None:
    """The core's own code turns the settings into samples."""
    from tiny import data_of

    run = load("main", store).at(task="micro_vqa")[0]
    config = read_config(run.folder.config_file)
    split = data_of(config).split("test")
    frame = load("main", store).paired("prompt", "finetune", "micro_vqa").frame.sort_index()
    assert list(frame["answer"][:50]) == [item.answer for item in split.items[:50]]
    filled = [config.task.template.format(**item.fields).strip() for item in split.items[:50]]
    assert list(frame["question"][:50]) == filled


def test_a_search_is_available_as_an_optuna_study(store: Store) -> None:
    search = study("learning_rate", store)
    assert "confirm" in repr(search).lower() or "Trial" in repr(search)
    whole = search.optuna()
    told = search.trials[search.trials["state"] == "done"]
    assert len(whole.trials) >= len(told) and whole.best_value == pytest.approx(told["score"].max())
    assert search.figure().get_figwidth() == 5.5 and "<table>" in search._repr_html_()
    assert set(search.importances["key"]) == {"optim.lr"}


def test_the_examples_in_the_documentation_run_unchanged(store: Store) -> None:
    text = (ROOT / "docs/notebooks.md").read_text()
    (lines,) = re.findall(r"```python\n(from analysis import .*?)```", text, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 6
    environment = os.environ | {"MMPROMPT_RUNS": str(store.root), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", lines], env=environment, capture_output=True, text=True, cwd=store.root
    )
    assert done.returncode == 0, done.stderr
    saved = (store.root / "length.pdf").read_bytes()
    assert len(saved) > 5000 and b"/CIDFontType2" in saved and b"/Type3" not in saved


def test_results_can_be_read_from_a_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has only the manifest, so there are no scores of single examples, which a note says."""
    with WandbServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        assert sync(["main"], store.root) == 0
        bare = Store(tmp_path / "bare")
        bare.manifest("main").parent.mkdir(parents=True)
        bare.manifest("main").write_bytes(store.manifest("main").read_bytes())
        theirs, ours = load("main", bare, source="server"), load("main", store)
        pd.testing.assert_series_equal(theirs.cells()["value"], ours.cells()["value"])
        assert "the scores of single examples are not available" in repr(theirs)
        (run, _), (same, _) = (one.at(task="micro_vqa", method="prompt") for one in (theirs, ours))
        assert (run.state, run.metrics, run.config) == (same.state, same.metrics, same.config)
        assert run.history["val/while_training"].iloc[-1] > 0 and len(theirs.curves()) == len(ours.curves())
        with pytest.raises(StoreError, match="has no scores of single examples"):
            theirs.examples()
        assert server.unknown == []
