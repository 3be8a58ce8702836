"""Reference scores besides the baseline: read from the sweep zero_shot and from evaluations, or absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_store import DISABLED, evaluate, launch, manifest, scores, settings_by_split, train

from analysis.__main__ import main
from analysis.records.reading import read_sweep
from analysis.records.references import references
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import Store

GROUNDING, ENTAILMENT = "micro_grounding", "micro_entailment"
TASKS = [GROUNDING, ENTAILMENT]
UNTUNED = {GROUNDING: "acc@0.5", ENTAILMENT: "accuracy"}


def untuned(store: Store, value: float = 3.75, trained: int = 0, tasks: list[str] = TASKS, **settings: Any) -> None:
    """Makes the sweep zero_shot, whose values on validation are one point higher than on test."""
    axes: dict[str, list[Any]] = {"task": tasks, "prompt.length": [0], "seed": [11]}
    about = manifest("zero_shot", axes | {key: [one] for key, one in settings.items()}, "prompt.length", {}, {})
    launch(store, about)
    for point in about["points"]:
        metric = UNTUNED[point["values"]["task"]]
        values = {f"val/{metric}": value + 1, f"test/{metric}": value}
        train(store, point["values"], values, DISABLED, {"trainable_parameters": trained, "seconds": 0.0})


def length(store: Store, constants: dict[int, float | None] | None = None, **axes: list[Any]) -> dict[str, Any]:
    """Makes a sweep. `constants`: seed -> the recorded score of always giving the same answer on entailment."""
    known: dict[str, list[Any]] = {"task": TASKS, "prompt.length": [10, 64], "seed": [1, 2]}
    about = manifest("length", known | axes, "prompt.length", {}, {"prompt.length": 64})
    launch(store, about)
    noise = np.random.default_rng(0)
    for point in about["points"]:
        values = scores(point["values"], noise)
        constant = (constants or {}).get(point["values"]["seed"])
        if constant is not None and point["values"]["task"] == ENTAILMENT:
            values |= {"val/constant_answer": constant + 1, "test/constant_answer": constant}
        train(store, point["values"], values, DISABLED)
    return about


def found(store: Store, sweep: str = "length") -> dict[tuple[str, str], dict[str, float]]:
    return {pair: dict(known) for pair, known in references(store, read_sweep(store, sweep)).items()}


def test_both_references_are_read_from_records_for_each_task_and_split(tmp_path: Path) -> None:
    store = Store(tmp_path)
    untuned(store)
    length(store, {1: 33.5, 2: 33.5})
    assert found(store) == {
        (GROUNDING, "val"): {"zero_shot": 4.75},
        (GROUNDING, "test"): {"zero_shot": 3.75},
        (ENTAILMENT, "val"): {"zero_shot": 4.75, "chance": 34.5},
        (ENTAILMENT, "test"): {"zero_shot": 3.75, "chance": 33.5},
    }


def test_without_zero_shot_and_with_older_evaluations_there_are_no_references(tmp_path: Path) -> None:
    store = Store(tmp_path)
    length(store)
    assert set(map(bool, found(store).values())) == {False}


@pytest.mark.parametrize(
    ("constants", "wanted"), [({1: 33.5, 2: 40.0}, None), ({1: 33.5, 2: None}, 33.5), ({1: None, 2: None}, None)]
)
def test_chance_is_the_value_in_which_all_evaluations_that_record_it_agree(
    constants: dict[int, float | None], wanted: float | None, tmp_path: Path
) -> None:
    length(Store(tmp_path), constants)
    assert found(Store(tmp_path))[ENTAILMENT, "test"].get("chance") == wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"task.data.test": 250},
        {"task.data.fingerprint": "digits-2"},
        {"task.beam": 5},
        {"model.name": "ofa_base"},
        {"backbone.checksum": "1"},
        {"backbone.mode": "train"},
        {"precision": "bfloat16"},
        {"trained": 512},
    ],
)
def test_a_backbone_that_is_different_tuned_or_evaluated_differently_is_no_reference(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    untuned(store, **settings)
    length(store)
    assert all("zero_shot" not in known for known in found(store).values())


def test_settings_that_affect_only_training_may_differ(tmp_path: Path) -> None:
    store = Store(tmp_path)
    untuned(store, **{"optim.steps": 1})
    length(store)
    assert found(store)[GROUNDING, "test"] == {"zero_shot": 3.75}


def test_several_backbones_or_test_sets_give_no_reference(tmp_path: Path) -> None:
    store = Store(tmp_path)
    untuned(store)
    length(store, **{"task.data.pixels": ["plain", "texture"]})
    assert set(map(bool, found(store).values())) == {False}


def test_a_task_that_zero_shot_did_not_evaluate_has_no_reference(tmp_path: Path) -> None:
    store = Store(tmp_path)
    untuned(store, tasks=TASKS[:1])
    length(store)
    assert found(store)[GROUNDING, "test"] and not found(store)[ENTAILMENT, "test"]


def test_the_untuned_score_without_attack_is_no_reference_under_attack(tmp_path: Path) -> None:
    store = Store(tmp_path)
    untuned(store)
    axes: dict[str, list[Any]] = {"task": TASKS, "method": ["a"], "attack.epsilon": [0.0, 0.1], "seed": [1]}
    about = manifest("attacked", axes, "method", {}, {}, over="attack.epsilon")
    launch(store, about)
    for task in TASKS:
        points = [point["values"] for point in about["points"] if point["values"]["task"] == task]
        clean = {key: value for key, value in points[0].items() if key != "attack.epsilon"}
        folder = train(store, clean, scores(clean, np.random.default_rng(0)), DISABLED)
        evaluate(store, points, [60.0, 50.0], DISABLED)
        if task == ENTAILMENT:  # the same examples give the same constant
            for point in points:
                ((_, settings),) = settings_by_split(point).items()
                add_constant(folder.evaluation_file(evaluation_id(folder.id, settings)), 33.5)
    assert found(store, "attacked") == {(GROUNDING, "test"): {}, (ENTAILMENT, "test"): {"chance": 33.5}}


def add_constant(file: Path, value: float) -> None:
    about = json.loads(file.read_text())
    about["metrics"]["constant_answer"] = value
    file.write_text(json.dumps(about))


def test_zero_shot_has_a_table_and_a_figure_without_itself_as_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = Store(tmp_path / "runs"), tmp_path / "out"
    untuned(store)
    assert set(map(bool, found(store, "zero_shot").values())) == {False}
    assert main(["tables", "zero_shot", "--runs", str(store.root), "--out", str(out)]) == 0
    assert "3.8" in capsys.readouterr().out
    caption = (out / "figures" / "zero_shot.caption.txt").read_text()
    assert caption.startswith("Score by prompt length on grounding and entailment; test split.")
    assert "Backbone without tuning" not in caption and "INCOMPLETE" not in caption


def test_a_report_says_both_below_the_scores_and_in_the_caption_and_has_no_column_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = Store(tmp_path / "runs"), tmp_path / "out"
    untuned(store)
    length(store, {1: 33.5, 2: 33.5})
    assert main(["tables", "length", "--runs", str(store.root), "--out", str(out)]) == 0
    text = (out / "tables" / "length.md").read_text()
    note = "Without tuning: 3.8 on Grounding, 3.8 on Entailment; always the same answer: 33.5 on Entailment."
    assert note in text and note in " ".join(capsys.readouterr().out.split())
    assert "constant_answer" not in text + (out / "tables" / "length.csv").read_text()
    caption = (out / "figures" / "length.caption.txt").read_text()
    assert "Backbone without tuning: Grounding 3.8, Entailment 3.8; not drawn" in caption
    assert "Chance (always the same answer, the best one): Entailment 33.5" in caption
