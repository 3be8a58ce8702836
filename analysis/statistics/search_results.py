"""The results of a search as frames: its trials, the confirmation on fresh seeds, importances, a row per group, the front.

The study holds the trials and decisions (`mmprompt.studies.study`), the manifest their runs. Values of runs come from
`analysis.records.reading`: from their W&B records, or from `result.json` in their place. Scores at rungs come from the
progress files that runs write while they train, which exist in the store alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.frame import WRONG, Sweep
from analysis.records.manifest import axis_value
from analysis.records.reading import assemble
from analysis.records.sources import Source
from analysis.statistics.cell_statistics import COUNTED, interval_columns
from mmprompt.runs.store import Store
from mmprompt.studies.confirmation import Confirmed, compared
from mmprompt.studies.intervals import Interval
from mmprompt.studies.outcomes import RunOutcome, StudyProgress, StudyReader
from mmprompt.studies.schemas import SCORE, Definition, Group, Parameter, Settings
from mmprompt.studies.study import Study

WARM = "warm"  # stands in place of a trial's number
ENDED = ("done", "stopped", "diverged", "failed")  # states of trials that have ended, in the order of the tables
EDGE = (
    0.02  # share of a range (of its logarithm, if it is logarithmic): a value as near as this to an end is at the edge
)
NOT_IN_ALL, TOO_FEW = "not in all trials", "too few trials"  # why a key has no importance
QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


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


def trials(searched: Searched) -> pd.DataFrame:
    """Returns a row per trial, by group; warm trials come before the group's own.

    Columns: group (its label), index (the trial's place in its group, from 0; below 0 for warm trials), trial (its number, or
    `WARM`), origin, state, rung (the last one at which it was compared, in updates), rung_score, first_rung_score (comparable
    between all trials), each objective (mean over seeds; NaN for a trial that is not done), best (the best value of the first
    objective so far), a column per searched key (None where it does not apply), spent_device_hours (sum over its runs), planned
    (number of runs), seeds and runs.
    """
    definition = searched.definition
    rows = []
    for group, label in enumerate(searched.labels):
        warm_trials = [warm_trial for warm_trial in definition.warm if warm_trial.group == group]
        group_rows: list[dict[str, Any]] = []
        for index, warm_trial in enumerate(warm_trials, -len(warm_trials)):
            columns_of_trial = {
                "index": index,
                "trial": WARM,
                "origin": WARM,
                "state": "done",
                "rung": None,
                "rung_score": math.nan,
                "first_rung_score": math.nan,
            }
            columns_of_trial |= dict(zip(definition.objective, warm_trial.values, strict=True)) | _columns(
                definition, warm_trial.settings
            )
            group_rows.append(columns_of_trial | {"spent_device_hours": math.nan} | _runs(warm_trial.runs))
        for index, outcome in enumerate(searched.progress.of(group)):
            trial, rung = outcome.trial, max(outcome.rungs, default=None)
            columns_of_trial = {
                "index": index,
                "trial": trial.number,
                "origin": trial.origin,
                "state": outcome.state,
                "rung": rung,
            }
            columns_of_trial["rung_score"] = math.nan if rung is None else outcome.rungs[rung]
            columns_of_trial["first_rung_score"] = math.nan if rung is None else outcome.rungs[min(outcome.rungs)]
            values = outcome.values or [math.nan] * len(definition.objective)
            columns_of_trial |= dict(zip(definition.objective, values, strict=True)) | _columns(
                definition, trial.settings
            )
            runs = {str(seed): trial.runs[str(seed)] for seed in outcome.seeds}
            group_rows.append(columns_of_trial | {"spent_device_hours": outcome.device_hours} | _runs(runs))
        best = _best_so_far(definition, group_rows)
        rows += [{"group": label, **row, "best": value} for row, value in zip(group_rows, best, strict=True)]
    return _frame(definition, rows)


def _frame(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The rows as a frame whose settings keep their types: pandas would turn integers with gaps into floats."""
    frame = pd.DataFrame(rows)
    keys = [one.key for one in definition.space if rows]
    return frame.assign(**{key: pd.Series([row[key] for row in rows], frame.index, dtype=object) for key in keys})


def _runs(runs: Mapping[str, str]) -> dict[str, Any]:
    return {"planned": len(runs), "seeds": " ".join(runs), "runs": " ".join(runs.values())}


def _columns(definition: Definition, settings: Settings) -> dict[str, Any]:
    """The value of each searched key; as text if it is neither a number nor a word, None if it does not apply."""
    return {one.key: axis_value(settings, one.key) if one.key in settings else None for one in definition.space}


def _best_so_far(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    objective, direction = next(iter(definition.objective.items()))
    better = np.fmax if direction == "maximize" else np.fmin
    return [float(value) for value in accumulate((row[objective] for row in rows), better)]


def top(searched: Searched, rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Returns the best `count` rows of one group: done trials by the first objective, then stopped trials, the furthest first."""
    objective, direction = next(iter(searched.definition.objective.items()))
    ended = rows[rows["state"].isin(("done", "stopped"))]
    keys = pd.DataFrame(
        {
            "stopped": ended["state"] != "done",
            "value": (-1 if direction == "maximize" else 1) * ended[objective],
            "rung": -ended["rung"].astype("float64"),
            "rung_score": -ended["rung_score"],
        }
    )
    keys.loc[~keys["stopped"], ["rung", "rung_score"]] = 0.0
    return ended.loc[keys.sort_values(list(map(str, keys)), kind="stable").index[:count]]


def confirmation(searched: Searched) -> pd.DataFrame:
    """Returns a row per candidate and split, by group: the default first, then by the mean on validation.

    Columns: group, trial, origin, rank (0: the default, 1: the best of the others), baseline (whether it is the default), a
    column per searched key, split, metric, validation (whether this is the validation split), value, lower, upper, n, planned,
    failed, diverged, conflict and unreadable (numbers of its runs in this state), difference from the default and its interval,
    `search_OBJECTIVE` (its value in the search), spent_device_hours, seeds, values (in the order of seeds) and runs.
    """
    definition = searched.definition
    rows = []
    for entry in searched.entries:
        candidate = entry.confirmed.candidate
        candidate_columns = {"group": searched.labels[entry.group], "trial": entry.trial, "origin": candidate.origin}
        candidate_columns |= {"rank": entry.rank, "baseline": entry.rank == 0, **_columns(definition, entry.settings)}
        counts = Counter(entry.states.values())
        values = candidate.found or [math.nan] * len(definition.objective)
        search_values = {f"search_{one}": value for one, value in zip(definition.objective, values, strict=True)}
        for split, scores in entry.confirmed.scores.items():
            difference = entry.confirmed.differences.get(split, Interval(math.nan, math.nan, math.nan, 0))
            rows.append(
                candidate_columns
                | {"split": split, "metric": entry.metric, "validation": split == entry.validation}
                | entry.confirmed.intervals[split]._asdict()
                | {"planned": len(entry.states)}
                | {state: counts[state] for state in COUNTED}
                | interval_columns(difference, "difference")
                | search_values
                | {
                    "spent_device_hours": entry.device_hours,
                    "seeds": " ".join(map(str, scores)),
                    "values": " ".join(map(str, scores.values())),
                    "runs": " ".join(candidate.runs[str(seed)] for seed in scores),
                }
            )
    return _frame(definition, rows)


def importances(searched: Searched) -> pd.DataFrame:
    """Returns a row per group, objective and searched key.

    They are computed over done trials. With rungs, they are computed over all trials that reached the first rung, by their scores
    there, as a trial that is stopped there has no other score.

    Columns: group, objective, key, importance (shares of 1; NaN if there is none), why (the reason for NaN), n (trials).
    """
    from mmprompt.studies import sampler

    definition, progress = searched.definition, searched.progress
    rows = []
    for group, label in enumerate(searched.labels):
        after = max((one.trial.number for one in progress.outcomes), default=-1) + 1
        trials = progress.told(group, after, progress.knew(group))
        if definition.rungs:
            first = definition.rungs[0]
            trials = [replace(one, state="done", values=[one.rungs[first]]) for one in trials if first in one.rungs]
        shares = sampler.importances(definition, group, trials)
        n = sum(one.state == "done" for one in trials)
        for objective in definition.objective:
            for parameter in searched.parameters(group):
                share = shares.get(objective, {}).get(parameter.key)
                why = "" if share is not None else NOT_IN_ALL if shares else TOO_FEW
                row = {"group": label, "objective": objective, "key": parameter.key}
                rows.append(row | {"importance": math.nan if share is None else share, "why": why, "n": n})
    return pd.DataFrame(rows)


def groups(searched: Searched, rows: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per group. `rows`: from `trials`.

    Columns: group, trials, warm, a count for each state, share_diverged (among trials that have ended), the quartiles of the first
    objective over done trials without warm ones, device_hours (of trials) and confirmation_hours. With rungs, the quartiles are
    those of the score at the first rung over all trials that reached it: a trial that is stopped there has no other score, and
    those that continued are the best.
    """
    objective = next(iter(searched.definition.objective))
    group_rows = []
    for group, label in enumerate(searched.labels):
        rows_of_group = rows[rows["group"] == label]
        own_rows = rows_of_group[rows_of_group["origin"] != WARM]
        counts = own_rows["state"].value_counts()
        ended = sum(int(counts.get(state, 0)) for state in ENDED)
        spread = own_rows["first_rung_score" if searched.definition.rungs else objective].dropna()
        group_rows.append(
            {"group": label, "trials": len(own_rows), "warm": len(rows_of_group) - len(own_rows)}
            | {state: int(counts.get(state, 0)) for state in (*ENDED, "open")}
            | {"share_diverged": counts.get("diverged", 0) / ended if ended else math.nan}
            | {name: float(spread.quantile(share)) for name, share in QUARTILES.items()}
            | {"device_hours": float(own_rows["spent_device_hours"].sum())}
            | {"confirmation_hours": sum(entry.device_hours for entry in searched.entries_of(group))}
        )
    return pd.DataFrame(group_rows)


def front(searched: Searched) -> pd.DataFrame:
    """Returns the trials of a study with several objectives that no other trial beats in all of them, by group.

    Columns: group, trial, a column per searched key, each objective, planned, seeds, runs.
    """
    definition = searched.definition
    return _frame(
        definition,
        [
            {"group": label, "trial": WARM if one.trial is None else one.trial}
            | _columns(definition, one.settings)
            | dict(zip(definition.objective, one.values, strict=True))
            | _runs(dict(list(one.runs.items())[: one.count]))
            for group, label in enumerate(searched.labels)
            for one in searched.progress.best(group)
        ],
    )


def notes(searched: Searched) -> list[str]:
    """Returns the notes for the reader of the numbers."""
    definition, outcomes = searched.definition, searched.progress.outcomes
    sentences = [*searched.sweep.notes]
    if not searched.is_over:
        ended = sum(one.state in ENDED for one in outcomes)
        settled, total = searched.confirming
        confirming = f"{settled} of {total} confirmation runs are done" if total else "nothing is confirmed yet"
        sentences.append(
            f"INCOMPLETE: the search is not over: {ended} of {len(outcomes)} trials made so far are, and {confirming}"
        )
    failed = [str(one.trial.number) for one in outcomes if one.state == "failed"]
    if failed:
        sentences.append(
            f"trials {', '.join(failed)} failed, for reasons that do not lie in their settings; nothing is concluded from them"
        )
    if definition.warm:
        runs, s = sum(len(one.runs) for one in definition.warm), "s" if len(definition.warm) > 1 else ""
        sentences.append(f"{runs} finished runs counted as {len(definition.warm)} warm trial{s}, besides the budget")
    sentences += [f"left out of the warm trials: {one}" for one in definition.left_out]
    for group, label in enumerate(searched.labels):
        prefix = f"{label}: " if label else ""
        if searched.entries_of(group) and len(searched.entries_of(group)) == 1:
            sentences.append(f"{prefix}nothing but the default was confirmed")
        sentences += [f"{prefix}{note}" for note in edges(searched, group)]
    return sentences


def edges(searched: Searched, group: int) -> list[str]:
    """Returns a sentence for each setting of the best trial that lies at an edge of its range.

    The best is that of the confirmation, where the default takes part, or that of the search while nothing is confirmed. With
    several objectives there is no best.
    """
    if len(searched.definition.objective) > 1:
        return []
    scored = [entry for entry in searched.entries_of(group) if entry.confirmed.intervals[entry.validation].n]
    if scored:
        settings = max(scored, key=lambda entry: entry.confirmed.intervals[entry.validation].value).settings
    else:
        settings = next((one.settings for one in searched.progress.best(group)), {})
    return [
        f"the best {one.key}, {settings[one.key]:g}, is at the edge of its range {one}; extend it"
        for one in searched.definition.space
        if one.key in settings and is_at_edge(one, settings[one.key])
    ]


def is_at_edge(parameter: Parameter, value: Any) -> bool:
    """Whether a value lies at an edge of its range. False for choices, and for a value outside of the range, as defaults may be."""
    if parameter.kind == "choice" or not parameter.contains(value):
        return False
    assert parameter.low is not None and parameter.high is not None
    stretch = math.log if parameter.log else float
    low, high = stretch(parameter.low), stretch(parameter.high)
    share = (stretch(value) - low) / (high - low)
    return min(share, 1 - share) <= EDGE


def csv(searched: Searched, rows: pd.DataFrame, confirmed: pd.DataFrame) -> str:
    """Returns all trials (phase search) and all candidates per split (phase confirmation) as CSV.

    Columns: phase, then those of `trials` and `confirmation`.
    """
    parts = [rows.drop(columns=["index", "best"]).assign(phase="search"), confirmed.assign(phase="confirmation")]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    first = ["phase", "group", "trial", "origin", "state", *(one.key for one in searched.definition.space)]
    leading = [column for column in first if column in frame]
    for column in ("rung", "rank", "n", "planned", *COUNTED, "difference_n"):
        if column in frame:
            frame[column] = frame[column].astype("Int64")
    return frame[[*leading, *(column for column in frame if column not in leading)]].to_csv(index=False)
