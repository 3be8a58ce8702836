"""The outlook of sweeps: what the store has of them, and what a launch would do. `plan` prints it, `launch` acts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import RETRIED
from mmprompt.runs.files import follow_mode
from mmprompt.runs.records import DamagedError
from mmprompt.runs.store import TRIES
from sweeps.grid.manifest import ExpandedSweep, Launch, join
from sweeps.jobs.batch import Batches, Kind, batches, pack
from sweeps.jobs.local import capacity
from sweeps.planning.cost import Cost, cost
from sweeps.states import causes
from sweeps.states.state import COUNTED, ENDED, OPEN, Name, State, queue, states
from sweeps.wording import count

CONF = ROOT / "conf"


@dataclass(frozen=True)
class LaunchPlan:
    launch: Launch
    batches: Batches  # all there were when the store was looked at
    states: dict[str, State]  # by run
    to_do: list[str]  # never tried, interrupted, to evaluate, or failed and worth another try
    left_alone: list[str]  # failed, and not asked for again
    diverged: list[str]  # of these, those that would fail again in the same way: an outcome, and nothing to mend
    later: int  # runs to do beyond what `--limit` allows
    problem: str  # why SLURM gives no information about some

    @property
    def damage(self) -> list[DamagedError]:
        """Batches and runs whose files cannot be used."""
        runs = [state.damage for state in self.states.values() if state.damage is not None]
        return [*self.batches.damaged, *runs]

    def named(self, *names: Name) -> list[str]:
        return [run for run, seen in self.states.items() if seen.name in names]

    @cached_property
    def cost(self) -> Cost:
        expanded = self.launch
        return cost(
            expanded.store, expanded.configs, expanded.evaluations, self.states, self.to_do, expanded.deployment.cluster
        )

    @cached_property
    def jobs(self) -> list[list[str]]:
        """Of SLURM, what is to do shared out to them."""
        return pack(self.to_do, self.cost.seconds, self.launch.deployment.cluster)

    @property
    def places(self) -> int:
        """Local processes at once."""
        threads = max(config.threads for config in self.launch.configs.values())
        return min(capacity(self.launch.deployment.cluster, threads), len(self.states))

    def what(self, kind: Kind) -> str:
        """What would be submitted, in words."""
        trained = sum(self.states[run].result is not None for run in self.to_do)
        all_of_them = "to evaluate" if trained == len(self.to_do) else f"({trained} of them to evaluate)"
        runs = count(self.to_do) + (f" {all_of_them}" if trained else "")
        if kind == "local":
            return f"{runs}, {min(self.places, len(self.to_do))} at a time in local processes"
        return f"{runs} in {len(self.jobs)} SLURM jobs of up to {max(map(len, self.jobs))}"

    def states_of(self, sweep: ExpandedSweep) -> dict[str, State]:
        """What one of the sweeps has of its runs; others may want more of the same."""
        store = sweep.store
        return {
            run: self.states[run].restricted_to(store.run(run), wanted) for run, wanted in sweep.evaluations.items()
        }

    def __str__(self) -> str:
        return counted(self.states)


def counted(states: Mapping[str, State]) -> str:
    counts = Counter(seen.name for seen in states.values())
    return f"{count(states)}: " + ", ".join(f"{counts[name]} {name}" for name in COUNTED if counts[name])


def look(names: Iterable[str], overrides: Sequence[str], retry: str | None, limit: int | None) -> LaunchPlan:
    """Expands the sweeps and asks store and scheduler. Raises ConfigError.

    `retry`: "all", nothing is left alone; a word of a cause (`mmprompt.runs.failures`): of the failed ones those, and no others.
    """
    return of(join(names, overrides, CONF), retry, limit)


def of(expanded: Launch, retry: str | None, limit: int | None) -> LaunchPlan:
    """The same of sweeps that are expanded already."""
    store, runs = expanded.store, list(expanded.configs)
    follow_mode(store.root)
    there = batches(store)
    queued = queue(store, runs, there)
    seen = states(store, runs, queued, expanded.evaluations)
    failed = [run for run in runs if seen[run].name in ENDED]
    diverged = [run for run in failed if seen[run].name == "diverged"]
    if retry == "all":
        left_alone = []
    elif retry is None:
        left_alone = [run for run in failed if seen[run].name == "diverged" or store.run(run).tries() >= TRIES]
    else:
        why = causes.failures(store, failed, seen)
        left_alone = [run for run in failed if run not in why or why[run].cause != RETRIED[str(retry)]]
    wanted, alone = {*OPEN} | ({"lost?"} if retry == "all" else set()), set(left_alone)
    to_do = [run for run in runs if seen[run].name in wanted and run not in alone]
    first = to_do[:limit] if limit else to_do
    outcomes = [run for run in diverged if run in alone]
    return LaunchPlan(expanded, there, seen, first, left_alone, outcomes, len(to_do) - len(first), queued.problem)
