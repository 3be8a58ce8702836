"""What a search comes to, in numbers: its trials, what fresh seeds confirm, importances, a row per group, the front.

The study says what was asked and decided (`mmprompt.studies.study`), the manifest which runs that are. Values of runs are those of
`analysis.reading`, from their W&B records wherever those are read, with `result.json` in their place. Scores at rungs are from
the files in which runs report while they train, and are in the store alone.
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

from analysis.frame import WRONG, Sweep
from analysis.manifest import axis_value
from analysis.reading import assemble
from analysis.sources import Source
from analysis.statistics import COUNTED, renamed
from mmprompt.runs.store import Store
from mmprompt.studies.confirmation import Confirmed, compared
from mmprompt.studies.intervals import Interval
from mmprompt.studies.outcomes import Picture, Reader, RunOutcome
from mmprompt.studies.study import SCORE, Definition, Group, Parameter, Settings, Study

WARM = "warm"  # in place of a trial's number
ENDED = ("done", "stopped", "diverged", "failed")  # states of trials that are over, in the order in which they are said
EDGE = 0.02  # of a range, of its logarithm where it is logarithmic: so near to an end is at the end
NOT_IN_ALL, TOO_FEW = "not in all trials", "too few trials"  # why a key has no importance
QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


@dataclass(frozen=True)
class Entry:
    """A candidate of the confirmation, and what its fresh seeds say."""

    group: int
    rank: int  # 0: the default; 1: the best of the others by the mean on validation
    found: Confirmed
    metric: str
    validation: str
    states: Mapping[int, str]  # of its runs, by seed
    device_hours: float  # of all its runs

    @property
    def settings(self) -> Settings:
        return self.found.candidate.settings

    @property
    def trial(self) -> int | str:
        return WARM if self.found.candidate.trial is None else self.found.candidate.trial

    @property
    def unsettled(self) -> int:
        """How many of its runs have not all their scores yet, and may get them."""
        lacking = {seed for seed in self.states for values in self.found.scores.values() if seed not in values}
        return sum(self.states[seed] not in ("diverged", "failed", *WRONG) for seed in lacking)


@dataclass(frozen=True)
class Searched:
    """A study, read: what was decided, and what its runs came to."""

    sweep: Sweep  # its manifest, and every run as a point
    picture: Picture
    entries: Sequence[Entry]  # of each group the default, then candidates, the best on validation first

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def definition(self) -> Definition:
        return self.picture.definition

    @property
    def labels(self) -> list[str]:
        """Of its groups: `method=prompt`; one that is empty without `each`."""
        return [self.definition.label(group) for group in range(len(self.definition.groups))]

    @property
    def names(self) -> list[str]:
        """Of its groups without the keys: `prompt`."""
        return [" ".join(map(str, group.values())) for group in self.definition.groups]

    @property
    def is_begun(self) -> bool:
        """Whether anything has come to something."""
        return bool(self.definition.warm) or any(one.state != "open" or one.rungs for one in self.picture.outcomes)

    @property
    def is_over(self) -> bool:
        return bool(self.entries) and not any(entry.unsettled for entry in self.entries)

    @property
    def confirming(self) -> tuple[int, int]:
        """Of the runs that confirm how many are settled, of how many."""
        total = sum(len(entry.states) for entry in self.entries)
        return total - sum(entry.unsettled for entry in self.entries), total

    def of(self, group: int) -> list[Entry]:
        return [entry for entry in self.entries if entry.group == group]

    def best(self, group: int) -> Entry | None:
        """The best candidate on fresh seeds of validation, other than the default; None if none has a score there."""
        others = [entry for entry in self.of(group) if entry.rank]
        return others[0] if others and others[0].found.intervals[others[0].validation].n else None

    def parameters(self, group: int) -> list[Parameter]:
        """Those that can apply in a group."""
        known = {**self.definition.fixed, **self.definition.groups[group]}
        return [
            one
            for one in self.definition.space
            if all(known.get(key, values[0]) in values for key, values in one.when.items())
        ]


def read_search(store: Store, manifest: dict[str, Any], source: Source, deep: bool = False) -> Searched:
    """`deep`: see `assemble`. Raises StoreError for a damaged or a foreign file in the study's folder."""
    sweep = assemble(store, manifest, source, deep)
    reader = Recorded(Study(store, manifest["search"]), sweep)
    picture = reader.look()
    groups = picture.confirmation.groups if picture.confirmation else []
    return Searched(
        sweep, picture, [entry for group in groups for entry in _entries(picture.definition, group, reader)]
    )


class Recorded(Reader):
    """Reads a study's runs as the frame has them, and those of which it has no values as they are in the store."""

    def __init__(self, study: Study, sweep: Sweep) -> None:
        super().__init__(study)
        self._rows = {row["run"]: row for row in sweep.frame.to_dict("records")}

    def run(self, run: str, task: str) -> RunOutcome:
        if self.is_wrong(run):  # of what does not belong together nothing is counted
            return RunOutcome("failed", {}, {}, 0.0, [])
        found, definition = super().run(run, task), self.study.definition
        about = definition.tasks[task]
        columns = {
            one: f"{about['validation']}/{about['metric']}" if one == SCORE else one for one in definition.objective
        }
        values = {one: self.value(run, column) for one, column in columns.items()}
        if any(math.isnan(value) for value in values.values()):
            return found
        hours = self.value(run, "device_hours")
        return replace(
            found, state="done", values=values, device_hours=found.device_hours if math.isnan(hours) else hours
        )

    def is_wrong(self, run: str) -> bool:
        return self._rows.get(run, {}).get("state") in WRONG

    def state(self, run: str, outcome: RunOutcome) -> str:
        return self._rows[run]["state"] if self.is_wrong(run) else outcome.state

    def value(self, run: str, column: str) -> float:
        """NaN where there is none."""
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
            is_wrong = any(reader.is_wrong(run) for run in candidate.runs.values())
            by_split[split] = {seed: value for seed, value in values.items() if not math.isnan(value) and not is_wrong}
        scores.append(by_split)
    for rank, found in enumerate(compared(group.candidates, scores)):
        task = definition.task_of(found.candidate.settings, group.group)
        runs = {int(seed): reader.run(run, task) for seed, run in found.candidate.runs.items()}
        about = definition.tasks[task]
        yield Entry(
            group=group.group,
            rank=rank,
            found=found,
            metric=about["metric"],
            validation=about["validation"],
            states={seed: reader.state(found.candidate.runs[str(seed)], run) for seed, run in runs.items()},
            device_hours=sum(run.device_hours for run in runs.values()),
        )


def trials(searched: Searched) -> pd.DataFrame:
    """A row per trial, by group; warm trials before the group's own.

    Columns: group (its label), index (the trial's place in its group from 0 on; below 0: warm), trial (its number, or `WARM`),
    origin, state, rung (the furthest at which it was compared, in updates), rung_score,
    first_rung_score (where all can be compared), each objective (mean over seeds; NaN
    of a trial that is not done), best (the best of the first objective so far), a column per searched key (None where it does
    not apply), spent_device_hours (of all its runs), planned (how many runs), seeds and runs.
    """
    definition = searched.definition
    rows = []
    for group, label in enumerate(searched.labels):
        warm = [one for one in definition.warm if one.group == group]
        here: list[dict[str, Any]] = []
        for index, one in enumerate(warm, -len(warm)):
            about = {
                "index": index,
                "trial": WARM,
                "origin": WARM,
                "state": "done",
                "rung": None,
                "rung_score": math.nan,
                "first_rung_score": math.nan,
            }
            about |= dict(zip(definition.objective, one.values, strict=True)) | _columns(definition, one.settings)
            here.append(about | {"spent_device_hours": math.nan} | _runs(one.runs))
        for index, outcome in enumerate(searched.picture.of(group)):
            trial, rung = outcome.trial, max(outcome.rungs, default=None)
            about = {
                "index": index,
                "trial": trial.number,
                "origin": trial.origin,
                "state": outcome.state,
                "rung": rung,
            }
            about["rung_score"] = math.nan if rung is None else outcome.rungs[rung]
            about["first_rung_score"] = math.nan if rung is None else outcome.rungs[min(outcome.rungs)]
            values = outcome.values or [math.nan] * len(definition.objective)
            about |= dict(zip(definition.objective, values, strict=True)) | _columns(definition, trial.settings)
            runs = {str(seed): trial.runs[str(seed)] for seed in outcome.seeds}
            here.append(about | {"spent_device_hours": outcome.device_hours} | _runs(runs))
        best = _best_so_far(definition, here)
        rows += [{"group": label, **row, "best": value} for row, value in zip(here, best, strict=True)]
    return _frame(definition, rows)


def _frame(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Settings stay what they are: a column that not all rows have a value in would turn whole numbers into others."""
    frame = pd.DataFrame(rows)
    keys = [one.key for one in definition.space if rows]
    return frame.assign(**{key: pd.Series([row[key] for row in rows], frame.index, dtype=object) for key in keys})


def _runs(runs: Mapping[str, str]) -> dict[str, Any]:
    return {"planned": len(runs), "seeds": " ".join(runs), "runs": " ".join(runs.values())}


def _columns(definition: Definition, settings: Settings) -> dict[str, Any]:
    """A value per searched key, as text where it is neither number nor word."""
    return {one.key: axis_value(settings, one.key) if one.key in settings else None for one in definition.space}


def _best_so_far(definition: Definition, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    objective, direction = next(iter(definition.objective.items()))
    better = np.fmax if direction == "maximize" else np.fmin
    return [float(value) for value in accumulate((row[objective] for row in rows), better)]


def top(searched: Searched, rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """Of the rows of one group the best `count`: done ones by the first objective, then stopped ones, the furthest first."""
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
    """A row per candidate and split, by group; the default first, then by the mean on validation.

    Columns: group, trial, origin, rank (0: the default, 1: the best of the others), baseline (whether it is the default), a
    column per searched key, split, metric, validation (whether the split is), value, lower, upper, n, planned, failed,
    diverged, conflict and unreadable (how many of its runs are), difference from the default and its interval,
    `search_OBJECTIVE` (its value in the search), spent_device_hours, seeds, values (in their order) and runs.
    """
    definition = searched.definition
    rows = []
    for entry in searched.entries:
        candidate = entry.found.candidate
        about = {"group": searched.labels[entry.group], "trial": entry.trial, "origin": candidate.origin}
        about |= {"rank": entry.rank, "baseline": entry.rank == 0, **_columns(definition, entry.settings)}
        counts = Counter(entry.states.values())
        values = candidate.found or [math.nan] * len(definition.objective)
        found = {f"search_{one}": value for one, value in zip(definition.objective, values, strict=True)}
        for split, scores in entry.found.scores.items():
            difference = entry.found.differences.get(split, Interval(math.nan, math.nan, math.nan, 0))
            rows.append(
                about
                | {"split": split, "metric": entry.metric, "validation": split == entry.validation}
                | entry.found.intervals[split]._asdict()
                | {"planned": len(entry.states)}
                | {state: counts[state] for state in COUNTED}
                | renamed(difference, "difference")
                | found
                | {
                    "spent_device_hours": entry.device_hours,
                    "seeds": " ".join(map(str, scores)),
                    "values": " ".join(map(str, scores.values())),
                    "runs": " ".join(candidate.runs[str(seed)] for seed in scores),
                }
            )
    return _frame(definition, rows)


def importances(searched: Searched) -> pd.DataFrame:
    """A row per group, objective and searched key: importance (NaN, and why, where there is none), and n, trials.

    Of done trials; with rungs of all that came to the first, by their scores there: who is stopped there has no other.

    Columns: group, objective, key, importance (shares of 1), why, n.
    """
    from mmprompt.studies import sampler

    definition, picture = searched.definition, searched.picture
    rows = []
    for group, label in enumerate(searched.labels):
        after = max((one.trial.number for one in picture.outcomes), default=-1) + 1
        told = picture.told(group, after, picture.knew(group))
        if definition.rungs:
            first = definition.rungs[0]
            told = [replace(one, state="done", values=[one.rungs[first]]) for one in told if first in one.rungs]
        shares = sampler.importances(definition, group, told)
        n = sum(one.state == "done" for one in told)
        for objective in definition.objective:
            for parameter in searched.parameters(group):
                share = shares.get(objective, {}).get(parameter.key)
                why = "" if share is not None else NOT_IN_ALL if shares else TOO_FEW
                row = {"group": label, "objective": objective, "key": parameter.key}
                rows.append(row | {"importance": math.nan if share is None else share, "why": why, "n": n})
    return pd.DataFrame(rows)


def groups(searched: Searched, rows: pd.DataFrame) -> pd.DataFrame:
    """A row per group, from the rows of `trials`.

    Columns: group, trials, warm, a count for each state, share_diverged (of trials that are over), the quartiles of the first
    objective over done trials, warm ones left out; with rungs those of the score at the first rung, of all that came there: who
    is stopped there has no other, and those that went on are the best; device_hours (of trials) and confirmation_hours.
    """
    objective = next(iter(searched.definition.objective))
    found = []
    for group, label in enumerate(searched.labels):
        here = rows[rows["group"] == label]
        own = here[here["origin"] != WARM]
        counts = own["state"].value_counts()
        ended = sum(int(counts.get(state, 0)) for state in ENDED)
        spread = own["first_rung_score" if searched.definition.rungs else objective].dropna()
        found.append(
            {"group": label, "trials": len(own), "warm": len(here) - len(own)}
            | {state: int(counts.get(state, 0)) for state in (*ENDED, "open")}
            | {"share_diverged": counts.get("diverged", 0) / ended if ended else math.nan}
            | {name: float(spread.quantile(share)) for name, share in QUARTILES.items()}
            | {"device_hours": float(own["spent_device_hours"].sum())}
            | {"confirmation_hours": sum(entry.device_hours for entry in searched.of(group))}
        )
    return pd.DataFrame(found)


def front(searched: Searched) -> pd.DataFrame:
    """Of a study with several objectives what no other trial is better than in all of them, by group.

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
            for one in searched.picture.best(group)
        ],
    )


def notes(searched: Searched) -> list[str]:
    """What a reader of the numbers has to know."""
    definition, outcomes = searched.definition, searched.picture.outcomes
    found = [*searched.sweep.notes]
    if not searched.is_over:
        over = sum(one.state in ENDED for one in outcomes)
        settled, total = searched.confirming
        confirming = f"{settled} of {total} runs that confirm are done" if total else "nothing is confirmed yet"
        found.append(
            f"INCOMPLETE: the search is not over: {over} of {len(outcomes)} trials made so far are, and {confirming}"
        )
    failed = [str(one.trial.number) for one in outcomes if one.state == "failed"]
    if failed:
        found.append(
            f"trials {', '.join(failed)} failed, for reasons that do not lie in their settings; nothing is concluded from them"
        )
    if definition.warm:
        runs, s = sum(len(one.runs) for one in definition.warm), "s" if len(definition.warm) > 1 else ""
        found.append(f"{runs} finished runs counted as {len(definition.warm)} warm trial{s}, besides the budget")
    found += [f"left out of the warm trials: {one}" for one in definition.left_out]
    for group, label in enumerate(searched.labels):
        prefix = f"{label}: " if label else ""
        if searched.of(group) and len(searched.of(group)) == 1:
            found.append(f"{prefix}nothing but the default was confirmed")
        found += [f"{prefix}{note}" for note in edges(searched, group)]
    return found


def edges(searched: Searched, group: int) -> list[str]:
    """Where the best has a number at an end of its range: of the fresh seeds, the default among them, else of the search.

    Of several objectives there is no best.
    """
    if len(searched.definition.objective) > 1:
        return []
    scored = [entry for entry in searched.of(group) if entry.found.intervals[entry.validation].n]
    if scored:
        settings = max(scored, key=lambda entry: entry.found.intervals[entry.validation].value).settings
    else:
        settings = next((one.settings for one in searched.picture.best(group)), {})
    return [
        f"the best {one.key}, {settings[one.key]:g}, is at the edge of its range {one}; extend it"
        for one in searched.definition.space
        if one.key in settings and is_at_edge(one, settings[one.key])
    ]


def is_at_edge(parameter: Parameter, value: Any) -> bool:
    """False for choices, and for a value outside of the range, as a default may have."""
    if parameter.kind == "choice" or not parameter.contains(value):
        return False
    assert parameter.low is not None and parameter.high is not None
    stretch = math.log if parameter.log else float
    low, high = stretch(parameter.low), stretch(parameter.high)
    share = (stretch(value) - low) / (high - low)
    return min(share, 1 - share) <= EDGE


def csv(searched: Searched, rows: pd.DataFrame, confirmed: pd.DataFrame) -> str:
    """Every trial, phase search, and every candidate and split, phase confirmation: the columns of `trials` and `confirmation`."""
    parts = [rows.drop(columns=["index", "best"]).assign(phase="search"), confirmed.assign(phase="confirmation")]
    frame = pd.concat([part for part in parts if len(part)], ignore_index=True)
    first = ["phase", "group", "trial", "origin", "state", *(one.key for one in searched.definition.space)]
    named = [column for column in first if column in frame]
    for column in ("rung", "rank", "n", "planned", *COUNTED, "difference_n"):
        if column in frame:
            frame[column] = frame[column].astype("Int64")
    return frame[[*named, *(column for column in frame if column not in named)]].to_csv(index=False)
