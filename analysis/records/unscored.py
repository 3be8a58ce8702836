"""The unscored splits of a sweep: those that its runs answer, and that have no column in tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from analysis.records.stored import Unreadable, read
from mmprompt.runs.records import EVALUATION, DamagedError
from mmprompt.runs.store import Store


def notes(manifest: Mapping[str, Any], store: Store) -> list[str]:
    """Returns a note for each unscored split of a sweep: how many runs have answered it, and which command writes the answers."""
    answered: defaultdict[str, dict[tuple[str, str], bool]] = defaultdict(dict)  # by split; by run and evaluation
    damaged = []
    for point in manifest["points"]:
        for split, evaluation in point.get("unscored", {}).items():
            try:
                answered[split][point["run"], evaluation] = _is_made(store, point["run"], evaluation)
            except (Unreadable, DamagedError) as error:
                damaged.append(f"run {point['run']}: {error}")
    return damaged + [
        f"{split} has no score, because its right answers are not here: {sum(made.values())} of {len(made)} runs answered it; "
        f"`python -m analysis export {manifest['sweep']}` writes the answers"
        for split, made in answered.items()
    ]


def _is_made(store: Store, run: str, evaluation: str) -> bool:
    """Whether a run has this evaluation. Raises Unreadable or DamagedError."""
    folder = store.run(run)
    return folder.result() is not None and read(folder.evaluation_file(evaluation), EVALUATION) is not None
