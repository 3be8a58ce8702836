"""`diff`: the settings in which a run differs from the nearest finished one, with real settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mmprompt.runs.config import RunConfig
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.files import StoreError, write_over
from mmprompt.runs.identity import run_id
from mmprompt.runs.processes import this_process
from mmprompt.runs.run_folder import RunFolder
from mmprompt.runs.store import Store
from mmprompt.settings.parsing import parse
from sweeps.grid.manifest import expand
from sweeps.verbs.diff import diff

JOB = {"batch": "1", "commit": "aaaa", "dirty": False, "code": "c0de", "versions": {"torch": "2.6.0"}}
JOB |= {"scheduler": "local"}
# A manifest without points and axes.
MANIFEST = {"command": "make sweep-length", "tasks": {"micro_vqa": {"metric": "vqa_accuracy"}}}


@pytest.fixture(scope="module")
def base() -> RunConfig:
    [config] = expand("length", ["task=micro_vqa", "prompt.length=10", "seed=1"], ROOT / "conf").configs.values()
    return config


def changed(config: RunConfig, **changes: Any) -> RunConfig:
    """The configuration with these changes. Dots of the keys are written as `__`."""
    values = config.model_dump()
    for key, value in changes.items():
        *path, last = key.split("__")
        section = values
        for part in path:
            section = section[part]
        section[last] = value
    return parse(RunConfig, values)


def create(store: Store, config: RunConfig) -> RunFolder:
    folder = store.run(run_id(config))
    folder.create(config)
    return folder


def finish(store: Store, config: RunConfig, when: float, job: Mapping[str, Any] = JOB) -> RunFolder:
    folder = create(store, config)
    attempt = folder.claim(1, this_process() | job)
    assert attempt is not None
    facts = {key: job[key] for key in ("commit", "dirty", "code")}
    folder.publish(
        attempt, {"attempt": 1, "metrics": {}, "device": "cpu: a core", "threads": 1, "seconds": 1.0} | facts
    )
    os.utime(folder.result_file, (when, when))
    return folder


def printed_diff(capsys: pytest.CaptureFixture[str], store: Store, run: str, other: str | None = None) -> str:
    assert diff(run, other, store.root) == 0
    return capsys.readouterr().out


def test_a_run_is_compared_with_the_finished_one_that_differs_in_the_fewest_settings(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    near, new = changed(base, optim__lr=0.1 + 0.2), create(store, base)
    finish(store, changed(base, seed=2, prompt__length=16), when=2e9)
    finish(store, near, when=1e9)
    create(store, changed(base, seed=2))  # as near and newer, but not finished
    output = printed_diff(capsys, store, new.id)
    assert f"{run_id(near)}  (finished), the nearest of 2 finished runs" in output
    assert f"  optim.lr  0.30000000000000004 -> {base.optim.lr}\n" in output
    assert "prompt.length" not in output and "seed" not in output


def test_the_newest_of_equally_near_runs_is_taken(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, seeds = Store(tmp_path), range(2, 6)
    for seed, when in zip(seeds, (1e9, 4e9, 2e9, 3e9), strict=True):
        finish(store, changed(base, seed=seed), when)
    assert "  seed  3 -> 1\n" in printed_diff(capsys, store, create(store, base).id)


def test_a_finished_run_is_compared_with_another_finished_one(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    finish(store, changed(base, seed=2), 1e9)
    assert "  seed  2 -> 1\n" in printed_diff(capsys, store, finish(store, base, 2e9).id)


def test_a_key_that_one_config_leaves_out_is_shown_at_its_neutral_value(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    old, new = finish(store, base, 1e9), create(store, changed(base, precision="bfloat16"))
    assert "precision" not in old.config_file.read_text()
    output = printed_diff(capsys, store, new.id[:10])
    assert "  precision  float32 -> bfloat16  (float32 is as it was before there was this key" in output
    assert output.count("->") == 1


def test_another_checkpoint_data_set_or_training_version_is_explained(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    old = finish(store, base, 1e9)
    versions = {"training_version": base.training_version + 1}
    new = create(store, changed(base, backbone__checksum="ab" * 32, task__data__fingerprint="digits-9", **versions))
    output = printed_diff(capsys, store, old.id, new.id)
    assert f"{base.backbone.checksum} -> {'ab' * 32}  (another checkpoint)" in output
    assert f"{base.task.data.fingerprint} -> digits-9  (another data set)" in output
    assert f"{base.training_version} -> {base.training_version + 1}  (the same settings mean other numbers)" in output


def test_a_list_is_shown_whole(base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    old, new = create(store, base), create(store, changed(base, prompt__layers=[0, 1]))
    assert "  prompt.layers  null -> [0,1]\n" in printed_diff(capsys, store, old.id, new.id)


def test_facts_that_are_only_recorded_are_listed_apart_from_the_settings(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    old = finish(store, base, 1e9)
    new = finish(store, changed(base, seed=2), 2e9, JOB | {"commit": "bbbb", "versions": {"torch": "2.7.0"}})
    settings, recorded = printed_diff(capsys, store, old.id, new.id).split(
        "and in what is recorded, but never makes it"
    )
    assert "seed" in settings and "commit" not in settings and "torch" not in settings
    assert "commit  aaaa -> bbbb" in recorded and "torch   2.6.0 -> 2.7.0" in recorded
    assert "code" not in recorded and "device" not in recorded and "seed" not in recorded


def test_a_run_that_was_never_begun_is_compared_by_the_settings_in_its_manifest(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    finish(store, changed(base, prompt__length=64), 1e9)
    point = {"task": "micro_vqa", "seed": 1, "prompt.length": 10}
    manifest = MANIFEST | {"axes": {"prompt.length": [10]}, "header": {"model": "micro", "optim": "adamw"}}
    manifest |= {"points": [{"run": run_id(base), "values": point, "evaluations": {}}]}
    store.manifest("length").parent.mkdir()
    store.manifest("length").write_text(json.dumps(manifest))
    output = printed_diff(capsys, store, run_id(base)[:8])
    assert f"{run_id(base)}  length: prompt.length=10 (not begun)" in output
    assert "  prompt.length  64 -> 10\n" in output and output.count("->") == 1
    assert f"{run_id(base)} was never begun" in output


def test_a_run_is_the_same_as_itself(base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    folder = create(store, base)
    assert "is the same run" in printed_diff(capsys, store, folder.id, folder.id[:6])


def test_without_a_finished_run_it_says_so(base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path)
    create(store, changed(base, seed=2))
    assert "no other run is finished" in printed_diff(capsys, store, create(store, base).id)


def test_settings_that_were_changed_after_launch_are_not_compared(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    damaged, far = finish(store, changed(base, seed=2), 2e9), finish(store, changed(base, seed=3, threads=2), 1e9)
    damaged.config_file.write_text(damaged.config_file.read_text().replace('"seed":2', '"seed":1'))
    assert far.id in printed_diff(capsys, store, create(store, base).id)
    with pytest.raises(StoreError, match=r"config\.json was changed after launch"):
        diff(damaged.id, None, store.root)


@pytest.mark.parametrize(("prefix", "words"), [("", "begins the ids of 2 runs"), ("xyz", "no run's id begins with")])
def test_a_prefix_of_no_run_or_of_several_is_refused(base: RunConfig, tmp_path: Path, prefix: str, words: str) -> None:
    store = Store(tmp_path)
    create(store, base), create(store, changed(base, seed=2))
    with pytest.raises(StoreError, match=words):
        diff(prefix, None, store.root)


def test_the_number_of_missing_evaluations_of_a_finished_run_is_shown(
    base: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    run = finish(store, base, 1e9)
    sweep = MANIFEST | {"points": [], "axes": {"seed": [1]}}
    wanted = [{"test": "a"}, {"test": "b", "val": "c"}]
    sweep["points"] = [{"run": run.id, "values": {"seed": 1}, "evaluations": evaluations} for evaluations in wanted]  # type: ignore[assignment]
    write_over(store.manifest("robustness"), json.dumps(sweep))
    run.evaluations.mkdir()
    assert f"{run.id}  robustness: seed=1 (finished, 3 evaluations to make)" in printed_diff(capsys, store, run.id)
    for name in "ab":
        (run.evaluations / f"{name}.json").write_text("{}")
    assert "(finished, 1 evaluation to make)" in printed_diff(capsys, store, run.id)
    (run.evaluations / "c.json").write_text("{}")
    assert "(finished)" in printed_diff(capsys, store, run.id)
