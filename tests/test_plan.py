"""Plans of launches: costs, estimated from finished runs only, evaluations, and the differences that seeds can show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.deployment import Cluster
from mmprompt.settings.parsing import ConfigError
from mmprompt.studies.power import detectable
from sweeps.grid.manifest import ExpandedSweep, expand, manifest
from sweeps.planning.cost import SAMPLED, Cost, cost
from sweeps.planning.precision import precision
from sweeps.states.state import Queue, states
from sweeps.verbs.plan import plan
from sweeps.wording import volume

FACTS = {"attempt": 1, "metrics": {}, "device": "cpu: a core", "seconds": 50.0, "trainable_parameters": 1000}
TASKS = ("micro_vqa,micro_caption", "micro_vqa,micro_caption,micro_grounding,micro_entailment")
LENGTH = ["task=micro_vqa", "prompt.length=10", "cluster=local", "seed=1,2,3", "optim.steps=100"]


@pytest.fixture(scope="module")
def expanded() -> ExpandedSweep:
    """A sweep of three runs of one kind."""
    return expand("length", LENGTH, ROOT / "conf")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("MMPROMPT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MMPROMPT_FAKE_GPUS", raising=False)
    umask = os.umask(0o022)
    yield Store(tmp_path / "runs")
    os.umask(umask)  # reading a store sets the umask to the store's permissions


def finish(folder: RunFolder, config: RunConfig, **facts: Any) -> None:
    """Publishes a run whose attempt began with its training, and whose result was published when its training ended."""
    folder.create(config)
    attempt = folder.claim(1, this_process() | {"batch": "1", "scheduler": "local"})
    assert attempt is not None
    evaluations = {split: evaluation_id(folder.id, {"split": split}) for split in ("val", "test")}
    result = FACTS | {"evaluations": evaluations} | facts
    folder.publish(attempt, result)
    began = (attempt.path / "job.json").stat().st_mtime
    os.utime(folder.result_file, (began + result["seconds"], began + result["seconds"]))


def cost_of(store: Store, expanded: ExpandedSweep, **settings: Any) -> Cost:
    by_run = states(store, list(expanded.configs), Queue({}), expanded.evaluations)
    to_do = [run for run, state in by_run.items() if state.name != "done"]
    cluster: Cluster = expanded.deployment.cluster.model_copy(update=settings)
    return cost(store, expanded.configs, expanded.evaluations, by_run, to_do, cluster)


def finish_first(store: Store, expanded: ExpandedSweep, **facts: Any) -> None:
    run, config = next(iter(expanded.configs.items()))
    finish(store.run(run), config, **facts)


def test_a_prompt_of_length_0_gives_no_estimate_for_training_other_prompts(
    store: Store, expanded: ExpandedSweep
) -> None:
    finish_first(store, expand("length", [*LENGTH, "prompt.length=0"], ROOT / "conf"), seconds=0.0)
    assert cost_of(store, expanded).finished == 0
    untrained = expand("length", [*LENGTH, "prompt.length=0", "optim.batch_size=64"], ROOT / "conf")
    assert cost_of(store, untrained).finished == 1 and set(cost_of(store, untrained).seconds.values()) == {0.0}


def test_a_run_takes_as_long_per_step_as_finished_runs_took(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)  # 50 s for 100 steps
    longer = expand("length", [*LENGTH, "optim.steps=300"], ROOT / "conf")
    estimate = cost_of(store, longer, cpus=4)
    assert list(estimate.seconds.values()) == [150.0] * 3
    assert estimate.hours == 4 * 3 * 150 / 3600
    assert str(estimate) == "about 0.5 CPU-core-hours, as 1 finished run of their kind took"


def test_the_time_before_and_after_training_does_not_grow_with_the_steps(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)
    folder = store.run(next(iter(expanded.configs)))
    ended = folder.result_file.stat().st_mtime + 7.0  # loading before, scoring after
    os.utime(folder.result_file, (ended, ended))
    longer = expand("length", [*LENGTH, "optim.steps=300"], ROOT / "conf")
    assert list(cost_of(store, longer).seconds.values()) == pytest.approx([157.0] * 3, abs=0.1)


@pytest.mark.parametrize("other", ["task=micro_caption", "model=ofa_tiny"])
def test_runs_of_another_kind_give_no_estimate(
    store: Store, expanded: ExpandedSweep, other: str, tmp_path: Path
) -> None:
    (tmp_path / "backbone").write_bytes(b"")
    overrides = [*LENGTH, other, f"paths.backbone={tmp_path / 'backbone'}"]
    for run, config in expand("length", overrides, ROOT / "conf").configs.items():
        finish(store.run(run), config)
    estimate = cost_of(store, expanded)
    assert estimate.hours is None and estimate.wall([list(estimate.seconds)], 1) is None and estimate.disk(1) is None
    assert str(estimate) == "CPU-core-hours unknown, no run of their kind is finished; try `launch --limit 1`"


def test_runs_without_an_estimate_are_counted_beside_the_estimate(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)
    both = expand("length", [*LENGTH, "task=micro_vqa,micro_caption"], ROOT / "conf")
    estimate = cost_of(store, both)
    assert [seconds for seconds in estimate.seconds.values() if seconds is not None] == [50.0] * 2
    assert "; 3 more runs unknown, no run of their kind is finished" in str(estimate)


def test_a_run_on_a_cpu_gives_no_estimate_for_a_gpu_except_where_gpus_are_fake(
    store: Store, expanded: ExpandedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_first(store, expanded)
    assert str(cost_of(store, expanded, gpus=2)).startswith("GPU-hours unknown")
    monkeypatch.setenv("MMPROMPT_FAKE_GPUS", "1")
    assert cost_of(store, expanded, gpus=2).hours == 2 * 2 * 50 / 3600


def test_finished_runs_of_the_sweep_are_preferred_to_other_runs_of_the_store(
    store: Store, expanded: ExpandedSweep
) -> None:
    for run, config in expand("length", [*LENGTH, "seed=4,5"], ROOT / "conf").configs.items():
        finish(store.run(run), config, seconds=80.0)
    assert list(cost_of(store, expanded).seconds.values()) == [80.0] * 3
    finish_first(store, expanded)
    assert list(cost_of(store, expanded).seconds.values()) == [50.0] * 2


def test_only_a_sample_of_a_large_store_is_read(store: Store, expanded: ExpandedSweep) -> None:
    for number in range(2 * SAMPLED + 10):
        (store.run(f"{number:016x}").path).mkdir(parents=True)
    files: set[str] = set()
    sys.addaudithook(lambda event, arguments: files.add(str(arguments[0])) if event == "open" else None)
    assert cost_of(store, expanded).hours is None
    opened = [path for path in files if path.startswith(str(store.root)) and path.endswith("result.json")]
    assert 0.9 * SAMPLED < len(opened) < 1.1 * SAMPLED


def test_the_disk_space_needed_is_that_of_finished_runs_and_of_running_runs_checkpoints(
    store: Store, expanded: ExpandedSweep
) -> None:
    finish_first(store, expanded)
    folder = store.run(next(iter(expanded.configs)))
    before = cost_of(store, expanded).disk(at_once=1)
    (folder.path / "attempts/1/weights.safetensors").write_bytes(bytes(5000))
    after, two_at_once = cost_of(store, expanded).disk(at_once=1), cost_of(store, expanded).disk(at_once=2)
    assert before is not None and after is not None and two_at_once is not None
    assert after[1] == before[1] + 2 and after[0] >= before[0] + 2 * 5000  # two runs to do, each with one more file
    assert two_at_once[0] - after[0] == 3 * 4 * 4 * 1000  # three checkpoints of four states of 1000 float32


@given(st.lists(st.floats(0, 1e4), min_size=1), st.integers(1, 10))
def test_the_wall_time_lies_between_the_ideal_share_and_one_machines_time(seconds: list[float], at_once: int) -> None:
    runs = {str(number): takes for number, takes in enumerate(seconds)}
    estimate = Cost(dict(runs), {}, 1, 1, "GPU-hours")
    wall = estimate.wall([[run] for run in runs], at_once)
    assert wall is not None
    assert max(max(seconds), sum(seconds) / at_once) * 0.999 <= wall <= sum(seconds) * 1.001


@pytest.mark.parametrize(("bytes", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (999_900, "1.0 MB")])
def test_a_volume_is_written_in_the_largest_fitting_unit(bytes: float, text: str) -> None:
    assert volume(bytes) == text


def printed(capsys: pytest.CaptureFixture[str], *overrides: str, limit: int | None = None) -> str:
    assert plan(["length"], [*LENGTH, *overrides], None, limit, json=False) == 0
    return capsys.readouterr().out


def test_a_plan_counts_by_state_and_by_value_and_leaves_no_trace(
    store: Store, expanded: ExpandedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    output = printed(capsys)
    assert "3 runs: 3 to do" in output and "disk: what they need is unknown" in output
    assert not store.root.exists()
    finish_first(store, expanded)
    before = sorted(store.root.rglob("*"))
    output = printed(capsys, "cluster.max_parallel=1")
    assert "3 runs: 1 done, 2 to do" in output and "seed: 1 (1/1 done), 2 (0/1 done), 3 (0/1 done)" in output
    assert "about 0.028 CPU-core-hours, as 1 finished run of their kind took; 2 min with 1 at once" in output
    assert sorted(store.root.rglob("*")) == before
    assert "1 more to do than --limit allows" in printed(capsys, limit=1)


def test_a_plan_warns_of_a_disk_that_is_too_small(
    store: Store, expanded: ExpandedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_first(store, expanded)
    assert "NOT ENOUGH" not in printed(capsys)
    folder = store.run(next(iter(expanded.configs)))
    text = folder.result_file.read_text()
    folder.result_file.write_text(
        text.replace('"trainable_parameters": 1000', '"trainable_parameters": 1000000000000000')
    )
    assert "free: NOT ENOUGH" in printed(capsys)


# Counts the operations that take time: files of conf/ that are read, compositions by Hydra, and interpolations resolved.
COUNTED = """
import json, os, sys
from collections import Counter
work = Counter()
sys.addaudithook(lambda event, given: event == "open" and str(given[0]).endswith(".yaml") and work.update(["files"]))
from omegaconf import OmegaConf
from sweeps.grid import compose
def count(module, name):
    does = getattr(module, name)
    setattr(module, name, lambda *given, **more: work.update([name]) or does(*given, **more))
count(compose, "compose")
count(compose, "_resolved")
from sweeps.__main__ import main
code = main(sys.argv[1:])
print(json.dumps(work), file=sys.stderr)
sys.exit("torch" in sys.modules or code)
"""


def command(*arguments: str, **environment: str) -> tuple[str, dict[str, int]]:
    """Returns the output of `python -m sweeps plan` and the counts of its operations; fails if it imports torch."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, "plan", "length", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


A_THOUSAND = ("cluster=local", "prompt.length=range(1,11)", "seed=range(1,51)")
BUDGETS = "attack.epsilon=0,0.1,0.2,0.3,0.4"


@pytest.mark.long
def test_a_thousand_runs_are_planned_with_the_work_of_two_and_without_torch(store: Store) -> None:
    """`make bench` measures how long it takes."""
    few, work = command("cluster=local", "prompt.length=10", "seed=1")
    assert "2 runs: 2 to do" in few and 0 < work["compose"] <= work["files"] and work["_resolved"] > 0
    for budgets in ((), (BUDGETS,)):
        output, work_for_all = command(*A_THOUSAND, *budgets)
        assert "1000 runs: 1000 to do" in output
        assert work_for_all == work, budgets


def slurm(folder: Path, answers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Writes programs that answer as SLURM's do, and returns the environment that finds them."""
    for program, lines in answers.items():
        (folder / program).write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines))
        (folder / program).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_on_slurm_a_plan_shows_arrays_settings_and_unused_environment_variables(store: Store, tmp_path: Path) -> None:
    answers = {"sinfo": ["main"], "squeue": [], "scontrol": ["ClusterName = lab", "MaxArraySize            = 5"]}
    settings = ["task=micro_vqa", "seed=range(1,4)", "cluster=slurm", "cluster.runs_per_job=1", "cluster.partition=gpu"]
    setup = ["cluster.setup=['module load cuda']", "cluster.sbatch={mail-user: me@there}"]
    environment = slurm(tmp_path, answers) | {"SBATCH_PARTITION": "debug"}
    output, _ = command(*settings, *setup, **environment)
    assert (
        "18 runs in 18 SLURM jobs of up to 1 (cluster.kind=slurm)\n  4 arrays of up to 5 jobs (MaxArraySize)\n"
        in output
    )
    assert (
        "sbatch: partition=gpu gpus=0 cpus=1 mem_gb=2.0 time_min=60 sbatch.mail-user=me@there; not set: account"
        in output
    )
    assert "  setup: module load cuda\n  not used: SBATCH_PARTITION of your environment" in output
    output, _ = command(*settings, "cluster.max_parallel=2", **environment)
    assert "4 arrays of up to 5 jobs (MaxArraySize), one after another, 2 jobs at once" in output
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    output, _ = command(*settings, **environment)
    assert "  1 array\n" in output


# Axes of evaluations


def with_overrides(*overrides: str) -> ExpandedSweep:
    return expand("length", [*LENGTH, *overrides], ROOT / "conf")


def test_axes_of_attacks_and_of_evaluations_make_more_points_of_the_same_runs(expanded: ExpandedSweep) -> None:
    attacked = with_overrides("attack.epsilon=0,0.1,0.2", "evaluation.beam=null,5")
    assert list(attacked.configs) == list(expanded.configs) and len(attacked.points) == 3 * 3 * 2
    assert {len(settings) for settings in attacked.evaluations.values()} == {3 * 2 * 2}  # two splits
    default = next(iter(expanded.evaluations.values()))
    assert default.keys() < next(iter(attacked.evaluations.values())).keys()  # epsilon 0 is the default evaluation
    assert attacked.labels == expanded.labels  # evaluations are not part of a run's label


def test_settings_that_mean_the_same_are_one_evaluation(expanded: ExpandedSweep) -> None:
    for overrides in (["attack.kind=pgd"], ["attack.epsilon=0.0"], ["attack.steps=3"], ["attack.input=pixels"]):
        assert with_overrides(*overrides).evaluations == expanded.evaluations
    assert (
        with_overrides("attack.epsilon=1").evaluations
        == with_overrides("attack.epsilon=1.0", "attack.steps=7").evaluations
    )
    pgd = ["attack.epsilon=1", "attack.kind=pgd"]
    assert with_overrides(*pgd).evaluations != with_overrides(*pgd, "attack.steps=7").evaluations
    caption = ["task=micro_caption"]
    assert (
        with_overrides(*caption, "evaluation.beam=1").evaluations == with_overrides(*caption).evaluations
    )  # as the task decodes


def test_a_manifests_header_has_the_settings_beyond_the_defaults_that_all_evaluations_share() -> None:
    def header(*overrides: str) -> dict[str, Any]:
        made = manifest(with_overrides(*overrides), {})["header"]
        return {key: value for key, value in made.items() if key.startswith(("attack.", "evaluation."))}

    assert header() == {}
    assert header("attack.epsilon=0,0.1") == {"attack.kind": "fgsm", "attack.input": "embeddings"}
    assert header("attack.epsilon=0.1", "evaluation.beam=2")["attack.epsilon"] == 0.1
    assert header("attack.epsilon=0.1", "evaluation.beam=2")["evaluation.beam"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.splits=[vall]", "evaluation.splits=vall is not a split of the task; did you mean val?"),
        ("attack.epsilon=-1", "attack.epsilon=-1"),
        ("attack.kind=fsgm", "attack.kind='fsgm' is not allowed; choose one of 'fgsm' or 'pgd'"),
        ("attack.epsilons=1", "there is no key attack.epsilons; did you mean attack.epsilon"),
    ],
)
def test_an_evaluation_with_a_wrong_setting_is_refused_with_one_sentence(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        with_overrides(override)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_evaluations_are_estimated_only_from_evaluations_of_their_kind(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)
    run = next(iter(expanded.configs))
    attacked = with_overrides("seed=1", "attack.epsilon=0,0.1,0.2", "evaluation.splits=[test]")
    assert attacked.evaluations.keys() == {run}
    assert str(cost_of(store, attacked)) == (
        "CPU-core-hours unknown, no finished run of their kind made the same evaluations; try `launch --limit 1`"
    )
    attack = {"split": "test", "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.7}}
    content = {"settings": attack, "seconds": 4.0, "attempt": 2, "metrics": {}, "wandb": None}
    store.run(run).evaluations.mkdir()
    (store.run(run).evaluations / "another.json").write_text(json.dumps(content))
    estimate = cost_of(store, attacked)
    assert list(estimate.seconds.values()) == pytest.approx(
        [8.0], abs=0.1
    )  # two, whatever their budget; nothing is trained
    disk = estimate.disk(1)
    assert disk is not None and disk[0] < 1e5


def test_a_plan_shows_the_smallest_difference_that_its_seeds_can_detect(store: Store) -> None:
    expanded = expand("length", ["task=micro_vqa", "seed=1,2,3", "cluster=local"], ROOT / "conf")
    noise = np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for run, point in expanded.points:
        by_run = states(store, list(expanded.configs), Queue({}), expanded.evaluations)
        if not scores:
            [line] = precision(expanded, by_run)  # no run is done, so the standard deviation is unknown
            assert line == (
                "to be significant with power 0.8, a difference must be 3.1 standard deviations over seeds, with 3 seeds; "
                "with 5, 2.3"
            )
        score = float(noise.normal(60, 2))
        scores.setdefault(str(point.values["prompt.length"]), []).append(score)
        finish(store.run(run), expanded.configs[run], metrics={"val/vqa_accuracy": 1.0, "test/vqa_accuracy": score})
    sd = np.sqrt(np.mean([np.var(values, ddof=1) for values in scores.values()]))
    _, line = precision(expanded, states(store, list(expanded.configs), Queue({}), expanded.evaluations))
    assert line == f"that is {detectable(3, 5) * sd:.1f} points on micro_vqa, by the runs that are done"


def test_more_columns_need_larger_differences_and_one_seed_or_one_row_detects_none(store: Store) -> None:
    def lines(name: str, *overrides: str) -> list[str]:
        expanded = expand(name, [*overrides, "cluster=local"], ROOT / "conf")
        return list(precision(expanded, states(store, list(expanded.configs), Queue({}), expanded.evaluations)))

    two, four = (float(lines("depth", f"task={tasks}")[0].split("must be ")[1].split()[0]) for tasks in TASKS)
    assert four > two > detectable(3, 2)
    assert lines("length", "seed=11")[0].startswith("1 seed tells no two rows apart")
    assert lines("length", "prompt.length=64") == [] == lines("learning_rate", "task=micro_vqa")


def test_a_manifest_lists_the_seeds_that_chose_its_learning_rates() -> None:
    def seeds(*overrides: str) -> list[int]:
        tuned: list[int] = manifest(expand("length", overrides, ROOT / "conf"), {})["tuned_seeds"]
        return tuned

    assert seeds() == [1, 2, 3]
    assert seeds("optim.lr=0.1") == []  # no tuned learning rate is used
    assert seeds("model=ofa_tiny", "paths.backbone=mmprompt/backbones/micro.safetensors") == []  # none was tuned here
