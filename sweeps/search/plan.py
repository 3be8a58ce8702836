"""The plan of a search: what it would do and what that costs, for `search plan` and before a search begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmprompt.runs.attempt import TRIES
from mmprompt.runs.identity import dotted, evaluation_id, run_id
from mmprompt.runs.overrides import as_text
from mmprompt.studies.confirmation import FIRST_FRESH
from mmprompt.studies.outcomes import Outcome, StudyProgress, StudyReader
from mmprompt.studies.schemas import Definition, Knew, Trial
from mmprompt.studies.study import Study
from sweeps.jobs import slurm
from sweeps.jobs.batch import Kind
from sweeps.jobs.local import capacity
from sweeps.planning.cost import Cost, cost
from sweeps.search.advance import StudyDriver
from sweeps.search.definition import CheckedSearch
from sweeps.search.report import StudyStatus
from sweeps.search.warm import warm_start
from sweeps.states.state import State
from sweeps.wording import duration, plural

# Parts of a definition that must be the same for a study to be continued.
SAME = (
    "objective",
    "fixed",
    "each",
    "groups",
    "sampler",
    "stop",
    "rungs",
    "seeds",
    "budget",
    "confirm",
    "study_seed",
    "tasks",
    "splits",
    "training_version",
)


@dataclass(frozen=True)
class SearchPlan:
    """What a search would do, from its definition and from what exists of its study. It changes nothing."""

    search: CheckedSearch
    definition: Definition
    progress: StudyProgress | None  # None: the study was not begun

    @classmethod
    def of(cls, search: CheckedSearch, definition: Definition, study: Study | None) -> SearchPlan:
        return cls(search, definition, StudyReader(study).read() if study is not None else None)

    def lines(self, kind: Kind) -> Iterator[str]:
        """The plan in words; `kind`: what would execute the runs."""
        definition = self.definition
        yield f"search {definition.name}: {definition.claim}"
        yield f"  {', '.join(f'{key} {direction}d' for key, direction in definition.objective.items())}, over"
        yield from (f"    {line}" for line in space_lines(definition))
        yield f"  {method(definition)}"
        if definition.warm or definition.left_out:
            runs = sum(len(warm.runs) for warm in definition.warm)
            yield f"  finished runs that lie in the space: {plural(runs, 'run')} as {plural(len(definition.warm), 'trial')}"
            yield from (f"    left out: {reason}" for reason in definition.left_out)
        if self.progress is None:
            yield "  not begun"
        else:
            study = self.progress.reader.study
            yield f"  {StudyStatus.of(study, self.progress)}"
        yield from (f"  {line}" for line in self._work(kind))

    def _work(self, kind: Kind) -> Iterator[str]:
        """The runs that are left to do, and what they cost."""
        definition, cost = self.definition, self.cost(kind)
        runs = 0  # of new trials
        if (budget := definition.budget.trials) is not None:
            trials = len(self.progress.outcomes) if self.progress else 0
            runs = max(0, budget * len(definition.groups) - trials) * definition.seeds.first
        else:
            limits = {key: value for key, value in definition.budget.model_dump().items() if value is not None}
            spent = " or ".join(f"{value:g} {key.replace('_', ' ')}" for key, value in limits.items())
            each = " by each group" if len(definition.groups) > 1 else ""
            yield f"new trials until {spent} are spent{each}, with room for the confirmation"
        confirming = len(definition.groups) * (definition.confirm.top + 1) * definition.confirm.seeds
        runs_text = f"{plural(runs, 'run')} of new trials and up to {confirming} confirmation runs"
        seconds = [known for known in cost.seconds.values() if known is not None]
        if len(seconds) < len(cost.seconds):
            yield f"{runs_text}: {cost.unit} unknown, no run of their kind is finished; --limit 1 first tells"
            return
        total = (runs + confirming) * sum(seconds) / len(seconds)
        at_once = capacity(self.search.deployment.cluster, definition.threads) if kind == "local" else self.workers
        hours = f"{'at most' if definition.rungs else 'about'} {cost.devices * total / 3600:.2g} {cost.unit}"
        finished = f"as {plural(cost.finished, 'finished run')} of their kind took"
        yield f"{runs_text}: {hours}, {finished}; {duration(total / at_once)} with {at_once} at once"

    @property
    def workers(self) -> int:
        """How many workers a search has on SLURM."""
        return self.search.deployment.cluster.max_parallel or self.search.spec.workers

    def cost(self, kind: Kind) -> Cost:
        """The cost of a whole run with the default settings, for each group."""
        from sweeps.search.definition import default

        definition, composition = self.definition, self.search.composition
        configs = {}
        for group in range(len(definition.groups)):
            config = composition.config(default(definition, composition, group), group, FIRST_FRESH)
            configs[run_id(config)] = config
        wanted = {
            run: {evaluation_id(run, {"split": config.task.validation}): {"split": config.task.validation}}
            for run, config in configs.items()
        }
        states = {run: State("to do", None, None, None, frozenset(wanted[run])) for run in configs}
        return cost(self.search.store, configs, wanted, states, list(configs), self.search.deployment.cluster)


def space_lines(definition: Definition) -> Iterator[str]:
    """A line for each searched key, with its values and its condition."""
    for parameter in definition.space:
        when = " and ".join(f"{key}={' or '.join(map(as_text, values))}" for key, values in parameter.when.items())
        yield f"{parameter.key} {parameter}" + (f" where {when}" if when else "")


def method(definition: Definition) -> str:
    """The sampler, the pruner and its rungs, the seeds and the confirmation, in words."""
    sampler, stop = definition.sampler, definition.stop
    arguments = ", ".join(f"{key}={value}" for key, value in sampler.arguments.items())
    parts = [f"{sampler.name}{f'({arguments})' if arguments else ''}"]
    if stop is not None:
        arguments = ", ".join(f"{key}={value}" for key, value in stop.arguments.items())
        of_stop = f"({arguments})" if arguments else ""
        parts.append(f"{stop.name}{of_stop} at {', '.join(map(str, definition.rungs))} updates")
    seeds = definition.seeds
    parts.append(
        plural(seeds.first, "seed") + (f", up to {seeds.most} in the top quarter" if seeds.most > seeds.first else "")
    )
    parts.append(
        f"the best {definition.confirm.top} and the default confirmed on {plural(definition.confirm.seeds, 'fresh seed')}"
    )
    return "; ".join(parts)


def plan_lines(search: CheckedSearch, study: Study | None) -> list[str]:
    """The plan as `search` prints it before it begins, and how many of the runs that can be foreseen are done already."""
    if study is not None:
        definition = study.definition
    else:
        warm, left_out = warm_start(search) if search.spec.warm else ([], [])
        definition = search.definition.model_copy(update={"warm": warm, "left_out": left_out})
    plan = SearchPlan.of(search, definition, study)
    kind, why = slurm.choose(search.deployment.cluster.kind)
    lines = list(plan.lines(kind))
    if study is None:
        runs = foreseen_runs(search, definition)
        done = sum(search.store.run(run).result_if_readable() is not None for run in runs)
        which = "all of them" if len(runs) > len(definition.groups) else "the defaults; the others depend on results"
        lines.append(f"  runs that are foreseen ({which}): {done} of {len(runs)} are there")
    lines.append(f"  {'workers here' if kind == 'local' else f'{plan.workers} SLURM jobs'} ({why})")
    lines.append(f"  store: {search.store.root}")
    return lines


def foreseen_runs(search: CheckedSearch, definition: Definition) -> list[str]:
    """The ids of the runs of a study that was not begun, of those trials that do not depend on results."""
    from mmprompt.studies import sampler

    study = Study(search.store, definition.name)
    study.__dict__["definition"] = definition  # instead of reading study.json, which does not exist
    driver, trials = StudyDriver(study), list[Trial]()
    is_blind = sampler.is_blind(definition.sampler) and definition.budget.trials is not None
    for index in range((definition.budget.trials or 1) if is_blind else 1):
        for group in range(len(definition.groups)):
            outcomes = [Outcome(trial, "open", [], {}, None, {}, 0.0) for trial in trials]
            progress = StudyProgress(driver.reader, definition, outcomes, {}, None)
            trials.append(driver.propose(progress, group, index, Knew.nothing()))
    first = definition.seed_values[: definition.seeds.first]
    return list(dict.fromkeys(trial.runs[str(seed)] for trial in trials for seed in first))


def differences(begun: Definition, requested: Definition) -> dict[str, tuple[str, str]]:
    """What differs between the definition of a study that was begun and a requested one: by key both values, as text.

    It is empty if they are the same study.
    """
    changes: dict[str, tuple[str, str]] = {}
    for key in SAME:
        old, new = getattr(begun, key), getattr(requested, key)
        if old != new:
            changes[key] = value_text(old), value_text(new)
    old_space, new_space = ({one.key: one for one in definition.space} for definition in (begun, requested))
    for key in dict.fromkeys([*old_space, *new_space]):
        if old_space.get(key) != new_space.get(key):
            changes[f"space.{key}"] = _parameter_text(old_space.get(key)), _parameter_text(new_space.get(key))
    if not changes and [one.key for one in begun.space] != [one.key for one in requested.space]:
        changes["space"] = ", ".join(one.key for one in begun.space), ", ".join(one.key for one in requested.space)
    for number, (old_base, new_base) in enumerate(zip(begun.bases, requested.bases, strict=False)):
        if len(changes) < TRIES and old_base != new_base:
            changes |= _differences_of_bases(old_base.model_dump(), new_base.model_dump())
        if number and changes:
            break
    if not changes and len(begun.bases) != len(requested.bases):
        changes["config groups"] = str(len(begun.bases)), str(len(requested.bases))
    return changes


def _differences_of_bases(begun: Mapping[str, Any], requested: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    old, new = dict(dotted(begun)), dict(dotted(requested))
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]
    return {key.removeprefix("settings."): (value_text(old.get(key)), value_text(new.get(key))) for key in keys}


def _parameter_text(parameter: Any) -> str:
    if parameter is None:
        return "not searched"
    when = "".join(f" where {key}={value_text(values)}" for key, values in parameter.when.items())
    return f"{parameter}{when}"


def value_text(value: Any) -> str:
    """A value of a definition as text; in a section, null values are left out."""
    if hasattr(value, "model_dump"):
        value = {key: setting for key, setting in value.model_dump().items() if setting is not None}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {value_text(setting)}" for key, setting in value.items()) + "}"
    return as_text(value)
