"""Launches on real local processes: every run is executed once, a failure stops no other run, interrupted runs continue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from groups import some
from launcher import TINY, Launcher
from patience import printed_by
from synthetic_store import JOB

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import from_text
from mmprompt.runs.files import StoreError
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster
from sweeps.jobs import snapshot
from sweeps.jobs.batch import batches, pack
from sweeps.jobs.local import signals_held_back, visible_gpus
from sweeps.planning.launch_plan import plan_for, plan_launch
from sweeps.verbs import launch as launch_verb


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Launcher, int, str]:
    """A sweep of three runs, of which one cannot succeed."""
    launcher = Launcher(tmp_path_factory.mktemp("launched"))
    return launcher, *launcher.run("launch", "seed=1", "optim.steps=2", "optim.lr=0.1,0.2,1e30")


def test_a_run_that_diverges_is_shown_with_its_reason_stops_no_other_and_is_no_failure_of_the_launch(
    launched: tuple[Launcher, int, str],
) -> None:
    launcher, code, output = launched
    assert code == 0
    assert sorted(launcher.store.run(run).result() is not None for run in launcher.attempts()) == [False, True, True]
    assert "1 run diverged" in output and "the loss is nan" in output and "error.txt" in output and "_log.err" in output
    assert "optim.lr=1e+30" in output  # runs are named by the values that differ between them
    assert all(len(jobs) == 1 for jobs in launcher.attempts().values())


def test_output_that_is_no_terminal_has_few_lines_and_no_control_characters(
    launched: tuple[Launcher, int, str],
) -> None:
    _, _, output = launched
    assert "\x1b" not in output and "\r" not in output
    assert len(output.splitlines()) < 15


def test_the_manifest_holds_what_the_tables_need(launched: tuple[Launcher, int, str]) -> None:
    launcher, _, _ = launched
    manifest = launcher.manifest()
    assert manifest["axes"] == {
        "task": ["micro_grounding"],
        "prompt.length": [4],
        "seed": [1],
        "optim.lr": [0.1, 0.2, 1e30],
    }
    assert manifest["baseline"] is None  # length 64 is not among these points
    assert manifest["compare"] == "prompt.length" and manifest["paper"] == {"table": "6", "figure": "2"}
    task = {"family": "grounding", "metric": "acc@0.5", "validation": "val"}
    assert manifest["tasks"] == {"micro_grounding": task}
    assert manifest["header"]["model"] == "micro" and manifest["header"]["optim.steps"] == 2
    assert manifest["command"].startswith("make sweep-length ARGS=") and "cluster" not in manifest["command"]
    for point in manifest["points"]:
        for split, evaluation in point["evaluations"].items():
            assert evaluation == evaluation_id(point["run"], {"split": split})
            folder = launcher.store.run(point["run"])
            assert folder.result() is None or folder.evaluation_file(evaluation).exists()


def test_workers_import_the_snapshot_and_read_its_backbone(launched: tuple[Launcher, int, str]) -> None:
    launcher, _, _ = launched
    [batch] = batches(launcher.store)
    copy = launcher.store.code / batch.record["job"]["code"]
    assert {jobs[0]["code"] for jobs in launcher.attempts().values()} == {copy.name}
    assert batch.record["jobs"][0][0]["settings"]["backbone"].startswith(str(copy))
    for file in snapshot.files(ROOT):
        assert (copy / file).exists()
    runs = [launcher.store.run(point["run"]) for point in launcher.manifest()["points"]]
    [failed] = [attempt.reason for run in runs for attempt in run.attempts() if attempt.reason is not None]
    assert f'File "{copy}/mmprompt/training/train.py"' in failed.traceback


def test_a_second_launch_runs_only_what_is_not_done_and_nothing_that_diverged_or_failed_too_often(
    launched: tuple[Launcher, int, str],
) -> None:
    launcher, _, _ = launched
    before = batches(launcher.store)
    code, output = launcher.run("launch", "seed=1", "optim.steps=2", "optim.lr=0.1,0.2")
    assert code == 0 and "all 2 runs are done already" in output
    assert batches(launcher.store) == before  # no worker was needed
    arguments = ("seed=1", "optim.steps=2", "optim.lr=0.1,0.2,1e30")
    code, output = launcher.run("plan", *arguments)
    assert code == 0 and "2 done, 1 diverged" in output and "1 run diverged, and would again" in output
    code, output = launcher.run("launch", *arguments)
    assert code == 0 and "only --retry diverged tries again" in output
    _, output = launcher.run("plan", *arguments, "--retry", "diverged")  # as the message says
    assert "1 run, 1 at a time in local processes" in output
    _, output = launcher.run("plan", *arguments, "--retry", "error")
    assert "1 run, 1 at a time" not in output
    folder = launcher.store.run(launcher.manifest()["points"][-1]["run"])
    assert len(folder.attempts()) == 1
    folder.attempts()[-1].fail(from_text("OSError: no such file"))  # as if this had been the error
    _, output = launcher.run("plan", *arguments)
    assert "2 done, 1 failed" in output and "1 run, 1 at a time in local processes" in output
    while folder.tries() < TRIES:  # as if it had been launched again
        attempt = folder.claim(folder.next_number, folder.attempts()[-1].job)
        assert attempt is not None
        attempt.fail(from_text("OSError: no such file"))
    code, output = launcher.run("launch", *arguments)
    assert code == 1 and "1 run failed 3 times without getting further; only --retry tries again" in output
    assert len(folder.attempts()) == TRIES
    _, output = launcher.run("plan", *arguments, "--retry")
    assert "1 run, 1 at a time" in output


@pytest.mark.long
def test_a_killed_worker_fails_only_its_current_run_which_the_next_launch_trains(launcher: Launcher) -> None:
    arguments = ("seed=1,2,3", "optim.steps=2", "cluster.max_parallel=1")
    process = launcher.start("launch", *arguments)
    launcher.worker().kill()
    said = printed_by(process)
    assert process.returncode == 1 and "1 run failed" in said and "ended without a word" in said
    assert sorted(launcher.store.run(run).result() is not None for run in launcher.attempts()) == [False, True, True]
    code, said = launcher.run("launch", *arguments)
    assert code == 0 and "all 3 runs are done" in said
    assert sorted(len(jobs) for jobs in launcher.attempts().values()) == [1, 1, 2]


@pytest.mark.parametrize("ending", some([signal.SIGINT, signal.SIGTERM], signal.SIGINT))
def test_an_interrupted_launch_stops_its_workers_and_counts_no_run_as_failed(
    launcher: Launcher, ending: signal.Signals
) -> None:
    arguments = ("seed=1,2", "optim.steps=100000")
    process = launcher.start("launch", *arguments)
    launcher.worker()
    if ending is signal.SIGINT:
        os.killpg(process.pid, ending)  # as a terminal does
    else:
        process.send_signal(ending)
    said = printed_by(process)
    assert process.returncode == 130
    assert "0 of 2 runs are done; the same command goes on from here" in said and "Traceback" not in said
    assert launcher.processes() == []
    _, said = launcher.run("plan", *arguments)
    assert "2 runs: 2 to do" in said


def test_two_launches_at_once_run_each_run_once(launcher: Launcher) -> None:
    arguments = ("seed=1,2,3", "optim.steps=2", "cluster.max_parallel=1")
    both = [launcher.start("launch", *arguments) for _ in range(2)]
    outputs = [printed_by(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all("all 3 runs are done" in said for said in outputs)
    assert [len(jobs) for jobs in launcher.attempts().values()] == [1, 1, 1]


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("0,1,2", ["0", "1", "2"]),
        ("3, 1", ["3", "1"]),
        ("GPU-8932f937,MIG-GPU-8932f937/1/0", ["GPU-8932f937", "MIG-GPU-8932f937/1/0"]),
        ("1,-1,2", ["1"]),  # CUDA stops at the first entry that is no GPU
        ("NoDevFiles", []),
        ("", []),
    ],
)
def test_visible_gpus_are_read_as_cuda_reads_them(visible: str, gpus: list[str]) -> None:
    assert visible_gpus(visible) == gpus


@pytest.mark.long
def test_inside_an_allocation_each_worker_gets_one_of_its_gpus(launcher: Launcher) -> None:
    """The allocation's two GPUs do not exist, so the runs fail at once, and each ends its worker; each job records the GPU that it
    was given. There are more runs than workers, because a worker may have ended, and another be in its place, before the second
    has begun."""
    launcher.environment["CUDA_VISIBLE_DEVICES"] = "995,GPU-none"
    code, output = launcher.run("launch", "seed=1,2,3,4", "optim.steps=2", "cluster.gpus=1", "cluster.max_parallel=2")
    assert code == 1 and "4 runs failed" in output and "sees 0: " in output
    assert {jobs[0]["visible_gpus"] for jobs in launcher.attempts().values()} == {"995", "GPU-none"}
    assert all(len(jobs) == 1 for jobs in launcher.attempts().values())


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_would_end_a_launch_is_held_back_while_the_launch_starts_a_worker(ending: signal.Signals) -> None:
    before = signal.signal(ending, signal.default_int_handler)
    started = ""
    try:
        with pytest.raises(KeyboardInterrupt), signals_held_back():
            os.kill(os.getpid(), ending)
            started = subprocess.run(["grep", "SigBlk", "/proc/self/status"], capture_output=True, text=True).stdout
    finally:
        signal.signal(ending, before)
    assert int(started.split()[1], 16) == 1 << signal.SIGINT - 1  # the signals that are blocked in the started process
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


def test_if_all_workers_die_before_they_begin_a_run_the_launch_ends_and_prints_their_last_lines(
    launcher: Launcher,
) -> None:
    for package in ("conf", "mmprompt", "sweeps"):
        shutil.copytree(ROOT / package, launcher.folder / "copy" / package)
    (launcher.folder / "copy" / "mmprompt/execution/execute.py").write_text(
        "raise ImportError('libsomething is missing')"
    )
    code, output = Launcher(launcher.folder, launcher.folder / "copy").run("launch", "seed=1,2", "optim.steps=2")
    assert code == 1
    assert "the workers ended before they had begun every run" in output and "libsomething is missing" in output
    assert "2 runs not done" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prompt.lenght=3"], "sweeps: there is no key prompt.lenght; did you mean prompt.length"),
        (["prompt.length=ten"], "sweeps: prompt.length='ten' (str) is not allowed"),
        (["cluster.gpus=99"], "sweeps: cluster.gpus=99 share the micro-batches of an update, and it has 1"),
        (["cluster.gpus=4", "optim.micro_batch=1"], "sweeps: cluster.gpus=4, but this machine has"),
        (["paths.backbone=no.pt"], "sweeps: paths.backbone=no.pt is not a file"),
    ],
)
def test_a_launch_with_wrong_arguments_ends_with_one_sentence(
    launcher: Launcher, arguments: list[str], complaint: str
) -> None:
    code, output = launcher.run("launch", *arguments)
    assert code == 2 and complaint in output and "Traceback" not in output


def test_an_unknown_command_is_an_error_that_suggests_the_nearest_one(launcher: Launcher) -> None:
    code, output = launcher.run("lanch")
    assert code == 2 and "there is no command lanch; did you mean launch" in output


def test_a_snapshot_is_complete_and_is_made_again_only_if_a_file_has_changed(tmp_path: Path) -> None:
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / "tree" / package)
    store = Store(tmp_path / "runs")
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda _: snapshot.take(tmp_path / "tree", store), range(16)))
    assert len(set(copies)) == 1 and [copies[0]] == list(store.code.iterdir())
    assert snapshot.files(copies[0]) == snapshot.files(tmp_path / "tree")
    (tmp_path / "tree" / "mmprompt/execution/execute.py").write_text("changed")
    assert snapshot.take(tmp_path / "tree", store) != copies[0]


def test_an_attempt_is_not_declared_dead_before_it_is_certain_that_no_other_launch_was_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other launch's batch was put in place after this one had read the batches, and its job has begun the run."""
    launch = plan_launch(["length"], [f"paths.runs={tmp_path}", *TINY, "seed=1"], None, None).launch
    [run] = launch.configs
    launch.store.run(run).create(launch.configs[run])
    attempt = launch.store.run(run).claim(1, JOB | {"host": "a node", "scheduler": "slurm", "job": "7"})
    assert attempt is not None
    planned = plan_for(launch, None, None)
    assert planned.to_do == [run]

    def slower(*_: object) -> None:
        monkeypatch.setattr(launch_verb, "freeze_batch", enough)

    def enough(*_: object) -> None:
        raise StoreError("enough")

    for submit in (launch_verb._submit, launch_verb._launch_here):
        monkeypatch.setattr(launch_verb, "freeze_batch", slower)
        with pytest.raises(StoreError, match="enough"):
            submit(planned, {}, *(("", None, None) if submit is launch_verb._launch_here else (None, None, print)))
        assert attempt.reason is None


CLUSTER = Cluster.model_validate(
    dict.fromkeys(Cluster.model_fields)
    | {
        "kind": "slurm",
        "gpus": 0,
        "cpus": 1,
        "mem_gb": 2.0,
        "time_min": 60,
        "recompute": False,
        "speed": "eager",
        "deterministic": False,
        "checkpoint_seconds": 30,
        "setup": [],
        "sbatch": {},
    }
)


@pytest.mark.parametrize(
    ("runs", "seconds", "runs_per_job", "sizes"),
    [
        (36, None, None, [4] * 9),  # unknown: at least eight jobs, at most four runs each
        (3, None, None, [1, 1, 1]),
        (36, 15.0, None, [36]),  # known: ten minutes
        (90, 15.0, None, [30, 30, 30]),
        (7, 200.0, None, [2, 3, 2]),
        (4, 7200.0, None, [1] * 4),  # a run is never divided
        (7, None, 3, [2, 2, 3]),
    ],
)
def test_runs_are_packed_into_even_jobs(
    runs: int, seconds: float | None, runs_per_job: int | None, sizes: list[int]
) -> None:
    ids = [str(i) for i in range(runs)]
    jobs = pack(ids, dict.fromkeys(ids, seconds), CLUSTER.model_copy(update={"runs_per_job": runs_per_job}))
    assert [len(job) for job in jobs] == sizes
    assert [run for job in jobs for run in job] == ids


def test_only_errors_without_progress_count_as_tries(tmp_path: Path) -> None:
    folder = Store(tmp_path).run("run")

    def attempt(step: int, error: str | None) -> int:
        made = folder.claim(folder.next_number, JOB)
        assert made is not None
        made.checkpoint_file(step).write_text("")
        if error is not None:
            made.fail(from_text(error))
        return folder.tries()

    assert [attempt(5, "nan"), attempt(5, "nan"), attempt(9, "nan")] == [1, 2, 1]  # the third got further
    assert [attempt(9, None), attempt(3, "interrupted: killed"), attempt(9, "nan")] == [1, 1, 2]
    near = "interrupted: the time limit of its job was near"
    assert [attempt(9, near), attempt(12, near)] == [3, 1]


def test_runs_that_take_unequal_times_are_packed_into_jobs_of_similar_length() -> None:
    ids = [str(i) for i in range(12)]
    seconds: dict[str, float | None] = {run: 100.0 if i < 4 else 400.0 for i, run in enumerate(ids)}
    jobs = pack(ids, seconds, CLUSTER)
    assert [run for job in jobs for run in job] == ids
    assert [sum(seconds[run] or 0 for run in job) for job in jobs] == [400, 800] * 3
