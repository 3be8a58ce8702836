"""Rows against the baseline's: which comparisons are one family, and what comes of them.

A block is what is compared with one baseline: the rows of one task and split, in one column of a table. Within a block the
intervals hold together (`analysis.inference.compare`); the blocks of a family share the chance to err between them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis import families
from analysis.families import Comparison
from analysis.frame import Sweep
from analysis.samples import KEPT, Group, metric_range
from mmprompt.studies.power import share_of

Block = tuple[Any, ...]  # the labels that a row and the one it is measured against have in common


def blocks(sweep: Sweep, found: Sequence[Group], what: str) -> dict[Block, list[int]]:
    """The groups that are compared with each other, by number: of one column of a table. The baseline's comes first.

    A block in which it is not clear which row is the baseline's is none, nor is one in which nothing can be told apart.
    """
    baseline = sweep.manifest["baseline"] or {}
    named = {name for name, axes in sweep.roles.items() if any(axis in baseline for axis in axes)}
    shared = [name for name in (*sweep.roles, "task", "split") if name not in named]
    by_label: defaultdict[Block, list[int]] = defaultdict(list)
    for number, group in enumerate(found):
        if what == KEPT and group.label[str(sweep.over)] == sweep.manifest["kept_from"]:
            continue  # there every run has all of its score
        by_label[tuple(group.label[name] for name in shared)].append(number)
    sorted_blocks = {}
    for label, numbers in by_label.items():
        first = [number for number in numbers if found[number].is_baseline]
        others = [number for number in numbers if not found[number].is_baseline]
        if len(first) == 1 and others:
            sorted_blocks[label] = [*first, *others]
    return sorted_blocks


def compare(sweep: Sweep, found: Sequence[Group], what: str) -> dict[int, tuple[Comparison, int]]:
    """Each row less the baseline's, by the number of its group, with the smaller n of the two."""
    counts = sizes(sweep, found, what)
    result = {}
    for label, numbers in blocks(sweep, found, what).items():
        those = [found[number] for number in numbers]
        seeds = _common_seeds(those) if sweep.manifest["paired"] else None
        baseline, *rows = (group.sample(what, seeds) for group in those)
        margin = margin_of(sweep, those[0].metric, what)
        made = families.compare(baseline, rows, share_of(counts[label]), sweep.manifest["paired"], margin)
        for number, row, one in zip(numbers[1:], rows, made, strict=True):
            n = min(row.n, baseline.n)
            if n:  # p is corrected within its block; here for all of the family's
                result[number] = replace(one, p_corrected=1 - (1 - one.p_corrected) ** counts[label]), n
    return result


def sizes(sweep: Sweep, found: Sequence[Group], what: str) -> dict[Block, int]:
    """Of each block, how many its family has."""
    family = {label: _family(sweep, found[numbers[0]]) for label, numbers in blocks(sweep, found, what).items()}
    counts = Counter(family.values())
    return {label: counts[which] for label, which in family.items()}


def margin_of(sweep: Sweep, metric: str, what: str) -> float | None:
    """The differences that the sweep declares not to matter: less than this, of this metric or of the share kept."""
    margins = sweep.manifest["margin"]
    if what == KEPT:
        return margins.get(KEPT)
    return margins.get(metric, margins.get("percent") if metric_range(metric)[1] == 100 else None)


def _family(sweep: Sweep, group: Group) -> tuple[Any, ...]:
    """What is corrected together: the columns of a table, or those of one task. What no table shows is apart."""
    task, split = group.label["task"], group.label["split"]
    is_shown = (task, split) in sweep.shown
    return (is_shown, task) if sweep.manifest["family"] == "task" else (is_shown,)


def _common_seeds(those: Sequence[Group]) -> list[Any]:
    """Those that every row has that has any."""
    seeds = [group.seeds for group in those if group.seeds]
    return [seed for seed in seeds[0] if all(seed in other for other in seeds)] if seeds else []
