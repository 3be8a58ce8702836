"""Answers for challenges: splits without right answers are answered without a score, and written as EvalAI and COCO take them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ofa_files
import pytest
import tiny
from attempts import error_of
from ofa_files import FEW, MODEL, make, rows, write
from tiny import JOB, job_settings

from analysis.__main__ import main as analyse
from mmprompt.data.task_data import TaskData
from mmprompt.data.task_files import locate
from mmprompt.execution.execute import execute
from mmprompt.families.caption import CAPTION
from mmprompt.families.lines import DataError
from mmprompt.families.vqa import VQA
from mmprompt.runs.answer_file import answer_file
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import evaluation_id, evaluations_of, freeze, read_config, run_id
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.grid.launched import read as read_launched
from sweeps.grid.manifest import expand
from sweeps.grid.manifest import write as write_manifest

TEST = {"vqa": "dataset/vqa_data/vqa_test.tsv", "coco_caption": "dataset/caption_data/caption_test2014.tsv"}
UNSCORED = {"vqa": "evaluation.unscored={test-dev: [%s]}", "coco_caption": "evaluation.unscored={test2014: [%s]}"}
RIGHT = {"vqa": 3, "coco_caption": 2}  # the column of the right answers
ID = {"vqa": 0, "coco_caption": 1}
NUMBERS = ["262148000", "000042", "9", "131075", "458752"]  # of a test split's examples


def lines_of(task: str, right: str = "") -> list[list[str]]:
    """The lines of a test split; in the column of right answers stands `right`."""
    lines = rows(task, len(NUMBERS))
    for line, number in zip(lines, NUMBERS, strict=True):
        line[ID[task]], line[RIGHT[task]] = number, right
    return lines


class Subject:
    """A finished run of a task with OFA's files, and what a user does with it."""

    def __init__(self, folder: Path, task: str) -> None:
        self.task, self.data = task, make(folder / "ofa", task)
        for name in ofa_files.FILES[task][1:]:  # image ids are numbers in OFA's files
            lines = rows(task, 6)
            for number, line in enumerate(lines):
                line[ID[task]] = str(number + 100)
            write(self.data / "dataset" / name, lines)
        self.store = Store(folder / "runs")
        self.unscored = UNSCORED[task] % TEST[task]
        write(self.data / TEST[task], lines_of(task))
        self.given = [f"task={task}", "task.image_size=64", *MODEL, *FEW, f"paths.data={self.data}"]
        self.given += ["optim.steps=2", f"paths.runs={self.store.root}", "tracking=disabled"]
        config, _ = freeze(tiny.composed(*self.given))
        self.backbone = ofa_files.backbone(config.model, folder / "backbone.safetensors")
        self.given.append(f"paths.backbone={self.backbone}")
        assert self.evaluate() == "done", self.errors()

    @property
    def run(self) -> RunFolder:
        return self.store.run(run_id(freeze(tiny.composed(*self.given))[0]))

    def asked(self, *overrides: str) -> dict[str, dict[str, Any]]:
        composed = tiny.composed(*self.given, *overrides)
        return evaluations_of(composed, freeze(composed)[0])

    def evaluate(self, *overrides: str, batch: str = "by hand") -> str:
        """Makes what is missing, as `mmprompt run` does. Returns how it ended."""
        config, _ = freeze(tiny.composed(*self.given, *overrides))
        folder = self.store.run(run_id(config))
        folder.create(config)
        places = job_settings(backbone=str(self.backbone), data=str(self.data))
        asked = [*self.asked(*overrides).values()]
        return execute(self.store, [folder.id], places, JOB | {"batch": batch}, evaluations=asked)[folder.id]

    def errors(self) -> list[str | None]:
        return [error_of(attempt) for attempt in self.run.attempts()]

    def file(self, settings: Mapping[str, Any]) -> Path:
        return self.run.evaluation_file(evaluation_id(self.run.id, settings))

    def export(self, capsys: pytest.CaptureFixture[str], *names: str) -> tuple[int, str]:
        status = analyse(["export", *(names or (self.run.id[:6],)), "--runs", str(self.store.root)])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    def written(self, split: str) -> list[dict[str, Any]]:
        [file] = (self.store.root / "answers").glob(f"*_{split}_*.json")
        content: list[dict[str, Any]] = json.loads(file.read_text())
        return content


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("vqa"), "vqa")


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("caption"), "coco_caption")


@pytest.fixture(params=["vqa", "coco_caption"])
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.getfixturevalue({"vqa": "questions", "coco_caption": "captions"}[request.param])
    for file in (found.store.root / "answers").glob("*"):
        file.unlink()
    return found


# ----------------------------------------------------------------------------------------------------- from the file to the JSON


def test_a_finished_run_answers_a_test_split_without_right_answers_and_is_not_trained_again(subject: Subject) -> None:
    run = subject.run
    result = run.result_file.read_bytes()
    assert subject.evaluate(subject.unscored) == "done", subject.errors()
    assert subject.run == run and run.result_file.read_bytes() == result
    assert run.attempts()[-1].job["work"] == "evaluate"
    [settings] = [one for one in subject.asked(subject.unscored).values() if "unscored" in one]
    record = json.loads(subject.file(settings).read_text())
    assert record["metrics"] == {} and record["n"] == record["of"] == len(NUMBERS)
    assert record["score"].startswith("none: evaluation.unscored says that the right answers of test")
    assert not subject.file(settings).with_suffix(".npy").exists()


def test_the_file_of_a_test_split_has_the_numbers_of_its_lines_and_the_answers_in_their_order(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subject.evaluate(subject.unscored) == "done", subject.errors()
    status, printed = subject.export(capsys)
    split, challenge = ("test-dev", VQA.challenge) if subject.task == "vqa" else ("test2014", CAPTION.challenge)
    assert status == 0 and challenge is not None, printed
    content = subject.written(split)
    keys = {"vqa": {"question_id", "answer"}, "coco_caption": {"image_id", "caption"}}[subject.task]
    assert all(set(one) == keys for one in content)
    assert [one[challenge.id_key] for one in content] == [262148000, 42, 9, 131075, 458752]
    texts = [one[challenge.answer_key] for one in content]
    assert all(isinstance(text, str) for text in texts)
    if subject.task == "vqa":
        assert set(texts) <= {*ofa_files.ANSWERS}
    name = {"vqa": rf"vqa_test-dev_{subject.run.id}-\w+_results.json"}
    name["coco_caption"] = rf"captions_test2014_{subject.run.id}-\w+_results.json"
    assert re.search(rf"/answers/{name[subject.task]} \(5 answers to {split}, for {challenge.name}\)", printed)


def test_the_answers_that_are_written_are_those_that_were_scored(
    subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    assert subject.export(capsys)[0] == 0
    content, family = subject.written("val"), VQA if subject.task == "vqa" else CAPTION
    assert family.challenge is not None
    config = read_config(subject.run.config_file)
    split = TaskData(config.task, config.model, locate(config.task, str(subject.data), False, None)).split("val")
    texts = [family.normalise(one[family.challenge.answer_key]) for one in content]
    assert [one[family.challenge.id_key] for one in content] == [100, 101, 102, 103, 104, 105]
    scored = np.load(subject.file({"split": "val"}).with_suffix(".npy"))
    expected = family.primary.scores(texts, [item.right for item in split.items])
    assert scored == pytest.approx(np.array(expected), rel=1e-6)


def test_a_placeholder_in_the_column_of_right_answers_changes_no_answer(questions: Subject) -> None:
    assert questions.evaluate(questions.unscored) == "done"
    [empty] = [one for one in questions.asked(questions.unscored).values() if "unscored" in one]
    file = questions.data / TEST["vqa"]
    write(file, lines_of("vqa", "1.0|!+no"))
    try:
        [filled] = [one for one in questions.asked(questions.unscored).values() if "unscored" in one]
        assert empty["unscored"]["fingerprint"] != filled["unscored"]["fingerprint"]  # another file: another evaluation
        assert questions.evaluate(questions.unscored) == "done", questions.errors()
        assert json.loads(questions.file(filled).read_text())["metrics"] == {}
        assert answer_file(questions.file(filled)).read_bytes() == answer_file(questions.file(empty)).read_bytes()
    finally:
        write(file, lines_of("vqa"))


# --------------------------------------------------------------------------------------------------------------------- sweeps


def test_a_sweep_with_an_unscored_split_has_the_same_runs_and_scores_and_a_file_for_each_run(
    questions: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text for text in questions.given if not text.startswith("prompt.length")]
    words = [*given, "prompt.length=2,4", "seed=1", "cluster=local"]
    usual, expanded = (expand("length", [*words, *more], ROOT / "conf") for more in ([], [questions.unscored]))
    assert [*usual.configs] == [*expanded.configs] and questions.run.id in expanded.configs
    places = job_settings(backbone=str(questions.backbone), data=str(questions.data))
    for run, config in expanded.configs.items():
        questions.store.run(run).create(config)
        asked = [*expanded.evaluations[run].values()]
        assert execute(questions.store, [run], places, JOB | {"batch": "sweep"}, evaluations=asked) == {run: "done"}
    write_manifest(expanded, {"commit": None, "dirty": False})
    needed = read_launched(questions.store, "length").evaluations
    assert {run: set(ids) for run, ids in needed.items()} == {r: {*e} for r, e in expanded.evaluations.items()}
    status = analyse(["tables", "length", "--runs", str(questions.store.root)])
    printed = " ".join(capsys.readouterr().out.split())
    assert status == 0, printed
    assert "test-dev has no score, because its right answers are not here: 2 of 2 runs answered it" in printed
    assert "on the val split" in printed  # the only one with scores
    assert "missing" not in (questions.store.root / "tables/length.csv").read_text()
    status, printed = questions.export(capsys, "length")
    assert status == 0 and printed.count("5 answers to test-dev") == 2 and printed.count("6 answers to val") == 2
    assert analyse(["verify", "length", "--runs", str(questions.store.root)]) == 0
    assert "no conflict" in capsys.readouterr().out
    with without_answers(questions):
        _, printed = questions.export(capsys, "length")
        assert re.search(
            r"run \w+: evaluation \w+ of val was made before .*; `make sweep-length ARGS=.* evaluation.examples=6",
            printed,
        )
    with damaged(questions) as file:
        analyse(["verify", "length", "--runs", str(questions.store.root)])
        assert f"evaluations/{file.name} is damaged: its sha256 is" in capsys.readouterr().out


@contextmanager
def without_answers(subject: Subject) -> Iterator[None]:
    """The evaluation of the validation split is as one that was made before answers were kept."""
    file = subject.file({"split": "val"})
    kept, answers = file.read_text(), answer_file(file).read_bytes()
    older = {key: value for key, value in json.loads(kept).items() if key not in ("answers", "of")}
    answer_file(file).unlink()
    file.write_text(json.dumps(older))
    try:
        yield
    finally:
        file.write_text(kept)
        answer_file(file).write_bytes(answers)


@contextmanager
def damaged(subject: Subject) -> Iterator[Path]:
    """The answers to the validation split are cut off."""
    file = answer_file(subject.file({"split": "val"}))
    kept = file.read_bytes()
    file.write_bytes(kept[:-9] + b"\n")
    try:
        yield file
    finally:
        file.write_bytes(kept)


# -------------------------------------------------------------------------------------------------------------- what is refused


def test_an_evaluation_from_before_answers_were_kept_says_which_command_makes_it_again(
    captions: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_answers(captions):
        status, printed = captions.export(capsys)
        command = (
            f"`mmprompt run` with the settings of {captions.run.config_file} and evaluation.examples=6 makes it again"
        )
        assert status == 1 and f"of val was made before answers were kept; {command}" in printed
        assert captions.evaluate("evaluation.examples=6", batch="again") == "done"
        status, printed = captions.export(capsys)
        assert status == 0 and "6 answers to val, for COCO's caption challenge" in printed, printed


def test_a_part_of_a_split_is_not_written(captions: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    assert captions.evaluate("evaluation.examples=3", "evaluation.beam=2", batch="part") == "done"
    status, printed = captions.export(capsys)
    for settings in captions.asked("evaluation.examples=3", "evaluation.beam=2").values():
        captions.file(settings).unlink()
    assert status == 1 and "has 3 answers, and COCO's caption challenge wants all 6" in printed
    assert "(3 answers" not in printed


def test_answers_whose_file_was_changed_are_not_written(questions: Subject, capsys: pytest.CaptureFixture[str]) -> None:
    with damaged(questions) as file:
        status, printed = questions.export(capsys)
        assert status == 1 and f"{file} is damaged: its sha256 is" in printed


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (["1", "i2"], "'i2' came as question_id; EvalAI's VQA challenge wants a number"),
        (["1", "-2"], "'-2' came as question_id"),
        (["7", "007"], "'007' came twice as question_id"),
        (["1", ""], "'' came as question_id"),
    ],
)
def test_ids_that_a_server_would_refuse_are_refused_here(ids: list[str], said: str) -> None:
    assert VQA.challenge is not None
    with pytest.raises(ValueError, match=said):
        VQA.challenge.entries(ids, ["yes"] * len(ids))


def test_a_name_of_nothing_is_refused_and_a_task_without_challenge_says_so(
    questions: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, printed = questions.export(capsys, "lenght")
    assert status == 2 and "no sweep lenght in" in printed and "no run's id begins so" in printed
    small = tiny.frozen_run(tmp_path, "task=micro_vqa")
    assert analyse(["export", small.id, "--runs", str(tmp_path)]) == 1
    assert f"{small.id}: no challenge takes its answers; one takes those of OFA's files of vqa and caption" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.unscored={val: [a.tsv]}"], "names val, which task=vqa has and scores"),
        (
            ["evaluation.unscored={test: [/a.tsv]}"],
            "evaluation.unscored.test names the file '/a.tsv'; wanted: a name inside",
        ),
        (["evaluation.unscored={test: [a.tsv]}"], "holds no file a.tsv, which evaluation.unscored reads"),
        (["evaluation.unscored={'te st': [a.tsv]}"], "cannot be read"),
        (["evaluation.unscored={test: []}"], "evaluation.unscored.test"),
        (["evaluation.unscored={test: [a.tsv]}", "attack.epsilon=0.1"], "attack.epsilon=0.1 does not go with"),
    ],
)
def test_an_unscored_split_that_cannot_be_is_refused_before_anything_runs(
    questions: Subject, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        questions.asked(*overrides)


def test_a_task_without_challenge_has_no_unscored_split() -> None:
    composed = tiny.composed("evaluation.unscored={test2: [a.tsv]}")
    config, _ = freeze(composed)
    with pytest.raises(ConfigError, match=r"task.family=grounding has none; only those of vqa and caption do"):
        evaluations_of(composed, config)


@pytest.mark.parametrize("task", ["vqa", "coco_caption"])
def test_a_scored_split_without_right_answers_is_refused_with_the_key_that_takes_it(task: str, tmp_path: Path) -> None:
    make(tmp_path, task)
    name = ofa_files.FILES[task][1]
    write(tmp_path / "dataset" / name, lines_of(task))
    config, _ = freeze(tiny.composed(f"task={task}", "task.image_size=64", *MODEL, *FEW, f"paths.data={tmp_path}"))
    data = TaskData(config.task, config.model, locate(config.task, str(tmp_path), False, None))
    with pytest.raises(DataError, match=r"line 1: .*a split without right answers belongs into evaluation.unscored"):
        data.split("val")


def test_a_wrong_line_of_an_unscored_split_is_named_before_anything_trains(questions: Subject) -> None:
    lines = lines_of("vqa")
    lines[3][5] = "R0lGODlh"
    write(questions.data / "dataset/vqa_data/wrong.tsv", lines)
    new = ["seed=7", "evaluation.unscored={test-dev: [dataset/vqa_data/wrong.tsv]}"]
    assert questions.evaluate(*new, batch="wrong") == "failed"
    folder = questions.store.run(run_id(freeze(tiny.composed(*questions.given, *new))[0]))
    [attempt] = folder.attempts()
    assert "wrong.tsv, line 4: its image cannot be read" in (error_of(attempt) or "")
    assert attempt.progress is None and attempt.checkpoint_steps == []


def test_unscored_files_that_changed_since_launch_are_not_answered(questions: Subject) -> None:
    [asked] = [one for one in questions.asked(questions.unscored).values() if "unscored" in one]
    changed = asked | {"unscored": asked["unscored"] | {"fingerprint": "0" * 64}}
    places = job_settings(backbone=str(questions.backbone), data=str(questions.data))
    job = JOB | {"batch": "changed"}
    assert execute(questions.store, [questions.run.id], places, job, evaluations=[changed]) == {
        questions.run.id: "failed"
    }
    said = questions.errors()[-1] or ""
    assert "files of evaluation.unscored, split test-dev, in" in said and "have changed since launch" in said
