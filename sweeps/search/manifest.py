"""The manifest of a study: trials and their confirmation as the points of a sweep, for every reader of sweeps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from mmprompt.runs.comparison import Comparison
from mmprompt.runs.identity import evaluation_id
from mmprompt.runs.records import as_json
from mmprompt.studies.outcomes import StudyProgress
from mmprompt.studies.study import Study

SEARCH, CONFIRMATION = "search", "confirmation"  # values of the axis `phase`


def manifest(study: Study, progress: StudyProgress) -> str:
    """The content of STORE/sweeps/search-NAME.json: like the manifest of a sweep (`sweeps.grid.manifest`), with the axes `trial`
    and `phase`."""
    definition = progress.definition
    points = list(_points(progress))
    axes: dict[str, list[Any]] = {"trial": [], "phase": []}
    axes |= {parameter.key: [] for parameter in definition.space} | {key: [] for key in definition.each} | {"seed": []}
    for point in points:
        for key, value in point["values"].items():
            if key in axes and value not in axes[key]:
                axes[key].append(value)
    splits = {task["validation"] for task in definition.tasks.values()}
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


def _points(progress: StudyProgress) -> Iterator[dict[str, Any]]:
    definition = progress.definition
    for outcome in progress.outcomes:
        trial = outcome.trial
        task = definition.task_of(trial.settings, trial.group)
        for seed in outcome.seeds:
            run = trial.runs[str(seed)]
            values: dict[str, Any] = {
                "trial": trial.number,
                "phase": SEARCH,
                **definition.groups[trial.group],
                **trial.settings,
            }
            split = definition.tasks[task]["validation"]
            evaluations = {split: evaluation_id(run, {"split": split})}
            yield {"values": {"task": task, "seed": seed, **values}, "run": run, "evaluations": evaluations}
    for group in progress.confirmation.groups if progress.confirmation else []:
        warm = count(1)  # warm trials have no number, so they are counted
        for candidate in group.candidates:
            task = definition.task_of(candidate.settings, group.group)
            settings: dict[str, Any] = {
                "trial": f"warm {next(warm)}" if candidate.trial is None else candidate.trial,
                "phase": CONFIRMATION,
            }
            settings |= {**definition.groups[group.group], **candidate.settings}
            for fresh, run in candidate.runs.items():
                evaluations = {split: evaluation_id(run, {"split": split}) for split in definition.splits[task]}
                yield {"values": {"task": task, "seed": int(fresh), **settings}, "run": run, "evaluations": evaluations}
