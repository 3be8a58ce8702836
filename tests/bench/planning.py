"""Planning: points composed and identified, the whole command on an empty and on a full store, and what help costs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from measure import Section, Timing, interleaved
from omegaconf import OmegaConf

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.identity import freeze, run_id
from mmprompt.runs.store import Store
from sweeps.grid.manifest import expand

CONF = ROOT / "conf"
ROUNDS = 5
SAMPLE = 60  # points that Hydra composes one after another
SWEEPS = {
    1000: ["prompt.length=range(1,11)", "seed=range(1,51)"],
    9960: ["prompt.length=range(1,84)", "seed=range(1,61)"],
}
SETTING = "The length sweep with more values: {}, on two tasks"


def by_hydra() -> None:
    points = itertools.product(["micro_grounding", "micro_entailment"], range(1, 7), range(1, SAMPLE // 12 + 1))
    for task, length, seed in points:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [f"task={task}", f"prompt.length={length}", f"seed={seed}", "cluster=local"])
        composed: Any = OmegaConf.to_container(config, resolve=True)
        run_id(freeze(composed)[0])


def expanded(runs: int) -> None:
    assert len(expand("length", [*SWEEPS[runs], "cluster=local"], CONF).points) == runs


def command(*arguments: str, store: Path | None = None) -> Callable[[], object]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"MMPROMPT_RUNS": str(store)} if store else {})
    return lambda: subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)


def plan(runs: int, store: Path, *more: str) -> Callable[[], object]:
    return command("-m", "sweeps", "plan", "length", *SWEEPS[runs], "cluster=local", *more, store=store)


def fill(store: Path) -> None:
    """A store in which the whole sweep is done."""
    for run in expand("length", [*SWEEPS[9960], "cluster=local"], CONF).configs:
        folder = Store(store).run(run)
        (folder.path / "attempts" / "1").mkdir(parents=True)
        folder.result_file.write_text(json.dumps({"run": run, "attempt": 1, "seconds": 15.0, "metrics": {}}))


def each(timings: list[Timing], points: int) -> list[Timing]:
    """Per thousand points."""
    return [Timing(1000 * t.wall / points, 1000 * t.cpu / points) for t in timings]


def sections() -> Iterator[Section]:
    values = "; ".join(f"{runs:,}: {' '.join(overrides)}" for runs, overrides in SWEEPS.items())
    variants: dict[str, tuple[int, Callable[[], object]]] = {
        f"Hydra, point by point ({SAMPLE} points)": (SAMPLE, by_hydra),
        **{f"as a sweep, {runs:,} points": (runs, lambda runs=runs: expanded(runs)) for runs in SWEEPS},  # type: ignore[misc]
    }
    yield section("Points composed, checked and identified", f"{SETTING.format(values)}; without start-up", variants)
    with tempfile.TemporaryDirectory() as folder:
        empty, full = Path(folder) / "empty", Path(folder) / "full"
        fill(full)
        variants = {f"{runs:,} runs, none done": (runs, plan(runs, empty)) for runs in SWEEPS}
        budgets = "attack.epsilon=0,0.1,0.2,0.3,0.4"
        variants["1,000 runs with five budgets each, none done"] = 1000, plan(1000, empty, budgets)
        variants["9,960 runs, all done"] = 9960, plan(9960, full)
        yield section(
            "`python -m sweeps plan`, the whole command", "The same sweeps; the store is a local disk", variants
        )
    starts = {
        "`python -c pass`": command("-c", "pass"),
        "`python -m sweeps --help`": command("-m", "sweeps", "--help"),
        "`python -m sweeps plan --help`": command("-m", "sweeps", "plan", "--help"),
        "`python -c 'import torch'`": command("-c", "import torch"),
    }
    yield Section("Start-up", "One process each", interleaved(starts, 3 * ROUNDS))


def section(title: str, setting: str, variants: dict[str, tuple[int, Callable[[], object]]]) -> Section:
    timings = interleaved({name: call for name, (_, call) in variants.items()}, ROUNDS)
    rows = {name: each(timings[name], points) for name, (points, _) in variants.items()}
    return Section(title, setting, rows, unit="1,000 points")
