"""What has to be said of single cells, though no number of theirs is in doubt: other seeds than the baseline's, points that are
not in the manifest, seeds that all have the same score, intervals that leave out the test examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import WRONG, Sweep
from mmprompt.families.registry import highest

Key = tuple[Any, ...]  # of a cell: the row labels, task, split
SAID = 5  # cells, of one kind of remark, that are named in a note


@dataclass(frozen=True)
class Remark:
    """`what` is said in the note of the cell; with `where`, its row and task, among those of the sweep."""

    kind: str  # what all remarks of a kind begin with among the notes
    cell: Key
    what: str
    where: str

    @property
    def split(self) -> Any:
        return self.cell[-1]


def cell_notes(sweep: Sweep, scores: pd.DataFrame) -> dict[Key, str]:
    """By cell, what is said of it: conflicts and remarks, in one text; cells of which nothing is said are not there.

    `scores`: those of the sweep.
    """
    found: defaultdict[Key, list[str]] = defaultdict(list)
    wrong = scores[scores["conflict"].notna()]
    keys = [*sweep.roles, "task", "split"]
    for key, sentence in zip(wrong[keys].itertuples(index=False, name=None), wrong["conflict"], strict=True):
        found[key].append(sentence)
    for remark in remarks(sweep, scores):
        found[remark.cell].append(f"{remark.kind}: {remark.what}")
    return {key: "; ".join(dict.fromkeys(texts)) for key, texts in found.items()}


def notes(sweep: Sweep) -> list[str]:
    """The remarks, one for each kind; splits of which the same is said are one."""
    by_kind: defaultdict[str, dict[tuple[str, str], list[Any]]] = defaultdict(dict)
    for remark in remarks(sweep, sweep.scores):
        by_kind[remark.kind].setdefault((remark.where, remark.what), []).append(remark.split)
    said = []
    for kind, places in by_kind.items():
        texts = []
        for (where, what), splits in list(places.items())[:SAID]:
            every = len(splits) == len(sweep.splits)
            texts.append(f"{where}{'' if every else ' ' + ' and '.join(splits)}: {what}")
        more = len(places) - len(texts)
        said.append(f"{kind}: {'; '.join(texts)}{f'; and {more} more' if more > 0 else ''}")
    return said


def remarks(sweep: Sweep, scores: pd.DataFrame) -> Iterator[Remark]:
    """Of every cell. Where a cell has a conflict, that is what there is to say."""
    if "seed" not in scores:
        return
    keys = [*sweep.roles, "task", "split"]
    cells: dict[Key, pd.DataFrame] = dict(iter(scores.groupby(keys, sort=False)))
    sound = {key: cell for key, cell in cells.items() if not cell["state"].isin(WRONG).any()}
    if len(sound) == len(cells):
        yield from _dropped(sweep, cells)
    yield from _other_seeds(sweep, sound)
    yield from _no_spread(sweep, sound)
    yield from _seeds_alone(sweep, sound)


def _dropped(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Seeds that the manifest lacks in one cell and has in others of the same task."""
    planned: defaultdict[Any, dict[Any, None]] = defaultdict(dict)
    for key, cell in cells.items():
        planned[key[-2]] |= dict.fromkeys(cell["seed"])
    for key, cell in cells.items():
        here = set(cell["seed"])
        lacking = [seed for seed in planned[key[-2]] if seed not in here]
        if lacking:
            what = f"no point for seed{'s' * (len(lacking) > 1)} {_words(lacking)}"
            yield Remark("not in the manifest, though other rows have it", key, what, _where(sweep, key))


def _other_seeds(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Rows whose values are of other seeds than the baseline's."""
    baseline = sweep.manifest["baseline"] or {}
    shared = [not any(axis in baseline for axis in axes) for axes in sweep.roles.values()] + [True, True]
    against: defaultdict[Key, list[list[Any]]] = defaultdict(list)
    for key, cell in cells.items():
        if cell["baseline"].all():
            against[tuple(compress(key, shared))].append(_seeds(cell))
    for key, cell in cells.items():
        others = against[tuple(compress(key, shared))]
        if cell["baseline"].all() or len(others) != 1:
            continue
        ours, theirs = _seeds(cell), others[0]
        if ours and theirs and set(ours) != set(theirs):
            what = f"seeds {_words(ours)}, the baseline's {_words(theirs)}"
            yield Remark("other seeds than the baseline's", key, what, _where(sweep, key))


def _no_spread(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Seeds with one and the same score: chance, or one run that was counted twice.

    At an end of the metric's range it is neither: there all answers are right, or all wrong, whatever the seed.
    """
    for key, cell in cells.items():
        rows = cell[cell["value"].notna()]
        value = rows["value"].iloc[0] if len(rows) else 0.0
        if len(rows) > 1 and (rows["value"] == value).all() and 0 < value < highest(rows["metric"].iloc[0]):
            what = f"{len(rows)} seeds have {value:.10g}{_of_examples(sweep, rows)}"
            yield Remark("no spread over seeds", key, what, _where(sweep, key))


def _seeds_alone(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Runs without the scores of single examples, so that an interval is narrower than those beside it.

    Where no cell has them, tables say so once (`analysis.samples.SEEDS_ALONE`).
    """
    several = {key: cell[cell["value"].notna()] for key, cell in cells.items()}
    several = {key: cell for key, cell in several.items() if len(cell) > 1}  # one seed has no interval
    lacking = {key: _without_examples(sweep, cell) for key, cell in several.items()}
    if all(lacking.values()):
        return
    for key, seeds in lacking.items():
        if seeds:
            from_it = "; so are differences from it" if several[key]["baseline"].all() else ""
            what = f"no scores of single examples for seed{'s' * (len(seeds) > 1)} {_words(seeds)}{from_it}"
            yield Remark("intervals over seeds alone", key, what, _where(sweep, key))


def _without_examples(sweep: Sweep, rows: pd.DataFrame) -> list[Any]:
    """Seeds."""
    of = zip(rows["seed"], rows["run"], rows["evaluation"], strict=True)
    return [seed for seed, run, one in of if sweep.examples(run, one) is None]


def _of_examples(sweep: Sweep, rows: pd.DataFrame) -> str:
    found = [sweep.examples(run, one) for run, one in zip(rows["run"], rows["evaluation"], strict=True)]
    known = [scores for scores in found if scores is not None]
    if len(known) < len(rows):
        return ""
    alike = all(np.array_equal(scores, known[0]) for scores in known)
    return ", and on every example the same score" if alike else ", though not on the same examples"


def _seeds(cell: pd.DataFrame) -> list[Any]:
    return sorted(cell.loc[cell["value"].notna(), "seed"])


def _words(seeds: Sequence[Any]) -> str:
    return " ".join(map(str, seeds))


def _where(sweep: Sweep, key: Key) -> str:
    labels = [f"{name} {value}" for name, value in zip(sweep.roles, key, strict=False)]
    return f"{', '.join(labels)} on {key[-2]}"
