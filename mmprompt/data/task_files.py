"""Where the files of a task are in this process: in their folder, or on the node's own disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmprompt.data.staging import staged
from mmprompt.runs.fingerprint import fingerprint, fingerprints
from mmprompt.settings.task import Task


@dataclass(frozen=True)
class TaskFiles:
    paths: Mapping[str, Path]  # by the name that the task has for a file; empty for the small world
    cache: Path | None  # a folder for what is found out about them


def locate(task: Task, folder: str | None, stage: bool, cache: Path | None) -> TaskFiles:
    """Finds a task's files in `folder`. `stage`: copies of them, on the node's own disk.

    Raises RuntimeError if they are not there, or are others than at launch.
    """
    if not task.files:
        return TaskFiles({}, cache)
    if folder is None:
        raise RuntimeError(f"task={task.name} reads files, and this job was not told their folder, paths.data")
    paths = {name: Path(folder) / name for name in task.files}
    if gone := [path for path in paths.values() if not path.is_file()]:
        raise RuntimeError(f"{gone[0]} is not there, which task={task.name} reads")
    checksum = fingerprints(paths[name] for name in task.files)
    if checksum != task.data.fingerprint:
        raise RuntimeError(
            f"files of task={task.name} in {folder} have changed since launch: their checksum is {checksum}, the run was "
            f"launched with {task.data.fingerprint}"
        )
    if stage:
        paths = {name: staged(path, fingerprint(path)) for name, path in paths.items()}
    return TaskFiles(paths, cache)
