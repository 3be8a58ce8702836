"""What the rows of a sweep take: measured on tiny runs, as a user asks for it, and read by the analysis."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from launcher import Launcher
from patience import kill, printed_by, until

from analysis.records.reading import read_sweep
from analysis.records.sources import in_store
from analysis.reports.report import read_report, texts
from analysis.statistics.costs import read_costs, spent_device_hours
from analysis.tables.cost_tables import cost_tables
from analysis.tables.terminal import terminal
from mmprompt.execution.measurement import LoadedRow, in_turns, peak_in_a_process_of_its_own, put, quantities
from mmprompt.runs.failures import from_text
from mmprompt.runs.store import Store
from sweeps.grid.manifest import ExpandedSweep, expand
from sweeps.planning.launch_plan import CONF
from sweeps.verbs.measure import rows_of

QUANTITIES = {"seconds_per_100", "seconds_per_update", "peak_memory_mb"}
TWO = ["prompt.length=10,64", "optim.steps=4", "seed=2,1"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Two lengths, two seeds, all done."""
    launcher = Launcher(tmp_path_factory.mktemp("costs"), environment={"YES": "1"})
    code, output = launcher.run("launch", *TWO)
    assert code == 0, output
    yield launcher
    kill(launcher.processes())  # of a test that failed


def measurements(launcher: Launcher) -> dict[int, dict[str, Any]]:
    files = launcher.store.costs("length").glob("*")
    return {int(file.stem): json.loads(file.read_text()) for file in files}


@pytest.fixture(scope="module")
def measured(launched: Launcher) -> dict[str, Any]:
    """The first measurement, of three rows of which one has no run."""
    before = contents(launched.store.root / "run")
    code, output = launched.run("measure", "prompt.length=10,64,100", *TWO[1:], "--rounds", "3")
    assert code == 1, output
    assert "not measured: micro_grounding prompt.length=100 has no finished run" in output
    assert "load" in output and "s per update" in output and "prompt.length=64 (baseline)" in output
    assert contents(launched.store.root / "run") == before  # runs stay as they are
    [(number, content)] = measurements(launched).items()
    assert number == 1
    return content


def contents(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest() for file in files}


# -------------------------------------------------------------------------------------------------------------- measuring


@pytest.mark.long
def test_all_rows_with_a_finished_run_are_measured_on_that_of_the_smallest_seed(
    launched: Launcher, measured: dict[str, Any]
) -> None:
    points = launched.manifest()["points"]
    first = {point["values"]["prompt.length"]: point["run"] for point in points if point["values"]["seed"] == 1}
    assert {row["values"]["prompt.length"]: row["run"] for row in measured["rows"]} == first
    assert measured["missing"] == [{"task": "micro_grounding", "values": {"prompt.length": 100}}]
    assert {row["baseline"] for row in measured["rows"]} == {True, False}


def test_every_quantity_has_its_rounds_and_ratios_and_the_baselines_ratio_is_exactly_1(
    measured: dict[str, Any],
) -> None:
    for row in measured["rows"]:
        assert row["quantities"].keys() == QUANTITIES
        assert row["parameters"] == 699_240  # the backbone's, without prompts
        for name, one in row["quantities"].items():
            assert one["rounds"] == len(one["values"]) == (1 if name == "peak_memory_mb" else 3)
            assert 0 < one["lowest"] <= one["median"] <= one["highest"]
            ratios = [one["ratio_lowest"], one["ratio"], one["ratio_highest"]]
            assert ratios == [1, 1, 1] if row["baseline"] else 0 < ratios[0] <= ratios[1] <= ratios[2]


def test_a_measurement_records_device_threads_code_and_the_load_of_the_machine(measured: dict[str, Any]) -> None:
    assert measured["device"].startswith("cpu") and measured["threads"] == 1 and measured["torch"]
    assert measured["cores"] == len(os.sched_getaffinity(0)) and measured["others"] == 0
    assert measured["load"].keys() == {"before", "after"} and measured["code"] and measured["when"]


class Drifting:
    """A row on a machine that gets slower with each turn that anybody takes."""

    def __init__(self, name: float, turns: list[float]) -> None:
        self.name, self.turns = name, turns

    def once(self, updates: int) -> dict[str, float]:
        self.turns.append(self.name)
        return {"seconds_per_100": self.name * (1 + (len(self.turns) - 1) // 2)}


def test_rows_take_turns_in_an_order_that_rotates_the_first_round_does_not_count_and_ratios_are_within_rounds() -> None:
    turns: list[float] = []
    ready = [Drifting(3.0, turns), Drifting(2.0, turns)]
    taken = in_turns(cast(Sequence[LoadedRow], ready), rounds=3, updates=1, wanted=lambda: True)
    assert turns == [3.0, 2.0, 2.0, 3.0, 3.0, 2.0, 2.0, 3.0]
    found = quantities(taken[0], taken[1])["seconds_per_100"]
    assert found["values"] == [6, 9, 12]  # not 3, of the first round
    assert (found["median"], found["lowest"], found["highest"]) == (9, 6, 12)
    assert (found["ratio"], found["ratio_lowest"], found["ratio_highest"]) == (1.5, 1.5, 1.5)
    assert quantities(taken[0], {})["seconds_per_100"]["ratio"] is None


def test_ratios_are_of_the_same_round_and_not_of_medians() -> None:
    one = quantities({"seconds_per_100": [6.0, 9.0, 30.0]}, {"seconds_per_100": [4.0, 9.0, 10.0]})["seconds_per_100"]
    assert (one["ratio"], one["ratio_lowest"], one["ratio_highest"]) == (1.5, 1.0, 3.0)


def test_updates_that_are_timed_leave_the_weights_as_they_were(launched: Launcher, measured: dict[str, Any]) -> None:
    ready = LoadedRow(launched.store, asked_of(launched)["rows"][0], asked_of(launched))
    before = {name: value.clone() for name, value in ready.run.tuned.state_dict().items()}
    changes: list[bool] = []

    def looked(*_: Any) -> None:
        changes.append(any(not value.equal(before[name]) for name, value in ready.run.tuned.state_dict().items()))

    ready._optimiser.register_step_post_hook(looked)
    took = ready.once(updates=2)
    assert changes == [True, True] and took.keys() == {"seconds_per_100", "seconds_per_update"}
    assert all(value.equal(before[name]) for name, value in ready.run.tuned.state_dict().items())
    assert not ready.run.tuned.training


def test_peak_memory_is_that_of_a_process_of_its_own(launched: Launcher, measured: dict[str, Any]) -> None:
    ballast = np.ones(400_000_000, np.uint8)
    asked = asked_of(launched)
    alone = measured["rows"][0]["quantities"]["peak_memory_mb"]["median"]
    assert abs(peak_in_a_process_of_its_own(launched.store, asked["rows"][0], asked) - alone) < 60
    assert ballast.sum() == 400_000_000


def asked_of(launched: Launcher) -> dict[str, Any]:
    """What the batch of the first measurement was asked."""
    batches = [json.loads(file.read_text()) for file in launched.store.jobs.glob("*/batch.json")]
    return next(dict(batch["measure"]) for batch in batches if "measure" in batch and batch["measure"]["rounds"] == 3)


def test_measurements_that_end_at_the_same_time_get_different_numbers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda batch: put(store, {"sweep": "length", "batch": batch}), range(16)))
    assert sorted(int(file.stem) for file in files) == list(range(1, 17))
    assert sorted(json.loads(file.read_text())["batch"] for file in files) == list(range(16))


@pytest.mark.long  # that each gets a number of its own is tested above, with threads
def test_two_measurements_at_once_get_two_numbers(launched: Launcher, measured: dict[str, Any]) -> None:
    before = set(measurements(launched))
    processes = [launched.start("measure", *TWO, "--rounds", "1") for _ in range(2)]
    for process in processes:
        printed = printed_by(process)
        assert process.returncode == 0, printed
    made = [content for number, content in measurements(launched).items() if number not in before]
    assert len(made) == 2 and {len(one["rows"]) for one in made} == {2}


def at_work(launched: Launcher, process: Any) -> int:
    """The process that measures, once it does; the newest log says so."""

    def found() -> int | None:
        logs = sorted(launched.store.jobs.glob("*/*_log.err"), key=lambda log: log.stat().st_mtime)
        if not logs or "measures" not in logs[-1].read_text():
            return None
        ours = [p for p in launched.processes() if "sweeps.node" in p.info["cmdline"]]
        return ours[0].pid if ours else None

    return int(until(found, "it measures", process))


def test_a_killed_measurement_leaves_no_file_and_reports_that_nothing_was_measured(
    launched: Launcher, measured: dict[str, Any]
) -> None:
    before = measurements(launched)
    process = launched.start("measure", *TWO, "--rounds", "100000")
    os.kill(at_work(launched, process), signal.SIGKILL)
    printed = printed_by(process)
    assert process.returncode == 1 and "nothing was measured" in printed, printed
    assert measurements(launched) == before
    until(lambda: not launched.processes(), "nothing is left at work")


def age(folder: Path) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (1e9, 1e9))


@pytest.mark.long
def test_while_one_is_at_work_every_verb_goes_its_way_another_says_so_and_ctrl_c_ends_it(
    launched: Launcher, measured: dict[str, Any]
) -> None:
    before = measurements(launched)
    process = launched.start("measure", *TWO, "--rounds", "100000")
    at_work(launched, process)
    newest = max(launched.store.jobs.glob("*/batch.json"), key=lambda file: int(file.parent.name)).parent
    age(newest)
    run = measured["rows"][0]["run"]
    other = {"status": ["length", "--json"], "cancel": ["length"], "logs": [run], "clean": ["--days", "1"]}
    for verb, arguments in other.items():
        done = launched_verb(launched, verb, *arguments)
        assert done[0] == 0, f"{verb}: {done[1]}"
        assert "Traceback" not in done[1]
        if verb == "cancel":
            assert "nothing is cancelled" in done[1]
        if verb == "status":
            assert {row["state"] for row in json.loads(done[1])["sweeps"][0]["runs"]} == {"done"}
    assert list(newest.glob("*_log.err"))  # `clean` leaves what is at work
    code, output = launched.run("plan", *TWO)
    assert code == 0 and "4 runs: 4 done" in output, output
    code, output = launched.run("measure", *TWO, "--rounds", "1")
    assert code == 0 and "1 process of this store at work beside it" in output, output
    [number] = measurements(launched).keys() - before.keys()
    assert measurements(launched)[number]["others"] == 1
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert measurements(launched).keys() == {*before, number} and not launched.processes()
    age(newest)
    assert launched_verb(launched, "clean", "--days", "1")[0] == 0
    assert not list(newest.glob("*_log.err"))  # and frees what is over


def launched_verb(launched: Launcher, verb: str, *arguments: str) -> tuple[int, str]:
    """One that takes no sweep's settings."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(launched.root),
        "MMPROMPT_RUNS": str(launched.store.root),
        "YES": "1",
    }
    command = [sys.executable, "-m", "sweeps", verb, *arguments]
    done = subprocess.run(command, cwd=launched.folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


# ------------------------------------------------------------------------------------------------- which rows, and baselines


def finished(name: str, store: Path, *overrides: str) -> ExpandedSweep:
    """A sweep all of whose runs have a result."""
    expanded = expand(name, [f"paths.runs={store}", *overrides], CONF)
    for run in expanded.configs:
        folder = expanded.store.run(run).path
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"attempt": 1, "metrics": {}}')
    return expanded


def test_a_row_is_measured_against_the_baseline_of_its_own_task_and_of_its_other_axes(tmp_path: Path) -> None:
    expanded = finished("methods", tmp_path, "task=micro_vqa,micro_grounding", "prompt.init_std=0.02,1.0", "seed=5,3")
    rows, missing = rows_of(expanded)
    assert missing == [] and len(rows) == 2 * 6 * 2 and {row["task"] for row in rows[:12]} == {"micro_vqa"}
    for row in rows:
        base = rows[row["baseline"]]
        assert base["values"]["method"] == "prompt" and base["task"] == row["task"]
        assert base["values"]["prompt.init_std"] == row["values"]["prompt.init_std"]
        assert expanded.configs[row["run"]].seed == 3


def test_axes_of_evaluations_make_no_rows(tmp_path: Path) -> None:
    rows, _ = rows_of(finished("robustness", tmp_path, "task=micro_vqa"))
    assert len(rows) == len({row["run"] for row in rows}) and not any("attack.epsilon" in row["values"] for row in rows)


def test_a_row_whose_baseline_was_not_run_has_none(tmp_path: Path) -> None:
    expanded = finished("depth", tmp_path, "task=micro_vqa")
    for run, point in expanded.points:
        if point.values["prompt.depth"] == expanded.sweep.baseline["prompt.depth"]:  # type: ignore[index]
            (expanded.store.run(run).path / "result.json").unlink(missing_ok=True)
    rows, missing = rows_of(expanded)
    assert len(missing) == 1 and rows and {row["baseline"] for row in rows} == {None}


# -------------------------------------------------------------------------------------------------------------- analysis


Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def changed(launched: Launcher, measured: dict[str, Any]) -> Iterator[Callable[[Change], Any]]:
    """The measurement, changed and put in place as the newest."""
    made: list[Path] = []

    def change(how: Change) -> Any:
        content = json.loads(json.dumps(measured))
        content["load"] = {"before": 0.1, "after": 1.0}
        how(content)
        made.append(put(launched.store, content))
        return read_costs(launched.store, sweep_of(launched))

    yield change
    for file in made:
        file.unlink()


def sweep_of(launched: Launcher) -> Any:
    sweep = read_sweep(launched.store, "length")
    sweep.manifest["facts"] = ["trainable_parameters", "device_hours", "seconds_per_100", "peak_memory_mb"]
    return sweep


def test_the_frame_says_what_was_measured_and_derives_device_hours(changed: Any, measured: dict[str, Any]) -> None:
    costs = changed(lambda content: content["rows"][0].update(steps=8, devices=3))  # where the baseline has 4, and 1
    frame = costs.frame.set_index(["prompt.length", "quantity"])
    assert {name for _, name in frame.index} == {*QUANTITIES, "device_hours", "parameters"} and len(frame) == 10
    assert frame.loc[(10, "parameters"), "median"] == 699_240
    one = measured["rows"][0]["quantities"]["seconds_per_update"]
    per_update, hours = frame.loc[(10, "seconds_per_update")], frame.loc[(10, "device_hours")]
    assert (per_update["median"], per_update["ratio"]) == (one["median"], one["ratio"])
    assert hours["median"] == pytest.approx(one["median"] * 8 * 3 / 3600)
    assert hours["ratio"] == pytest.approx(one["ratio"] * 8 * 3 / 4)
    assert frame.loc[(64, "device_hours"), "ratio"] == 1 and bool(frame.loc[(64, "device_hours"), "baseline"])
    assert frame.loc[(10, "peak_memory_mb"), "run"] == measured["rows"][0]["run"]
    assert [note for note in costs.notes if "at work" in note or "does not have" in note] == []


def test_the_newest_measurement_counts(changed: Any) -> None:
    def slower(content: dict[str, Any]) -> None:
        content["rows"][0]["quantities"]["seconds_per_100"]["median"] = 77.0

    changed(lambda content: None)
    frame = changed(slower).frame
    assert (frame.loc[frame["quantity"] == "seconds_per_100", "median"] == 77.0).sum() == 1


@pytest.mark.parametrize(
    ("how", "note"),
    [
        (lambda content: content["load"].update(before=1.8), "on a machine at work: load 1.8 of"),
        (lambda content: content["load"].update(after=2.7), "on a machine at work: load 1.7 of"),
        (lambda content: content.update(others=2), "2 other jobs of this store"),
        (lambda content: content["rows"][0].update(run="another"), "does not have now, another; `make costs-length`"),
        (lambda content: None, "costs of micro_grounding 100 were not measured"),
        (lambda content: content.pop("rows"), "is damaged: it has no rows; `make costs-length` measures it again"),
    ],
)
def test_each_weakness_of_a_measurement_has_a_note(changed: Any, how: Change, note: str) -> None:
    assert any(note in said for said in changed(how).notes)


def test_without_a_measurement_the_command_that_makes_one_is_said(launched: Launcher, tmp_path: Path) -> None:
    costs = read_costs(Store(tmp_path), sweep_of(launched))
    assert costs.notes == ("what its rows take was not measured; `make costs-length` measures it",)
    assert len(costs.frame) == 0
    asks_nothing = read_sweep(launched.store, "length")
    assert read_costs(Store(tmp_path), asks_nothing).notes == ()


def test_a_table_shows_median_range_and_ratio_and_no_interval(changed: Any, launched: Launcher) -> None:
    def known(content: dict[str, Any]) -> None:
        for row, factor in zip(content["rows"], (1.12, 1.0), strict=True):
            numbers = {"median": 0.165, "lowest": 0.16, "highest": 0.17, "ratio": factor, "rounds": 3}
            row["quantities"]["seconds_per_100"].update(numbers | {"ratio_lowest": 1.1, "ratio_highest": 1.15})
            memory = {"median": 1234.5, "lowest": 1234.5, "highest": 1234.5}
            row["quantities"]["peak_memory_mb"].update(memory)

    sweep = sweep_of(launched)
    measured, hours = cost_tables(sweep, changed(known))
    heads = ["Seconds per update", "Seconds per 100 answers", "Peak memory (MB)"]
    assert list(measured.frame.columns) == [f"{head} {kind}" for head in heads for kind in ("Median", "Ratio")]
    assert measured.frame["Seconds per 100 answers Median"].to_list() == ["0.1650 (0.1600 to 0.1700)"] * 2
    assert measured.frame["Seconds per 100 answers Ratio"].to_list() == ["1.120 (1.100 to 1.150)", "1"]
    assert measured.frame["Peak memory (MB) Median"].to_list() == ["1,234"] * 2  # measured once, and large
    assert list(measured.frame.index) == [("Grounding", "10"), ("Grounding", "64")]
    assert list(hours.frame.columns) == ["Grounding Hours", "Grounding Ratio"]
    assert "±" not in terminal([measured, hours])


def test_a_sweep_that_was_not_measured_or_asks_for_no_costs_has_no_such_table(
    changed: Any, launched: Launcher, tmp_path: Path
) -> None:
    sweep = sweep_of(launched)
    assert cost_tables(sweep, read_costs(Store(tmp_path), sweep)) == []
    assert cost_tables(read_sweep(launched.store, "length"), changed(lambda content: None)) == []


def test_the_tables_and_the_csv_of_a_sweep_have_what_was_measured(
    changed: Any, launched: Launcher, measured: dict[str, Any]
) -> None:
    changed(lambda content: None)
    sweep = sweep_of(launched)
    one = read_report(launched.store, sweep.manifest, in_store)
    assert set(one.facts["metric"]) == {"trainable_parameters"}
    assert [table.name for table in one.tables][-3:] == ["measured", "hours", "claims"]
    rows = pd.read_csv(StringIO(texts(one)[".csv"]))
    [row] = rows[(rows["metric"] == "seconds_per_100") & (rows["prompt.length"] == 10)].to_dict("records")
    measurement = measured["rows"][0]["quantities"]["seconds_per_100"]
    wanted = measurement["median"], measurement["lowest"], measurement["ratio"]
    assert (row["value"], row["lowest"], row["ratio"]) == pytest.approx(wanted)
    assert math.isnan(row["upper"])


def test_the_hours_of_all_runs_are_added_up_with_those_of_attempts_that_came_to_nothing(launched: Launcher) -> None:
    sweep = sweep_of(launched)
    recorded = sum(sweep.frame["device_hours_spent"])
    run = launched.store.run(sweep.frame["run"][0])
    attempt = run.claim(run.next_number, run.published.job | {"work": "evaluate", "pid": 1, "started": 0.0})
    assert attempt is not None
    attempt.report({"evaluated": 0})
    os.utime(attempt.path / "job.json", (1000, 1000))
    os.utime(attempt.path / "progress.json", (8200, 8200))
    attempt.fail(from_text("RuntimeError: it came to nothing"))
    assert spent_device_hours(launched.store, sweep) == (
        f"its runs took {recorded + 2:.2g} device hours in all, failed ones included"
    )
