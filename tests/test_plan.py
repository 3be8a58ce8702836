"""`plan`, and what it says of costs: as finished runs tell, and nothing where none does."""

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

from mmprompt.runs.config import ConfigError, RunConfig
from mmprompt.runs.deployment import ROOT, Cluster
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import RunFolder, Store
from mmprompt.studies.power import detectable
from sweeps.grid.manifest import ExpandedSweep, expand, manifest
from sweeps.planning.cost import LOOKED_INTO, Cost, cost
from sweeps.planning.precision import precision
from sweeps.states.state import Queue, states
from sweeps.verbs.plan import plan
from sweeps.wording import volume

FACTS = {"attempt": 1, "metrics": {}, "device": "cpu: a core", "seconds": 50.0, "trainable_parameters": 1000}
TASKS = ("micro_vqa,micro_caption", "micro_vqa,micro_caption,micro_grounding,micro_entailment")
LENGTH = ["task=micro_vqa", "prompt.length=10", "cluster=local", "seed=1,2,3", "optim.steps=100"]


@pytest.fixture(scope="module")
def expanded() -> ExpandedSweep:
    """Three runs of one kind."""
    return expand("length", LENGTH, ROOT / "conf")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("MMPROMPT_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("MMPROMPT_FAKE_GPUS", raising=False)
    umask = os.umask(0o022)
    yield Store(tmp_path / "runs")
    os.umask(umask)  # whoever looks at a store follows its permissions


def finish(folder: RunFolder, config: RunConfig, **facts: Any) -> None:
    """Published at the moment at which its training ended that began with its attempt."""
    folder.create(config)
    attempt = folder.claim(1, this_process() | {"batch": "1", "scheduler": "local"})
    assert attempt is not None
    evaluations = {split: evaluation_id(folder.id, {"split": split}) for split in ("val", "test")}
    result = FACTS | {"evaluations": evaluations} | facts
    folder.publish(attempt, result)
    began = (attempt.path / "job.json").stat().st_mtime
    os.utime(folder.result_file, (began + result["seconds"], began + result["seconds"]))


def cost_of(store: Store, expanded: ExpandedSweep, **settings: Any) -> Cost:
    seen = states(store, list(expanded.configs), Queue({}), expanded.evaluations)
    to_do = [run for run, state in seen.items() if state.name != "done"]
    cluster: Cluster = expanded.deployment.cluster.model_copy(update=settings)
    return cost(store, expanded.configs, expanded.evaluations, seen, to_do, cluster)


def finish_first(store: Store, expanded: ExpandedSweep, **facts: Any) -> None:
    run, config = next(iter(expanded.configs.items()))
    finish(store.run(run), config, **facts)


def test_a_prompt_of_length_0_tells_nothing_of_what_training_takes(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expand("length", [*LENGTH, "prompt.length=0"], ROOT / "conf"), seconds=0.0)
    assert cost_of(store, expanded).finished == 0
    more = expand("length", [*LENGTH, "prompt.length=0", "optim.batch_size=64"], ROOT / "conf")
    assert cost_of(store, more).finished == 1 and set(cost_of(store, more).seconds.values()) == {0.0}


def test_a_run_takes_what_finished_ones_took_per_step(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)  # 50 s for 100 steps
    longer = expand("length", [*LENGTH, "optim.steps=300"], ROOT / "conf")
    told = cost_of(store, longer, cpus=4)
    assert list(told.seconds.values()) == [150.0] * 3
    assert told.hours == 4 * 3 * 150 / 3600
    assert str(told) == "about 0.5 CPU-core-hours, as 1 finished run of their kind took"


def test_what_a_run_takes_besides_its_steps_does_not_grow_with_them(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)
    folder = store.run(next(iter(expanded.configs)))
    ended = folder.result_file.stat().st_mtime + 7.0  # loading before, scoring after
    os.utime(folder.result_file, (ended, ended))
    longer = expand("length", [*LENGTH, "optim.steps=300"], ROOT / "conf")
    assert list(cost_of(store, longer).seconds.values()) == pytest.approx([157.0] * 3, abs=0.1)


@pytest.mark.parametrize("other", ["task=micro_caption", "model=ofa_tiny"])
def test_runs_of_another_kind_tell_nothing(store: Store, expanded: ExpandedSweep, other: str, tmp_path: Path) -> None:
    (tmp_path / "backbone").write_bytes(b"")
    overrides = [*LENGTH, other, f"paths.backbone={tmp_path / 'backbone'}"]
    for run, config in expand("length", overrides, ROOT / "conf").configs.items():
        finish(store.run(run), config)
    told = cost_of(store, expanded)
    assert told.hours is None and told.wall([list(told.seconds)], 1) is None and told.disk(1) is None
    assert str(told) == "CPU-core-hours unknown, no run of their kind is finished; try `launch --limit 1`"


def test_a_kind_that_nothing_is_known_of_is_named_beside_what_is(store: Store, expanded: ExpandedSweep) -> None:
    finish_first(store, expanded)
    both = expand("length", [*LENGTH, "task=micro_vqa,micro_caption"], ROOT / "conf")
    told = cost_of(store, both)
    assert [seconds for seconds in told.seconds.values() if seconds is not None] == [50.0] * 2
    assert "; 3 more runs are of a kind that was never finished, unknown" in str(told)


def test_a_run_on_a_cpu_tells_nothing_of_one_on_a_gpu_except_where_gpus_are_fake(
    store: Store, expanded: ExpandedSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_first(store, expanded)
    assert str(cost_of(store, expanded, gpus=2)).startswith("GPU-hours unknown")
    monkeypatch.setenv("MMPROMPT_FAKE_GPUS", "1")
    assert cost_of(store, expanded, gpus=2).hours == 2 * 2 * 50 / 3600


def test_other_finished_runs_of_the_store_tell_and_those_of_the_sweep_tell_more(
    store: Store, expanded: ExpandedSweep
) -> None:
    for run, config in expand("length", [*LENGTH, "seed=4,5"], ROOT / "conf").configs.items():
        finish(store.run(run), config, seconds=80.0)
    assert list(cost_of(store, expanded).seconds.values()) == [80.0] * 3
    finish_first(store, expanded)
    assert list(cost_of(store, expanded).seconds.values()) == [50.0] * 2


def test_of_a_big_store_only_a_part_is_looked_into(store: Store, expanded: ExpandedSweep) -> None:
    for number in range(2 * LOOKED_INTO + 10):
        (store.run(f"{number:016x}").path).mkdir(parents=True)
    looked: set[str] = set()
    sys.addaudithook(lambda event, given: looked.add(str(given[0])) if event == "open" else None)
    assert cost_of(store, expanded).hours is None
    opened = [path for path in looked if path.startswith(str(store.root)) and path.endswith("result.json")]
    assert 0.9 * LOOKED_INTO < len(opened) < 1.1 * LOOKED_INTO


def test_the_disk_that_runs_need_is_what_finished_ones_hold_and_checkpoints_of_those_at_work(
    store: Store, expanded: ExpandedSweep
) -> None:
    finish_first(store, expanded)
    folder = store.run(next(iter(expanded.configs)))
    before = cost_of(store, expanded).disk(at_once=1)
    (folder.path / "attempts/1/weights.safetensors").write_bytes(bytes(5000))
    after, more = cost_of(store, expanded).disk(at_once=1), cost_of(store, expanded).disk(at_once=2)
    assert before is not None and after is not None and more is not None
    assert after[1] == before[1] + 2 and after[0] >= before[0] + 2 * 5000  # two are to do; a file each
    assert more[0] - after[0] == 3 * 4 * 4 * 1000  # three checkpoints of four states of 1000 float32


@given(st.lists(st.floats(0, 1e4), min_size=1), st.integers(1, 10))
def test_the_wall_time_lies_between_that_of_enough_machines_and_that_of_one(seconds: list[float], places: int) -> None:
    runs = {str(number): one for number, one in enumerate(seconds)}
    told = Cost(dict(runs), {}, 1, 1, "GPU-hours")
    wall = told.wall([[run] for run in runs], places)
    assert wall is not None
    assert max(max(seconds), sum(seconds) / places) * 0.999 <= wall <= sum(seconds) * 1.001


@pytest.mark.parametrize(("bytes", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (999_900, "1.0 MB")])
def test_volumes_are_said_in_the_unit_that_fits(bytes: float, text: str) -> None:
    assert volume(bytes) == text


def said(capsys: pytest.CaptureFixture[str], *overrides: str, limit: int | None = None) -> str:
    assert plan(["length"], [*LENGTH, *overrides], None, limit) == 0
    return capsys.readouterr().out


def test_a_plan_counts_by_state_and_by_value_and_leaves_no_trace(
    store: Store, expanded: ExpandedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    output = said(capsys)
    assert "3 runs: 3 to do" in output and "disk: what they need is unknown" in output
    assert not store.root.exists()
    finish_first(store, expanded)
    before = sorted(store.root.rglob("*"))
    output = said(capsys, "cluster.max_parallel=1")
    assert "3 runs: 1 done, 2 to do" in output and "seed: 1 (1/1 done), 2 (0/1 done), 3 (0/1 done)" in output
    assert "about 0.028 CPU-core-hours, as 1 finished run of their kind took; 2 min with 1 at once" in output
    assert sorted(store.root.rglob("*")) == before
    assert "1 more to do than --limit allows" in said(capsys, limit=1)


def test_a_disk_that_is_too_small_is_said(
    store: Store, expanded: ExpandedSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_first(store, expanded)
    assert "NOT ENOUGH" not in said(capsys)
    folder = store.run(next(iter(expanded.configs)))
    text = folder.result_file.read_text()
    folder.result_file.write_text(
        text.replace('"trainable_parameters": 1000', '"trainable_parameters": 1000000000000000')
    )
    assert "free: NOT ENOUGH" in said(capsys)


# Counts what takes time: the files of conf/ that are read, what Hydra composes, and the interpolations that are resolved.
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
    """What `python -m sweeps plan` prints, and what it does for that, without torch."""
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


def test_a_thousand_runs_are_planned_with_the_work_of_two_and_without_torch(store: Store) -> None:
    """How long that takes, `make bench` says."""
    few, work = command("cluster=local", "prompt.length=10", "seed=1")
    assert "2 runs: 2 to do" in few and 0 < work["compose"] <= work["files"] and work["_resolved"] > 0
    for budgets in ((), (BUDGETS,)):
        output, more = command(*A_THOUSAND, *budgets)
        assert "1000 runs: 1000 to do" in output
        assert more == work, budgets


def slurm(folder: Path, answers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Programs that answer as SLURM's would."""
    for program, lines in answers.items():
        (folder / program).write_text("#!/bin/sh\n" + "\n".join(f"echo '{line}'" for line in lines))
        (folder / program).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_on_slurm_it_says_arrays_settings_and_what_of_the_environment_is_not_used(store: Store, tmp_path: Path) -> None:
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


def asked(*overrides: str) -> ExpandedSweep:
    return expand("length", [*LENGTH, *overrides], ROOT / "conf")


def test_axes_of_attacks_and_of_evaluations_make_more_points_of_the_same_runs(expanded: ExpandedSweep) -> None:
    both = asked("attack.epsilon=0,0.1,0.2", "evaluation.beam=null,5")
    assert list(both.configs) == list(expanded.configs) and len(both.points) == 3 * 3 * 2
    assert {len(wanted) for wanted in both.evaluations.values()} == {3 * 2 * 2}  # two splits
    clean = next(iter(expanded.evaluations.values()))
    assert clean.keys() < next(iter(both.evaluations.values())).keys()  # epsilon 0 is the evaluation that there was
    assert both.labels == expanded.labels  # a run is not called by what it is asked


def test_what_means_the_same_is_one_evaluation(expanded: ExpandedSweep) -> None:
    for overrides in (["attack.kind=pgd"], ["attack.epsilon=0.0"], ["attack.steps=3"], ["attack.input=pixels"]):
        assert asked(*overrides).evaluations == expanded.evaluations
    assert asked("attack.epsilon=1").evaluations == asked("attack.epsilon=1.0", "attack.steps=7").evaluations
    pgd = ["attack.epsilon=1", "attack.kind=pgd"]
    assert asked(*pgd).evaluations != asked(*pgd, "attack.steps=7").evaluations
    caption = ["task=micro_caption"]
    assert asked(*caption, "evaluation.beam=1").evaluations == asked(*caption).evaluations  # as the task decodes


def test_the_manifest_says_what_all_evaluations_have_in_common_that_is_not_as_by_default() -> None:
    def header(*overrides: str) -> dict[str, Any]:
        made = manifest(asked(*overrides), {})["header"]
        return {key: value for key, value in made.items() if key.startswith(("attack.", "evaluation."))}

    assert header() == {}
    assert header("attack.epsilon=0,0.1") == {"attack.kind": "fgsm", "attack.input": "embeddings"}
    assert header("attack.epsilon=0.1", "evaluation.beam=2")["attack.epsilon"] == 0.1
    assert header("attack.epsilon=0.1", "evaluation.beam=2")["evaluation.beam"] == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.splits=[vall]", "evaluation.splits=vall is not a split of the task; did you mean val?"),
        ("attack.epsilon=-1", "attack.epsilon=-1"),
        ("attack.kind=fsgm", "attack.kind='fsgm' is not allowed; choose one of 'fgsm' or 'pgd'"),
        ("attack.epsilons=1", "there is no key attack.epsilons; did you mean attack.epsilon"),
    ],
)
def test_an_evaluation_that_cannot_be_meant_gets_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        asked(override)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_evaluations_cost_what_those_of_their_kind_took_and_nothing_is_guessed(
    store: Store, expanded: ExpandedSweep
) -> None:
    finish_first(store, expanded)
    run = next(iter(expanded.configs))
    more = asked("seed=1", "attack.epsilon=0,0.1,0.2", "evaluation.splits=[test]")
    assert more.evaluations.keys() == {run}
    assert str(cost_of(store, more)) == (
        "CPU-core-hours unknown, no finished run of their kind was asked the same; try `launch --limit 1`"
    )
    attack = {"split": "test", "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.7}}
    content = {"settings": attack, "seconds": 4.0, "attempt": 2, "metrics": {}, "wandb": None}
    store.run(run).evaluations.mkdir()
    (store.run(run).evaluations / "another.json").write_text(json.dumps(content))
    told = cost_of(store, more)
    assert list(told.seconds.values()) == pytest.approx(
        [8.0], abs=0.1
    )  # two, whatever their budget; nothing is trained
    disk = told.disk(1)
    assert disk is not None and disk[0] < 1e5


def test_a_plan_says_which_differences_its_seeds_can_show(store: Store) -> None:
    one = expand("length", ["task=micro_vqa", "seed=1,2,3", "cluster=local"], ROOT / "conf")
    noise = np.random.default_rng(0)
    scores: dict[str, list[float]] = {}
    for run, point in one.points:
        seen = states(store, list(one.configs), Queue({}), one.evaluations)
        if not scores:
            [said] = precision(one, seen)  # nothing is done: how large a standard deviation is, is not known
            assert said == (
                "to be told apart with power 0.8 a difference must be 3.1 standard deviations over seeds, with 3 seeds; with 5, 2.3"
            )
        score = float(noise.normal(60, 2))
        scores.setdefault(str(point.values["prompt.length"]), []).append(score)
        finish(store.run(run), one.configs[run], metrics={"val/vqa_accuracy": 1.0, "test/vqa_accuracy": score})
    sd = np.sqrt(np.mean([np.var(of, ddof=1) for of in scores.values()]))
    _, said = precision(one, states(store, list(one.configs), Queue({}), one.evaluations))
    assert said == f"that is {detectable(3, 5) * sd:.1f} points on micro_vqa, by the runs that are done"


def test_more_columns_need_larger_differences_and_one_seed_or_one_row_shows_none(store: Store) -> None:
    def said(name: str, *overrides: str) -> list[str]:
        one = expand(name, [*overrides, "cluster=local"], ROOT / "conf")
        return list(precision(one, states(store, list(one.configs), Queue({}), one.evaluations)))

    two, four = (float(said("depth", f"task={tasks}")[0].split("must be ")[1].split()[0]) for tasks in TASKS)
    assert four > two > detectable(3, 2)
    assert said("length", "seed=11")[0].startswith("1 seed tells no two rows apart")
    assert said("length", "prompt.length=64") == [] == said("learning_rate", "task=micro_vqa")


def test_a_manifest_says_which_seeds_chose_its_rates() -> None:
    def seeds(*overrides: str) -> list[int]:
        found: list[int] = manifest(expand("length", overrides, ROOT / "conf"), {})["tuned_seeds"]
        return found

    assert seeds() == [1, 2, 3]
    assert seeds("optim.lr=0.1") == []  # no tuned rate is used
    assert seeds("model=ofa_tiny", "paths.backbone=mmprompt/backbones/micro.safetensors") == []  # none was tuned here
