"""The reading of a search: its study, with the results of its runs and the scores of its confirmation.

The study holds the trials and decisions (`mmprompt.studies.study`), the manifest their runs. Values of runs come from
`analysis.records.reading`: from their W&B records, or from `result.json` in their place. Scores at rungs come from the
progress files that runs write while they train, which exist in the store alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.records.frame import WRONG, Sweep
from analysis.records.reading import assemble
from analysis.records.sources import Source
from mmprompt.runs.store import Store
from mmprompt.studies.confirmation import Confirmed, compared
from mmprompt.studies.outcomes import RunOutcome, StudyProgress, StudyReader
from mmprompt.studies.schemas import SCORE, Definition, Group, Parameter, Settings
from mmprompt.studies.study import Study

WARM = "warm"  # stands in place of a trial's number


@dataclass(frozen=True)
class Entry:
    """A candidate of the confirmation with its scores on fresh seeds."""

    group: int
    rank: int  # 0: the default; 1: the best of the others by the mean on validation
    confirmed: Confirmed
    metric: str
    validation: str
    states: Mapping[int, str]  # states of its runs, by seed
    device_hours: float  # sum over its runs

    @property
    def settings(self) -> Settings:
        return self.confirmed.candidate.settings

    @property
    def trial(self) -> int | str:
        return WARM if self.confirmed.candidate.trial is None else self.confirmed.candidate.trial

    @property
    def unsettled(self) -> int:
        """The number of its runs that lack a score and may still get it."""
        seeds_without_score = {
            seed for seed in self.states for values in self.confirmed.scores.values() if seed not in values
        }
        return sum(self.states[seed] not in ("diverged", "failed", *WRONG) for seed in seeds_without_score)


@dataclass(frozen=True)
class Searched:
    """A study with its decisions and the results of its runs."""

    sweep: Sweep  # its manifest, with every run as a point
    progress: StudyProgress
    entries: Sequence[Entry]  # for each group the default, then the candidates, the best on validation first

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def definition(self) -> Definition:
        return self.progress.definition

    @property
    def labels(self) -> list[str]:
        """The labels of its groups: `method=prompt`. Without `each` there is one group with an empty label."""
        return [self.definition.label(group) for group in range(len(self.definition.groups))]

    @property
    def names(self) -> list[str]:
        """The names of its groups, without the keys: `prompt`."""
        return [" ".join(map(str, group.values())) for group in self.definition.groups]

    @property
    def is_begun(self) -> bool:
        """Whether any trial has a result, be it a score at a rung."""
        return bool(self.definition.warm) or any(one.state != "open" or one.rungs for one in self.progress.outcomes)

    @property
    def is_over(self) -> bool:
        """Whether the confirmation has begun and all its runs are settled."""
        return bool(self.entries) and not any(entry.unsettled for entry in self.entries)

    @property
    def confirming(self) -> tuple[int, int]:
        """The number of settled runs of the confirmation, and the number of all its runs."""
        total = sum(len(entry.states) for entry in self.entries)
        return total - sum(entry.unsettled for entry in self.entries), total

    def entries_of(self, group: int) -> list[Entry]:
        return [entry for entry in self.entries if entry.group == group]

    def best(self, group: int) -> Entry | None:
        """The best candidate other than the default, by validation on fresh seeds; None if none has a score there."""
        others = [entry for entry in self.entries_of(group) if entry.rank]
        return others[0] if others and others[0].confirmed.intervals[others[0].validation].n else None

    def parameters(self, group: int) -> list[Parameter]:
        """The searched parameters that can apply in a group."""
        fixed_settings = {**self.definition.fixed, **self.definition.groups[group]}
        return [
            parameter
            for parameter in self.definition.space
            if all(fixed_settings.get(key, values[0]) in values for key, values in parameter.when.items())
        ]


def read_search(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Searched:
    """Reads a search. `deep`: see `assemble`. Raises StoreError for a damaged or a foreign file in the study's folder."""
    sweep = assemble(store, manifest, source, deep)
    reader = Recorded(Study(store, manifest["search"]), sweep)
    progress = reader.read()
    groups = progress.confirmation.groups if progress.confirmation else []
    return Searched(
        sweep, progress, [entry for group in groups for entry in _entries(progress.definition, group, reader)]
    )


class Recorded(StudyReader):
    """Reads a study's runs from the frame, and those without values there from the store."""

    def __init__(self, study: Study, sweep: Sweep) -> None:
        super().__init__(study)
        self._rows = {row["run"]: row for row in sweep.frame.to_dict("records")}

    def run(self, run: str, task: str) -> RunOutcome:
        if self.has_conflict(run):  # none of its values counts
            return RunOutcome("failed", {}, {}, 0.0, [])
        stored, definition = super().run(run, task), self.study.definition
        task_record = definition.tasks[task]
        columns = {
            objective: f"{task_record['validation']}/{task_record['metric']}" if objective == SCORE else objective
            for objective in definition.objective
        }
        values = {objective: self.value(run, column) for objective, column in columns.items()}
        if any(math.isnan(value) for value in values.values()):
            return stored
        hours = self.value(run, "device_hours")
        return replace(
            stored, state="done", values=values, device_hours=stored.device_hours if math.isnan(hours) else hours
        )

    def has_conflict(self, run: str) -> bool:
        return self._rows.get(run, {}).get("state") in WRONG

    def state(self, run: str, outcome: RunOutcome) -> str:
        return self._rows[run]["state"] if self.has_conflict(run) else outcome.state

    def value(self, run: str, column: str) -> float:
        """A run's value in this column; NaN if it has none."""
        value = self._rows.get(run, {}).get(column)
        return math.nan if value is None else float(value)


def _entries(definition: Definition, group: Group, reader: Recorded) -> Iterator[Entry]:
    scores = []
    for candidate in group.candidates:
        task = definition.task_of(candidate.settings, group.group)
        metric = definition.tasks[task]["metric"]
        by_split = {}
        for split in definition.splits[task]:
            values = {int(seed): reader.value(run, f"{split}/{metric}") for seed, run in candidate.runs.items()}
            is_wrong = any(reader.has_conflict(run) for run in candidate.runs.values())
            by_split[split] = {seed: value for seed, value in values.items() if not math.isnan(value) and not is_wrong}
        scores.append(by_split)
    for rank, confirmed in enumerate(compared(group.candidates, scores)):
        task = definition.task_of(confirmed.candidate.settings, group.group)
        runs = {int(seed): reader.run(run, task) for seed, run in confirmed.candidate.runs.items()}
        task_record = definition.tasks[task]
        yield Entry(
            group=group.group,
            rank=rank,
            confirmed=confirmed,
            metric=task_record["metric"],
            validation=task_record["validation"],
            states={seed: reader.state(confirmed.candidate.runs[str(seed)], run) for seed, run in runs.items()},
            device_hours=sum(run.device_hours for run in runs.values()),
        )
