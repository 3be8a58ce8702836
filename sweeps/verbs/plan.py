"""`python -m sweeps plan`: prints what a launch would do and what it costs, without changing anything or loading torch."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from json import dumps

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.identity import evaluation_id
from mmprompt.settings.deployment import Cluster
from sweeps.grid.manifest import ExpandedSweep
from sweeps.jobs import slurm
from sweeps.jobs.batch import Kind
from sweeps.planning.launch_plan import LaunchPlan, counted, plan_launch
from sweeps.planning.precision import precision
from sweeps.states.state import State
from sweeps.wording import count, duration, volume

SHOWN = 12  # how many values of an axis are listed
# Cluster settings that are not arguments of sbatch.
OURS = (
    "kind",
    "recompute",
    "speed",
    "deterministic",
    "checkpoint_every",
    "checkpoint_seconds",
    "runs_per_job",
    "max_parallel",
    "setup",
    "sbatch",
)


def plan(names: Sequence[str], overrides: Sequence[str], retry: str | None, limit: int | None, json: bool) -> int:
    """Prints the plan, as text or as JSON. Raises ConfigError for a fault in a sweep, an override or the cluster settings."""
    planned = plan_launch(names, overrides, retry, limit)
    print(as_json(planned) if json else "\n".join(lines(planned, retry)))
    return 0


def lines(planned: LaunchPlan, retry: str | None) -> Iterator[str]:
    """The plan as lines of text."""
    for sweep in planned.launch.sweeps:
        states = planned.states_of(sweep)
        yield f"{sweep.sweep.name}: {sweep.sweep.claim}"
        yield f"  {counted(states)}"
        yield from (f"  {line}" for line in (*_axes(sweep, states), *precision(sweep, states)))
    if len(planned.launch.sweeps) > 1:
        yield f"as one launch\n  {planned}"
    yield from (f"  {line}" for line in (*_left_out(planned, retry), *(_work(planned) if planned.to_do else [])))
    yield from (f"  damaged: {damage}" for damage in planned.damage)
    yield f"  store: {planned.launch.store.root}"


def as_json(planned: LaunchPlan) -> str:
    """The plan as JSON. Seconds, bytes, files and hours are null if no finished run tells what the runs will take."""
    kind, why = slurm.choose(planned.launch.deployment.cluster.kind) if planned.to_do else (None, "nothing is to do")
    at_once = _at_once(planned, kind) if kind else 0
    jobs = _jobs(planned, kind) if kind else []
    disk = planned.cost.disk(at_once) if jobs else (0.0, 0.0)
    sweeps = [
        {
            "sweep": sweep.sweep.name,
            "claim": sweep.sweep.claim,
            "axes": sweep.axes,
            "counts": dict(Counter(state.name for state in planned.states_of(sweep).values())),
            "runs": [{"run": run, "state": state.name} for run, state in planned.states_of(sweep).items()],
        }
        for sweep in planned.launch.sweeps
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
    """A line for each axis: how many runs each of its values has, and how many of them are done with the evaluations of their
    points."""
    runs: dict[str, dict[str, dict[str, bool]]] = {key: defaultdict(dict) for key in expanded.axes}
    for (run, point), evaluations in zip(expanded.points, expanded.point_evaluations, strict=True):
        state = states[run]
        is_done = state.name == "done" or (
            state.result is not None
            and state.missing.isdisjoint(evaluation_id(run, settings) for settings in evaluations.values())
        )
        for key, value in point.values.items():
            done_by_run = runs[key][str(value)]
            done_by_run[run] = done_by_run.get(run, True) and is_done
    for key, values in runs.items():
        counts = [(value, done_by_run.values()) for value, done_by_run in list(values.items())[:SHOWN]]
        shown = [f"{value} ({sum(done)}/{len(done)} done)" for value, done in counts]
        yield f"{key}: " + ", ".join(shown) + (f", and {len(values) - SHOWN} more" if len(values) > SHOWN else "")


def _left_out(planned: LaunchPlan, retry: str | None) -> Iterator[str]:
    """Lines about runs that a launch would leave alone."""
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
    """Lines about the jobs that would be submitted, their cost, the disk, and the arguments of sbatch."""
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
    source = "MaxArraySize" if slurm.config() else "SLURM's own MaxArraySize; scontrol does not say this cluster's"
    at_once = f", {cluster.max_parallel} jobs at once" if cluster.max_parallel else ""
    if arrays == 1:
        return f"1 array{at_once}"
    order = ", one after another" if cluster.max_parallel else ""
    return f"{arrays} arrays of up to {most} jobs ({source}){order}{at_once}"


def _disk(planned: LaunchPlan, at_once: int) -> str:
    root = planned.launch.store.root
    stat = os.statvfs(next(folder for folder in (root, *root.parents) if folder.is_dir()))
    free, files = stat.f_bavail * stat.f_frsize, stat.f_favail if stat.f_files else math.inf
    free_text = volume(free) + (f" and {files:,} files" if files < math.inf else "")
    needed = planned.cost.disk(at_once)
    if needed is None:
        return f"disk: what they need is unknown; {free_text} free"
    enough = needed[0] < free and needed[1] < files
    text = f"disk: {volume(needed[0])} and {needed[1]:,.0f} files needed, {free_text} free"
    return text + ("" if enough else ": NOT ENOUGH")


def _sbatch(cluster: Cluster) -> Iterator[str]:
    settings = cluster.model_dump(exclude=set(OURS))
    given = {key: value for key, value in settings.items() if value is not None}
    given |= {f"sbatch.{key}": value for key, value in cluster.sbatch.items()}
    unset = ", ".join(key for key, value in settings.items() if value is None)
    yield (
        "sbatch: "
        + " ".join(f"{key}={value}" for key, value in given.items())
        + (f"; not set: {unset}" if unset else "")
    )
    yield from (f"setup: {line}" for line in cluster.setup)
    ignored = sorted(key for key in os.environ if key.startswith("SBATCH_"))
    if ignored:
        yield f"not used: {', '.join(ignored)} of your environment; cluster.* settings say what is asked for"
