"""Reading a sweep from a W&B server: the same frames as from the store, in few calls."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from patience import called
from synthetic_store import OFFLINE, STEPS, claim, evaluate, launch, manifest, run_all
from wandb_server import KEY, WandbServer

from analysis.__main__ import main
from analysis.records.reading import assemble
from analysis.records.server import on_server
from analysis.records.sources import in_store
from analysis.reports import curves as curves_module
from analysis.reports.curves import curves
from analysis.statistics.samples import SEEDS_ALONE
from mmprompt.runs import wandb_server
from mmprompt.runs.failures import from_text
from mmprompt.runs.store import Store
from mmprompt.runs.wandb_server import ServerError
from mmprompt.runs.wandb_writer import RecordWriter
from sweeps.verbs.sync import sync

AXES = {"task": ["micro_grounding", "micro_entailment"], "prompt.length": [10, 64, 120], "seed": [1, 2]}
SWEEP = manifest("length", AXES, "prompt.length", {}, {"prompt.length": 64})
FAILED, NEVER, RETRIED = (SWEEP["points"][number] for number in (3, 5, 7))


def failed_attempt(store: Store, point: dict[str, object]) -> None:
    attempt = claim(store, point["values"])  # type: ignore[arg-type]
    config = {"run_id": attempt.run.id, "attempt": attempt.number}
    record = RecordWriter(attempt.path, f"{attempt.run.id}-{attempt.number}", "name", "group", config, OFFLINE)
    record.log(1, {"train/loss": 3.0})
    record.finish({}, 1)
    attempt.fail(from_text("RuntimeError: it failed"))


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        assert server.unknown == []


@pytest.fixture(scope="module")
def store(server: WandbServer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sweep of 12 points, on the server too: one failed, one never ran, one was done by its second attempt."""
    store = Store(tmp_path_factory.mktemp("store"))
    launch(store, SWEEP)
    failed_attempt(store, FAILED)
    failed_attempt(store, RETRIED)
    run_all(store, [point for point in SWEEP["points"] if point not in (FAILED, NEVER)], OFFLINE, seed=0)
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch)
        assert sync([], store.root) == 0
    return store


def use(server: WandbServer, patch: pytest.MonkeyPatch) -> None:
    for key, value in server.environment.items():
        patch.setenv(key, value)


@pytest.fixture(autouse=True)
def account(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use(server, monkeypatch)
    yield
    server.heal()


@pytest.fixture
def bare(tmp_path: Path) -> Store:
    """Where nothing but the manifest was copied."""
    store = Store(tmp_path / "bare")
    launch(store, SWEEP)
    return store


def same(first: pd.DataFrame, second: pd.DataFrame) -> None:
    """Values, types, and the order of rows and columns."""
    pd.testing.assert_frame_equal(first, second, check_exact=True, check_column_type=True)


def test_the_frame_from_the_server_equals_the_one_from_the_store(store: Store) -> None:
    ours = assemble(store, SWEEP, in_store)
    with on_server(SWEEP, None) as source:
        theirs = assemble(store, SWEEP, source)
    same(ours.frame, theirs.frame)
    assert ours.notes == theirs.notes == ()
    assert Counter(theirs.frame["state"]) == {"done": 10, "failed": 1, "not done": 1}
    assert theirs.frame.loc[7, ["attempt", "source"]].to_list() == [2, "wandb"]


def test_with_nothing_but_the_manifest_it_is_the_same_and_how_attempts_were_chosen_is_said(
    store: Store, bare: Store
) -> None:
    with on_server(SWEEP, None) as source:
        theirs = assemble(bare, SWEEP, source)
    same(assemble(store, SWEEP, in_store).frame, theirs.frame)
    assert theirs.notes == ("where no result.json says which attempt was published, the first that finished is taken",)


def test_later_evaluations_read_from_the_server_equal_those_in_the_store(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three attempts of each run are there: one that failed before it was asked anything, one that trained, one that asked."""
    axes = {"task": ["micro_grounding"], "method": ["prompt", "finetune"], "seed": [1, 2], "attack.epsilon": [0.0, 0.1]}
    shown = {"over": "attack.epsilon", "kept_from": 0.0}
    about = manifest("robustness", axes, "method", {}, {"method": "finetune"}, **shown)
    store, bare = Store(tmp_path / "store"), Store(tmp_path / "bare")
    for one in (store, bare):
        launch(one, about)
    for run in dict.fromkeys(point["run"] for point in about["points"]):
        points = [point["values"] for point in about["points"] if point["run"] == run]
        failed_attempt(store, {"values": points[0]})
        run_all(store, [{"values": points[0]}], OFFLINE, seed=0)
        evaluate(store, points, [50.0, 25.0], OFFLINE)
    sync([], store.root)
    ours = assemble(store, about, in_store)
    with on_server(about, None) as source:
        theirs, alone = assemble(store, about, source), assemble(bare, about, source)
    same(ours.frame, theirs.frame)
    same(ours.frame, alone.frame)
    assert ours.notes == theirs.notes == () and set(ours.frame["state"]) == {"done"}
    assert ours.frame["test/acc@0.5"].to_list() == [50.0, 25.0] * 4 and set(ours.frame["attempt"]) == {2}


def test_an_attempt_that_only_evaluated_is_not_taken_for_the_one_that_trained(
    server: WandbServer, tmp_path: Path
) -> None:
    axes = {"task": ["micro_grounding"], "method": ["lora"], "seed": [1], "attack.epsilon": [0.0]}
    about = manifest("asked", axes, "method", {}, {})
    store, bare = Store(tmp_path / "store"), Store(tmp_path / "bare")
    launch(bare, about)
    evaluate(store, [about["points"][0]["values"]], [50.0], OFFLINE)
    sync([], store.root)
    with on_server(about, None) as source:
        assert set(assemble(bare, about, source).frame["state"]) == {"not done"}


def test_the_curves_from_the_server_equal_those_from_the_store(store: Store, bare: Store) -> None:
    notes: list[str] = []
    ours = curves(store, SWEEP, in_store, notes)
    with on_server(SWEEP, None) as source:
        theirs = curves(store, SWEEP, source, notes)
        from_there_alone = curves(bare, SWEEP, source, notes)
    same(ours, theirs)
    same(ours, from_there_alone)
    assert list(ours.columns[:5]) == ["task", "prompt.length", "seed", "run", "step"]
    assert list(ours["step"]) == list(range(1, STEPS + 1)) * 10
    assert np.array_equal(ours["train/loss"], 2.0 / ours["step"])
    assert ours.loc[ours["task"] == "micro_grounding", "val/acc@0.5"].notna().sum() == 3 * 4
    assert set(notes[:2]) == {"2 of 12 runs have no curve"}


def test_a_done_run_whose_record_lost_its_end_or_all_of_its_rows_does_not_stop_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path)
    about = manifest("damaged", {"task": ["micro_vqa"], "seed": [1, 2, 3]}, "seed", {}, {})
    launch(store, about)
    run_all(store, about["points"], OFFLINE, seed=0)
    first, second, _ = (next((store.run(point["run"]).path).rglob("*.wandb")) for point in about["points"])
    first.write_bytes(first.read_bytes()[:-10])
    second.write_bytes(second.read_bytes()[:7])
    notes: list[str] = []
    found = curves(store, about, in_store, notes)
    assert found["seed"].value_counts().to_dict() == {1: STEPS, 3: STEPS}
    assert any("the file ends inside a chunk" in note for note in notes)


def test_a_sweep_costs_one_call_for_its_runs_and_three_for_each_curve(store: Store, server: WandbServer) -> None:
    server.calls.clear()
    with on_server(SWEEP, None) as source:
        assemble(store, SWEEP, source)
        assert server.calls == {"Viewer": 1, "GetDefaultEntity": 1, "Runs": 1}
        curves(store, SWEEP, source, [])
    assert sum(server.calls.values()) == 3 + 3 * 10


def test_more_runs_than_fit_into_one_answer_are_all_read(
    store: Store, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_server, "PAGE", 5)
    server.calls.clear()
    with on_server(SWEEP, None) as source:
        same(assemble(store, SWEEP, in_store).frame, assemble(store, SWEEP, source).frame)
    assert 3 <= server.calls["Runs"] <= 6


def test_a_server_that_was_sent_rows_twice_gives_the_same_frame_and_of_the_curves_it_is_said(
    store: Store, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the real one append what is sent again: of a run that was cut off, the client then sends all once more."""
    with WandbServer() as another:
        use(another, monkeypatch)
        another.appends = True
        for _ in range(2):
            for mark in store.root.rglob("*.synced"):
                mark.unlink()
            for run in another.runs.values():
                run.state, run.lines = "crashed", dict(list(run.lines.items())[:10])
            assert sync([], store.root) == 0
        assert max(len(run.rows) for run in another.runs.values()) == 10 + STEPS
        with on_server(SWEEP, None) as source:
            same(assemble(store, SWEEP, in_store).frame, assemble(store, SWEEP, source).frame)
            notes: list[str] = []
            found = curves(store, SWEEP, source, notes)
        assert not found.duplicated(["run", "step"]).any()
        assert sum("the server holds 40 rows, and " in note for note in notes) == 10


def test_a_run_that_is_not_on_the_server_has_its_values_from_the_result_and_it_is_said(
    store: Store, server: WandbServer
) -> None:
    run = SWEEP["points"][0]["run"]
    gone = server.runs.pop(f"somebody/mmprompt/{run}-1")
    try:
        with on_server(SWEEP, None) as source:
            found = assemble(store, SWEEP, source)
    finally:
        server.runs[f"somebody/mmprompt/{run}-1"] = gone
    assert found.notes == ("1 of 12 runs have no readable W&B record; their values are from result.json",)
    assert found.scores["value"].equals(assemble(store, SWEEP, in_store).scores["value"])


def test_values_that_json_has_no_number_for_are_read_as_they_were_logged(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    about = manifest("odd", {"task": ["micro_vqa"], "seed": [9]}, "seed", {}, {})
    launch(store, about)
    run_all(store, about["points"], OFFLINE, seed=0)
    sync([], store.root)
    run = server.runs[f"somebody/mmprompt/{about['points'][0]['run']}-1"]
    values = [float("nan"), float("inf"), float("-inf"), 5.0]
    for number, sent in enumerate(["NaN", "Infinity", "-Infinity", 5]):
        run.lines[number] = json.dumps(json.loads(run.lines[number]) | {"train/loss": sent})
    with on_server(about, None) as source:
        found = curves(store, about, source, [])["train/loss"]
    assert found.dtype == "float64" and np.array_equal(found.head(4), values, equal_nan=True)


@pytest.mark.parametrize("project", ["nowhere", "nobody/nowhere"])
def test_a_project_that_is_not_there_holds_no_runs(store: Store, bare: Store, project: str) -> None:
    with on_server(SWEEP, project) as source:
        assert set(assemble(bare, SWEEP, source).frame["state"]) == {"not done"}
        assert len(curves(bare, SWEEP, source, [])) == 0


def test_the_project_is_the_one_it_was_launched_with_or_the_one_given(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old = Store(tmp_path)
    launch(old, {key: value for key, value in SWEEP.items() if key != "tracking"})
    arguments = ["curves", "length", "--runs", str(tmp_path), "--from", "server"]
    assert main(arguments) == 2
    assert "was launched before manifests named a W&B project; give --project" in capsys.readouterr().err
    assert main([*arguments, "--project", "somebody/mmprompt"]) == 0
    assert "300 steps of 10 runs" in capsys.readouterr().out


def written(root: Path, source: str, out: Path) -> dict[str, bytes]:
    """By name, what both verbs make of these records."""
    for verb in ("tables", "curves"):
        assert main([verb, "length", "--runs", str(root), "--from", source, "--out", str(out)]) == 0
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_both_verbs_write_the_same_files_from_either_place(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = written(store.root, "store", tmp_path / "store")
    assert "attempts/N/wandb, IDs in length.runs.csv" in capsys.readouterr().out
    theirs = written(store.root, "server", tmp_path / "server")
    assert "on the W&B server, IDs in length.runs.csv" in capsys.readouterr().out
    assert ours == theirs
    kinds = ("md", "tex", "csv", "runs.csv", "trends.csv", "averages.csv")
    assert {*(f"tables/length.{kind}" for kind in kinds), "figures/length.png", "curves/length.csv"} < ours.keys()


OF_FILES = ("examples", "lower", "upper", "_p", "_p_corrected")  # what the scores of single examples change


def test_from_the_server_alone_only_what_rests_on_files_differs_and_it_is_said(
    store: Store, bare: Store, tmp_path: Path
) -> None:
    ours = written(store.root, "store", tmp_path / "store")
    theirs = written(bare.root, "server", tmp_path / "server")
    assert ours.keys() == theirs.keys() and ours["curves/length.csv"] == theirs["curves/length.csv"]
    first, second = (pd.read_csv(BytesIO(files["tables/length.csv"])) for files in (ours, theirs))
    changed = {column for column in first if not first[column].equals(second[column])}
    assert changed == {column for column in first if column.endswith(OF_FILES)}
    done = first["n"] > 1
    assert second["half_examples"].isna().all() and first.loc[done, "half_examples"].notna().all()
    wide, narrow = ((frame["upper"] - frame["lower"])[done] for frame in (first, second))
    assert (wide > narrow).all()
    runs = [pd.read_csv(BytesIO(files["tables/length.runs.csv"])) for files in (ours, theirs)]
    elsewhere = ["examples", "record", "weights"]
    same(*(frame.drop(columns=elsewhere) for frame in runs))
    for kind in ("md", "tex"):
        text = b" ".join(theirs[f"tables/length.{kind}"].split()).decode()
        assert SEEDS_ALONE in text and SEEDS_ALONE not in b" ".join(ours[f"tables/length.{kind}"].split()).decode()
        assert "where no result.json says which attempt was published, the first that finished is taken" in text
    said = "intervals over seeds alone, as the scores of single examples are not available"
    assert said in theirs["figures/length.caption.txt"].decode()


@pytest.mark.parametrize("fault", [401, 500])
def test_without_a_server_it_says_so_in_a_sentence(
    fault: int,
    store: Store,
    server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(wandb_server, "TIMEOUT", 2)
    server.fail(fault)
    assert main(["tables", "length", "--runs", str(store.root), "--from", "server"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("analysis: the W&B server cannot be used: ") and KEY not in said


def test_a_server_that_stops_answering_between_two_curves_holds_nobody_up(
    store: Store, server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves_module, "PATIENCE", 2.0)

    def ask() -> None:
        with on_server(SWEEP, None) as source:
            server.after(8, server.refuse)
            curves(store, SWEEP, source, [])

    with pytest.raises(ServerError, match="the W&B server"):
        called(ask)


def test_nothing_is_left_in_the_folder_one_is_in_or_under_home_or_among_temporary_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with on_server(SWEEP, None) as source:
        curves(store, SWEEP, source, [])
    assert os.listdir(tmp_path) == []
