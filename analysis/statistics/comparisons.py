"""The comparisons of rows with the baseline: which of them form a family, and their results.

A block is a set of rows that are compared with one baseline: the rows of one task and split, in one column of a table. Within a
block the intervals are simultaneous (`analysis.statistics.families.compare`); the blocks of a family share its error probability.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from analysis.records.frame import Sweep
from analysis.statistics import families
from analysis.statistics.families import Comparison
from analysis.statistics.samples import KEPT, Group, metric_range
from mmprompt.studies.power import share_of

Block = tuple[Any, ...]  # the labels that a row and its baseline have in common


def blocks(sweep: Sweep, all_groups: Sequence[Group], column: str) -> dict[Block, list[int]]:
    """Returns for each block, one column of a table, the indices of its groups in `all_groups`, the baseline first.

    A block without exactly one baseline, or without another row to compare with it, is left out.
    """
    baseline = sweep.manifest["baseline"] or {}
    compared_labels = {name for name, axes in sweep.roles.items() if any(axis in baseline for axis in axes)}
    shared = [name for name in (*sweep.roles, "task", "split") if name not in compared_labels]
    by_label: defaultdict[Block, list[int]] = defaultdict(list)
    for number, group in enumerate(all_groups):
        if column == KEPT and group.label[str(sweep.over)] == sweep.manifest["kept_from"]:
            continue  # at this value every run keeps all of its score
        by_label[tuple(group.label[name] for name in shared)].append(number)
    sorted_blocks = {}
    for label, numbers in by_label.items():
        first = [number for number in numbers if all_groups[number].is_baseline]
        others = [number for number in numbers if not all_groups[number].is_baseline]
        if len(first) == 1 and others:
            sorted_blocks[label] = [*first, *others]
    return sorted_blocks


def compare(sweep: Sweep, all_groups: Sequence[Group], column: str) -> dict[int, tuple[Comparison, int]]:
    """Returns each row minus the baseline, by the index of its group, with the smaller n of the two."""
    counts = family_sizes(sweep, all_groups, column)
    result = {}
    for label, numbers in blocks(sweep, all_groups, column).items():
        block_groups = [all_groups[number] for number in numbers]
        seeds = _common_seeds(block_groups) if sweep.manifest["paired"] else None
        baseline, *rows = (group.sample(column, seeds) for group in block_groups)
        margin = margin_of(sweep, block_groups[0].metric, column)
        comparisons = families.compare(baseline, rows, share_of(counts[label]), sweep.manifest["paired"], margin)
        for number, row, comparison in zip(numbers[1:], rows, comparisons, strict=True):
            n = min(row.n, baseline.n)
            if n:  # p is corrected within its block; here it is corrected for all blocks of the family
                result[number] = replace(comparison, p_corrected=1 - (1 - comparison.p_corrected) ** counts[label]), n
    return result


def family_sizes(sweep: Sweep, all_groups: Sequence[Group], column: str) -> dict[Block, int]:
    """Returns for each block the number of blocks in its family."""
    family = {
        label: _family(sweep, all_groups[numbers[0]]) for label, numbers in blocks(sweep, all_groups, column).items()
    }
    counts = Counter(family.values())
    return {label: counts[which] for label, which in family.items()}


def margin_of(sweep: Sweep, metric: str, column: str) -> float | None:
    """The margin that the sweep declares for this metric, or for the share kept: a smaller difference does not matter."""
    margins = sweep.manifest["margin"]
    if column == KEPT:
        return margins.get(KEPT)
    return margins.get(metric, margins.get("percent") if metric_range(metric)[1] == 100 else None)


def _family(sweep: Sweep, group: Group) -> tuple[Any, ...]:
    """The key of a group's family: all columns of a table, or those of one task. Groups that no table shows are a family of
    their own."""
    task, split = group.label["task"], group.label["split"]
    is_shown = (task, split) in sweep.shown
    return (is_shown, task) if sweep.manifest["family"] == "task" else (is_shown,)


def _common_seeds(block_groups: Sequence[Group]) -> list[Any]:
    """The seeds that all rows with any seed have in common."""
    seeds = [group.seeds for group in block_groups if group.seeds]
    return [seed for seed in seeds[0] if all(seed in other for other in seeds)] if seeds else []
