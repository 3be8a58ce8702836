"""The notes of a sweep's tables, and the words of their captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd

from analysis import names
from analysis.records.frame import Sweep
from analysis.records.manifest import axis_value
from analysis.records.references import References
from analysis.statistics.samples import SEEDS_ALONE
from analysis.statistics.summaries import FIVE
from analysis.tables.layout import digits_for_three, number
from mmprompt.families.registry import ALL
from mmprompt.studies.intervals import LEVEL

PERCENT_LEVEL = f"{100 * LEVEL:g} %"
UNITS = {metric.name: metric.unit for family in ALL for metric in family.shown}
EQUIVALENT, UNKNOWN = "=", "~"
MOST = 4  # number of columns up to which a note names the detectable difference of each
REFERENCE_WORDS = {"zero_shot": "without tuning", "chance": "always the same answer"}


def about(sweep: Sweep) -> Iterator[str]:
    """Yields the origin of a table, which accompanies it but is no part of it in a paper."""
    manifest = sweep.manifest
    places = ", ".join(f"{kind.capitalize()} {number}" for kind, number in (manifest["paper"] or {}).items())
    yield f"Sweep {manifest['sweep']}: `{manifest['command']}`."
    yield f"{f'Claim of the paper ({places})' if places else 'Claim'}: {manifest['claim'].rstrip('.')}."
    yield commits(sweep.frame)


def score_notes(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """Yields the notes of the table of scores."""
    manifest, frame = sweep.manifest, sweep.frame
    yield _unit(shown)
    yield from limit_note(shown, "")
    yield from _sources(sweep, shown)
    small = [task for task in shown["task"].unique() if names.is_small(task)]
    if small:
        yield f"{listed([names.task(task) for task in small])}: tasks of the small world, not the paper's data."
    settled = {axis: frame[axis].iloc[0] for axis in sweep.settled_axes}
    settings = {names.axis(axis): value_name(axis, value) for axis, value in (manifest["header"] | settled).items()}
    yield f"Settings: {', '.join(f'{names.in_sentence(axis)} {names.in_sentence(value)}' for axis, value in settings.items())}."
    for name, axes in sweep.roles.items():
        if len(axes) > 1:
            others = listed([names.in_sentence(names.axis(axis)) for axis in axes[1:]])
            yield f"Behind {names.in_sentence(names.axis(name))}, in brackets: its {others}, where it has one."
    if shown["baseline"].any():
        yield f"Baseline: {baseline_words(sweep)}."
    if (shown["n"] == 1).any():
        yield "One seed has no interval."
    yield from _choice(sweep, shown)


def reference_notes(sweep: Sweep, references: References) -> Iterator[str]:
    """Yields `Without tuning: 3.7 on Grounding, 67.3 on Entailment; always the same answer: 50.1 on Entailment.`"""
    tasks, phrases = [task for task, _ in sweep.shown], []
    for name, words in REFERENCE_WORDS.items():
        scores = [
            f"{number(value, 1)} on {names.task(task)}{f' {names.split(split, task)}' if tasks.count(task) > 1 else ''}"
            for task, split in sweep.shown
            if (value := references.get((task, split), {}).get(name)) is not None
        ]
        if scores:
            phrases.append(f"{words}: {', '.join(scores)}")
    if phrases:
        text = "; ".join(phrases)
        yield f"{text[0].upper()}{text[1:]}."


def _sources(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """Yields what the intervals cover. A cell that differs from the others says so in its own note."""
    with_interval, primary = shown[shown["lower"].notna()], primary_cells(sweep, shown)
    if covers_seeds_alone(primary):
        yield SEEDS_ALONE
    elif primary["lower"].notna().any():
        yield f"Intervals cover both sources of error, seeds and test examples{_examples(primary)}."
    further = with_interval.loc[~with_interval.index.isin(primary.index), "metric"].unique()
    if len(further):
        further_metrics = listed([names.metric(one) for one in further])
        yield f"Intervals of {further_metrics} cover seeds alone: single examples have no such score."


def primary_cells(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of each task's primary metric."""
    return cells[cells["metric"] == cells["task"].map(sweep.tasks)]


def covers_seeds_alone(cells: pd.DataFrame) -> bool:
    """Whether there are intervals, and none includes the error from the examples."""
    with_interval = cells[cells["lower"].notna()]
    return len(with_interval) > 0 and bool(with_interval["half_examples"].isna().all())


def _choice(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """Yields the notes on the mark `*`, and on learning rates that were chosen with seeds that the table shows."""
    chosen = shown[shown["chosen"]]
    if len(chosen):
        other_axes = [names.axis(name) for name in sweep.roles if name not in (sweep.compare, *sweep.extra_axes)]
        each = f" for each {names.in_sentence(listed(other_axes))}" if other_axes else ""
        among = sorted(int(k) for k in chosen["among"].unique() if k)
        k = f" among {among[0]}" + (f" to {among[-1]}" if len(among) > 1 else "") if among else ""
        tests = [split for task, split in sweep.shown if split != sweep.validation[task]]
        none = "; nothing was chosen on test" if tests else ""
        yield f"* highest mean on validation{k}{each}{none}."
    tuned = set(sweep.manifest["tuned_seeds"]) & set(sweep.frame.get("seed", []))
    if tuned:
        yield f"Learning rates were chosen on validation with seeds {listed(sorted(tuned))}, which are shown here."


def _unit(shown: pd.DataFrame) -> str:
    """The units of the scores: `Scores in percent; Captions in CIDEr-D times 100.`"""
    metrics = shown.drop_duplicates(["task", "metric"])
    percent = metrics["metric"].isin([name for name, unit in UNITS.items() if unit == "percent"])
    others = [
        f"{names.task(row.task)} in {UNITS.get(row.metric, names.metric(row.metric))}"
        for row in records(metrics[~percent])
    ]
    return "; ".join([*(["Scores in percent"] if percent.any() else []), *others]) + "."


def limit_note(shown: pd.DataFrame, prefix: str) -> Iterator[str]:
    """Yields the note on asymmetric intervals, if there are any. `prefix`: of the columns, such as `kept_`."""
    value, lower, upper = (shown[name] for name in (prefix.rstrip("_") or "value", f"{prefix}lower", f"{prefix}upper"))
    if ((upper + lower - 2 * value).abs() > 1e-6 * value.abs()).any():
        yield "In brackets: the limits of an interval that is cut off at the end of the metric's range."


def state_notes(sweep: Sweep) -> Iterator[str]:
    """Yields the notes on mixed commits, mixed devices, and runs that are not done."""
    frame = sweep.frame
    if len(mixed := _commits(frame)) > 1:
        yield f"Mixed commits: {', '.join(mixed)}."
    devices = sorted(frame["device"].dropna().unique())
    if len(devices) > 1:
        yield f"Mixed devices: {', '.join(devices)}."
    if (frame["state"] != "done").any():
        several = "points" if frame["run"].duplicated().any() else "runs"
        beginning = "Of" if frame["state"].isin(("done", "diverged")).all() else "INCOMPLETE: of"
        yield f"{beginning} {len(frame)} {several} {_state_counts(frame)}."


def detectable_notes(sweep: Sweep, detectable: pd.DataFrame) -> Iterator[str]:
    """Yields `With 3 seeds, differences of at least 5.1 points (Grounding), 8.0 (VQA) are significant with power 0.8; ...`"""
    if not len(detectable):
        return
    rows = shown_cells(sweep, detectable).sort_values("place", kind="stable")
    rows = rows[rows["difference"].notna()]
    for n, group in rows.groupby("n", sort=False):
        present, with_five = (
            [number(x, digits_for_three(x) - 1) for x in group[what]] for what in ("difference", "with_5_seeds")
        )
        if len(group) > MOST:
            low, high = group["difference"].argmin(), group["difference"].argmax()
            points = f"{present[low]} to {present[high]} points, by column,"
            later = f"{with_five[group['with_5_seeds'].argmin()]} to {with_five[group['with_5_seeds'].argmax()]}"
        else:
            several = group["task"].duplicated().any()
            first, *others = (
                f"({names.task(row.task)}{f' {names.split(row.split, row.task)}' if several else ''})"
                for row in records(group)
            )
            phrases = [
                f"{present[0]} points {first}",
                *(f"{x} {word}" for x, word in zip(present[1:], others, strict=True)),
            ]
            points, later = ", ".join(phrases), listed(with_five)
        addition = f"; with {FIVE} seeds {later}" if group["n"].iloc[0] < FIVE else ""
        yield f"With {n} seeds, differences of at least {points} are significant with power 0.8{addition}."


def simultaneous(sweep: Sweep, shown: pd.DataFrame, column: str) -> str:
    """The kind of a difference's intervals in words, and the number of comparisons over which they are simultaneous."""
    with_interval = shown[shown[f"{column}_lower"].notna()]
    methods = {
        str(method): rows["task"].unique() for method, rows in with_interval.groupby(f"{column}_method", sort=False)
    }
    if not methods:
        return "without intervals"
    method_words = " and ".join(
        method + (f" on {listed([names.task(task) for task in tasks])}" if len(methods) > 1 else "")
        for method, tasks in methods.items()
    )
    family = f"the {len(with_interval)} comparison{'s' * (len(with_interval) > 1)} of this table"
    if sweep.manifest["family"] == "task":
        family += ", task by task"
    n = of_n(_common(with_interval[f"{column}_n"]), with_interval, f"{column}_n").strip(" ()")
    return f"simultaneous {PERCENT_LEVEL} intervals over {family} ({method_words}; {n})"


def mark_notes(sweep: Sweep, shown: pd.DataFrame, column: str) -> Iterator[str]:
    """Yields the notes on the marks of the differences in this column."""
    margins = sweep.manifest["margin"] or {}
    words = ", ".join(
        f"{margins[key]:g} points{f' of {names.metric(key, short=True)}' if key != 'percent' else ''}"
        for key in margins
    )
    verdicts = set(shown[f"{column}_verdict"])
    if shown.loc[shown[column].notna(), f"{column}_lower"].isna().any():
        verdicts.add("not known")
    yield from verdict_notes(verdicts, words)


def verdict_notes(verdicts: set[str], margin: str) -> Iterator[str]:
    """Yields a note on the mark of each of these verdicts. `margin`: the margin in words; empty without one."""
    if "not known" in verdicts:
        without_margin = "not significantly different, which does not mean equal"
        yield f"{UNKNOWN} not known: {'neither significantly different nor equivalent' if margin else without_margin}."
    if "equivalent" in verdicts:
        yield f"{EQUIVALENT} equivalent{f', within ± {margin}' if margin else ''}."
    if verdicts & {"higher", "lower"}:
        yield "No mark: significantly different from the baseline."


def of_n(n: int | None, rows: pd.DataFrame, column: str = "n") -> str:
    """The common n in words: ` (n = 3 seeds)`, with `unless given` if some cells have another."""
    if n is None:
        return ""
    counts = {count for count in rows[column] if count}
    return f" (n = {n} seed{'s' if n > 1 else ''}{'' if counts == {n} else ' unless given'})"


def _common(counts: Iterable[Any]) -> int | None:
    counted = Counter(int(count) for count in counts if count)
    return counted.most_common(1)[0][0] if counted else None


def _examples(shown: pd.DataFrame) -> str:
    counts = sorted({int(m) for m in shown["examples"].dropna()})
    return f" ({listed([f'{m:,}' for m in counts])})" if counts else ""


def baseline_words(sweep: Sweep) -> str:
    """The baseline in words: `Finetuning`, `prompt length 64`."""
    words = []
    for axis, value in (sweep.manifest["baseline"] or {}).items():
        word = value_name(axis, axis_value({axis: value}, axis))
        words.append(word if axis == "method" else f"{names.in_sentence(names.axis(axis))} {names.in_sentence(word)}")
    return ", ".join(words)


def axis_words(sweep: Sweep) -> str:
    return listed([names.in_sentence(stub) for stub in stub_heads(sweep)])


def split_words(sweep: Sweep) -> str:
    """The shown splits in words: `the test split`, `testA, testB and test`."""
    splits = sorted({split for _, split in sweep.shown}, key=names.split_order)
    words = listed([names.split(split) for split in splits])
    return f"the {words} split" if len(splits) == 1 else words


def commits(frame: pd.DataFrame) -> str:
    """The commits of the done runs in a sentence."""
    names_of_commits = _commits(frame)
    return f"{'Mixed commits' if len(names_of_commits) > 1 else 'Commit'}: {', '.join(names_of_commits) or 'none yet'}."


def _commits(frame: pd.DataFrame) -> list[str]:
    done = frame[frame["attempt"].notna()]
    return sorted(
        {
            (f"{commit[:10]}" if isinstance(commit, str) else "unknown")
            + (" with uncommitted changes" if dirty else "")
            for commit, dirty in zip(done["commit"], done["dirty"], strict=True)
        }
    )


def _state_counts(frame: pd.DataFrame) -> str:
    counts = frame["state"].value_counts()
    order = ("done", "diverged", "not evaluated", "failed", "conflict", "unreadable", "not done")
    return ", ".join(f"{counts[state]} {state}" for state in order if state in counts)


def listed(words: Sequence[Any]) -> str:
    """A list in words: `a, b and c`."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def row_names(sweep: Sweep) -> list[str]:
    """The labels of rows; the values of the axis `over` are columns instead."""
    return [name for name in sweep.roles if name != sweep.over]


def stub_heads(sweep: Sweep) -> list[str]:
    return [names.axis(name) for name in row_names(sweep)]


def records(frame: pd.DataFrame) -> Iterator[SimpleNamespace]:
    """Yields the rows as objects. Unlike with `itertuples`, names that contain a dot are attributes too."""
    return (SimpleNamespace(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records"))


def value_name(axis: str, value: Any) -> str:
    return names.value(axis, value)


def shown_cells(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells on the splits that tables show, with their position in the column `place`.

    Tasks are in the sweep's order, the splits of a task in the paper's, validation first.
    """
    tasks = list(sweep.tasks)
    pairs = sorted(sweep.shown, key=lambda pair: (tasks.index(pair[0]), names.split_order(pair[1])))
    place = {pair: at for at, pair in enumerate(pairs)}
    places = [place.get(pair, -1) for pair in zip(cells["task"], cells["split"], strict=True)]
    return cells.assign(place=places)[[at >= 0 for at in places]]
