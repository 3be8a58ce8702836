"""Finds the files of a task: in their own folder, or staged on the node's own disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmprompt.data.staging import staged
from mmprompt.runs.cache import Cache
from mmprompt.runs.fingerprint import fingerprint, fingerprints
from mmprompt.settings.task import Task


@dataclass(frozen=True)
class TaskFiles:
    paths: Mapping[str, Path]  # by a file's name in the task's settings; empty for the small world
    cache: Cache | None  # for the files' indices and decoded images; None: they are not kept
    kept_in: Path | None = None  # folder for the fingerprints of large files


def locate(task: Task, folder: str | None, stage: bool, cache: Cache | None, kept_in: Path | None = None) -> TaskFiles:
    """Finds a task's files in `folder`. `stage`: copies them to the node's own disk, and returns the copies. `kept_in`: the folder
    for the fingerprints of large files.

    Raises RuntimeError if a file is not there, or if the files have changed since launch.
    """
    if not task.files:
        return TaskFiles({}, cache, kept_in)
    if folder is None:
        raise RuntimeError(
            f"task={task.name} reads files, but this job's settings do not have their folder, paths.data"
        )
    paths = {name: Path(folder) / name for name in task.files}
    if missing := [path for path in paths.values() if not path.is_file()]:
        raise RuntimeError(f"task={task.name} reads {missing[0]}, which does not exist")
    checksum = fingerprints((paths[name] for name in task.files), kept_in)
    if checksum != task.data.fingerprint:
        raise RuntimeError(
            f"files of task={task.name} in {folder} have changed since launch: their checksum is {checksum}, the run was "
            f"launched with {task.data.fingerprint}"
        )
    if stage:
        paths = {name: staged(path, fingerprint(path, kept_in)) for name, path in paths.items()}
    return TaskFiles(paths, cache, kept_in)
