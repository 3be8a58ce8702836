"""Several sweeps as one launch: what they share is done once, and the time left is that of all."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from typing import Any

import pytest
from launcher import Launcher
from test_plan import finish, store

from mmprompt.config import ConfigError
from mmprompt.identity import evaluation_id
from mmprompt.place import ROOT
from mmprompt.run import Store
from sweeps.batch import batches, freeze
from sweeps.cancel import named
from sweeps.manifest import Joined, join, write
from sweeps.outlook import Outlook, of
from sweeps.screen import Screen
from sweeps.state import Queue, State, states
from sweeps.watch import LEARN, Pace, Watch
from sweeps.workers import Workers

__all__ = ["store"]  # the fixture
ABOUT = {"commit": "aaaa", "dirty": False, "slurm_cluster": None}
ATTACK = {"split": "test", "attack": {"kind": "fgsm", "input": "embeddings", "epsilon": 0.7}}


def joined(*words: str) -> Joined:
    overrides = [word for word in words if "=" in word]
    fixed = ["task=micro_grounding", "cluster=local", "seed=1"]
    return join([word for word in words if "=" not in word], [*fixed, *overrides], ROOT / "conf")


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


def test_what_is_launched_together_runs_in_one_place_and_has_a_name(launcher: Launcher) -> None:
    code, output = launcher.run("launch", "lenght")
    assert code == 2 and "there is no sweep lenght; did you mean length" in output
    code, output = launcher.run("launch", "depth", "prompt.lenght=1")
    assert code == 2 and "there is no key prompt.lenght" in output and not launcher.store.root.exists()
    with pytest.raises(ConfigError, match=r"cluster\.max_parallel is .* what is launched together runs in one place"):
        joined("length", "cluster.max_parallel=1,2")


def test_cancel_of_one_of_the_sweeps_means_no_run_of_the_others(store: Store) -> None:
    both = joined("length", "pixels", "prompt.length=4")
    assert len(both.configs) == 2
    freeze(both, [list(both.configs)], "local", ABOUT, [])
    for sweep in joined("length", "pixels", "prompt.length=8").sweeps:  # launched again since, with other settings
        write(sweep, ABOUT)
    [length, pixels] = [set(named(store, [name], None)) for name in ("length", "pixels")]
    assert set(both.sweeps[0].configs) <= length and len(length) == 2
    assert set(both.configs) <= pixels and len(pixels) == 4


# How long it takes


def outlook(expanded: Joined) -> Outlook:
    return of(expanded, None, None)


def seen(expanded: Joined) -> Mapping[str, State]:
    return states(expanded.store, list(expanded.configs), Queue({}), expanded.wanted)


def evaluated(store: Store, run: str, seconds: float) -> None:
    content: dict[str, Any] = {"settings": ATTACK, "seconds": seconds, "attempt": 2}
    store.run(run).evaluations.mkdir()
    (store.run(run).evaluations / f"{evaluation_id(run, ATTACK)}.json").write_text(json.dumps(content))


def test_a_run_to_train_and_one_to_evaluate_take_what_finished_ones_took(store: Store) -> None:
    expanded = joined("length", "prompt.length=4,8,16", "optim.steps=100", "attack.epsilon=0.1,0.2")
    trained, asked, _ = expanded.configs
    for run in (trained, asked):
        finish(store.run(run), expanded.configs[run])  # 50 s for 100 steps
    evaluated(store, trained, 2.0)
    seen = outlook(expanded)
    assert [seen.states[run].name for run in expanded.configs] == ["to evaluate", "to evaluate", "to do"]
    pace = Pace(seen, list(expanded.configs))
    # Of two splits under two budgets, of which nothing is known on validation.
    assert not pace.knows and not pace.compares
    test = joined(
        "length", "prompt.length=4,8,16", "optim.steps=100", "attack.epsilon=0.1,0.2", "evaluation.splits=[test]"
    )
    pace = Pace(outlook(test), list(test.configs))
    assert pace.knows and pace.compares
    assert [pace.takes(run) for run in test.configs] == pytest.approx([4.0, 4.0, 54.0], abs=0.1)


def test_what_finishes_in_this_launch_tells_of_the_rest_of_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded = joined("length", "prompt.length=4", "optim.steps=100,300")
    short, long = expanded.configs
    pace = Pace(outlook(expanded), [short, long])
    assert not pace.knows and pace.compares and pace.takes(long) == 3 * pace.takes(short)  # by their steps
    finish(store.run(short), expanded.configs[short])
    later = time.monotonic() + LEARN
    monkeypatch.setattr("time.monotonic", lambda: later)
    pace.learn(seen(expanded), settled=1)
    assert pace.knows and (pace.takes(short), pace.takes(long)) == pytest.approx((50.0, 150.0), abs=0.1)


def test_the_time_left_of_evaluations_beside_trainings_is_not_that_of_so_many_trainings(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "length",
        "prompt.length=4,8,16,32",
        "optim.steps=100",
        "attack.epsilon=0.1,0.2",
        "evaluation.splits=[test]",
    )
    expanded = joined(*words)
    *trained, _ = expanded.configs
    for run in trained:
        finish(store.run(run), expanded.configs[run])
    evaluated(store, trained[0], 2.0)
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    batch = freeze(expanded, [list(expanded.configs)], "local", ABOUT, [])
    assert batch is not None
    watch = Watch(outlook(expanded), list(expanded.configs), Workers(batch, 2))  # that starts none
    with Screen() as screen:
        watch.look(screen)
        now += 120
        screen.now(watch._view())
    # 4 s each for three, 54 s for the last, two at a time
    assert capsys.readouterr().out == "0/4 done, 3 to evaluate, 1 to do; about 33 s left\n"
