"""Searches as a user runs them, with real runs in local processes: begun, disturbed, continued, promoted, exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from groups import LONG
from patience import kill
from searcher import TINY, Searcher

from analysis.records.histories import read_history
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_record import read_record
from mmprompt.studies.confirmation import is_over


@pytest.fixture
def searcher(tmp_path: Path) -> Iterator[Searcher]:
    searcher = Searcher(tmp_path)
    yield searcher
    kill(searcher.processes())  # left by a failed test


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    """A random search that nothing has disturbed. Tests only read it."""
    searcher = Searcher(tmp_path_factory.mktemp("finished"))
    code, output = searcher.run("sampler=random", "tracking=offline")
    assert code == 0, output
    (searcher.folder / "said").write_text(output)
    return searcher


def results(searcher: Searcher) -> set[tuple[str, str]]:
    """The settings of each trial with its state, values and scores at rungs."""
    return {
        (json.dumps(one.trial.settings), json.dumps([one.state, one.values, list(one.rungs.items())]))
        for one in searcher.read().outcomes
    }


def assert_whole(searcher: Searcher, trials: int) -> None:
    """Asserts that the search is over, has trials 0 to N-1 once each, runs nothing, and has the values of its runs' results."""
    progress = searcher.read()
    assert is_over(progress)
    assert [one.trial.number for one in progress.outcomes] == list(range(trials))
    for one in progress.outcomes:
        assert one.state in ("done", "stopped")
        for seed, run in one.trial.runs.items():
            result = searcher.study.store.run(run).result()
            if one.state == "done":
                assert result is not None and one.values == [result["metrics"]["val/acc@0.5"]]
                assert json.loads((searcher.study.store.run(run).config_file).read_text())["seed"] == int(seed)
            else:
                assert result is None
    for run in searcher.study.store.runs():
        folder = searcher.study.store.run(run)
        assert all(attempt.is_running() is False for attempt in folder.attempts())
    assert not [path for path in searcher.study.folder.rglob("*") if path.name.startswith(".")]


# ---------------------------------------------------------------------------------------------------------- undisturbed


def test_a_search_ends_with_the_best_beside_the_default_on_fresh_seeds(finished: Searcher) -> None:
    assert_whole(finished, 6)
    said = (finished.folder / "said").read_text()
    assert "6 of 6 trials" in said and "over" in said
    assert re.search(r"in the search it had [\d.]+, which is optimistic", said)
    assert re.search(r"test: .* the default .*; difference [+-]", said)


def test_the_same_command_again_says_that_the_search_is_over_and_trains_nothing(finished: Searcher) -> None:
    before = sorted(path for path in (finished.folder / "runs" / "run").rglob("*"))
    code, output = finished.run("sampler=random", "tracking=offline")
    assert code == 0 and "is over already" in output
    assert sorted(path for path in (finished.folder / "runs" / "run").rglob("*")) == before


def test_the_search_never_has_a_test_score(finished: Searcher) -> None:
    progress = finished.read()
    assert progress.confirmation is not None
    confirming = {run for one in progress.confirmation.groups[0].candidates for run in one.runs.values()}
    store = finished.study.store
    others = [store.run(run) for run in store.runs() - confirming]
    assert others
    for folder in others:
        assert not list(folder.path.rglob(f"{evaluation_id(folder.id, {'split': 'test'})}*"))
        result = folder.result()
        assert result is None or "test/acc@0.5" not in result["metrics"]
    assert all((store.run(run).result() or {})["metrics"]["test/acc@0.5"] is not None for run in confirming)


def test_the_check_for_test_scores_fails_if_a_trial_has_one(finished: Searcher, tmp_path: Path) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    folder = next(one for run in copy.study.store.runs() if (one := copy.study.store.run(run)).result() is None)
    attempt = folder.attempts()[-1]
    attempt.evaluations.mkdir()
    attempt.evaluation_file(evaluation_id(folder.id, {"split": "test"})).write_text("{}")
    with pytest.raises(AssertionError):
        test_the_search_never_has_a_test_score(copy)


def test_every_trial_comes_out_the_same_when_it_is_proposed_again(finished: Searcher) -> None:
    code, output = finished.run("sampler=random", "--verify")
    assert code == 0 and "6 of 6 trials come out the same" in output


def test_verify_finds_a_trial_that_the_sampler_would_not_have_proposed(finished: Searcher, tmp_path: Path) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    file = copy.study.folder / "trials/3.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"settings": {"optim.lr": 0.123}}))
    code, output = copy.run("sampler=random", "--verify")
    assert code == 1 and "trial 3" in output and "5 of 6" in output


def test_status_shows_a_row_for_each_trial_with_the_state_that_json_has(finished: Searcher) -> None:
    code, output = finished.run("learning_rate", verb="status")
    assert code == 0
    rows = [line.split() for line in output.splitlines() if re.match(r"  \d+ ", line)]
    assert sorted(int(row[0]) for row in rows) == list(range(6))
    code, output = finished.run("learning_rate", "--json", verb="status")
    [search] = json.loads(output)["searches"]
    states = {str(one["trial"]): one["state"] for one in search["trials"]}
    assert states == {row[0]: row[2] for row in rows}
    assert search["over"] and search["left"] is None and search["confirming"]["done"] == search["confirming"]["of"]


def test_other_settings_for_an_existing_study_are_refused_with_the_difference(finished: Searcher) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.study.folder.rglob("*")}
    code, output = finished.run("sampler=random", "optim.weight_decay=0.1")
    assert code == 2
    assert "fixed: " in output and "optim.weight_decay: 0.1" in output and "--as NAME" in output
    assert {path: path.stat().st_mtime_ns for path in finished.study.folder.rglob("*")} == before


def test_a_larger_study_trains_no_finished_run_again(finished: Searcher, tmp_path: Path) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    code, output = copy.run("sampler=random", "budget.trials=8", "--as", "larger", "--limit", "6")
    larger = Searcher(tmp_path, "larger")
    runs = [one.trial.runs["1"] for one in copy.read().outcomes]
    assert [
        one.trial.runs["1"] for one in larger.read().outcomes
    ] == runs  # the same study seed gives the same six trials
    assert code == 1 and "goes on from here" in output
    assert "finished runs that lie in the space" in output
    attempts = {run: len(copy.study.store.run(run).attempts()) for run in runs}
    assert attempts == {run: len(finished.study.store.run(run).attempts()) for run in runs}


# ------------------------------------------------------------------------------------------- a rung is a pause of the same run


@pytest.mark.long
def test_a_run_that_was_paused_at_rungs_has_the_same_bits_as_one_that_was_not(
    finished: Searcher, tmp_path: Path
) -> None:
    done = [one for one in finished.read().outcomes if one.state == "done" and one.trial.origin != "default"]
    assert done
    run = done[0].trial.runs["1"]
    paused = finished.study.store.run(run)
    assert len(paused.attempts()) == 3
    rate = done[0].trial.settings["optim.lr"]
    fixed = [text for text in TINY if text.split("=")[0].split(".")[0] in ("prompt", "optim", "task")]
    command = [
        sys.executable,
        "-m",
        "mmprompt",
        "task=micro_grounding",
        *fixed,
        f"optim.lr={rate}",
        "evaluation.splits=[val]",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(tmp_path / "runs")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    straight = Store(tmp_path / "runs").run(run)
    one, other = paused.result(), straight.result()
    assert one is not None and other is not None and len(straight.attempts()) == 1
    assert one["resumed_from"] == {"attempt": 2, "step": 4} and other["resumed_from"] is None
    assert (one["weights"], one["metrics"], one["best_step"]) == (
        other["weights"],
        other["metrics"],
        other["best_step"],
    )
    assert paused.weights_file.read_bytes() == straight.weights_file.read_bytes()
    histories = [
        read_history(folder.path / str(result["wandb"])) for folder, result in ((paused, one), (straight, other))
    ]
    values = [
        history.drop(columns=[key for key in history if key.startswith("_") and key != "_step"])
        for history in histories
    ]
    assert values[0].equals(values[1]) and len(values[0]) == 8
    endings = [read_record(file, False).exit_code for file in sorted(paused.path.glob("attempts/*/wandb/*/*.wandb"))]
    assert sorted(endings) == [0, 1, 1]  # a pause is no finished record


def test_a_sweep_that_has_a_paused_run_resumes_it(finished: Searcher, tmp_path: Path) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    paused = next(one for one in copy.read().outcomes if one.state == "stopped")
    fixed = [text for text in TINY if text.split("=")[0].split(".")[0] in ("prompt", "optim", "task")]
    rate = f"optim.lr={paused.trial.settings['optim.lr']}"
    code, output = copy.run(
        "pixels",
        "task=micro_grounding",
        "task.data.pixels=plain",
        *fixed,
        rate,
        "seed=1",
        "method=prompt",
        "cluster=local",
        "tracking=disabled",
        verb="launch",
    )
    folder = copy.study.store.run(paused.trial.runs["1"])
    result = folder.result()
    if result is None:  # the sweep's point is another run, so the test would prove nothing
        pytest.fail(f"{output}\n{code}")
    assert result["resumed_from"] == {"attempt": len(folder.attempts()) - 1, "step": max(paused.rungs)}
    assert next(one for one in copy.read().outcomes if one.trial.number == paused.trial.number).state == "done"


def test_clean_frees_checkpoints_of_stopped_trials_only_when_the_search_is_over(
    finished: Searcher, tmp_path: Path
) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    stopped = [copy.study.store.run(one.trial.runs["1"]) for one in copy.read().outcomes if one.state == "stopped"]
    assert all(folder.checkpoints() for folder in stopped)
    code, output = copy.run(verb="clean")
    assert code == 0 and "trials that a search has stopped" in output
    assert not any(folder.checkpoints() for folder in stopped)
    (copy.study.folder / "confirmed.json").unlink()
    shutil.copytree(finished.folder / "runs" / "run", tmp_path / "runs" / "run", dirs_exist_ok=True)
    copy.run(verb="clean")
    assert all(folder.checkpoints() for folder in stopped)  # the search is not over, so the trials may go on


# ---------------------------------------------------------------------------------------------------------------- disturbed


@pytest.mark.long
def test_removed_or_damaged_runs_of_a_search_are_trained_again_by_the_same_command(
    finished: Searcher, tmp_path: Path
) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    confirmation = copy.read().confirmation
    assert confirmation is not None
    removed, damaged = confirmation.groups[0].candidates[0].runs.values()
    of_trials = [next(one for one in copy.read().outcomes if one.state == state) for state in ("done", "stopped")]
    lost = [run for one in of_trials for run in one.trial.runs.values()]
    for run in (removed, *lost):
        shutil.rmtree(copy.study.store.run(run).path)
    assert "2 to do" in copy.run("learning_rate", verb="status")[1]
    folder = copy.study.store.run(damaged)
    shutil.rmtree(folder.path)
    folder.path.mkdir()
    folder.config_file.write_bytes(b"{")
    code, output = copy.run("sampler=random")
    assert code == 0 and "removed after launch" not in output, output
    assert results(copy) == results(finished) and "over" in copy.run("learning_rate", verb="status")[1]
    for run in (removed, damaged):
        ours, before = copy.study.store.run(run), finished.study.store.run(run)
        assert ours.result()["weights"] == before.result()["weights"]  # type: ignore[index, typeddict-item]
        assert ours.config_file.read_text() == before.config_file.read_text()


def test_a_trial_whose_file_was_removed_is_made_again_with_the_same_results(finished: Searcher, tmp_path: Path) -> None:
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    (copy.study.folder / "confirmed.json").unlink()
    for number in (0, 2):
        (copy.study.folder / "trials" / f"{number}.json").unlink()
    code, output = copy.run("sampler=random")
    assert code == 0, output
    assert results(copy) == results(finished) and copy.read().confirmation == finished.read().confirmation


@pytest.mark.long
def test_a_search_that_is_killed_several_times_and_continued_by_two_commands_has_the_same_results(
    searcher: Searcher, finished: Searcher
) -> None:
    random = np.random.default_rng(3)
    for _ in range(10 if LONG else 4):
        command = searcher.start("sampler=random")
        time.sleep(float(random.uniform(0.3, 4.0)))  # it is killed at a random line
        command.kill()
        command.wait()
        kill(searcher.processes()[: int(random.integers(0, 2))])  # sometimes a worker as well
    one, other = searcher.start("sampler=random"), searcher.start("sampler=random")
    outputs = [process.communicate()[0] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), outputs
    assert_whole(searcher, 6)
    assert results(searcher) == results(finished)


@pytest.mark.long
def test_ctrl_c_stops_the_workers_and_the_same_command_continues(searcher: Searcher) -> None:
    command = searcher.start("sampler=random")
    store = searcher.study.store
    while not any(store.run(run).attempts() for run in store.runs()):  # until a worker is at work
        assert command.poll() is None
        time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    output, _ = command.communicate()
    assert command.returncode == 130 and "the same command goes on from here" in output
    _, alive = psutil.wait_procs(searcher.processes(), timeout=60)
    assert not alive
    assert searcher.run("sampler=random")[0] == 0
    assert_whole(searcher, 6)


# ------------------------------------------------------------------------------------------------------- before it begins


def test_plan_changes_nothing_and_counts_the_runs_that_are_done(tmp_path: Path, finished: Searcher) -> None:
    searcher = Searcher(tmp_path)
    code, output = searcher.run("plan", "sampler=random")
    assert code == 0 and not (tmp_path / "runs").exists()
    assert "0 of 6 are there" in output and "unknown" in output
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    before = sorted(tmp_path.rglob("*"))
    code, output = searcher.run("plan", "sampler=random", "--as", "other")
    done = sum(one.state == "done" for one in finished.read().outcomes)
    assert code == 0 and f"{done} of 6 are there" in output and "CPU-core-hours" in output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["optim.lrr=1"], "there is no key optim.lrr; did you mean optim.lr"),
        (["optim.lr=1"], "search learning_rate looks for optim.lr"),
        (["sampler=TPESamplr"], "sampler=TPESamplr does not exist; did you mean TPESampler"),
        (["rungs=[3]"], "rungs=3 is no step at which a run of 8 updates is validated"),
        (["objective={bleu: maximize}"], "objective.bleu is logged by no run"),
        (["seed=1,2"], "'seed=1,2' has several values"),
        (["promote"], "search learning_rate was not begun"),
        (["--verify"], "search learning_rate was not begun"),
    ],
)
def test_bad_input_is_an_error_of_one_sentence_and_nothing_is_written(
    searcher: Searcher, arguments: list[str], sentence: str
) -> None:
    code, output = searcher.run(*arguments)
    assert code == 2 and sentence in output and output.count("\n") == 1
    assert list(searcher.folder.iterdir()) == []


# ------------------------------------------------------------------------------------------------- promote, optuna-dashboard


def promoting(finished: Searcher, tmp_path: Path, better: bool) -> tuple[Path, Searcher]:
    """A copy of our packages and conf/, and a copy of the finished study in which the best candidate is far better, or not."""
    root = tmp_path / "clone"
    for name in ("conf", "mmprompt", "sweeps"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    copy = Searcher(tmp_path)
    shutil.copytree(finished.folder / "runs", tmp_path / "runs")
    confirmation = copy.read().confirmation
    assert confirmation is not None
    for candidate in confirmation.groups[0].candidates:
        for seed, run in candidate.runs.items():
            file = copy.study.store.run(run).result_file
            result: dict[str, Any] = json.loads(file.read_text())
            value = 10.0 + int(seed) % 7 + (50.0 + 0.01 * int(seed) if better and candidate.origin == "best" else 0.0)
            result["metrics"] = dict.fromkeys(result["metrics"], value)
            file.write_text(json.dumps(result))
    return root, copy


def promote(root: Path, copy: Searcher, *arguments: str) -> tuple[int, str]:
    command = [
        sys.executable,
        "-m",
        "sweeps",
        "search",
        "promote",
        "learning_rate",
        *TINY,
        "cluster=local",
        "sampler=random",
        *arguments,
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "MMPROMPT_RUNS": str(copy.folder / "runs")}
    done = subprocess.run(command, cwd=copy.folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_confirmed_settings_replace_the_default_and_other_defaults_stay(finished: Searcher, tmp_path: Path) -> None:
    root, copy = promoting(finished, tmp_path, better=True)
    code, output = promote(root, copy)
    assert code == 0, output
    text = (root / "conf/tuned/micro_prompt_micro_grounding.yaml").read_text()
    [best] = [one for one in (copy.read().confirmation or pytest.fail()).groups[0].candidates if one.origin == "best"]
    assert (
        text.startswith("# @package _global_\n# Search learning_rate")
        and "docs/evidence/search_learning_rate.csv" in text
    )
    assert f"none: {best.settings['optim.lr']}" in text and "mlp: 0.01" in text  # the rate with an MLP stays
    rows = (root / "docs/evidence/search_learning_rate.csv").read_text().splitlines()
    assert (
        sum(row.startswith("search,") for row in rows) == 6
        and sum(row.startswith("confirmation,") for row in rows) == 8
    )
    compose = [sys.executable, "-m", "mmprompt", "--cfg", "job", "--package", "optim"]
    shown = subprocess.run(
        compose, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert f"none: {best.settings['optim.lr']}" in text and shown.returncode == 0


def test_settings_that_are_not_shown_to_be_better_are_promoted_only_with_force(
    finished: Searcher, tmp_path: Path
) -> None:
    root, copy = promoting(finished, tmp_path, better=False)
    before = (root / "conf/tuned/micro_prompt_micro_grounding.yaml").read_text()
    code, output = promote(root, copy)
    assert code == 1 and ": not significant" in output and "--force promotes it all the same" in output
    assert (root / "conf/tuned/micro_prompt_micro_grounding.yaml").read_text() == before
    assert not (root / "docs").exists()
    assert promote(root, copy, "--force")[0] == 0
    assert (root / "conf/tuned/micro_prompt_micro_grounding.yaml").read_text() != before


@pytest.mark.long
def test_optuna_dashboard_shows_all_trials_of_an_exported_study(finished: Searcher, tmp_path: Path) -> None:
    file = tmp_path / "journal.log"
    code, output = finished.run("sampler=random", "--journal", str(file))
    assert code == 0 and "6 trials" in output
    assert finished.run("sampler=random", "--journal", str(file))[0] == 2  # nothing is overwritten
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dashboard = [
        str(Path(sys.executable).with_name("optuna-dashboard")),
        str(file),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    server = subprocess.Popen(dashboard, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        studies = fetched(server, port, "studies")["study_summaries"]
        assert [study["study_name"] for study in studies] == ["learning_rate"]
        trials = fetched(server, port, f"studies/{studies[0]['study_id']}?after=0")["trials"]
    finally:
        server.terminate()
        server.wait()
    expected = {"done": "Complete", "stopped": "Pruned"}
    outcomes = finished.read().outcomes
    assert [trial["state"] for trial in trials] == [expected[one.state] for one in outcomes]
    rates = [float(trial["params"][0]["param_external_value"]) for trial in trials]
    assert rates == [one.trial.settings["optim.lr"] for one in outcomes]


def fetched(server: subprocess.Popen[bytes], port: int, what: str) -> Any:
    """The answer of the dashboard's API, once the server is up."""
    while True:
        assert server.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{what}") as answer:
                return json.load(answer)
        except OSError:
            time.sleep(0.2)
