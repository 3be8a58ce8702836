"""The tables of a search: what fresh seeds confirm, what was found, groups side by side, the front, importances.

Nothing is selected or computed here. Confirmation comes first: what a search found is optimistic, because it was chosen by
the very number that it is shown with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.layout import NOTHING, Cell, Table, of_frame
from analysis.search import NOT_IN_ALL, QUARTILES, TOO_FEW, WARM, Searched, top
from analysis.table_notes import UNKNOWN, commits
from analysis.tables import INTERVAL, score
from mmprompt.studies.study import SCORE, Definition, Named, as_yaml

SHOWN = 10  # trials; all are in the CSV
OPTIMISTIC = "optimistic"
STATES = ("done", "stopped", "diverged", "failed", "open")  # in the order in which they are counted


def tables(
    searched: Searched,
    trials: pd.DataFrame,
    confirmation: pd.DataFrame,
    groups: pd.DataFrame,
    importances: pd.DataFrame,
    front: pd.DataFrame | None,
) -> list[Table]:
    """Of the frames that `analysis.search` makes; `front`: of a study with several objectives."""
    made = []
    if len(confirmation):
        made.append(confirmed(searched, confirmation))
    if searched.definition.each:
        made.append(fair(searched, groups, confirmation))
    if front is not None and len(front):
        made.append(fronts(searched, front))
    made += found(searched, trials)
    made.append(weights(searched, importances))
    first, *others = made
    return [replace(first, about=(about(searched), commits(searched.sweep.frame))), *others]


# Tables


def confirmed(searched: Searched, rows: pd.DataFrame) -> Table:
    """A row per candidate: a column per split, and per split the difference from the default; beside it the search's own score."""
    definition = searched.definition
    several, with_differences = rows["metric"].nunique() > 1, not rows["baseline"].all()
    named = dict(zip(searched.labels, searched.names, strict=True))
    lines, index = [], []
    for _, here in rows.groupby(["group", "rank"], sort=False):
        names = {
            str(row.split): f"{row.split} ({row.metric})" if several else str(row.split) for row in here.itertuples()
        }
        first = here.iloc[0]
        index.append((named[first["group"]], _name(first), settings_text(definition, first)))
        line: dict[str, Cell | str] = {names[str(row.split)]: score(row) for row in here.itertuples()}
        if with_differences:
            line |= {f"{names[str(row.split)]}: difference": _difference(row) for row in here.itertuples()}
        line |= {f"{OPTIMISTIC} {one}": _found(first, one) for one in definition.objective}
        lines.append(line)
    frame = pd.DataFrame(lines).fillna(NOTHING)
    order = sorted(frame.columns, key=lambda name: (OPTIMISTIC in name, name.endswith(": difference")))
    metric = "" if several else f" ({rows['metric'].iloc[0]})"
    others = max(len(searched.of(group)) for group in range(len(searched.labels))) - 1
    together = (
        f" They hold together for all candidates{' of a group' if definition.each else ''} (Bonferroni)."
        if others > 1
        else ""
    )
    said = [
        f"Confirmation on {_seeds(searched)} fresh seeds, which the search never used: {INTERVAL} over seeds{metric}.",
        "The default, then candidates by their mean on validation, where the best is chosen. Test is shown for these alone.",
    ]
    if with_differences:
        said += [
            f"Difference from the default in points, seed by seed: {INTERVAL} (pairs).{together}",
            f"{UNKNOWN} the interval contains 0: the two are not told apart.",
        ]
    said.append(f"What is {OPTIMISTIC} is the search's own: candidates were chosen by it.")
    frame = _indexed(frame[order], index, [_each(definition), "trial", "settings"])
    return _table(searched, said, frame, grouped=bool(definition.each))


def found(searched: Searched, rows: pd.DataFrame) -> Iterator[Table]:
    """A table per group: its best trials."""
    definition = searched.definition
    several = len(searched.labels) > 1
    for group, label in enumerate(searched.labels):
        here = rows[rows["group"] == label]
        best = top(searched, here, SHOWN)
        if not len(best):
            continue
        keys = [one.key for one in searched.parameters(group)]
        frame = best[keys].map(lambda value: _value(value, NOTHING)).astype(str)
        frame = frame.assign(
            state=best["state"],
            seeds=best["planned"].astype(str),
            **{one: [amount(one, value) for value in best[one]] for one in definition.objective},
        )
        if definition.rungs:
            frame["rung"] = [_value(value, NOTHING) for value in best["rung"]]
            frame["score at the rung"] = [amount(SCORE, value) for value in best["rung_score"]]
        counts = count_text(here[here["origin"] != WARM])
        known = int((here["origin"] == WARM).sum())
        warm = f" and {known} warm" if known else ""
        said = [
            f"What was found{f' with {label}' if several else ''}: the best {len(best)} of {counts}{warm}; all are in the CSV.",
            f"Scores are {OPTIMISTIC}: the best of many is partly luck.",
        ]
        if definition.rungs:
            said.append(
                "Rung: the last update at which a trial was compared. Stopped trials come behind those that are done."
            )
        name = f"found-{group + 1}" if several else "found"
        index = [(_trial(row),) for row in best.itertuples()]
        yield _table(searched, said, _indexed(frame, index, ["trial"]), name)


def fair(searched: Searched, groups: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """A row per group: what it got of the budget, the default and the confirmed best, spread, and what it cost."""
    definition = searched.definition
    lines, index = [], []
    objective = next(iter(definition.objective))
    for name, about in zip(searched.names, groups.to_dict("records"), strict=True):
        line: dict[str, Cell | str] = {
            "trials": " / ".join(str(about[state]) for state in ("done", "stopped", "diverged"))
        }
        settings = NOTHING
        for _, row in rows[(rows["group"] == about["group"]) & (rows["rank"] <= 1)].iterrows() if len(rows) else []:
            if row["rank"]:
                settings = settings_text(definition, row)
            if not row["validation"]:
                line[f"{'best' if row['rank'] else 'default'}, {row['split']}"] = score(row)
                if row["rank"]:
                    line[f"difference, {row['split']}"] = _difference(row)
        values = [amount(objective, about[quartile]) for quartile in QUARTILES]
        line["quartiles"] = " / ".join(values) if not math.isnan(about["median"]) else NOTHING
        line["diverged"] = NOTHING if math.isnan(about["share_diverged"]) else f"{about['share_diverged']:.0%}"
        line["device hours"] = f"{about['device_hours']:.3g} + {about['confirmation_hours']:.3g}"
        lines.append(line)
        index.append((name, settings))
    frame = pd.DataFrame(lines).fillna(NOTHING)
    spread = "the score of done trials in the search"
    if definition.rungs:
        spread = f"the score after {definition.rungs[0]} updates, where every trial is compared"
    said = [
        f"The same budget for each {' and '.join(definition.each)}: default and best on {_seeds(searched)} fresh seeds,"
        f" {INTERVAL} over seeds.",
        "Trials: done / stopped early / diverged. The best is the candidate with the highest mean on validation there.",
        "Difference: best minus default, seed by seed; intervals hold together for all candidates of a group and are not"
        " corrected for the number of groups.",
        f"{UNKNOWN} not told apart.",
        f"Quartiles of {spread}: how much depends on the settings. Diverged: share of the trials that are over. Device"
        " hours: of the trials + of the runs that confirm.",
    ]
    order = sorted(frame.columns, key=lambda name: _rank(name, ["trials", "default", "best", "difference"]))
    return _table(searched, said, _indexed(frame[order], index, [_each(definition), "best settings"]), "groups")


def fronts(searched: Searched, front: pd.DataFrame) -> Table:
    """A row per trial of the front."""
    definition = searched.definition
    frame = pd.DataFrame({one: [amount(one, value) for value in front[one]] for one in definition.objective})
    frame = frame.assign(seeds=front["planned"].astype(str).to_list(), runs=front["runs"].to_list())
    named = dict(zip(searched.labels, searched.names, strict=True))
    index = [(named[row["group"]], str(row["trial"]), settings_text(definition, row)) for _, row in front.iterrows()]
    said = [
        "The front: trials that no other is at least as good as in all objectives and better in one.",
        f"The best of the first objective first. Scores are {OPTIMISTIC}: trials are on the front by them.",
        "Runs: their ids in the store, a seed each.",
    ]
    return _table(searched, said, _indexed(frame, index, [_each(definition), "trial", "settings"]), "front")


def weights(searched: Searched, rows: pd.DataFrame) -> Table:
    """A row per searched key, a column per objective: its importance."""
    from mmprompt.studies.sampler import FEWEST, TOP, TOP_TRIALS

    same = rows["n"].nunique() == 1
    of_n = rows["n"].map(" (n = {})".format)
    names = rows["group"].map(dict(zip(searched.labels, searched.names, strict=True)))
    long = rows.assign(
        text=rows["why"].where(rows["why"] != "", rows["importance"].map("{:.2f}".format)),
        column=rows["objective"] + of_n if same else rows["objective"],
        group=names if same else names + of_n,
    )
    wide = long.pivot(index=["group", "key"], columns="column", values="text").fillna(NOTHING)
    order = pd.MultiIndex.from_frame(long[["group", "key"]].drop_duplicates())
    wide = wide.reindex(index=order, columns=long["column"].drop_duplicates()).rename_axis(columns=None)
    rungs = searched.definition.rungs
    which = f"n trials by their score after {rungs[0]} updates, where all are compared" if rungs else "n done trials"
    said = [
        f"Importances by PED-ANOVA, of {which}: how much of what sets the best {TOP:.0%} ({TOP_TRIALS} at least) apart from the"
        " others lies in each key.",
        "Shares of 1 among the keys that all trials have. They describe the trials that there were, not the space: a sampler"
        " tries most where it expects most.",
    ]
    if NOT_IN_ALL in set(rows["why"]):
        said.append(f"{NOT_IN_ALL.capitalize()}: the key depends on another; such shares cannot be compared.")
    if TOO_FEW in set(rows["why"]):
        said.append(f"{TOO_FEW.capitalize()}: fewer than {FEWEST}{' came there' if rungs else ' are done'}.")
    frame = _indexed(wide, list(wide.index), [_each(searched.definition), "key"])
    return _table(searched, said, frame, "importances", grouped=bool(searched.definition.each))


# What is said


def _table(
    searched: Searched, said: Sequence[str], frame: pd.DataFrame, name: str = "", grouped: bool = False
) -> Table:
    """The first that is said is the caption, the rest are notes; what there is to know of the search stands with the first
    table (`about`).
    """
    caption, *notes = said
    incomplete = [] if searched.is_over else ["INCOMPLETE: the search is not over."]
    made = of_frame(f"Search {searched.name}. {caption}", frame, name, [*notes, *incomplete])
    return replace(made, grouped=grouped and frame.index.nlevels > 1)


def about(searched: Searched) -> str:
    """What a reader of any of its tables has to know of the search."""
    definition = searched.definition
    settings = ", ".join(f"{key} {value}" for key, value in (definition.header | definition.fixed).items())
    space = "; ".join(space_text(definition))
    rungs = (
        f", compared after {', '.join(map(str, definition.rungs))} updates ({named_text(definition.stop)})"
        if definition.stop
        else ""
    )
    return (
        f"Claim: {definition.claim.rstrip('.')}. Here: {settings}. Searched: {objective_text(searched)} over {space}. "
        f"Sampler {named_text(definition.sampler)}, {budget_text(searched)}{rungs}; {seeds_text(definition)}; the search looked at "
        "validation alone."
    )


def objective_text(searched: Searched) -> str:
    """`score (val acc@0.5) maximized`."""
    names = []
    for one, direction in searched.definition.objective.items():
        about = dict.fromkeys(f"{task['validation']} {task['metric']}" for task in searched.definition.tasks.values())
        names.append(f"{one}{f' ({chr(44).join(about)})' if one == SCORE else ''} {direction}d")
    return " and ".join(names)


def space_text(definition: Definition) -> Iterator[str]:
    for one in definition.space:
        when = " and ".join(f"{key} is {' or '.join(map(as_yaml, values))}" for key, values in one.when.items())
        yield f"{one.key} {one}{f' where {when}' if when else ''}"


def named_text(named: Named | None) -> str:
    """`TPESampler(n_startup_trials=8)`."""
    if named is None:
        return NOTHING
    arguments = ", ".join(f"{key}={value}" for key, value in named.arguments.items())
    return f"{named.name}({arguments})" if arguments else named.name


def budget_text(searched: Searched) -> str:
    budget = searched.definition.budget
    words = {"trials": budget.trials, "device hours": budget.device_hours, "hours": budget.hours}
    said = " or ".join(f"{value:g} {unit}" for unit, value in words.items() if value is not None)
    each = f" for each {' and '.join(searched.definition.each)}" if searched.definition.each else ""
    return f"budget {said}{each} ({len(searched.picture.outcomes)} trials made)"


def seeds_text(definition: Definition) -> str:
    seeds = definition.seeds
    more = f", {seeds.most} for the top quarter" if seeds.most > seeds.first else ""
    return f"{seeds.first} seed{'s' if seeds.first > 1 else ''} a trial{more}"


def count_text(rows: pd.DataFrame) -> str:
    """`12 trials (5 done, 6 stopped, 1 diverged)`."""
    counts = rows["state"].value_counts()
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)
    return f"{len(rows)} trials ({said})"


# Cells


def amount(objective: str, value: float) -> str:
    """A score to one digit, a count whole, other numbers to three digits."""
    if math.isnan(value):
        return NOTHING
    if objective == SCORE:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def settings_text(definition: Definition, row: Any) -> str:
    """`optim.lr=0.3 prompt.length=64`."""
    return " ".join(f"{one.key}={_value(row[one.key])}" for one in definition.space if not pd.isna(row[one.key]))


def _value(value: Any, missing: str = "") -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    return f"{value:g}" if isinstance(value, float) else as_yaml(value)


def _trial(row: Any) -> str:
    return f"{row.trial} (default)" if getattr(row, "origin", "") == "default" else str(row.trial)


def _name(row: pd.Series) -> str:
    return f"{row['trial']} (default)" if row["baseline"] else str(row["trial"])


def _difference(row: Any) -> Cell:
    """In points; marked where its interval contains 0."""
    if row.baseline or (row.n and not row.difference_n):
        return Cell(word=NOTHING)
    if not row.n:
        return score(row)
    told = row.difference_lower > 0 or row.difference_upper < 0
    ends = (row.difference, row.difference_lower, row.difference_upper)
    return Cell(*ends, int(row.difference_n), int(row.planned), signed=True, mark="" if told else UNKNOWN)


def _found(row: pd.Series, objective: str) -> str:
    value = row[f"search_{objective}"]
    return "not at its end" if math.isnan(value) and row["origin"] != "default" else amount(objective, value)


def _seeds(searched: Searched) -> int:
    confirmation = searched.picture.confirmation
    return searched.definition.confirm.seeds if confirmation is None else len(confirmation.seeds)


def _each(definition: Definition) -> str:
    """What tells groups apart."""
    return " ".join(definition.each)


def _rank(name: str, first: Sequence[str]) -> int:
    return next((at for at, word in enumerate(first) if name == word or name.startswith(f"{word},")), len(first))


def _indexed(frame: pd.DataFrame, index: Sequence[tuple[str, ...]], names: Sequence[str]) -> pd.DataFrame:
    """Rows are named by these; a name that is empty in all rows, as that of the only group, is left out."""
    kept = [at for at, _ in enumerate(names) if any(row[at] for row in index)]
    columns = {names[at]: [row[at] for row in index] for at in kept}
    return frame.set_axis(pd.MultiIndex.from_frame(pd.DataFrame(columns)), axis=0)
