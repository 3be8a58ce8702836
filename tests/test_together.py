"""Several sweeps as one launch: shared runs are executed once, and the time left is that of all sweeps."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping

import pytest
from launcher import Launcher
from test_plan import finish, store

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import ConfigError
from sweeps.display.pace import ExpectedTime, Pace
from sweeps.grid.manifest import Launch, join, write
from sweeps.jobs.batch import batches, freeze_batch
from sweeps.planning.launch_plan import LaunchPlan, plan_for
from sweeps.states.state import Queue, State, states
from sweeps.verbs.cancel import runs_named
from sweeps.verbs.status import status

__all__ = ["store"]  # the fixture
ABOUT = {"commit": "aaaa", "dirty": False, "slurm_cluster": None}
ATTACK = {"split": "test", "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.7}}


def joined(*words: str) -> Launch:
    overrides = [word for word in words if "=" in word]
    fixed = ["task=micro_grounding", "cluster=local", "seed=1"]
    return join([word for word in words if "=" not in word], [*fixed, *overrides], ROOT / "conf")


@pytest.mark.long
def test_runs_that_sweeps_share_are_one_launch_s_and_each_has_its_manifest(launcher: Launcher) -> None:
    words = ("robustness", "pixels", "method=prompt", "seed=1", "optim.steps=2")
    _, planned = launcher.run("plan", *words)  # and length, which the launcher always names
    assert "as one launch\n  2 runs: 2 to do" in planned and "length: Longer prompts" in planned
    assert "attack.epsilon: 0.0 (0/1 done), 0.005 (0/1 done)" in planned and not launcher.store.root.exists()
    code, output = launcher.run("launch", *words)
    assert code == 0 and "length, robustness, pixels: 2 runs: 2 to do" in output, output
    assert "all 2 runs are done" in output
    assert re.search(r"\[\d/2\] done   length: task=micro_grounding", output)
    assert re.search(r"\[\d/2\] done   pixels: task.data.pixels=texture", output)
    [batch] = batches(launcher.store)
    manifests = {name: json.loads(launcher.store.manifest(name).read_text()) for name in ("length", *words[:2])}
    points = {name: manifest["points"] for name, manifest in manifests.items()}
    assert [len(points[name]) for name in ("length", "robustness", "pixels")] == [1, 6, 2]
    assert {name: {point["run"] for point in some} for name, some in points.items()} == {
        name: set(batch.runs_of(name)) for name in points
    }
    [shared] = batch.runs_of("length")
    assert batch.runs_of("robustness") == [shared] and shared in batch.runs_of("pixels")
    folder = launcher.store.run(shared)
    assert len(folder.attempts()) == 1
    wanted = {
        one
        for some in points.values()
        for point in some
        if point["run"] == shared
        for one in point["evaluations"].values()
    }
    assert len(wanted) == 8 and folder.is_done(wanted)  # val, test, and of 1000 examples six budgets
    code, output = launcher.run("launch", *words)
    assert code == 0 and "all 2 runs are done already" in output and batches(launcher.store) == [batch]


def test_sweeps_of_one_launch_must_exist_and_share_one_deployment(launcher: Launcher) -> None:
    code, output = launcher.run("launch", "lenght")
    assert code == 2 and "there is no sweep lenght; did you mean length" in output
    code, output = launcher.run("launch", "depth", "prompt.lenght=1")
    assert code == 2 and "there is no key prompt.lenght" in output and not launcher.store.root.exists()
    with pytest.raises(ConfigError, match=r"cluster\.max_parallel is .* all runs of a launch need the same value"):
        joined("length", "cluster.max_parallel=1,2")


def test_cancel_of_one_of_the_sweeps_means_no_run_of_the_others(store: Store) -> None:
    both = joined("length", "pixels", "prompt.length=4")
    assert len(both.configs) == 2
    freeze_batch(both, [list(both.configs)], "local", ABOUT, batches(both.store))
    for sweep in joined("length", "pixels", "prompt.length=8").sweeps:  # launched again since, with other settings
        write(sweep, ABOUT)
    [length, pixels] = [set(runs_named(store, [name], None, batches(store))) for name in ("length", "pixels")]
    assert set(both.sweeps[0].configs) <= length and len(length) == 2
    assert set(both.configs) <= pixels and len(pixels) == 4


# How long it takes


def outlook(expanded: Launch) -> LaunchPlan:
    return plan_for(expanded, None, None)


def seen(expanded: Launch) -> Mapping[str, State]:
    return states(expanded.store, list(expanded.configs), Queue({}), expanded.evaluations)


def evaluated(store: Store, run: str, seconds: float) -> None:
    content = {"settings": ATTACK, "seconds": seconds, "metrics": {"acc": 50.0}, "attempt": 2, "wandb": None}
    store.run(run).evaluations.mkdir()
    (store.run(run).evaluations / f"{evaluation_id(run, ATTACK)}.json").write_text(json.dumps(content))


def takes(expanded: Launch) -> dict[str, ExpectedTime]:
    """As a launch of it knows."""
    for run, config in expanded.configs.items():
        expanded.store.run(run).create(config)
    freeze_batch(expanded, [list(expanded.configs)], "local", ABOUT, batches(expanded.store))
    return dict(Pace(expanded.store).expected(outlook(expanded).states, batches(expanded.store)))


def test_a_run_to_train_and_one_to_evaluate_take_what_finished_ones_took(store: Store) -> None:
    words = ("length", "prompt.length=4,8,16", "optim.steps=100", "attack.epsilon=0.1,0.2")
    expanded = joined(*words)
    trained, asked, _ = expanded.configs
    for run in (trained, asked):
        finish(store.run(run), expanded.configs[run])  # 50 s for 100 steps
    evaluated(store, trained, 2.0)
    seen = outlook(expanded)
    assert [seen.states[run].name for run in expanded.configs] == ["to evaluate", "to evaluate", "to do"]
    # Of two splits under two budgets, of which nothing is known on validation.
    assert set(takes(expanded).values()) == {ExpectedTime(None, None)}
    test = joined(*words, "evaluation.splits=[test]")
    found = takes(test)
    assert [found[run].total for run in test.configs] == pytest.approx([4.0, 4.0, 54.0], abs=0.1)
    assert [found[run].after_training for run in test.configs] == [4.0, 4.0, 4.0]


def test_runs_that_finish_in_a_launch_give_estimates_for_its_other_runs(store: Store) -> None:
    expanded = joined("length", "prompt.length=4", "optim.steps=100,300")
    short, long = expanded.configs
    freeze_batch(expanded, [[short, long]], "local", ABOUT, batches(expanded.store))
    pace, there = Pace(store), batches(store)
    for run in (short, long):
        store.run(run).create(expanded.configs[run])
    assert set(pace.expected(seen(expanded), there).values()) == {ExpectedTime(None, None)}
    finish(store.run(short), expanded.configs[short])
    assert pace.expected(seen(expanded), there).keys() == {long}
    assert pace.expected(seen(expanded), there)[long].total == pytest.approx(150.0, abs=0.1)  # three times its steps


def test_of_a_run_whose_settings_cannot_be_read_nothing_is_known_and_of_the_others_all(store: Store) -> None:
    expanded = joined("length", "prompt.length=4,8,16", "optim.steps=100")
    done, damaged, other = expanded.configs
    finish(store.run(done), expanded.configs[done])
    store.run(damaged).create(expanded.configs[damaged])
    store.run(damaged).config_file.write_text("{")
    found = takes(expanded)
    assert found.keys() == {other} and found[other].total == pytest.approx(50.0, abs=0.1)


def test_the_time_left_of_evaluations_beside_trainings_is_not_that_of_so_many_trainings(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "length",
        "prompt.length=4,8,16,32",
        "optim.steps=100",
        "attack.epsilon=0.1,0.2",
        "evaluation.splits=[test]",
    )
    expanded = joined(*words)
    *trained, last = expanded.configs
    for run in trained:
        finish(store.run(run), expanded.configs[run])
    evaluated(store, trained[0], 2.0)
    store.run(last).create(expanded.configs[last])
    batch = freeze_batch(expanded, [list(expanded.configs)], "local", ABOUT, batches(expanded.store))
    assert batch is not None
    attempt = store.run(last).claim(1, this_process() | batch.record["job"] | {"job": "1"})
    assert attempt is not None
    attempt.report({"step": 50, "steps": 100, "seconds": 26.0, "validation": [], "time": time.time()})
    [sweep] = expanded.sweeps
    write(sweep, ABOUT)
    status(["length"], store.root, watch=False, json=False)
    # 4 s each for three, and of the last one half of its steps and 4 s, all of it by the one that is at work
    said = "length: 4 runs: 1 running, 3 to evaluate; 12 % done, about 42 s left"
    assert capsys.readouterr().out.splitlines()[0] == said


def test_several_sweeps_also_say_when_all_of_them_will_be_done(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    expanded = joined("length", "pixels", "prompt.length=4", "optim.steps=100")
    run, other = expanded.configs
    for one in expanded.configs:
        store.run(one).create(expanded.configs[one])
    batch = freeze_batch(expanded, [[run, other]], "local", ABOUT, batches(expanded.store))
    assert batch is not None
    attempt = store.run(other).claim(1, this_process() | batch.record["job"] | {"job": "1"})
    assert attempt is not None
    attempt.report({"step": 50, "steps": 100, "seconds": 20.0, "validation": [], "time": time.time()})
    for sweep in expanded.sweeps:
        write(sweep, ABOUT)
    for names in (["length", "pixels"], ["pixels", "length"]):
        status(names, store.root, watch=False, json=False)
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "together more than 60 s left"  # the other half of one, and another, that both want
        assert "pixels: 2 runs: 1 running, 1 to do; 25 % done, more than 60 s left" in lines
        assert "length: 1 run: 1 to do; 0 % done" in lines  # nobody is at it
