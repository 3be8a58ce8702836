"""Runs from a frozen folder to a published result, through the real training core at a tiny size."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from attempts import error_of
from groups import some
from patience import printed_by, until
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import JOB, frozen_run, job_settings, settings

from mmprompt.execution.execute import execute, execute_for_search
from mmprompt.execution.run_context import pretrained
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import OLD_PREFIX as INTERRUPTED
from mmprompt.runs.files import StoreError
from mmprompt.runs.processes import this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.training.frozen_features import processor
from mmprompt.training.loader import data_order
from mmprompt.training.update import learning_rate
from sweeps.states.state import mark_dead

LATER = """
import json, sys
from pathlib import Path
sys.path.insert(0, str(Path("tests").absolute()))
from tiny import JOB, job_settings
from mmprompt.execution.execute import execute
from mmprompt.runs.store import Store
print(json.dumps(execute(Store(Path(sys.argv[1])), sys.argv[2:], job_settings(), JOB)))
"""


def process(store: Path, *runs: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LATER, str(store), *runs], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


KILLED = """
import os, signal, sys
from pathlib import Path
store, moment, run = sys.argv[1:]
link = os.link
def at_the_result(source, target, **more):
    if Path(target).name == "result.json":
        if moment == "after":
            link(source, target, **more)
        os.kill(os.getpid(), signal.SIGKILL)
    link(source, target, **more)
os.link = at_the_result
sys.path.insert(0, "tests")
from tiny import JOB, job_settings
from mmprompt.execution.execute import execute
from mmprompt.runs.store import Store
execute(Store(Path(store)), [run], job_settings(), JOB)
"""


@pytest.mark.parametrize("moment", some(["before", "after"], "after"))
def test_a_run_killed_at_the_moment_at_which_it_publishes_is_published_once(tmp_path: Path, moment: str) -> None:
    folder, whole = frozen_run(tmp_path / "a"), frozen_run(tmp_path / "b")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a"), moment, folder.id], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL and folder.result_file.exists() == (moment == "after")
    if moment == "before":  # as a launch does that finds the process gone
        mark_dead(folder.attempts()[0])
    for store, one in ((tmp_path / "a", folder), (tmp_path / "b", whole)):
        assert execute(Store(store), [one.id], job_settings(), JOB | {"batch": "another"}) == {one.id: "done"}
    assert done(folder)["attempt"] == (1 if moment == "after" else 2)
    assert same_bits(folder, whole)


def done(folder: RunFolder) -> dict[str, object]:
    result = folder.result()
    assert result is not None
    return result


def same_bits(a: RunFolder, b: RunFolder) -> bool:
    first, second = load_file(a.weights_file), load_file(b.weights_file)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_ends_with_metrics_weights_evaluations_and_at_most_15_files(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    assert execute(Store(tmp_path), [folder.id], job_settings("offline"), JOB) == {folder.id: "done"}
    result = done(folder)
    assert set(result["metrics"]) == {"val/acc@0.5", "test/acc@0.5"}  # type: ignore[call-overload]
    assert result["device"] == f"cpu: {processor()}"
    for split, evaluation in result["evaluations"].items():  # type: ignore[attr-defined]
        content = json.loads(folder.evaluation_file(evaluation).read_text())
        scores = np.load(folder.evaluation_file(evaluation).with_suffix(".npy"))
        assert len(scores) == content["n"] == 30
        assert scores.mean() == pytest.approx(content["metrics"]["acc@0.5"])
        assert content["settings"] == {"split": split}
    assert (folder.path / str(result["wandb"])).is_file()
    assert sum(path.is_file() for path in folder.path.rglob("*")) <= 15


def test_asking_twice_trains_once(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    before = folder.result_file.stat()
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB) == {folder.id: "done"}
    assert folder.result_file.stat() == before and len(folder.attempts()) == 1


def test_a_run_gives_the_same_bits_whatever_ran_before_it_in_the_process(tmp_path: Path) -> None:
    pretrained.cache_clear()  # as in a process of its own
    alone = frozen_run(tmp_path / "a", "task=micro_entailment", "prompt.dropout=0.2")
    execute(Store(tmp_path / "a"), [alone.id], job_settings(), JOB)
    first = frozen_run(tmp_path / "b", "task=micro_grounding", "prompt.reparameterization=mlp", "backbone.mode=train")
    after = frozen_run(tmp_path / "b", "task=micro_entailment", "prompt.dropout=0.2")
    execute(Store(tmp_path / "b"), [first.id, after.id], job_settings(), JOB)
    assert alone.id == after.id
    assert same_bits(alone, after)
    assert done(alone)["metrics"] == done(after)["metrics"]


def test_another_seed_gives_other_bits(tmp_path: Path) -> None:
    one, two = frozen_run(tmp_path, "seed=1"), frozen_run(tmp_path, "seed=2")
    execute(Store(tmp_path), [one.id, two.id], job_settings(), JOB)
    assert not same_bits(one, two)


def test_training_goes_on_from_a_checkpoint_of_another_attempt(tmp_path: Path) -> None:
    """The dead attempt stopped after step 2 of 4: only steps 3 and 4 are trained again, to the same weights."""
    whole, broken = frozen_run(tmp_path / "a"), frozen_run(tmp_path / "b")
    execute(Store(tmp_path / "a"), [whole.id], job_settings(), JOB)

    class Killed(BaseException):
        pass

    def die(state) -> None:  # type: ignore[no-untyped-def]
        if state.step == 3:
            raise Killed

    with pytest.raises(Killed):
        execute(Store(tmp_path / "b"), [broken.id], job_settings(), JOB, die)
    attempt = broken.attempts()[0]
    (attempt.path / "job.json").write_text(json.dumps(attempt.job | {"pid": 2**22}))  # as if its process were gone
    steps = []
    execute(Store(tmp_path / "b"), [broken.id], job_settings(), JOB, lambda state: steps.append(state.step))
    assert steps == [3, 4]
    assert done(broken)["attempt"] == 2 and done(broken)["resumed_from"] == {"attempt": 1, "step": 2}
    assert done(whole)["resumed_from"] is None
    assert same_bits(whole, broken)
    assert not list(broken.path.rglob("checkpoint*"))


def test_a_failing_run_says_why_and_stops_no_other(tmp_path: Path) -> None:
    bad, good = frozen_run(tmp_path, "prompt.init_std=1e30"), frozen_run(tmp_path)
    assert execute(Store(tmp_path), [bad.id, good.id], job_settings(), JOB) == {bad.id: "failed", good.id: "done"}
    reason = error_of(bad.attempts()[0]) or ""
    assert "TrainingError: the loss is nan at step 1 of 4" in reason
    assert bad.attempts()[0].diverged


def test_a_configuration_that_was_edited_after_launch_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = frozen_run(tmp_path)
    folder.config_file.write_text(folder.config_file.read_text().replace('"seed":1', '"seed":2', 1))
    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB) == {folder.id: "damaged"}
    assert "config.json was changed after launch" in capfd.readouterr().err and folder.attempts() == []


def test_another_backbone_than_at_launch_is_refused(tmp_path: Path) -> None:
    folder, other = frozen_run(tmp_path), tmp_path / "other.safetensors"
    other.write_bytes(Path(job_settings().backbone).read_bytes() + b" ")
    assert execute(Store(tmp_path), [folder.id], job_settings(backbone=str(other)), JOB) == {folder.id: "failed"}
    assert "has changed since launch" in (error_of(folder.attempts()[0]) or "")


@pytest.mark.long
def test_two_processes_with_the_same_list_execute_each_run_once(tmp_path: Path) -> None:
    folders = [frozen_run(tmp_path, f"seed={seed}") for seed in range(4)]
    both = [process(tmp_path, *(folder.id for folder in folders)) for _ in range(2)]
    outcomes = [json.loads(printed_by(p).splitlines()[-1]) for p in both]
    for folder in folders:
        assert len(folder.attempts()) == 1 and folder.result()
        assert "done" in [outcome[folder.id] for outcome in outcomes]


def test_a_run_whose_process_was_killed_is_taken_up_by_the_next(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "optim.steps=2000", "optim.validate_every=1000")
    victim = process(tmp_path, folder.id)
    until(lambda: folder.attempts() and folder.attempts()[0].checkpoint_steps, "it leaves a checkpoint", victim)
    busy = execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    assert busy == {folder.id: "open"}

    first: list[int] = []

    class Enough(BaseException):
        pass

    def look(state) -> None:  # type: ignore[no-untyped-def]
        first.append(state.step)
        raise Enough

    with pytest.raises(Enough):
        execute(Store(tmp_path), [folder.id], job_settings(), JOB, look)
    assert first[0] > 2 and len(folder.attempts()) == 2


def ends(store: Path, runs: list[RunFolder], raises: Exception | None = None, **place: object) -> str:
    """What a process says that ends at one of these runs; with `raises`, because a step of training raises that."""

    def watch(state) -> None:  # type: ignore[no-untyped-def]
        if raises is not None:
            raise raises

    with pytest.raises(SystemExit) as end:
        execute(Store(store), [folder.id for folder in runs], job_settings(**place), JOB, watch)
    return str(end.value)


def test_a_search_tries_no_run_again_whose_last_attempt_has_not_recorded_its_end(tmp_path: Path) -> None:
    """A worker may have been killed since another one looked. The attempt's end is recorded first, or it never would be."""
    folder, evaluations = frozen_run(tmp_path), [{"split": "val"}]
    gone = folder.claim(1, JOB | {"work": "train"} | this_process() | {"pid": 2**22})
    assert gone is not None and gone.is_running() is False
    assert not execute_for_search(Store(folder.root), folder.id, job_settings(), JOB, evaluations)
    assert folder.attempts() == [gone]
    mark_dead(gone)
    assert execute_for_search(Store(folder.root), folder.id, job_settings(), JOB, evaluations)
    assert [attempt.number for attempt in folder.attempts()] == [1, 2] and folder.result() is not None


def test_a_gpu_that_was_asked_for_and_is_not_there_fails_the_run_at_once_and_blames_no_other(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    said = ends(tmp_path, runs, gpus=1)
    assert f"cluster.gpus=1 was asked for, and torch {torch.__version__} (built for CUDA None) sees 0" in said
    assert "no NVIDIA driver is loaded, CUDA_VISIBLE_DEVICES is not set" in said
    assert said.split(": ", 1)[1] in (error_of(runs[0].attempts()[0]) or "")
    assert runs[1].attempts() == []


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError("Unable to allocate 2.00 GiB"),
    ],
    ids=lambda fault: str(fault).split(".")[0],
)
def test_memory_that_is_used_up_or_a_gpu_in_error_fails_one_run_and_ends_the_process(
    tmp_path: Path, fault: Exception
) -> None:
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    assert str(fault) in ends(tmp_path, runs, raises=fault)
    [attempt] = runs[0].attempts()
    assert str(fault) in (error_of(attempt) or "") and not (error_of(attempt) or "").startswith(INTERRUPTED)
    assert runs[1].attempts() == []
    assert execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB) == {
        runs[0].id: "failed",
        runs[1].id: "done",
    }
    assert execute(Store(tmp_path), [runs[0].id], job_settings(), JOB | {"batch": "the next"}) == {runs[0].id: "done"}


def test_a_store_that_cannot_be_written_ends_the_process_and_blames_no_run(tmp_path: Path) -> None:
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    full = StoreError("checkpoint.2.pt cannot be written: No space left on device")
    assert str(full) in ends(tmp_path, runs, raises=full)
    assert (error_of(runs[0].attempts()[0]) or "").startswith(INTERRUPTED) and runs[1].attempts() == []
    assert execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB) == {run.id: "done" for run in runs}


def write(state: object) -> None:
    with open("/dev/full", "w") as file:  # a device that is always full
        file.write("x")


def write_amid_something_else(state: object) -> None:
    try:
        write(state)
    except OSError as error:
        raise RuntimeError("no record can be opened") from error


def write_with_torch(state: object) -> None:
    raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed")


def write_with_safetensors(state: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def reach_a_quota(state: object) -> None:
    raise OSError(errno.EDQUOT, "more is needed than is free")


def write_where_one_may_only_read(state: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


WRITERS = [
    *(write, write_amid_something_else, write_with_torch, write_with_safetensors),
    *(reach_a_quota, write_where_one_may_only_read),
]


@pytest.mark.parametrize("fails", WRITERS, ids=lambda one: one.__name__)
def test_a_disk_that_takes_no_more_ends_the_process_and_blames_no_run_whoever_wrote_to_it(
    tmp_path: Path, fails: Callable[[object], None]
) -> None:
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    with pytest.raises(SystemExit, match="this process ends: "):
        execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB, fails)
    assert (error_of(runs[0].attempts()[0]) or "").startswith(INTERRUPTED) and runs[0].tries() == 0
    assert runs[1].attempts() == []
    assert execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB) == {run.id: "done" for run in runs}


def test_memory_that_the_cpu_does_not_have_ends_the_process_too(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    with pytest.raises(SystemExit, match="can't allocate memory"):
        execute(Store(tmp_path), [folder.id], job_settings(), JOB, lambda state: torch.empty(2**50))
    assert "can't allocate memory" in (error_of(folder.attempts()[0]) or "")


def test_another_error_of_torch_is_the_runs_alone(tmp_path: Path) -> None:
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]

    def fail(state) -> None:  # type: ignore[no-untyped-def]
        if len(runs[1].attempts()) == 0:
            torch.zeros(2) + torch.zeros(3)

    assert execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB, fail) == {
        runs[0].id: "failed",
        runs[1].id: "done",
    }


def test_a_run_that_another_attempt_published_meanwhile_has_not_failed(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)

    def overtaken(state) -> None:  # type: ignore[no-untyped-def]
        other = folder.claim(folder.next_number, JOB | this_process())
        assert other is not None
        folder.publish(other, {"attempt": other.number, "metrics": {}})
        raise StoreError("its checkpoint cannot be written: the other removed the folder")

    assert execute(Store(tmp_path), [folder.id], job_settings(), JOB, overtaken) == {folder.id: "done"}
    assert error_of(folder.attempts()[0]) is None


def test_a_run_that_nobody_wants_any_more_is_not_begun(tmp_path: Path) -> None:
    runs = [frozen_run(tmp_path, f"seed={seed}") for seed in (1, 2)]
    wanted = iter([True, False])
    outcome = execute(Store(tmp_path), [run.id for run in runs], job_settings(), JOB, wanted=lambda: next(wanted))
    assert outcome == {runs[0].id: "done", runs[1].id: "open"} and runs[1].attempts() == []


def test_the_recorded_threads_are_those_it_was_trained_with(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "threads=2")
    execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    assert done(folder)["threads"] == 2


def test_training_draws_from_no_stream_that_a_checkpoint_does_not_hold(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "prompt.dropout=0.2", "backbone.mode=train")
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002  # that nobody uses it is the claim
    execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002


def test_accumulated_micro_batches_give_the_update_of_the_whole_batch(tmp_path: Path) -> None:
    whole = frozen_run(tmp_path, "optim.steps=1")
    parts = frozen_run(tmp_path, "optim.steps=1", "optim.micro_batch=2")
    execute(Store(tmp_path), [whole.id, parts.id], job_settings(), JOB)
    a, b = load_file(whole.weights_file), load_file(parts.weights_file)
    # AdamW's first step has the size of lr in every coordinate, so only directions can differ: where gradients are near 0.
    assert sum(torch.isclose(a[n], b[n], atol=1e-3).sum().item() for n in a) > 0.99 * sum(t.numel() for t in a.values())


def test_only_the_prompts_train(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path)
    execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    names = set(load_file(folder.weights_file))
    assert names == {"prompts.encoder.table", "prompts.decoder.table"}
    assert done(folder)["trainable_parameters"] == 4 * 2 * 96 * (3 + 2)


def test_a_prompt_of_length_0_is_the_backbone_evaluated_without_training(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "prompt.length=0")
    assert execute(Store(tmp_path), [folder.id], job_settings("offline"), JOB) == {folder.id: "done"}
    assert done(folder)["steps"] == 0 and done(folder)["trainable_parameters"] == 0


def test_a_live_backbone_saves_its_batchnorm_statistics_beside_the_prompts(tmp_path: Path) -> None:
    folder = frozen_run(tmp_path, "backbone.mode=train")
    execute(Store(tmp_path), [folder.id], job_settings(), JOB)
    assert any("running_mean" in name for name in load_file(folder.weights_file))


def test_the_learning_rate_warms_up_and_ends_just_above_zero() -> None:
    optim = settings("optim.steps=100", "optim.warmup_ratio=0.1", "optim.lr=1.0")[0].optim
    rates = [learning_rate(optim, update) for update in range(1, 101)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(1.0) and rates[99] == pytest.approx(1 / 90)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_every_epoch_of_the_data_stream_is_another_permutation() -> None:
    stream = [data_order(1, 10, first, 4) for first in range(0, 40, 4)]
    epochs = np.concatenate(stream).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
