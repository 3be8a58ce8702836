"""Evaluations of finished runs: made from their weights, each once, whatever is killed; nothing is trained again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from attempts import error_of
from launcher import Launcher
from patience import ended, printed_by, until
from safetensors.numpy import load_file
from test_job import done
from tiny import JOB, data_of, frozen_run, job_settings
from wandb_server import WandbServer

from analysis.records.reading import assemble
from analysis.records.server import on_server
from analysis.records.sources import in_store
from mmprompt.execution.execute import execute, process_facts, try_once
from mmprompt.families.registry import PRIMARY_METRIC
from mmprompt.families.short_answers import credits
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.identity import evaluation_id, read_config
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_record import read_record
from sweeps.verbs.cancel import cancel
from sweeps.verbs.clean import clean
from sweeps.verbs.logs import logs
from sweeps.verbs.status import status
from sweeps.verbs.sync import sync

VAL, TEST = {"split": "val"}, {"split": "test"}
WEAK, STRONG = ({**TEST, "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": size}} for size in (0.05, 0.5))
LATER = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path("tests").absolute()))
from tiny import JOB, job_settings
from mmprompt.execution.execute import execute
from mmprompt.runs.store import Store
evaluations = json.loads(sys.argv[3])
print(json.dumps(execute(Store(Path(sys.argv[1])), [sys.argv[2]], job_settings("offline"), JOB, evaluations=evaluations)))
"""

# Stands still when it is about to put the third evaluation in place.
STOPS = """
import os, signal, sys
from pathlib import Path
third = iter([False, False, True])
def look(event, given):
    if event == "os.link" and Path(given[1]).match("run/*/evaluations/*.json") and next(third, False):
        os.kill(os.getpid(), signal.SIGSTOP)
sys.addaudithook(look)
"""

# Says of each evaluation, at the moment at which it is put in place, how far the record is.
SEEN = """
import sys
from pathlib import Path
from mmprompt.runs.wandb_record import read_record
def look(event, given):
    if event == "os.link" and Path(given[1]).match("run/*/evaluations/*.json"):
        [record] = Path(given[1]).parents[1].glob("attempts/2/wandb/*/*.wandb")
        print("put", Path(given[1]).stem, read_record(record, history=False).state, flush=True)
sys.addaudithook(look)
"""


def evaluate(
    folder: RunFolder, *settings: Mapping[str, Any], batch: str = "evaluating", tracking: str = "disabled"
) -> str:
    """How it ends; a step of training would end it in an error."""

    def no_training(state: object) -> None:
        raise AssertionError("it trains")

    store = folder.root
    job = JOB | {"batch": batch}
    return execute(Store(store), [folder.id], job_settings(tracking), job, no_training, evaluations=settings)[folder.id]


def trained(store: Path, *overrides: str, settings: Sequence[Mapping[str, Any]] | None = None) -> RunFolder:
    folder = frozen_run(store, *overrides)
    assert execute(Store(store), [folder.id], job_settings(), JOB, evaluations=settings) == {folder.id: "done"}
    return folder


def content(folder: RunFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(folder.evaluation_file(evaluation_id(folder.id, settings)).read_text())
    return values


def scores(folder: RunFolder, settings: Mapping[str, Any]) -> np.ndarray:
    found: np.ndarray = np.load(folder.evaluation_file(evaluation_id(folder.id, settings)).with_suffix(".npy"))
    return found


def test_a_run_with_an_mlp_keeps_the_plain_table_and_gives_the_same_answers_from_it(tmp_path: Path) -> None:
    run = trained(tmp_path, "task=micro_vqa", "prompt.reparameterization=mlp")
    kept = load_file(run.weights_file)
    assert {name: tuple(tensor.shape) for name, tensor in kept.items()} == {
        "prompts.encoder.table": (4, 3 * 2 * 96),
        "prompts.decoder.table": (4, 2 * 2 * 96),
    }
    while_training = scores(run, {"split": "test"})
    assert len(set(while_training)) > 1
    assert evaluate(run, {"split": "test", "examples": 29}) == "done"
    assert np.array_equal(scores(run, {"split": "test", "examples": 29}), while_training[:29])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Trained, with the evaluations that a run has by default."""
    return trained(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, to be changed."""
    shutil.copytree(finished.root, tmp_path, dirs_exist_ok=True)
    return Store(tmp_path).run(finished.id)


def test_a_finished_run_is_evaluated_from_its_weights_and_not_trained(run: RunFolder) -> None:
    before = run.result_file.read_bytes(), run.weights_file.stat().st_mtime_ns
    assert evaluate(run, VAL, TEST, WEAK, tracking="offline") == "done"
    assert (run.result_file.read_bytes(), run.weights_file.stat().st_mtime_ns) == before
    first, second = run.attempts()
    assert (first.job["work"], second.job["work"]) == ("train", "evaluate")
    made = content(run, WEAK)
    assert made["settings"] == WEAK and made["attempt"] == 2 and made["n"] == 30 and made["run"] == run.id
    assert made["metrics"] == {"acc@0.5": pytest.approx(scores(run, WEAK).mean())}
    assert [file.name for file in run.evaluations.glob("*.json")] == [
        f"{made['evaluation']}.json"
    ]  # val and test were there
    record = read_record(run.path / made["wandb"], history=True)
    assert (record.id, record.state, record.config["work"]) == (f"{run.id}-2", "finished", "evaluate")
    assert record.summary == {f"evaluation/{made['evaluation']}": made["metrics"]["acc@0.5"]}
    assert record.config["run_id"] == run.id and record.config["prompt"]["length"] == 4
    assert evaluate(run, VAL, TEST, WEAK) == "done" and len(run.attempts()) == 2


def test_a_training_attempt_makes_exactly_the_evaluations_that_are_wanted(tmp_path: Path) -> None:
    folder = trained(tmp_path, settings=[TEST, WEAK])
    result = done(folder)
    assert result["evaluations"] == {"test": evaluation_id(folder.id, TEST)}
    assert list(result["metrics"]) == ["test/acc@0.5"]  # type: ignore[call-overload]
    assert result["evaluated"] == [evaluation_id(folder.id, settings) for settings in (TEST, WEAK)]
    assert evaluate(folder, TEST, WEAK) == "done" and len(folder.attempts()) == 1
    assert evaluate(folder, VAL) == "done" and content(folder, VAL)["attempt"] == 2


@pytest.mark.long
def test_an_evaluation_has_the_same_bits_whether_training_or_a_later_attempt_made_it(tmp_path: Path) -> None:
    at_once = trained(tmp_path / "a", "prompt.dropout=0.2", settings=[WEAK, VAL, TEST])
    later = trained(tmp_path / "b", "prompt.dropout=0.2")
    evaluate(later, STRONG, VAL, WEAK)
    assert at_once.id == later.id
    assert content(at_once, WEAK)["metrics"] == content(later, WEAK)["metrics"]
    assert scores(at_once, WEAK).tobytes() == scores(later, WEAK).tobytes()


def test_the_newest_record_of_a_run_has_all_that_was_made_of_it_since_it_was_published(run: RunFolder) -> None:
    evaluate(run, WEAK, tracking="offline")
    evaluate(run, STRONG, tracking="offline")
    record = read_record(run.path / content(run, STRONG)["wandb"], history=False)
    assert set(record.summary) == {f"evaluation/{evaluation_id(run.id, settings)}" for settings in (WEAK, STRONG)}


def test_a_live_backbone_is_evaluated_with_the_statistics_it_was_published_with(tmp_path: Path) -> None:
    folder = trained(tmp_path, "backbone.mode=train")
    published = scores(folder, TEST)
    for file in folder.published.evaluations.iterdir():
        file.unlink()
    result = {key: value for key, value in done(folder).items() if key not in ("evaluations", "evaluated")}
    folder.result_file.write_text(json.dumps(result))
    assert evaluate(folder, TEST) == "done"
    assert scores(folder, TEST).tobytes() == published.tobytes()


@pytest.mark.long
def test_how_answers_are_found_can_be_another_than_the_tasks(tmp_path: Path) -> None:
    """As if the task had said so; of fewer examples, the first."""
    as_it_is = trained(tmp_path, "task=micro_caption", settings=[VAL])
    asked: tuple[dict[str, Any], ...] = ({"no_repeat_ngram": 1}, {"beam": 4}, {"beam": 4, "no_repeat_ngram": 2})
    evaluate(as_it_is, {**VAL, "examples": 7}, *({**VAL, **settings} for settings in asked))
    usual = scores(as_it_is, VAL)
    some = content(as_it_is, {**VAL, "examples": 7})
    assert some["n"] == 7 == len(scores(as_it_is, {**VAL, "examples": 7})) and len(usual) == 30
    for settings in asked:
        task = [f"task.{key}={value}" for key, value in settings.items()]
        said_so = trained(tmp_path, "task=micro_caption", *task, settings=[VAL])
        found = scores(as_it_is, {**VAL, **settings})
        assert said_so.id != as_it_is.id and done(said_so)["best_step"] == done(as_it_is)["best_step"]
        assert found.tobytes() == scores(said_so, VAL).tobytes() != usual.tobytes()


@pytest.mark.parametrize("task", ["micro_entailment", "micro_vqa"])
def test_an_evaluation_says_what_one_answer_to_everything_scores_on_the_same_examples(
    task: str, tmp_path: Path
) -> None:
    few = {**WEAK, "examples": 7}
    folder = trained(tmp_path, f"task={task}", settings=[VAL, few])
    config = read_config(folder.config_file)
    for settings, count in ((VAL, 30), (few, 7)):
        said = content(folder, settings)
        items = data_of(config).split(str(settings["split"])).items[:count]
        answers = {answer for item in items for answer in item.right}
        best = max(np.mean(credits([answer] * count, [item.right for item in items])) for answer in answers)
        assert list(said["metrics"]) == [PRIMARY_METRIC[config.task.family], "constant_answer"]
        assert said["metrics"]["constant_answer"] == pytest.approx(best) and 0 < best < 100
        assert said["metrics"][PRIMARY_METRIC[config.task.family]] == pytest.approx(scores(folder, settings).mean())
    assert done(folder)["metrics"]["val/constant_answer"] == content(folder, VAL)["metrics"]["constant_answer"]  # type: ignore[index]


# What goes wrong


def test_without_a_result_nothing_is_evaluated_and_it_says_who_trains(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    attempt = folder.claim(1, JOB | {"work": "evaluate"} | process_facts())
    assert attempt is not None
    try_once(folder, attempt, job_settings(), None, [WEAK])
    assert "has no result that could be evaluated; `python -m sweeps launch` trains it" in (error_of(attempt) or "")
    assert folder.result() is None


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.unlink(), r"cannot be read (No such file or directory)"),
        (damage, "is damaged, its sha256 is"),
        (lambda file: file.write_bytes(b""), "is damaged, its sha256 is"),
    ],
    ids=["absent", "a bit", "empty"],
)
def test_weights_that_are_not_as_they_were_fail_the_evaluation_with_the_cure_and_leave_the_result(
    run: RunFolder, harm: Any, said: str
) -> None:
    harm(run.weights_file)
    assert evaluate(run, WEAK) == "failed"
    error = error_of(run.attempts()[-1]) or ""
    assert "WeightsError: " in error and said in error
    assert f"remove {run.path}, and `python -m sweeps launch` trains the run again" in error
    assert execute(Store(run.root), [run.id], job_settings(), JOB) == {run.id: "done"}  # if no evaluation is wanted


def test_weights_of_long_ago_have_no_checksum_and_are_read_all_the_same(run: RunFolder) -> None:
    result = {key: value for key, value in done(run).items() if key not in ("weights", "evaluated")}
    run.result_file.write_text(json.dumps(result))
    assert evaluate(run, VAL, TEST, WEAK) == "done" and len(run.attempts()) == 2
    run.weights_file.write_bytes(run.weights_file.read_bytes()[:100])
    assert evaluate(run, STRONG) == "failed"
    assert "weights.safetensors is damaged (" in (error_of(run.attempts()[-1]) or "")


def test_an_evaluation_that_fails_is_tried_three_times_and_counts_anew_once_one_was_made(run: RunFolder) -> None:
    weights = run.weights_file.read_bytes()
    run.weights_file.unlink()
    tries = [(evaluate(run, WEAK, batch=str(batch)), run.tries()) for batch in range(3)]
    assert tries == [("failed", 1), ("failed", 2), ("failed", 3)]
    run.weights_file.write_bytes(weights)
    assert evaluate(run, WEAK, batch="mended") == "done" and run.tries() == 0


def process(folder: RunFolder, *settings: Mapping[str, Any]) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", LATER, str(folder.root), folder.id, json.dumps(settings)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def many(folder: RunFolder, count: int) -> list[dict[str, Any]]:
    return [
        {**TEST, "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.01 * (1 + i)}} for i in range(count)
    ]


@pytest.mark.long
def test_two_at_once_make_each_evaluation_once(run: RunFolder) -> None:
    both = [process(run, *many(run, 3)) for _ in range(2)]
    for one in both:
        printed_by(one)
    assert len(list(run.evaluations.glob("*.json"))) == 3
    assert len([attempt for attempt in run.attempts() if attempt.evaluates]) == 1
    assert evaluate(run, *many(run, 3)) == "done"


@pytest.mark.long
def test_a_killed_evaluation_goes_on_with_what_is_missing_and_touches_nothing_that_is_there(run: RunFolder) -> None:
    asked = many(run, 6)
    words = [sys.executable, "-c", STOPS + LATER, str(run.root), run.id, json.dumps(asked)]
    victim = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    until(lambda: psutil.Process(victim.pid).status() == psutil.STATUS_STOPPED, "it stands still", victim)
    assert evaluate(run, *asked) == "open"  # somebody is at it
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    there = {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in run.evaluations.glob("[!.]*.json")}
    assert len(there) == 2
    assert evaluate(run, *asked, tracking="offline") == "done"
    assert there == {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in there}
    attempts = {content(run, settings)["attempt"] for settings in asked}
    assert attempts == {2, 3} and run.attempts()[-1].has_ended
    record = read_record(run.path / content(run, asked[-1])["wandb"], history=False)
    assert len(record.summary) == 6  # those too of which the killed attempt's record says nothing


@pytest.mark.long
def test_no_evaluation_is_the_last_before_the_record_is_complete(run: RunFolder) -> None:
    words = [sys.executable, "-c", SEEN + LATER, str(run.root), run.id, json.dumps([WEAK, STRONG])]
    output = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True).stdout
    put = [line.split(maxsplit=2)[1:] for line in output.splitlines() if line.startswith("put ")]
    first, last = (evaluation_id(run.id, settings) for settings in (WEAK, STRONG))
    assert [name for name, _ in put] == [first, last]
    assert put[0][1] != "finished" and put[1][1] == "finished"


def test_what_others_made_meanwhile_is_not_made_again(run: RunFolder) -> None:
    evaluate(run, WEAK)
    before = content(run, WEAK)
    evaluate(run, WEAK, STRONG, batch="another")
    assert content(run, WEAK) == before and content(run, STRONG)["attempt"] == 3
    assert json.loads(run.attempts()[-1].end_file.read_text())["evaluations"] == [evaluation_id(run.id, STRONG)]


# Launches


def files(store: Store, pattern: str) -> dict[Path, tuple[int, bytes]]:
    there = [file for file in store.root.glob(pattern) if file.is_file()]
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in there}


@pytest.mark.long
def test_a_launch_with_new_budgets_on_finished_runs_evaluates_and_trains_nothing(launcher: Launcher) -> None:
    sweep = ("seed=1,2", "optim.steps=2", "cluster.max_parallel=1")
    assert launcher.run("launch", *sweep)[0] == 0
    ids = [point["run"] for point in launcher.manifest()["points"]]
    before = files(launcher.store, "run/*/attempts/1/*"), files(launcher.store, "run/*/result.json")
    epsilons = "attack.epsilon=0,0.05,0.2"
    _, planned = launcher.run("plan", *sweep, epsilons)
    assert "2 runs: 2 to evaluate" in planned and "2 runs to evaluate, " in planned
    assert "attack.epsilon: 0 (2/2 done), 0.05 (0/2 done), 0.2 (0/2 done)" in planned
    code, output = launcher.run("launch", *sweep, epsilons)
    assert code == 0 and "2 runs: 2 to evaluate" in output and "all 2 runs are done" in output, output
    assert "4 evaluations made" in output
    assert (files(launcher.store, "run/*/attempts/1/*"), files(launcher.store, "run/*/result.json")) == before
    points = launcher.manifest()["points"]
    assert len(points) == 6 and list(dict.fromkeys(point["run"] for point in points)) == ids
    for run in ids:
        folder = launcher.store.run(run)
        _, attempt = folder.attempts()
        assert attempt.evaluates and not attempt.checkpoint_steps and attempt.progress is not None
        assert attempt.progress["steps"] == 4 * 8  # examples, of two splits under two budgets
        for point in points:
            if point["run"] == run:
                for split, evaluation in point["evaluations"].items():
                    assert json.loads(folder.evaluation_file(evaluation).read_text())["settings"]["split"] == split
    assert "all 2 runs are done already" in launcher.run("launch", *sweep, epsilons)[1]


@pytest.mark.long
def test_runs_are_trained_and_evaluated_under_attack_in_one_attempt_where_both_is_to_do(launcher: Launcher) -> None:
    code, output = launcher.run("launch", "seed=1", "optim.steps=2", "attack.epsilon=0,0.1", "evaluation.splits=[test]")
    assert code == 0, output
    [run] = dict.fromkeys(point["run"] for point in launcher.manifest()["points"])
    folder = launcher.store.run(run)
    assert len(folder.attempts()) == 1 and not folder.evaluations.exists()
    assert [set(point["evaluations"]) for point in launcher.manifest()["points"]] == [{"test"}, {"test"}]
    assert len(done(folder)["evaluated"]) == 2  # type: ignore[arg-type]


@pytest.mark.long
def test_a_failed_evaluation_is_shown_with_its_cause_and_the_next_launch_tries_again(launcher: Launcher) -> None:
    assert launcher.run("launch", "seed=1", "optim.steps=2")[0] == 0
    [run] = [point["run"] for point in launcher.manifest()["points"]]
    folder = launcher.store.run(run)
    weights = folder.weights_file.read_bytes()
    folder.weights_file.unlink()
    asked = ("seed=1", "optim.steps=2", "attack.epsilon=0.1")
    code, output = launcher.run("launch", *asked)
    assert code == 1 and "1 run failed" in output and "WeightsError" in output and folder.result() is not None
    folder.weights_file.write_bytes(weights)
    code, output = launcher.run("launch", *asked)
    assert code == 0 and "1 run: 1 failed" in output and "all 1 runs are done" in output


@pytest.mark.long
def test_a_killed_worker_that_evaluated_costs_what_it_was_at_until_the_next_launch(launcher: Launcher) -> None:
    sweep = ("seed=1", "optim.steps=2", "task.data.test=100")
    assert launcher.run("launch", *sweep)[0] == 0
    run = launcher.manifest()["points"][0]["run"]
    folder, epsilons = launcher.store.run(run), "attack.epsilon=" + ",".join(f"0.{i:02}" for i in range(1, 9))
    process = launcher.start("launch", *sweep, epsilons, "evaluation.splits=[test]")
    until(lambda: list(folder.evaluations.glob("[!.]*.json")), "an evaluation is made", process, often=True)
    launcher.worker().kill()
    said = printed_by(process)
    assert process.returncode == 1 and "ended without a word" in said, said
    code, said = launcher.run("launch", *sweep, epsilons, "evaluation.splits=[test]")
    assert code == 0 and "all 1 runs are done" in said
    assert len(folder.attempts()) == 3 and len(list(folder.evaluations.glob("*.json"))) == 8


@pytest.mark.long
def test_a_live_evaluation_is_shown_and_kept_by_every_verb_and_ends_by_cancel(
    launcher: Launcher, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("seed=1", "optim.steps=2", "task.data.test=100", "tracking=offline")
    assert launcher.run("launch", *sweep)[0] == 0
    store, run = launcher.store, launcher.manifest()["points"][0]["run"]
    folder, epsilons = store.run(run), "attack.epsilon=" + ",".join(f"0.{i:02}" for i in range(1, 10))
    launch = launcher.start("launch", *sweep, epsilons, "evaluation.splits=[test]")
    until(lambda: list(folder.evaluations.glob("[!.]*.json")), "an evaluation is made", launch, often=True)
    attempt = folder.attempts()[-1]
    os.kill(attempt.job["pid"], signal.SIGSTOP)
    made = files(store, "run/*/evaluations/[!.]*")

    assert status(["length"], store.root, watch=False, json=False) == 0
    assert "1 run: 1 running" in (said := capsys.readouterr().out) and "evaluating" in said and "/900" in said
    assert logs(run[:6], store.root, follow=False, attempt=None) == 0
    assert "attempt 2 of 2: process" in (said := capsys.readouterr().out) and "running" in said
    before = {file for file in folder.path.rglob("*") if file.is_file()}
    then = time.time() + 40 * 86400  # when everything is old
    monkeypatch.setattr("time.time", lambda: then)
    monkeypatch.setenv("YES", "1")
    assert clean(store.root, 30, False) == 0
    monkeypatch.undo()
    assert {file for file in before if not file.exists()} <= {file for file in before if file.name.startswith(".")}
    with WandbServer() as server:
        for key, value in server.environment.items():
            monkeypatch.setenv(key, value)
        assert sync([], store.root) == 0
        assert [name.rsplit("/", 1)[1] for name in server.runs] == [f"{run}-1"]  # what is at work waits for its end

        os.kill(attempt.job["pid"], signal.SIGCONT)
        capsys.readouterr()
        assert cancel(["length"], store.root, None) == 0
        assert "1 of 1 run cancelled" in capsys.readouterr().out
        assert ended(launch) == 130 and launcher.processes() == []
        assert (error_of(attempt) or "").startswith(INTERRUPTED) and attempt.has_evaluated
        assert made.items() <= files(store, "run/*/evaluations/[!.]*").items()
        code, output = launcher.run("launch", *sweep, epsilons, "evaluation.splits=[test]")
        assert code == 0 and "all 1 runs are done" in output
        assert len(list(folder.evaluations.glob("*.json"))) == 9 and folder.attempts()[-1].number == 3
        assert made.items() <= files(store, "run/*/evaluations/[!.]*").items()

        assert sync([], store.root) == 0
        last = server.runs[f"somebody/mmprompt/{run}-3"]
        points = launcher.manifest()["points"]
        wanted = {f"evaluation/{point['evaluations']['test']}" for point in points}
        assert last.state == "finished" and wanted <= set(last.summary)
        here = assemble(store, launcher.manifest(), in_store).frame
        with on_server(launcher.manifest(), None) as source:
            there = assemble(store, launcher.manifest(), source).frame
        assert set(there["state"]) == {"done"} and (there["attempt"] == here["attempt"]).all()
        measured = [column for column in here if column.startswith("test/")]
        assert measured and there[measured].equals(here[measured])
