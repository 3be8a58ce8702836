"""What a search would do, and what it costs: `search plan` prints it, `search` says it before it begins. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmprompt.runs.identity import dotted, evaluation_id, run_id
from mmprompt.runs.overrides import as_text
from mmprompt.runs.store import TRIES
from mmprompt.studies.outcomes import Outcome, Picture, Reader
from mmprompt.studies.study import FIRST_FRESH, Definition, Knew, Study, Trial
from sweeps.jobs import slurm
from sweeps.jobs.batch import Kind
from sweeps.jobs.local import capacity
from sweeps.planning.cost import Cost, cost
from sweeps.search.advance import Desk
from sweeps.search.report import StudyStatus
from sweeps.search.space import Asked
from sweeps.search.warm import warm_start
from sweeps.states.state import State
from sweeps.wording import duration, plural

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
    asked: Asked
    definition: Definition
    picture: Picture | None  # None: not begun

    @classmethod
    def of(cls, one: Asked, definition: Definition, study: Study | None) -> SearchPlan:
        return cls(one, definition, Reader(study).look() if study is not None else None)

    def lines(self, kind: Kind) -> Iterator[str]:
        definition = self.definition
        yield f"search {definition.name}: {definition.claim}"
        yield f"  {', '.join(f'{key} {direction}d' for key, direction in definition.objective.items())}, over"
        yield from (f"    {line}" for line in space(definition))
        yield f"  {how(definition)}"
        if definition.warm or definition.left_out:
            runs = sum(len(one.runs) for one in definition.warm)
            yield f"  finished runs that lie in the space: {plural(runs, 'run')} as {plural(len(definition.warm), 'trial')}"
            yield from (f"    left out: {reason}" for reason in definition.left_out)
        if self.picture is None:
            yield "  not begun"
        else:
            study = self.picture.reader.study
            yield f"  {StudyStatus.of(study, self.picture)}"
        yield from (f"  {line}" for line in self._work(kind))

    def _work(self, kind: Kind) -> Iterator[str]:
        """What is left to do, and what that costs."""
        definition, told = self.definition, self.cost(kind)
        runs = 0  # of new trials
        if (budget := definition.budget.trials) is not None:
            there = len(self.picture.outcomes) if self.picture else 0
            runs = max(0, budget * len(definition.groups) - there) * definition.seeds.first
        else:
            given = {key: value for key, value in definition.budget.model_dump().items() if value is not None}
            spent = " or ".join(f"{value:g} {key.replace('_', ' ')}" for key, value in given.items())
            each = " by each group" if len(definition.groups) > 1 else ""
            yield f"new trials until {spent} are spent{each}, with room for what confirms"
        confirming = len(definition.groups) * (definition.confirm.top + 1) * definition.confirm.seeds
        what = f"{plural(runs, 'run')} of new trials and up to {confirming} that confirm"
        seconds = [one for one in told.seconds.values() if one is not None]
        if len(seconds) < len(told.seconds):
            yield f"{what}: {told.unit} unknown, no run of their kind is finished; --limit 1 first tells"
            return
        total = (runs + confirming) * sum(seconds) / len(seconds)
        at_once = capacity(self.asked.deployment.cluster, definition.threads) if kind == "local" else self.workers
        hours = f"{'at most' if definition.rungs else 'about'} {told.devices * total / 3600:.2g} {told.unit}"
        finished = f"as {plural(told.finished, 'finished run')} of their kind took"
        yield f"{what}: {hours}, {finished}; {duration(total / at_once)} with {at_once} at once"

    @property
    def workers(self) -> int:
        return self.asked.deployment.cluster.max_parallel or self.asked.search.workers

    def cost(self, kind: Kind) -> Cost:
        """Of a whole run with the default settings of each group."""
        from sweeps.search.space import default

        definition, composition = self.definition, self.asked.composition
        configs = {}
        for group in range(len(definition.groups)):
            config = composition.config(default(definition, composition, group), group, FIRST_FRESH)
            configs[run_id(config)] = config
        wanted = {
            run: {evaluation_id(run, {"split": config.task.validation}): {"split": config.task.validation}}
            for run, config in configs.items()
        }
        states = {run: State("to do", None, None, None, frozenset(wanted[run])) for run in configs}
        return cost(self.asked.store, configs, wanted, states, list(configs), self.asked.deployment.cluster)


def space(definition: Definition) -> Iterator[str]:
    for one in definition.space:
        when = " and ".join(f"{key}={' or '.join(map(as_text, values))}" for key, values in one.when.items())
        yield f"{one.key} {one}" + (f" where {when}" if when else "")


def how(definition: Definition) -> str:
    """Who proposes, who goes on, how many seeds."""
    sampler, stop = definition.sampler, definition.stop
    arguments = ", ".join(f"{key}={value}" for key, value in sampler.arguments.items())
    parts = [f"{sampler.name}{f'({arguments})' if arguments else ''}"]
    if stop is not None:
        given = ", ".join(f"{key}={value}" for key, value in stop.arguments.items())
        parts.append(f"{stop.name}{f'({given})' if given else ''} at {', '.join(map(str, definition.rungs))} updates")
    seeds = definition.seeds
    parts.append(
        plural(seeds.first, "seed") + (f", up to {seeds.most} in the top quarter" if seeds.most > seeds.first else "")
    )
    parts.append(
        f"the best {definition.confirm.top} and the default confirmed on {plural(definition.confirm.seeds, 'fresh seed')}"
    )
    return "; ".join(parts)


def plan_lines(one: Asked, study: Study | None) -> list[str]:
    """What `search` would say, and how many of the runs that can be foreseen are there."""
    if study is not None:
        definition = study.definition
    else:
        warm, left_out = warm_start(one) if one.search.warm else ([], [])
        definition = one.definition.model_copy(update={"warm": warm, "left_out": left_out})
    outlook = SearchPlan.of(one, definition, study)
    kind, why = slurm.choose(one.deployment.cluster.kind)
    lines = list(outlook.lines(kind))
    if study is None:
        runs = foreseen(one, definition)
        done = sum(one.store.run(run).result_if_readable() is not None for run in runs)
        what = (
            "all of them" if len(runs) > len(definition.groups) else "the defaults; the others depend on what comes out"
        )
        lines.append(f"  runs that are foreseen ({what}): {done} of {len(runs)} are there")
    lines.append(f"  {'workers here' if kind == 'local' else f'{outlook.workers} SLURM jobs'} ({why})")
    lines.append(f"  store: {one.store.root}")
    return lines


def foreseen(one: Asked, definition: Definition) -> list[str]:
    """The runs of a study that is not begun, as far as its trials do not depend on what comes out."""
    from mmprompt.studies import sampler

    study = Study(one.store, definition.name)
    study.__dict__["definition"] = definition  # that is not on disk
    desk, trials = Desk(study), list[Trial]()
    is_blind = sampler.is_blind(definition.sampler) and definition.budget.trials is not None
    for index in range((definition.budget.trials or 1) if is_blind else 1):
        for group in range(len(definition.groups)):
            outcomes = [Outcome(trial, "open", [], {}, None, {}, 0.0) for trial in trials]
            picture = Picture(desk.reader, definition, outcomes, {}, None)
            trials.append(desk.proposed(picture, group, index, Knew.nothing()))
    first = definition.seed_values[: definition.seeds.first]
    return list(dict.fromkeys(trial.runs[str(seed)] for trial in trials for seed in first))


def differences(there: Definition, here: Definition) -> dict[str, tuple[str, str]]:
    """In what a study differs from what is asked for, as text; empty if it is the same study."""
    found: dict[str, tuple[str, str]] = {}
    for key in SAME:
        one, other = getattr(there, key), getattr(here, key)
        if one != other:
            found[key] = as_said(one), as_said(other)
    ours, theirs = ({one.key: one for one in definition.space} for definition in (there, here))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            found[f"space.{key}"] = _parameter(ours.get(key)), _parameter(theirs.get(key))
    if not found and [one.key for one in there.space] != [one.key for one in here.space]:
        found["space"] = ", ".join(one.key for one in there.space), ", ".join(one.key for one in here.space)
    for number, (base, other) in enumerate(zip(there.bases, here.bases, strict=False)):
        if len(found) < TRIES and base != other:
            found |= _of_bases(base.choices, base.model_dump(), other.model_dump())
        if number and found:
            break
    if not found and len(there.bases) != len(here.bases):
        found["config groups"] = str(len(there.bases)), str(len(here.bases))
    return found


def _of_bases(
    choices: Mapping[str, str], there: Mapping[str, Any], here: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    ours, theirs = dict(dotted(there)), dict(dotted(here))
    keys = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    named = {key: key.removeprefix("settings.") for key in keys}
    return {named[key]: (as_said(ours.get(key)), as_said(theirs.get(key))) for key in keys}


def _parameter(one: Any) -> str:
    if one is None:
        return "not searched"
    when = "".join(f" where {key}={as_said(values)}" for key, values in one.when.items())
    return f"{one}{when}"


def as_said(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = {key: one for key, one in value.model_dump().items() if one is not None}
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_said(one)}" for key, one in value.items()) + "}"
    return as_text(value)
