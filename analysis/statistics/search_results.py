"""The results of a search as frames: its trials, the confirmation on fresh seeds, importances, a row per group, the front."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.manifest import axis_value
from analysis.records.search_reading import WARM, Searched
from analysis.statistics.cell_statistics import COUNTED, interval_columns
from mmprompt.studies.intervals import Interval
from mmprompt.studies.schemas import Definition, Parameter, Settings

ENDED = ("done", "stopped", "diverged", "failed")  # states of trials that have ended, in the order of the tables
EDGE = (
    0.02  # share of a range (of its logarithm, if it is logarithmic): a value as near as this to an end is at the edge
)
NOT_IN_ALL, TOO_FEW = "not in all trials", "too few trials"  # why a key has no importance
QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


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
