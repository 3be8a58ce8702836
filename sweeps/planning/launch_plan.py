"""A launch plan: the states of a launch's runs, and what launching them would do. `plan` prints it, `launch` carries it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.deployment import ROOT
from mmprompt.runs.failures import RETRIED
from mmprompt.runs.files import follow_mode
from mmprompt.runs.records import DamagedError
from sweeps.grid.manifest import ExpandedSweep, Launch, join
from sweeps.jobs.batch import Batches, Kind, batches, pack
from sweeps.jobs.local import capacity
from sweeps.planning.checkpoints import check_checkpoints
from sweeps.planning.cost import Cost, cost
from sweeps.states import causes
from sweeps.states.state import COUNTED, ENDED, OPEN, Name, State, queue, states
from sweeps.wording import count

CONF = ROOT / "conf"


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch would do."""

    launch: Launch
    batches: Batches  # all batches of the store when it was read
    states: dict[str, State]  # by run
    to_do: list[str]  # runs that were never tried, were interrupted, lack an evaluation, or failed and get another try
    left_alone: list[str]  # runs that failed and do not get another try
    diverged: list[str]  # those of them that diverged: another try would diverge too, and there is nothing to repair
    later: int  # how many runs `--limit` postpones
    problem: str  # why SLURM gives no information about some runs

    @property
    def damage(self) -> list[DamagedError]:
        """The errors of the batches and runs whose files cannot be used."""
        runs = [state.damage for state in self.states.values() if state.damage is not None]
        return [*self.batches.damaged, *runs]

    def runs_in_state(self, *names: Name) -> list[str]:
        """Returns the runs whose state is one of these."""
        return [run for run, state in self.states.items() if state.name in names]

    @cached_property
    def cost(self) -> Cost:
        """The estimated cost of the runs to do."""
        launch = self.launch
        return cost(
            launch.store, launch.configs, launch.evaluations, self.states, self.to_do, launch.deployment.cluster
        )

    @cached_property
    def jobs(self) -> list[list[str]]:
        """The runs to do, distributed to SLURM jobs."""
        return pack(self.to_do, self.cost.seconds, self.launch.deployment.cluster)

    @property
    def local_workers(self) -> int:
        """How many local workers run at once."""
        threads = max(config.threads for config in self.launch.configs.values())
        return min(capacity(self.launch.deployment.cluster, threads), len(self.states))

    def submission(self, kind: Kind) -> str:
        """Returns a phrase that says what would be submitted."""
        trained = sum(self.states[run].result is not None for run in self.to_do)
        to_evaluate = "to evaluate" if trained == len(self.to_do) else f"({trained} of them to evaluate)"
        runs = count(self.to_do) + (f" {to_evaluate}" if trained else "")
        if kind == "local":
            return f"{runs}, {min(self.local_workers, len(self.to_do))} at a time in local processes"
        return f"{runs} in {len(self.jobs)} SLURM jobs of up to {max(map(len, self.jobs))}"

    def states_of(self, sweep: ExpandedSweep) -> dict[str, State]:
        """Returns the states of one sweep's runs, by the evaluations that it needs; other sweeps may need more of the same runs."""
        store = sweep.store
        return {
            run: self.states[run].restricted_to(store.run(run), wanted) for run, wanted in sweep.evaluations.items()
        }

    def __str__(self) -> str:
        return counted(self.states)


def counted(states: Mapping[str, State]) -> str:
    """Returns how many runs are in each state, as a sentence for users."""
    counts = Counter(state.name for state in states.values())
    return f"{count(states)}: " + ", ".join(f"{counts[name]} {name}" for name in COUNTED if counts[name])


def plan_launch(names: Iterable[str], overrides: Sequence[str], retry: str | None, limit: int | None) -> LaunchPlan:
    """Expands the sweeps, reads the store and SLURM's queue, and returns the plan. Raises ConfigError.

    `retry`: "all" gives every failed run another try; the word of a cause (`mmprompt.runs.failures`) gives one to the runs that
    failed with this cause, and to no others; None gives one to failed runs that have tries left and did not diverge. `limit`: the
    largest number of runs to do.
    """
    launch = join(names, overrides, CONF)
    check_checkpoints(
        ((launch.backbones[run], config.backbone.checksum, config.model) for run, config in launch.configs.items()),
        launch.store,
    )
    return plan_for(launch, retry, limit)


def plan_for(launch: Launch, retry: str | None, limit: int | None) -> LaunchPlan:
    """Returns the plan for sweeps that are expanded already."""
    store, runs = launch.store, list(launch.configs)
    follow_mode(store.root)
    known = batches(store)
    queued = queue(store, runs, known)
    state_of = states(store, runs, queued, launch.evaluations)
    failed = [run for run in runs if state_of[run].name in ENDED]
    diverged = [run for run in failed if state_of[run].name == "diverged"]
    if retry == "all":
        left_alone = []
    elif retry is None:
        left_alone = [run for run in failed if state_of[run].name == "diverged" or store.run(run).tries() >= TRIES]
    else:
        failures = causes.failures(store, failed, state_of)
        left_alone = [run for run in failed if run not in failures or failures[run].cause != RETRIED[str(retry)]]
    open_states, alone = {*OPEN} | ({"lost?"} if retry == "all" else set()), set(left_alone)
    to_do = [run for run in runs if state_of[run].name in open_states and run not in alone]
    first = to_do[:limit] if limit else to_do
    outcomes = [run for run in diverged if run in alone]
    return LaunchPlan(launch, known, state_of, first, left_alone, outcomes, len(to_do) - len(first), queued.problem)
