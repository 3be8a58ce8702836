"""The table of scores, from a store: its cells, its caption, and its notes on conflicts and missing runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from printed import formatted, half_of, words_of
from synthetic_store import DISABLED, OFFLINE, claim, examples_of, launch, manifest, run_all, run_of, scores, train

from analysis.__main__ import main
from analysis.figures.captions import caption
from analysis.paper_values import published, published_values
from analysis.records.reading import read_sweep
from analysis.statistics.cell_statistics import cells, facts
from analysis.statistics.costs import read_costs
from analysis.statistics.samples import SEEDS_ALONE
from analysis.tables import sweep_tables
from analysis.tables.latex import latex
from analysis.tables.layout import Table
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import StoreError
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from sweeps.grid.sweep_file import Claim

TASKS = ["micro_grounding", "micro_entailment"]
LENGTHS = [10, 64, 120]
FIGURE_2 = {"table": "6", "figure": "2"}


def length_sweep(seeds: list[int], lengths: list[int], tasks: list[str]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"task": tasks, "prompt.length": lengths, "seed": seeds}
    return manifest("length", axes, "prompt.length", FIGURE_2, {"prompt.length": 64})


def point(task: str, length: int, seed: int) -> dict[str, Any]:
    return {"task": task, "prompt.length": length, "seed": seed}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """18 runs; those of grounding at 120 are missing (one failed, two never started), and entailment at 10 lacks one."""
    store = Store(tmp_path_factory.mktemp("store"))
    about = length_sweep([1, 2, 3], LENGTHS, TASKS)
    launch(store, about)
    left_out = [point("micro_grounding", 120, seed) for seed in (1, 2, 3)] + [point("micro_entailment", 10, 2)]
    run_all(store, [p for p in about["points"] if p["values"] not in left_out], OFFLINE, seed=0)
    claim(store, left_out[0]).fail(from_text("Traceback\nMemoryError"))
    return store


@pytest.fixture
def small(tmp_path: Path) -> Store:
    """Two lengths, one task, two seeds; all done."""
    store = Store(tmp_path)
    about = length_sweep([1, 2], [10, 64], TASKS[:1])
    launch(store, about)
    run_all(store, about["points"], OFFLINE, seed=0)
    return store


def a_run(store: Store) -> RunFolder:
    return store.run(run_of(point("micro_grounding", 10, 1)))


def change_result(folder: RunFolder, change: Callable[[dict[str, Any]], None]) -> None:
    result = folder.result()
    assert result is not None
    change(result)
    folder.result_file.write_text(json.dumps(result))


def table_of(store: Store, name: str = "length") -> Table:
    sweep = read_sweep(store, name)
    return sweep_tables.comparison(sweep, cells(sweep), facts(sweep))


def test_a_cell_is_mean_half_width_and_n_of_the_runs_scores(unfinished: Store) -> None:
    about = length_sweep([1, 2, 3], LENGTHS, TASKS)
    noise = np.random.default_rng(0)
    missing = {run_of(point("micro_grounding", 120, seed)) for seed in (1, 2, 3)}
    missing.add(run_of(point("micro_entailment", 10, 2)))
    made = [(p["values"], scores(p["values"], noise)) for p in about["points"] if p["run"] not in missing]
    x = [value["test/acc@0.5"] for p, value in made if (p["task"], p["prompt.length"]) == ("micro_grounding", 10)]
    examples = examples_of(unfinished, [point("micro_grounding", 10, seed) for seed in (1, 2, 3)])
    assert x == pytest.approx(examples.mean(axis=1), abs=1e-4) and len(x) == 3
    cell = table_of(unfinished).frame.loc["10", "Grounding Acc@0.5"]
    assert cell == formatted(float(np.mean(x)), half_of(examples))


def test_the_caption_gives_n_and_a_cell_only_where_it_differs(unfinished: Store) -> None:
    table = table_of(unfinished)
    assert "(n = 3 seeds unless given)" in table.caption
    assert table.frame.loc["120", "Grounding Acc@0.5"] == "missing (1 failed)"
    assert str(table.frame.loc["10", "Entailment Accuracy"]).endswith(" (2 of 3) [a]")
    assert ("a", "other seeds than the baseline's: seeds 1 3, the baseline's 1 2 3") in table.lettered_notes
    assert "(" not in str(table.frame.loc["64", "Entailment Accuracy"])


BOTH = "Intervals cover both sources of error, seeds and test examples (500)."


def test_a_cell_whose_interval_leaves_out_the_examples_has_a_note(small: Store) -> None:
    result = a_run(small).result()
    assert result is not None
    file = a_run(small).evaluation_file(result["evaluations"]["test"]).with_suffix(".npy")
    file.unlink()
    table = table_of(small)
    assert table.frame.loc["10", "Grounding Acc@0.5"].endswith(" [a]") and BOTH in table.notes
    assert table.lettered_notes[-1] == ("a", "intervals over seeds alone: no scores of single examples for seed 1")
    assert "[a]" not in table.frame.loc["64", "Grounding Acc@0.5"]
    sweep = read_sweep(small, "length")
    bars = "bars: 95% intervals over seeds and test examples (1 of 2 over seeds alone, as "
    assert bars in caption(sweep, cells(sweep))


def test_without_scores_of_single_examples_every_table_with_intervals_says_so(
    small: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Claim(claim="64 is better", row={"prompt.length": 64}, than={"prompt.length": 10}, expect="higher")
    launch(small, length_sweep([1, 2], [10, 64], TASKS[:1]) | {"claims": [asked.model_dump()]})
    verbs = (["claims", "length"], ["compare", "length", "64", "10"])
    for verb in verbs:
        assert main([*verb, "--runs", str(small.root)]) == 0
    assert SEEDS_ALONE not in capsys.readouterr().out
    for file in small.root.rglob("*.npy"):
        file.unlink()
    sweep = read_sweep(small, "length")
    found = cells(sweep)
    for table in sweep_tables.ours(sweep, found, facts(sweep)):
        assert SEEDS_ALONE in table.notes and BOTH not in table.notes
        assert not any(letter for letter, _ in table.lettered_notes)  # it is said once
    bars = "bars: 95% t intervals over seeds alone, as the scores of single examples are not available, cut at the ends"
    assert bars in caption(sweep, found)
    for verb in verbs:
        assert main([*verb, "--runs", str(small.root)]) == 0
        assert f"- {SEEDS_ALONE}" in capsys.readouterr().out


def test_a_baseline_that_lacks_a_task_gives_no_average_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    about = length_sweep([1], [10, 64], TASKS)
    launch(store, about)
    run_all(store, [p for p in about["points"] if p["values"] != point("micro_entailment", 64, 1)], OFFLINE, seed=0)
    assert main(["tables", "length", "--runs", str(store.root)]) == 0
    printed = capsys.readouterr().out
    assert "Average over 2 tasks" in printed and not re.search(r"\bnan\b", printed)


def test_a_terminal_that_lacks_a_character_shows_a_question_mark(small: Store) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "analysis", "tables", "length", "--runs", str(small.root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "mean ? half-width" in done.stdout


def test_rows_and_columns_are_in_the_manifests_order_and_the_baseline_is_named(unfinished: Store) -> None:
    table = table_of(unfinished)
    assert list(table.frame.index) == ["10", "64", "120"] and table.stubs == ("Prompt length",)
    assert list(table.frame.columns) == ["Grounding Acc@0.5", "Entailment Accuracy"]
    assert "Baseline: prompt length 64." in table.notes


def test_a_table_states_its_command_and_the_runs_that_are_not_done(unfinished: Store) -> None:
    table = table_of(unfinished)
    assert table.caption == (
        "Scores by prompt length on the test split: mean ± half-width of the 95 % interval (n = 3 seeds unless given)."
    )
    for words in [
        "Sweep length:",
        "Claim of the paper (Table 6, Figure 2): Prompts of 64 vectors are enough",
        "model micro, backbone mode eval, method prompt tuning",
        "Commit: 0123456789.",
        "INCOMPLETE: of 18 runs 14 done, 1 failed, 3 not done.",
        "Scores in percent.",
        "Grounding and Entailment: tasks of the small world",
    ]:
        assert words in words_of(table)


def test_the_csv_has_both_splits_and_runs_that_are_in_the_store(unfinished: Store, tmp_path: Path) -> None:
    file = tmp_path / "length.csv"
    sweep = read_sweep(unfinished, "length")
    file.write_text(sweep_tables.csv(cells(sweep), facts(sweep), read_costs(unfinished, sweep)))
    frame = pd.read_csv(file)
    assert len(frame) == 2 * 3 * 2
    assert set(frame["split"]) == {"val", "test"}
    runs = [run for runs in frame["runs"].dropna() for run in runs.split()]
    assert len(runs) == 2 * 14
    assert all(unfinished.run(run).result() is not None for run in runs)
    full = frame[frame["n"] == 3]
    assert ((full["lower"] < full["value"]) & (full["value"] < full["upper"])).all()


def test_the_frame_has_a_row_per_point_with_the_values_of_its_run(unfinished: Store) -> None:
    frame = read_sweep(unfinished, "length").frame
    assert len(frame) == 18
    assert frame["state"].value_counts().to_dict() == {"done": 14, "failed": 1, "not done": 3}
    done = frame[frame["state"] == "done"]
    assert (
        set(done["source"]) == {"wandb"} and set(done["attempt"]) == {1} and set(done["commit"]) == {"0123456789abcdef"}
    )
    assert set(done["trainable_parameters"]) == {12345} and set(done["device"]) == {"cpu: a core"}


def test_the_latex_is_a_booktabs_table_with_nothing_left_unescaped(unfinished: Store) -> None:
    sweep = read_sweep(unfinished, "length")
    ours = sweep_tables.ours(sweep, cells(sweep), facts(sweep))
    text = latex([*ours, *sweep_tables.paper(published(sweep.manifest))], "length")
    assert text.startswith(r"% Needs \usepackage{booktabs} and \usepackage{siunitx}")
    for environment in (r"table\*?", "tabular"):
        begins, ends = (re.findall(rf"\\{word}\{{{environment}\}}", text) for word in ("begin", "end"))
        assert len(begins) == len(ends) >= 4
    assert (
        text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 5
    )  # Figure 2 in two parts
    parts = ["", "-differences", "-paper-1", "-paper-2"]
    assert re.findall(r"\\label\{(.*?)\}", text) == [f"tab:length{part}" for part in parts]
    assert "±" not in text and r"$\pm$" in text
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[_%#]", bare) and bare.isascii()


def test_the_papers_values_have_separate_tables(unfinished: Store) -> None:
    sweep = read_sweep(unfinished, "length")
    ours = sweep_tables.comparison(sweep, cells(sweep), facts(sweep))
    table_6, figure_2 = sweep_tables.paper(published(sweep.manifest))
    assert table_6.caption.startswith("The paper's Table 6: OFA-large, one seed per value, printed; the header says 32")
    assert list(table_6.frame.columns) == [f"Prompt length {length}" for length in (10, 16, 32, 64, 100, 120)]
    assert figure_2.caption == "The paper's Figure 2: OFA-large, one seed per value, read off the plot."
    assert list(figure_2.frame.index) == ["10", "16", "30", "64", "100", "120"]
    assert figure_2.frame.loc["64", "RefCOCO testA"] == "92.60"
    assert not any("RefCOCO" in str(label) for label in ours.frame.columns)


@pytest.mark.parametrize(
    ("compare", "table", "columns", "value"),
    [
        ("prompt.depth", "3", ["Encoder", "Decoder", "Both"], "88.90"),
        ("prompt.reparameterization", "4", ["None", "MLP"], "90.12"),
    ],
)
def test_depth_and_reparameterization_find_their_tables(
    compare: str, table: str, columns: list[str], value: str
) -> None:
    (part,) = sweep_tables.paper(published({"compare": compare, "paper": {"table": table}}))
    assert list(part.frame.index) == columns
    assert part.frame.loc[columns[1]].iloc[0] == value
    assert [" ".join(column) for column in part.columns[6:8]] == ["val-u RefCOCOg", "test-u RefCOCOg"]
    assert len(part.columns) == 16


def test_a_sweep_over_an_axis_that_the_paper_lacks_shows_no_published_values() -> None:
    assert list(published({"compare": "optim.lr", "paper": FIGURE_2})) == []
    assert list(published({"compare": "prompt.length", "paper": None})) == []


def test_the_published_values_are_complete_and_name_their_source() -> None:
    values = published_values()
    assert len(values) == 284
    assert values["value"].notna().all() and values["source"].notna().all()
    assert set(values.loc[values["table"] == "figure2", "source"]) == {"read off the plot"}


def test_a_record_and_a_result_that_disagree_give_no_value(small: Store) -> None:
    before = read_sweep(small, "length").scores
    change_result(a_run(small), lambda result: result["metrics"].update({"test/acc@0.5": 99.0}))
    sweep = read_sweep(small, "length")
    (note,) = sweep.notes
    assert note.startswith(f"run {a_run(small).id}: test/acc@0.5 is ") and note.endswith("; 99 in result.json")
    gone = (sweep.scores["run"] == a_run(small).id) & (sweep.scores["split"] == "test")
    assert gone.sum() == 1 and sweep.scores["value"].equals(before["value"].mask(gone))
    assert sweep.conflicts == sweep.notes == tuple(sweep.scores.loc[gone, "conflict"])


def test_without_tracking_the_result_replaces_the_record_and_a_note_says_so(small: Store) -> None:
    about = length_sweep([1, 2, 3], [10, 64], TASKS[:1])
    launch(small, about)
    for length in (10, 64):
        train(small, point("micro_grounding", length, 3), {"val/acc@0.5": 70.0, "test/acc@0.5": 71.0}, DISABLED)
    sweep = read_sweep(small, "length")
    assert sweep.notes == ("2 of 6 runs have no readable W&B record; their values are from result.json",)
    assert (sweep.frame["source"] == "result.json").sum() == 2
    assert set(cells(sweep)["n"]) == {3}


def test_an_unreadable_record_is_noted_and_replaced_by_the_result(small: Store) -> None:
    folder = a_run(small)
    result = folder.result()
    assert result is not None
    record = folder.path / result["wandb"]
    data = record.read_bytes()
    record.write_bytes(data[: len(data) // 2])
    notes = read_sweep(small, "length").notes
    assert any("damaged" in note and folder.id in note for note in notes)
    assert any("no end" in note for note in notes)
    record.unlink()
    sweep = read_sweep(small, "length")
    assert any("cannot be read: No such file" in note for note in sweep.notes)
    assert set(cells(sweep)["n"]) == {2}


def test_an_evaluation_that_was_not_made_is_missing_and_counted(small: Store) -> None:
    shutil.rmtree(a_run(small).path)
    train(small, point("micro_grounding", 10, 1), {"val/acc@0.5": 70.0}, OFFLINE)
    sweep = read_sweep(small, "length")
    assert sweep.frame["state"].to_list() == ["not evaluated", "done", "done", "done"]
    assert "INCOMPLETE: of 4 runs 3 done, 1 not evaluated." in table_of(small).notes
    test = cells(sweep).query("split == 'test'").set_index("prompt.length")
    assert test["n"].to_dict() == {10: 1, 64: 2}


def test_notes_name_mixed_commits_mixed_devices_and_uncommitted_changes(small: Store) -> None:
    other = {"commit": "fedcba9876543210", "dirty": True, "device": "cuda: another"}
    change_result(a_run(small), lambda result: result.update(other))
    notes = table_of(small).notes
    assert "Mixed commits: 0123456789, fedcba9876 with uncommitted changes." in notes
    assert "Mixed devices: cpu: a core, cuda: another." in notes


def test_each_combination_of_a_further_axis_is_a_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    axes: dict[str, list[Any]] = {"task": TASKS[:1], "prompt.length": [10, 64], "prompt.depth": ["encoder", "decoder"]}
    axes |= {"prompt.dropout": [0.2], "seed": [1]}
    baseline = {"prompt.length": 64, "prompt.depth": "encoder"}
    about = manifest("both", axes, "prompt.length", {}, baseline)
    launch(store, about)
    run_all(store, about["points"], DISABLED, seed=0)
    table = table_of(store, "both")
    assert list(table.frame.index) == [
        ("10", "Encoder"),
        ("10", "Decoder"),
        ("64", "Encoder"),
        ("64", "Decoder"),
    ]
    assert "prompt dropout 0.2" in words_of(table)
    assert all(re.fullmatch(r"\d+\.\d( \*)?", cell) for cell in table.frame["Grounding Acc@0.5"])
    assert "One seed has no interval." in table.notes and "(n = 1 seed)" in table.caption


def test_a_point_that_the_sweep_excludes_is_a_dash_and_not_missing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    about = length_sweep([1], [10, 64], TASKS)
    about["points"] = [entry for entry in about["points"] if entry["values"] != point("micro_entailment", 10, 1)]
    launch(store, about)
    frame = table_of(store).frame
    assert frame.to_numpy().tolist() == [["missing", "-"], ["missing", "missing"]]


def test_a_sweep_without_any_run_is_a_table_of_missing_cells(tmp_path: Path) -> None:
    store = Store(tmp_path)
    launch(store, length_sweep([1, 2], LENGTHS, TASKS))
    table = table_of(store)
    assert set(table.frame.to_numpy().flat) == {"missing"}
    assert "Commit: none yet." in words_of(table) and "of 12 runs 12 not done" in words_of(table)


def test_an_unknown_sweep_names_the_nearest_and_ends_with_2(
    unfinished: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", "lenght", "--runs", str(unfinished.root)]) == 2
    assert "no sweep lenght in" in (errors := capsys.readouterr().err) and "did you mean length?" in errors
    with pytest.raises(StoreError, match="none was launched into it yet"):
        read_sweep(Store(unfinished.root / "nowhere"), "length")
    assert main(["tables", "--runs", str(unfinished.root / "nowhere")]) == 2


def test_the_command_writes_its_files_prints_their_paths_and_touches_neither_home_nor_torch(
    unfinished: Store, tmp_path: Path
) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    check = "import sys; from analysis.__main__ import main; code = main(sys.argv[1:]); "
    check += (
        "print(sorted({'torch', 'hydra', 'omegaconf', 'sweeps'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    done = subprocess.run(
        [sys.executable, "-c", check, "tables", "length", "--runs", str(unfinished.root), "--out", str(out)],
        env=environment | {"HOME": str(home), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        *(f"figures/length{part}.{kind}" for part in ("", "_paper") for kind in ("caption.txt", "pdf", "png")),
        *(f"tables/length.{kind}" for kind in ("averages.csv", "csv", "md", "runs.csv", "tex", "trends.csv")),
        "tables/length_paper.tex",
    ]
    assert [*home.rglob("*")] == []
    assert "Baseline: prompt length 64." in done.stdout
    assert f"figure   {out}/figures/length.pdf, .png, .caption.txt, _paper.pdf, " in done.stdout
    assert (
        f"tables   {out}/tables/length.md, .tex, .csv, .runs.csv, .trends.csv, .averages.csv, _paper.tex" in done.stdout
    )
    assert f"records  {unfinished.root}/run/ID/attempts/N/wandb, IDs in length.runs.csv" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 130 + len(str(out))
    assert "RefCOCO" in (out / "tables" / "length.md").read_text()
