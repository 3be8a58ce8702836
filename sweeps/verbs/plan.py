"""`python -m sweeps plan`: what a launch would do, and what it costs. It changes nothing, and loads no torch."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from mmprompt.runs.deployment import Cluster
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import TRIES
from sweeps.grid.manifest import ExpandedSweep
from sweeps.jobs import slurm
from sweeps.planning.launch_plan import LaunchPlan, counted, look
from sweeps.planning.precision import precision
from sweeps.states.state import State
from sweeps.wording import count, duration, volume

SHOWN = 12  # values of an axis
OURS = ("kind", "checkpoint_every", "runs_per_job", "max_parallel", "setup", "sbatch")  # settings that are not sbatch's


def plan(names: Sequence[str], overrides: Sequence[str], retry: str | None, limit: int | None) -> int:
    """Prints it. Raises ConfigError for what is wrong with a sweep, an override or the cluster's settings."""
    seen = look(names, overrides, retry, limit)
    for one in seen.launch.sweeps:
        states = seen.states_of(one)
        print(f"{one.sweep.name}: {one.sweep.claim}\n  {counted(states)}")
        for line in (*_axes(one, states), *precision(one, states)):
            print(f"  {line}")
    if len(seen.launch.sweeps) > 1:
        print(f"as one launch\n  {seen}")
    for line in (*_left_out(seen, retry), *(_work(seen) if seen.to_do else [])):
        print(f"  {line}")
    for damage in [*seen.batches.damaged, *(one.damage for one in seen.states.values() if one.damage is not None)]:
        print(f"  damaged: {damage}")
    print(f"  store: {seen.launch.store.root}")
    return 0


def _axes(expanded: ExpandedSweep, states: Mapping[str, State]) -> Iterator[str]:
    """Of each value how many of its runs are done, with the evaluations that are asked of them there."""
    runs: dict[str, dict[str, dict[str, bool]]] = {key: defaultdict(dict) for key in expanded.axes}
    for (run, point), asked in zip(expanded.points, expanded.asked, strict=True):
        state = states[run]
        is_done = state.name == "done" or (
            state.result is not None
            and state.missing.isdisjoint(evaluation_id(run, settings) for settings in asked.values())
        )
        for key, value in point.values.items():
            those = runs[key][str(value)]
            those[run] = those.get(run, True) and is_done
    for key, values in runs.items():
        counts = [(value, those.values()) for value, those in list(values.items())[:SHOWN]]
        shown = [f"{value} ({sum(those)}/{len(those)} done)" for value, those in counts]
        yield f"{key}: " + ", ".join(shown) + (f", and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def _left_out(seen: LaunchPlan, retry: str | None) -> Iterator[str]:
    diverged = set(seen.diverged)
    failed = [run for run in seen.left_alone if run not in diverged]
    if seen.diverged and retry is None:
        yield f"{count(seen.diverged)} diverged, and would again; only --retry diverged includes them"
    if failed and retry is None:
        yield f"{count(failed)} failed {TRIES} times without getting further; only --retry includes them"
    elif seen.left_alone and retry is not None:
        yield f"{count(seen.left_alone)} ended for another cause than {retry}"
    if seen.later:
        yield f"{seen.later} more to do than --limit allows"
    if seen.problem:
        yield f"no information from SLURM: {seen.problem}"


def _work(seen: LaunchPlan) -> Iterator[str]:
    """What would be submitted, and what that costs."""
    kind, why = slurm.choose(seen.launch.deployment.cluster.kind)
    yield f"{seen.what(kind)} ({why})"
    cluster = seen.launch.deployment.cluster
    jobs = seen.jobs if kind == "slurm" else [[run] for run in seen.to_do]
    at_once = min((cluster.max_parallel or len(jobs)) if kind == "slurm" else seen.places, len(jobs))
    if kind == "slurm":
        yield _arrays(len(jobs), cluster)
    wall = seen.cost.wall(jobs, at_once)
    yield str(seen.cost) + (f"; {duration(wall)} with {at_once} at once" if wall is not None else "")
    yield _disk(seen, at_once)
    yield from _sbatch(cluster) if kind == "slurm" else []


def _arrays(jobs: int, cluster: Cluster) -> str:
    most = slurm.max_array()
    arrays = math.ceil(jobs / most)
    said = "MaxArraySize" if slurm.config() else "SLURM's own MaxArraySize; scontrol does not say this cluster's"
    together = f", {cluster.max_parallel} jobs at once" if cluster.max_parallel else ""
    if arrays == 1:
        return f"1 array{together}"
    order = ", one after another" if cluster.max_parallel else ""
    return f"{arrays} arrays of up to {most} jobs ({said}){order}{together}"


def _disk(seen: LaunchPlan, at_once: int) -> str:
    root = seen.launch.store.root
    there = os.statvfs(next(folder for folder in (root, *root.parents) if folder.is_dir()))
    free, files = there.f_bavail * there.f_frsize, there.f_favail if there.f_files else math.inf
    free_text = volume(free) + (f" and {files:,} files" if files < math.inf else "")
    needed = seen.cost.disk(at_once)
    if needed is None:
        return f"disk: what they need is unknown; {free_text} free"
    enough = needed[0] < free and needed[1] < files
    text = f"disk: {volume(needed[0])} and {needed[1]:,.0f} files needed, {free_text} free"
    return text + ("" if enough else ": NOT ENOUGH")


def _sbatch(cluster: Cluster) -> Iterator[str]:
    asked = cluster.model_dump(exclude=set(OURS))
    given = {key: value for key, value in asked.items() if value is not None}
    given |= {f"sbatch.{key}": value for key, value in cluster.sbatch.items()}
    left = ", ".join(key for key, value in asked.items() if value is None)
    yield (
        "sbatch: " + " ".join(f"{key}={value}" for key, value in given.items()) + (f"; not set: {left}" if left else "")
    )
    yield from (f"setup: {line}" for line in cluster.setup)
    ignored = sorted(key for key in os.environ if key.startswith("SBATCH_"))
    if ignored:
        yield f"not used: {', '.join(ignored)} of your environment; cluster.* settings say what is asked for"
