"""The outlook of a sweep: what the store has of it, and what a launch would do. `plan` prints it, `launch` acts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Sized
from dataclasses import dataclass

from mmprompt.run import ROOT
from sweeps.batch import Kind, pack
from sweeps.manifest import Expanded, expand
from sweeps.scheduler import choose
from sweeps.state import TRIES, Name, State, queue, states, tries
from sweeps.workers import places

CONF = ROOT / "conf"
SHOWN = 12  # values of an axis
ORDER: tuple[Name, ...] = ("done", "running", "queued", "lost?", "failed", "to do")


@dataclass(frozen=True)
class Outlook:
    expanded: Expanded
    states: dict[str, State]  # by run
    to_do: list[str]  # never tried, interrupted, or failed and worth another try
    left_alone: list[str]  # failed too often

    def named(self, *names: Name) -> list[str]:
        return [run for run, seen in self.states.items() if seen.name in names]

    @property
    def seconds(self) -> float | None:
        """What a finished run of this sweep took, on average."""
        taken = [seen.result["seconds"] for seen in self.states.values() if seen.result]
        return sum(taken) / len(taken) if taken else None

    @property
    def places(self) -> int:
        """Local processes at once."""
        threads = max(config.threads for config in self.expanded.configs.values())
        return min(places(self.expanded.place.cluster, threads), len(self.states))

    def jobs(self, kind: Kind) -> str:
        """What would be submitted, in words."""
        cluster, runs = self.expanded.place.cluster, count(self.to_do)
        if kind == "local":
            return f"{runs}, {min(self.places, len(self.to_do))} at a time in local processes"
        jobs = pack(self.to_do, self.seconds, cluster)
        resources = cluster.model_dump(exclude={"kind", "runs_per_job"}, exclude_none=True)
        asked = " ".join(f"{key}={value}" for key, value in resources.items())
        return f"{runs} in {len(jobs)} SLURM jobs of up to {max(map(len, jobs))} ({asked})"

    def __str__(self) -> str:
        counts = Counter(seen.name for seen in self.states.values())
        return f"{count(self.states)}: " + ", ".join(f"{counts[name]} {name}" for name in ORDER if counts[name])


def count(runs: Sized) -> str:
    return f"{len(runs)} run{'s' if len(runs) != 1 else ''}"


def look(name: str, overrides: Sequence[str], retry: bool) -> Outlook:
    """Expands the sweep and asks store and scheduler. With `retry` nothing is left alone. Raises ConfigError."""
    expanded = expand(name, overrides, CONF)
    store, runs = expanded.store, list(expanded.configs)
    seen = states(store, runs, queue(store, runs))
    left_alone = [run for run in runs if seen[run].name == "failed" and not retry and tries(store.run(run)) >= TRIES]
    wanted, alone = {"to do", "failed", "lost?"} if retry else {"to do", "failed"}, set(left_alone)
    to_do = [run for run in runs if seen[run].name in wanted and run not in alone]
    return Outlook(expanded, seen, to_do, left_alone)


def plan(name: str, overrides: Sequence[str], retry: bool) -> int:
    """Says what a launch would do. Writes nothing."""
    seen = look(name, overrides, retry)
    print(f"{name}: {seen.expanded.sweep.claim}\n  {seen}")
    for key, values in seen.expanded.axes.items():
        more = f", and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
        print(f"  {key}: " + ", ".join(f"{value} ({_done(seen, key, value)})" for value in values[:SHOWN]) + more)
    if seen.left_alone:
        print(f"  {len(seen.left_alone)} of the failed ones are left alone after {TRIES} tries; --retry includes them")
    if seen.to_do:
        kind, why = choose(seen.expanded.place.cluster.kind)
        print(f"  {seen.jobs(kind)} ({why})")
    print(f"  store: {seen.expanded.store.root}")
    return 0


def _done(seen: Outlook, key: str, value: object) -> str:
    runs = {run for run, point in seen.expanded.points if key in point.values and point.values[key] == value}
    return f"{sum(seen.states[run].name == 'done' for run in runs)}/{len(runs)} done"
