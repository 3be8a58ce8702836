"""The manifest of a study: a sweep whose points are trials and what confirms them, for all who read sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from mmprompt.runs.comparison import Comparison
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import as_json
from mmprompt.studies.outcomes import Picture
from mmprompt.studies.study import Study

SEARCH, CONFIRMATION = "search", "confirmation"  # values of the axis `phase`


def manifest(study: Study, picture: Picture) -> str:
    """STORE/sweeps/search-NAME.json. Like that of a sweep (`sweeps.grid.manifest`), with axes `trial` and `phase`."""
    definition = picture.definition
    points = list(_points(picture))
    axes: dict[str, list[Any]] = {"trial": [], "phase": []}
    axes |= {parameter.key: [] for parameter in definition.space} | {key: [] for key in definition.each} | {"seed": []}
    for point in points:
        for key, value in point["values"].items():
            if key in axes and value not in axes[key]:
                axes[key].append(value)
    splits = {about["validation"] for about in definition.tasks.values()}
    content = {
        "sweep": study.manifest,
        "search": study.name,
        "claim": definition.claim,
        "paper": {},
        "command": definition.command,
        **({} if definition.overrides is None else {"target": definition.target, "overrides": definition.overrides}),
        "axes": {key: values for key, values in axes.items() if values},
        "baseline": None,
        **Comparison(compare="trial", each=["phase"], splits=sorted(splits)).model_dump(),
        "tasks": definition.tasks,
        "header": definition.header,
        "tracking": definition.tracking,
        "points": points,
        "commit": definition.commit,
        "dirty": definition.dirty,
        "launched": definition.created,
    }
    return as_json(content)


def _points(picture: Picture) -> Iterator[dict[str, Any]]:
    definition = picture.definition
    for one in picture.outcomes:
        trial = one.trial
        task = definition.task_of(trial.settings, trial.group)
        for seed in one.seeds:
            run = trial.runs[str(seed)]
            values: dict[str, Any] = {
                "trial": trial.number,
                "phase": SEARCH,
                **definition.groups[trial.group],
                **trial.settings,
            }
            asked = {split: evaluation_id(run, {"split": split}) for split in [definition.tasks[task]["validation"]]}
            yield {"values": {"task": task, "seed": seed, **values}, "run": run, "evaluations": asked}
    for group in picture.confirmation.groups if picture.confirmation else []:
        warm = count(1)  # candidates of that kind have no number of their own
        for candidate in group.candidates:
            task = definition.task_of(candidate.settings, group.group)
            about: dict[str, Any] = {
                "trial": f"warm {next(warm)}" if candidate.trial is None else candidate.trial,
                "phase": CONFIRMATION,
            }
            about |= {**definition.groups[group.group], **candidate.settings}
            for fresh, run in candidate.runs.items():
                asked = {split: evaluation_id(run, {"split": split}) for split in definition.splits[task]}
                yield {"values": {"task": task, "seed": int(fresh), **about}, "run": run, "evaluations": asked}
