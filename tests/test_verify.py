"""Faults of a store, by hand or by a disk: each is reported, and replaces the number that it affects."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from groups import some
from synthetic_store import (
    DISABLED,
    EXAMPLES,
    JOB,
    OFFLINE,
    claim,
    evaluate,
    launch,
    manifest,
    put,
    run_all,
    run_of,
    train,
)
from wandb.proto.wandb_internal_pb2 import Record as Message

from analysis.__main__ import main
from analysis.records import remarks, verify
from analysis.records.frame import Sweep
from analysis.records.manifest import read_manifest
from analysis.records.reading import assemble, read_sweep
from analysis.records.sources import InStore, in_store
from analysis.reports.report import read_report, texts
from analysis.statistics.cell_statistics import cells, facts
from analysis.tables import sweep_tables
from mmprompt.execution.evaluations import NewEvaluation
from mmprompt.runs.attempt import Attempt
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import canonical, evaluation_id, frozen_text
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_file import MAGIC, framed, payloads
from sweeps.grid.manifest import expand
from sweeps.grid.manifest import manifest as frozen
from sweeps.grid.sweep_file import names

GROUNDING, ENTAILMENT = TASKS = ["micro_grounding", "micro_entailment"]
ACC = "acc@0.5"
SEEDS = [1, 2, 3]
AXES = {"task": TASKS, "prompt.length": [64, 120], "seed": SEEDS}
PLAIN = (GROUNDING, 120, 2)  # the run that most faults affect


def about() -> dict[str, Any]:
    return manifest("length", AXES, "prompt.length", {}, {"prompt.length": 64}, facts=["seconds"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with twelve runs, all done, with W&B records."""
    store = Store(tmp_path_factory.mktemp("whole"))
    launch(store, about())
    run_all(store, about()["points"], OFFLINE, seed=0)
    return store


@pytest.fixture
def store(whole: Store, tmp_path: Path) -> Store:
    return Store(shutil.copytree(whole.root, tmp_path / "store"))


def values(task: str, length: int, seed: int) -> dict[str, Any]:
    return {"task": task, "prompt.length": length, "seed": seed}


def folder(store: Store, task: str = GROUNDING, length: int = 120, seed: int = 2) -> RunFolder:
    return store.run(run_of(values(task, length, seed)))


def evaluation(store: Store, split: str, *which: Any) -> Path:
    """The file of a run's evaluation on this split."""
    result = folder(store, *which).result()
    assert result is not None
    return folder(store, *which).published.evaluation_file(result["evaluations"][split])


def record_of(store: Store, *which: Any) -> Path:
    result = folder(store, *which).result()
    assert result is not None
    return folder(store, *which).path / result["wandb"]


# Faults of a store


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_manifest(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    edit(store.manifest("length"), change)


def point_of(content: Mapping[str, Any], *which: Any) -> dict[str, Any]:
    (point,) = [one for one in content["points"] if one["values"] == values(*(which or PLAIN))]
    return point


def edit_record(file: Path, kind: str, new: Mapping[str, Any]) -> None:
    """Changes values in the summary or the configuration of a W&B record, with correct checksums."""
    messages = [Message.FromString(one) for one in payloads(file.read_bytes(), len(MAGIC)) if isinstance(one, bytes)]
    for message in messages:
        if message.WhichOneof("record_type") == kind:
            for item in (message.summary if kind == "summary" else message.run.config).update:
                if item.key in new:
                    item.value_json = json.dumps(new[item.key])
    file.write_bytes(framed(message.SerializeToString() for message in messages))


def in_result(store: Store, new: Mapping[str, float], *which: Any) -> None:
    edit(folder(store, *which).result_file, lambda result: result["metrics"].update(new))


def in_record(store: Store, new: Mapping[str, float], *which: Any) -> None:
    edit_record(record_of(store, *which), "summary", new)


def in_examples(store: Store, split: str, scores: np.ndarray, *which: Any) -> None:
    file = evaluation(store, split, *which)
    np.save(file.with_suffix(".npy"), scores.astype(np.float32))
    edit(file, lambda content: content.update(n=len(scores)))


def everywhere(store: Store, key: str, scores: np.ndarray, *which: Any) -> None:
    """Writes these scores, and their mean in every place where the run stores it."""
    split, metric = key.split("/")
    mean = float(scores.astype(np.float32).astype(np.float64).mean())
    in_examples(store, split, scores, *which)
    edit(evaluation(store, split, *which), lambda content: content["metrics"].update({metric: mean}))
    in_result(store, {key: mean}, *which)
    in_record(store, {key: mean}, *which)


def scores_of(mean: float) -> np.ndarray:
    return np.r_[np.full(round(EXAMPLES * mean / 100), 100.0), np.zeros(EXAMPLES - round(EXAMPLES * mean / 100))]


def both_changed(store: Store) -> None:
    in_result(store, {f"test/{ACC}": 99.9})
    in_record(store, {f"test/{ACC}": 99.9})


def folders_swapped(store: Store) -> None:
    one, other = folder(store).path, folder(store, GROUNDING, 64, 1).path
    for at, to in ((one, "aside"), (other, one), (one.parent / "aside", other)):
        at.rename(one.parent / to)


def folder_of_another(store: Store) -> None:
    shutil.rmtree(folder(store).path)
    shutil.copytree(folder(store, GROUNDING, 64, 1).path, folder(store).path)


def labels_swapped(store: Store) -> None:
    def swap(content: dict[str, Any]) -> None:
        one, other = point_of(content, GROUNDING, 64, 2), point_of(content)
        one["values"], other["values"] = other["values"], one["values"]

    edit_manifest(store, swap)


def splits_swapped(store: Store) -> None:
    def swap(content: dict[str, Any]) -> None:
        ids = point_of(content)["evaluations"]
        ids["val"], ids["test"] = ids["test"], ids["val"]

    edit_manifest(store, swap)


def values_swapped(store: Store) -> None:
    metrics = (folder(store).result() or {})["metrics"]
    other = {f"val/{ACC}": metrics[f"test/{ACC}"], f"test/{ACC}": metrics[f"val/{ACC}"]}
    in_result(store, other)
    in_record(store, other)


def anothers_record(store: Store) -> None:
    record_of(store).write_bytes(record_of(store, GROUNDING, 64, 1).read_bytes())


def another_attempts_record(store: Store) -> None:
    edit_record(record_of(store), "run", {"attempt": 7})


def config_changed(store: Store) -> None:
    file = folder(store).config_file
    file.write_text(canonical(json.loads(file.read_text()) | {"seed": 3}))


def cut_off(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def tasks_swapped(store: Store) -> None:
    edit_manifest(store, lambda content: point_of(content)["values"].update(task=ENTAILMENT))


def metric_renamed(store: Store) -> None:
    def rename(result: dict[str, Any]) -> None:
        result["metrics"] = {"val/accuracy": 80.0, "test/accuracy": 80.0}

    edit(folder(store).result_file, rename)


def of_the_wrong_split(store: Store) -> None:
    """Copies the files of val over those of test."""
    val, test = evaluation(store, "val"), evaluation(store, "test")
    for suffix in (".json", ".npy"):
        shutil.copy(val.with_suffix(suffix), test.with_suffix(suffix))


def doubled(content: dict[str, Any]) -> None:
    content["points"].append(point_of(content))


def fewer_examples(store: Store) -> None:
    file = evaluation(store, "test")
    mean = json.loads(file.read_text())["metrics"][ACC]
    in_examples(store, "test", np.full(400, mean))


RUN, OTHER = run_of(values(*PLAIN)), run_of(values(GROUNDING, 64, 1))
BOTH, TEST = ["val", "test"], ["test"]
CELL = (GROUNDING, 120)
Damage = tuple[Callable[[Store], object], str, list[tuple[str, int]], list[str]]
CONFLICTS: dict[str, Damage] = {
    "a record's value changed": (
        lambda store: in_record(store, {f"test/{ACC}": 99.9}),
        rf"run {RUN}: test/{ACC} is 99.9 in its W&B record; \d\d\.\d+ in result.json, in evaluations/\w+.json and as the mean "
        r"of evaluations/\w+.npy",
        [CELL],
        TEST,
    ),
    "a result's value changed": (
        lambda store: in_result(store, {f"test/{ACC}": 99.9}),
        rf"run {RUN}: test/{ACC} is \d\d\.\d+ in its W&B record, in .*; 99.9 in result.json",
        [CELL],
        TEST,
    ),
    "both changed": (
        both_changed,
        rf"run {RUN}: test/{ACC} is 99.9 in its W&B record and in result.json; \d\d\.\d+ in evaluations/\w+.json and as the mean",
        [CELL],
        TEST,
    ),
    "the folder of another run": (
        folder_of_another,
        rf"run {RUN}: its folder holds another run's files: config.json and result.json are those of run {OTHER}",
        [CELL],
        BOTH,
    ),
    "folders of two runs swapped": (
        folders_swapped,
        rf"run {RUN}: its folder holds another run's files: config.json and result.json are those of run {OTHER}",
        [CELL, (GROUNDING, 64)],
        BOTH,
    ),
    "another run's result": (
        lambda store: shutil.copy(folder(store, GROUNDING, 64, 1).result_file, folder(store).result_file),
        rf"run {RUN}: result.json is that of run {OTHER}",
        [CELL],
        BOTH,
    ),
    "listed under another task": (
        tasks_swapped,
        rf"run {RUN}: the manifest says task {ENTAILMENT}, its config.json {GROUNDING}",
        [(ENTAILMENT, 120)],
        BOTH,
    ),
    "a metric that was not recorded": (
        metric_renamed,
        rf"run {RUN}: result.json has no test/{ACC}, but val/accuracy, test/accuracy",
        [CELL],
        BOTH,
    ),
    "labels of two runs swapped": (
        labels_swapped,
        rf"run {RUN}: the manifest says prompt.length 64, its config.json 120",
        [CELL, (GROUNDING, 64)],
        BOTH,
    ),
    "one label changed": (
        lambda store: edit_manifest(store, lambda content: point_of(content)["values"].update({"prompt.length": 64})),
        rf"run {RUN}: the manifest says prompt.length 64, its config.json 120",
        [(GROUNDING, 64)],
        BOTH,
    ),
    "a seed changed": (
        lambda store: edit_manifest(store, lambda content: point_of(content)["values"].update(seed=9)),
        rf"run {RUN}: the manifest says seed 9, its config.json 2",
        [CELL],
        BOTH,
    ),
    "one point doubled": (
        lambda store: edit_manifest(store, doubled),
        rf"run {RUN}: the manifest lists it 2 times for task {GROUNDING}, prompt.length 120, seed 2",
        [CELL],
        BOTH,
    ),
    "ids of two splits swapped": (
        splits_swapped,
        rf"run {RUN}: the manifest shows evaluation \w+ as test, and result.json says val",
        [CELL],
        BOTH,
    ),
    "values of two splits swapped": (
        values_swapped,
        rf"run {RUN}: val/{ACC} is [\d.]+ in its W&B record and in result.json; [\d.]+ in evaluations",
        [CELL],
        BOTH,
    ),
    "the files of another split": (
        of_the_wrong_split,
        rf"run {RUN}: the manifest shows evaluation \w+ as test, and evaluations/\w+.json says val",
        [CELL],
        TEST,
    ),
    "an evaluation of other settings": (
        lambda store: edit(evaluation(store, "test"), lambda file: file["settings"].update(examples=100)),
        rf"run {RUN}: evaluations/\w+.json is not what was asked: its settings make evaluation \w+",
        [CELL],
        TEST,
    ),
    "the evaluation of another run": (
        lambda store: edit(evaluation(store, "test"), lambda file: file.update(run=OTHER)),
        rf"run {RUN}: evaluations/\w+.json is of run {OTHER}",
        [CELL],
        TEST,
    ),
    "another run's record": (
        anothers_record,
        rf"run {RUN}: its W&B record is that of run {OTHER}, and run {RUN} was expected",
        [CELL],
        BOTH,
    ),
    "another attempt's record": (
        another_attempts_record,
        rf"run {RUN}: its W&B record is that of attempt 7, and attempt 1 was expected",
        [CELL],
        BOTH,
    ),
    "the configuration changed": (
        config_changed,
        rf"run {RUN}: config.json is not what was launched: its hash is \w+, and the run's id {RUN} was expected",
        [CELL],
        BOTH,
    ),
    "the record's configuration changed": (
        lambda store: edit_record(record_of(store), "run", {"seed": 3}),
        rf"run {RUN}: seed is 3 in the configuration of its W&B record, and 2 in config.json",
        [CELL],
        BOTH,
    ),
    "nan in the result": (
        lambda store: in_result(store, {f"test/{ACC}": math.nan}),
        rf"run {RUN}: test/{ACC} is NaN in result.json",
        [CELL],
        TEST,
    ),
    "nan everywhere": (
        lambda store: everywhere(store, f"test/{ACC}", np.full(EXAMPLES, np.nan)),
        rf"run {RUN}: test/{ACC} is NaN in its W&B record, result.json and evaluations/\w+.json",
        [CELL],
        TEST,
    ),
    "out of range": (
        lambda store: everywhere(store, f"test/{ACC}", np.full(EXAMPLES, 6612.0)),
        rf"run {RUN}: test/{ACC} is 6612, and {ACC} lies between 0 and 100",
        [CELL],
        TEST,
    ),
    "examples out of range": (
        lambda store: everywhere(store, f"test/{ACC}", np.r_[np.zeros(EXAMPLES - 1), 6612.0]),
        rf"run {RUN}: evaluations/\w+.npy has scores from 0 to 6612, and {ACC} lies between 0 and 100",
        [CELL],
        TEST,
    ),
    "shares instead of percent": (
        lambda store: everywhere(store, f"test/{ACC}", scores_of(80.0) / 100),
        rf"run {RUN}: test/{ACC} is 0.8 and no score in evaluations/\w+.npy is above 1: {ACC} is in percent",
        [CELL],
        TEST,
    ),
    "fewer examples": (
        fewer_examples,
        rf"run {RUN}: evaluation \w+ has 400 examples, and its column 500 examples \(5 of 6\) and 400 examples \(1 of 6\)",
        [CELL],
        TEST,
    ),
    "a header that no run has": (
        lambda store: edit_manifest(store, lambda content: content["header"].update({"optim.steps": 99999})),
        r"12 runs \(\w+, \w+, \w+, ...\): the manifest's header says optim.steps 99999, its config.json 30",
        [(task, length) for task in TASKS for length in (64, 120)],
        BOTH,
    ),
}
UNREADABLE: dict[str, Damage] = {
    "a result cut off": (
        lambda store: cut_off(folder(store).result_file),
        rf"run {RUN}: result.json is cut off or damaged: ",
        [CELL],
        BOTH,
    ),
    "an empty result": (
        lambda store: folder(store).result_file.write_bytes(b""),
        rf"run {RUN}: result.json is cut off or damaged: ",
        [CELL],
        BOTH,
    ),
    "a result without an attempt": (
        lambda store: edit(folder(store).result_file, lambda result: result.pop("attempt")),
        rf"run {RUN}: result.json is damaged: it has no attempt",
        [CELL],
        BOTH,
    ),
    "an evaluation cut off": (
        lambda store: cut_off(evaluation(store, "test")),
        rf"run {RUN}: evaluations/\w+.json is cut off or damaged: ",
        [CELL],
        TEST,
    ),
    "examples cut off": (
        lambda store: cut_off(evaluation(store, "test").with_suffix(".npy")),
        rf"run {RUN}: evaluations/\w+.npy is cut off or damaged: ",
        [CELL],
        TEST,
    ),
}


def by_cell(sweep: Sweep) -> pd.DataFrame:
    return cells(sweep).set_index(["task", "prompt.length", "split"])


@pytest.mark.parametrize(
    ("state", "name"), [("conflict", one) for one in CONFLICTS] + [("unreadable", one) for one in UNREADABLE]
)
def test_each_fault_of_a_store_is_reported_once_and_replaces_the_number(
    store: Store, whole: Store, state: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, sentence, where, splits = (CONFLICTS if state == "conflict" else UNREADABLE)[name]
    damage(store)
    sweep, before = read_sweep(store, "length"), by_cell(read_sweep(whole, "length"))
    assert [said for said in sweep.conflicts if re.match(sentence, said)], sweep.conflicts
    assert len(sweep.conflicts) == (2 if name in TWO_SENTENCES else 1), sweep.conflicts
    assert set(sweep.conflicts) <= set(sweep.notes)
    table_cells = by_cell(sweep)
    wrong = {(*cell, split) for cell in where for split in splits}
    for key, row in table_cells.iterrows():
        if key in wrong:
            assert row[state] >= 1 and math.isnan(row["value"]) and math.isnan(row["difference"]), key
            assert any(said.split(": ", 1)[1] in row["note"] for said in sweep.conflicts)
        elif row["n"] == 3:  # nothing else is touched
            assert row["value"] == before.loc[key, "value"] and row["note"] == ""
    written = texts(read_report(store, read_manifest(store, "length"), in_store))
    for kind, cell in ((".md", rf"\| +{state} \[[a-z]\] +\|"), (".tex", rf"[{{ ]{state}\$\^{{[a-z]}}\$")):
        assert re.search(cell, written[kind]), written[kind]
        assert "".join(sweep.conflicts[0].split()).replace("_", "")[:60] in re.sub(r"[\s\\_]", "", written[kind])
    rows = pd.read_csv(StringIO(written[".csv"]))
    assert rows.loc[rows[state] > 0, "note"].notna().sum() == len(wrong)
    assert main(["verify", "--runs", str(store.root)]) == 1
    assert re.search(sentence, capsys.readouterr().out)


# Faults that affect two runs, or both splits of one run; each has a different sentence.
TWO_SENTENCES = {
    "labels of two runs swapped",
    "folders of two runs swapped",
    "ids of two splits swapped",
    "values of two splits swapped",
    "a metric that was not recorded",
}


def test_a_sound_store_has_no_conflicts_and_no_notes(whole: Store, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read_sweep(whole, "length")
    assert sweep.notes == sweep.conflicts == () and remarks.notes(sweep) == []
    assert set(sweep.scores["conflict"]) == {None} and set(cells(sweep)["note"]) == {""}
    assert main(["verify", "length", "--runs", str(whole.root)]) == 0
    output = capsys.readouterr().out
    assert output.startswith("length: 12 of 12 runs checked: ") and output.endswith(": no conflict\n")


def test_the_command_ends_with_1_and_writes_what_it_can(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    both_changed(store)
    launch(store, about() | {"sweep": "sound"})
    edit(store.manifest("sound"), lambda content: content["points"].remove(point_of(content)))
    launch(store, about() | {"sweep": "torn"})
    cut_off(store.manifest("torn"))
    assert main(["tables", "length", "--runs", str(store.root)]) == 1
    for kind in ("md", "tex", "csv"):
        assert "99.9 in its W" in (store.root / "tables" / f"length.{kind}").read_text().replace("\n", " ")
    assert main(["tables", "--runs", str(store.root)]) == 2
    errors = capsys.readouterr().err
    assert re.search(r"\S+torn.json is cut off or damaged", errors)
    assert (store.root / "tables" / "sound.md").exists()  # the others go on
    assert "conflict" not in (store.root / "tables" / "sound.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(
            (lambda content, key=key: content.pop(key), f"is damaged: it has no {key}")
            for key in (
                "sweep",
                "claim",
                "paper",
                "command",
                "axes",
                "baseline",
                "compare",
                "tasks",
                "header",
                "points",
            )
        ),
        (lambda content: point_of(content)["values"].update(task="micro_vqa"), f"lists run {RUN} under task micro_vqa"),
    ],
)
def test_an_inconsistent_manifest_is_an_error_and_no_traceback(
    store: Store, change: Callable[[dict[str, Any]], object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_manifest(store, change)
    assert main(["tables", "--runs", str(store.root)]) == 2
    assert said in capsys.readouterr().err


# Notes on sound numbers


def notes_and_cells(store: Store) -> tuple[list[str], pd.DataFrame]:
    sweep = read_sweep(store, "length")
    assert sweep.conflicts == ()
    return [*sweep.notes, *remarks.notes(sweep)], by_cell(sweep)


def test_a_damaged_record_is_a_note_if_the_rest_agrees(store: Store) -> None:
    file = record_of(store)
    data = bytearray(file.read_bytes())
    data[-300] ^= 1  # in the last messages
    file.write_bytes(data)
    notes, table_cells = notes_and_cells(store)
    assert any(note.startswith(f"run {RUN}: its W&B record is damaged at byte ") for note in notes)
    assert set(table_cells["n"]) == {3}


def test_a_run_without_a_result_is_read_from_its_record_and_a_note_says_so(store: Store, whole: Store) -> None:
    folder(store).result_file.unlink()
    notes, table_cells = notes_and_cells(store)
    assert notes == [
        "1 of 12 runs have no result.json; their values are from the W&B record of the first attempt that finished"
    ]
    pd.testing.assert_frame_equal(table_cells, by_cell(read_sweep(whole, "length")))
    in_examples(store, "test", scores_of(10.0), GROUNDING, 64, 1)  # it is checked like the others
    file = Attempt(folder(store), 1).evaluations
    [np.save(one, np.zeros(EXAMPLES, np.float32)) for one in file.glob("*.npy")]
    conflicts = read_sweep(store, "length").conflicts
    assert any(re.match(rf"run {RUN}: test/{ACC} is .* in its W&B record", one) for one in conflicts)


def test_a_record_without_an_end_does_not_replace_a_result(store: Store) -> None:
    file = record_of(store)
    folder(store).result_file.unlink()
    file.write_bytes(file.read_bytes()[:-40])
    sweep = read_sweep(store, "length")
    assert set(sweep.frame.loc[sweep.frame["run"] == RUN, "state"]) == {"not done"}


def test_a_note_names_a_point_that_was_dropped(store: Store) -> None:
    edit_manifest(store, lambda content: content["points"].remove(point_of(content)))
    notes, table_cells = notes_and_cells(store)
    assert (
        f"not in the manifest, though other rows have it: prompt.length 120 on {GROUNDING}: no point for seed 2"
        in notes
    )
    assert "no point for seed 2" in table_cells.loc[(*CELL, "test"), "note"]


def test_a_note_names_the_seeds_of_rows_with_other_seeds_than_the_baseline(store: Store) -> None:
    shutil.rmtree(folder(store).path)
    notes, table_cells = notes_and_cells(store)
    assert notes == [
        f"other seeds than the baseline's: prompt.length 120 on {GROUNDING}: seeds 1 3, the baseline's 1 2 3"
    ]
    assert "seeds 1 3, the baseline's 1 2 3" in table_cells.loc[(*CELL, "test"), "note"]


def test_a_difference_without_an_interval_is_not_significant(store: Store) -> None:
    for seed in (1, 3):
        shutil.rmtree(folder(store, GROUNDING, 64, seed).path)
    sweep = read_sweep(store, "length")
    row = next(row for row in cells(sweep).itertuples() if row.split == "test" and row.difference_n == 1)
    assert sweep_tables.difference(row).mark == "~" and math.isnan(sweep_tables.difference(row).lower)


@pytest.mark.parametrize(
    ("others", "said"), [(False, ", and on every example the same score"), (True, ", though not on the same examples")]
)
def test_a_note_names_seeds_with_equal_scores_and_whether_their_examples_agree(
    store: Store, others: bool, said: str
) -> None:
    for seed in SEEDS:
        scores = np.roll(scores_of(80.0), 7 * seed) if others else scores_of(80.0)
        everywhere(store, f"test/{ACC}", scores, GROUNDING, 120, seed)
    notes, table_cells = notes_and_cells(store)
    assert f"no spread over seeds: prompt.length 120 on {GROUNDING} test: 3 seeds have 80{said}" in notes
    assert said in table_cells.loc[(*CELL, "test"), "note"]


def test_seeds_with_the_highest_possible_score_need_no_note(store: Store) -> None:
    for seed in SEEDS:
        everywhere(store, f"test/{ACC}", np.full(EXAMPLES, 100.0), GROUNDING, 120, seed)
    assert notes_and_cells(store)[0] == []


def test_a_note_names_missing_scores_of_examples(store: Store) -> None:
    evaluation(store, "test").with_suffix(".npy").unlink()
    notes, _ = notes_and_cells(store)
    assert notes == [
        "1 of 12 runs have no scores of single examples for what is shown; nothing but their records says that the "
        "values are right",
        f"intervals over seeds alone: prompt.length 120 on {GROUNDING} test: no scores of single examples for seed 2",
    ]


def test_differences_from_a_baseline_without_scores_of_single_examples_cover_seeds_alone(store: Store) -> None:
    for split in ("val", "test"):
        evaluation(store, split, GROUNDING, 64, 3).with_suffix(".npy").unlink()
    notes, table_cells = notes_and_cells(store)
    what = "no scores of single examples for seed 3; so are differences from it"
    assert f"intervals over seeds alone: prompt.length 64 on {GROUNDING}: {what}" in notes
    halves = table_cells["difference_half_examples"]
    assert halves[(GROUNDING, 120, "test")] == 0 < halves[(ENTAILMENT, 120, "test")]


# Slow checks


def test_damage_in_the_middle_of_a_long_record_weights_and_evaluations_not_shown_are_found_by_verify_alone(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    file = record_of(store)
    messages = [Message.FromString(one) for one in payloads(file.read_bytes(), len(MAGIC)) if isinstance(one, bytes)]
    rows = [one for one in messages if one.WhichOneof("record_type") == "history"]
    place = messages.index(rows[-1])
    messages[place:place] = [Message.FromString(rows[0].SerializeToString()) for _ in range(1500)]
    for number, message in enumerate(messages, 1):
        message.num = number
    data = bytearray(framed(message.SerializeToString() for message in messages))
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    edit(folder(store).result_file, lambda result: result.update(weights="0" * 64))
    Attempt(folder(store), 1).weights_file.write_bytes(b"other weights")
    stray = evaluation(store, "test").parent / "stray.json"
    shutil.copy(evaluation(store, "test"), stray)
    assert notes_and_cells(store)[0] == []
    assert main(["verify", "--runs", str(store.root)]) == 0
    output = capsys.readouterr().out
    assert f"run {RUN}: its W&B record is damaged at byte " in output
    assert f"run {RUN}: its weights are damaged: their sha256 is " in output
    assert f"run {RUN}: evaluations/stray.json is not what was asked: " in output
    sweep = assemble(store, read_manifest(store, "length"), InStore(whole=True), deep=True)
    assert set(cells(sweep)["n"]) == {3}


# Evaluations of finished weights


CAPTIONS = [{"task": "micro_caption", "prompt.length": length, "seed": seed} for length in (10, 64) for seed in SEEDS]


@pytest.fixture
def captioned(tmp_path: Path) -> Store:
    """A store with captions for two lengths, with BLEU-4 beside CIDEr."""
    axes = {"task": ["micro_caption"], "prompt.length": [10, 64], "seed": SEEDS}
    store = Store(tmp_path)
    launch(store, manifest("length", axes, "prompt.length", {}, {"prompt.length": 64}))
    for point in CAPTIONS:
        values = {"val/cider": 500.0, "test/cider": 500.0 + point["seed"], "test/bleu4": 30.0 + point["seed"]}
        train(store, point, values, DISABLED)
    return store


def test_a_cell_with_a_conflict_has_no_further_metric_either(captioned: Store) -> None:
    whole = cells(read_sweep(captioned, "length")).set_index(["prompt.length", "split", "metric"]).sort_index()
    assert whole.loc[(10, "test", "bleu4"), ["value", "n"]].to_list() == [32.0, 3]
    assert "bleu4" not in whole.xs("val", level="split").index.get_level_values("metric")
    edit(captioned.run(run_of(CAPTIONS[0])).result_file, lambda result: result["metrics"].update({"test/cider": 9.0}))
    table_cells = (
        cells(sweep := read_sweep(captioned, "length")).set_index(["prompt.length", "split", "metric"]).sort_index()
    )
    assert (
        table_cells.loc[(10, "test"), "n"].to_list() == [0, 0] and table_cells.loc[(10, "test"), "value"].isna().all()
    )
    assert (
        sweep_tables.comparison(sweep, table_cells.reset_index(), facts(sweep)).frame.loc["10"].to_list()
        == ["conflict [a]"] * 2
    )
    assert table_cells.loc[(64, "test", "bleu4"), "value"] == 32.0


def test_a_damaged_evaluation_of_captions_is_reported_in_one_sentence(captioned: Store) -> None:
    content = json.loads(captioned.manifest("length").read_text())
    asked = {"split": "test", "examples": EXAMPLES}
    for point in content["points"]:
        one = evaluation_id(point["run"], asked)
        attempt = claim(captioned, point["values"], JOB | {"work": "evaluate"})
        put(attempt, attempt.run.evaluations, "micro_caption", asked, 400.0)
        point["evaluations"] = {"test": one}
    launch(captioned, content)
    assert set(cells(read_sweep(captioned, "length"))["value"]) == {400.0}
    cut_off(
        captioned.run(content["points"][0]["run"]).evaluations / f"{content['points'][0]['evaluations']['test']}.json"
    )
    (conflict,) = read_sweep(captioned, "length").conflicts
    assert re.match(rf"run {content['points'][0]['run']}: evaluations/\w+.json is cut off or damaged", conflict)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Store:
    axes = {"task": [GROUNDING], "method": ["prompt", "finetune"], "seed": [1, 2], "attack.epsilon": [0.0, 0.1]}
    shown = {"over": "attack.epsilon", "kept_from": 0.0}
    content = manifest("attack", axes, "method", {}, {"method": "finetune"}, **shown)
    store = Store(tmp_path_factory.mktemp("attacked"))
    launch(store, content)
    for run in dict.fromkeys(one["run"] for one in content["points"]):
        points = [one["values"] for one in content["points"] if one["run"] == run]
        run_all(store, [{"values": points[0]}], DISABLED, seed=0)
        evaluate(store, points, [50.0 + points[0]["seed"], 25.0 + points[0]["seed"]], OFFLINE)
    return store


def test_attacks_on_sound_runs_have_no_conflicts(attacked: Store) -> None:
    sweep = read_sweep(attacked, "attack")
    assert sweep.conflicts == () and set(sweep.frame["state"]) == {"done"}
    assert set(cells(sweep)["n"]) == {2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attack.epsilon": 0.2}, "the manifest says attack.epsilon 0.2, evaluations/{one}.json 0.1"),
        ({"method": "finetune"}, "the manifest says method finetune, its config.json prompt"),
    ],
)
def test_the_labels_of_an_attack_are_those_of_the_evaluation(
    attacked: Store, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    store = Store(shutil.copytree(attacked.root, tmp_path / "store"))
    content = json.loads(store.manifest("attack").read_text())
    point = next(one for one in content["points"] if one["values"]["attack.epsilon"] and "prompt" in str(one))
    point["values"] |= change
    content["axes"]["attack.epsilon"].append(0.2)
    store.manifest("attack").write_text(json.dumps(content))
    one = point["evaluations"]["test"]
    assert read_sweep(store, "attack").conflicts == (f"run {point['run']}: {said.format(one=one)}",)


def test_the_record_of_an_attack_is_that_of_its_attempt(attacked: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(attacked.root, tmp_path / "store"))
    point = json.loads(store.manifest("attack").read_text())["points"][0]
    run = store.run(point["run"])
    content = json.loads((run.evaluations / f"{point['evaluations']['test']}.json").read_text())
    edit_record(run.path / content["wandb"], "run", {"run_id": OTHER})
    sweep = read_sweep(store, "attack")
    assert len(sweep.conflicts) == 2 and all(
        f"is that of run {OTHER}, and run {run.id} was expected" in said for said in sweep.conflicts
    )


# Agreement with the files that the project writes


SPELLINGS = [
    "prompt.layers=[1,0],[0]",
    "prompt.decoder_length=64,32",
    "prompt.mlp_dim=32,64",
    "optim.smoothing_over=allowed,vocabulary task=micro_caption,micro_vqa",
    "optim.drop_worst_after=5,6",
    "task.beam=1,2 task=micro_caption",
    "method=prompt,lora",
    "model=micro",
    "evaluation.examples=100,200",
    "evaluation.beam=1,2 task=micro_caption",
    "attack.kind=pgd,fgsm attack.epsilon=0,0.1",
    "attack.epsilon=0.1 evaluation.splits=[test]",
]


@pytest.mark.parametrize(
    "name", [*some(names(ROOT / "conf"), "main", "length", "robustness"), *(f"length {word}" for word in SPELLINGS)]
)
def test_a_launched_manifest_agrees_with_its_runs(name: str) -> None:
    """Labels, header and evaluation settings of every point of every sweep, however its settings are written."""
    sweep, *words = name.split()
    expanded = expand(sweep, [*words, "seed=1", "cluster=local"], ROOT / "conf")
    content = json.loads(json.dumps(frozen(expanded, {"commit": None, "dirty": False})))
    axes = [word.split("=")[0] for word in words if "," in word]
    assert all(axis in content["points"][0]["values"] for axis in axes)
    for point, asked in zip(content["points"], expanded.point_evaluations, strict=True):
        run, labels = point["run"], content["header"] | point["values"]
        config = json.loads(frozen_text(expanded.configs[run]))
        assert verify.check_folder(run, frozen_text(expanded.configs[run]), {"run": run}) is None
        assert verify.check_labels(point["values"], config, run) is None
        assert verify.check_header(content["header"], config) is None
        record = expanded.configs[run].model_dump(mode="json") | {"run_id": run, "attempt": 1}
        assert verify.check_record(run, 1, record, config) is None
        for split, settings in asked.items():
            file = {"settings": dict(settings), "run": run}
            questions = {key: value for key, value in labels.items() if key.startswith(("attack.", "evaluation."))}
            assert verify.check_evaluation(run, point["evaluations"][split], split, file, questions, config) is None
        for key, value in {"optim.lr": 77.0, "task": "another", "precision": "bfloat16", "seed": 2}.items():
            assert verify.check_labels({key: value}, config, run) is not None, key


def test_synthetic_evaluations_have_the_format_of_real_ones(whole: Store, tmp_path: Path) -> None:
    file = evaluation(whole, "test")
    attempt = Store(tmp_path).run("run").claim(1, {})
    assert attempt is not None
    made = NewEvaluation(json.loads(file.read_text()), np.load(file.with_suffix(".npy")).astype(np.float64))
    made.put(attempt, attempt.evaluations)
    for suffix in (".json", ".npy"):
        assert (attempt.evaluations / file.with_suffix(suffix).name).read_bytes() == file.with_suffix(
            suffix
        ).read_bytes()


def test_examples_are_those_of_the_file_and_their_mean_is_the_score(whole: Store, store: Store) -> None:
    sweep = read_sweep(whole, "length")
    for row in sweep.scores.itertuples():
        scores = sweep.examples(row.run, row.evaluation)
        assert (
            scores is not None and scores.shape == (EXAMPLES,) and scores.mean() == pytest.approx(row.value, abs=1e-4)
        )
    assert sweep.examples("nowhere", "nothing") is None
    assert sweep.examples(RUN, "nothing") is None
