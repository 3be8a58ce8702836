"""What is said about a sweep's tables, in words: their notes, and what their captions are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd

from analysis import names
from analysis.frame import Sweep
from analysis.layout import number, three
from analysis.manifest import axis_value
from analysis.references import References
from analysis.samples import SEEDS_ALONE
from analysis.summaries import FIVE
from mmprompt.families.registry import ALL
from mmprompt.studies.intervals import LEVEL

PERCENT_LEVEL = f"{100 * LEVEL:g} %"
UNITS = {metric.name: metric.unit for family in ALL for metric in family.shown}
EQUIVALENT, UNKNOWN = "=", "~"
MOST = 4  # columns of which it is said one by one what can be told apart
SEEN_AGAINST = {"zero_shot": "without tuning", "chance": "always the same answer"}  # reference -> its words


def about(sweep: Sweep) -> Iterator[str]:
    """Where a table comes from: what a paper does not print, and who has the table wants to know."""
    manifest = sweep.manifest
    places = ", ".join(f"{kind.capitalize()} {number}" for kind, number in (manifest["paper"] or {}).items())
    yield f"Sweep {manifest['sweep']}: `{manifest['command']}`."
    yield f"{f'Claim of the paper ({places})' if places else 'Claim'}: {manifest['claim'].rstrip('.')}."
    yield commits(sweep.frame)


def score_notes(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
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
    """`Without tuning: 3.7 on Grounding, 67.3 on Entailment; always the same answer: 50.1 on Entailment.`"""
    tasks, said = [task for task, _ in sweep.shown], []
    for name, words in SEEN_AGAINST.items():
        known = [
            f"{number(value, 1)} on {names.task(task)}{f' {names.split(split, task)}' if tasks.count(task) > 1 else ''}"
            for task, split in sweep.shown
            if (value := references.get((task, split), {}).get(name)) is not None
        ]
        if known:
            said.append(f"{words}: {', '.join(known)}")
    if said:
        text = "; ".join(said)
        yield f"{text[0].upper()}{text[1:]}."


def _sources(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """What the intervals cover. A cell that differs from the others says so in its note."""
    known, judged = shown[shown["lower"].notna()], judged_cells(sweep, shown)
    if covers_seeds_alone(judged):
        yield SEEDS_ALONE
    elif judged["lower"].notna().any():
        yield f"Intervals cover both sources of error, seeds and test examples{_examples(judged)}."
    further = known.loc[~known.index.isin(judged.index), "metric"].unique()
    if len(further):
        which = listed([names.metric(one) for one in further])
        yield f"Intervals of {which} cover seeds alone: single examples have no such score."


def judged_cells(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """By the metric of each task, and not by further ones."""
    return cells[cells["metric"] == cells["task"].map(sweep.tasks)]


def covers_seeds_alone(cells: pd.DataFrame) -> bool:
    """Whether there are intervals, and none has the part of the examples."""
    known = cells[cells["lower"].notna()]
    return len(known) > 0 and bool(known["half_examples"].isna().all())


def _choice(sweep: Sweep, shown: pd.DataFrame) -> Iterator[str]:
    """Of `*`, and of rates that were chosen with the seeds that are shown."""
    chosen = shown[shown["chosen"]]
    if len(chosen):
        apart = [names.axis(name) for name in sweep.roles if name not in (sweep.compare, *sweep.extra_axes)]
        each = f" for each {names.in_sentence(listed(apart))}" if apart else ""
        among = sorted(int(k) for k in chosen["among"].unique() if k)
        k = f" among {among[0]}" + (f" to {among[-1]}" if len(among) > 1 else "") if among else ""
        tests = [split for task, split in sweep.shown if split != sweep.validation[task]]
        none = "; nothing was chosen on test" if tests else ""
        yield f"* highest mean on validation{k}{each}{none}."
    tuned = set(sweep.manifest["tuned_seeds"]) & set(sweep.frame.get("seed", []))
    if tuned:
        yield f"Learning rates were chosen on validation with seeds {listed(sorted(tuned))}, which are shown here."


def _unit(shown: pd.DataFrame) -> str:
    """`Scores in percent; Captions in CIDEr-D times 100.`"""
    metrics = shown.drop_duplicates(["task", "metric"])
    percent = metrics["metric"].isin([name for name, unit in UNITS.items() if unit == "percent"])
    others = [
        f"{names.task(row.task)} in {UNITS.get(row.metric, names.metric(row.metric))}"
        for row in records(metrics[~percent])
    ]
    return "; ".join([*(["Scores in percent"] if percent.any() else []), *others]) + "."


def limit_note(shown: pd.DataFrame, prefix: str) -> Iterator[str]:
    value, lower, upper = (shown[name] for name in (prefix.rstrip("_") or "value", f"{prefix}lower", f"{prefix}upper"))
    if ((upper + lower - 2 * value).abs() > 1e-6 * value.abs()).any():
        yield "In brackets: the limits of an interval that is cut off at the end of the metric's range."


def state_notes(sweep: Sweep) -> Iterator[str]:
    frame = sweep.frame
    if len(mixed := _commits(frame)) > 1:
        yield f"Mixed commits: {', '.join(mixed)}."
    devices = sorted(frame["device"].dropna().unique())
    if len(devices) > 1:
        yield f"Mixed devices: {', '.join(devices)}."
    if (frame["state"] != "done").any():
        several = "points" if frame["run"].duplicated().any() else "runs"
        lacking = "Of" if frame["state"].isin(("done", "diverged")).all() else "INCOMPLETE: of"
        yield f"{lacking} {len(frame)} {several} {_count(frame)}."


def detectable_notes(sweep: Sweep, detectable: pd.DataFrame) -> Iterator[str]:
    """`With 3 seeds differences from 5.1 points on (Grounding), 8.0 (Entailment) are told apart with power 0.8; ...`"""
    if not len(detectable):
        return
    rows = shown_cells(sweep, detectable).sort_values("place", kind="stable")
    rows = rows[rows["difference"].notna()]
    for n, those in rows.groupby("n", sort=False):
        now, then = ([number(x, three(x) - 1) for x in those[what]] for what in ("difference", "with_5_seeds"))
        if len(those) > MOST:
            low, high = those["difference"].argmin(), those["difference"].argmax()
            points = f"{now[low]} to {now[high]} points on, by column,"
            later = f"{then[those['with_5_seeds'].argmin()]} to {then[those['with_5_seeds'].argmax()]}"
        else:
            several = those["task"].duplicated().any()
            first, *others = (
                f"({names.task(row.task)}{f' {names.split(row.split, row.task)}' if several else ''})"
                for row in records(those)
            )
            of = [f"{now[0]} points on {first}", *(f"{x} {word}" for x, word in zip(now[1:], others, strict=True))]
            points, later = ", ".join(of), listed(then)
        more = f"; with {FIVE} seeds {later}" if those["n"].iloc[0] < FIVE else ""
        yield f"With {n} seeds differences from {points} are told apart with power 0.8{more}."


def simultaneous(sweep: Sweep, shown: pd.DataFrame, what: str) -> str:
    """What the interval of a difference is, and of how many it holds."""
    known = shown[shown[f"{what}_lower"].notna()]
    methods = {str(method): those["task"].unique() for method, those in known.groupby(f"{what}_method", sort=False)}
    if not methods:
        return "without intervals"
    by = " and ".join(
        method + (f" on {listed([names.task(task) for task in tasks])}" if len(methods) > 1 else "")
        for method, tasks in methods.items()
    )
    of = f"the {len(known)} comparison{'s' * (len(known) > 1)} of this table"
    if sweep.manifest["family"] == "task":
        of += ", task by task"
    n = of_n(_common(known[f"{what}_n"]), known, f"{what}_n").strip(" ()")
    return f"simultaneous {PERCENT_LEVEL} intervals over {of} ({by}; {n})"


def mark_notes(sweep: Sweep, shown: pd.DataFrame, what: str) -> Iterator[str]:
    margins = sweep.manifest["margin"] or {}
    words = ", ".join(
        f"{margins[key]:g} points{f' of {names.metric(key, short=True)}' if key != 'percent' else ''}"
        for key in margins
    )
    verdicts = set(shown[f"{what}_verdict"])
    if shown.loc[shown[what].notna(), f"{what}_lower"].isna().any():
        verdicts.add("not known")
    yield from marks_said(verdicts, words)


def marks_said(verdicts: set[str], margin: str) -> Iterator[str]:
    if "not known" in verdicts:
        yield f"{UNKNOWN} not known: {'neither told apart nor equivalent' if margin else 'not told apart, which is not equal'}."
    if "equivalent" in verdicts:
        yield f"{EQUIVALENT} equivalent{f', within ± {margin}' if margin else ''}."
    if verdicts & {"higher", "lower"}:
        yield "No mark: told apart from the baseline."


def of_n(n: int | None, rows: pd.DataFrame, column: str = "n") -> str:
    """` (n = 3 seeds)`; that of most cells, where some say another."""
    if n is None:
        return ""
    counts = {count for count in rows[column] if count}
    return f" (n = {n} seed{'s' if n > 1 else ''}{'' if counts == {n} else ' unless given'})"


def _common(counts: Iterable[Any]) -> int | None:
    known = Counter(int(count) for count in counts if count)
    return known.most_common(1)[0][0] if known else None


def _examples(shown: pd.DataFrame) -> str:
    counts = sorted({int(m) for m in shown["examples"].dropna()})
    return f" ({listed([f'{m:,}' for m in counts])})" if counts else ""


def baseline_words(sweep: Sweep) -> str:
    """`Finetuning`, `prompt length 64`."""
    said = []
    for axis, value in (sweep.manifest["baseline"] or {}).items():
        word = value_name(axis, axis_value({axis: value}, axis))
        said.append(word if axis == "method" else f"{names.in_sentence(names.axis(axis))} {names.in_sentence(word)}")
    return ", ".join(said)


def axis_words(sweep: Sweep) -> str:
    return listed([names.in_sentence(stub) for stub in stub_heads(sweep)])


def split_words(sweep: Sweep) -> str:
    """`the test split`, `testA, testB and test`: those that are shown."""
    splits = sorted({split for _, split in sweep.shown}, key=names.split_place)
    said = listed([names.split(split) for split in splits])
    return f"the {said} split" if len(splits) == 1 else said


def commits(frame: pd.DataFrame) -> str:
    found = _commits(frame)
    return f"{'Mixed commits' if len(found) > 1 else 'Commit'}: {', '.join(found) or 'none yet'}."


def _commits(frame: pd.DataFrame) -> list[str]:
    done = frame[frame["attempt"].notna()]
    return sorted(
        {
            (f"{commit[:10]}" if isinstance(commit, str) else "unknown")
            + (" with uncommitted changes" if dirty else "")
            for commit, dirty in zip(done["commit"], done["dirty"], strict=True)
        }
    )


def _count(frame: pd.DataFrame) -> str:
    counts = frame["state"].value_counts()
    known = ("done", "diverged", "not evaluated", "failed", "conflict", "unreadable", "not done")
    return ", ".join(f"{counts[state]} {state}" for state in known if state in counts)


def listed(words: Sequence[Any]) -> str:
    """`a, b and c`."""
    *first, last = [str(word) for word in words] or [""]
    return f"{', '.join(first)} and {last}" if first else last


def row_names(sweep: Sweep) -> list[str]:
    """Those of rows; the values of the axis that rows are followed over are columns."""
    return [name for name in sweep.roles if name != sweep.over]


def stub_heads(sweep: Sweep) -> list[str]:
    return [names.axis(name) for name in row_names(sweep)]


def records(frame: pd.DataFrame) -> Iterator[SimpleNamespace]:
    """With names that hold a dot as attributes too, which `itertuples` does not give."""
    return (SimpleNamespace(**{str(key): value for key, value in row.items()}) for row in frame.to_dict("records"))


def value_name(axis: str, value: Any) -> str:
    return names.value(axis, value)


def shown_cells(sweep: Sweep, cells: pd.DataFrame) -> pd.DataFrame:
    """Of what tables show, validation first within a task, as the paper prints splits; tasks as the sweep has them."""
    tasks = list(sweep.tasks)
    pairs = sorted(sweep.shown, key=lambda pair: (tasks.index(pair[0]), names.split_place(pair[1])))
    place = {pair: at for at, pair in enumerate(pairs)}
    found = [place.get(pair, -1) for pair in zip(cells["task"], cells["split"], strict=True)]
    return cells.assign(place=found)[[at >= 0 for at in found]]
