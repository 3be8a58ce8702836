"""The tables of a search: the confirmation on fresh seeds, the best trials, groups side by side, the front, importances.

Nothing is selected or computed here. The confirmation comes first: the scores of the search itself are optimistic, because its
best trials were chosen by these scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.records.search_reading import WARM, Searched
from analysis.statistics.search_results import NOT_IN_ALL, QUARTILES, TOO_FEW, top
from analysis.tables.layout import NOTHING, Cell, Table, table_of_frame
from analysis.tables.sweep_tables import INTERVAL, score
from analysis.tables.table_notes import UNKNOWN, commits
from mmprompt.studies.schemas import SCORE, Definition, Named, as_yaml

SHOWN = 10  # trials in a table; the CSV has them all
OPTIMISTIC = "optimistic"
STATES = ("done", "stopped", "diverged", "failed", "open")  # in the order in which their numbers are shown


def tables(
    searched: Searched,
    trials: pd.DataFrame,
    confirmation: pd.DataFrame,
    groups: pd.DataFrame,
    importances: pd.DataFrame,
    front: pd.DataFrame | None,
) -> list[Table]:
    """Returns the tables of a search from the frames that `analysis.statistics.search_results` makes. `front`: None with one
    objective."""
    all_tables = []
    if len(confirmation):
        all_tables.append(confirmation_table(searched, confirmation))
    if searched.definition.each:
        all_tables.append(groups_table(searched, groups, confirmation))
    if front is not None and len(front):
        all_tables.append(front_table(searched, front))
    all_tables += best_trials(searched, trials)
    all_tables.append(importance_table(searched, importances))
    first, *others = all_tables
    return [replace(first, about=(about(searched), commits(searched.sweep.frame))), *others]


# Tables


def confirmation_table(searched: Searched, rows: pd.DataFrame) -> Table:
    """The table of the confirmation, with a row per candidate.

    Columns: the score on each split, its difference from the default, and the candidate's score in the search itself.
    """
    definition = searched.definition
    has_several_metrics, with_differences = rows["metric"].nunique() > 1, not rows["baseline"].all()
    name_of_group = dict(zip(searched.labels, searched.names, strict=True))
    lines, index = [], []
    for _, rows_of_candidate in rows.groupby(["group", "rank"], sort=False):
        names = {
            str(row.split): f"{row.split} ({row.metric})" if has_several_metrics else str(row.split)
            for row in rows_of_candidate.itertuples()
        }
        first = rows_of_candidate.iloc[0]
        index.append((name_of_group[first["group"]], _candidate_name(first), settings_text(definition, first)))
        line: dict[str, Cell | str] = {names[str(row.split)]: score(row) for row in rows_of_candidate.itertuples()}
        if with_differences:
            line |= {f"{names[str(row.split)]}: difference": _difference(row) for row in rows_of_candidate.itertuples()}
        line |= {f"{OPTIMISTIC} {one}": _search_score(first, one) for one in definition.objective}
        lines.append(line)
    frame = pd.DataFrame(lines).fillna(NOTHING)
    order = sorted(frame.columns, key=lambda name: (OPTIMISTIC in name, name.endswith(": difference")))
    metric = "" if has_several_metrics else f" ({rows['metric'].iloc[0]})"
    other_candidates = max(len(searched.entries_of(group)) for group in range(len(searched.labels))) - 1
    together = (
        f" The intervals are simultaneous for all candidates{' of a group' if definition.each else ''} (Bonferroni)."
        if other_candidates > 1
        else ""
    )
    sentences = [
        f"Confirmation on {_seeds(searched)} fresh seeds, which the search never used: {INTERVAL} over seeds{metric}.",
        "The default, then candidates by their mean on validation, where the best is chosen. Only these are evaluated on test.",
    ]
    if with_differences:
        sentences += [
            f"Difference from the default in points, seed by seed: {INTERVAL} (pairs).{together}",
            f"{UNKNOWN} not significant: the interval contains 0.",
        ]
    sentences.append(f"The {OPTIMISTIC} score is that of the search itself, by which the candidates were chosen.")
    frame = _indexed(frame[order], index, [_group_head(definition), "trial", "settings"])
    return _table(searched, sentences, frame, grouped=bool(definition.each))


def best_trials(searched: Searched, rows: pd.DataFrame) -> Iterator[Table]:
    """Yields a table per group with its best trials."""
    definition = searched.definition
    has_groups = len(searched.labels) > 1
    for group, label in enumerate(searched.labels):
        rows_of_group = rows[rows["group"] == label]
        best = top(searched, rows_of_group, SHOWN)
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
        counts = count_text(rows_of_group[rows_of_group["origin"] != WARM])
        warm_count = int((rows_of_group["origin"] == WARM).sum())
        warm = f" and {warm_count} warm" if warm_count else ""
        sentences = [
            f"Results{f' with {label}' if has_groups else ''}: the best {len(best)} of {counts}{warm}; all are in the CSV.",
            f"Scores are {OPTIMISTIC}: the best of many is partly luck.",
        ]
        if definition.rungs:
            sentences.append(
                "Rung: the last update at which a trial was compared. Trials that were stopped come after those that are done."
            )
        name = f"found-{group + 1}" if has_groups else "found"
        index = [(_trial_name(row),) for row in best.itertuples()]
        yield _table(searched, sentences, _indexed(frame, index, ["trial"]), name)


def groups_table(searched: Searched, groups: pd.DataFrame, rows: pd.DataFrame) -> Table:
    """The table of groups, with a row per group: its trials, the default and the confirmed best, the spread, and the cost."""
    definition = searched.definition
    lines, index = [], []
    objective = next(iter(definition.objective))
    for name, group_record in zip(searched.names, groups.to_dict("records"), strict=True):
        line: dict[str, Cell | str] = {
            "trials": " / ".join(str(group_record[state]) for state in ("done", "stopped", "diverged"))
        }
        settings = NOTHING
        for _, row in (
            rows[(rows["group"] == group_record["group"]) & (rows["rank"] <= 1)].iterrows() if len(rows) else []
        ):
            if row["rank"]:
                settings = settings_text(definition, row)
            if not row["validation"]:
                line[f"{'best' if row['rank'] else 'default'}, {row['split']}"] = score(row)
                if row["rank"]:
                    line[f"difference, {row['split']}"] = _difference(row)
        values = [amount(objective, group_record[quartile]) for quartile in QUARTILES]
        line["quartiles"] = " / ".join(values) if not math.isnan(group_record["median"]) else NOTHING
        line["diverged"] = (
            NOTHING if math.isnan(group_record["share_diverged"]) else f"{group_record['share_diverged']:.0%}"
        )
        line["device hours"] = f"{group_record['device_hours']:.3g} + {group_record['confirmation_hours']:.3g}"
        lines.append(line)
        index.append((name, settings))
    frame = pd.DataFrame(lines).fillna(NOTHING)
    spread = "the score of done trials in the search"
    if definition.rungs:
        spread = f"the score after {definition.rungs[0]} updates, where every trial is compared"
    sentences = [
        f"The same budget for each {' and '.join(definition.each)}: default and best on {_seeds(searched)} fresh seeds,"
        f" {INTERVAL} over seeds.",
        "Trials: done / stopped early / diverged. The best is the candidate with the highest mean on validation there.",
        "Difference: best minus default, seed by seed; intervals are simultaneous for all candidates of a group and are not"
        " corrected for the number of groups.",
        f"{UNKNOWN} not significant.",
        f"Quartiles of {spread}: how much depends on the settings. Diverged: share of the trials that are over. Device"
        " hours: of the trials + of the confirmation runs.",
    ]
    order = sorted(frame.columns, key=lambda name: _column_order(name, ["trials", "default", "best", "difference"]))
    return _table(
        searched, sentences, _indexed(frame[order], index, [_group_head(definition), "best settings"]), "groups"
    )


def front_table(searched: Searched, front: pd.DataFrame) -> Table:
    """The table of the front, with a row per trial."""
    definition = searched.definition
    frame = pd.DataFrame({one: [amount(one, value) for value in front[one]] for one in definition.objective})
    frame = frame.assign(seeds=front["planned"].astype(str).to_list(), runs=front["runs"].to_list())
    name_of_group = dict(zip(searched.labels, searched.names, strict=True))
    index = [
        (name_of_group[row["group"]], str(row["trial"]), settings_text(definition, row)) for _, row in front.iterrows()
    ]
    sentences = [
        "The Pareto front: a trial is on it if no other trial is at least as good in all objectives and better in one.",
        f"The best of the first objective first. Scores are {OPTIMISTIC}: trials are on the front by them.",
        "Runs: their ids in the store, a seed each.",
    ]
    return _table(searched, sentences, _indexed(frame, index, [_group_head(definition), "trial", "settings"]), "front")


def importance_table(searched: Searched, rows: pd.DataFrame) -> Table:
    """The table of importances, with a row per searched key and a column per objective."""
    from mmprompt.studies.sampler import FEWEST, TOP, TOP_TRIALS

    is_same_n = rows["n"].nunique() == 1
    of_n = rows["n"].map(" (n = {})".format)
    names = rows["group"].map(dict(zip(searched.labels, searched.names, strict=True)))
    long_form = rows.assign(
        text=rows["why"].where(rows["why"] != "", rows["importance"].map("{:.2f}".format)),
        column=rows["objective"] + of_n if is_same_n else rows["objective"],
        group=names if is_same_n else names + of_n,
    )
    wide_form = long_form.pivot(index=["group", "key"], columns="column", values="text").fillna(NOTHING)
    order = pd.MultiIndex.from_frame(long_form[["group", "key"]].drop_duplicates())
    wide_form = wide_form.reindex(index=order, columns=long_form["column"].drop_duplicates()).rename_axis(columns=None)
    rungs = searched.definition.rungs
    basis = f"n trials by their score after {rungs[0]} updates, where all are compared" if rungs else "n done trials"
    sentences = [
        f"Importances by PED-ANOVA, of {basis}: how much of what sets the best {TOP:.0%} ({TOP_TRIALS} at least) apart from the"
        " others lies in each key.",
        "Shares of 1 among the keys that all trials have. They describe the trials that there were, not the space: a sampler"
        " tries most where it expects most.",
    ]
    if NOT_IN_ALL in set(rows["why"]):
        sentences.append(f"{NOT_IN_ALL.capitalize()}: the key depends on another; such shares cannot be compared.")
    if TOO_FEW in set(rows["why"]):
        sentences.append(f"{TOO_FEW.capitalize()}: fewer than {FEWEST}{' came there' if rungs else ' are done'}.")
    frame = _indexed(wide_form, list(wide_form.index), [_group_head(searched.definition), "key"])
    return _table(searched, sentences, frame, "importances", grouped=bool(searched.definition.each))


# Captions, notes and words


def _table(
    searched: Searched, sentences: Sequence[str], frame: pd.DataFrame, name: str = "", grouped: bool = False
) -> Table:
    """A table whose caption is the first sentence; the others are its notes."""
    caption, *notes = sentences
    incomplete = [] if searched.is_over else ["INCOMPLETE: the search is not over."]
    made = table_of_frame(f"Search {searched.name}. {caption}", frame, name, [*notes, *incomplete])
    return replace(made, grouped=grouped and frame.index.nlevels > 1)


def about(searched: Searched) -> str:
    """The description of the search that accompanies its tables."""
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
    """The objectives in words: `score (val acc@0.5) maximized`."""
    names = []
    for objective, direction in searched.definition.objective.items():
        metrics = dict.fromkeys(f"{task['validation']} {task['metric']}" for task in searched.definition.tasks.values())
        names.append(f"{objective}{f' ({chr(44).join(metrics)})' if objective == SCORE else ''} {direction}d")
    return " and ".join(names)


def space_text(definition: Definition) -> Iterator[str]:
    """Yields each searched parameter in words, with its condition."""
    for parameter in definition.space:
        when = " and ".join(f"{key} is {' or '.join(map(as_yaml, values))}" for key, values in parameter.when.items())
        yield f"{parameter.key} {parameter}{f' where {when}' if when else ''}"


def named_text(named: Named | None) -> str:
    """A sampler or a stopping rule in words: `TPESampler(n_startup_trials=8)`."""
    if named is None:
        return NOTHING
    arguments = ", ".join(f"{key}={value}" for key, value in named.arguments.items())
    return f"{named.name}({arguments})" if arguments else named.name


def budget_text(searched: Searched) -> str:
    budget = searched.definition.budget
    words = {"trials": budget.trials, "device hours": budget.device_hours, "hours": budget.hours}
    limits = " or ".join(f"{value:g} {unit}" for unit, value in words.items() if value is not None)
    each = f" for each {' and '.join(searched.definition.each)}" if searched.definition.each else ""
    return f"budget {limits}{each} ({len(searched.progress.outcomes)} trials made)"


def seeds_text(definition: Definition) -> str:
    seeds = definition.seeds
    addition = f", {seeds.most} for the top quarter" if seeds.most > seeds.first else ""
    return f"{seeds.first} seed{'s' if seeds.first > 1 else ''} a trial{addition}"


def count_text(rows: pd.DataFrame) -> str:
    """The number of trials, by state: `12 trials (5 done, 6 stopped, 1 diverged)`."""
    counts = rows["state"].value_counts()
    by_state = ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)
    return f"{len(rows)} trials ({by_state})"


# Cells


def amount(objective: str, value: float) -> str:
    """An objective's value in words: a score with one decimal, a number from 100 on as an integer, others with three digits."""
    if math.isnan(value):
        return NOTHING
    if objective == SCORE:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def settings_text(definition: Definition, row: Any) -> str:
    """The settings of a trial in words: `optim.lr=0.3 prompt.length=64`."""
    return " ".join(f"{one.key}={_value(row[one.key])}" for one in definition.space if not pd.isna(row[one.key]))


def _value(value: Any, missing: str = "") -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return missing
    return f"{value:g}" if isinstance(value, float) else as_yaml(value)


def _trial_name(row: Any) -> str:
    return f"{row.trial} (default)" if getattr(row, "origin", "") == "default" else str(row.trial)


def _candidate_name(row: pd.Series) -> str:
    return f"{row['trial']} (default)" if row["baseline"] else str(row["trial"])


def _difference(row: Any) -> Cell:
    """The cell of a difference in points; it is marked if its interval contains 0."""
    if row.baseline or (row.n and not row.difference_n):
        return Cell(word=NOTHING)
    if not row.n:
        return score(row)
    is_significant = row.difference_lower > 0 or row.difference_upper < 0
    ends = (row.difference, row.difference_lower, row.difference_upper)
    return Cell(*ends, int(row.difference_n), int(row.planned), signed=True, mark="" if is_significant else UNKNOWN)


def _search_score(row: pd.Series, objective: str) -> str:
    value = row[f"search_{objective}"]
    return "not at its end" if math.isnan(value) and row["origin"] != "default" else amount(objective, value)


def _seeds(searched: Searched) -> int:
    confirmation = searched.progress.confirmation
    return searched.definition.confirm.seeds if confirmation is None else len(confirmation.seeds)


def _group_head(definition: Definition) -> str:
    """The head of the column of groups: the keys in which groups differ."""
    return " ".join(definition.each)


def _column_order(name: str, first: Sequence[str]) -> int:
    return next((at for at, word in enumerate(first) if name == word or name.startswith(f"{word},")), len(first))


def _indexed(frame: pd.DataFrame, index: Sequence[tuple[str, ...]], names: Sequence[str]) -> pd.DataFrame:
    """The frame with these labels as its index. A label that is empty in all rows, as with a single group, is left out."""
    used = [at for at, _ in enumerate(names) if any(row[at] for row in index)]
    columns = {names[at]: [row[at] for row in index] for at in used}
    return frame.set_axis(pd.MultiIndex.from_frame(pd.DataFrame(columns)), axis=0)
