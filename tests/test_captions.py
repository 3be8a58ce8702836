"""BLEU-4 and METEOR of a whole set of captions, computed by hand and by COCO's own code if it is installed."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tiny import JOB, frozen_run, job_settings

from mmprompt.execution.execute import execute
from mmprompt.families.caption import CAPTION, bleu4
from mmprompt.runs.store import Store

CAPTIONS = find_spec("pycocoevalcap") is not None
needs_package = pytest.mark.skipif(not CAPTIONS, reason="pip install .[captions]")
needs_java = pytest.mark.skipif(not CAPTIONS or not shutil.which("java"), reason="pip install .[captions], and Java")


def given(*texts: str) -> dict[str, float]:
    return dict.fromkeys(texts, 1.0)


def by_hand(precisions: Sequence[float], penalty: float = 1.0) -> float:
    return 100 * penalty * math.prod(precisions) ** (1 / 4)


def test_bleu_4_equals_the_formula_worked_out_by_hand() -> None:
    # "the" comes twice and counts once, as in the caption: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
    score = bleu4(["the cat sat on the mat"], [given("the cat sat on a mat")])
    assert score == pytest.approx(by_hand([5 / 6, 3 / 5, 2 / 4, 1 / 3]))


def test_bleu_counts_over_all_captions_and_does_not_average_single_scores() -> None:
    right = [given("the cat sat on a mat"), given("two dogs run fast")]
    score = bleu4(["the cat sat on the mat", "two dogs run fast"], right)
    assert score == pytest.approx(by_hand([9 / 10, 6 / 8, 4 / 6, 2 / 4]))


def test_an_n_gram_of_any_caption_of_the_image_counts_and_images_may_have_different_numbers() -> None:
    right = [given("the cat sat on a mat", "a cat on the mat"), given("two dogs run fast")]
    score = bleu4(["the cat sat on the mat", "two dogs run fast"], right)
    assert score == pytest.approx(by_hand([9 / 10, 8 / 8, 5 / 6, 2 / 4]))  # no caption has "the" twice


@pytest.mark.parametrize(("lengths", "closest"), [([4, 6], 4), ([6, 4], 4), ([9, 6], 6), ([6], 6), ([3, 9], 3)])
def test_the_brevity_penalty_uses_the_closest_caption_the_shorter_of_two(lengths: list[int], closest: int) -> None:
    words = "a b c d e".split()
    others = [" ".join([*words, *"fghi"][:length]) for length in lengths]
    score = bleu4(["a b c d e"], [given(*others)])
    matching = [min(5, max(lengths)) - n + 1 for n in range(1, 5)]
    precisions = [there / (5 - n + 1) for n, there in zip(range(1, 5), matching, strict=True)]
    assert score == pytest.approx(by_hand(precisions, math.exp(min(0.0, 1 - closest / 5))))


def test_nothing_is_smoothed_and_no_word_is_split_or_changed() -> None:
    assert bleu4(["a b c x d"], [given("a b c y d")]) == 0  # no four in a row
    assert bleu4(["a b c d."], [given("a b c d")]) == 0
    assert bleu4(["A b c d"], [given("a b c d")]) == 0
    assert bleu4([""], [given("a b c d")]) == 0
    assert bleu4(["a b c d"], [given("a b c d")]) == pytest.approx(100)


def some_captions(count: int) -> tuple[list[str], list[Mapping[str, float]]]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefg", k=draw.randint(3, 12))) for _ in range(8 * count)]
    right = [given(*texts[8 * i + 1 : 8 * i + 1 + draw.randint(1, 6)]) for i in range(count)]
    return texts[::8], right


@needs_package
def test_bleu_4_equals_cocos_own_code() -> None:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    predicted, right = some_captions(300)
    theirs = BleuScorer(n=4)
    for text, captions_given in zip(predicted, right, strict=True):
        theirs += (text, list(captions_given))
    score, _ = theirs.compute_score(option="closest")
    assert bleu4(predicted, right) == pytest.approx(100 * score[3], rel=1e-6) and score[3] > 0.05


@needs_java
def test_with_java_there_is_meteor_and_a_right_caption_scores_higher_than_a_wrong_one() -> None:
    right = [given("a man rides a horse", "a person on a horse"), given("two dogs play in the grass")]
    scores = [
        CAPTION.other_metrics(predicted, right)["meteor"]
        for predicted in (
            ["a man rides a horse", "two dogs play in the grass"],
            ["a man rides a horse", "dogs are playing"],
            ["", "a boat"],
        )
    ]
    assert scores[0] == pytest.approx(100) and scores[0] > scores[1] > scores[2] >= 0


@needs_package
def test_a_failing_java_costs_an_evaluation_its_meteor_score_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\nexit 1\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert set(CAPTION.other_metrics(["a b c d"], [given("a b c d")])) == {"bleu4"}
    assert "meteor is left out, its Java program failed" in capsys.readouterr().err


def test_without_java_there_is_only_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert CAPTION.other_metrics(["a b c d"], [given("a b c d")]) == {"bleu4": pytest.approx(100)}


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = frozen_run(tmp_path_factory.mktemp("captions"), "task=micro_caption", "task.data.train=40")
    store = folder.root
    assert execute(Store(store), [folder.id], job_settings("offline"), JOB) == {folder.id: "done"}
    return folder


def test_a_run_of_captions_has_bleu_beside_cider_in_result_evaluation_and_record(captioned: Any) -> None:
    from mmprompt.runs.wandb_record import read_record

    result = captioned.result()
    assert {"val/cider", "val/bleu4", "test/cider", "test/bleu4"} <= set(result["metrics"])
    assert all(0 <= result["metrics"][f"{split}/bleu4"] <= 100 for split in ("val", "test"))
    content = json.loads(captioned.evaluation_file(result["evaluations"]["test"]).read_text())
    assert list(content["metrics"])[:2] == ["cider", "bleu4"]
    summary = read_record(captioned.path / result["wandb"], history=False).summary
    assert {key: summary[key] for key in result["metrics"]} == result["metrics"]


def test_a_later_evaluation_records_its_primary_metric_by_its_id_and_bleu_beside_it(captioned: Any) -> None:
    from mmprompt.runs.identity import evaluation_id
    from mmprompt.runs.wandb_record import read_record

    asked = {"split": "test", "examples": 9}
    one = evaluation_id(captioned.id, asked)
    store = captioned.root
    assert execute(
        Store(store), [captioned.id], job_settings("offline"), JOB | {"batch": "later"}, evaluations=[asked]
    ) == {captioned.id: "done"}
    content = json.loads(captioned.evaluation_file(one).read_text())
    summary = read_record(captioned.path / content["wandb"], history=False).summary
    assert summary[f"evaluation/{one}"] == content["metrics"]["cider"]
    assert summary[f"evaluation/{one}/bleu4"] == content["metrics"]["bleu4"]


def test_a_sweeps_frame_has_bleu_beside_cider_and_nan_for_older_stores(captioned: Any) -> None:
    from analysis.records.manifest import DEFAULTS
    from analysis.records.reading import assemble
    from analysis.records.sources import in_store

    result, store = captioned.result(), Store(captioned.root)
    task = {"family": "caption", "metric": "cider", "validation": "val"}
    point = {"values": {}, "run": captioned.id, "evaluations": result["evaluations"]}
    about = {"axes": {}, "tasks": {"micro_caption": task}, "header": {}, "points": [point]}
    manifest: dict[str, Any] = DEFAULTS | about
    [row] = assemble(store, manifest, in_store).frame.to_dict("records")
    assert (row["test/cider"], row["test/bleu4"]) == (result["metrics"]["test/cider"], result["metrics"]["test/bleu4"])
    assert row["metric"] == "cider" and math.isnan(row["test/spice"])
    older = {key: value for key, value in result["metrics"].items() if key.endswith("cider")}
    before = captioned.result_file.read_text()
    captioned.result_file.write_text(json.dumps(result | {"metrics": older}))
    try:
        [row] = assemble(store, manifest, in_store).frame.to_dict("records")
    finally:
        captioned.result_file.write_text(before)
    assert row["test/cider"] == result["metrics"]["test/cider"] and math.isnan(row["test/bleu4"])
