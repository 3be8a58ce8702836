"""`python -m sweeps status`: a row for each run, the failures, and the command to type next, as text and as JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_store as made
from attempts import error_of
from hypothesis import given
from hypothesis import strategies as st
from launcher import Launcher
from patience import LAST_RESORT, printed_by, until
from test_causes import BEGIN, KILLED, LOGS, TRACEBACK, attempt, submit
from test_live_table import Terminal, on_a_terminal

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_DIVERGED as DIVERGED
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import StoreError, write_once
from mmprompt.runs.identity import canonical, evaluation_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.display.pace import UNKNOWN, ExpectedTime
from sweeps.display.report import RunLine, SweepStatus, in_seconds, time_left, with_time_left
from sweeps.grid import launched
from sweeps.verbs.status import status
from sweeps.wording import duration

KEYS = {"run", "values", "state", "slurm", "job", "node", "attempt", "step", "steps", "validation", "elapsed", "left"}
KEYS |= {"job_left", "heard", "cause", "reason", "damaged", "evaluating"}


def printed(capsys: pytest.CaptureFixture[str], store: Path, *names: str) -> tuple[int, str]:
    code = status(names, store, watch=False, json=False)
    return code, capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], store: Path, *names: str) -> dict[str, Any]:
    status(names, store, watch=False, json=True)
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def command(store: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sweeps", "status", "--runs", str(store), *arguments]


# A sweep that was launched on local processes


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a sweep of three runs: one is done, one failed, one diverged."""
    launcher = Launcher(tmp_path_factory.mktemp("swept"))
    code, output = launcher.run("launch", "seed=1", "optim.lr=0.1,1e30,2e30", "optim.steps=4")
    assert code == 0, output
    turn_into_error(launcher.store, launcher.manifest()["points"][1]["run"])
    return launcher.store.root


def turn_into_error(store: Store, run: str) -> None:
    """Rewrites the failure of a run that diverged, as if it had raised an error."""
    attempt = store.run(run).attempts()[-1]
    assert attempt.diverged and error_of(attempt)
    attempt.fail(from_text(error_of(attempt).replace(DIVERGED, "RuntimeError: ")))


def test_a_row_shows_the_differing_settings_and_the_progress_and_a_failure_names_the_command_to_type_next(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = printed(capsys, swept)
    first, head, failed, diverged, done, *advice = output.splitlines()
    assert code == 1 and first == "length: 3 runs: 1 done, 1 diverged, 1 failed (1 error); 67 % done"
    # The seed has no column, because it does not differ.
    assert head.split() == [
        "run",
        "lr",
        "state",
        "job",
        "attempt",
        "step",
        "val/acc@0.5",
        "elapsed",
    ]
    assert re.fullmatch(r"  [0-9a-f]{4} +1e\+30  failed \(error\)  \d+ +1 +1/4 +\d s", failed)
    assert re.fullmatch(r"  [0-9a-f]{4} +2e\+30  diverged  .*", diverged)
    assert re.fullmatch(r"  [0-9a-f]{4} +0\.1 +done +\d+ +1 +4/4 +\d+\.\d +\d s", done)
    assert advice[0] == "error: 1 run" and "the loss is nan at step 2 of 4" in advice[1]
    assert re.match(r"    at training/update\.py:\d+, in update: raise TrainingError", advice[2])
    run = failed.split()[0]
    assert advice[3] == f"    {run}  optim.lr=1e+30" and f"`python -m sweeps logs {run}`" in advice[4]
    make, sweep, cluster, store, arguments = shlex.split(advice[5])
    assert [make, sweep, cluster] == ["make", "sweep-length", "CLUSTER=local"] and store == f"RUNS={swept}"
    asked = shlex.split(arguments.removeprefix("ARGS="))
    assert {"optim.lr=0.1,1e30,2e30", "optim.steps=4", "tracking=disabled"} < set(asked) and asked[-2:] == [
        "--retry",
        "error",
    ]
    assert not [text for text in asked if text.startswith("cluster=")]


@pytest.mark.long
def test_the_command_to_type_next_runs_the_failed_run_again_and_nothing_else(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = as_json(capsys, swept)["sweeps"][0]["runs"]
    [failed] = [run["run"] for run in before if run["state"] == "failed"]
    line = printed(capsys, swept)[1].splitlines()[-1]
    # Below, the command of this recipe is executed without make's virtual environment and tables.
    recipe = "$(PY) -m sweeps launch $* $(CHOICE) $(ARGS)"
    assert recipe in (ROOT / "Makefile").read_text()
    arguments = shlex.split(shlex.split(line)[-1].removeprefix("ARGS="))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MMPROMPT_RUNS": str(swept)}
    launch = [sys.executable, "-m", "sweeps", "launch", "length", "cluster=local", *arguments]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=LAST_RESORT)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {run["run"]: run for run in as_json(capsys, swept)["sweeps"][0]["runs"]}
    assert {run: now["attempt"] for run, now in after.items()} == {
        run["run"]: run["attempt"] + (run["state"] == "failed") for run in before
    }
    assert after[failed]["state"] == "diverged"
    turn_into_error(Store(swept), failed)


def test_the_json_has_typed_values_and_the_same_keys_for_every_state(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status_json = as_json(capsys, swept, "length")
    assert status_json["store"] == str(swept) and status_json["scheduler"].startswith("not asked")
    [sweep] = status_json["sweeps"]
    none = dict.fromkeys(("running", "queued", "lost?", "damaged", "to evaluate", "to do"), 0)
    assert sweep["counts"] == none | {"done": 1, "diverged": 1, "failed": 1}
    done, failed, diverged = sweep["runs"]  # in the order of the manifest
    assert set(done) == set(failed) == set(diverged) == KEYS
    assert (diverged["state"], diverged["cause"], diverged["reason"]) == ("diverged", None, None)
    assert done["values"] == {"task": "micro_grounding", "seed": 1, "prompt.length": 4, "optim.lr": 0.1}
    assert (done["state"], done["step"], done["steps"], done["cause"]) == ("done", 4, 4, None)
    assert (failed["state"], failed["cause"]) == ("failed", "error") and "the loss is nan" in failed["reason"]
    assert isinstance(done["validation"], float) and done["elapsed"] > 0


def test_status_writes_nothing(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def contents() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in swept.rglob("*")}

    before = contents()
    printed(capsys, swept)
    assert contents() == before


def test_an_unknown_sweep_and_a_missing_store_are_errors_and_the_nearest_name_is_suggested(
    swept: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"no sweep lenght in .*length"):
        status(["lenght"], swept, watch=False, json=False)
    with pytest.raises(StoreError, match="there is no store"):
        status([], tmp_path / "nowhere", watch=False, json=False)
    with pytest.raises(StoreError, match="no sweep was launched"):
        status([], tmp_path, watch=False, json=False)
    with pytest.raises(ConfigError, match="--watch and --json"):
        status([], swept, watch=True, json=True)


def test_status_imports_neither_torch_nor_hydra(swept: Path) -> None:
    code = "import sys; from sweeps.verbs.status import status; from pathlib import Path; "
    code += f"status([], Path({str(swept)!r}), False, True)"
    check = "; sys.exit(str([name for name in ('torch', 'hydra', 'submitit', 'pandas') if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + check], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


# A sweep that is running


@pytest.fixture
def two_runs(launcher: Launcher) -> Iterator[Launcher]:
    """A launch that executes two runs one after the other; the first run has reported its progress."""
    process = launcher.start("launch", "seed=1,2", "optim.steps=3000", "cluster.max_parallel=1")
    until(lambda: list(launcher.store.root.glob("run/*/attempts/1/progress.json")), "the first run reports", process)
    yield launcher
    process.send_signal(signal.SIGINT)
    printed_by(process)


def test_a_watch_redraws_the_progress_in_place_and_ctrl_c_ends_it_without_a_traceback(
    two_runs: Launcher, capsys: pytest.CaptureFixture[str]
) -> None:
    [sweep] = as_json(capsys, two_runs.store.root)["sweeps"]
    running, waiting = sorted(sweep["runs"], key=lambda run: run["state"])
    assert (running["state"], running["steps"], waiting["state"], waiting["cause"]) == ("running", 3000, "to do", None)
    assert 0 < running["step"] < 3000 and running["left"] > 0 and running["elapsed"] > 0 and running["heard"] > 0
    assert sweep["left"] > running["left"]  # the launch will execute the other run as well

    def two_pictures(output: str) -> bool:
        return len(set(re.findall(r" (\d+)/3000", output))) > 1

    watch = command(two_runs.store.root, "--watch")
    output = on_a_terminal(watch, two_runs.folder, size=(100, 30), enough=two_pictures)
    assert "Traceback" not in output and "^C" not in output
    pictures = list(Terminal(100, 30).pictures(output))
    steps = [re.search(r" (\d+)/3000", "\n".join(picture)) for picture in pictures]
    shown = [int(step[1]) for step in steps if step]
    assert len(set(shown)) > 1 and shown == sorted(shown)
    assert all(sum("seed" in line and "state" in line for line in picture) <= 1 for picture in pictures)  # one table
    assert re.match(r"length: 2 runs: 1 running, 1 to do; \d+ % done, more than .* left", pictures[-1][0])


# Synthetic stores


def store_of(folder: Path, seeds: int) -> tuple[Store, list[str]]:
    """A store with a sweep of one task and this many seeds, and the ids of its runs; no run has an attempt."""
    store = Store(folder / "runs")
    manifest = made.manifest("length", {"task": ["micro_vqa"], "seed": list(range(seeds))}, "seed", {}, {})
    made.launch(store, manifest)
    for point in manifest["points"]:
        write_once(store.run(point["run"]).config_file, canonical(made.config_of(point["values"])))
    return store, [point["run"] for point in manifest["points"]]


def finish(store: Store, run: str, seconds: float = 10.0) -> None:
    folder = store.run(run)
    attempt = folder.path / "attempts" / "1"
    attempt.mkdir(parents=True)
    (attempt / "job.json").write_text(json.dumps(made.JOB | {"job": "7"}))
    metrics = {"val/acc": 50.0, "test/acc": 50.0}
    evaluations = {split: evaluation_id(run, {"split": split}) for split in ("val", "test")}
    result = {"run": run, "attempt": 1, "steps": 30, "seconds": seconds, "metrics": metrics, "evaluations": evaluations}
    folder.result_file.write_text(json.dumps(result))


def test_done_runs_beyond_the_height_of_a_terminal_are_counted_and_without_a_terminal_all_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, runs = store_of(tmp_path, 60)
    answering(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    attempt(store, error=f"{TRACEBACK}ValueError: no\n", seed=0)
    submit(store, [[runs[0]]])
    for run in runs[3:]:
        finish(store, run)
    code, output = printed(capsys, store.root)
    assert code == 1 and len(re.findall(r"^  [0-9a-f]{4,}  ", output, re.MULTILINE)) == 60

    ignoring_the_exit_code = ["/bin/sh", "-c", '"$@"; true', "sh"]
    output = on_a_terminal([*ignoring_the_exit_code, *command(store.root)], tmp_path, size=(100, 30))
    lines = output.replace("\r\n", "\n").splitlines()
    assert lines[2].split()[2] == "failed" and len(lines) < 30
    [more] = [line for line in lines if line.startswith("  and ")]
    assert re.fullmatch(r"  and \d+ done", more)


def test_without_a_name_it_shows_the_newest_unfinished_sweep_and_a_line_for_each_other_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, runs = store_of(tmp_path, 2)
    for name, seeds, age in (("old", 3, 300), ("length", 2, 200), ("finished", 2, 100)):
        manifest = made.manifest(name, {"task": ["micro_vqa"], "seed": list(range(seeds))}, "seed", {}, {})
        made.launch(store, manifest)
        os.utime(store.manifest(name), (time.time() - age,) * 2)
    for run in runs:
        finish(store, run)
    code, output = printed(capsys, store.root)
    assert code == 0 and output.splitlines()[0] == "old: 3 runs: 2 done, 1 to do; 67 % done"
    assert output.splitlines()[-1] == "finished, length: done" and output.count("state") == 1
    third = made.run_of({"task": "micro_vqa", "seed": 2})
    finish(store, third)
    assert printed(capsys, store.root)[1].splitlines()[0] == "finished: 2 runs: 2 done; 100 % done"
    assert [sweep["sweep"] for sweep in as_json(capsys, store.root)["sweeps"]] == ["finished", "length", "old"]


def test_when_slurm_does_not_answer_it_says_so_and_calls_no_run_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, runs = store_of(tmp_path, 2)
    run = attempt(store, BEGIN + KILLED, seed=0)
    submit(store, [[run], [runs[1]]])
    monkeypatch.setenv("PATH", str(tmp_path))
    code, output = printed(capsys, store.root)
    assert code == 0 and output.splitlines()[0] == "no information from SLURM (there is no squeue here)"
    assert output.splitlines()[1] == "length: 2 runs: 2 lost?; 0 % done"
    status_json = as_json(capsys, store.root)
    assert status_json["scheduler"] == "no information: there is no squeue here"
    assert {run["cause"] for run in status_json["sweeps"][0]["runs"]} == {None}


def test_an_interrupted_run_that_a_live_launch_will_execute_is_not_called_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, runs = store_of(tmp_path, 2)
    for seed in range(2):
        attempt(store, error="interrupted: told to end by SIGTERM", kind="local", seed=seed)
    submit(store, [runs], kind="local")
    assert "2 to do (2 cancelled)" in printed(capsys, store.root)[1]
    again = submit(store, [runs[:1]], number=2, kind="local") / "batch.json"
    again.write_text(json.dumps(json.loads(again.read_text()) | {"launcher": this_process()}))
    assert "2 to do (1 cancelled)" in printed(capsys, store.root)[1]


# What to type next


def answering(folder: Path) -> None:
    """Writes a squeue that answers that there are no jobs."""
    program = folder / "bin" / "squeue"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def advised(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    record: Mapping[str, Any],
    **leftovers: Any,
) -> list[str]:
    """The lines of status about a failed attempt. `record`: keys of batch.json; `leftovers`: what the attempt left, as for
    `test_causes.attempt`."""
    store, runs = store_of(folder, 1)
    run = attempt(store, seed=0, **leftovers)
    batch = submit(store, [[run]], kind=leftovers.get("kind", "slurm")) / "batch.json"
    frozen = json.loads(batch.read_text())
    batch.write_text(json.dumps(frozen | {"cluster": {"mem_gb": 2.0, "time_min": 60}} | dict(record)))
    answering(folder)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    monkeypatch.setenv("MMPROMPT_RUNS", str(store.root))
    assert runs == [run] and printed(capsys, store.root)[0] == 1
    return printed(capsys, store.root)[1].splitlines()


def test_after_out_of_memory_it_advises_twice_the_memory_that_was_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = BEGIN + LOGS["out of memory"]
    overrides = ["cluster=auto", "seed=1,2", "cluster.partition=gpu", "cluster.mem_gb=3.5", "paths.runs=x"]
    record = {"cluster": {"mem_gb": 3.5, "time_min": 60}, "overrides": overrides}
    *_, last = advised(tmp_path, monkeypatch, capsys, record, log=log)
    # Settings of the sweep come from its manifest as it is now, cluster settings from the batch that had the run.
    assert last == '    make sweep-length ARGS="cluster.partition=gpu --retry oom cluster.mem_gb=7"'


def test_after_a_time_limit_it_advises_twice_the_time_and_after_cuda_out_of_memory_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = BEGIN + LOGS["time limit"]
    (tmp_path / "a").mkdir()
    *_, last = advised(tmp_path / "a", monkeypatch, capsys, {"overrides": ["cluster=slurm"]}, log=log)
    assert last == '    make sweep-length CLUSTER=slurm ARGS="--retry time cluster.time_min=120"'
    (tmp_path / "b").mkdir()
    error = f"{TRACEBACK}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"
    *_, last = advised(tmp_path / "b", monkeypatch, capsys, {}, error=error)
    assert last == '    make sweep-length ARGS="--retry oom cluster.gres=gpu:TYPE:1"'


@pytest.mark.parametrize("name", ["preempted", "node lost", "cancelled", "killed"])
def test_after_an_interruption_it_advises_the_same_command_without_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    *_, last = advised(tmp_path, monkeypatch, capsys, {}, log=BEGIN + LOGS[name])
    assert last == "    make sweep-length"


def test_for_a_run_that_was_killed_too_often_it_advises_to_name_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, _ = store_of(tmp_path, 1)
    for _ in range(2):
        attempt(store, error="its process ended without a word\n", seed=0)
    *_, last = advised(tmp_path, monkeypatch, capsys, {}, error="its process ended without a word\n")
    assert last == '    make sweep-length ARGS="--retry killed"'


def test_reasons_that_differ_only_in_numbers_are_shown_once_and_of_many_runs_a_few_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, runs = store_of(tmp_path, 12)
    for seed in range(12):
        reason = f"the loss is nan at step {seed}" if seed < 8 else "no such file"
        attempt(store, error=f"{TRACEBACK}ValueError: {reason}\n", seed=seed)
    submit(store, [runs])
    answering(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    _, output = printed(capsys, store.root)
    advice = output[output.index("error: 12 runs") :]
    assert advice.count("the loss is nan") == 1 and advice.count("no such file") == 1
    assert "    and 5 more\n" in advice and "    and 1 more\n" in advice


# Words and numbers

LINE = RunLine("0" * 16, {}, "running", None, "7", None, 1, 100, 300, 61.3, 200.0, 400.0, None, 50_000.0, None, None)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "running"),
        ({"step": None, "steps": None}, "starting"),
        ({"step": 300}, "scoring"),
        ({"slurm": "SUSPENDED"}, "suspended"),
        ({"silent": 1820}, "running, silent for 30 min"),
        ({"silent": 3000, "slurm": "SUSPENDED"}, "suspended"),
        ({"silent": 3000, "step": 300}, "scoring, silent for 50 min"),
        ({"silent": 3000, "state": "failed", "cause": "error"}, "failed (error)"),
        ({"state": "queued", "slurm": "PENDING", "reason": "Resources"}, "queued (Resources)"),
        ({"state": "queued", "slurm": "PENDING"}, "queued"),
        ({"state": "queued", "slurm": "RUNNING"}, "queued (its job runs)"),
        ({"state": "queued", "slurm": "SUBMITTING"}, "queued (submitting)"),
        ({"state": "to do", "cause": "killed"}, "to do (killed)"),
        ({"state": "lost?"}, "lost?"),
    ],
)
def test_a_state_is_shown_with_its_cause_reason_or_activity(changes: Mapping[str, Any], word: str) -> None:
    since = changes.get("silent", 0)
    line = replace(LINE, **{key: value for key, value in changes.items() if key != "silent"})
    assert with_time_left(line, UNKNOWN, False, 50_000.0 + since).state_text == word


def test_the_time_left_of_the_job_is_shown_if_it_ends_before_the_run() -> None:
    assert replace(LINE, job_left=60.0).cells[-1] == "7 min (job 60 s)"
    assert replace(LINE, job_left=6000.0).cells[-1] == "7 min"


def left_of(*lines: RunLine) -> str:
    return str(time_left(lines))


def test_the_time_left_is_that_of_running_and_waiting_runs_and_unknown_if_no_run_tells() -> None:
    done, other = replace(LINE, state="done", elapsed=600.0, left=None), replace(LINE, job="8")
    queued = replace(LINE, state="queued", slurm="PENDING", left=None, elapsed=None)
    estimated = replace(queued, expected=ExpectedTime(650.0, 50.0))
    waiting = replace(queued, state="to do", slurm=None, job=None, is_held_locally=True)
    assert left_of(LINE) == left_of(LINE, done) == f"about {duration(400)} left"
    assert left_of(LINE, other, done, estimated, estimated) == f"about {duration(400 + 650)} left"
    assert left_of(LINE, queued) == f"about {duration(400 + 600)} left"  # as long as the running run: 200 s + 400 s
    assert left_of(LINE, waiting, waiting, waiting) == f"about {duration(400 + 3 * 600)} left"
    # The waiting run gets the first free slot.
    assert left_of(LINE, replace(other, left=10.0), estimated) == f"about {duration(10 + 650)} left"
    assert left_of(done, queued) == left_of() == "None"  # no run is running: it is unknown when the first will start
    assert left_of(replace(LINE, slurm="SUSPENDED"), done) == "None"
    starting = replace(LINE, step=None, steps=None, elapsed=None, left=None)
    assert left_of(starting) == left_of(starting, queued) == "time left not known yet"
    assert left_of(starting, other, queued) == f"about {duration(600 + 400)} left"
    # A queued run whose job is running has a slot.
    assert left_of(replace(estimated, slurm="RUNNING"), estimated) == f"about {duration(1300)} left"


def test_a_job_of_several_runs_is_one_slot() -> None:
    others = [replace(LINE, state="queued", slurm="RUNNING", left=None, expected=ExpectedTime(100.0)) for _ in range(3)]
    assert left_of(LINE, *others) == f"about {duration(400 + 3 * 100)} left"


def test_the_time_after_the_last_step_is_part_of_the_time_left_or_shown_as_unknown() -> None:
    scoring = replace(LINE, step=300, left=None)
    known, unknown = (
        with_time_left(LINE, ExpectedTime(700.0, 90.0), False, 0.0),
        with_time_left(LINE, UNKNOWN, False, 0.0),
    )
    assert (known.left, known.cells[-1], known.done) == (490.0, "8 min", 200 / 690)
    assert (unknown.left, unknown.cells[-1], unknown.done) == (400.0, "> 7 min", 1 / 3)
    assert left_of(known) == "about 8 min left" and left_of(unknown) == "more than 7 min left"
    known, unknown = (
        with_time_left(scoring, ExpectedTime(700.0, 90.0), False, 0.0),
        with_time_left(scoring, UNKNOWN, False, 0.0),
    )
    assert (known.state_text, known.cells[-1], unknown.state_text, unknown.cells[-1]) == (
        "scoring",
        "2 min",
        "scoring",
        "",
    )
    assert left_of(known) == "about 2 min left" and left_of(unknown) == "time left not known yet"
    assert known.done < unknown.done < 1  # the run is not done yet
    brief = with_time_left(scoring, ExpectedTime(700.0, 0.01), False, 0.0)
    assert brief.cells[-1] == "1 s" and left_of(brief) == "about 1 s left"


def test_the_percentage_is_below_100_while_a_run_is_running() -> None:
    lines = [replace(LINE, state="done")] * 999 + [with_time_left(replace(LINE, step=300), UNKNOWN, False, 0.0)]
    sentence = "length: 1000 runs: 999 done, 1 running (1 scoring); 99 % done, time left not known yet"
    assert str(SweepStatus(SWEEP, lines, {})) == sentence
    assert str(SweepStatus(SWEEP, lines[:-1], {})) == "length: 999 runs: 999 done; 100 % done"


SWEEP = launched.LaunchedSweep(Store(Path("/nowhere")), "length", {})
SECONDS = st.one_of(st.none(), st.floats(0.01, 1e6))


@st.composite
def at_this_moment(draw: st.DrawFn, seconds: st.SearchStrategy[float | None] = SECONDS) -> list[RunLine]:
    """The rows of a sweep: running runs are starting, training, evaluating or scoring; others wait, failed or are done."""
    lines = []
    for number in range(draw(st.integers(1, 8))):
        takes = ExpectedTime(draw(seconds), draw(seconds))
        state = draw(st.sampled_from(["running", "running", "queued", "to do", "to evaluate", "done", "failed"]))
        step = draw(st.sampled_from([None, 1, 150, 300])) if state == "running" else None
        elapsed = None if step is None else draw(st.floats(0.01, 1e6))
        values = {"run": f"{number:016}", "job": str(number) if state == "running" else None, "heard": None}
        line = replace(LINE, state=state, step=step, elapsed=elapsed, left=None, **values)
        line = replace(line, evaluating=state == "to evaluate" or (state == "running" and draw(st.booleans())))
        lines.append(with_time_left(line, takes, draw(st.booleans()), 0.0))
    return lines


@given(at_this_moment())
def test_the_time_left_is_never_negative_and_unknown_only_if_no_run_tells(lines: list[RunLine]) -> None:
    left = time_left(lines)
    running = [line for line in lines if line.state == "running"]
    assert (left is None) == (not running)
    if left is not None:
        unfinished = [*running, *(line for line in lines if line.is_waiting)]
        is_known = any(
            line.left is not None or (line.step is None and line.expected.total is not None) for line in unfinished
        )
        is_known |= any(line.elapsed for line in running) and any(line.step is None for line in unfinished)
        assert left.seconds is None or left.seconds >= 0
        assert is_known or left.seconds is None
        assert left.seconds is not None or not any(line.left is not None for line in running)
        assert not re.search(r"\b0 s\b|-", str(left)) and 0 <= SweepStatus(SWEEP, lines, {}).done < 1


@given(at_this_moment(st.floats(0.01, 1e6)), st.data())
def test_the_time_left_never_rises_when_a_run_is_done_and_another_takes_its_slot(
    lines: list[RunLine], data: st.DataObject
) -> None:
    while running := [line for line in lines if line.state == "running"]:
        before = time_left(lines)
        ended = data.draw(st.sampled_from(running))
        waiting = next((line for line in lines if line.is_waiting), None)
        after = {line.run: line for line in lines} | {ended.run: replace(ended, state="done", left=None, job=None)}
        if waiting is not None:
            after[waiting.run] = replace(
                waiting, state="running", slurm=None, job=ended.job, left=waiting.expected.total
            )
        lines, left = list(after.values()), time_left(after.values())
        assert before is not None and before.seconds is not None
        assert left is None or (left.seconds is not None and left.seconds <= before.seconds * (1 + 1e-9))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2:03", 123), ("1:02:03", 3723), ("1-02:03:04", 93784), ("UNLIMITED", None), ("INVALID", None), ("", None)],
)
def test_durations_are_read_as_slurm_writes_them(text: str, seconds: float | None) -> None:
    assert in_seconds(text) == seconds
