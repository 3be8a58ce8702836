"""`python -m sweeps plan`: what a launch would do, and what it costs. It changes nothing, and loads no torch."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from json import dumps

from mmprompt.runs.deployment import Cluster
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.store import TRIES
from sweeps.grid.manifest import ExpandedSweep
from sweeps.jobs import slurm
from sweeps.jobs.batch import Kind
from sweeps.planning.launch_plan import LaunchPlan, counted, plan_launch
from sweeps.planning.precision import precision
from sweeps.states.state import State
from sweeps.wording import count, duration, volume

SHOWN = 12  # values of an axis
OURS = ("kind", "checkpoint_every", "runs_per_job", "max_parallel", "setup", "sbatch")  # settings that are not sbatch's


def plan(names: Sequence[str], overrides: Sequence[str], retry: str | None, limit: int | None, json: bool) -> int:
    """Prints it, as text or as JSON. Raises ConfigError for what is wrong with a sweep, an override or the cluster's settings."""
    planned = plan_launch(names, overrides, retry, limit)
    print(as_json(planned) if json else "\n".join(lines(planned, retry)))
    return 0


def lines(planned: LaunchPlan, retry: str | None) -> Iterator[str]:
    for one in planned.launch.sweeps:
        states = planned.states_of(one)
        yield f"{one.sweep.name}: {one.sweep.claim}"
        yield f"  {counted(states)}"
        yield from (f"  {line}" for line in (*_axes(one, states), *precision(one, states)))
    if len(planned.launch.sweeps) > 1:
        yield f"as one launch\n  {planned}"
    yield from (f"  {line}" for line in (*_left_out(planned, retry), *(_work(planned) if planned.to_do else [])))
    yield from (f"  damaged: {damage}" for damage in planned.damage)
    yield f"  store: {planned.launch.store.root}"


def as_json(planned: LaunchPlan) -> str:
    """The same for programs. Seconds, bytes and hours are null where no finished run tells what runs take."""
    kind, why = slurm.choose(planned.launch.deployment.cluster.kind) if planned.to_do else (None, "nothing is to do")
    at_once = _at_once(planned, kind) if kind else 0
    jobs = _jobs(planned, kind) if kind else []
    disk = planned.cost.disk(at_once) if jobs else (0.0, 0.0)
    sweeps = [
        {
            "sweep": one.sweep.name,
            "claim": one.sweep.claim,
            "axes": one.axes,
            "counts": dict(Counter(state.name for state in planned.states_of(one).values())),
            "runs": [{"run": run, "state": state.name} for run, state in planned.states_of(one).items()],
        }
        for one in planned.launch.sweeps
    ]
    return dumps(
        {
            "store": str(planned.launch.store.root),
            "sweeps": sweeps,
            "scheduler": kind,
            "why": why,
            "to_do": planned.to_do,
            "left_alone": planned.left_alone,
            "later": planned.later,
            "jobs": jobs if kind == "slurm" else None,
            "at_once": at_once,
            "seconds": planned.cost.wall(jobs, at_once) if jobs else 0.0,
            "device_hours": planned.cost.hours if jobs else 0.0,
            "device": planned.cost.unit,
            "bytes": disk and disk[0],
            "files": disk and disk[1],
            "damaged": [str(damage) for damage in planned.damage],
            "problem": planned.problem or None,
        },
        indent=1,
    )


def _axes(expanded: ExpandedSweep, states: Mapping[str, State]) -> Iterator[str]:
    """Of each value how many of its runs are done, with the evaluations that are asked of them there."""
    runs: dict[str, dict[str, dict[str, bool]]] = {key: defaultdict(dict) for key in expanded.axes}
    for (run, point), asked in zip(expanded.points, expanded.point_evaluations, strict=True):
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


def _left_out(planned: LaunchPlan, retry: str | None) -> Iterator[str]:
    diverged = set(planned.diverged)
    failed = [run for run in planned.left_alone if run not in diverged]
    if planned.diverged and retry is None:
        yield f"{count(planned.diverged)} diverged, and would again; only --retry diverged includes them"
    if failed and retry is None:
        yield f"{count(failed)} failed {TRIES} times without getting further; only --retry includes them"
    elif planned.left_alone and retry is not None:
        yield f"{count(planned.left_alone)} ended for another cause than {retry}"
    if planned.later:
        yield f"{planned.later} more to do than --limit allows"
    if planned.problem:
        yield f"no information from SLURM: {planned.problem}"


def _work(planned: LaunchPlan) -> Iterator[str]:
    """What would be submitted, and what that costs."""
    kind, why = slurm.choose(planned.launch.deployment.cluster.kind)
    yield f"{planned.submission(kind)} ({why})"
    cluster, jobs, at_once = planned.launch.deployment.cluster, _jobs(planned, kind), _at_once(planned, kind)
    if kind == "slurm":
        yield _arrays(len(jobs), cluster)
    wall = planned.cost.wall(jobs, at_once)
    yield str(planned.cost) + (f"; {duration(wall)} with {at_once} at once" if wall is not None else "")
    yield _disk(planned, at_once)
    yield from _sbatch(cluster) if kind == "slurm" else []


def _jobs(planned: LaunchPlan, kind: Kind) -> list[list[str]]:
    return planned.jobs if kind == "slurm" else [[run] for run in planned.to_do]


def _at_once(planned: LaunchPlan, kind: Kind) -> int:
    jobs = len(_jobs(planned, kind))
    return min(
        (planned.launch.deployment.cluster.max_parallel or jobs) if kind == "slurm" else planned.local_workers, jobs
    )


def _arrays(jobs: int, cluster: Cluster) -> str:
    most = slurm.max_array()
    arrays = math.ceil(jobs / most)
    said = "MaxArraySize" if slurm.config() else "SLURM's own MaxArraySize; scontrol does not say this cluster's"
    together = f", {cluster.max_parallel} jobs at once" if cluster.max_parallel else ""
    if arrays == 1:
        return f"1 array{together}"
    order = ", one after another" if cluster.max_parallel else ""
    return f"{arrays} arrays of up to {most} jobs ({said}){order}{together}"


def _disk(planned: LaunchPlan, at_once: int) -> str:
    root = planned.launch.store.root
    there = os.statvfs(next(folder for folder in (root, *root.parents) if folder.is_dir()))
    free, files = there.f_bavail * there.f_frsize, there.f_favail if there.f_files else math.inf
    free_text = volume(free) + (f" and {files:,} files" if files < math.inf else "")
    needed = planned.cost.disk(at_once)
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
