"""Remarks on single cells whose numbers are right but need an explanation.

They concern other seeds than the baseline's, points that the manifest lacks, seeds that all have the same score, and intervals
that leave out the test examples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd

from analysis.records.frame import WRONG, Sweep
from mmprompt.families.registry import highest

Key = tuple[Any, ...]  # identifies a cell: the row labels, task, split
NAMED = 5  # number of cells that a note on one kind of remark names


@dataclass(frozen=True)
class Remark:
    """A remark on one cell. The cell's note shows `what`; the sweep's notes show `where` and `what`."""

    kind: str  # the words that a note on all remarks of this kind begins with
    cell: Key
    what: str
    where: str  # the cell's row and task

    @property
    def split(self) -> Any:
        return self.cell[-1]


def cell_notes(sweep: Sweep, scores: pd.DataFrame) -> dict[Key, str]:
    """Returns the note of each cell that has conflicts or remarks, as one text. `scores`: the sweep's."""
    texts_of: defaultdict[Key, list[str]] = defaultdict(list)
    wrong = scores[scores["conflict"].notna()]
    keys = [*sweep.roles, "task", "split"]
    for key, sentence in zip(wrong[keys].itertuples(index=False, name=None), wrong["conflict"], strict=True):
        texts_of[key].append(sentence)
    for remark in remarks(sweep, scores):
        texts_of[remark.cell].append(f"{remark.kind}: {remark.what}")
    return {key: "; ".join(dict.fromkeys(texts)) for key, texts in texts_of.items()}


def notes(sweep: Sweep) -> list[str]:
    """Returns a note for each kind of remark; splits with the same remark are named together."""
    by_kind: defaultdict[str, dict[tuple[str, str], list[Any]]] = defaultdict(dict)
    for remark in remarks(sweep, sweep.scores):
        by_kind[remark.kind].setdefault((remark.where, remark.what), []).append(remark.split)
    sentences = []
    for kind, places in by_kind.items():
        texts = []
        for (where, text), splits in list(places.items())[:NAMED]:
            every = len(splits) == len(sweep.splits)
            texts.append(f"{where}{'' if every else ' ' + ' and '.join(splits)}: {text}")
        unnamed = len(places) - len(texts)
        sentences.append(f"{kind}: {'; '.join(texts)}{f'; and {unnamed} more' if unnamed > 0 else ''}")
    return sentences


def remarks(sweep: Sweep, scores: pd.DataFrame) -> Iterator[Remark]:
    """Yields the remarks on every cell. A cell with a conflict has none."""
    if "seed" not in scores:
        return
    keys = [*sweep.roles, "task", "split"]
    cells: dict[Key, pd.DataFrame] = dict(iter(scores.groupby(keys, sort=False)))
    sound = {key: cell for key, cell in cells.items() if not cell["state"].isin(WRONG).any()}
    if len(sound) == len(cells):
        yield from _missing_points(sweep, cells)
    yield from _other_seeds(sweep, sound)
    yield from _no_spread(sweep, sound)
    yield from _seeds_alone(sweep, sound)


def _missing_points(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Yields remarks on seeds that the manifest lacks in one cell but has in other cells of the same task."""
    planned: defaultdict[Any, dict[Any, None]] = defaultdict(dict)
    for key, cell in cells.items():
        planned[key[-2]] |= dict.fromkeys(cell["seed"])
    for key, cell in cells.items():
        here = set(cell["seed"])
        absent = [seed for seed in planned[key[-2]] if seed not in here]
        if absent:
            text = f"no point for seed{'s' * (len(absent) > 1)} {_words(absent)}"
            yield Remark("not in the manifest, though other rows have it", key, text, _where(sweep, key))


def _other_seeds(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Yields remarks on rows whose values come from other seeds than the baseline's."""
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
            text = f"seeds {_words(ours)}, the baseline's {_words(theirs)}"
            yield Remark("other seeds than the baseline's", key, text, _where(sweep, key))


def _no_spread(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Yields remarks on cells whose seeds all have the same score: by chance, or because one run was counted twice.

    At an end of the metric's range it is neither: all answers are right, or all wrong, whatever the seed.
    """
    for key, cell in cells.items():
        rows = cell[cell["value"].notna()]
        value = rows["value"].iloc[0] if len(rows) else 0.0
        if len(rows) > 1 and (rows["value"] == value).all() and 0 < value < highest(rows["metric"].iloc[0]):
            text = f"{len(rows)} seeds have {value:.10g}{_examples_agree_words(sweep, rows)}"
            yield Remark("no spread over seeds", key, text, _where(sweep, key))


def _seeds_alone(sweep: Sweep, cells: Mapping[Key, pd.DataFrame]) -> Iterator[Remark]:
    """Yields remarks on runs without scores of single examples, which make an interval narrower than those beside it.

    If no cell has such scores, tables say so once (`analysis.statistics.samples.SEEDS_ALONE`).
    """
    several = {key: cell[cell["value"].notna()] for key, cell in cells.items()}
    several = {key: cell for key, cell in several.items() if len(cell) > 1}  # a single seed has no interval
    seeds_without = {key: _without_examples(sweep, cell) for key, cell in several.items()}
    if all(seeds_without.values()):
        return
    for key, seeds in seeds_without.items():
        if seeds:
            addition = "; so are differences from it" if several[key]["baseline"].all() else ""
            text = f"no scores of single examples for seed{'s' * (len(seeds) > 1)} {_words(seeds)}{addition}"
            yield Remark("intervals over seeds alone", key, text, _where(sweep, key))


def _without_examples(sweep: Sweep, rows: pd.DataFrame) -> list[Any]:
    """The seeds whose runs have no scores of single examples."""
    evaluations = zip(rows["seed"], rows["run"], rows["evaluation"], strict=True)
    return [seed for seed, run, evaluation in evaluations if sweep.examples(run, evaluation) is None]


def _examples_agree_words(sweep: Sweep, rows: pd.DataFrame) -> str:
    scores_of_runs = [sweep.examples(run, one) for run, one in zip(rows["run"], rows["evaluation"], strict=True)]
    available = [scores for scores in scores_of_runs if scores is not None]
    if len(available) < len(rows):
        return ""
    alike = all(np.array_equal(scores, available[0]) for scores in available)
    return ", and on every example the same score" if alike else ", though not on the same examples"


def _seeds(cell: pd.DataFrame) -> list[Any]:
    return sorted(cell.loc[cell["value"].notna(), "seed"])


def _words(seeds: Sequence[Any]) -> str:
    return " ".join(map(str, seeds))


def _where(sweep: Sweep, key: Key) -> str:
    labels = [f"{name} {value}" for name, value in zip(sweep.roles, key, strict=False)]
    return f"{', '.join(labels)} on {key[-2]}"
